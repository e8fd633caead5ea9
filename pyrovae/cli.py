"""The command line: ``pyrovae fit | evaluate | compare | list``, configured from the constructors' own signatures."""

import inspect
import itertools
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn

import pandas as pd
import yaml
from jsonargparse import ArgumentParser, Namespace
from pyro.infer import ELBO, Trace_ELBO
from torch.distributions import Distribution

import pyrovae
from pyrovae import data as data_catalogue
from pyrovae import guides as guide_catalogue
from pyrovae import likelihoods as likelihood_catalogue
from pyrovae import models as model_catalogue
from pyrovae import nn as nn_catalogue
from pyrovae import objectives as objective_catalogue
from pyrovae import priors as prior_catalogue
from pyrovae.checks import at_least, writable_folder
from pyrovae.data import Data, Splits
from pyrovae.evaluation import Evaluation, evaluate
from pyrovae.guides import Flow, FullRank, Guide, MeanField
from pyrovae.likelihoods import Bernoulli, Likelihood, Missing
from pyrovae.models import VAE
from pyrovae.nn import MLP, Network, Observed, Shape
from pyrovae.particles import BATCH_SIZE
from pyrovae.priors import Prior, StandardNormal, VampPrior
from pyrovae.report import calibration_table, comparison_page, formatted, gap_table, latent_table
from pyrovae.state import importing, random_state
from pyrovae.strategies import Findings, examine
from pyrovae.training import Fit, FitError, FitInterrupted, fit, load
from pyrovae.training.group import Group, launched, wait_for_all
from pyrovae.training.storage import holds_fit

CONFIG = "config.yaml"
WRITTEN = ("arviz_compare.csv", "figures", "history.csv", "report.html", "table.csv")
MOST_STEPS = 5000  # of a fit whose number of epochs is not given
LEAST_STEPS = 500  # without a better validation bound, before patience ends a fit of few data
GuideMaker = Callable[[Network, int], Guide]
ObjectiveMaker = Callable[[], ELBO]
GUIDES: dict[str, GuideMaker] = {"mean_field": MeanField, "full_rank": FullRank, "iaf": Flow}
OBJECTIVES: dict[str, ObjectiveMaker] = {"elbo": Trace_ELBO}


def autoencoder(
    data: Data,
    guide: GuideMaker,
    *,
    latent_dim: int,
    prior: Callable[[int], Prior],
    likelihood: Callable[[], Likelihood],
    encoder: Callable[[Shape, Shape], Network],
    decoder: Callable[[Shape, Shape], Network],
    features: int,
    seed: int,
) -> tuple[VAE, Guide]:
    """Build a VAE and its guide for data; equal seeds give equal initial models.

    Where values are missing, likelihood and encoder are told so.
    """
    with random_state("initial values", seed), _made_by_the_command_line():
        p_z, p_x = prior(at_least("latent_dim", latent_dim, 1)), likelihood()
        model = VAE(
            prior=p_z,
            decoder=decoder(latent_dim, p_x.features(data.shape)),
            likelihood=Missing(p_x) if data.missing else p_x,
        )
        network = Observed(encoder(_doubled(data.shape), features)) if data.missing else encoder(data.shape, features)
        made = guide(network, latent_dim)
        if isinstance(p_z, VampPrior):
            p_z.attach(made, data)
        return model, made


@contextmanager
def _made_by_the_command_line() -> Iterator[None]:
    try:
        yield
    except TypeError as error:  # of a class that wants what there is no option for
        raise ValueError(
            f"a part cannot be made from options alone: {error}: make it in Python, or use another"
        ) from None


def _doubled(shape: Shape) -> Shape:
    """Return the shape of data beside the mask of what is observed."""
    return 2 * shape if isinstance(shape, int) else (2 * shape[0], *shape[1:])


