"""One tensor of a set, and its properties."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pyrovae.common.checks import flag, positive
from pyrovae.common.rows import Rows
from pyrovae.data.binarisation import Binarisation, Static
from pyrovae.data.tensors import as_tensor
from pyrovae.programs.streams import stream_seed

ROLES = ("", "observed", "covariate")
Moments = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Field:
    """One tensor of a set, ``[N, ...]``, and its properties.

    Every tensor of a set may be a field: ``Data(Field(x, name="pixels", levels=255), Field(y, role="covariate"))``.

    Attributes:
        tensor: the values; integer grey levels stay integers until a batch is made.
        name: name for messages, labels and figures; with "" they use its position.
        role: "observed" where the model must observe it, "covariate" where it must not; a pair that does otherwise is
            refused. "" leaves it open.
        image_shape: (channels, rows, columns) of the picture that a row holds.
        feature_names: names of its columns.
        levels: number by which a batch is divided (255 for grey levels in a byte).
        binarise: how intensities become bits; None leaves them as they are.
        missing: whether NaN marks a missing value (``likelihoods.Missing``, ``nn.Observed``).
        standardise: whether each column of a batch has its mean subtracted and is divided by its standard deviation.
        moments: mean and standard deviation for standardising; None means its own.
    """

    tensor: Tensor
    name: str = ""
    role: str = ""
    image_shape: tuple[int, int, int] | None = None
    feature_names: list[str] | None = None
    levels: float | None = None
    binarise: Binarisation | None = None
    missing: bool = False
    standardise: bool = False
    moments: Moments | None = None

    def checked(self, position: int) -> "Field":
        """Return the field after a check of all its properties.

        Raises:
            ValueError: naming what was got and what was expected.
        """
        tensor = as_tensor(self.tensor, f"tensor {position} of the data")
        if self.role not in ROLES:
            raise ValueError(f'role must be "observed", "covariate" or "", got {self.role!r}')
        columns = math.prod(tensor.shape[1:])
        names = None if self.feature_names is None else list_of_names("feature_names", self.feature_names)
        if names is not None and len(names) != columns:
            raise ValueError(f"there must be one name per feature: got {len(names)} names for {columns} features")
        if self.binarise is not None and not isinstance(self.binarise, Binarisation):
            cls = self.binarise
            got = f"the class {cls.__name__}" if isinstance(cls, type) else repr(cls)
            raise ValueError(f"binarise must be an instance such as Static() or Dynamic(), got {got}")
        return replace(
            self,
            tensor=tensor,
            image_shape=None if self.image_shape is None else _image_shape(self.image_shape, columns),
            feature_names=names,
            levels=None if self.levels is None else positive("levels", self.levels),
            missing=flag("missing", self.missing),
            standardise=flag("standardise", self.standardise),
        )

    def ready(self, position: int) -> "Field":
        """Return the field after a check of its intensities; bits that are drawn once are drawn here."""
        if self.binarise is None:
            return self
        intensities = self.decoded(self.tensor)
        low, high = float(intensities.min()), float(intensities.max())
        if low < 0 or high > 1:
            raise ValueError(f"intensities between 0 and 1 were expected to binarise, got {low:g} to {high:g}")
        return self if self.binarise.random else self.drawn_once(self.binarise, position)

    def drawn_once(self, protocol: Binarisation, position: int) -> "Field":
        """Return the field with bits in place of intensities, drawn independently of those of other fields."""
        if position and isinstance(protocol, Static):
            protocol = Static(seed=stream_seed("bits of a tensor", protocol.seed, position))
        bits = protocol.draw(self.decoded(self.tensor)).to(torch.uint8)
        return replace(self, tensor=bits, levels=1, binarise=None)

    def fixed(self, seed: int, position: int) -> "Field":
        """Return the field with its bits drawn once, where the protocol is random."""
        return self.drawn_once(Static(seed=seed), position) if self.draws_anew else self

    @property
    def draws_anew(self) -> bool:
        """Whether two batches of the same rows differ."""
        return self.binarise is not None and self.binarise.random

    @cached_property
    def scale(self) -> Moments | None:
        """Mean and standard deviation by which batches are standardised, per column; None where they are not."""
        if self.moments is not None:
            return self.moments
        return self.own_moments() if self.standardise else None

    @property
    def is_scaled(self) -> bool:
        """Whether batches are on another scale, taken from the training data."""
        return self.standardise

    def for_rounding(self, rows: Tensor) -> Tensor | None:
        """Return rows as they are before they are rounded to the dtype of batches; None where nothing can be lost."""
        return rows if self.scale is None else None  # standardising is in double precision

    def scaled(self, rows: Tensor | Rows | None = None) -> "Field":
        """Return the field on a scale taken from its own rows, where it is to be scaled.

        Args:
            rows: numbers of the rows to take, of a file that is mapped into memory; None takes all.
        """
        return replace(self, moments=self.own_moments()) if self.standardise else self

    def scaled_as(self, other: "Field") -> "Field":
        """Return the field on another field's scale."""
        return replace(self, moments=other.scale, standardise=other.standardise)

    def scale_parts(self) -> list[Tensor]:
        """Return the numbers that make up the scale, for a checksum."""
        return list(self.scale or ())

    def own_moments(self) -> Moments:
        """Return the mean and the standard deviation of every column.

        Raises:
            ValueError: for a column that does not vary.
        """
        values = self.tensor.double()
        mean = values.nanmean(0)
        high, low = values.nan_to_num(nan=-torch.inf).amax(0), values.nan_to_num(nan=torch.inf).amin(0)
        constant = ~(high > low).flatten()  # includes columns without any value
        if bool(constant.any()):
            column = self.column(int(constant.nonzero()[0]))
            raise ValueError(
                f"column {column} of {len(values)} data is constant, so it cannot be standardised: drop it"
            )
        return mean, (values - mean).square().nanmean(0).sqrt()

    def column(self, number: int) -> str:
        """Return the name of a column for messages."""
        return repr(self.feature_names[number]) if self.feature_names else str(number)

    def batch(self, rows: Tensor, dtype: torch.dtype | None) -> Tensor:
        """Return rows of the tensor in the form of a batch; a random protocol draws new bits each time.

        Args:
            rows: rows of the tensor.
            dtype: dtype of floating batches; None leaves it as it is.
        """
        decoded = self.decoded(rows, dtype)
        return decoded if self.binarise is None else self.binarise.draw(decoded)

    def decoded(self, rows: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return rows of the tensor on the scale of batches, not yet binarised."""
        if self.scale is not None:
            mean, deviation = (m.to(rows.device) for m in self.scale)
            return ((rows.double() - mean) / deviation).to(dtype or torch.get_default_dtype())
        decoded = rows.to(self.batch_dtype(dtype))
        return decoded if self.levels is None else decoded / self.levels

    def batch_dtype(self, dtype: torch.dtype | None) -> torch.dtype:
        """Return the dtype of batches."""
        if self.levels is None and not self.tensor.is_floating_point():
            return self.tensor.dtype
        return dtype or (self.tensor.dtype if self.levels is None else torch.get_default_dtype())

    def with_values(self, tensor: Tensor) -> "Field":
        """Return a field of other values, in the form of batches, with the names and the shape of this field."""
        return Field(
            tensor, name=self.name, role=self.role, image_shape=self.image_shape, feature_names=self.feature_names,
            missing=self.missing,
        )  # fmt: skip

    def part(self, indices: Tensor | slice) -> "Field":
        """Return a field of some rows, standardised as all rows are."""
        return replace(self, tensor=self.tensor[indices], moments=self.scale)


def list_of_names(argument: str, names: Any) -> list[str]:
    """Return names as a list of strings.

    Raises:
        ValueError: for anything else.
    """
    strings = [] if isinstance(names, str) or not isinstance(names, Iterable) else list(names)
    if (not strings and not isinstance(names, list | tuple)) or not all(isinstance(name, str) for name in strings):
        raise ValueError(f"{argument} must be a list of strings, got {names!r}")
    return strings


def _image_shape(image_shape: Any, columns: int) -> tuple[int, int, int]:
    whole = isinstance(image_shape, Sequence) and all(
        isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in image_shape
    )
    if not whole or len(image_shape) != 3 or math.prod(image_shape) != columns:
        raise ValueError(
            "image_shape must be (channels, rows, columns), three whole numbers whose product is the number of "
            f"columns of the first tensor, {columns}, got {image_shape!r}"
        )
    channels, rows, across = image_shape
    return channels, rows, across
