"""Figures of what a fitted pair is asked for: maps of codes, imputed cells, odd observations, ways through latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure
from scipy import stats

from pyrovae.plots.axes import MOST_NAMED, WIDTH, figure_and_axes, panels

if TYPE_CHECKING:
    from pyrovae.uses.elicitation import Elicited
    from pyrovae.uses.imputation import Imputations
    from pyrovae.uses.projection import Projection

MOST_PANELS = 16
LONGEST_NAME = 18
AXES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}


def latent_map(projection: Projection, labels: Any = None, *, level: float = 0.5, ellipses: int = 40) -> Figure:
    """Draw codes in the plane, and for some of them an ellipse that holds a share of the posterior there.

    Args:
        projection: result of :func:`pyrovae.project`.
        labels: labels ``[N]``, or clusters (:func:`pyrovae.cluster`); a pandas Categorical gives their names, and may
            lack some labels.
        level: posterior probability inside of an ellipse, were the posterior Gaussian in the plane.
        ellipses: largest number of observations with an ellipse; they are evenly spaced among the observations.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be a probability between 0 and 1, got {level!r}")
    points = np.asarray(projection.points)
    figure, axes = figure_and_axes(1, height=0.75 * WIDTH)
    axis, classes = axes[0], _classes(labels, len(points))
    rows = np.unique(np.linspace(0, len(points) - 1, max(0, ellipses)).round().astype(int))
    values, vectors = np.linalg.eigh(projection.covariance[rows])
    widths = 2 * np.sqrt(stats.chi2.ppf(level, 2) * values.clip(min=0))
    many = len(classes.categories) > MOST_NAMED
    colours = ["0.6" if number < 0 else f"C{number % 10}" for number in range(-1, len(classes.categories))]
    axis.add_collection(
        EllipseCollection(
            widths[:, 1], widths[:, 0], np.degrees(np.arctan2(vectors[:, 1, 1], vectors[:, 0, 1])), units="xy",
            offsets=points[rows], offset_transform=axis.transData, facecolors="none",
            edgecolors=[colours[code + 1] for code in classes.codes[rows]], alpha=0.5, linewidths=0.8,
        )
    )  # fmt: skip
    for number in range(-1, len(classes.categories)):
        own = classes.codes == number
        if own.any():
            name = "unknown" if number < 0 else str(classes.categories[number])
            named = labels is not None and not many
            axis.scatter(*points[own].T, s=6, color=colours[number + 1], label=name if named else None, zorder=3)
    for order, (place, set_label) in enumerate({"first": axis.set_xlabel, "second": axis.set_ylabel}.items()):
        share = None if projection.explained is None else projection.explained[order]
        set_label(
            f"{place} axis of {AXES[projection.method]}" if share is None
            else f"{place} principal component ({share:.0%} of the variance)"
        )  # fmt: skip
    reach = widths[:, 1].max(initial=0.0) / 2
    axis.update_datalim(np.concatenate([points.min(0)[None] - reach, points.max(0)[None] + reach]))
    axis.autoscale_view()
    if len(rows):
        axis.set_title(f"ellipses: {level:.0%} of the posterior, of {len(rows)} observations", fontsize="small")
    if labels is not None and not many:
        figure.legend(fontsize="small", loc="outside right upper", markerscale=2)
    return figure


def _classes(labels: Any, count: int) -> pd.Categorical:
    classes = np.zeros(count, dtype=int) if labels is None else getattr(labels, "labels", labels)
    classes = classes if isinstance(classes, pd.Categorical) else pd.Categorical(np.asarray(classes))
    if len(classes) != count:
        raise ValueError(f"labels must be one per observation, [{count}], got {len(classes)}")
    return classes


