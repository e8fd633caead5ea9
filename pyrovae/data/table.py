"""The user's own table: named, typed columns in; numbers to the programs; named answers out."""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyrovae.common.checks import flag
from pyrovae.common.rows import Rows
from pyrovae.data.columns import Columns, Covariates
from pyrovae.data.data import EXPOSURE, Data
from pyrovae.data.field import Field
from pyrovae.data.mapped_table import OwnFolder, mapped_arrays
from pyrovae.data.table_likelihood import likelihood_of
from pyrovae.data.table_roles import exposure_of, labels_of, repeated, row_names_of, weights_of
from pyrovae.data.tensors import ROWS
from pyrovae.likelihoods import Mixed
from pyrovae.nn.table import TableInput
from pyrovae.tables import Column, Encoding, as_frame, named_columns, read_file, without_codes
from pyrovae.tables.column import ENCODED
from pyrovae.tables.dates import with_dates
from pyrovae.tables.encoding import to_codes
from pyrovae.tables.frames import replaced
from pyrovae.tables.parquet import completed, first_rows, parts
from pyrovae.tables.proposal import SPIKED
from pyrovae.tables.schema import columns_of, described, refuse_unobservable

KEPT = ("label", "time", "subject", "group", "exposure", "weight")


class Table(Data):
    """A table with named, typed columns and named rows.

    Types are proposed from the values (:meth:`describe` shows them) and can be overridden by name. The outcomes are the
    first tensor of a batch, one number per column: numbers are scaled, categories are numbered in the order of their
    levels. The covariates, if any, are the second tensor: categories one-hot. All scales are taken from the training
    part (:meth:`splits`), or from the table that :func:`pyrovae.fit` is given. The fit keeps them, and every later
    table is read by them, column by column by name.

    Args:
        source: path of a file (CSV, Parquet, Excel, ``.h5ad``), a pandas or polars table, an array or tensor, a sparse
            matrix, or an AnnData object.
        roles: role by name of column: "outcome" (the default), "covariate", "label", "id", "time", "subject",
            "group", "exposure", "weight" (a survey weight, as :class:`Data` takes them), "frequency" (how many
            observations the row stands for: it is repeated as often) or "drop".
        types: type by name of column: "continuous", "positive", "count", "binary", "ordinal" or "categorical".
        levels: order of the categories by name of column.
        missing: values that mark a missing cell, beside empty ones: a list for all columns, or lists by name of column.
        scaling: "standardise", "log" (the logarithm is standardised), "rank" (normal scores) or "none" by name of
            column. By default continuous columns are standardised, and positive ones by their logarithm.
        separator: what separates the fields of a CSV table; None recognises it.
        decimal: decimal point of a CSV table, "." or ",".
        encoding: encoding of a CSV table.
        sheet: name or number of the sheet of an Excel file.
        layer: name of the layer of an AnnData object; None takes its ``X``.
        totals: whether each row's total over its counts is its exposure, as the size of a library or a document is.
        drop_incomplete: whether to leave out rows in which a covariate is missing; otherwise they are refused.
        mapped: whether a Parquet file is read in parts into a file of numbers that is mapped into memory, for a table
            larger than memory. Types are proposed from its first rows, categories are those of all.

    Attributes:
        columns: all columns, in the table's order.

    Raises:
        ValueError: for a table that cannot be read, for columns that no model observes and that have no role (texts,
            dates, ids and columns that do not vary, all of them in one sentence), and for a name that is no column's.

    Example:
        >>> frame = pd.DataFrame({"age": [31.5, 47.0, 24.2], "smoker": ["no", "yes", "no"], "visits": [0, 4, 1]})
        >>> table = Table(frame, types={"visits": "count"})
        >>> table.describe()[["type", "likelihood"]].to_dict("index")["smoker"]
        {'type': 'binary', 'likelihood': 'Bernoulli'}
        >>> table.to_frame().equals(frame)
        True
    """

    def __init__(
        self,
        source: Any,
        *,
        roles: dict[str, str] | None = None,
        types: dict[str, str] | None = None,
        levels: dict[str, list[str | int | float | bool]] | None = None,
        missing: list[str | int | float] | dict[str, list[str | int | float]] | None = None,
        scaling: str | dict[str, str] | None = None,
        separator: str | None = None,
        decimal: str = ".",
        encoding: str = "utf-8-sig",
        sheet: str | int = 0,
        layer: str | None = None,
        totals: bool = False,
        drop_incomplete: bool = False,
        mapped: bool = False,
    ) -> None:
        if isinstance(source, str | os.PathLike):
            self.path = Path(source)
        frame, columns = read_table(
            source, roles=roles, types=types, levels=levels, missing=missing, scaling=scaling, separator=separator,
            decimal=decimal, encoding=encoding, sheet=sheet, layer=layer, mapped=mapped,
        )  # fmt: skip
        refuse_unobservable(columns)
        _tell_of_spikes(columns)
        if flag("mapped", mapped):
            if totals or drop_incomplete:
                raise ValueError("a mapped table takes neither totals nor drop_incomplete: read it with mapped=False")
            self._map(source, columns, missing or [])
            return
        if flag("drop_incomplete", drop_incomplete):
            frame = _complete(frame, columns)
        self._fill(frame, Encoding(columns, totals=flag("totals", totals)))

    @classmethod
    def like(cls, source: Any, encoding: Encoding, what: str = "the table") -> "Table":
        """Return a later table, read as an earlier one was: columns by name, categories, codes and scales.

        Args:
            source: a pandas or polars table.
            encoding: how the earlier table was read (:attr:`encoding`).
            what: what messages call the later table.

        Raises:
            ValueError: for a table that lacks a column, has further ones, or has cells that a column cannot hold.
        """
        frame = repeated(encoding.selected(as_frame(source), what), {c.name: c.role for c in encoding.columns})
        table = object.__new__(cls)
        _see_that_complete_columns_are(frame, encoding.outcomes, what)
        table._fill(frame, encoding)
        encoding.see_that_units_agree({field.name: field.tensor for field in table._typed}, table.index)
        return table

    def _map(self, path: Any, columns: tuple[Column, ...], codes: Any) -> None:
        """Make the fields of a Parquet file that is read in parts."""
        if named := [column.name for column in columns if column.role == "frequency"]:
            raise ValueError(f"a mapped table repeats no rows, and {named[0]!r} has the role of a frequency")
        columns, count = completed(columns, path, codes)
        encoding = Encoding(columns)
        self._folder = OwnFolder()  # removed with the table and its parts
        arrays, kept = mapped_arrays(encoding, parts(path, codes), count, self._folder.path, (*KEPT, "id"))
        self._set(arrays, kept, row_names_of(kept, encoding), encoding, mapped=True)

    def _fill(self, frame: pd.DataFrame, encoding: Encoding) -> None:
        """Make the fields of a table whose columns are known."""
        names: Any = row_names_of(frame, encoding)
        frame = frame if names is None else frame.set_axis(names)
        arrays = {role: encoding.encode(frame, role) for role in ENCODED if encoding.of_role(role)}
        self._set(arrays, frame, names, encoding)

    def _set(
        self, arrays: Mapping[str, Tensor], frame: pd.DataFrame, names: Any, encoding: Encoding, *, mapped: bool = False
    ) -> None:
        """Make the fields from their numbers; the frame holds the columns that are not encoded."""
        scalings = encoding.scalings or {}
        outcomes = encoding.outcomes
        fields: list[Field] = [
            Columns(
                arrays["outcome"], name="outcome", role="observed", columns=outcomes,
                feature_names=[column.name for column in outcomes], scaling=scalings.get("outcome"),
                missing=any(column.missing for column in outcomes),
            )
        ]  # fmt: skip
        if encoding.covariates:
            covariates = arrays["covariate"]
            _see_that_all_are_given(covariates, encoding.covariates)
            fields.append(
                Covariates(
                    covariates, name="covariate", role="covariate", columns=encoding.covariates,
                    scaling=scalings.get("covariate"),
                )
            )  # fmt: skip
        fields += exposure_of(frame, encoding, fields[0].tensor)
        labels, label_names = labels_of(frame, encoding)
        weights = weights_of(frame, encoding)
        super().__init__(
            *fields, labels=labels, label_names=label_names, row_names=names, mapped=mapped, weights=weights
        )
        self.columns, self.totals = encoding.columns, encoding.totals
        kept = [c.name for c in encoding.of_role(*KEPT, "drop") if c.name in frame.columns]  # also keys of splits
        self.kept: pd.DataFrame | None = with_dates(frame[kept], encoding).set_axis(self.index) if kept else None

    @property
    def encoding(self) -> Encoding:
        """How the table was read: its columns and their scales, which a fit keeps."""
        return Encoding(self.columns, {field.name: field.fitted for field in self._typed}, self.totals)

    @property
    def _typed(self) -> list[Columns]:
        return [field for field in self.fields if isinstance(field, Columns)]

    def describe(self) -> pd.DataFrame:
        """Return one row per column: type, role, missing cells, range, categories, scaling, likelihood, and a note.

        The range is that of the rows that the scales are taken from.

        The likelihood is what :meth:`likelihood` proposes; the note says what to look at where the type is a guess.
        """
        counts = {
            column.name: int(sum(part[:, k].isnan().sum() for part in self._rows_of(field.tensor)))
            for field in self._typed
            for k, column in enumerate(field.columns)
        }
        ranges = {
            column.name: f"{float(field.fitted.low[k]):g} to {float(field.fitted.high[k]):g}"
            for field in self._typed
            for k, column in enumerate(field.columns)
            if not column.levels
        }
        return described(self.columns, counts, ranges)

    def likelihood(self) -> Mixed:
        """Return the likelihood that is proposed for the outcomes, a part per column or run of columns alike.

        Continuous columns are Gaussian with a scale per column, positive ones Gaussian in their logarithm, counts
        negative binomial with a dispersion per column, and the rest Bernoulli, ordinal and categorical. Where cells are
        missing they do not count.
        """
        parts = likelihood_of(self._typed[0].columns, exposure=self.typical_exposure is not None)
        return Mixed(parts, missing=self.missing)

    @property
    def inputs(self) -> list[TableInput]:
        """What an encoder is given, column by column, for :class:`pyrovae.nn.Table`."""
        return [TableInput(c.type, max(len(c.levels), 1), c.missing) for c in self._typed[0].columns]

    @property
    def typical_exposure(self) -> float | None:
        """The median exposure, for :class:`pyrovae.nn.Table`; None where there is no exposure."""
        exposures = [field.tensor for field in self.fields if field.name == EXPOSURE]
        return float(exposures[0].median()) if exposures else None

    @property
    def num_covariates(self) -> int:
        """Number of columns of the covariates in a batch."""
        return sum(field.width for field in self.fields if isinstance(field, Covariates))

    def to_frame(
        self, values: Tensor | np.ndarray | None = None, *, scaled: bool = True, index: Any = None
    ) -> pd.DataFrame:
        """Return outcomes ``[N, D]`` as a table: own units, names, categories, missing cells.

        Args:
            values: numbers as programs see and draw them; None returns the table's own rows, covariates included.
            scaled: whether the values are on the scale of batches; False takes them in the columns' own units, as
                :func:`pyrovae.to_arviz` returns them: categories that are no numbers are numbered from 0.
            index: names of the values' rows, such as :attr:`index` for reconstructions; None numbers them.

        Numbers between two grades become the nearer one, and between unordered categories missing. A mean of scaled
        logarithms becomes the median of the column.

        Raises:
            ValueError: for values with another number of columns.
        """
        if values is None:
            own_index = None if self.row_names is None and self.origin is None else self.index
            rows = self.rows[:] if self.mapped else slice(None)
            frames = [self.encoding.to_frame(f.tensor[rows], f.name, own_index) for f in self._typed]
            names = [column.name for column in self.columns if column.is_encoded]
            return pd.concat(frames, axis=1)[names]
        values = torch.as_tensor(values).detach().cpu()
        _see_width(values, self._typed[0].columns)
        columns = self._typed[0].columns
        own = self._typed[0].fitted.invert(values) if scaled else to_codes(values, columns)
        return self.encoding.to_frame(own, "outcome", index)

    def on_own_scale(self) -> "Table":
        """Return the table on the scales that it has, which all its parts then keep."""
        return self._copy(tuple(f.on_own_scale() if isinstance(f, Columns) else f for f in self.fields))

    def encoded_as(self, encoding: Encoding) -> "Table":
        """Return the same rows, read as an earlier table was."""
        own = self.encoding
        if encoding.described() == own.described():
            return self.on_own_scale()
        if replace(encoding, scalings=None) == replace(own, scalings=None) and encoding.scalings is not None:
            scaled = [
                replace(f, scaling=encoding.scalings[f.name]) if isinstance(f, Columns) else f for f in self.fields
            ]
            encoding.see_that_units_agree({f.name: f.tensor[:ROWS] for f in self._typed}, self.index)
            return self._copy(tuple(scaled))
        other = Table.like(self.whole(), encoding)
        same = {
            name: getattr(self, name) for name in ("origin", "numbers", "assumed", "row_names", "labels", "weights")
        }
        further = [f for f in self.fields if not isinstance(f, Columns) and f.name != EXPOSURE]
        fields = (*other.fields, *further)
        other.__dict__.update(same, fields=fields, label_names=self.label_names, dtype=self.dtype)
        return other

    def whole(self) -> pd.DataFrame:
        """Return all columns, also those that are in no batch (ids, dates, dropped ones), in the table's own order."""
        parts = [self.to_frame()] + ([] if self.kept is None else [self.kept])
        joined = pd.concat([part.reset_index(drop=True) for part in parts], axis=1)
        ids = self.encoding.of_role("id")
        if len(ids) == 1 and self.row_names is not None and ids[0].name not in joined.columns:
            joined = replaced(joined, {ids[0].name: self.index})
        joined.index = pd.Index(self.index)
        return joined[[c.name for c in self.columns if c.name in joined.columns]]

    def _own_groups(self) -> Any:
        kept = [c.name for c in self.columns if c.role in ("subject", "group")]
        kept = [] if self.kept is None else [name for name in kept if name in self.kept.columns]
        if self.kept is None or not kept:
            return None
        if len(kept) > 1:
            raise ValueError(
                f"the table has several columns that keep rows together, {', '.join(kept)}: say groups= with the one "
                "whose groups hold the others', or split in another way"
            )
        return self.kept[kept[0]]

    def _key_columns(self) -> Mapping[str, Any]:
        frame = self.whole()
        return {str(name): frame[name].reset_index(drop=True) for name in frame}

    def _rows(self, indices: Tensor | Rows | slice) -> "Table":
        other: Any = super()._rows(indices)
        if self.kept is not None:
            rows = indices[:] if isinstance(indices, Rows) else indices
            other.kept = self.kept.iloc[rows if isinstance(rows, slice) else rows.cpu().numpy()]
        return other

    def _copy(self, fields: tuple[Field, ...]) -> "Table":
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, fields=fields)
        return other


