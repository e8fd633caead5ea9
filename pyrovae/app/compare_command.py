"""``pyrovae compare``."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pandas as pd
import yaml

import pyrovae
from pyrovae.app.comparison import Findings, endings_of, examine
from pyrovae.app.evaluate_command import as_netcdf
from pyrovae.app.fit_command import fit_guide, made_model
from pyrovae.app.folders import CONFIG, levels, run_names, strategies
from pyrovae.app.models import VAE, ModelOption, make_pair, per_observation
from pyrovae.app.page import comparison_page, cross_validation_page
from pyrovae.app.parts import GuideMaker, ObjectiveMaker, Parts, SchedulerMaker, made
from pyrovae.app.splits import ONE_SPLIT, Split
from pyrovae.app.tabulation import cross_validation, main_effects
from pyrovae.common.checks import at_least
from pyrovae.data import Data
from pyrovae.diagnostics.diagnostic import diagnostics
from pyrovae.diagnostics.tables import formatted
from pyrovae.guides import Flow, FullRank, MeanField
from pyrovae.likelihoods import Likelihood
from pyrovae.nn import MLP, Network, Shape
from pyrovae.priors import Prior, StandardNormal
from pyrovae.saving import RunFolder
from pyrovae.training import Fit

GUIDES: dict[str, GuideMaker] = {"mean_field": MeanField, "full_rank": FullRank, "iaf": Flow}


def compare_command(
    data: Data,
    out: str,
    model: ModelOption = VAE,
    guides: dict[str, GuideMaker] = GUIDES,
    objectives: dict[str, ObjectiveMaker] | None = None,
    prior: Callable[[int], Prior] = StandardNormal,
    likelihood: Callable[[], Likelihood] | None = None,
    encoder: Callable[[Shape, Shape], Network] = MLP,
    decoder: Callable[[Shape, Shape], Network] = MLP,
    latent_dim: int = 8,
    features: int = 128,
    embedding: int | None = None,
    epochs: int | None = None,
    patience: int | None = 20,
    batch_size: int = 128,
    lr: float = 1e-3,
    clip_norm: float | None = None,
    scheduler: SchedulerMaker | None = None,
    scheduler_every: Literal["epoch", "step"] = "epoch",
    drop_last: bool = False,
    compile: bool | Literal["auto"] | dict[str, bool] = "auto",
    num_particles: int = 1000,
    num_draws: int = 100,
    max_arviz_data: int = 200,
    num_seeds: int = 1,
    reference: str | None = None,
    split: Split = ONE_SPLIT,
    seed: int = 0,
    device: str | None = None,
    checkpoint_seconds: float = 30.0,
    resume: bool = False,
    progress: bool = True,
    sizes: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, Any]:
    """Fit one generative model under several guides and objectives, and compare them on held-out data.

    Writes the comparison table, a saved fit and an ArviZ netCDF file for each, figures, and an HTML page with all of
    them.

    Args:
        data: the data set: the path of a table (CSV, Parquet, Excel), or Table with its options, Array (a .npy file),
            Folder (of pictures), Documents (a text file), Digits, MNIST, FashionMNIST, Sprites, DSprites or CSV.
        out: folder for all results.
        model: the generative model: VAE, ConditionalVAE, SemiSupervisedVAE, GaussianMixtureVAE, HierarchicalVAE,
            BayesianVAE or LinearGaussian.
        guides: families of q(z | x), by name.
        objectives: objectives to maximise, by name: every guide is fitted by each; null takes the model's own, which is
            Trace_ELBO for most.
        prior: distribution of the latents.
        likelihood: distribution of an observation given the decoder's features; null takes what a table's columns call
            for, and Bernoulli for other data.
        encoder: network from an observation to features.
        decoder: network from latents to the likelihood's features.
        latent_dim: number of latents.
        features: number of features that the encoder returns.
        embedding: length of the vectors, which are learned, that the encoder is given for categories of a table's
            column with more of them; null shows all categories one-hot.
        epochs: largest number of passes over the training set; null takes as many as 5,000 steps need, 50 at least.
        patience: stop after this many epochs, and 500 steps at least, without a better validation bound; null never
            stops early.
        batch_size: number of observations in a step.
        lr: learning rate of Adam.
        clip_norm: largest global norm of the gradient of the summed loss.
        scheduler: schedule of the learning rate, such as ReduceLROnPlateau, CosineAnnealingLR or StepLR; null keeps it.
        scheduler_every: when the scheduler steps.
        drop_last: whether the last batch of an epoch is left out where it is smaller than the others.
        compile: true compiles steps and log weights, false does not, auto does where it saves time; or true or false
            for the steps of each strategy, by name, as config.yaml records it after a run.
        num_particles: number of importance samples per observation.
        num_draws: number of draws per observation in the netCDF files.
        max_arviz_data: number of test observations in the netCDF files, the first ones.
        num_seeds: number of fits of each strategy; their initial parameters and noise come from seed, seed + 1, ...;
            all share one split.
        reference: strategy that the others are compared with; null takes the best, which is picked on the test data.
        split: how the data are split; with split.num_folds, every strategy is fitted once per fold, and evidence alone
            is compared.
        seed: seed of the split, the initial parameters and the noise.
        device: cpu, cuda, ...; null means CUDA where there is one.
        checkpoint_seconds: least time between two checkpoints of a fit; one is always written at its end.
        resume: continue an earlier run in the same folder.
        progress: show progress bars.
        sizes: values of the diagnostics' own options, by name.
    """
    maker = made_model(model)
    objectives = {"elbo": maker.objective} if objectives is None else objectives
    makers = strategies(guides, objectives)
    numbers = _checked(guides, objectives, reference, num_seeds, sizes, (num_particles, num_draws, max_arviz_data))
    folds = [maker.split(one) for one in split.per_fold(num_seeds).of(data, seed)]
    steps = _steps(compile, makers)
    parts: dict[str, Any] = {
        "prior": prior, "likelihood": likelihood, "encoder": encoder, "decoder": decoder, "latent_dim": latent_dim,
        "features": features, "embedding": embedding,
    }  # fmt: skip
    for guide, objective in makers.values():  # report what cannot be made before the first fit
        made(objective)
        make_pair(maker, Parts(folds[0].train, guide=guide, **parts), seed)
    folder = RunFolder(out)
    fitting: dict[str, Any] = {
        **parts, "model": maker, "epochs": epochs, "patience": patience, "batch_size": batch_size, "lr": lr,
        "clip_norm": clip_norm, "device": device, "checkpoint_seconds": checkpoint_seconds, "resume": resume,
        "progress": progress, "scheduler": scheduler, "scheduler_every": scheduler_every, "drop_last": drop_last,
    }  # fmt: skip
    fits: dict[str, list[Fit]] = {
        name: [
            fit_guide(
                folder, one, folds[k if split.num_folds else 0], guide, objective=made(objective),
                compile=steps.get(name, "auto"), seed=seed + k, **fitting,
            )
            for k, one in enumerate(run_names(name, num_seeds, split.num_folds))
        ]
        for name, (guide, objective) in makers.items()
    }  # fmt: skip
    options: dict[str, Any] = {"num_particles": num_particles, "seed": seed, "device": device, "progress": progress}
    how: dict[str, Any] = {"compile": "auto" if isinstance(compile, dict) else compile, "reference": reference}
    if split.num_folds:
        how["held_out"] = 0.1 if split.validation is None else split.validation
        return _cross_validated(folder, fits, [fold.test.fixed() for fold in folds], how, options)
    test = folds[0].test.fixed()
    findings = examine(fits, test, sizes=numbers, **how, **options)
    if len(guides) > 1 and len(objectives) > 1:
        crossed = {pair: findings.evaluations[name] for name, pair in levels(guides, objectives).items()}
        findings.effects = main_effects(crossed, ("guide", "objective"))
    return _reported(folder, fits, test, findings, (num_draws, max_arviz_data), options)


def _cross_validated(
    folder: RunFolder, fits: dict[str, list[Fit]], tests: list[Data], how: dict[str, Any], options: dict[str, Any]
) -> dict[str, Any]:  # fmt: skip
    """Evaluate every fit on its own fold, and write the table, the observations of every fit, and the page."""
    keywords = {**options, "compile": how["compile"]}
    evaluations = {
        name: [pyrovae.evaluate(*per_observation(f), t, **keywords) for f, t in zip(run, tests, strict=True)]
        for name, run in fits.items()
    }
    seconds = {name: [f.seconds for f in run] for name, run in fits.items()}
    table = cross_validation(evaluations, seconds, reference=how["reference"], held_out=how["held_out"])
    table["ended"] = pd.Series({name: endings_of(run) for name, run in fits.items()})
    folder.write_table("table.csv", table)
    rows = []
    for name, run in evaluations.items():
        for fold, (one, evaluation) in enumerate(zip(run_names(name, 1, len(tests)), run, strict=True)):
            folder.write_table(f"{one}/per_datum.csv", evaluation.table(), index_label="datum")
            rows.append(evaluation.table().assign(strategy=name, fold=fold))
    folder.write_table("per_datum.csv", pd.concat(rows), index_label="datum")
    settings = {"compile": {name: run[0].compile for name, run in fits.items()}}
    config = {**(yaml.safe_load((folder.path / CONFIG).read_text()) or {}), **settings}
    cross_validation_page(folder, fits, table, configuration=yaml.safe_dump(config, sort_keys=False))
    count = sum(map(len, tests))
    print(f"{len(tests)} folds, {count} data, nats per observation:\n{formatted(table).to_string()}")
    _say_what_helps(table)
    print(f"wrote {folder.path / 'report.html'}")
    return settings


def _checked(
    guides: Mapping[str, Any], objectives: Mapping[str, Any], reference: str | None, num_seeds: int,
    sizes: Mapping[str, int], counts: tuple[int, ...],
) -> dict[str, int]:  # fmt: skip
    """Check the numbers and names of a comparison, and return the number of each diagnostic.

    Raises:
        ValueError: naming what was got and what was expected.
    """
    for what, named in (("guides", guides), ("objectives", objectives)):
        if not named:
            raise ValueError(f"{what} is empty: name at least one")
    if reference is not None and reference not in (names := levels(guides, objectives)):
        raise ValueError(f"reference must be one of {', '.join(names)}, got {reference!r}")
    at_least("num_seeds", num_seeds, 1)
    for name, count in zip(("num_particles", "num_draws", "max_arviz_data"), counts, strict=True):
        at_least(name, count, 1)
    return {name: one.check(sizes.get(one.option, one.default)) for name, one in diagnostics().items()}


def _steps(compile: Any, makers: Mapping[str, Any]) -> dict[str, Any]:
    """Return how the steps of every strategy run.

    Raises:
        ValueError: for a name that no strategy has.
    """
    steps = compile if isinstance(compile, dict) else dict.fromkeys(makers, compile)
    for name in steps:
        if name not in makers:
            raise ValueError(
                f"compile names {name!r}, but the strategies are {', '.join(makers)}: name them, or pass auto"
            )
    return steps


def _reported(
    folder: RunFolder, fits: dict[str, list[Fit]], test: Data, findings: Findings, drawing: tuple[int, int],
    options: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Write the tables, the netCDF files and the page; return the settings that the run chose."""
    _write_findings(folder, fits, findings)
    num_draws, most = drawing
    pictures = _write_draws(folder, fits, test.subset(slice(0, most)), num_draws=num_draws, **options)
    settings = {"compile": {name: run[0].compile for name, run in fits.items()}}
    config = {**(yaml.safe_load((folder.path / CONFIG).read_text()) or {}), **settings}
    comparison_page(folder, fits, findings, test, pictures, configuration=yaml.safe_dump(config, sort_keys=False))
    _print_findings(findings, len(test))
    print(f"wrote {folder.path / 'report.html'}")
    return settings