def imputed(
    imputations: Imputations, truth: Any, *, features: Sequence[int] | None = None, level: float = 0.9
) -> Figure:
    """Draw imputed cells against their true values, a panel per column, with the share of intervals that hold them.

    Args:
        imputations: result of :func:`pyrovae.impute`.
        truth: complete values ``[N, D]``, in the same units; NaN where a value is not known.
        features: numbers of the columns; None takes the first sixteen that have missing cells.
        level: level of the intervals.
    """
    true, missing = np.asarray(truth, dtype=float), imputations.missing.numpy()
    if true.shape != missing.shape or true.ndim != 2:
        raise ValueError(f"truth must be {list(missing.shape)}, as the imputations are, got {list(true.shape)}")
    mean, (low, high) = imputations.mean.numpy(), (end.numpy() for end in imputations.interval(level))
    known = missing & ~np.isnan(true)
    possible = np.flatnonzero(known.any(0)).tolist()
    chosen = possible[:MOST_PANELS] if features is None else list(features)
    if not chosen or any(k not in possible for k in chosen):
        raise ValueError(
            f"columns with missing cells whose value is known are {possible}: in others there is nothing to compare, "
            f"got features={features}"
        )
    names = imputations.names or [str(k) for k in range(true.shape[1])]
    columns = min(4, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(WIDTH * 0.4 * columns + 0.6, WIDTH * 0.4 * rows + 0.4), layout="constrained")
    grid = panels(figure, rows, columns)
    for axis, k in zip(grid.flat, chosen, strict=False):
        own = known[:, k]
        x, y = true[own, k], mean[own, k]
        inside = (low[own, k] <= x) & (x <= high[own, k])
        errors = np.stack([y - low[own, k], high[own, k] - y]).clip(min=0)
        axis.errorbar(x, y, errors, fmt="none", ecolor="0.75", linewidth=0.7, zorder=1)
        axis.scatter(x[inside], y[inside], s=6, color="C0", zorder=2)
        axis.scatter(x[~inside], y[~inside], s=10, color="C1", marker="x", linewidths=1, zorder=3)
        ends = [min(x.min(), y.min()), max(x.max(), y.max())]
        axis.plot(ends, ends, color="0.4", linewidth=0.8, zorder=0)
        name = names[k] if len(names[k]) <= LONGEST_NAME else f"{names[k][: LONGEST_NAME - 1]}…"
        axis.set_title(f"{name}: {inside.mean():.0%} of {own.sum()} inside", fontsize="small")
    for axis in grid.flat[len(chosen) :]:
        axis.set_axis_off()
    left_out = "" if features is not None else f"; {len(chosen)} of {len(possible)} columns with missing cells"
    figure.supxlabel(f"true value (crosses: outside of the interval{left_out})", fontsize="medium")
    figure.supylabel(f"imputed: mean and {level:.0%} interval", fontsize="medium")
    return figure


def ranking(table: pd.DataFrame, count: int = 20) -> Figure:
    """Draw the oddest observations, oddest first, each with its p-value and the feature that makes it odd.

    Args:
        table: result of :func:`pyrovae.anomaly`.
        count: number of observations.
    """
    worst = table.sort_values("score", ascending=False).head(count)
    figure, axes = figure_and_axes(1, height=0.9 + 0.24 * len(worst))
    axis, rows = axes[0], np.arange(len(worst))[::-1]
    scores = worst["score"].to_numpy(dtype=float)
    finite = scores[np.isfinite(scores)]
    start = table["score"].replace([np.inf, -np.inf], np.nan).median()
    start, longest = (0.0, 1.0) if not len(finite) else (min(start, finite.min()), finite.max())
    shown = np.where(np.isfinite(scores), scores, longest + 0.1 * (longest - start))
    colours = np.where(worst["rejected"], "C1", "0.7")
    axis.barh(rows, shown - start, left=start, color=list(colours), height=0.7)
    for row, (_, one), end in zip(rows, worst.iterrows(), shown, strict=True):
        odd = f", {one['feature']}" if one["feature"] else ""
        axis.text(end, row, f" p = {one['pvalue']:.2g}{odd}", va="center", fontsize="small")
    axis.set_yticks(rows, [str(name) for name in worst.index], fontsize="small")
    axis.set_xlabel("score (higher is odder; bars start at the median)")
    axis.margins(x=0.25)
    handles = [axis.barh([0], [0], color=colour) for colour in ("C1", "0.7")]
    figure.legend(handles, ["rejected", "not rejected"], fontsize="small", loc="outside upper left", ncols=2)
    return figure