def read_table(
    source: Any, *, roles: Any = None, types: Any = None, levels: Any = None, missing: Any = None, scaling: Any = None,
    separator: str | None = None, decimal: str = ".", encoding: str = "utf-8-sig", sheet: str | int = 0,
    layer: str | None = None, mapped: bool = False,
) -> tuple[pd.DataFrame, tuple[Column, ...]]:  # fmt: skip
    """Return a table and the properties of its columns; the arguments are those of :class:`Table`."""
    codes = [] if missing is None else missing
    if not isinstance(codes, Mapping | list | tuple):
        raise ValueError(f"missing must be a list of values, or lists by name of column, got {missing!r}")
    if mapped:
        source = first_rows(source, codes)
    elif isinstance(source, str | os.PathLike):
        ids = [name for name, role in (roles or {}).items() if role == "id"] if isinstance(roles, Mapping) else []
        reading: dict[str, Any] = {"separator": separator, "decimal": decimal, "encoding": encoding, "sheet": sheet}
        source = read_file(source, codes=codes, texts=ids, **reading)
    frame = as_frame(source, layer)
    if isinstance(codes, Mapping):
        named_columns(frame, "missing", codes)
    by_name = {name: list(codes.get(name, ()) if isinstance(codes, Mapping) else codes) for name in frame.columns}
    frame = without_codes(frame, by_name)
    if not mapped and isinstance(roles, Mapping):
        frame = repeated(frame, roles)
    return frame, columns_of(frame, roles or {}, types or {}, levels or {}, scaling, by_name)


