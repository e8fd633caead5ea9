"""Tables of strategies: on the same held-out data, over the folds of a cross-validation, and by the factors of both."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from pyrovae.common.weights import weighted
from pyrovae.diagnostics.crossed import crossed_df, crossed_error, fold_error
from pyrovae.diagnostics.evidence.evaluate import Evaluation
from pyrovae.diagnostics.evidence.stacking import stacking
from pyrovae.importance.psis import trusted_on_average

FEW, SIMILAR = 100, 4.0  # observations; nats of a difference of totals, below which normal errors are rough


def comparison(
    evaluations: Mapping[str, Evaluation | Sequence[Evaluation]],
    seconds: Mapping[str, float | Sequence[float]] | None = None,
    more: Mapping[str, Mapping[str, float]] | None = None,
    *,
    reference: str | None = None,
) -> pd.DataFrame:
    """Tabulate evaluations of the same data, best log evidence first.

    The columns are in nats per observation, and means over data and seeds, weighted where the data have survey weights,
    unless stated otherwise:

    - ``log_evidence`` with its standard error; ``difference`` to the best, or to ``reference``, with the standard error
      of the PAIRED differences; ``p_worse``, the probability that the strategy is worse than that one, by the normal
      distribution (Student's t with several seeds), and ``diagnosis``, why it is rough: "few data" (below 100), or
      "difference under 4 elpd" (nats in all); ``elbo`` with its standard error. With several seeds the errors are
      those for new data and new seeds at once (:func:`crossed_error`); with one seed, those for new data under the same
      fits;
    - ``reliable``: whether log evidence, and so the row's place, is reliable. It is where the importance weights of at
      most a tenth of the data are unreliable (:func:`~pyrovae.importance.psis.trusted_on_average`). The worse the guide
      of an unreliable row, the lower its log evidence, whatever its model: anneal (:func:`pyrovae.evidence`), or fit
      the guide as a proposal;
    - ``khat_over_limit``, the share of data whose importance weights are unreliable; ``ess``, the mean effective sample
      size;
    - ``weight``, the strategy's weight in the mixture that predicts these data best, and ``weight_se``
      (:func:`~pyrovae.diagnostics.evidence.stacking.stacking`);
    - with several seeds, ``seeds``, their number; ``seed_sd``, the standard deviation between seeds of the mean log
      evidence; and ``difference_df``, the degrees of freedom of the difference's error (:func:`crossed_df`);
    - the columns of ``more``;
    - ``seconds`` of a fit, NaN when not known.

    The best strategy is picked on these same data: of many strategies that are equal, the worst often lies two standard
    errors below the best. To confirm a result, compare with one strategy that was chosen beforehand: ``reference``.

    Args:
        evaluations: evaluations by name, one or one per seed; the same number for every name.
        seconds: seconds of fitting, likewise.
        more: further columns, by name.
        reference: name of the strategy that differences are taken to; None takes the best.

    Raises:
        ValueError: for no evaluations, an unknown reference, evaluations of different numbers of data, or different
            numbers of seeds.
    """
    runs = {name: [e] if isinstance(e, Evaluation) else list(e) for name, e in evaluations.items()}
    same_number({name: len(run) for name, run in runs.items()})
    sizes = {name: len(e) for name, run in runs.items() for e in run}
    if len({len(e) for run in runs.values() for e in run}) > 1:
        raise ValueError(f"candidates must be evaluated on the same data, got numbers of data {sizes}")
    weights = _common_weights(runs)
    stacks = {name: torch.stack([e.weighted("log_evidence") for e in run]) for name, run in runs.items()}
    against = _reference(stacks, reference)
    best = stacks[against]
    count = len(best)
    shares = _shares(runs, weights)
    rows = {}
    for name, run in runs.items():
        values, bounds = stacks[name], torch.stack([e.weighted("elbo") for e in run])  # [seeds, data]
        difference = values - best
        reliable = torch.stack([e.reliable for e in run])
        fit_seconds = (seconds or {}).get(name, math.nan)
        further = (more or {}).get(name, {})
        rows[name] = {
            "log_evidence": float(values.mean()),
            "log_evidence_se": crossed_error(values),
            "reliable": trusted_on_average(reliable, weights),
            **_difference(name == against, difference, crossed_error(difference), _degrees(difference)),
            "elbo": float(bounds.mean()),
            "elbo_se": crossed_error(bounds),
            "khat_over_limit": float(weighted((~reliable).double(), weights).mean()),
            "ess": float(torch.stack([e.weighted("ess") for e in run]).mean()),
            **shares[name],
            **(_seed_columns(values, difference) if count > 1 else {}),
            "seconds": float(np.mean(fit_seconds)),
        }
        if taken := rows[name].keys() & further.keys():
            raise ValueError(f"a comparison has a column {min(taken)!r} already: give the further one another name")
        rows[name].update(further)
    table = pd.DataFrame.from_dict(rows, orient="index")
    table["seconds"] = table.pop("seconds")
    table = table.sort_values("log_evidence", ascending=False, kind="stable").rename_axis("name")
    table.attrs["reference"] = reference
    return table


def cross_validation(
    evaluations: Mapping[str, Sequence[Evaluation]],
    seconds: Mapping[str, Sequence[float]] | None = None,
    *,
    reference: str | None = None,
    held_out: float = 0.1,
) -> pd.DataFrame:
    """Tabulate evaluations of the folds of a cross-validation, best log evidence first.

    Every observation is evaluated once, by the fit that did not see it. The columns are those of :func:`comparison`,
    but the errors are those of :func:`~pyrovae.diagnostics.crossed.fold_error`: the folds share training data, which
    makes their fits alike, so that the usual errors would be too small. Where the evaluations of a fold are few, or the
    folds are few, these errors are rough; repeat with another seed of the folds.

    - ``folds``: their number; ``fold_sd``: standard deviation between folds of the mean log evidence;
    - ``difference_df``: degrees of freedom of the difference's error, one less than the folds.

    Args:
        evaluations: evaluations by name, one per fold, in the same order.
        seconds: seconds of fitting by name, one per fold.
        reference: name of the strategy that differences are taken to; None takes the best.
        held_out: share of the rest of each fold that was for validation, as :meth:`pyrovae.data.Data.folds` takes it.

    Raises:
        ValueError: for fewer than two folds, an unknown reference, and folds that differ between strategies.
    """
    same_number({name: len(run) for name, run in evaluations.items()})
    lengths = {name: [len(e) for e in run] for name, run in evaluations.items()}
    first = next(iter(lengths.values()))
    if len(first) < 2 or any(sizes != first for sizes in lengths.values()):
        raise ValueError(f"every strategy needs the same two or more folds, got folds of {lengths}")
    weights = _common_weights({name: [_joined(run)] for name, run in evaluations.items()})
    whole = {name: _joined(run) for name, run in evaluations.items()}
    joined = {name: one.weighted("log_evidence") for name, one in whole.items()}
    best, rows = _reference(joined, reference), {}
    shares = _shares({name: [one] for name, one in whole.items()}, weights)
    for name, run in evaluations.items():
        folds = torch.stack([e.weighted("log_evidence").mean() for e in run])
        bounds = torch.stack([e.weighted("elbo").mean() for e in run])
        apart = folds - torch.stack([e.weighted("log_evidence").mean() for e in evaluations[best]])
        reliable = whole[name].reliable
        rows[name] = {
            "log_evidence": float(joined[name].mean()),
            "log_evidence_se": fold_error(folds, held_out),
            "reliable": trusted_on_average(reliable, weights),
            **_difference(name == best, joined[name] - joined[best], fold_error(apart, held_out), len(run) - 1),
            "elbo": float(whole[name].weighted("elbo").mean()),
            "elbo_se": fold_error(bounds, held_out),
            "khat_over_limit": float(weighted((~reliable).double(), weights).mean()),
            "ess": float(whole[name].weighted("ess").mean()),
            **shares[name],
            "folds": len(run),
            "fold_sd": float(folds.std()),
            "difference_df": float(len(run) - 1),
            "seconds": float(np.mean((seconds or {}).get(name, math.nan))),
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.sort_values("log_evidence", ascending=False, kind="stable").rename_axis("name")


def main_effects(evaluations: Mapping[Any, Evaluation | Sequence[Evaluation]], factors: Sequence[str]) -> pd.DataFrame:
    """Return the main effects of a factorial comparison: each level's mean log evidence minus the mean of all.

    An effect is averaged over the levels of the other factors, and paired over observations and seeds: it says what a
    guide gives on average over the objectives, say. Where levels act differently together (an interaction), the cells
    of :func:`comparison` say more.

    Args:
        evaluations: evaluations of the same data, by the levels of all factors: ``{("flow", "elbo"): ...}``; every
            combination once.
        factors: names of the factors, in the order of the levels.

    Returns:
        One row per factor and level: ``effect`` in nats per observation, and its standard error ``se``
        (:func:`~pyrovae.diagnostics.crossed.crossed_error`).

    Raises:
        ValueError: for combinations that are missing, and for evaluations of different numbers of data or seeds.
    """
    runs = {tuple(key): [e] if isinstance(e, Evaluation) else list(e) for key, e in evaluations.items()}
    if not runs or any(len(key) != len(factors) for key in runs):
        raise ValueError(f"every key must have one level of each factor, {', '.join(factors)}, got {list(runs)}")
    same_number({"-".join(map(str, key)): len(run) for key, run in runs.items()})
    levels = [list(dict.fromkeys(key[k] for key in runs)) for k in range(len(factors))]
    lacking = next((key for key in itertools.product(*levels) if key not in runs), None)
    if lacking is not None:
        raise ValueError(
            f"the combination {'-'.join(map(str, lacking))} is missing: main effects need every combination"
        )
    _common_weights({"-".join(map(str, key)): run for key, run in runs.items()})
    values = {key: torch.stack([e.weighted("log_evidence") for e in run]) for key, run in runs.items()}
    if len({tuple(v.shape) for v in values.values()}) > 1:
        raise ValueError("main effects need evaluations of the same data")
    overall = torch.stack(list(values.values())).mean(0)
    rows = {}
    for place, factor in enumerate(factors):
        for level in levels[place]:
            effect = torch.stack([v for key, v in values.items() if key[place] == level]).mean(0) - overall
            rows[factor, level] = {"effect": float(effect.mean()), "se": crossed_error(effect)}
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.set_axis(pd.MultiIndex.from_tuples(list(rows), names=["factor", "level"]))


def _shares(runs: Mapping[str, Sequence[Evaluation]], weights: Tensor | None) -> dict[str, dict[str, float]]:
    """Return the stacking weights of strategies and their errors, by name."""
    densities = {name: torch.stack([e.log_evidence for e in run]) for name, run in runs.items()}
    table: Any = stacking(densities, weights).to_dict("index")
    return dict(table)


def _degrees(difference: Tensor) -> float:
    return crossed_df(difference) if len(difference) > 1 else math.inf


def _difference(itself: bool, difference: Tensor, error: float, df: float) -> dict[str, Any]:
    """Return a mean difference, its error, the probability that it is below 0, and why that is rough."""
    mean, num_data = float(difference.mean()), difference.shape[-1]
    worse = math.nan if itself or math.isnan(error) or mean == 0 else float(mean < 0)
    if error > 0 and not itself:
        worse = float(stats.t.sf(mean / error, df if df > 0 else math.inf))
    rough = "few data" if num_data < FEW else "difference under 4 elpd" if abs(mean) * num_data < SIMILAR else ""
    return {
        "difference": mean,
        "difference_se": error,
        "p_worse": worse,
        "diagnosis": "" if itself else rough,
    }


def _common_weights(runs: Mapping[str, Sequence[Evaluation]]) -> Tensor | None:
    """Return the survey weights that all evaluations share; None where none has weights.

    Raises:
        ValueError: for evaluations with different weights.
    """
    found = [e.weights for run in runs.values() for e in run]
    first = found[0]
    alike = all(w is None if first is None else w is not None and torch.equal(w, first) for w in found)
    if not alike:
        raise ValueError("candidates must be evaluated on the same data, and their survey weights differ")
    return first


def _joined(run: Sequence[Evaluation]) -> Evaluation:
    """Return the evaluations of several folds as one."""
    names = ("elbo", "elbo_se", "log_evidence", "log_evidence_se", "khat", "ess")
    fields: dict[str, Any] = {name: torch.cat([getattr(e, name) for e in run]) for name in names}
    known = [e.weights for e in run if e.weights is not None]
    if known and len(known) < len(run):
        raise ValueError("some folds have survey weights and others have none: give all weights, or none")
    weights = torch.cat(known) if known else None
    return Evaluation(num_particles=run[0].num_particles, weights=weights, **fields)


def _reference(values: Mapping[str, Tensor], reference: str | None) -> str:
    """Return the name of the strategy that the others are compared with: as named, or the best."""
    if reference is not None and reference not in values:
        raise ValueError(f"reference must be one of {', '.join(values)}, got {reference!r}")
    return max(values, key=lambda name: float(values[name].mean())) if reference is None else reference


def same_number(sizes: Mapping[str, int]) -> None:
    """Check that every strategy has as many fits as the others, at least one.

    Raises:
        ValueError: if not.
    """
    if not sizes:
        raise ValueError("there is nothing to compare: give at least one candidate")
    if len(set(sizes.values())) > 1 or 0 in sizes.values():
        raise ValueError(f"every strategy needs as many seeds as the others, at least one: got {dict(sizes)}")


def _seed_columns(values: Tensor, difference: Tensor) -> dict[str, float]:
    return {
        "seeds": len(values),
        "seed_sd": float(values.mean(1).std()),
        "difference_df": crossed_df(difference),
    }
