"""The way from a table to numbers, and back."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from pandas.api import types as dtypes
from torch import Tensor

from pyrovae.tables.column import BY_LEVELS, Column, plain
from pyrovae.tables.frames import replaced
from pyrovae.tables.scaling import Scaling

LARGEST_WHOLE = 2**53  # double precision holds every whole number up to this one
FAR = 5.0  # standard deviations between medians, from which another unit is suspected
MARGIN = 3.0  # standard deviations outside the range, up to which a value is always taken for what it is
FEWEST_FOR_UNITS = 5  # rows of new data whose units are looked at


@dataclass(frozen=True)
class Encoding:
    """The columns of a table, and, once it is fitted, their scales.

    Attributes:
        columns: all columns of the table, in its order.
        scalings: scales of the outcomes and of the covariates; None where they have not been fitted.
        totals: whether each row's total over its counts is its exposure.
    """

    columns: tuple[Column, ...]
    scalings: Mapping[str, Scaling] | None = None
    totals: bool = False

    def of_role(self, *roles: str) -> tuple[Column, ...]:
        """Return the columns in some roles, in the table's order."""
        return tuple(column for column in self.columns if column.role in roles)

    @property
    def outcomes(self) -> tuple[Column, ...]:
        """The columns that the model observes."""
        return self.of_role("outcome")

    @property
    def covariates(self) -> tuple[Column, ...]:
        """The columns that are given to both programs."""
        return self.of_role("covariate")

    def encode(self, frame: pd.DataFrame, role: str) -> Tensor:
        """Return the columns of a role as numbers, in their own units and not scaled, ``[N, D]``; NaN where missing.

        Messages name rows by the table's index.

        Raises:
            ValueError: for a cell that its column cannot hold; the message names the column and the row.
        """
        columns = self.of_role(role)
        return torch.from_numpy(np.stack([_numbers(frame[c.name], c) for c in columns], 1))

    def to_frame(self, values: Tensor, role: str = "outcome", index: Any = None) -> pd.DataFrame:
        """Return numbers ``[N, D]``, not scaled, as a table: units, names, categories, dtypes and missing cells.

        A number that its column cannot hold (a mean of counts, say) stays a number. Between two grades, or the two
        categories of a binary column, it becomes the nearer one; between unordered categories, missing.
        """
        rows = values.detach().cpu().double().numpy()
        columns = self.of_role(role)
        if rows.ndim != 2 or rows.shape[1] != len(columns):
            raise ValueError(
                f"the table has {len(columns)} columns of this role, {', '.join(c.name for c in columns)}, got values "
                f"of shape {list(rows.shape)}"
            )
        frame = pd.DataFrame({column.name: _cells(rows[:, k], column) for k, column in enumerate(columns)})
        return frame if index is None else frame.set_axis(pd.Index(index))

    def selected(self, frame: pd.DataFrame, what: str = "the table") -> pd.DataFrame:
        """Return a later table's columns in this order, its codes of missing cells replaced.

        Raises:
            ValueError: for a table that lacks columns, or has further ones.
        """
        names = [column.name for column in self.columns]
        needed = [column.name for column in self.columns if column.role in ("outcome", "covariate", "exposure")]
        lacking = [name for name in needed if name not in frame.columns]
        extra = [str(name) for name in frame.columns if name not in names]
        if lacking or extra:
            parts = [f"lacks {_listed(lacking)}"] if lacking else []
            parts += [f"has {_listed(extra)} beside them"] if extra else []
            raise ValueError(
                f"{what} {' and '.join(parts)}: the fit's columns are {_listed(needed)}; name the columns alike, and "
                "drop others"
            )
        present = frame[[name for name in names if name in frame.columns]]
        return without_codes(present, {column.name: column.codes for column in self.columns})

    def see_that_units_agree(self, raw: Mapping[str, Tensor], names: Any) -> None:
        """Warn where values of later data lie far from where the fit's data lay, as in another unit.

        That is a column whose median is over 5 standard deviations away, or a value further outside the range of the
        fit's data than half of that range and 3 standard deviations, on the logarithm's scale where that is taken.

        Args:
            raw: rows of the columns, by role, in their own units.
            names: names of the rows.
        """
        for role, scaling in (self.scalings or {}).items():
            rows = raw[role].cpu()
            scores = scaling.apply(rows)
            ends = [scaling.apply(end[None])[0] for end in (scaling.low, scaling.high)]
            for k, column in enumerate(self.of_role(role)):
                if column.scaling not in ("standardise", "log"):
                    continue
                margin = max(float(ends[1][k] - ends[0][k]) / 2, MARGIN)
                out = (scores[:, k] < ends[0][k] - margin) | (scores[:, k] > ends[1][k] + margin)
                moved = len(rows) >= FEWEST_FOR_UNITS and abs(float(scores[:, k].nanmedian())) > FAR
                if bool(out.any()) or moved:
                    first = int(out.double().argmax()) if bool(out.any()) else 0
                    what = (
                        f"{float(rows[first, k]):.4g} in row {plain(names[first])!r} ({int(out.sum())} such rows)"
                        if bool(out.any())
                        else f"a median of {float(rows[:, k].nanmedian()):.4g}"
                    )
                    warnings.warn(
                        f"column {column.name!r} has {what}, and held {float(scaling.low[k]):.4g} to "
                        f"{float(scaling.high[k]):.4g} where the pair was fitted: is it in another unit?",
                        stacklevel=4,
                    )

    def described(self) -> dict[str, Any]:
        """Return the encoding as JSON values."""
        scalings = None if self.scalings is None else {k: s.described() for k, s in self.scalings.items()}
        columns = [column.described() for column in self.columns]
        return {"columns": columns, "scalings": scalings, "totals": self.totals}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Encoding":
        """Undo :meth:`described`."""
        scalings = record["scalings"]
        columns = tuple(Column.of(column) for column in record["columns"])
        fitted = None if scalings is None else {k: Scaling.of(s) for k, s in scalings.items()}
        return cls(columns, fitted, record["totals"])


