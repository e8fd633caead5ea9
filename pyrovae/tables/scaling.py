"""Scales of columns: fitted to some rows, applied to others, and inverted."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.common.rows import Rows, ascending

ROWS = 65_536  # rows taken at once
KNOTS = 1001  # quantiles that normal scores are interpolated between
SMALLEST = 1e-150  # standard deviation; the square of a smaller one underflows
MOST_FOR_KNOTS = 1_000_000  # rows that quantiles are computed from


@dataclass(frozen=True)
class Scaling:
    """How each of D columns is scaled: ``(f(x) - shift) / scale``, with f the identity or the logarithm; or its rank.

    Attributes:
        methods: one of "none", "standardise", "log" and "rank" for each column.
        shift: mean of f(x), ``[D]``; 0 where nothing is subtracted.
        scale: standard deviation of f(x), ``[D]``; 1 where nothing is divided.
        knots: equidistant quantiles of the columns that are ranked, by the column's number.
        low: least value of each column, ``[D]``.
        high: largest value of each column, ``[D]``.
    """

    methods: tuple[str, ...]
    shift: Tensor
    scale: Tensor
    knots: Mapping[int, Tensor]
    low: Tensor
    high: Tensor

    @classmethod
    def fitted(
        cls, values: Tensor, methods: Sequence[str], names: Sequence[str], rows: Tensor | Rows | None = None
    ) -> "Scaling":
        """Fit the scales to rows ``[N, D]``, in double precision and in parts; NaN does not count.

        Args:
            values: the rows, which may be a file mapped into memory.
            methods: how each column is scaled.
            names: names of the columns.
            rows: numbers of the rows to take; None takes all.

        Raises:
            ValueError: for a column that does not vary, whose spread double precision cannot hold, or that has values
                of 0 or below and whose logarithm is taken.
        """
        low, high = _range(values, rows)
        logged = torch.tensor([method == "log" for method in methods])
        _see_that_columns_can_be_scaled(low, high, methods, names)
        mean, deviation = _moments(values, rows, logged)
        scaled = torch.tensor([method in ("standardise", "log") for method in methods])
        wrong = scaled & ~((deviation > SMALLEST) & deviation.isfinite())
        if bool(wrong.any()):
            k = int(wrong.nonzero()[0])
            raise ValueError(
                f"column {names[k]!r} has the standard deviation {float(deviation[k]):.3g}, whose square double "
                "precision cannot hold: give it in another unit"
            )
        knots = {k: _quantiles(values, rows, k) for k, method in enumerate(methods) if method == "rank"}
        shift = torch.where(scaled, mean, 0.0)
        return cls(tuple(methods), shift, torch.where(scaled, deviation, 1.0), knots, low, high)

    @property
    def logged(self) -> Tensor:
        """Which columns are replaced by their logarithm, ``[D]``."""
        return torch.tensor([method == "log" for method in self.methods])

    def apply(self, values: Tensor) -> Tensor:
        """Scale rows ``[..., D]``, in double precision."""
        rows = values.double()
        logged = self.logged.to(rows.device)
        rows = torch.where(logged, torch.where(logged, rows, 1.0).log(), rows)
        rows = (rows - self.shift.to(rows.device)) / self.scale.to(rows.device)
        for k, knots in self.knots.items():
            rows[..., k] = torch.special.ndtri(_share_below(rows[..., k], knots.to(rows.device)))
        return rows

    def invert(self, values: Tensor) -> Tensor:
        """Return scaled rows ``[..., D]`` in the columns' own units, in double precision."""
        rows = values.double() * self.scale.to(values.device) + self.shift.to(values.device)
        rows = torch.where(self.logged.to(rows.device), rows.exp(), rows)
        for k, knots in self.knots.items():
            rows[..., k] = _at_share(torch.special.ndtr(rows[..., k]), knots.to(rows.device))
        return rows

    def taken(self, places: Sequence[int]) -> "Scaling":
        """Return the scales of some of the columns."""
        chosen = list(places)
        return Scaling(
            tuple(self.methods[i] for i in chosen), self.shift[chosen], self.scale[chosen],
            {k: self.knots[i] for k, i in enumerate(chosen) if i in self.knots}, self.low[chosen], self.high[chosen],
        )  # fmt: skip

    def described(self) -> dict[str, Any]:
        """Return the scales as JSON values; floats are kept to the bit."""
        return {
            "methods": list(self.methods), "shift": self.shift.tolist(), "scale": self.scale.tolist(),
            "knots": [[k, knots.tolist()] for k, knots in self.knots.items()],
            "low": self.low.tolist(), "high": self.high.tolist(),
        }  # fmt: skip

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Scaling":
        """Undo :meth:`described`."""
        shift, scale, low, high = (
            torch.tensor(record[key], dtype=torch.float64) for key in ("shift", "scale", "low", "high")
        )
        knots = {int(k): torch.tensor(values, dtype=torch.float64) for k, values in record["knots"]}
        return cls(tuple(record["methods"]), shift, scale, knots, low, high)