def _write_findings(folder: RunFolder, fits: dict[str, list[Fit]], findings: Findings) -> None:
    """Write the tables of a comparison: all strategies, every fit's observations, and ArviZ's own table."""
    num_seeds = len(next(iter(fits.values())))
    findings.table["steps"] = pd.Series({n: float(np.mean([len(f.history) for f in run])) for n, run in fits.items()})
    findings.table["ended"] = pd.Series({name: endings_of(run) for name, run in fits.items()})
    folder.write_table("table.csv", findings.table)
    if findings.effects is not None:
        folder.write_table("effects.csv", findings.effects)
    for name, diagnostic in diagnostics().items():
        if name in findings.answers.found and (table := diagnostic.table(findings.answers.by_fit(name))) is not None:
            folder.write_table(f"{name}.csv", table, index_label="fit")
    for name, evaluations in findings.evaluations.items():
        for one, evaluation in zip(run_names(name, num_seeds), evaluations, strict=True):
            folder.write_table(f"{one}/per_datum.csv", evaluation.table(), index_label="datum")
    weights = next(iter(findings.evaluations.values()))[0].weights
    if len(fits) > 1 and weights is None and num_seeds == 1:  # ArviZ's table knows neither weights nor seeds
        folder.write_table("arviz_compare.csv", pyrovae.elpd_comparison(findings.evaluations), index_label="name")