def from_codes(values: Tensor, columns: Sequence[Column]) -> Tensor:
    """Return numbers ``[..., D]`` in which categories that are numbers stand for themselves, not for their place."""
    return _between(values, columns, lambda found, places, levels: np.interp(found, places, levels))


def to_codes(values: Tensor, columns: Sequence[Column]) -> Tensor:
    """Undo :func:`from_codes`."""
    return _between(values, columns, lambda found, places, levels: np.interp(found, levels, places))


def _between(values: Tensor, columns: Sequence[Column], change: Any) -> Tensor:
    values = values.clone()
    for k, column in enumerate(columns):
        if column.has_numbers:
            levels, found = np.array(column.levels, float), values[..., k].double().cpu().numpy()
            changed = np.where(np.isnan(found), np.nan, change(found, np.arange(len(levels)), levels))
            values[..., k] = torch.from_numpy(changed).to(values)
    return values


def without_codes(frame: pd.DataFrame, codes: Mapping[str, Sequence[Any]]) -> pd.DataFrame:
    """Return a table in which cells with a column's codes are missing; texts that are then all numbers become these."""
    changed = {}
    for name, values in codes.items():
        if not values or name not in frame.columns:
            continue
        column = frame[name]
        hit = _has_code(column, values)
        if hit.any():
            kept = column.mask(hit)
            if isinstance(column.dtype, pd.CategoricalDtype):
                kept = kept.cat.remove_categories(
                    [level for level in column.cat.categories if level in {*values, *map(str, values)}]
                )
            changed[name] = _as_numbers(kept)
    return replaced(frame, changed)


def _has_code(column: pd.Series, codes: Sequence[Any]) -> pd.Series:
    """Return which cells hold a code: numbers among numbers by value, and texts among texts as they are written."""
    if dtypes.is_numeric_dtype(column.dtype) and not dtypes.is_bool_dtype(column.dtype):
        numbers = pd.to_numeric(pd.Series(list(codes), dtype=object), errors="coerce").dropna()
        return column.isin(numbers.tolist())
    return column.isin([*codes, *map(str, codes)])


def _as_numbers(column: pd.Series) -> pd.Series:
    if dtypes.is_object_dtype(column.dtype) or dtypes.is_string_dtype(column.dtype):
        numbers = pd.to_numeric(column, errors="coerce")
        return numbers if bool((numbers.notna() == column.notna()).all()) else column
    return column


def _numbers(cells: pd.Series, column: Column) -> np.ndarray:
    """Return a column's cells as numbers: codes of its categories, or the numbers themselves; NaN where missing."""
    if column.type in BY_LEVELS:
        return level_codes(cells, column)
    values = _as_floats(cells, column.name)
    infinite = np.isinf(values)
    if infinite.any():
        where = _place(cells, infinite)
        raise ValueError(f"column {column.name!r} holds {values[infinite.argmax()]} {where}: mark it as missing")
    with np.errstate(invalid="ignore"):
        kind = "positive" if column.scaling == "log" else column.type
        wrong = _outside(values, kind)
    if wrong.any():
        raise ValueError(
            f"column {column.name!r} is {_KINDS[kind]}, and holds {values[wrong.argmax()]:g} "
            f"{_place(cells, wrong)}: correct it, mark it as missing, or give the column another type"
        )
    return values