def describe(source: Any, **options: Any) -> pd.DataFrame:
    """Return what :class:`Table` would make of a table: one row per column, also of those that it would refuse.

    Args:
        source: path of a file, a pandas or polars table, an array, a sparse matrix or an AnnData object.
        **options: arguments of :class:`Table`.

    Returns:
        The type, the role, the number of missing cells, the categories, the scaling and the proposed likelihood of
        every column, and a note where the type is a guess.

    Example:
        >>> frame = pd.DataFrame({"income": [1.5, 2.5, 9.0, 50.0], "city": ["Lima", "Oslo", "Lima", "Delhi"]})
        >>> describe(frame)["type"].to_dict()
        {'income': 'positive', 'city': 'categorical'}
    """
    frame, columns = read_table(source, **options)
    return described_frame(frame, columns)


def described_frame(frame: pd.DataFrame, columns: Sequence[Column]) -> pd.DataFrame:
    """Return one row per column of a table: its properties, its missing cells and its range."""
    numeric = frame.select_dtypes("number")
    ranges = {str(name): f"{numeric[name].min():g} to {numeric[name].max():g}" for name in numeric}
    return described(columns, {name: int(frame[name].isna().sum()) for name in frame.columns}, ranges)


def _complete(frame: pd.DataFrame, columns: Sequence[Column]) -> pd.DataFrame:
    """Return the rows in which no covariate is missing."""
    given = [column.name for column in columns if column.role in ("covariate", "exposure")]
    complete = frame.dropna(subset=given)
    if len(complete) < len(frame):
        lost = len(frame) - len(complete)
        warnings.warn(f"{lost} of {len(frame)} rows are left out, which lack {' or '.join(given)}", stacklevel=4)
    if not len(complete):
        raise ValueError("every row lacks a covariate, so that drop_incomplete leaves none")
    return complete


