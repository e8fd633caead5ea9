"""Fields whose columns are typed: scaled column by column, and taken back to the columns' own units."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from pyrovae.common.rows import Rows
from pyrovae.data.field import Field, Moments
from pyrovae.tables import Column, Scaling
from pyrovae.tables.column import BY_LEVELS


@dataclass(frozen=True)
class Columns(Field):
    """Typed columns side by side, ``[N, D]`` in their own units; batches are scaled.

    Attributes:
        columns: the columns, in order.
        scaling: scales of the columns; None takes them from the field's own rows.
    """

    columns: tuple[Column, ...] = ()
    scaling: Scaling | None = None

    @property
    def is_scaled(self) -> bool:
        """Whether batches are on another scale than the values."""
        return True

    @cached_property
    def fitted(self) -> Scaling:
        """The scales of the columns."""
        return self.own_scaling() if self.scaling is None else self.scaling

    def own_scaling(self, rows: Tensor | Rows | None = None) -> Scaling:
        """Return scales taken from the field's own rows, or from some of them."""
        return Scaling.fitted(self.tensor, [c.scaling for c in self.columns], [c.name for c in self.columns], rows)

    @cached_property
    def scale(self) -> Moments:
        """What is subtracted from each column and what it is divided by, after logarithms, ``[D]`` each."""
        return self.fitted.shift, self.fitted.scale

    def scaled(self, rows: Tensor | Rows | None = None) -> "Columns":
        """Return the field on scales taken from its own rows, or from some of them."""
        return replace(self, scaling=self.own_scaling(rows))

    def scaled_as(self, other: Field) -> "Columns":
        """Return the field on another field's scales."""
        return replace(self, scaling=other.fitted if isinstance(other, Columns) else None)

    def scale_parts(self) -> list[Tensor]:
        """Return the numbers that make up the scales, for a checksum."""
        return [*self.scale, *self.fitted.knots.values()]

    def part(self, indices: Tensor | slice) -> "Columns":
        """Return a field of some rows, on the scales that this one was given; else on scales of its own."""
        return replace(self, tensor=self.tensor[indices])

    def on_own_scale(self) -> "Columns":
        """Return the field on the scales that it has, which its parts keep."""
        return replace(self, scaling=self.fitted)

    def for_rounding(self, rows: Tensor) -> Tensor:
        """Return rows as they are before they are rounded to the dtype of batches."""
        return self.fitted.apply(rows)

    def decoded(self, rows: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return rows on the scale of batches."""
        return self.fitted.apply(rows).to(dtype or torch.get_default_dtype())

    def batch_dtype(self, dtype: torch.dtype | None) -> torch.dtype:
        """Return the dtype of batches."""
        return dtype or torch.get_default_dtype()


@dataclass(frozen=True)
class Covariates(Columns):
    """Columns that both programs are given: a batch has a column per category, and one for every other column."""

    def decoded(self, rows: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return rows as networks take them: numbers scaled, grades between 0 and 1, categories one-hot."""
        scaled = self.fitted.apply(rows)
        columns = [_design(scaled[..., k], column) for k, column in enumerate(self.columns)]
        return torch.cat(columns, -1).to(dtype or torch.get_default_dtype())

    @property
    def width(self) -> int:
        """Number of columns of a batch."""
        return sum(len(c.levels) if c.type == "categorical" else 1 for c in self.columns)


def _design(values: Tensor, column: Column) -> Tensor:
    if column.type == "categorical":
        return torch.nn.functional.one_hot(values.long(), len(column.levels)).double()
    grades = values / (len(column.levels) - 1) if column.type in BY_LEVELS else values
    return grades[..., None]
