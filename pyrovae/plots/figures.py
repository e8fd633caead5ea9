"""Figures of fits and comparisons. Each is a ``matplotlib.figure.Figure`` of its own: no backend, no global state."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyrovae.data import Data
from pyrovae.evaluation import KHAT_LIMIT, Evaluation, Gaps, Ranks
from pyrovae.evaluation import worst as least_reliable

_WIDTH = 6.4
_MOST_NAMED = 10  # curves with a name in a legend


def training(histories: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw the bound of every fit against its step: the mean over an epoch, and the validation data's.

    Args:
        histories: ``Fit.history`` by name.
    """
    figure, axes = _figure(1, height=3.6)
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
    axis.set_ylabel("bound (nats per datum)")
    axis.legend(fontsize="small")
    return figure


def comparison(table: pd.DataFrame) -> Figure:
    """Draw a comparison table: log evidence and ELBO of every candidate, and the paired difference to the best.

    Bars are two standard errors either way: over the data on the left, of the paired differences on the right.

    Args:
        table: as :func:`pyrovae.compare` returns it.
    """
    figure, axes = _figure(2, height=1.6 + 0.45 * len(table))
    rows = np.arange(len(table))[::-1]
    means = {"log_evidence": ("log evidence", "o", 0.1), "elbo": ("ELBO", "s", -0.1)}
    for number, (column, (label, marker, shift)) in enumerate(means.items()):
        errors = 2 * table[f"{column}_se"]
        axes[0].errorbar(
            table[column], rows + shift, xerr=errors, fmt=marker, color=f"C{number}", label=label, capsize=3
        )
    axes[0].set_yticks(rows, list(table.index))
    axes[0].set_ylim(-0.6, len(table) - 0.4)
    axes[0].set_xlabel("nats per datum")
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize="small", loc="outside upper left", ncols=2)
    axes[1].errorbar(table["difference"], rows, xerr=2 * table["difference_se"], fmt="o", color="C0", capsize=3)
    axes[1].axvline(0, color="0.6", linewidth=1)
    axes[1].set_yticks(rows, [])
    axes[1].set_ylim(-0.6, len(table) - 0.4)
    for axis in axes:
        axis.xaxis.set_major_locator(MaxNLocator(5))
    axes[1].set_xlabel("log evidence minus the best's, paired\n(nats per datum)")
    return figure


def reliability(evaluations: Mapping[str, Evaluation]) -> Figure:
    """Draw how far each candidate's guide can be trusted, per datum: the k-hat of its weights, and log evidence - ELBO.

    Both are sorted, one curve a candidate, against the share of the data at or below the value. On the right it is the
    sampled Kullback-Leibler divergence from the guide to the posterior.

    Args:
        evaluations: of the same data, by name.
    """
    figure, axes = _figure(2, height=3.2)
    for name, evaluation in evaluations.items():
        share = (np.arange(len(evaluation)) + 1) / len(evaluation)
        axes[0].step(np.sort(evaluation.khat.numpy()), share, where="post", label=name)
        gap = (evaluation.log_evidence - evaluation.elbo).numpy()
        axes[1].step(np.sort(gap), share, where="post", label=name)
    axes[0].axvline(KHAT_LIMIT, color="0.6", linewidth=1, linestyle="--")
    axes[0].text(KHAT_LIMIT, 0.02, f" {KHAT_LIMIT}", color="0.4", fontsize="small")
    axes[0].set_xlabel("Pareto k-hat of a datum's weights")
    axes[0].set_ylabel("share of the data")
    axes[1].set_xlabel("log evidence - ELBO (nats)")
    axes[0].legend(fontsize="small")
    return figure


def gaps(found: Mapping[str, Gaps]) -> Figure:
    """Draw where the bound loses: the mean approximation and amortization gap, a bar each, one above the other.

    Whiskers are two standard errors of the paired differences either way.

    Args:
        found: what :func:`pyrovae.gaps` returned, by name: of training and held-out data, say, or of several guides.
    """
    figure, axes = _figure(1, height=1.2 + 0.7 * len(found))
    rows = np.arange(len(found))[::-1]
    summaries = [one.summary() for one in found.values()]
    kinds = {"approximation": "approximation gap: the family", "amortization": "amortization gap: the encoder"}
    for number, (kind, label) in enumerate(kinds.items()):
        means, errors = ([summary[key] for summary in summaries] for key in (kind, f"{kind}_se"))
        shift = 0.2 - 0.4 * number
        axes[0].barh(
            rows + shift, means, 0.36, xerr=2 * np.array(errors), color=f"C{number}", label=label, capsize=3,
            error_kw={"linewidth": 1},
        )  # fmt: skip
    axes[0].axvline(0, color="0.6", linewidth=1)
    axes[0].set_yticks(rows, list(found))
    axes[0].set_xlabel("nats per datum")
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize="small", loc="outside upper left", ncols=2)
    return figure