def traversal(
    values: Any,
    image_shape: tuple[int, int, int] | None = None,
    *,
    at: Sequence[float] | None = None,
    titles: Sequence[str] | None = None,
    features: Sequence[str] | None = None,
) -> Figure:
    """Draw decoded means on a way through the latents: a strip of pictures for each observation, or curves of features.

    Args:
        values: means ``[V, M, D]`` of V points on the way, for M observations, as :func:`pyrovae.traverse` and
            :func:`pyrovae.interpolate` return them at an observed site.
        image_shape: (channels, rows, columns) of pictures; None draws a panel of curves, one per feature.
        at: values of the latent, or places on the way, ``[V]``; None numbers them from 0 to 1.
        titles: names of the observations.
        features: names of the D features.
    """
    if isinstance(values, Mapping):
        raise ValueError(f"values must be those of one site, such as values['x']: there are {', '.join(values)}")
    array = np.asarray(values, dtype=float)
    if array.ndim < 3:
        raise ValueError(
            f"values must be [V, M, D], one decoded mean per point and observation, got {list(array.shape)}"
        )
    places = np.linspace(0, 1, len(array)) if at is None else np.asarray(at, dtype=float)
    if places.shape != (len(array),):
        raise ValueError(f"at must be one number per point, [{len(array)}], got {list(places.shape)}")
    names = list(titles) if titles is not None else [""] * array.shape[1]
    if image_shape is None:
        return _curves(array.reshape(*array.shape[:2], -1), places, names, features)
    pictures = array.reshape(*array.shape[:2], *image_shape)
    aspect = image_shape[1] / image_shape[2]
    figure = Figure(
        figsize=(WIDTH * 1.5, WIDTH * 1.42 / len(array) * array.shape[1] * aspect + 0.25), layout="constrained"
    )
    grid = panels(figure, array.shape[1], len(array))
    for row, line in enumerate(grid):
        for column, axis in enumerate(line):
            image = pictures[column, row]
            picture = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
            axis.imshow(picture.clip(0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if not row:
                axis.set_title(f"{places[column]:g}", fontsize="small")
        line[0].set_ylabel(names[row], fontsize="small")
    return figure


def _curves(array: np.ndarray, places: np.ndarray, names: Sequence[str], features: Sequence[str] | None) -> Figure:
    count = array.shape[1]
    columns = min(3, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(WIDTH * 0.55 * columns + 1.2, WIDTH * 0.42 * rows + 0.3), layout="constrained")
    grid = panels(figure, rows, columns)
    labels = list(features) if features is not None else [str(k) for k in range(array.shape[2])]
    moved = np.argsort(-np.ptp(array, axis=0).mean(0))[:MOST_NAMED]  # the features that change most have names
    for axis, row in zip(grid.flat, range(count), strict=False):
        for k in range(array.shape[2]):
            named = k in moved
            style = (
                {"color": f"C{list(moved).index(k)}", "linewidth": 1.5} if named else {"color": "0.8", "linewidth": 0.7}
            )
            axis.plot(places, array[:, row, k], label=labels[k] if named and not row else None, **style)
        axis.set_title(names[row], fontsize="small")
        axis.spines[["top", "right"]].set_visible(False)
    for axis in grid.flat[count:]:
        axis.set_axis_off()
    figure.supxlabel("place on the way", fontsize="medium")
    figure.supylabel("decoded mean", fontsize="medium")
    figure.legend(fontsize="small", loc="outside right upper")
    return figure


def elicited(result: Elicited, most: int = 6) -> Figure:
    """Draw the distribution function of every statistic under the prior before and after, and the statements.

    Args:
        result: result of :func:`pyrovae.elicit`.
        most: largest number of statements, the first ones.
    """
    statements = result.statements[:most]
    figure, axes = figure_and_axes(len(statements), height=3.0, wider=0.8 * max(1, len(statements) / 2))
    for axis, statement in zip(axes, statements, strict=True):
        draws = [np.sort(np.asarray(one[statement.name])) for one in (result.before, result.draws)]
        stated = np.asarray(statement.stated)
        axis.set_xlabel(statement.name)
        if not hasattr(statement, "quantiles"):
            heights = [draws[0].mean(), draws[1].mean(), stated[0]]
            axis.bar(["before", "after", "stated"], heights, color=["0.7", "C0", "C3"])
            axis.set_ylabel("probability")
            continue
        for ordered, colour, label in zip(draws, ("0.7", "C0"), ("before", "after"), strict=True):
            axis.step(ordered, np.linspace(0, 1, len(ordered)), where="post", color=colour, label=label)
        axis.plot(stated, list(statement.quantiles), "o", color="C3", markersize=5, label="stated")
        low, high = np.quantile(draws[1], [0.001, 0.999])
        axis.set_xlim(min(low, stated[0]), max(high, stated[-1]))
        axis.set_ylabel("share of draws at or below")
        axis.legend(fontsize="small")
    return figure
