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

UNRELIABLE = " (unreliable)"


def training(histories: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw the bound of every fit against its steps: the mean over an epoch, and the bound of the validation data.

    Args:
        histories: ``Fit.history`` by name.
    """
    figure, axes = figure_and_axes(1, height=3.6)
    axis = axes[0]
    for number, (name, history) in enumerate(histories.items()):
        colour = f"C{number}"
        epochs = history.groupby("epoch")[["step", "bound"]].agg({"step": "max", "bound": "mean"})
        axis.plot(epochs["step"] + 1, epochs["bound"], color=colour, alpha=0.5, linewidth=1, label=f"{name}, training")
        validation = history.dropna(subset=["validation_bound"])
        if len(validation):
            axis.plot(validation["step"] + 1, validation["validation_bound"], color=colour, label=f"{name}, validation")
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

    Bars are two standard errors either way on the left, and 95% intervals of the paired differences on the right.
    Marks that rest on unreliable log evidence are hollow.

    Args:
        table: table as :func:`pyrovae.compare` returns it.
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
    axes[0].set_xlabel("nats per observation")
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize="small", loc="outside upper left", ncols=2)
    _marks(axes[1], table["difference"], rows, _half_width(table), reliable, fmt="o", color="C0", label=None)
    axes[1].axvline(0, color="0.6", linewidth=1)
    axes[1].set_yticks(rows, [])
    axes[1].set_ylim(-0.6, len(table) - 0.4)
    for axis in axes:
        axis.xaxis.set_major_locator(MaxNLocator(5))
    axes[1].set_xlabel(f"log evidence minus {_whose(table)}, paired\n(nats per observation)")
    return figure


def _whose(table: pd.DataFrame) -> str:
    """Return what a table's differences are taken from."""
    reference = table.attrs.get("reference")
    return "the best's" if reference is None else f"that of {reference}"


def pareto(table: pd.DataFrame, *, seconds: Mapping[str, Sequence[float]] | None = None) -> Figure:
    """Draw log evidence against seconds of fitting; a line joins the strategies that no other beats in both.

    Log evidence is drawn as its difference to the best, with the paired error. Bars are 95% intervals of that
    difference, and two standard errors of the mean seconds. A mark is hollow where log evidence is unreliable.

    Args:
        table: table as :func:`pyrovae.compare` returns it, with seconds.
        seconds: seconds of every fit by name, one per seed; None draws the mean seconds of the table, without bars.
    """
    figure, axes = figure_and_axes(1, height=3.8)
    axis, front, highest = axes[0], [], -math.inf
    candidates = table.dropna(subset=["seconds"]).sort_values("seconds")
    if not len(candidates):
        raise ValueError("no candidate's seconds of fitting are known: compare fits, not pairs")
    half = _half_width(candidates)
    for number, (name, row) in enumerate(candidates.iterrows()):
        times = np.asarray((seconds or {}).get(str(name), [row["seconds"]]), dtype=float)
        error = 2 * times.std(ddof=1) / math.sqrt(len(times)) if len(times) > 1 else None
        axis.errorbar(
            row["seconds"], row["difference"], xerr=error, yerr=half.iloc[number],
            fmt="o", capsize=3, color=f"C{number % 10}", mfc=None if row["reliable"] else "white",
            label=f"{name}{'' if row['reliable'] else UNRELIABLE}",
        )  # fmt: skip
        if row["difference"] > highest:
            highest = row["difference"]
            front.append((row["seconds"], highest))
    axis.plot(*zip(*front, strict=True), color="0.6", linewidth=1, zorder=0, label="not beaten in both")
    axis.set_xlabel("seconds of a fit")
    axis.set_ylabel(f"log evidence of held-out data\nminus {_whose(table)}, paired (nats per observation)")
    axis.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def reliability(evaluations: Mapping[str, Evaluation] | Evaluation) -> Figure:
    """Draw how reliable each guide is, per observation: the k-hat of its weights, and log evidence - ELBO.

    Both are sorted, one curve per candidate, against the (weighted) share of the data at or below the value. A dashed
    line marks the largest k-hat at which that number of weights is reliable. The difference on the right is the sampled
    Kullback-Leibler divergence from the guide to the posterior.

    Args:
        evaluations: evaluations of the same data, by name.
    """
    results = by_name(evaluations)
    figure, axes = figure_and_axes(2, height=3.2)
    for name, evaluation in results.items():
        weights = np.ones(len(evaluation)) if evaluation.weights is None else evaluation.weights.numpy()
        gap = (evaluation.log_evidence - evaluation.elbo).numpy()
        for ax, values in zip(axes, (evaluation.khat.numpy(), gap), strict=True):
            order = np.argsort(values, kind="stable")
            ax.step(values[order], weights[order].cumsum() / weights.sum(), where="post", label=name)
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
    """Draw what the bound loses: the mean approximation gap and the mean amortization gap, one bar each.

    Whiskers are two standard errors of the paired differences either way. An approximation gap is hollow, and its name
    says "unreliable", where the evidence of more than one observation in ten is unreliable.

    Args:
        found: results of :func:`pyrovae.gaps` by name, for example of training and held-out data, or of several guides.
    """
    results = by_name(found)
    figure, axes = figure_and_axes(1, height=1.2 + 0.7 * len(results))
    rows = np.arange(len(results))[::-1]
    summaries = [result.summary() for result in results.values()]
    reliable = [trusted_on_average(result.reliable) for result in results.values()]
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
    axes[0].set_xlabel("nats per observation")
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize="small", loc="outside upper left", ncols=2)
    return figure


def scores(found: Mapping[str, pd.DataFrame] | pd.DataFrame) -> Figure:
    """Draw scores, one row per score and one mark per strategy, with bars of two standard errors where there are any.

    Grey marks are the references of the scores: chance, or the held-out data themselves.

    Args:
        found: tables of :func:`pyrovae.label_scores`, :func:`pyrovae.disentanglement` or, for scores between 0 and
            about 1, :func:`pyrovae.sample_quality`, by name; the same scores in each.
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
    """Draw marks with bars, hollow where they are unreliable."""
    for mask, hollow in ((trusted, False), (~trusted, True)):
        if mask.any():
            text = None if label is None else f"{label}{UNRELIABLE if hollow else ''}"
            fill = {"mfc": "white"} if hollow else {}
            axis.errorbar(x[mask], y[mask], xerr=errors[mask], capsize=3, label=text, **fill, **style)


def _half_width(table: pd.DataFrame) -> pd.Series:
    """Return half the width of each difference's 95% interval, by Student's t for few seeds."""
    degrees = table["difference_df"].fillna(np.inf) if "difference_df" in table else np.inf
    return stats.t.ppf(0.975, degrees) * table["difference_se"]
