"""A set of data: tensors on the device with one observation per row, batched without a loader."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyrovae.common.checks import at_least
from pyrovae.common.rows import Rows
from pyrovae.common.weights import check_weights, drawn_by_weight, most_drawn
from pyrovae.data.binarisation import Binarisation
from pyrovae.data.field import Field, Moments, list_of_names
from pyrovae.data.splitting import Keys, Split, fold_indices, keys
from pyrovae.data.tensors import FEWEST, LARGEST_LOSS, ROWS, as_tensor, check, lost_by_rounding
from pyrovae.programs.streams import generator
from pyrovae.tables import Encoding

Shape = int | tuple[int, ...]
EXPOSURE = "exposure"


class Splits(NamedTuple):
    """Three disjoint parts of a set."""

    train: "Data"
    validation: "Data"
    test: "Data"


class Data:
    """Tensors of one length, and their properties.

    Each tensor is a :class:`Field`, or a tensor or array without further properties; the properties of the first one
    may be given here. Pictures are kept flat, ``[N, C * H * W]``, together with their ``image_shape``.

    Args:
        *tensors: fields, tensors or arrays, ``[N, ...]`` each; a batch holds their rows, in this order.
        image_shape: (channels, rows, columns) of the picture that a row of the first tensor holds.
        labels: labels of the data, ``[N]``, numbered from 0, -1 where unknown; not part of a batch.
        label_names: names of the labels, in the order of their numbers.
        factors: levels of the factors from which the data were made, ``[N, F]``; not part of a batch.
        factor_names: names of the columns of ``factors``.
        feature_names: names of the columns of the first tensor.
        levels: number by which the first tensor is divided when a batch is made (255 for grey levels in a byte).
        binarise: how intensities of the first tensor become bits; None leaves them as they are.
        missing: whether NaN in the first tensor marks a missing value (``likelihoods.Missing``, ``nn.Observed``).
        mapped: whether the tensors are files mapped into memory; they stay there, and only batches are moved.
        row_names: names of the observations, ``[N]``, each once: the index of results. None numbers them from 0.
        weights: survey weights, ``[N]``, proportional to 1 / (probability of being sampled); their scale does not
            matter. A fit sees each observation as often as its weight says, and means over the data are weighted.

    Raises:
        ValueError: for no tensors, tensors of different lengths, an empty set or one without columns, a value that is
            not finite, an observation without any value, tensors of other kinds (sparse, complex, masked), and for
            names, labels, factors or an image shape that do not belong to the tensors.

    Example:
        >>> data = Data(torch.rand(100, 3), feature_names=["a", "b", "c"])
        >>> [len(part) for part in data.splits(validation=0.1, test=0.2)]
        [70, 10, 20]
        >>> views = Data(Field(torch.rand(100, 3), name="left"), Field(torch.rand(100, 2), name="right"))
        >>> [tuple(t.shape) for t in views.batch(slice(0, 5))]
        [(5, 3), (5, 2)]
    """

    def __init__(
        self,
        *tensors: Tensor | np.ndarray | Field,
        image_shape: tuple[int, int, int] | None = None,
        labels: Tensor | None = None,
        label_names: Sequence[str] | None = None,
        factors: Tensor | None = None,
        factor_names: Sequence[str] | None = None,
        feature_names: Sequence[str] | None = None,
        levels: float | None = None,
        binarise: Binarisation | None = None,
        missing: bool = False,
        mapped: bool = False,
        row_names: Sequence[Any] | np.ndarray | None = None,
        weights: Tensor | np.ndarray | None = None,
    ) -> None:
        properties = {
            "image_shape": image_shape, "feature_names": feature_names, "levels": levels, "binarise": binarise,
            "missing": missing or None,
        }  # fmt: skip
        self.fields = _fields(tensors, {name: value for name, value in properties.items() if value is not None})
        count = len(self.tensors[0])
        self.labels = None if labels is None else check_labels(labels, count)
        self.label_names = None if label_names is None else check_label_names(label_names, self.labels)
        self.factors, self.factor_names = _factors(factors, factor_names, count)
        self.mapped, self.place = mapped, self.tensors[0].device
        self.rows: Tensor | Rows = Rows(count if mapped else 0)  # rows of a mapped file in this set
        self.dtype: torch.dtype | None = None
        self.row_names = None if row_names is None else _row_names(row_names, len(self))
        self.weights = None if weights is None else check_weights(weights, len(self))
        self.numbers: Tensor | Rows | None = None  # of the observations within the whole set, for programs
        self.origin: Tensor | Rows | None = None  # likewise, for a part, as index of results; None: whole set
        self.assumed: int | None = None  # length of the set that is assumed to be the whole one
        if mapped and any(field.binarise is not None for field in self.fields):
            raise ValueError("a mapped file cannot be binarised as it is read: binarise it once and save the bits")
        if mapped and self.standardise:
            raise ValueError("a set that is mapped cannot be standardised: standardise the array before it is a set")
        self.fields = tuple(field.ready(position) for position, field in enumerate(self.fields))

    def __len__(self) -> int:
        return len(self.rows) if self.mapped else len(self.tensors[0])

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The values of all fields, as they are stored."""
        return tuple(field.tensor for field in self.fields)

    @property
    def first(self) -> Field:
        """The first field, the only one in a set of one kind of data."""
        return self.fields[0]

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """(channels, rows, columns) of the pictures in the first field, or None."""
        return self.first.image_shape

    @property
    def feature_names(self) -> list[str] | None:
        """Names of the first field's columns, or None."""
        return self.first.feature_names

    @property
    def missing(self) -> bool:
        """Whether NaN marks a missing value in some field."""
        return any(field.missing for field in self.fields)

    @property
    def standardise(self) -> bool:
        """Whether some field is standardised."""
        return any(field.standardise for field in self.fields)

    @property
    def moments(self) -> Moments | None:
        """Mean and standard deviation by which the first field's columns are standardised, or None."""
        return self.first.scale

    @property
    def shape(self) -> Shape:
        """Shape of one observation: a picture's (channels, rows, columns), or the number of features."""
        return self.image_shape or int(np.prod(self.tensors[0].shape[1:]))

    @property
    def device(self) -> torch.device:
        """The device of batches."""
        return self.place if self.mapped else self.tensors[0].device

    @property
    def encoding(self) -> Encoding | None:
        """How the columns of a table become numbers; None for a set that is no table."""
        return None

    @property
    def draws_anew(self) -> bool:
        """Whether two batches of the same data differ."""
        return any(field.draws_anew for field in self.fields)

    @property
    def classes(self) -> pd.Categorical | None:
        """The labels by name, missing where a label is -1; None for a set without labels."""
        if self.labels is None:
            return None
        categories = pd.Categorical(self.labels.cpu().numpy())
        categories = categories.remove_categories([number for number in categories.categories if number < 0])
        return categories.rename_categories(dict(enumerate(self.label_names or ())))

    @property
    def index(self) -> np.ndarray:
        """The names of the observations, or their numbers within the whole set, ``[N]``: the index of results."""
        numbers = np.arange(len(self)) if self.origin is None else self.origin[:].numpy()
        return numbers if self.row_names is None else self.row_names[numbers]

    def batch(self, indices: Tensor | slice) -> tuple[Tensor, ...]:
        """Return the decoded rows at ``indices``, and their numbers, if any; a dynamic binarisation draws new bits."""
        return (*self._decoded(self._at(indices)), *self._numbered(indices))

    def _decoded(self, rows: Iterable[Tensor]) -> Iterator[Tensor]:
        return (field.batch(values, self.dtype) for field, values in zip(self.fields, rows, strict=True))

    def _numbered(self, indices: Tensor | slice) -> tuple[Tensor, ...]:
        return () if self.numbers is None else (self.numbers[indices],)

    def _at(self, indices: Tensor | slice) -> list[Tensor]:
        if not self.mapped:
            return [t[indices] for t in self.tensors]
        rows = self.rows[indices.cpu() if isinstance(indices, Tensor) else indices]
        return [t.to(self.place) for t in self._fetch(rows)]

    def _fetch(self, rows: Tensor) -> list[Tensor]:
        return [t[rows] for t in self.tensors]

    def batches(self, batch_size: int) -> Iterator[tuple[range, tuple[Tensor, ...]]]:
        """Iterate over the set in order: the indices of each batch, and its tensors."""
        at_least("batch_size", batch_size, 1)
        for start in range(0, len(self), batch_size):
            stop = min(start + batch_size, len(self))
            yield range(start, stop), self.batch(slice(start, stop))

    def stream(self, parts: Iterable[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """Iterate over the batches at given indices, each made when it is due."""
        return (self.batch(indices) for indices in parts)

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> "Data":
        """Return the set on ``device``; its batches have floating tensors of ``dtype``; None leaves either as it is."""
        fields = self.fields if self.mapped else tuple(replace(f, tensor=f.tensor.to(device)) for f in self.fields)
        other = self._copy(fields)
        other.place = self.place if device is None else device
        other.dtype = self.dtype if dtype is None else dtype
        other.numbers = None if self.numbers is None else self.numbers.to(other.device)
        return other

    def numbered(self, *, assumed: bool = False) -> "Data":
        """Return the set with a number for each observation, which its subsets and splits keep.

        A data plate gives the numbers to its program (``with pyro.plate("data", N, subsample_size=len(x)) as i``); a
        set without numbers is numbered from 0. To ask about some of the data where a program has one value per
        observation (parameters, covariates), use ``Data(x).numbered().subset(...)``. The program's own arguments do not
        change: the numbers are in the last tensor of a batch, which is not passed to a program.

        Args:
            assumed: whether it is only assumed that this is the whole set.
        """
        if self.numbers is not None:
            return self
        other = self._copy(self.fields)
        count = len(self)
        numbers = Rows(count).to(self.device)
        other.numbers = numbers if self.mapped else numbers[:]
        other.assumed = len(self) if assumed else None
        return other

    def subset(self, indices: Sequence[int] | Tensor | slice) -> "Data":
        """Return the observations at ``indices``, in that order."""
        part = self._rows(indices if isinstance(indices, slice) else torch.as_tensor(indices, device="cpu"))
        check(part.tensors, [field.missing for field in part.fields])
        return part

    def sampled(self, count: int, seed: int = 0) -> "Data":
        """Return ``count`` observations, drawn at random without replacement, as a part that stands for the whole.

        A set of at most ``count`` observations is returned as it is. The same seed draws the same observations.

        Observations with survey weights are drawn by these, so that the part is a plain sample of the population and
        carries no weights. None is drawn twice, so that there are at most sum(w) / max(w) of them.
        """
        count = at_least("count", count, 1)
        if self.weights is not None:
            self.see_that_some_count()
            source, number = generator("some of the data", seed), min(count, most_drawn(self.weights))
            rows = drawn_by_weight(self.weights, number, source)
            return self.subset(rows.sort().values).unweighted()
        if count >= len(self):
            return self
        order = torch.randperm(len(self), generator=generator("some of the data", seed), device="cpu")
        return self.subset(order[:count])

    def see_that_some_count(self, what: str = "the data") -> None:
        """Check that some observation has a weight above 0.

        Raises:
            ValueError: if none has.
        """
        if self.weights is not None and not bool((self.weights > 0).any()):
            raise ValueError(f"all weights of {what} are 0, so that there is nothing to fit or to average")

    def unweighted(self) -> "Data":
        """Return the set without survey weights: the sample as it is, rather than the population that it is from."""
        other = self._copy(self.fields)
        other.weights = None
        return other

    def fixed(self, seed: int = 0) -> "Data":
        """Return the set with every random protocol drawn once, so that all evaluations use the same data."""
        if not self.draws_anew:
            return self
        return self._copy(tuple(field.fixed(seed, position) for position, field in enumerate(self.fields)))

    def with_fields(self, *fields: Field) -> "Data":
        """Return the set with other fields, of as many observations."""
        return self._copy(tuple(field.checked(position) for position, field in enumerate(fields)))

    def with_totals(self) -> "Data":
        """Return the set with each row's total as a further tensor of every batch, ``[N, 1]``: the exposure.

        The likelihood takes it as the exposure of counts, or as the total of a ``Multinomial``.
        """
        totals = torch.cat([part.flatten(1).nansum(1).float() for part in self.first.tensor.split(ROWS)])
        return self._copy((*self.fields, exposure_field(totals)))

    def labelled(self, known: Tensor | None = None) -> "Data":
        """Return the set with its labels as a further tensor of every batch, as semi-supervised models take them.

        Args:
            known: bools ``[N]``, true for labels that the model may see; the others become -1. None shows all.
        """
        if self.labels is None:
            raise ValueError("the set has no labels")
        labels = self.labels if known is None else torch.where(known.to(self.labels.device), self.labels, -1)
        return self._copy((*self.fields, Field(labels, name="labels")))

    def splits(
        self,
        *,
        validation: float = 0.1,
        test: float = 0.2,
        seed: int = 0,
        stratify: Keys | str | None = None,
        groups: Keys | str | None = None,
        time: Keys | str | None = None,
        parts: Keys | str | None = None,
    ) -> Splits:
        """Split into training, validation and test sets: at random, unless one of the keys is given.

        A key has one value per observation, ``[N]``, or is the name of a column of a table.

        Args:
            validation: share of the set for validation.
            test: share of the set for testing.
            seed: seed of the permutation.
            stratify: classes, of which every part has its share.
            groups: groups, none of which is in two parts; the shares are then those of the groups. A table that has a
                column in the role "subject" or "group" is split by it unless another key is given.
            time: times: training comes first, testing last; equal times are never separated.
            parts: "train", "validation" or "test" for every observation.

        Raises:
            ValueError: for shares that leave nothing to train on, for two keys, and for keys that do not allow the
                split.
        """
        split = self._split(validation, test, stratify=stratify, groups=groups, time=time, parts=parts)
        return self._in_parts(*split.indices(len(self), seed))

    def folds(
        self,
        num_folds: int = 5,
        *,
        validation: float = 0.1,
        seed: int = 0,
        stratify: Keys | str | None = None,
        groups: Keys | str | None = None,
    ) -> list[Splits]:
        """Split for cross-validation: every observation is in the test part of one fold.

        Args:
            num_folds: number of folds.
            validation: share of the rest of each fold for validation, split off by the same keys.
            seed: seed of the permutations.
            stratify: classes, of which every fold has its share.
            groups: groups, none of which is in two parts; by default as for :meth:`splits`.
        """
        key = self._split(validation, 0.0, stratify=stratify, groups=groups)
        folds = []
        for outside, inside in fold_indices(len(self), num_folds, seed, key.stratify, key.groups):
            own = replace(
                key, stratify=None if key.stratify is None else key.stratify[outside],
                groups=None if key.groups is None else key.groups[outside],
            )  # fmt: skip
            train, held_out, _ = own.indices(len(outside), seed)
            rest = torch.from_numpy(outside)
            folds.append(self._in_parts(rest[train[:]], rest[held_out[:]], torch.from_numpy(inside)))
        return folds

    def _split(self, validation: float, test: float, **values: Any) -> Split:
        """Return how the set is split, its keys as arrays."""
        if all(value is None for value in values.values()):
            values["groups"] = self._own_groups()
        columns = self._key_columns() if any(isinstance(value, str) for value in values.values()) else {}
        arrays = {
            name: keys(name, value, len(self), columns, self.index if self.row_names is not None else None)
            for name, value in values.items()
        }
        return Split(validation, test, **arrays).checked()

    def _own_groups(self) -> Any:
        """Return the groups by which the set is split unless another way is named."""
        return None

    def _key_columns(self) -> Mapping[str, Any]:
        """Return the columns by which the set can be split, by name."""
        return {} if self.labels is None else {"label": self.labels}

    def fingerprint(self) -> str:
        """Return a checksum of the tensors, their shapes and dtypes, and a description of how they are decoded."""
        checksum = hashlib.sha256()
        scales = [number for field in self.fields for number in field.scale_parts()]
        tensors: list[Any] = [*self.tensors, *scales, self.rows]
        tensors += [] if self.weights is None else [self.weights]
        for tensor in tensors:
            shape, dtype = ((len(tensor),), torch.int64) if isinstance(tensor, Rows) else (tensor.shape, tensor.dtype)
            checksum.update(f"{tuple(shape)} {dtype} ".encode())
            for part in tensor.split(ROWS) if shape else (tensor,):
                content: Any = part.detach().cpu().reshape(-1).view(torch.uint8).numpy()
                checksum.update(content)
        decoding: list[Any] = [self.first.levels, type(self.first.binarise).__name__, str(self.dtype), len(self)]
        others = enumerate(self.fields[1:], 1)
        more = [(k, f.levels, type(f.binarise).__name__) for k, f in others if f.levels or f.binarise]
        return f"{checksum.hexdigest()[:16]} {decoding}" + (f" {more}" if more else "")

    def see_that_rounding_is_harmless(self) -> None:
        """Check that batches in a narrower dtype than the tensors' keep the spread of every column.

        Fewer than ten observations say nothing about a column's spread, and are not checked.

        Raises:
            ValueError: for a column that loses more than a thousandth of its standard deviation; the message names it.
        """
        for position, field in enumerate(self.fields if len(self) >= FEWEST else ()):
            dtype = field.batch_dtype(self.dtype)
            if not _is_narrower(dtype, field.tensor.dtype) or field.for_rounding(field.tensor[:1]) is None:
                continue
            rows: Any = (field.for_rounding(part) for part in self._rows_of(field.tensor))
            loss = lost_by_rounding(rows, dtype)
            if not bool((loss <= LARGEST_LOSS).all()):
                raise ValueError(self._said_of_loss(position, loss, dtype))

    def _rows_of(self, tensor: Tensor) -> Iterator[Tensor]:
        """Iterate over the rows of a tensor that are in this set, in parts."""
        values = tensor.detach()
        return (values[rows] for rows in self.rows.split(ROWS)) if self.mapped else iter(values.split(ROWS))

    def _said_of_loss(self, position: int, loss: Tensor, dtype: torch.dtype) -> str:
        number = int((~(loss <= LARGEST_LOSS)).nonzero()[0])
        which = "" if len(self.fields) == 1 else f" of {self.name_of(position)}"
        finite = bool(loss[number].isfinite())
        amount = f"{float(loss[number]):.2g} standard deviations" if finite else "all of its spread"
        return (
            f"column {self.fields[position].column(number)}{which} of the data loses {amount} by rounding to "
            f"{str(dtype).removeprefix('torch.')}, as its numbers are large beside their spread: standardise it, or "
            "fit with precision='float64'"
        )

    def name_of(self, position: int) -> str:
        """Return the name of a tensor for messages."""
        name = self.fields[position].name
        return f"tensor {position}" + (f" ({name})" if name else "")

    def _in_parts(self, *indices: Tensor | Rows) -> Splits:
        train, validation, test = (self._rows(part) for part in indices)
        return Splits(*train._alike(validation, test))

    def _alike(self, *others: "Data") -> list["Data"]:
        """Return this set and others on the scales of this one, so that held-out data do not influence them."""
        if not any(field.is_scaled for field in self.fields):
            return [self, *others]
        scaled = [field.scaled(self.rows if self.mapped else None) for field in self.fields]
        return [
            part._copy(tuple(f.scaled_as(own) for f, own in zip(part.fields, scaled, strict=True)))
            for part in (self, *others)
        ]

    def standardised(self) -> "Data":
        """Return the set with every column of the first tensor minus its mean, divided by its standard deviation.

        Mean and standard deviation are the set's own where it is used whole. All parts of :meth:`splits` use those of
        the training set, so that no held-out data influence the scale on which they are evaluated.

        Raises:
            ValueError: for a column that does not vary, and for a set that is binarised or mapped.
        """
        if self.first.binarise is not None or self.mapped:
            kind = "binarised" if self.first.binarise is not None else "mapped"
            raise ValueError(f"a set that is {kind} cannot be standardised: standardise the array before it is a set")
        return self.with_moments(self.own_moments())

    def own_moments(self) -> Moments:
        """Return the mean and the standard deviation of every column of the first tensor."""
        return self.first.own_moments()

    def with_moments(self, moments: Moments | None) -> "Data":
        """Return the set, its first tensor standardised by ``moments``: mean and standard deviation of each column."""
        return self._on([moments, *(field.scale for field in self.fields[1:])])

    def _on(self, scales: Sequence[Moments | None]) -> "Data":
        pairs = zip(self.fields, scales, strict=True)
        return self._copy(tuple(replace(f, moments=scale, standardise=scale is not None) for f, scale in pairs))

    def _rows(self, indices: Tensor | Rows | slice) -> "Data":
        if isinstance(indices, Rows):
            if self.mapped and isinstance(self.rows, Rows) and self.rows.is_whole:
                return self._stretch(indices)
            indices = indices[:]
        other = self._copy(self.fields if self.mapped else tuple(field.part(indices) for field in self.fields))
        other.labels = None if self.labels is None else self.labels[indices]
        other.factors = None if self.factors is None else self.factors[indices]
        other.weights = None if self.weights is None else self.weights[indices]
        other.numbers = None if self.numbers is None else self.numbers[indices]
        chosen = indices.cpu() if isinstance(indices, Tensor) else indices
        if self.mapped:
            other.origin = other.rows = self.rows[chosen]
        else:
            whole = torch.arange(len(self), device="cpu") if self.origin is None else self.origin
            other.origin = whole[chosen]
        return other

    def _stretch(self, rows: Rows) -> "Data":
        """Return a part of a whole mapped set without a list of its rows."""
        other = self._copy(self.fields)
        other.origin = other.rows = rows
        for name in ("labels", "factors", "weights", "numbers"):
            if (values := getattr(self, name)) is not None:
                setattr(other, name, values[rows[:].to(values.device)])
        return other

    def _copy(self, fields: tuple[Field, ...]) -> "Data":
        other = object.__new__(type(self) if self.mapped else Data)
        other.__dict__.update(self.__dict__, fields=fields)
        return other


def _fields(tensors: Sequence[Any], properties: dict[str, Any]) -> tuple[Field, ...]:
    """Return the fields of a set; ``properties`` are those of the first."""
    fields = [t if isinstance(t, Field) else Field(t) for t in tensors]
    if properties and fields and isinstance(tensors[0], Field):
        raise ValueError(
            f"{next(iter(properties))} was given beside a Field: pass it to the Field, "
            f"Field(x, {next(iter(properties))}=...)"
        )
    if fields:
        fields[0] = replace(fields[0], **properties)
    tensors = [as_tensor(field.tensor, f"tensor {position} of the data") for position, field in enumerate(fields)]
    check(tensors, [field.missing for field in fields])
    return tuple(field.checked(position) for position, field in enumerate(fields))


def exposure_field(values: Any) -> Field:
    """Return exposures ``[N]`` as a field, ``[N, 1]``.

    Raises:
        ValueError: for an exposure that is not above 0.
    """
    exposure = as_tensor(values, "exposure")
    wrong = ~(exposure > 0)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"an exposure must be above 0, got {float(exposure[row]):g} for observation {row} ({int(wrong.sum())} in "
            "all): drop these observations"
        )
    return Field(exposure.reshape(-1, 1).to(torch.get_default_dtype()), name=EXPOSURE, role="covariate")


def _is_narrower(dtype: torch.dtype, stored: torch.dtype) -> bool:
    """Return whether ``dtype`` may round values of ``stored``; half precision is chosen to round, and not counted."""
    if dtype not in (torch.float32, torch.float64):
        return False
    if stored.is_floating_point:
        return torch.finfo(dtype).eps > torch.finfo(stored).eps
    return stored != torch.bool and torch.iinfo(stored).max > 2 / torch.finfo(dtype).eps


def check_labels(labels: Any, count: int) -> Tensor:
    """Return labels as whole numbers ``[N]``.

    Raises:
        ValueError: for anything else, and for another number of them.
    """
    numbers = as_tensor(labels, "labels")
    if numbers.dim() != 1 or numbers.is_floating_point() or numbers.dtype == torch.bool:
        raise ValueError(
            f"labels must be whole numbers from 0, -1 where unknown, [{count}], got {numbers.dtype} of shape "
            f"{list(numbers.shape)}: give y.long()"
        )
    if len(numbers) != count:
        raise ValueError(f"there must be one label per observation: got {len(numbers)} labels for {count} data")
    return numbers


def check_label_names(label_names: Any, labels: Tensor | None) -> list[str]:
    """Return the names of labels as a list.

    Raises:
        ValueError: for fewer names than labels.
    """
    names = list_of_names("label_names", label_names)
    if labels is None or int(labels.max()) >= len(names):
        largest = "no labels" if labels is None else f"labels up to {int(labels.max())}"
        raise ValueError(f"there must be one name per label: got {len(names)} names for {largest}")
    return names


def _row_names(row_names: Any, count: int) -> np.ndarray:
    names = pd.Index(row_names)
    if len(names) != count:
        raise ValueError(f"there must be one row name per observation: got {len(names)} for {count} data")
    if names.hasnans or not names.is_unique:
        twice = names[names.duplicated()]
        what = f"several observations have the name {twice[0]!r}" if len(twice) else "a name is missing"
        raise ValueError(f"row names must name every observation once: {what}")
    return names.to_numpy()


def _factors(factors: Any, factor_names: Any, count: int) -> tuple[Tensor | None, list[str]]:
    names = None if factor_names is None else list_of_names("factor_names", factor_names)
    if factors is None:
        if names:
            raise ValueError(f"factor_names {names} were given without factors: give factors=, their levels [N, F]")
        return None, []
    levels = as_tensor(factors, "factors")
    if names is None:
        names = [f"factor{k}" for k in range(levels.shape[-1] if levels.dim() else 0)]
    if tuple(levels.shape) != (count, len(names)):
        raise ValueError(f"factors must be [{count}, {len(names)}], got {list(levels.shape)}")
    return levels, names
