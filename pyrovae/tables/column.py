"""The properties of one column of a table."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

OBSERVABLE = ("continuous", "positive", "count", "binary", "ordinal", "categorical")
OTHERS = ("date", "text", "id", "constant")
TYPES = (*OBSERVABLE, *OTHERS)
BY_LEVELS = ("binary", "ordinal", "categorical")
ENCODED = ("outcome", "covariate")
ROLES = (*ENCODED, "label", "id", "time", "subject", "group", "exposure", "weight", "frequency", "drop")
SCALINGS = ("none", "standardise", "log", "rank")
OWN_SCALING = {"continuous": "standardise", "positive": "log"}
LIKELIHOODS = {
    "continuous": "Gaussian", "positive": "Gaussian", "count": "NegativeBinomial", "binary": "Bernoulli",
    "ordinal": "Ordinal", "categorical": "Categorical",
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """One column: its type, its role, and how its cells become numbers.

    Attributes:
        name: name of the column.
        type: one of "continuous", "positive", "count", "binary", "ordinal", "categorical", which a model can observe,
            and "date", "text", "id" and "constant".
        role: one of "outcome" (observed by the model), "covariate" (given to both programs), "label", "id", "time",
            "subject", "group", "exposure", "weight" (survey weight), "frequency" (how many observations the row is) and
            "drop".
        dtype: pandas dtype of the column, which :meth:`Encoding.to_frame` restores.
        levels: categories in their order, for a column that is coded by levels.
        scaling: "none", "standardise", "log" (the logarithm is standardised) or "rank" (normal scores).
        missing: whether cells may be missing.
        codes: values that mark a missing cell, beside NaN.
        note: what to look at, where the type is a guess.
    """

    name: str
    type: str
    role: str = "outcome"
    dtype: str = "float64"
    levels: tuple[Any, ...] = ()
    scaling: str = "none"
    missing: bool = False
    codes: tuple[Any, ...] = ()
    note: str = ""

    @property
    def is_encoded(self) -> bool:
        """Whether the column becomes numbers that programs see."""
        return self.role in ENCODED

    @property
    def has_numbers(self) -> bool:
        """Whether the categories are numbers in ascending order, which answers show as they are."""
        numbers = bool(self.levels) and all(isinstance(v, int | float) for v in self.levels)
        return numbers and not isinstance(self.levels[0], bool) and list(self.levels) == sorted(self.levels)

    @property
    def likelihood(self) -> str:
        """Name of the likelihood that is proposed for the column; "" where no model observes it."""
        if self.role != "outcome" or self.type not in OBSERVABLE:
            return ""
        return "LogNormal" if (self.type, self.scaling) == ("positive", "none") else LIKELIHOODS[self.type]

    def described(self) -> dict[str, Any]:
        """Return the column as JSON values."""
        record = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "note"}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in record.items()}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Column":
        """Undo :meth:`described`."""
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
        return cls(**arguments)


def plain(value: Any) -> Any:
    """Return a value as a Python scalar, as JSON holds it."""
    scalar = value.item() if isinstance(value, np.generic) else value
    if isinstance(scalar, float) and scalar.is_integer():
        return int(scalar)
    return scalar if isinstance(scalar, bool | int | float | str) else str(scalar)