def worst(evaluation: Evaluation, data: Data, count: int = 10) -> Figure:
    """Draw the pictures whose importance weights are least to be trusted, under each its number and its k-hat.

    Args:
        evaluation: of the data.
        data: pictures, a set with an ``image_shape``.
        count: how many to draw.
    """
    if data.image_shape is None:
        raise ValueError("the data are not pictures: give Data an image_shape=(channels, rows, columns)")
    if len(data) != len(evaluation):
        raise ValueError(f"the evaluation is of {len(evaluation)} data, but the set has {len(data)}")
    table = least_reliable(evaluation, count)
    images = data.fixed().batch(torch.tensor(list(table.index)))[0].reshape(-1, *data.image_shape)
    figure = Figure(figsize=(_WIDTH * 1.5, _WIDTH * 1.5 / max(len(table), 5) + 0.7), layout="constrained")
    grid = figure.subplots(1, len(table), squeeze=False)[0]
    for axis, image, (datum, row) in zip(grid, images.cpu(), table.iterrows(), strict=True):
        shown = image[0] if len(image) == 1 else image.permute(1, 2, 0)
        axis.imshow(shown.float().clamp(0, 1).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(f"no. {datum}\nk-hat {row['khat']:.2f}", fontsize="small")
        axis.set_axis_off()
    return figure


def ranks(found: Ranks, level: float = 0.95) -> Figure:
    """Draw how far the distribution function of every quantity's ranks is from uniform, and the simultaneous band.

    A quantity that leaves its band, of level ``level`` each, is named; the others are grey where there are many.

    Args:
        found: of :func:`pyrovae.pit`, or of any part of :func:`pyrovae.sbc`.
        level: of the band.
    """
    figure, axes = _figure(1, height=3.6)
    _rank_curves(axes[0], found, level)
    return figure


def calibration(everything: Ranks, density: Ranks | None, distance: Ranks, level: float = 0.95) -> Figure:
    """Draw simulation-based calibration: ranks against their band, and the coverage of credible regions.

    Args:
        everything: ranks of all quantities.
        density: ranks of log q(z | x), whose highest-density regions are drawn; None where it is not known.
        distance: ranks of the distance to a point that depends on x (TARP).
        level: of the simultaneous bands.
    """
    figure, axes = _figure(2, height=3.8)
    _rank_curves(axes[0], everything, level)
    points, low, high = distance.band(level)
    axes[1].fill_between(points, low, high, color="0.88", linewidth=0, label=f"{level:.0%} band")
    axes[1].plot([0, 1], [0, 1], color="0.6", linewidth=1)
    regions = {"balls around a reference point (TARP)": distance}
    if density is not None:
        turned = Ranks(density.num_draws - density.values, density.num_draws, density.names)
        regions["regions of highest q(z | x)"] = turned
    for name, one in regions.items():
        axes[1].plot(points, one.ecdf()[1][0], linewidth=1.5, label=name)
    axes[1].set_xlabel("stated probability of a credible region")
    axes[1].set_ylabel("share of simulations inside")
    axes[1].legend(fontsize="small")
    return figure


def _rank_curves(axis: Any, found: Ranks, level: float) -> None:
    points, low, high = found.band(level)
    axis.fill_between(points, low - points, high - points, color="0.88", linewidth=0, label=f"{level:.0%} band")
    curves = found.ecdf()[1] - points
    outside = (found.pvalue < 1 - level).numpy()
    few = len(found.names) <= _MOST_NAMED
    named = 0
    for name, curve, out in zip(found.names, curves, outside, strict=True):
        shown = (few or out) and named < _MOST_NAMED
        colour = f"C{named % 10}" if shown else "0.6"
        style = {"color": colour, "linewidth": 1.5 if out else 1, "linestyle": "-" if out or not few else "--"}
        axis.plot(points, curve, label=name + (" (outside)" if out else "") if shown else None, **style)
        named += shown
    if len(found.names) > named:
        axis.plot([], [], color="0.6", linewidth=1, label=f"{len(found.names) - named} more")
    axis.axhline(0, color="0.6", linewidth=1)
    axis.set_xlabel("rank, as a share of the draws")
    axis.set_ylabel("share of ranks at or below, minus uniform")
    axis.legend(fontsize="x-small", ncols=2 if named > 5 else 1)


def pictures(rows: Mapping[str, Any], image_shape: tuple[int, int, int]) -> Figure:
    """Draw rows of pictures under each other.

    Args:
        rows: flat pictures ``[n, C * H * W]`` with values in [0, 1], by what they show.
        image_shape: (channels, rows, columns).
    """
    arrays = {name: np.asarray(value).reshape(-1, *image_shape) for name, value in rows.items()}
    count = max(len(a) for a in arrays.values())
    figure = Figure(figsize=(_WIDTH * 1.5, 1.5 * _WIDTH / count * len(arrays) * 1.15), layout="constrained")
    grid = figure.subplots(len(arrays), 1, squeeze=False)[:, 0]
    for axis, (name, images) in zip(grid, arrays.items(), strict=True):
        strip = np.concatenate([np.pad(image, ((0, 0), (0, 0), (0, 1)), constant_values=1) for image in images], axis=2)
        shown = strip[0] if image_shape[0] == 1 else strip.transpose(1, 2, 0)
        axis.imshow(shown.clip(0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(name, fontsize="small", loc="left")
        axis.set_axis_off()
    return figure


def _figure(columns: int, *, height: float) -> tuple[Figure, Any]:
    width = _WIDTH * (1 if columns == 1 else 1.5)
    figure = Figure(figsize=(width, max(height, 1.8)), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes
