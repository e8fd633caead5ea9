"""Figures of the latent space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.decomposition import PCA

from pyrovae.plots.axes import MOST_NAMED, WIDTH, by_name, figure_and_axes

if TYPE_CHECKING:
    from pyrovae.diagnostics.latents.aggregate import Aggregate
    from pyrovae.diagnostics.latents.usage import Usage


def usage(found: Mapping[str, Usage] | Usage) -> Figure:
    """Draw the rates of the latent coordinates on a logarithmic scale, one curve per strategy and layer.

    Rates are sorted, largest first. Where a family has no rates per coordinate (flows), the activity on the right takes
    their place.

    Args:
        found: results of :func:`pyrovae.usage`, by name.
    """
    results = by_name(found)
    figure, axes = figure_and_axes(2, height=3.4)
    names = {"rate": "rate of a latent (nats per observation)", "activity": "activity of a latent (share of variance)"}
    curves = [
        (f"{name}, {layer}" if len(result.layers) > 1 else name, rows)
        for name, result in results.items()
        for layer, rows in result.latents.groupby("layer", sort=False)
    ]
    for axis, (column, label) in zip(axes, names.items(), strict=True):
        for number, (name, rows) in enumerate(curves):
            values = np.sort(rows[column].dropna().to_numpy())[::-1].clip(min=1e-4)
            axis.plot(np.arange(1, len(values) + 1), values, "o-", markersize=3, color=f"C{number % 10}", label=name)
        axis.axhline(0.01, color="0.6", linewidth=1, linestyle="--")
        axis.set_yscale("log")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_xlabel("latents, those that hold most first")
        axis.set_ylabel(label)
    axes[0].text(0.99, 0.011, "below: as the prior", color="0.4", fontsize="small", ha="right", va="bottom",
                 transform=axes[0].get_yaxis_transform())  # fmt: skip
    figure.legend(*axes[1].get_legend_handles_labels(), fontsize="small", loc="outside upper left", ncols=4)
    return figure


def aggregate(found: Mapping[str, Aggregate] | Aggregate) -> Figure:
    """Draw the parts of each strategy's rate, one bar each: information about the data, and distance to the prior.

    Whiskers are two standard errors either way.

    Args:
        found: results of :func:`pyrovae.aggregate`, by name.
    """
    results = by_name(found)
    figure, axes = figure_and_axes(1, height=1.4 + 0.75 * len(results))
    rows = np.arange(len(results))[::-1]
    kinds = {
        "mutual_information": "mutual information of observation and code",
        "total_correlation": "total correlation of latents",
        "dimension_wise": "dimension-wise KL to the prior",
    }
    summaries = [summary.summary() for summary in results.values()]
    for number, (kind, label) in enumerate(kinds.items()):
        means, errors = ([summary[key] for summary in summaries] for key in (kind, f"{kind}_se"))
        axes[0].barh(
            rows + 0.27 * (1 - number), means, 0.25, xerr=2 * np.array(errors), color=f"C{number}", label=label,
            capsize=2, error_kw={"linewidth": 1},
        )  # fmt: skip
    axes[0].axvline(0, color="0.6", linewidth=1)
    axes[0].set_yticks(rows, list(results))
    axes[0].set_xlabel("nats per observation")
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize="small", loc="outside upper left", ncols=2)
    return figure


def codes(found: Any, labels: Any = None) -> Figure:
    """Draw the first two principal components of every strategy's codes, coloured by label where there are some.

    Args:
        found: codes ``[N, D]``, as :func:`pyrovae.codes` returns them, by name.
        labels: labels ``[N]``; a pandas Categorical gives their names, and may lack some labels.
    """
    results = by_name(found)
    figure, axes = figure_and_axes(len(results), height=0.9 * WIDTH * 1.5 / max(len(results), 2))
    classes = labels if labels is None or isinstance(labels, pd.Categorical) else pd.Categorical(np.asarray(labels))
    for axis, (name, values) in zip(axes, results.items(), strict=True):
        flat = np.asarray(values, dtype=float)
        plane = PCA(2).fit_transform(flat) if flat.shape[1] > 1 else np.column_stack([flat[:, 0], np.zeros(len(flat))])
        if classes is None:
            axis.scatter(*plane.T, s=5)
        else:
            _coloured(axis, plane, classes)
        axis.set_title(name, fontsize="medium")
        axis.set_xlabel("first principal component")
    axes[0].set_ylabel("second principal component")
    handles, names = axes[0].get_legend_handles_labels()
    if names:
        figure.legend(handles, names, fontsize="small", loc="outside right upper", markerscale=2)
    return figure


def _coloured(axis: Any, plane: Any, classes: Any) -> None:
    """Draw points by class: few classes are named, many share one colour scale; points of unknown class are grey."""
    numbers, names = classes.codes, list(classes.categories)
    if (numbers < 0).any():
        axis.scatter(*plane[numbers < 0].T, s=5, color="0.7", label="unknown")
    if len(names) > MOST_NAMED:
        axis.scatter(*plane[numbers >= 0].T, s=5, c=numbers[numbers >= 0], cmap="viridis")
        return
    for number, name in enumerate(names):
        axis.scatter(*plane[numbers == number].T, s=5, color=f"C{number}", label=str(name))
