"""The command line: ``pyrovae fit | evaluate | compare | list``, configured from the constructors' own signatures."""

import contextlib
import inspect
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd
import torch
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
from pyrovae.app.comparison import Findings, examine
from pyrovae.app.page import calibration_table, comparison_page, formatted, gap_table, latent_table
from pyrovae.app.parser import closed_list, configuration_text, first_sentence, make_parser, permitted_modules
from pyrovae.common.checks import at_least
from pyrovae.data import Data, Splits, data_root
from pyrovae.diagnostics.evidence.evaluate import Evaluation, evaluate
from pyrovae.guides import Flow, FullRank, Guide, MeanField
from pyrovae.importance.options import BATCH_SIZE
from pyrovae.importance.question import placed_data, question
from pyrovae.likelihoods import Bernoulli, Likelihood, Missing
from pyrovae.models import VAE
from pyrovae.nn import MLP, Network, Observed, Shape
from pyrovae.priors import Prior, StandardNormal, VampPrior
from pyrovae.programs.isolation import random_state
from pyrovae.programs.pair import Pair
from pyrovae.programs.streams import check_seed
from pyrovae.saving import RunFolder
from pyrovae.training import Fit, FitError, FitInterrupted, fit, load
from pyrovae.training.group import Group, launched
from pyrovae.training.storage import holds_fit, remove, settings_of

CONFIG = "config.yaml"
_SPELLINGS = {  # of what a sentence asks for, in Python and as an option
    "or resume=False": "or --overwrite true",
    "resume=True": "--resume true",
}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. +-]*")  # of a strategy, and of its folder
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
    except (TypeError, RuntimeError, MemoryError, OverflowError) as error:  # no option, or no room
        raise ValueError(
            f"a part cannot be made from options alone: {error}: make it in Python, or use another"
        ) from None


