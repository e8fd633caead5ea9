"""Helpers of all figures: each is a ``matplotlib.figure.Figure`` of its own, without backend or global state."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure as Figure

from pyrovae.programs.isolation import importing

WIDTH = 6.4
MOST_NAMED = 10  # largest number of curves with a name in a legend


def panels(figure: Figure, rows: int, columns: int) -> Any:
    """Return an array of the axes of a grid."""
    with importing():  # matplotlib looks for array libraries, which are then imported if the caller made them lazy
        return figure.subplots(rows, columns, squeeze=False)


def figure_and_axes(columns: int, *, height: float, wider: float = 1.0) -> tuple[Figure, Any]:
    """Return a figure and its axes, which are side by side."""
    width = WIDTH * (1 if columns == 1 else 1.5) * wider
    figure = Figure(figsize=(width, max(height, 1.8)), layout="constrained")
    axes = panels(figure, 1, columns)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def by_name(results: Any) -> Any:
    """Return results by name; a single result has an empty name."""
    return results if isinstance(results, Mapping) else {"": results}
