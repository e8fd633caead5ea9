"""Which observations are for training, validation and testing: at random, by strata, groups or time, or as given."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
import torch
from pandas.api.types import is_string_dtype
from torch import Tensor

from pyrovae.common.checks import at_least
from pyrovae.common.rows import Rows, shuffled
from pyrovae.programs.isolation import importing
from pyrovae.tables.dates import as_times

Keys = Sequence[Any] | np.ndarray | Tensor | pd.Series
Indices = Tensor | Rows
PARTS = {
    "train": ("train", "training"), "validation": ("validation", "valid", "val", "dev"), "test": ("test", "testing"),
}  # fmt: skip


@dataclass(frozen=True)
class Split:
    """How a set is split; every key has one value per observation, ``[N]``.

    Attributes:
        validation: share for validation.
        test: share for testing.
        stratify: classes of which every part has its share, as far as whole numbers allow.
        groups: groups, none of which is in two parts; the shares are then those of the groups.
        time: times: training comes first, testing last; equal times are never separated.
        parts: "train", "validation" or "test" for every observation.
    """

    validation: float = 0.1
    test: float = 0.2
    stratify: np.ndarray | None = None
    groups: np.ndarray | None = None
    time: np.ndarray | None = None
    parts: np.ndarray | None = None

    def checked(self) -> "Split":
        """Return the split after a check of its arguments.

        Raises:
            ValueError: for shares that leave nothing to train on, and for two ways to split at once.
        """
        if not (is_share(self.validation) and is_share(self.test)):
            raise ValueError(
                f"shares in [0, 1) were expected, got validation={self.validation!r} and test={self.test!r}"
            )
        ways = [name for name in ("stratify", "groups", "time", "parts") if getattr(self, name) is not None]
        if len(ways) > 1:
            raise ValueError(f"a set is split in one way, got {' and '.join(ways)}")
        return self

    def indices(self, count: int, seed: int) -> tuple[Indices, Indices, Indices]:
        """Return the numbers of the observations for training, validation and testing.

        Raises:
            ValueError: where a part for training would be empty, or the keys do not allow the split.
        """
        if self.parts is not None:
            return _as_given(self.parts)
        num_test, num_validation = round(self.test * count), round(self.validation * count)
        if not 0 < count - num_test - num_validation:
            raise ValueError(
                f"shares of at least 0 and below 1 in sum were expected, got {self.validation} and {self.test}, which "
                f"leave nothing of {count} data to train on"
            )
        if self.time is not None:
            return self._by_time(self.time)
        if self.groups is not None or self.stratify is not None:
            return self._drawn(count, seed)
        order = shuffled(count, torch.Generator().manual_seed(seed))
        sizes = [count - num_test - num_validation, num_validation, num_test]
        train, validation, test = order.parts(*sizes) if isinstance(order, Rows) else order.split(sizes)
        return train, validation, test

    def _by_time(self, time: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        order = np.argsort(time, kind="stable")
        ordered = time[order]
        last = len(order) - round(self.test * len(order))
        cuts = [last - round(self.validation * len(order)), last]
        cuts = [int(np.searchsorted(ordered, ordered[cut])) if cut < len(order) else cut for cut in cuts]
        if not cuts[0]:
            raise ValueError("the earliest times take up more than the part for training: give smaller shares")
        parts = np.split(order, cuts)
        for name, size, part in (("validation", self.validation, parts[1]), ("testing", self.test, parts[2])):
            if round(size * len(order)) and not len(part):
                raise ValueError(
                    f"equal times leave nothing for {name}, as they are never separated: give shares that end between "
                    "two times, or validation=0"
                )
        return _tensors(*parts)

    def _drawn(self, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        test = self._part(np.arange(count), self.test, seed)
        rest = np.setdiff1d(np.arange(count), test)
        validation = self._part(rest, self.validation / (1 - self.test), seed)
        train = np.random.default_rng(seed).permutation(np.setdiff1d(rest, validation))
        return _tensors(train, validation, test)

    def _part(self, rest: np.ndarray, size: float, seed: int) -> np.ndarray:
        """Draw a share of some observations, by groups or by strata."""
        if not size:
            return rest[:0]
        with importing():
            from sklearn.model_selection import GroupShuffleSplit, StratifiedShuffleSplit

        keys: Any = self.groups if self.groups is not None else self.stratify
        what = "groups" if self.groups is not None else "stratify"
        maker: Any = GroupShuffleSplit if self.groups is not None else StratifiedShuffleSplit
        arguments = {"groups": keys[rest]} if self.groups is not None else {"y": keys[rest]}
        try:
            _, taken = next(maker(n_splits=1, test_size=size, random_state=seed).split(rest, **arguments))
        except ValueError as error:
            raise ValueError(f"the set cannot be split by {what}: {error}") from None
        return rest[taken]


def is_share(value: Any) -> bool:
    """Return whether ``value`` is a number in [0, 1)."""
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) < 1


def fold_indices(
    count: int, num_folds: int, seed: int, stratify: np.ndarray | None, groups: np.ndarray | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Iterate over the folds of a cross-validation: the numbers of the observations outside and inside each.

    Raises:
        ValueError: for fewer than two folds, or more than there are observations, groups, or members of a class.
    """
    if at_least("num_folds", num_folds, 2) > count:
        raise ValueError(f"num_folds must be at most the number of observations, {count}, got {num_folds}")
    if stratify is not None and groups is not None:
        raise ValueError("a set is split in one way, got stratify and groups")
    with importing():
        from sklearn.model_selection import GroupKFold, KFold, StratifiedKFold

    options = {"n_splits": num_folds, "shuffle": True, "random_state": seed}
    maker: Any = KFold if stratify is None and groups is None else StratifiedKFold if groups is None else GroupKFold
    try:
        yield from maker(**options).split(np.arange(count), stratify, groups)
    except ValueError as error:
        raise ValueError(f"the set cannot be split into {num_folds} folds: {error}") from None