def _write_draws(folder: RunFolder, fits: dict[str, list[Fit]], data: Data, **options: Any) -> dict[str, Any]:
    """Write a netCDF file of the first seed's fit of every strategy; return rows of pictures for the page."""
    pictures: dict[str, Any] = {}
    for name, run in fits.items():
        inference = pyrovae.to_arviz(*per_observation(run[0]), data, **options)
        folder.write(f"{run_names(name, len(run))[0]}.nc", as_netcdf(inference))
        posterior_draws, prior_draws = inference.posterior_predictive["x"], inference.prior_predictive["x"]
        pictures[f"posterior predictive mean, {name}"] = posterior_draws.mean(("chain", "draw")).to_numpy()
        pictures[f"draws from the prior predictive, {name}"] = prior_draws[0, 0].to_numpy()
    return pictures


def _say_what_helps(table: pd.DataFrame) -> None:
    if not bool(table["reliable"].all()):
        print(
            "NO under reliable: the importance weights of more than one row in ten fail, and log_evidence is too low; "
            "take more particles (--num_particles 10000) or a richer guide, or anneal in Python (pyrovae.evidence)"
        )


def _print_findings(findings: Findings, num_data: int) -> None:
    print(f"{num_data} test data, nats per observation:\n{formatted(findings.own_table).to_string()}")
    _say_what_helps(findings.table)
    if findings.effects is not None:
        print(f"main effects on log evidence, nats per observation:\n{formatted(findings.effects).to_string()}")
    for name, diagnostic in diagnostics().items():
        if name in findings.answers.found and (table := diagnostic.table(findings.answers.by_fit(name))) is not None:
            print(f"{diagnostic.title}:\n{formatted(table).to_string()}")
    for note in findings.answers.notes:
        print(note)