def _made(objective: ObjectiveMaker) -> ELBO:
    with _made_by_the_command_line():
        return objective()


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
    checkpoint_seconds: float = 30.0,
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
        checkpoint_seconds: least time between two checkpoints of a fit; one is always written at its end.
        resume: continue what an earlier run in the same folder left.
        progress: show progress bars.
    """
    folder = RunFolder(out)
    fitted = _fit_guide(
        folder, "fit", data, guide,
        objective=_made(objective), prior=prior, likelihood=likelihood, encoder=encoder, decoder=decoder,
        latent_dim=latent_dim, features=features,
        epochs=epochs, patience=patience, batch_size=batch_size, lr=lr, clip_norm=clip_norm, compile=compile,
        precision=precision, seed=seed, device=device, checkpoint_seconds=checkpoint_seconds, resume=resume,
        progress=progress,
    )  # fmt: skip
    if Group().rank == 0:
        folder.write_table("history.csv", fitted.history, index=False)
        print(f"saved in {folder.path}")
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
    """Evaluate a saved fit: log evidence, ELBO and k-hat per datum.

    Args:
        run: folder that `pyrovae fit` wrote, or one fit's folder of `pyrovae compare`.
        data: data set to evaluate on, whole, as new data; null means the test set of the run, whose file must be as it
            was.
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
    target = None if out is None else RunFolder(out)
    if target is not None:
        given = [] if data is None else _inputs(data)
        target.check(["per_datum.csv", "posterior.nc"], [*given, folder / CONFIG])
    shown = _splits(folder, fitted).test if data is None else data
    if data is not None and data.standardise:  # on the scale that the fit has seen
        shown = data.with_moments(_splits(folder, fitted).train.moments)
    options: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "device": device, "progress": progress}
    num_draws = at_least("num_draws", num_draws, 1)
    result = evaluate(fitted.model, fitted.guide, shown, num_particles=num_particles, compile=compile, **options)
    print(json.dumps(result.summary(), indent=1))
    if target is not None:
        with target.locked():
            target.begin()
            target.write_table("per_datum.csv", _per_datum(result), index_label="datum")
            inference = pyrovae.to_arviz(
                fitted.model, fitted.guide, shown, num_draws=num_draws, num_particles=num_particles, **options
            )
            target.write("posterior.nc", _netcdf(inference))
        print(f"wrote per_datum.csv and posterior.nc in {target.path}")


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
    checkpoint_seconds: float = 30.0,
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
        checkpoint_seconds: least time between two checkpoints of a fit; one is always written at its end.
        resume: continue what an earlier run in the same folder left.
        progress: show progress bars.
    """
    if not guides:
        raise ValueError("guides is empty: name at least one")
    if not objectives:
        raise ValueError("objectives is empty: name at least one")
    num_seeds = at_least("num_seeds", num_seeds, 1)
    for name, count in {"gaps_of": gaps_of, "latents_of": latents_of, "simulations": simulations}.items():
        at_least(name, count, 0)
    counts = {"num_particles": num_particles, "num_draws": num_draws, "max_arviz_data": max_arviz_data}
    for name, count in counts.items():
        at_least(name, count, 1)
    if simulations == 1:
        raise ValueError("simulations must be 0 or at least 2, got 1")
    strategies = _strategies(guides, objectives)
    steps = compile if isinstance(compile, dict) else dict.fromkeys(strategies, compile)
    for name in steps:
        if name not in strategies:
            raise ValueError(
                f"compile names {name!r}, but the strategies are {', '.join(strategies)}: name them, or pass auto"
            )
    for guide, objective in strategies.values():  # what cannot be made is said before the first is fitted
        _made(objective)
        autoencoder(
            data.splits(seed=seed).train, guide, prior=prior, likelihood=likelihood, encoder=encoder, decoder=decoder,
            latent_dim=latent_dim, features=features, seed=seed,
        )  # fmt: skip
    folder = RunFolder(out)
    fits: dict[str, list[Fit]] = {}
    for name, (guide, objective) in strategies.items():
        fits[name] = [
            _fit_guide(
                folder, one, data, guide,
                objective=_made(objective), prior=prior, likelihood=likelihood, encoder=encoder, decoder=decoder,
                latent_dim=latent_dim, features=features, epochs=epochs, patience=patience, batch_size=batch_size,
                lr=lr, clip_norm=clip_norm, compile=steps.get(name, "auto"), seed=seed + k, split_seed=seed,
                device=device, checkpoint_seconds=checkpoint_seconds, resume=resume, progress=progress,
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
    described = {**(yaml.safe_load((folder.path / CONFIG).read_text()) or {}), **settled}
    comparison_page(folder, fits, found, test, pictures, configuration=yaml.safe_dump(described, sort_keys=False))
    _print_findings(found, len(test), min(gaps_of, len(test)))
    print(f"wrote {folder.path / 'report.html'}")
    return settled


def _strategies(
    guides: dict[str, GuideMaker], objectives: dict[str, ObjectiveMaker]
) -> dict[str, tuple[GuideMaker, ObjectiveMaker]]:
    """Return every guide with every objective, by name."""
    pairs = itertools.product(guides.items(), objectives.items())
    return {(g if len(objectives) == 1 else f"{g}-{o}"): (guide, objective) for (g, guide), (o, objective) in pairs}


def _write_findings(folder: RunFolder, fits: dict[str, list[Fit]], found: Findings) -> None:
    """Write the tables of a comparison: of all strategies, of every fit's data, and ArviZ's own."""
    num_seeds = len(next(iter(fits.values())))
    if num_seeds == 1:
        found.table["steps"] = pd.Series({name: len(run[0].history) for name, run in fits.items()})
        found.table["stopped"] = pd.Series({name: run[0].stopped for name, run in fits.items()})
    folder.write_table("table.csv", found.table)
    for name, evaluations in found.evaluations.items():
        for one, evaluation in zip(_run_names(name, num_seeds), evaluations, strict=True):
            folder.write_table(f"{one}/per_datum.csv", _per_datum(evaluation), index_label="datum")
    if len(fits) > 1:
        folder.write_table("arviz_compare.csv", pyrovae.elpd_comparison(found.evaluations), index_label="name")


def _write_draws(folder: RunFolder, fits: dict[str, list[Fit]], shown: Data, **options: Any) -> dict[str, Any]:
    """Write a netCDF file of the first seed's fit of every strategy; return rows of pictures for the page."""
    pictures: dict[str, Any] = {}
    for name, run in fits.items():
        inference = pyrovae.to_arviz(run[0].model, run[0].guide, shown, **options)
        folder.write(f"{_run_names(name, len(run))[0]}.nc", _netcdf(inference))
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
    """List the catalogues: every name with what it is; a star marks what Python alone can make or use."""
    for name, catalogue in _CATALOGUES.items():
        print(f"{name}:")
        for member in catalogue.__all__:
            value = getattr(catalogue, member)
            if inspect.isclass(value) and not inspect.isabstract(value) and not _is_base(value):
                mark = " " if _is_for_options(name, value) else "*"
                print(f" {mark}{member:<22} {first_sentence(value)}")
    print("* in Python alone: it takes what no option can give")