def _tell_of_spikes(columns: Sequence[Column]) -> None:
    """Warn of continuous columns in which one number repeats, unless the user has said their type."""
    names = [column.name for column in columns if column.role == "outcome" and column.note.endswith(SPIKED)]
    if names:
        words = ", ".join(f"{name!r}" for name in names)
        warnings.warn(
            f"a number repeats in many rows of {words}, where a density is unbounded: a fit may gain any nats "
            "by shrinking its scale there, so that bounds and comparisons mean little; cut the columns into grades, "
            "make them counts, drop them, or say types={...: 'continuous'} to keep them",
            stacklevel=4,
        )


def _see_that_all_are_given(values: Tensor, columns: Sequence[Column]) -> None:
    empty = values.isnan()
    if bool(empty.any()):
        names = [column.name for k, column in enumerate(columns) if bool(empty[:, k].any())]
        raise ValueError(
            f"covariates cannot have missing cells, as nothing is said about their distribution: {', '.join(names)} "
            f"in {int(empty.any(1).sum())} rows: make them outcomes, leave these rows out "
            "(drop_incomplete=True), or impute them first"
        )


def _see_that_complete_columns_are(frame: pd.DataFrame, columns: Sequence[Column], what: str) -> None:
    """See that a later table has no missing cell where the earlier one had none in the whole column.

    Raises:
        ValueError: naming the columns.
    """
    holed = [column.name for column in columns if not column.missing and bool(frame[column.name].isna().any())]
    if holed:
        raise ValueError(
            f"{what} has missing cells in {', '.join(holed)}, which had none where the pair was fitted, so that "
            "nothing in it takes them: drop these rows, or fit to a table with such cells"
        )


def _see_width(values: Tensor, columns: Sequence[Column]) -> None:
    if values.dim() != 2 or values.shape[1] != len(columns):
        names = ", ".join(column.name for column in columns)
        raise ValueError(f"values [N, {len(columns)}] of {names} were expected, got {list(values.shape)}")
