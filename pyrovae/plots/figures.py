"""Figures of fits and comparisons. Each is a ``matplotlib.figure.Figure`` of its own: no backend, no global state."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.decomposition import PCA

from pyrovae.data import Data
from pyrovae.evaluation import KHAT_LIMIT, Evaluation, Gaps, Ranks
from pyrovae.evaluation import worst as least_reliable
from pyrovae.latents import Aggregate, Usage

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


def pareto(table: pd.DataFrame, *, seconds: Mapping[str, Sequence[float]] | None = None) -> Figure:
    """Draw log evidence against seconds of fitting; strategies that no other beats in both are joined.

    Evidence is drawn as its difference to the best, whose error is paired. Bars are two standard errors either way: of
    that difference, and of the mean seconds.

    Args:
        table: as :func:`pyrovae.compare` returns it, with seconds.
        seconds: of every fit, one a seed, by name; None draws their mean in the table without a bar.
    """
    figure, axes = _figure(1, height=3.8)
    axis, front, reached = axes[0], [], -math.inf
    known = table.dropna(subset=["seconds"]).sort_values("seconds")
    if not len(known):
        raise ValueError("no candidate's seconds of fitting are known: compare fits, not pairs")
    for number, (name, row) in enumerate(known.iterrows()):
        spent = np.asarray((seconds or {}).get(str(name), [row["seconds"]]), dtype=float)
        error = 2 * spent.std(ddof=1) / math.sqrt(len(spent)) if len(spent) > 1 else None
        axis.errorbar(
            row["seconds"], row["difference"], xerr=error, yerr=2 * row["difference_se"],
            fmt="o", capsize=3, color=f"C{number % 10}", label=str(name),
        )  # fmt: skip
        if row["difference"] > reached:
            reached = row["difference"]
            front.append((row["seconds"], reached))
    axis.plot(*zip(*front, strict=True), color="0.6", linewidth=1, zorder=0, label="not beaten in both")
    axis.set_xlabel("seconds of a fit")
    axis.set_ylabel("log evidence of held-out data\nminus the best's, paired (nats per datum)")
    axis.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def usage(found: Mapping[str, Usage]) -> Figure:
    """Draw the rate of every latent coordinate, largest first, a curve a strategy and layer, on a logarithmic scale.

    Where a family has no rates by coordinate (flows), the activity stands for it, on the right.

    Args:
        found: of :func:`pyrovae.usage`, by name.
    """
    figure, axes = _figure(2, height=3.4)
    names = {"rate": "rate of a latent (nats per datum)", "activity": "activity of a latent (share of variance)"}
    curves = [
        (f"{name}, {layer}" if len(one.layers) > 1 else name, rows)
        for name, one in found.items()
        for layer, rows in one.latents.groupby("layer", sort=False)
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
    axes[0].text(0.99, 0.011, "below: collapsed", color="0.4", fontsize="small", ha="right", va="bottom",
                 transform=axes[0].get_yaxis_transform())  # fmt: skip
    figure.legend(*axes[1].get_legend_handles_labels(), fontsize="small", loc="outside upper left", ncols=4)
    return figure


def aggregate(found: Mapping[str, Aggregate]) -> Figure:
    """Draw what each strategy's rate is made of, a bar each: information about the datum, and distance to the prior.

    Whiskers are two standard errors either way.

    Args:
        found: of :func:`pyrovae.aggregate`, by name.
    """
    figure, axes = _figure(1, height=1.4 + 0.75 * len(found))
    rows = np.arange(len(found))[::-1]
    kinds = {
        "mutual_information": "mutual information of datum and code",
        "total_correlation": "total correlation of latents",
        "dimension_wise": "dimension-wise KL to the prior",
    }
    summaries = [one.summary() for one in found.values()]
    for number, (kind, label) in enumerate(kinds.items()):
        means, errors = ([one[key] for one in summaries] for key in (kind, f"{kind}_se"))
        axes[0].barh(
            rows + 0.27 * (1 - number), means, 0.25, xerr=2 * np.array(errors), color=f"C{number}", label=label,
            capsize=2, error_kw={"linewidth": 1},
        )  # fmt: skip
    axes[0].axvline(0, color="0.6", linewidth=1)
    axes[0].set_yticks(rows, list(found))
    axes[0].set_xlabel("nats per datum")
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize="small", loc="outside upper left", ncols=2)
    return figure


def codes(found: Mapping[str, Any], labels: Any = None) -> Figure:
    """Draw the first two principal components of every strategy's codes, coloured by label where there are some.

    Args:
        found: codes ``[N, D]``, as :func:`pyrovae.codes` returns them, by name.
        labels: ``[N]``.
    """
    figure, axes = _figure(len(found), height=0.9 * _WIDTH * 1.5 / max(len(found), 2))
    known = None if labels is None else np.asarray(labels)
    kinds = np.array([]) if known is None else np.unique(known)
    for axis, (name, values) in zip(axes, found.items(), strict=True):
        flat = np.asarray(values, dtype=float)
        plane = PCA(2).fit_transform(flat) if flat.shape[1] > 1 else np.column_stack([flat[:, 0], np.zeros(len(flat))])
        if known is None:
            axis.scatter(*plane.T, s=5)
        elif len(kinds) > _MOST_NAMED:
            axis.scatter(*plane.T, s=5, c=known, cmap="viridis")
        else:
            for number, kind in enumerate(kinds):
                axis.scatter(*plane[known == kind].T, s=5, color=f"C{number}", label=str(kind))
        axis.set_title(name, fontsize="medium")
        axis.set_xlabel("first principal component")
    axes[0].set_ylabel("second principal component")
    if 0 < len(kinds) <= _MOST_NAMED:
        figure.legend(*axes[0].get_legend_handles_labels(), fontsize="small", loc="outside right upper", markerscale=2)
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
    figure, axes = _figure(1, height=3.6, wider=1.2)
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
    figure, axes = _figure(2, height=3.6, wider=1.2)
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
    axis.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1.01, 1))


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


def _figure(columns: int, *, height: float, wider: float = 1.0) -> tuple[Figure, Any]:
    width = _WIDTH * (1 if columns == 1 else 1.5) * wider
    figure = Figure(figsize=(width, max(height, 1.8)), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes
