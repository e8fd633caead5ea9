"""Strategies compared on the same data: paired differences, best first, over as many seeds as there are fits."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyrovae.data import Data, as_data
from pyrovae.diagnostics.calibration.ranks import Ranks
from pyrovae.diagnostics.calibration.sbc import Calibration, sbc
from pyrovae.diagnostics.evidence.evaluate import Evaluation, evaluate
from pyrovae.diagnostics.evidence.gaps import Gaps, gaps
from pyrovae.diagnostics.latents.aggregate import Aggregate, aggregate
from pyrovae.diagnostics.latents.codes import codes
from pyrovae.diagnostics.latents.labels import label_scores
from pyrovae.diagnostics.latents.usage import Usage, usage
from pyrovae.diagnostics.predictive.pit import pit
from pyrovae.diagnostics.predictive.sample_quality import sample_quality
from pyrovae.importance.options import BATCH_SIZE
from pyrovae.importance.psis import trusted_on_average
from pyrovae.programs.types import Program
from pyrovae.training import Fit

Candidate = Fit | tuple[Program, Program]
Candidates = Mapping[str, Candidate | Sequence[Candidate]]
LATENTS_OF = 1000  # data at most, since the aggregate posterior takes the square of their number


def compare(
    candidates: Candidates,
    data: Any,
    *,
    num_particles: int = 1000,
    with_gaps: bool = False,
    with_latents: bool = False,
    with_calibration: bool = False,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    compile: bool | str = "auto",
    device: torch.device | str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Compare strategies, each one fit or one fit a seed, on held-out data.

    Args:
        candidates: fits, or (model, guide) pairs, by name; or lists of them, one a seed: as many for every name, those
            of one seed at one place. Seeds whose fits differ in nothing but chance (initial parameters, noise, order)
            make the errors those of the strategy rather than of one fit.
        data: a tensor, a tuple of tensors, or a data set; the same for all.
        num_particles: importance samples a datum.
        with_gaps: also split each one's gap, as :func:`pyrovae.gaps` does: below log p(x) by annealing, which does not
            trust the guide, so that the two may add up to more than log_evidence - elbo; and say of what share of the
            data that log p(x) is not to be trusted.
        with_latents: also say what the latents hold, as :func:`pyrovae.usage` and, of 1,000 data taken at random,
            :func:`pyrovae.aggregate` do.
        with_calibration: also check calibration on 1,000 data that each model simulates, as :func:`pyrovae.sbc` does.
        batch_size: data held by a call of the programs.
        seed: of the particles, the same for all.
        compile: whether log weights are compiled, as :func:`pyrovae.evaluate` has it.
        device: None means CUDA where there is one.
        progress: whether to show a progress bar.

    Returns:
        A row a strategy, best log evidence first, as :func:`comparison` describes. What cannot be asked of a pair is
        NaN, with a warning that says why.

    Raises:
        ValueError: for no candidates, and for what :func:`pyrovae.evaluate` refuses.
    """
    if not isinstance(candidates, Mapping):
        raise ValueError(f"candidates must be a dict of fits or pairs by name, got a {type(candidates).__name__}")
    runs = {name: _runs(candidate) for name, candidate in candidates.items()}
    pairs = {name: [programs(one) for one in run] for name, run in runs.items()}
    _same_number({name: len(run) for name, run in runs.items()})
    data = as_data(data).fixed()
    options: dict[str, Any] = {"seed": seed, "device": device, "progress": progress}
    held: dict[str, Any] = {**options, "batch_size": batch_size}
    evaluations = {
        name: [evaluate(*pair, data, num_particles=num_particles, compile=compile, **held) for pair in run]
        for name, run in pairs.items()
    }
    questions: list[tuple[bool, Callable[..., Any], Callable[..., dict[str, float]]]] = [
        (with_gaps, lambda model, guide: gaps(model, guide, data, **options), gap_columns),
        (with_latents, lambda model, guide: latents(model, guide, data, **held), latent_columns),
        (with_calibration, lambda model, guide: sbc(model, guide, data, **held), calibration_columns),
    ]
    more: dict[str, dict[str, float]] = {name: {} for name in pairs}
    for wanted, question, columns in questions:
        for name, run in pairs.items() if wanted else ():
            try:
                more[name].update(columns([question(*pair) for pair in run]))
            except ValueError as error:
                warnings.warn(f"{name}: {error}", stacklevel=2)
    seconds = {n: [c.seconds if isinstance(c, Fit) else math.nan for c in run] for n, run in runs.items()}
    return comparison(evaluations, seconds, more)


def _runs(candidate: Any) -> list[Candidate]:
    """Return a strategy's candidates, one a seed."""
    pair = isinstance(candidate, tuple) and len(candidate) == 2 and all(callable(part) for part in candidate)
    return list(candidate) if isinstance(candidate, list | tuple) and not pair else [candidate]


def programs(candidate: Any) -> tuple[Program, Program]:
    """Return a candidate's model and guide.

    Raises:
        ValueError: when it is neither a fit nor a pair.
    """
    if isinstance(candidate, Fit):
        return candidate.model, candidate.guide
    if isinstance(candidate, tuple) and len(candidate) == 2:
        return candidate[0], candidate[1]
    raise ValueError(
        f"a candidate is a Fit or a tuple (model, guide), or a list of them, one a seed; got {type(candidate).__name__}"
    )


def _same_number(sizes: Mapping[str, int]) -> None:
    if not sizes:
        raise ValueError("there is nothing to compare: give at least one candidate")
    if len(set(sizes.values())) > 1 or 0 in sizes.values():
        raise ValueError(f"every strategy needs as many seeds as the others, at least one: got {dict(sizes)}")


def comparison(
    evaluations: Mapping[str, Evaluation | Sequence[Evaluation]],
    seconds: Mapping[str, float | Sequence[float]] | None = None,
    more: Mapping[str, Mapping[str, float]] | None = None,
) -> pd.DataFrame:
    """Tabulate evaluations of the same data, best log evidence first.

    Columns, in nats per datum and means over data and seeds where not said otherwise:

    - ``log_evidence`` with its standard error; ``difference`` to the best with the standard error of the PAIRED
      differences; ``elbo`` with its standard error. With several seeds the errors are those for new data and new seeds
      at once, as :func:`crossed_error` has them; with one, for new data under these very fits;
    - ``reliable``: whether log evidence, and so the row's place, is to be trusted, which it is where at most a tenth of
      the importance weights are not (:func:`~pyrovae.importance.psis.trusted_on_average`). A row that is not is the
      lower the worse its guide, whatever its model: anneal (:func:`pyrovae.evidence`), or fit the guide as a proposal;
    - ``khat_over_limit``, the share of data whose importance weights are not to be trusted; ``ess``, the mean effective
      sample size;
    - where there are several, ``seeds``, their number, ``seed_sd``, the standard deviation between them of the mean log
      evidence, and ``difference_df``, the degrees of freedom of the difference's error (:func:`crossed_df`);
    - what ``more`` holds;
    - ``seconds`` of a fit, NaN when not known.

    The best is picked by these very data: of many strategies that are equal, the worst often lies two standard errors
    below the best. What is to be confirmed is to be compared by itself, with a strategy chosen before.

    Args:
        evaluations: by name, one or one a seed, as many for every name.
        seconds: of fitting, likewise.
        more: further columns by name.

    Raises:
        ValueError: for no evaluations, evaluations of different numbers of data, or different numbers of seeds.
    """
    runs = {name: [e] if isinstance(e, Evaluation) else list(e) for name, e in evaluations.items()}
    _same_number({name: len(run) for name, run in runs.items()})
    sizes = {name: len(e) for name, run in runs.items() for e in run}
    if len({len(e) for run in runs.values() for e in run}) > 1:
        raise ValueError(f"candidates must be judged on the same data, got numbers of data {sizes}")
    stacks = {name: torch.stack([e.log_evidence for e in run]) for name, run in runs.items()}  # [seeds, data]
    best = max(stacks.values(), key=lambda values: float(values.mean()))
    count = len(best)
    rows = {}
    for name, run in runs.items():
        values, bounds = stacks[name], torch.stack([e.elbo for e in run])
        difference = values - best
        reliable, ess = (torch.stack([getattr(e, field) for e in run]) for field in ("reliable", "ess"))
        spent = (seconds or {}).get(name, math.nan)
        rows[name] = {
            "log_evidence": float(values.mean()),
            "log_evidence_se": crossed_error(values),
            "reliable": trusted_on_average(reliable),
            "difference": float(difference.mean()),
            "difference_se": crossed_error(difference),
            "elbo": float(bounds.mean()),
            "elbo_se": crossed_error(bounds),
            "khat_over_limit": float((~reliable).double().mean()),
            "ess": float(ess.mean()),
            **(_seed_columns(values, difference) if count > 1 else {}),
            **(more or {}).get(name, {}),
            "seconds": float(np.mean(spent)),
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table["seconds"] = table.pop("seconds")
    return table.sort_values("log_evidence", ascending=False, kind="stable").rename_axis("name")


def _seed_columns(values: Tensor, difference: Tensor) -> dict[str, float]:
    return {
        "seeds": len(values),
        "seed_sd": float(values.mean(1).std()),
        "difference_df": crossed_df(difference),
    }


def crossed_error(values: Tensor) -> float:
    """Return the standard error of the mean of ``[seeds, data]`` for new seeds and new data.

    Every seed meets every datum, so that the entries of a row share their seed and those of a column their datum: the
    variance of the mean is a sum of a part by data, a part by seeds and what is left,

        s_data^2 / N + s_seed^2 / K - s_rest^2 / (N K),

    with s_data the standard deviation of the data's means, s_seed of the seeds' means, each of which holds a share of
    s_rest, that of the residuals. With one seed it is s_data / sqrt(N), the error for new data given that seed.

    Source: of the variance components, Searle, Casella and McCulloch, "Variance components", 1992; of the design, Owen,
    "The pigeonhole bootstrap", 2007.

    Args:
        values: ``[K, N]``.
    """
    by_data, by_seed, rest = _parts(values)
    return math.sqrt(max(by_data + by_seed - rest, rest))


def crossed_df(values: Tensor) -> float:
    """Return the degrees of freedom of :func:`crossed_error`, by Satterthwaite: about those of the largest part.

    Two standard errors either way are an interval of 95% for many. For few, as of few seeds, take Student's t with
    these: intervals then hold 95% of the time of five seeds, a little less of three, about 90% of two.
    """
    seeds, size = values.shape
    by_data, by_seed, rest = _parts(values)
    if size < 2 or by_data + by_seed <= 0:
        return math.nan
    spread = by_data**2 / (size - 1)
    if seeds > 1:
        spread += by_seed**2 / (seeds - 1) + rest**2 / ((seeds - 1) * (size - 1))
    return max(by_data + by_seed - rest, rest) ** 2 / spread


def _parts(values: Tensor) -> tuple[float, float, float]:
    """Return the parts of the variance of the mean of ``[K, N]``: of data's means, of seeds' means, of residuals."""
    seeds, size = values.shape
    if size < 2:
        return math.nan, math.nan, math.nan
    by_data = float(values.mean(0).var() / size)
    if seeds == 1:
        return by_data, 0.0, 0.0
    rest = values - values.mean(0) - values.mean(1, keepdim=True) + values.mean()
    left = float(rest.square().sum() / ((seeds - 1) * (size - 1)) / (seeds * size))
    return by_data, float(values.mean(1).var() / seeds), left


@dataclass(frozen=True)
class Latents:
    """What a pair's latents hold: which are used, and what their rate is made of."""

    usage: Usage
    aggregate: Aggregate


def latents(model: Program, guide: Program, data: Data, *, seed: int, **options: Any) -> Latents:
    """Ask what a comparison shows of a pair's latents: usage of all data, the aggregate posterior of 1,000."""
    some = data.numbered(assumed=True).sampled(LATENTS_OF, seed)
    return Latents(
        usage=usage(model, guide, data, seed=seed, **options),
        aggregate=aggregate(model, guide, some, seed=seed, **options),
    )


def gap_columns(found: Sequence[Gaps]) -> dict[str, float]:
    """Return the columns of gaps, one a seed, in nats per datum: means, and their standard errors.

    The approximation gap is of the data whose evidence no bound refutes, ``gaps_refuted`` the share of the others;
    ``gaps_unreliable`` the share of data whose evidence is not to be trusted, and ``gaps_reliable`` whether that is few
    enough (:func:`~pyrovae.importance.psis.trusted_on_average`).
    """
    columns: dict[str, Any] = {}
    refuted = torch.stack([one.refuted for one in found])
    for kind in ("approximation", "amortization"):
        values = torch.stack([getattr(one, kind) for one in found])
        values = values[:, ~refuted.any(0)] if kind == "approximation" else values
        columns[kind], columns[f"{kind}_se"] = float(values.mean()), crossed_error(values)
    reliable = torch.stack([one.reliable for one in found])
    columns["gaps_reliable"] = trusted_on_average(reliable)
    columns["gaps_unreliable"] = float((~reliable).double().mean())
    columns["gaps_refuted"] = float(refuted.double().mean())
    return columns


def latent_columns(found: Sequence[Latents]) -> dict[str, float]:
    """Return the columns of latents, one a seed: means in nats per datum, and the mean number of latents in use."""
    names = ("rate", "mutual_information", "marginal_kl")
    summaries = [one.aggregate.summary() for one in found]
    used = [float(one.usage.layers["used"].sum()) for one in found]
    return {
        **{name: float(np.mean([s[name] for s in summaries])) for name in names},
        "latents_used": float(np.mean(used)),
    }


def calibration_columns(found: Sequence[Any]) -> dict[str, float]:
    """Return the columns of calibration, one a seed.

    ``sbc_pvalue`` is the smallest over all quantities and seeds, corrected for their number; ``coverage_90`` the share
    of simulations inside a credible region of 90%.
    """
    summaries = [one.summary() for one in found]
    smallest = min(summary["pvalue"] for summary in summaries)
    return {
        "sbc_pvalue": min(1.0, len(found) * smallest),
        "coverage_90": float(np.mean([summary["coverage_90"] for summary in summaries])),
    }


@dataclass
class Findings:
    """All that is found of strategies on the same held-out data.

    Attributes:
        evaluations: one a seed, by name.
        table: of :func:`comparison`.
        seconds: of every fit, one a seed, by name.
        gaps: where the bound of the first seed's fit loses, by name; so are the following.
        latents: what the latents hold.
        calibration: on data that the fitted model simulates.
        marginals: ranks of held-out data in the model's marginals.
        quality: of the model's draws.
        codes: of held-out data.
        classes: of the data whose codes these are, where they have labels.
        labels: scores of codes against labels.
        notes: what could not be asked, and why, a sentence each.
    """

    evaluations: dict[str, list[Evaluation]]
    table: pd.DataFrame
    seconds: dict[str, list[float]]
    gaps: dict[str, Gaps] = field(default_factory=dict)
    latents: dict[str, Latents] = field(default_factory=dict)
    calibration: dict[str, Calibration] = field(default_factory=dict)
    marginals: dict[str, Ranks] = field(default_factory=dict)
    quality: dict[str, pd.DataFrame] = field(default_factory=dict)
    codes: dict[str, Tensor] = field(default_factory=dict)
    classes: pd.Categorical | None = None
    labels: dict[str, pd.DataFrame] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def examine(
    fits: Mapping[str, Sequence[Fit]],
    test: Data,
    *,
    num_particles: int,
    gaps_of: int,
    latents_of: int,
    simulations: int,
    compile: bool | str = "auto",
    **options: Any,
) -> Findings:
    """Judge every fit, and ask of the first of each strategy whatever can be asked of it.

    Args:
        fits: one a seed, by name.
        test: held-out data.
        num_particles: importance samples a datum.
        gaps_of: number of data, taken at random, whose gaps are split; 0 leaves that out.
        latents_of: number of data, taken at random, on which latents and draws are evaluated; 0 leaves that out.
        simulations: number of simulated data for calibration; 0 leaves that out.
        compile: whether log weights are compiled, as :func:`pyrovae.evaluate` has it.
        options: ``seed``, ``device`` and ``progress``.
    """
    judge: dict[str, Any] = {"num_particles": num_particles, "compile": compile, **options}
    evaluations = {name: [evaluate(f.model, f.guide, test, **judge) for f in run] for name, run in fits.items()}
    seconds = {name: [f.seconds for f in run] for name, run in fits.items()}
    found = Findings(evaluations, comparison(evaluations, seconds), seconds)
    seed = options["seed"]
    some = test.numbered(assumed=True).sampled(latents_of, seed) if latents_of else test
    found.classes = some.classes

    def ask(kept: dict[str, Any], what: str, question: Callable[[str, Program, Program], Any]) -> None:
        for name, run in fits.items():
            try:
                kept[name] = question(name, run[0].model, run[0].guide)
            except ValueError as error:
                found.notes.append(f"{what} of {name}: {error}.")

    if gaps_of:
        ask(
            found.gaps,
            "Gaps",
            lambda _, p, q: gaps(p, q, test.numbered(assumed=True).sampled(gaps_of, seed), **options),
        )
    if latents_of:
        ask(found.latents, "Latents", lambda _, p, q: latents(p, q, some, **options))
        ask(found.codes, "Codes", lambda _, p, q: codes(p, q, some, **options))
        ask(found.marginals, "Marginals", lambda _, p, q: pit(p, some, **options))
        ask(found.quality, "Draws", lambda _, p, q: sample_quality(p, some, **options))
        if some.labels is not None:
            labels = some.labels.cpu()
            at = labels >= 0
            ask(found.labels, "Labels", lambda n, p, q: label_scores(found.codes[n][at], labels[at], seed=seed))
    if simulations:
        ask(found.calibration, "Calibration", lambda _, p, q: sbc(p, q, test, num_simulations=simulations, **options))
    return found