_CATALOGUES: dict[str, Any] = {
    "models": model_catalogue,
    "guides": guide_catalogue,
    "priors": prior_catalogue,
    "likelihoods": likelihood_catalogue,
    "objectives": objective_catalogue,
    "nn": nn_catalogue,
    "data": data_catalogue,
}
_GIVEN = {  # what the command line gives to a member of a catalogue that has no default for it
    "guides": {"encoder", "latent_dim"}, "priors": {"latent_dim"},
    "likelihoods": set(), "objectives": set(), "nn": {"in_shape", "out_shape"}, "data": set(),
}  # fmt: skip
_COMMANDS: dict[str, Callable[..., Any]] = {
    "fit": fit_command,
    "evaluate": evaluate_command,
    "compare": compare_command,
    "list": list_command,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    Bad input ends with one sentence on standard error and status 2; a fit that had to stop with status 1; a signal with
    128 and its number, after saving.
    """
    try:
        return _run(sys.argv[1:] if arguments is None else arguments)
    except FitInterrupted as interruption:
        print(f"pyrovae: {interruption}".replace("resume=True", "--resume true"), file=sys.stderr)
        return 128 + interruption.signum
    except KeyboardInterrupt:
        print("pyrovae: interrupted", file=sys.stderr)
        return 130
    except FitError as error:
        print(f"pyrovae: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever reads the output has enough
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError) as error:
        text = " ".join(str(error).split())
        for python, option in _SPELLINGS.items():
            text = text.replace(python, option)
        print(f"pyrovae: error: {text}", file=sys.stderr)
        return 2


def _run(arguments: Sequence[str]) -> int:
    permitted, arguments = permitted_modules(arguments)
    with closed_list(permitted):
        parser, parsers = make_parser(_COMMANDS)
        given = parser.parse_args(arguments)
        command = given.command
        if command == "list":
            list_command()
            sys.stdout.flush()
            return 0
        with _made_by_the_command_line():
            chosen = parsers[command].instantiate(given[command])
        values = {name: v for name, v in vars(chosen).items() if name not in {"config", "overwrite", "allow_module"}}
        with launched() as rank, ExitStack() as stack:
            if rank and command != "fit":
                raise ValueError(f"{command} runs in one process: start it without torchrun")
            runs, folder = command in {"fit", "compare"}, None
            with Group().together():
                if runs and not rank:
                    folder = _prepare(given[command], values)
                    stack.enter_context(folder.locked())
                    described = configuration_text(_absolute(given[command]), parsers[command])
                    noted = {"data": values["data"].fingerprint(), "seed": values["seed"]}
                    if given[command].overwrite and folder.exists:  # what is there stays until this run can begin
                        folder.begin(instead={**noted, "config": described})
                    else:
                        folder.begin(**noted)
                        if not given[command].resume or not (folder.path / CONFIG).exists():
                            folder.write(CONFIG, described)
            settled = _COMMANDS[command](**values)
            if folder is not None:  # a resumed run's new settings, once they are known to be honoured
                for name, value in settled.items():
                    given[command][name] = value
                RunFolder(folder.path).write(CONFIG, configuration_text(_absolute(given[command]), parsers[command]))
        sys.stdout.flush()
    return 0


def _prepare(given: Namespace, values: dict[str, Any]) -> RunFolder:
    """See that a run may write into its folder, and that no name of a strategy leads out of it.

    Raises:
        ValueError: in one sentence, before anything is made or removed.
    """
    if given.resume and given.overwrite:
        raise ValueError("give resume or overwrite, not both")
    folder = RunFolder(given.out)
    begun = any(holds_fit(folder.path / name) for name in folder.fits) or {*folder.files} - {CONFIG}
    if begun and not given.resume and not given.overwrite:
        raise ValueError(f"{given.out!r} already holds a run: pass --resume true, --overwrite true or another --out")
    files, fits = [CONFIG, "history.csv"], ["fit"]
    if "guides" in values:
        strategies = _strategies(values["guides"], values["objectives"])
        at_least("num_seeds", values["num_seeds"], 1)
        fits = [one for name in strategies for one in _run_names(name, values["num_seeds"])]
        files = [CONFIG, "table.csv", "arviz_compare.csv", "report.html", *(f"{one}/per_datum.csv" for one in fits)]
        files += [f"{_run_names(name, values['num_seeds'])[0]}.nc" for name in strategies]
        _check_names([*fits, *strategies], [*files, "figures"])
    check_seed(values["seed"])
    folder.check([*files, *(folder.files if given.overwrite else ())], _inputs(values["data"]))
    for name, known in {"data": values["data"].fingerprint(), "seed": values["seed"]}.items() if begun else ():
        if given.resume and folder.record.get(name) != known:
            what = "other data" if name == "data" else f"seed {folder.record.get(name)}"
            raise ValueError(
                f"the run in {given.out!r} was made with {what}, got {known}: use the same, or --overwrite true, or "
                "another --out"
            )
    for one in fits:
        if (folder.path / one).is_symlink() or (holds_fit(folder.path / one) and one not in folder.fits):
            raise ValueError(
                f"{str(folder.path / one)!r} holds a fit that is not of this run: name another folder for the results"
            )
    return folder


def _check_names(names: Sequence[str], taken: Sequence[str]) -> None:
    reserved, seen = {name.lower() for name in taken}, dict[str, str]()
    for name in dict.fromkeys(names):
        if not _NAME.fullmatch(name) or name.endswith((".", " ")) or name.lower() in reserved:
            raise ValueError(
                f"a strategy cannot be named {name!r}, of which a folder is made: use letters, digits, spaces and "
                "'_-+.', and none of the names of a run's own files"
            )
        if seen.setdefault(name.lower(), name) != name:
            raise ValueError(f"strategies {seen[name.lower()]!r} and {name!r} would share a folder: rename one of them")


def _clear(folder: RunFolder) -> None:
    """Remove what an earlier run has left, now that it is known that this one can begin."""
    instead, fits = folder.record.pop("instead"), folder.fits
    for name in fits:
        remove(folder.path / name)
    folder.clear()
    for name in fits:
        with contextlib.suppress(OSError):  # the user's own files may be there
            (folder.path / name).rmdir()
    described = instead.pop("config")
    folder.note(**instead)
    folder.write(CONFIG, described)


def _inputs(data: Data) -> list[Path]:
    """Return the files that a data set was read from."""
    return [path for path in [getattr(data, "path", None)] if path is not None]


def _absolute(given: Namespace) -> Namespace:
    """Return a run's options with the paths of its data made absolute, so that they hold wherever it is read."""
    given = given.clone()
    for name, default in {"path": None, "root": data_root(None)}.items():
        key = f"data.init_args.{name}"
        if key in given and (given[key] or default) is not None:
            given[key] = str(Path(str(given[key] or default)).resolve())
    return given


def _fit_guide(
    run: RunFolder, name: str, data: Data, guide: GuideMaker, *, split_seed: int | None = None, **options: Any
) -> Fit:
    names = ("latent_dim", "prior", "likelihood", "encoder", "decoder", "features")
    parts = {name: options.pop(name) for name in names}
    splits = data.splits(seed=options["seed"] if split_seed is None else split_seed)
    model, maker = autoencoder(splits.train, guide, seed=options["seed"], **parts)
    per_epoch = -(-len(splits.train) // max(options["batch_size"], 1))
    if options["epochs"] is None:
        options["epochs"] = max(50, -(-MOST_STEPS // per_epoch))
    if options["patience"] is not None:
        options["patience"] = max(at_least("patience", options["patience"], 1), -(-LEAST_STEPS // per_epoch))
    held_out = splits.validation
    if run.record.get("instead") and not Group().rank:
        with question(model, maker, splits.train, seed=options["seed"], device=options["device"]):
            _clear(run)
    folder = run.path / name if Group().rank else run.add_fit(name)
    fitted = fit(model, maker, splits.train, validation_data=held_out, checkpoint=folder, **options)
    if Group().rank == 0:
        print(f"{name}: {fitted.stopped} after {len(fitted.history)} steps, {fitted.seconds:.1f} s")
    return fitted


def _splits(run: Path, fitted: Fit) -> Splits:
    """Return the parts that a run's data were split into.

    Raises:
        ValueError: when nothing says what they were, or they are not as they were.
    """
    for folder in (run, run.parent):
        if (folder / CONFIG).exists():
            written = RunFolder(folder)
            if not written.is_intact(CONFIG):
                raise ValueError(
                    f"{str(folder / CONFIG)!r} is not as the run wrote it, so it is not known which data were trained "
                    "on: bring it back, or name new data by --data"
                )
            described = yaml.safe_load((folder / CONFIG).read_text())
            parser = ArgumentParser()
            parser.add_argument("--data", type=Data)
            config = parser.parse_object({"data": described["data"]})
            data: Data = parser.instantiate(config).data
            if written.record.get("data") != data.fingerprint():
                raise ValueError(
                    f"the data that {str(folder / CONFIG)!r} names are not those of the run, so it is not known which "
                    "of them were trained on: bring the file back as it was, or name new data by --data"
                )
            parts = data.splits(seed=written.record["seed"])
            given = run / "fit" if holds_fit(run / "fit") else run
            placed = placed_data(Pair(fitted.model, fitted.guide), parts.train, torch.device("cpu"))
            if settings_of(given).get("data") != placed.fingerprint():
                raise ValueError(
                    f"{str(given)!r} was not fitted to the data of {str(folder / CONFIG)!r}: name new data by --data"
                )
            return parts
    raise ValueError(f"{str(run)!r} has no {CONFIG} that says what its data were: name a run's folder, and --data")


def _netcdf(inference: Any) -> bytes:
    from pyrovae.arviz.netcdf import netcdf  # which takes a second to import, and list does not need

    return netcdf(inference)


def _per_datum(result: Evaluation) -> pd.DataFrame:
    columns = ("elbo", "elbo_se", "log_evidence", "log_evidence_se", "khat", "reliable", "ess")
    return pd.DataFrame({name: getattr(result, name).numpy() for name in columns})


def _is_for_options(catalogue: str, value: Any) -> bool:
    """Whether the command line can make a member of a catalogue, and has a use for it."""
    if value in {objective_catalogue.SemiSupervisedELBO, data_catalogue.Stream} or (catalogue, value) == (
        "nn",
        Observed,
    ):
        return False  # which wants labels in every batch, a Dataset, and is put there where values are missing
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = [p for p in inspect.signature(value).parameters.values() if p.kind not in variadic]
    needed = {p.name: p.annotation for p in parameters if p.default is p.empty}
    if catalogue == "models":
        return value is VAE
    if not (_GIVEN[catalogue] if catalogue in {"guides", "nn"} else set()) <= {p.name for p in parameters}:
        return False
    plain = {name for name, kind in needed.items() if {int, float, str, bool} & {kind, *get_args(kind)}}
    return needed.keys() - plain <= _GIVEN[catalogue]


def _is_base(value: Any) -> bool:
    bases = {Guide, Prior, Likelihood, Network, Data, data_catalogue.Binarisation, data_catalogue.Splits}
    return value in bases or issubclass(value, Distribution)