def fit_command(
    data: Data,
    out: str,
    guide: GuideMaker = MeanField,
    objective: ObjectiveMaker = Trace_ELBO,
    prior: Callable[[int], Prior] = StandardNormal,
    likelihood: Callable[[], Likelihood] = Bernoulli,
    encoder: Callable[[Shape, Shape], Network] = MLP,
    decoder: Callable[[Shape, Shape], Network] = MLP,
    latent_dim: int = 8,
    features: int = 128,
    epochs: int | None = None,
    patience: int | None = 20,
    batch_size: int = 128,
    lr: float = 1e-3,
    clip_norm: float | None = None,
    compile: bool | Literal["auto"] = "auto",
    precision: Literal["float32", "float64", "bfloat16"] = "float32",
    seed: int = 0,
    device: str | None = None,
    resume: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Fit a variational autoencoder by SVI and save it.

    The data are split at random: 7 in 10 for training, 1 for validation, 2 for testing (the published test set where
    there is one). Where values are missing (--data.missing true), likelihood and encoder are told so.
    Under torchrun the processes share every batch.

    Args:
        data: the data set: Digits, MNIST, FashionMNIST, Sprites, DSprites, Array (a .npy file) or CSV.
        out: folder for the fit, its history and its configuration.
        guide: family of q(z | x).
        objective: what the fit maximises, such as Trace_ELBO, IWAE or BetaELBO.
        prior: distribution of the latents.
        likelihood: distribution of a datum given the decoder's features.
        encoder: network from a datum to features.
        decoder: network from latents to the likelihood's features.
        latent_dim: number of latents.
        features: number of features that the encoder returns.
        epochs: largest number of passes over the training set; null makes as many as 5,000 steps need, 50 at least.
        patience: stop after this many epochs, and 500 steps at least, without a better validation bound; null never
            stops early.
        batch_size: data in a step.
        lr: learning rate of Adam.
        clip_norm: largest global norm of the gradient of the summed loss.
        compile: true compiles the step, false does not, auto does where it pays; config.yaml says which it was.
        precision: of modules and data; bfloat16 is that of the products in networks alone.
        seed: of the split, the initial parameters and the noise.
        device: cpu, cuda, ...; null means CUDA where there is one.
        resume: continue what an earlier run in the same folder left.
        progress: show progress bars.
    """
    folder = writable_folder(out)
    fitted = _fit_guide(
        folder / "fit", data, guide,
        objective=objective(), prior=prior, likelihood=likelihood, encoder=encoder, decoder=decoder,
        latent_dim=latent_dim, features=features,
        epochs=epochs, patience=patience, batch_size=batch_size, lr=lr, clip_norm=clip_norm, compile=compile,
        precision=precision, seed=seed, device=device, resume=resume, progress=progress,
    )  # fmt: skip
    if Group().rank == 0:
        fitted.history.to_csv(folder / "history.csv", index=False)
        print(f"saved in {folder}")
    return {"compile": fitted.compile}


def evaluate_command(
    run: str,
    data: Data | None = None,
    out: str | None = None,
    num_particles: int = 1000,
    num_draws: int = 100,
    batch_size: int = BATCH_SIZE,
    compile: bool | Literal["auto"] = "auto",
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> None:
    """Judge a saved fit: log evidence, ELBO and k-hat per datum.

    Args:
        run: folder that `pyrovae fit` wrote, or one fit's folder of `pyrovae compare`.
        data: data set to judge by, whole; null means the test set of the run.
        out: folder for a table with a row a datum and an ArviZ netCDF file; null prints the summary only.
        num_particles: importance samples a datum.
        num_draws: draws a datum in the netCDF file.
        batch_size: data held by a call of the programs.
        compile: true compiles the log weights, false does not, auto does where it pays.
        seed: of the particles.
        device: cpu, cuda, ...; null means CUDA where there is one.
        progress: show progress bars.
    """
    folder = Path(run)
    fitted = load(folder / "fit" if holds_fit(folder / "fit") else folder)
    judged = _splits(folder).test if data is None else data
    if data is not None and data.standardise:  # on the scale that the fit has seen
        judged = data.with_moments(_splits(folder).train.moments)
    target = None if out is None else writable_folder(out)
    options: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "device": device, "progress": progress}
    result = evaluate(fitted.model, fitted.guide, judged, num_particles=num_particles, compile=compile, **options)
    print(json.dumps(result.summary(), indent=1))
    if target is not None:
        _per_datum(result).to_csv(target / "per_datum.csv", index_label="datum")
        inference = pyrovae.to_arviz(
            fitted.model, fitted.guide, judged, num_draws=num_draws, num_particles=num_particles, **options
        )
        _write_netcdf(inference, target / "posterior.nc")
        print(f"wrote per_datum.csv and posterior.nc in {target}")


def compare_command(
    data: Data,
    out: str,
    guides: dict[str, GuideMaker] = GUIDES,
    objectives: dict[str, ObjectiveMaker] = OBJECTIVES,
    prior: Callable[[int], Prior] = StandardNormal,
    likelihood: Callable[[], Likelihood] = Bernoulli,
    encoder: Callable[[Shape, Shape], Network] = MLP,
    decoder: Callable[[Shape, Shape], Network] = MLP,
    latent_dim: int = 8,
    features: int = 128,
    epochs: int | None = None,
    patience: int | None = 20,
    batch_size: int = 128,
    lr: float = 1e-3,
    clip_norm: float | None = None,
    compile: bool | Literal["auto"] | dict[str, bool] = "auto",
    num_particles: int = 1000,
    num_draws: int = 100,
    max_arviz_data: int = 200,
    num_seeds: int = 1,
    gaps_of: int = 0,
    latents_of: int = 1000,
    simulations: int = 500,
    seed: int = 0,
    device: str | None = None,
    resume: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Fit one generative model under several guides and objectives, and compare them on held-out data.

    Writes the comparison table, a saved fit and an ArviZ netCDF file for each, figures, and an HTML page of all of it.

    Args:
        data: the data set: Digits, MNIST, FashionMNIST, Sprites, DSprites, Array (a .npy file) or CSV.
        out: folder for all results.
        guides: families of q(z | x), by name.
        objectives: what fits maximise, by name: every guide is fitted by each.
        prior: distribution of the latents.
        likelihood: distribution of a datum given the decoder's features.
        encoder: network from a datum to features.
        decoder: network from latents to the likelihood's features.
        latent_dim: number of latents.
        features: number of features that the encoder returns.
        epochs: largest number of passes over the training set; null makes as many as 5,000 steps need, 50 at least.
        patience: stop after this many epochs, and 500 steps at least, without a better validation bound; null never
            stops early.
        batch_size: data in a step.
        lr: learning rate of Adam.
        clip_norm: largest global norm of the gradient of the summed loss.
        compile: true compiles steps and log weights, false does not, auto does where it pays; or true or false for the
            steps of each strategy, by name, as config.yaml says after a run how it was.
        num_particles: importance samples a datum.
        num_draws: draws a datum in the netCDF files.
        max_arviz_data: the netCDF files hold this many of the test data, the first ones.
        num_seeds: fits of each strategy, their initial parameters and noise from seed, seed + 1, ...; one split.
        gaps_of: of this many test data, taken at random, also find the guide's approximation and amortization gaps.
        latents_of: number of test data, taken at random, on which the latents and what the model draws are evaluated; 0
            leaves that out.
        simulations: data that each fitted model simulates to see whether its guide is calibrated; 0 leaves that out.
        seed: of the split, the initial parameters and the noise.
        device: cpu, cuda, ...; null means CUDA where there is one.
        resume: continue what an earlier run in the same folder left.
        progress: show progress bars.
    """
    if not guides:
        raise ValueError("guides is empty: name at least one")
    if not objectives:
        raise ValueError("objectives is empty: name at least one")
    at_least("num_seeds", num_seeds, 1)
    for name, count in {"gaps_of": gaps_of, "latents_of": latents_of, "simulations": simulations}.items():
        at_least(name, count, 0)
    if simulations == 1:
        raise ValueError("simulations must be 0 or at least 2, got 1")
    strategies = _strategies(guides, objectives)
    steps = compile if isinstance(compile, dict) else dict.fromkeys(strategies, compile)
    for name in steps:
        if name not in strategies:
            raise ValueError(
                f"compile names {name!r}, but the strategies are {', '.join(strategies)}: name them, or pass auto"
            )
    folder = writable_folder(out)
    fits: dict[str, list[Fit]] = {}
    for name, (guide, objective) in strategies.items():
        fits[name] = [
            _fit_guide(
                folder / one, data, guide,
                objective=objective(), prior=prior, likelihood=likelihood, encoder=encoder, decoder=decoder,
                latent_dim=latent_dim, features=features, epochs=epochs, patience=patience, batch_size=batch_size,
                lr=lr, clip_norm=clip_norm, compile=steps.get(name, "auto"), seed=seed + k, split_seed=seed,
                device=device, resume=resume, progress=progress,
            )
            for k, one in enumerate(_run_names(name, num_seeds))
        ]  # fmt: skip
    test = data.splits(seed=seed).test.fixed()
    options: dict[str, Any] = {"seed": seed, "device": device, "progress": progress}
    found = examine(
        fits, test, num_particles=num_particles, gaps_of=gaps_of, latents_of=latents_of, simulations=simulations,
        compile="auto" if isinstance(compile, dict) else compile, **options,
    )  # fmt: skip
    _write_findings(folder, fits, found)
    shown = test.subset(slice(0, max_arviz_data))
    draws: dict[str, Any] = {"num_draws": num_draws, "num_particles": num_particles, **options}
    pictures = _write_draws(folder, fits, shown, **draws)
    settled = {"compile": {name: run[0].compile for name, run in fits.items()}}
    described = {**(yaml.safe_load(_text(folder / CONFIG)) or {}), **settled}
    comparison_page(folder, fits, found, test, pictures, configuration=yaml.safe_dump(described, sort_keys=False))
    _print_findings(found, len(test), min(gaps_of, len(test)))
    print(f"wrote {folder / 'report.html'}")
    return settled


def _strategies(
    guides: dict[str, GuideMaker], objectives: dict[str, ObjectiveMaker]
) -> dict[str, tuple[GuideMaker, ObjectiveMaker]]:
    """Return every guide with every objective, by name."""
    pairs = itertools.product(guides.items(), objectives.items())
    return {(g if len(objectives) == 1 else f"{g}-{o}"): (guide, objective) for (g, guide), (o, objective) in pairs}


def _write_findings(folder: Path, fits: dict[str, list[Fit]], found: Findings) -> None:
    """Write the tables of a comparison: of all strategies, of every fit's data, and ArviZ's own."""
    num_seeds = len(next(iter(fits.values())))
    if num_seeds == 1:
        found.table["steps"] = pd.Series({name: len(run[0].history) for name, run in fits.items()})
        found.table["stopped"] = pd.Series({name: run[0].stopped for name, run in fits.items()})
    found.table.to_csv(folder / "table.csv")
    for name, judged in found.evaluations.items():
        for one, evaluation in zip(_run_names(name, num_seeds), judged, strict=True):
            _per_datum(evaluation).to_csv(folder / one / "per_datum.csv", index_label="datum")
    if len(fits) > 1:
        pyrovae.elpd_comparison(found.evaluations).to_csv(folder / "arviz_compare.csv", index_label="name")


def _write_draws(folder: Path, fits: dict[str, list[Fit]], shown: Data, **options: Any) -> dict[str, Any]:
    """Write a netCDF file of the first seed's fit of every strategy; return rows of pictures for the page."""
    pictures: dict[str, Any] = {}
    for name, run in fits.items():
        inference = pyrovae.to_arviz(run[0].model, run[0].guide, shown, **options)
        _write_netcdf(inference, folder / f"{_run_names(name, len(run))[0]}.nc")
        predicted, drawn = inference.posterior_predictive["x"], inference.prior_predictive["x"]
        pictures[f"posterior predictive mean, {name}"] = predicted.mean(("chain", "draw")).to_numpy()
        pictures[f"draws from the prior predictive, {name}"] = drawn[0, 0].to_numpy()
    return pictures


def _run_names(name: str, num_seeds: int) -> list[str]:
    """Return the folder of each of a strategy's fits."""
    return [name] if num_seeds == 1 else [f"{name}-seed{k}" for k in range(num_seeds)]


def _print_findings(found: Findings, num_data: int, gaps_of: int) -> None:
    several = ", the first seed's fits" if any(len(run) > 1 for run in found.evaluations.values()) else ""
    calibrated = formatted(calibration_table(found.calibration)) if found.calibration else None
    tables = {
        f"{num_data} test data, nats per datum": formatted(found.table),
        f"gaps of {gaps_of}{several}": formatted(gap_table(found.gaps)) if found.gaps else None,
        f"calibration on simulated data{several}": calibrated,
        f"what the latents hold, nats per datum{several}": latent_table(found.latents) if found.latents else None,
    }
    for title, table in tables.items():
        if table is not None:
            print(f"{title}:\n{table.to_string()}")
    for note in found.notes:
        print(note)


def list_command() -> None:
    """List the catalogues: every name with what it is."""
    for name, catalogue in _CATALOGUES.items():
        print(f"{name}:")
        for member in catalogue.__all__:
            value = getattr(catalogue, member)
            if inspect.isclass(value) and not inspect.isabstract(value) and not _is_base(value):
                print(f"  {member:<22} {_summary(value)}")


_CATALOGUES: dict[str, Any] = {
    "models": model_catalogue,
    "guides": guide_catalogue,
    "priors": prior_catalogue,
    "likelihoods": likelihood_catalogue,
    "objectives": objective_catalogue,
    "nn": nn_catalogue,
    "data": data_catalogue,
}
_COMMANDS: dict[str, Callable[..., Any]] = {
    "fit": fit_command,
    "evaluate": evaluate_command,
    "compare": compare_command,
    "list": list_command,
}


class _Parser(ArgumentParser):
    """Says what is wrong in one sentence."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the sentence and exit with status 2."""
        text = " ".join(message.split())
        text = re.sub(
            r"Expected a dot import path string: (\S+)",
            r"\1 is neither a name that fits here (`pyrovae list` shows all, --help those that fit) nor an import path",
            text,
        )
        print(
            f"pyrovae: error: {text} (for what is accepted: {self.prog.replace(' [options]', '')} --help)",
            file=sys.stderr,
        )
        raise SystemExit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    Bad input ends with one sentence on standard error and status 2; a fit that had to stop with status 1; a signal with
    128 and its number, after saving.
    """
    parser, parsers = _parser()
    given = parser.parse_args(arguments)
    command = given.command
    try:
        if command != "list":
            chosen = parsers[command].instantiate(given[command])
            values = {name: value for name, value in vars(chosen).items() if name not in {"config", "overwrite"}}
            runs = command in {"fit", "compare"}
            with launched() as rank:
                if rank and command != "fit":
                    raise ValueError(f"{command} runs in one process: start it without torchrun")
                if runs and not rank:
                    _prepare(given[command])
                    if not given[command].resume:
                        _save_config(given[command], parsers[command])
                wait_for_all()
                settled = _COMMANDS[command](**values)
                if runs and not rank:  # a resumed run's new settings, once they are known to be honoured
                    for name, value in settled.items():
                        given[command][name] = value
                    _save_config(given[command], parsers[command])
        else:
            list_command()
    except FitInterrupted as interruption:
        print(f"pyrovae: {interruption}", file=sys.stderr)
        return 128 + interruption.signum
    except FitError as error:
        print(f"pyrovae: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"pyrovae: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _parser() -> tuple["_Parser", dict[str, "_Parser"]]:
    parser = _Parser(prog="pyrovae", description=pyrovae.__doc__, version=pyrovae.__version__)
    commands = parser.add_subcommands(dest="command")
    parsers = {}
    for name, function in _COMMANDS.items():
        summary = _summary(function)
        parsers[name] = _Parser(description=summary)
        if name != "list":
            parsers[name].add_argument("--config", action="config", help="YAML file with any of the options")
            parsers[name].add_function_arguments(function, as_positional=name == "evaluate")
        if name in {"fit", "compare"}:
            text = "replace what an earlier run in the same folder left."
            parsers[name].add_argument("--overwrite", type=bool, default=False, help=text)
        commands.add_subcommand(name, parsers[name], help=summary)
    return parser, parsers


def _save_config(given: Namespace, parser: ArgumentParser) -> None:
    """Save a run's configuration in its folder, without what was said for this time only."""
    described = yaml.safe_load(parser.dump(given, skip_unset=False))
    described.pop("config", None)
    described.update(resume=False, overwrite=False)
    (Path(given.out) / CONFIG).write_text(yaml.safe_dump(described, sort_keys=False))


def _prepare(given: Namespace) -> None:
    """See that a run may write into its folder, and clear what an earlier run left there when asked to."""
    folder = Path(given.out)
    if given.resume and given.overwrite:
        raise ValueError("give resume or overwrite, not both")
    earlier = sorted({path.parent for path in folder.glob("*/fit.json")}) if folder.is_dir() else []
    if earlier and not given.resume and not given.overwrite:
        raise ValueError(f"{given.out!r} already holds a run: pass --resume true, --overwrite true or another --out")
    writable_folder(folder)
    if given.overwrite:
        for path in [*earlier, *(folder / name for name in WRITTEN), *folder.glob("*.nc")]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _fit_guide(
    folder: Path, data: Data, guide: GuideMaker, *, resume: bool, split_seed: int | None = None, **options: Any
) -> Fit:
    names = ("latent_dim", "prior", "likelihood", "encoder", "decoder", "features")
    parts = {name: options.pop(name) for name in names}
    splits = data.splits(seed=options["seed"] if split_seed is None else split_seed)
    model, maker = autoencoder(splits.train, guide, seed=options["seed"], **parts)
    per_epoch = -(-len(splits.train) // max(options["batch_size"], 1))
    if options["epochs"] is None:
        options["epochs"] = max(50, -(-MOST_STEPS // per_epoch))
    if options["patience"] is not None:
        options["patience"] = max(options["patience"], -(-LEAST_STEPS // per_epoch))
    held_out = splits.validation
    fitted = fit(model, maker, splits.train, validation_data=held_out, checkpoint=folder, resume=resume, **options)
    if Group().rank == 0:
        print(f"{folder.name}: {fitted.stopped} after {len(fitted.history)} steps, {fitted.seconds:.1f} s")
    return fitted


def _splits(run: Path) -> Splits:
    """Return the parts that a run's data were split into."""
    for folder in (run, run.parent):
        if (folder / CONFIG).exists():
            described = yaml.safe_load((folder / CONFIG).read_text())
            parser = ArgumentParser()
            parser.add_argument("--data", type=Data)
            config = parser.parse_object({"data": described["data"]})
            parts: Splits = parser.instantiate(config).data.splits(seed=described["seed"])
            return parts
    raise ValueError(f"{str(run)!r} has no {CONFIG} that says what its data were: name a run's folder, and --data")


def _write_netcdf(inference: Any, path: Path) -> None:
    with importing():  # xarray imports the library that writes
        inference.to_netcdf(str(path))


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _per_datum(result: Evaluation) -> pd.DataFrame:
    columns = ("elbo", "elbo_se", "log_evidence", "log_evidence_se", "khat", "reliable", "ess")
    return pd.DataFrame({name: getattr(result, name).numpy() for name in columns})


def _summary(documented: Any) -> str:
    paragraph = " ".join((inspect.getdoc(documented) or "").split("\n\n")[0].split())
    return re.split(r"(?<=\.)\s", paragraph)[0].removesuffix("::")


def _is_base(value: Any) -> bool:
    bases = {Guide, Prior, Likelihood, Network, Data, data_catalogue.Binarisation, data_catalogue.Splits}
    return value in bases or issubclass(value, Distribution)


if __name__ == "__main__":
    sys.exit(main())
