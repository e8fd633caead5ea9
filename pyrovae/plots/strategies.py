"""Figures of fits and their comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy import stats

from pyrovae.importance.psis import trusted_on_average
from pyrovae.plots.axes import by_name, figure_and_axes

if TYPE_CHECKING:
    from pyrovae.diagnostics.evidence.evaluate import Evaluation
    from pyrovae.diagnostics.evidence.gaps import Gaps

UNRELIABLE = " (not to be trusted)"


def training(histories: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw the bound of every fit against its step: the mean over an epoch, and the validation data's.

    Args:
        histories: ``Fit.history`` by name.
    """
    figure, axes = figure_and_axes(1, height=3.6)
    axis = axes[0]
    for number, (name, history) in enumerate(histories.items()):
        colour = f"C{number}"
        epochs = history.groupby("epoch")[["step", "bound"]].agg({"step": "max", "bound": "mean"})
        axis.plot(epochs["step"] + 1, epochs["bound"], color=colour, alpha=0.5, linewidth=1, label=f"{name}, training")
        validated = history.dropna(subset=["validation_bound"])
        if len(validated):
            axis.plot(validated["step"] + 1, validated["validation_bound"], color=colour, label=f"{name}, validation")
    late = pd.concat(
        [h[name].iloc[len(h) // 10 :] for h in histories.values() for name in ("bound", "validation_bound")]
    )
    low, high = np.nanpercentile(late, [2, 100])
    axis.set_ylim(low - 0.05 * (high - low), None)
    axis.set_xlabel("step")
    axis.set_ylabel("bound (nats per observation)")
    axis.legend(fontsize="small")
    return figure


def comparison(table: pd.DataFrame) -> Figure:
    """Draw a comparison table: log evidence and ELBO of every candidate, and the paired difference to the best.

    Bars are two standard errors either way on the left, intervals of 95% of the paired differences on the right. What
    rests on log evidence that is not to be trusted is hollow.

    Args:
        table: as :func:`pyrovae.compare` returns it.
    """
    reliable = table["reliable"].to_numpy()
    figure, axes = figure_and_axes(2, height=1.6 + 0.45 * len(table))
    rows = np.arange(len(table))[::-1]
    means = {"log_evidence": ("log evidence", "o", 0.1), "elbo": ("ELBO", "s", -0.1)}
    for number, (column, (label, marker, shift)) in enumerate(means.items()):
        errors = 2 * table[f"{column}_se"]
        trusted = reliable if column == "log_evidence" else np.ones_like(reliable)
        _marks(axes[0], table[column], rows + shift, errors, trusted, fmt=marker, color=f"C{number}", label=label)
    axes[0].set_yticks(rows, list(table.index))
    axes[0].set_ylim(-0.6, len(table) - 0.4)
    axes[0].set_xlabel("nats per datum")
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize="small", loc="outside upper left", ncols=2)
    _marks(axes[1], table["difference"], rows, _half_width(table), reliable, fmt="o", color="C0", label=None)
    axes[1].axvline(0, color="0.6", linewidth=1)
    axes[1].set_yticks(rows, [])
    axes[1].set_ylim(-0.6, len(table) - 0.4)
    for axis in axes:
        axis.xaxis.set_major_locator(MaxNLocator(5))
    axes[1].set_xlabel("log evidence minus the best's, paired\n(nats per observation)")
    return figure


def pareto(table: pd.DataFrame, *, seconds: Mapping[str, Sequence[float]] | None = None) -> Figure:
    """Draw log evidence against seconds of fitting; strategies that no other beats in both are joined.

    Evidence is drawn as its difference to the best, whose error is paired. Bars are intervals of 95% of that
    difference, and two standard errors of the mean seconds. A mark is hollow where log evidence is not to be trusted.

    Args:
        table: as :func:`pyrovae.compare` returns it, with seconds.
        seconds: of every fit, one per seed, by name; None draws their mean in the table without a bar.
    """
    figure, axes = figure_and_axes(1, height=3.8)
    axis, front, reached = axes[0], [], -math.inf
    known = table.dropna(subset=["seconds"]).sort_values("seconds")
    if not len(known):
        raise ValueError("no candidate's seconds of fitting are known: compare fits, not pairs")
    half = _half_width(known)
    for number, (name, row) in enumerate(known.iterrows()):
        spent = np.asarray((seconds or {}).get(str(name), [row["seconds"]]), dtype=float)
        error = 2 * spent.std(ddof=1) / math.sqrt(len(spent)) if len(spent) > 1 else None
        axis.errorbar(
            row["seconds"], row["difference"], xerr=error, yerr=half.iloc[number],
            fmt="o", capsize=3, color=f"C{number % 10}", mfc=None if row["reliable"] else "white",
            label=f"{name}{'' if row['reliable'] else UNRELIABLE}",
        )  # fmt: skip
        if row["difference"] > reached:
            reached = row["difference"]
            front.append((row["seconds"], reached))
    axis.plot(*zip(*front, strict=True), color="0.6", linewidth=1, zorder=0, label="not beaten in both")
    axis.set_xlabel("seconds of a fit")
    axis.set_ylabel("log evidence of held-out data\nminus the best's, paired (nats per observation)")
    axis.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def reliability(evaluations: Mapping[str, Evaluation] | Evaluation) -> Figure:
    """Draw how far each guide can be trusted, per observation: the k-hat of its weights, and log evidence - ELBO.

    Both are sorted, one curve a candidate, against the share of the data at or below the value. A dashed line is the
    largest k-hat at which so many weights are to be trusted. On the right it is the sampled Kullback-Leibler divergence
    from the guide to the posterior.

    Args:
        evaluations: of the same data, by name.
    """
    results = by_name(evaluations)
    figure, axes = figure_and_axes(2, height=3.2)
    for name, evaluation in results.items():
        share = (np.arange(len(evaluation)) + 1) / len(evaluation)
        axes[0].step(np.sort(evaluation.khat.numpy()), share, where="post", label=name)
        gap = (evaluation.log_evidence - evaluation.elbo).numpy()
        axes[1].step(np.sort(gap), share, where="post", label=name)
    for limit in sorted({evaluation.khat_limit for evaluation in results.values() if evaluation.khat_limit > 0}):
        axes[0].axvline(limit, color="0.6", linewidth=1, linestyle="--")
        axes[0].text(limit, 0.02, f" {limit:.2g}", color="0.4", fontsize="small")
    axes[0].set_xlabel("Pareto k-hat of an observation's weights")
    axes[0].set_ylabel("share of the data")
    axes[1].set_xlabel("log evidence - ELBO (nats)")
    if any(results):
        axes[0].legend(fontsize="small")
    return figure


def gaps(found: Mapping[str, Gaps] | Gaps) -> Figure:
    """Draw where the bound loses: the mean approximation and amortization gap, a bar each, one above the other.

    Whiskers are two standard errors of the paired differences either way. An approximation gap is hollow where the
    evidence of more than one observation in ten is not to be trusted, and names of what is not say so.

    Args:
        found: what :func:`pyrovae.gaps` returned, by name: of training and held-out data, say, or of several guides.
    """
    results = by_name(found)
    figure, axes = figure_and_axes(1, height=1.2 + 0.7 * len(results))
    rows = np.arange(len(results))[::-1]
    summaries = [one.summary() for one in results.values()]
    reliable = [trusted_on_average(one.reliable) for one in results.values()]
    kinds = {"approximation": "approximation gap: the family", "amortization": "amortization gap: the encoder"}
    for number, (kind, label) in enumerate(kinds.items()):
        means, errors = ([summary[key] for summary in summaries] for key in (kind, f"{kind}_se"))
        shift = 0.2 - 0.4 * number
        bars = axes[0].barh(
            rows + shift, means, 0.36, xerr=2 * np.array(errors), color=f"C{number}", label=label, capsize=3,
            error_kw={"linewidth": 1},
        )  # fmt: skip
        for bar, trusted in zip(bars, reliable, strict=True):
            if kind == "approximation" and not trusted:
                bar.set(facecolor="white", edgecolor=f"C{number}", hatch="///")
    axes[0].axvline(0, color="0.6", linewidth=1)
    axes[0].set_yticks(
        rows, [f"{n}{'' if trusted else UNRELIABLE}" for n, trusted in zip(results, reliable, strict=True)]
    )
    axes[0].set_xlabel("nats per datum")
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize="small", loc="outside upper left", ncols=2)
    return figure