_KINDS = {"count": "a count (a whole number of at least 0)", "positive": "positive (above 0)"}


def _outside(values: np.ndarray, kind: str) -> np.ndarray:
    if kind == "count":
        return (values < 0) | (values != np.round(values)) & ~np.isnan(values)
    return values <= 0 if kind == "positive" else np.zeros(len(values), bool)


def level_codes(cells: pd.Series, column: Column) -> np.ndarray:
    """Return the numbers of a column's categories; NaN where missing.

    Raises:
        ValueError: for a cell that is none of the categories.
    """
    levels = {level: code for code, level in enumerate(column.levels)}
    values, places = pd.unique(cells), None
    numbers = np.array([math.nan if pd.isna(value) else levels.get(plain(value), -1.0) for value in values], np.float64)
    places = pd.Index(values).get_indexer(pd.Index(cells)) if len(values) else np.empty(0, int)
    codes = np.where(places < 0, math.nan, numbers[places]) if len(values) else np.empty(0)
    unknown = codes == -1
    if unknown.any():
        value = plain(cells.iloc[int(unknown.argmax())])
        raise ValueError(
            f"column {column.name!r} holds {value!r} {_place(cells, unknown)}, none of its "
            f"categories {_listed(column.levels)}: map it to one of them, or mark it as missing"
        )
    return codes


def _as_floats(cells: pd.Series, name: str) -> np.ndarray:
    if not dtypes.is_numeric_dtype(cells.dtype):
        numbers = pd.to_numeric(cells.astype(object), errors="coerce")
        stray = numbers.isna() & cells.notna()
        if stray.any():
            text = str(cells.iloc[int(stray.to_numpy().argmax())])[:40]
            raise ValueError(
                f"column {name!r} is numeric, and holds {text!r} {_place(cells, stray.to_numpy())}: correct it, or "
                "mark it as missing"
            )
        cells = numbers
    values: np.ndarray = cells.to_numpy(np.float64, na_value=math.nan)
    if dtypes.is_integer_dtype(cells.dtype):
        for row in np.flatnonzero(np.abs(values) >= LARGEST_WHOLE).tolist():
            if int(cells.iloc[row]) != int(values[row]):
                raise ValueError(
                    f"column {name!r} holds {cells.iloc[row]} in row {row}, which double precision rounds, as it does "
                    "whole numbers above 2**53: subtract an origin, or give it the role of an id"
                )
    return values


def _place(cells: pd.Series, wrong: np.ndarray) -> str:
    """Return where the first of some cells is, by the name of its row, and how many there are."""
    return f"in row {plain(cells.index[int(wrong.argmax())])!r} ({int(wrong.sum())} in all)"


def _cells(values: np.ndarray, column: Column) -> Any:
    """Undo :func:`_numbers`."""
    empty = np.isnan(values)
    if column.type in BY_LEVELS:
        nearest = np.clip(np.round(np.where(empty, 0, values)), 0, len(column.levels) - 1)
        if column.type == "categorical":
            empty = empty | (nearest != values)
        codes = np.where(empty, -1, nearest).astype(np.int64)
        if column.dtype == "category":
            dtype: Any = pd.CategoricalDtype(list(column.levels), ordered=column.type == "ordinal")
            return pd.Categorical.from_codes(codes, dtype=dtype)
        cells = np.empty(len(codes), object)
        cells[:] = [math.nan if code < 0 else column.levels[code] for code in codes]
        return _with_dtype(pd.Series(cells, dtype=object), column.dtype, bool(empty.any()))
    whole = bool((values[~empty] == np.round(values[~empty])).all())
    series = pd.Series(values)
    return series if _is_whole(column.dtype) and not whole else _with_dtype(series, column.dtype, bool(empty.any()))


def _with_dtype(cells: pd.Series, dtype: Any, missing: bool) -> Any:
    """Return cells in a dtype; one that cannot hold missing cells is replaced by its nullable twin where some are."""
    if missing and (_is_whole(dtype) or dtype == "bool"):
        dtype = {"bool": "boolean"}.get(dtype, dtype.replace("uint", "UInt").replace("int", "Int"))
    nullable = dtype in ("boolean", "string") or dtype[:1] in "IUF"
    cells = cells.where(cells.notna(), pd.NA) if nullable and cells.dtype == object else cells
    if dtype == "object":
        return cells.where(cells.notna(), None)
    try:
        return cells.astype(dtype).array
    except TypeError:  # a dtype without a name that pandas reads, such as Arrow's dictionaries
        return cells.array


def _is_whole(dtype: str) -> bool:
    return dtype.lower().startswith(("int", "uint"))


def _listed(names: Sequence[Any], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more
