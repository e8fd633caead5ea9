"""What the columns of a table say about its rows: names, labels, exposures, weights and frequencies."""

import warnings
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyrovae.data.data import exposure_field
from pyrovae.data.field import Field
from pyrovae.tables import Encoding
from pyrovae.tables.column import plain
from pyrovae.tables.encoding import level_codes
from pyrovae.tables.frames import replaced


def exposure_of(frame: pd.DataFrame, encoding: Encoding, outcomes: Tensor) -> list[Field]:
    """Return the exposure as a field, if there is one: a column, or the rows' totals over their counts."""
    named = encoding.of_role("exposure")
    if encoding.totals:
        counts = [k for k, column in enumerate(encoding.outcomes) if column.type == "count"]
        if named or not counts:
            what = f"the column {named[0].name!r} has that role" if named else "the table has no counts"
            raise ValueError(f"totals=True makes the rows' totals their exposure, and {what}")
        return [exposure_field(outcomes[:, counts].nansum(1))]
    if not named:
        return []
    cells = pd.to_numeric(frame[named[0].name]).to_numpy(np.float64, na_value=np.nan)
    return [exposure_field(torch.from_numpy(cells.copy()))]


def weights_of(frame: pd.DataFrame, encoding: Encoding) -> np.ndarray | None:
    """Return the rows' survey weights; None, with a warning, where a later table lacks their column."""
    names = [column.name for column in encoding.of_role("weight")]
    if not names:
        return None
    if names[0] not in frame.columns:
        if len(frame) > 1:
            warnings.warn(
                f"the table lacks the weights {names[0]!r} that the pair was fitted with: means are those of its rows",
                stacklevel=5,
            )
        return None
    return _numbers_of(frame, names[0], "weight")


def repeated(frame: pd.DataFrame, roles: Mapping[str, str]) -> pd.DataFrame:
    """Return a table in which each row stands as often as its frequency says, which is 1 from then on.

    Copies of a row have its name, or its id, with their number: 17/1, 17/2.

    Args:
        frame: the table.
        roles: roles by name of column.

    Raises:
        ValueError: for frequencies that are no whole numbers of at least 0, or all 0.
    """
    named = {role: name for name, role in roles.items() if name in frame.columns}
    if "frequency" not in named:
        return frame
    column, own = named["frequency"], named.get("id")
    times = _numbers_of(frame, column, "frequency")
    wrong = times != np.round(times)
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"column {column!r} has the role of a frequency, a whole number, and holds {times[row]:g} in row "
            f'{plain(frame.index[row])!r}: a survey weight has the role "weight"'
        )
    if not times.any():
        raise ValueError(f"all frequencies {column!r} are 0, which leaves no row")
    counts = times.astype(np.int64)
    rows = np.repeat(np.arange(len(frame)), counts)
    copies = replaced(frame.iloc[rows], {column: 1})
    if counts.max() == 1:
        return copies
    base = frame.index if own is None else frame[own]
    names = [f"{plain(name)}/{k + 1}" for name, count in zip(base, counts, strict=True) for k in range(count)]
    return copies.set_axis(names) if own is None else replaced(copies, {own: names})


def _numbers_of(frame: pd.DataFrame, name: str, role: str) -> np.ndarray:
    """Return a column as finite numbers of at least 0.

    Raises:
        ValueError: naming the column and the row.
    """
    values: np.ndarray = pd.to_numeric(frame[name], errors="coerce").to_numpy(np.float64, na_value=np.nan)
    wrong = ~(np.isfinite(values) & (values >= 0))
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"column {name!r} has the role of a {role}, a number of at least 0, and holds {frame[name].iloc[row]!s} in "
            f"row {plain(frame.index[row])!r} ({int(wrong.sum())} in all): correct it, or leave these rows out"
        )
    return values


def labels_of(frame: pd.DataFrame, encoding: Encoding) -> tuple[Tensor | None, list[str] | None]:
    """Return the rows' labels, -1 where unknown, and the labels' names; None where there are none."""
    named = [column.name for column in encoding.of_role("label") if column.name in frame.columns]
    if not named:
        return None, None
    column = encoding.of_role("label")[0]
    codes = level_codes(frame[named[0]], column)
    return torch.from_numpy(np.nan_to_num(codes, nan=-1).astype(np.int64)), [str(level) for level in column.levels]


def row_names_of(frame: pd.DataFrame, encoding: Encoding) -> pd.Index | None:
    """Return the rows' names, by an id or the table's index; None numbers them."""
    ids = [column.name for column in encoding.of_role("id") if column.name in frame.columns]
    if ids:
        return pd.Index(frame[ids[0]])
    index = frame.index
    if index.equals(pd.RangeIndex(len(frame))):
        return None
    if not index.is_unique:
        twice = index[index.duplicated()][0]
        warnings.warn(
            f"several rows of the table have the index {plain(twice)!r}, so rows are numbered instead of named: give "
            "an index without doubles, or a column in the role of an id",
            stacklevel=5,
        )
        return None
    return index
