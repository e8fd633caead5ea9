"""Figures that show data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.figure import Figure

from pyrovae.common.checks import at_least
from pyrovae.data import Data
from pyrovae.plots.axes import WIDTH, panels

if TYPE_CHECKING:
    from pyrovae.diagnostics.evidence.evaluate import Evaluation


def worst(evaluation: Evaluation, data: Data, count: int = 10) -> Figure:
    """Draw the pictures whose importance weights are least reliable, each with its number and its k-hat.

    Args:
        evaluation: evaluation of the data.
        data: pictures: a set with an ``image_shape``.
        count: number of pictures to draw.
    """
    if data.image_shape is None:
        raise ValueError("the data are not pictures: give Data an image_shape=(channels, rows, columns)")
    if len(data) != len(evaluation):
        raise ValueError(f"the evaluation is of {len(evaluation)} data, but the set has {len(data)}")
    table = evaluation.worst(count)
    rows = torch.tensor(evaluation.order(count), device="cpu")
    images = data.fixed().batch(rows)[0].reshape(-1, *data.image_shape)
    figure = Figure(figsize=(WIDTH * 1.5, WIDTH * 1.5 / max(len(table), 5) + 0.7), layout="constrained")
    grid = panels(figure, 1, len(table))[0]
    for axis, image, (observation, row) in zip(grid, images.cpu(), table.iterrows(), strict=True):
        picture = image[0] if len(image) == 1 else image.permute(1, 2, 0)
        axis.imshow(picture.float().clamp(0, 1).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(f"no. {observation}\nk-hat {row['khat']:.2f}", fontsize="small")
        axis.set_axis_off()
    return figure


def pictures(rows: Mapping[str, Any], image_shape: tuple[int, int, int]) -> Figure:
    """Draw rows of pictures, one below the other.

    Args:
        rows: flat pictures ``[n, C * H * W]`` with values in [0, 1], by title.
        image_shape: (channels, rows, columns).
    """
    arrays = {name: np.asarray(value).reshape(-1, *image_shape) for name, value in rows.items()}
    count = max(len(a) for a in arrays.values())
    figure = Figure(figsize=(WIDTH * 1.5, 1.5 * WIDTH / count * len(arrays) * 1.15), layout="constrained")
    grid = panels(figure, len(arrays), 1)[:, 0]
    for axis, (name, images) in zip(grid, arrays.items(), strict=True):
        strip = np.concatenate([np.pad(image, ((0, 0), (0, 0), (0, 1)), constant_values=1) for image in images], axis=2)
        picture = strip[0] if image_shape[0] == 1 else strip.transpose(1, 2, 0)
        axis.imshow(picture.clip(0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(name, fontsize="small", loc="left")
        axis.set_axis_off()
    return figure


def grid(
    images: Any, image_shape: tuple[int, int, int], *, columns: int = 8, titles: Sequence[str] | None = None
) -> Figure:
    """Draw pictures in rows, one after the other.

    Args:
        images: flat pictures ``[n, C * H * W]`` with values in [0, 1].
        image_shape: (channels, rows, columns) of a picture.
        columns: number of pictures in a row.
        titles: a title for each picture.
    """
    array = np.asarray(images, dtype=float).reshape(-1, *image_shape)
    count = min(at_least("columns", columns, 1), len(array))
    rows = -(-len(array) // count)
    lines = 0 if titles is None else 1 + max(title.count("\n") for title in titles)
    height = WIDTH / count * image_shape[1] / image_shape[2] + 0.05 + 0.16 * lines
    figure = Figure(figsize=(WIDTH, height * rows), layout="constrained")
    axes = panels(figure, rows, count).flat
    for number, axis in enumerate(axes):
        axis.set_axis_off()
        if number < len(array):
            image = array[number]
            picture = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
            axis.imshow(picture.clip(0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            if titles is not None:
                axis.set_title(titles[number], fontsize="small")
    return figure
