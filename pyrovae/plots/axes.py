"""What figures share: each is a ``matplotlib.figure.Figure`` of its own, without backend or global state."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure as Figure

from pyrovae.programs.isolation import importing

WIDTH = 6.4
MOST_NAMED = 10  # curves with a name in a legend


def panels(figure: Figure, rows: int, columns: int) -> Any:
    """Return the axes of a grid, as an array of them."""
    with importing():  # matplotlib asks after array libraries, which import themselves if a caller left them lazy
        return figure.subplots(rows, columns, squeeze=False)


def figure_and_axes(columns: int, *, height: float, wider: float = 1.0) -> tuple[Figure, Any]:
    """Return a figure and its axes, side by side."""
    width = WIDTH * (1 if columns == 1 else 1.5) * wider
    figure = Figure(figsize=(width, max(height, 1.8)), layout="constrained")
    axes = panels(figure, 1, columns)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def by_name(found: Any) -> Any:
    """Return results by name; one alone has none."""
    return found if isinstance(found, Mapping) else {"": found}