def keys(
    name: str, values: Any, count: int, columns: Mapping[str, Any], names: np.ndarray | None = None
) -> np.ndarray | None:
    """Return keys as an array ``[N]``, of which a name names a column; None stays None.

    A Series whose index holds the rows' names (their numbers, where they have none) is taken by name, and anything else
    by position.

    Raises:
        ValueError: for a name of no column, keys of another length, and missing ones.
    """
    if values is None:
        return None
    own_index = isinstance(values, pd.Series)
    if isinstance(values, str):
        if values not in columns:
            known = ", ".join(map(str, columns)) or "none"
            raise ValueError(f"{name} names {values!r}, which is no column of the set; it has {known}")
        values = columns[values]
    array = pd.Series(values.cpu().numpy() if isinstance(values, Tensor) else values)
    if own_index and array.index.is_unique:
        present: Any = pd.RangeIndex(count) if names is None else names
        if set(array.index) >= set(present):  # a key by the rows' names or numbers, in any order
            array = array.reindex(present)
    if len(array) != count:
        raise ValueError(f"{name} must have one value per observation, {count}, got {len(array)}")
    if array.isna().any():
        raise ValueError(
            f"{name} lacks a value for {int(array.isna().sum())} of {count} observations, first for number "
            f"{int(array.isna().to_numpy().argmax())}: leave these out, or give them a value of their own"
        )
    if name == "time" and isinstance(array.dtype, pd.CategoricalDtype):
        if not array.dtype.ordered:
            raise ValueError("time holds categories without an order: give an ordered column, numbers or dates")
        return array.cat.codes.to_numpy()
    return as_times(array).to_numpy() if name == "time" and is_string_dtype(array.dtype) else array.to_numpy()


def _as_given(parts: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    names = {word: part for part, words in PARTS.items() for word in words}
    words = [str(part).lower() for part in parts]
    strange = next((word for word in words if word not in names), None)
    if strange is not None:
        raise ValueError(f"parts must be 'train', 'validation' or 'test', got {strange!r}")
    found = {part: [k for k, word in enumerate(words) if names[word] == part] for part in PARTS}
    if not found["train"]:
        raise ValueError("parts names no observation 'train'")
    return _tensors(*(np.array(found[part], np.int64) for part in PARTS))


def _tensors(*parts: np.ndarray) -> Any:
    return tuple(torch.from_numpy(np.asarray(part, np.int64)) for part in parts)