def scores(found: Mapping[str, pd.DataFrame] | pd.DataFrame) -> Figure:
    """Draw scores, a row each, a mark a strategy, with bars of two standard errors where the table has some.

    Grey marks are what the scores are to be held against: chance, or held-out data themselves.

    Args:
        found: of :func:`pyrovae.label_scores`, :func:`pyrovae.disentanglement` or, of scores between 0 and about 1, of
            :func:`pyrovae.sample_quality`, by name; the same scores in each.
    """
    results = by_name(found)
    first = next(iter(results.values()))
    figure, axes = figure_and_axes(1, height=1.2 + 0.4 * len(first))
    axis, rows = axes[0], np.arange(len(first))[::-1]
    value = "model" if "model" in first else "value"
    errors = next((name for name in (f"{value}_se", "se") if name in first), None)
    reference = next((name for name in ("data", "chance") if name in first), None)
    for number, (name, table) in enumerate(results.items()):
        shift = 0.3 * ((number + 0.5) / len(results) - 0.5)
        if reference is not None:
            axis.plot(table[reference], rows - shift, "|", color="0.6", markersize=12, zorder=0,
                      label=reference if number == 0 else None)  # fmt: skip
        bars = None if errors is None else 2 * table[errors]
        axis.errorbar(table[value], rows - shift, xerr=bars, fmt="o", color=f"C{number % 10}", capsize=3, label=name)
    axis.set_yticks(rows, [str(name) for name in first.index])
    axis.set_ylim(-0.6, len(first) - 0.4)
    axis.set_xlabel("score")
    figure.legend(*axis.get_legend_handles_labels(), fontsize="small", loc="outside upper left", ncols=4)
    return figure


def _marks(axis: Any, x: Any, y: Any, errors: Any, trusted: Any, *, label: str | None, **style: Any) -> None:
    """Draw marks with bars, hollow where they are not to be trusted."""
    for chosen, hollow in ((trusted, False), (~trusted, True)):
        if chosen.any():
            said = None if label is None else f"{label}{UNRELIABLE if hollow else ''}"
            fill = {"mfc": "white"} if hollow else {}
            axis.errorbar(x[chosen], y[chosen], xerr=errors[chosen], capsize=3, label=said, **fill, **style)


def _half_width(table: pd.DataFrame) -> pd.Series:
    """Return half of each difference's interval of 95%: of few seeds, by Student's t."""
    degrees = table["difference_df"].fillna(np.inf) if "difference_df" in table else np.inf
    return stats.t.ppf(0.975, degrees) * table["difference_se"]