def _parts(values: Tensor, rows: Tensor | Rows | None) -> Iterable[Tensor]:
    parts = values.split(ROWS) if rows is None else (values[part] for part in ascending(rows, ROWS))
    return (part.double() for part in parts)


def _range(values: Tensor, rows: Tensor | Rows | None) -> tuple[Tensor, Tensor]:
    low = torch.full(values.shape[1:], torch.inf, dtype=torch.float64, device=values.device)
    high = -low
    for part in _parts(values, rows):
        low = torch.minimum(low, part.nan_to_num(nan=torch.inf, posinf=torch.inf).amin(0))
        high = torch.maximum(high, part.nan_to_num(nan=-torch.inf, neginf=-torch.inf).amax(0))
    return low.cpu(), high.cpu()


def _moments(values: Tensor, rows: Tensor | Rows | None, logged: Tensor) -> tuple[Tensor, Tensor]:
    logged = logged.to(values.device)

    def transformed() -> Iterable[Tensor]:
        return (torch.where(logged, torch.where(logged, part, 1.0).log(), part) for part in _parts(values, rows))

    zero = torch.zeros(values.shape[1:], dtype=torch.float64, device=values.device)
    count, total, square = zero.clone(), zero.clone(), zero.clone()
    for part in transformed():
        count, total = count + (~part.isnan()).sum(0), total + part.nansum(0)
    mean = total / count
    for part in transformed():
        square = square + (part - mean).square().nansum(0)
    return mean.cpu(), (square / count).sqrt().cpu()


def _see_that_columns_can_be_scaled(low: Tensor, high: Tensor, methods: Sequence[str], names: Sequence[str]) -> None:
    for name, method, least, largest in zip(names, methods, low.tolist(), high.tolist(), strict=True):
        if method != "none" and not largest > least:
            raise ValueError(
                f"column {name!r} does not vary among the rows that its scale is taken from, so it cannot be scaled: "
                f"drop it (roles={{{name!r}: 'drop'}}), or say scaling={{{name!r}: 'none'}}"
            )
        if method == "log" and least <= 0:
            raise ValueError(
                f"column {name!r} holds {least:g}, which has no logarithm: say types={{{name!r}: 'continuous'}}, or "
                "mark the value as missing"
            )


def _quantiles(values: Tensor, rows: Tensor | Rows | None, k: int) -> Tensor:
    numbers = Rows(len(values)) if rows is None else rows
    some = numbers[:: -(-len(numbers) // MOST_FOR_KNOTS)].to(values.device)
    column = values[some, k].double().cpu().numpy()
    quantiles = np.nanquantile(column, np.linspace(0, 1, min(KNOTS, max(2, int((~np.isnan(column)).sum())))))
    return torch.from_numpy(quantiles)


def _share_below(values: Tensor, knots: Tensor) -> Tensor:
    """Return the share of the rows below each value, by interpolation: (rank - 1/2) / N; ties share their ranks."""
    shares = [
        _interpolated(values, knots, torch.searchsorted(knots, values.contiguous(), right=right))
        for right in (False, True)
    ]
    return torch.where(values.isnan(), torch.nan, (sum(shares) / 2 * (len(knots) - 1) + 0.5) / len(knots))


def _interpolated(values: Tensor, knots: Tensor, place: Tensor) -> Tensor:
    last = len(knots) - 1
    above = place.clamp(1, last)
    left, right = knots[above - 1], knots[above]
    inside = torch.where(right > left, (values - left) / (right - left), (place > above - 1).double())
    return ((above - 1) + inside.clamp(0, 1)) / last


def _at_share(shares: Tensor, knots: Tensor) -> Tensor:
    last = len(knots) - 1
    position = (shares * len(knots) - 0.5).clamp(0, last)
    below = position.nan_to_num().floor().long().clamp(0, last - 1)
    return knots[below] + (position - below) * (knots[below + 1] - knots[below])
