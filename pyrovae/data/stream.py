"""A ``torch.utils.data.Dataset`` read item by item, for data that are made or decoded when they are used."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from pyrovae.common.rows import Rows
from pyrovae.data.data import Data, check_label_names, check_labels


class Stream(Data):
    """A torch ``Dataset`` with random access; worker processes load its batches ahead of their use.

    Data that fit in memory are faster as tensors.

    Args:
        dataset: dataset whose items ``dataset[i]`` are tensors, or sequences or dicts of tensors, arrays or numbers.
        fields: members of the items that make up the batch, by position (for pictures with a label, only 0), or by name
            where the items are dicts; None takes all, in the item's order.
        num_workers: number of processes that load; 0 loads in this process.
        image_shape: (channels, rows, columns) of the first field, whose batches are flat; None leaves it as it is.
        labels: labels of the items, ``[N]``, numbered from 0, -1 where unknown; None takes the dataset's ``targets``,
            which torchvision's have.
        label_names: names of the labels; None takes the dataset's ``classes``, if it has labels.

    Raises:
        ValueError: for a dataset without random access or without items, for fields that the items do not have, and for
            fields that cannot become a tensor.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> data = Stream(TensorDataset(torch.rand(10, 3), torch.arange(10)), fields=(0,))
        >>> len(data), [tuple(t.shape) for t in data.batch(torch.tensor([1, 4]))]
        (10, [(2, 3)])
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        fields: Sequence[int] | Sequence[str] | None = None,
        num_workers: int = 0,
        image_shape: tuple[int, int, int] | None = None,
        labels: Any = None,
        label_names: Sequence[str] | None = None,
    ) -> None:
        if isinstance(dataset, IterableDataset) or not (
            hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
        ):
            raise ValueError(
                f"a {type(dataset).__name__} has no random access, so no epoch can be shuffled or resumed: give it "
                "__getitem__ and __len__"
            )
        if not len(dataset):
            raise ValueError("the data set is empty: at least one observation is needed")
        self.dataset, self.num_workers, self._flat = dataset, num_workers, image_shape is not None
        self._names = _chosen(dataset[0], fields)
        super().__init__(*self._fetch(torch.arange(1, device="cpu")), image_shape=image_shape, mapped=True)
        self.rows = Rows(len(dataset))
        self.labels, self.label_names = _labels(dataset, labels, label_names)

    def stream(self, parts: Iterable[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """Iterate over the batches at given indices, loaded ahead of their use."""
        ahead, parts = itertools.tee(parts)
        rows: Any = (self.rows[indices.cpu()].tolist() for indices in ahead)
        loader = DataLoader(
            self.dataset,
            batch_sampler=rows,
            num_workers=self.num_workers,
            collate_fn=self._collate,
            pin_memory=self.place.type == "cuda",
            generator=torch.Generator("cpu"),  # of the workers' seeds; uses up no random numbers of the caller
        )
        with torch.device("cpu"):  # the loader's own numbers are on the CPU, whatever the caller's default device is
            batches = iter(loader)
        for indices, batch in zip(parts, batches, strict=True):
            tensors = (t.to(self.place, non_blocking=True) for t in batch)
            yield (*self._decoded(tensors), *self._numbered(indices))

    def fingerprint(self) -> str:
        """Return a checksum of a few items, and their number."""
        few = self.rows[torch.arange(0, len(self.rows), max(1, len(self.rows) // 16), device="cpu")[:16]]
        return f"{Data(*self._fetch(few)).fingerprint()} of {len(self)}"

    def _rows_of(self, tensor: Tensor) -> Iterator[Tensor]:
        return iter((tensor,))  # the one row in memory; others would have to be loaded

    def _fetch(self, rows: Tensor) -> list[Tensor]:
        return self._collate([self.dataset[i] for i in rows.tolist()])

    def _collate(self, items: list[Any]) -> list[Tensor]:
        first, *others = (default_collate([_members(item)[name] for item in items]) for name in self._names)
        return [first.flatten(1) if self._flat else first, *others]


def _labels(dataset: Any, labels: Any, label_names: Any) -> tuple[Tensor | None, list[str] | None]:
    """Return the labels of a dataset's items and their names: those that were given, or else the dataset's own."""
    if labels is None:
        targets = getattr(dataset, "targets", None)
        try:
            own = torch.as_tensor(targets, device="cpu") if targets is not None else None
        except (TypeError, ValueError, RuntimeError):  # no numbers
            own = None
        labels = own if own is not None and own.dim() == 1 and not own.is_floating_point() else None
        classes = getattr(dataset, "classes", None)
        label_names = list(map(str, classes)) if labels is not None and label_names is None and classes else label_names
    checked = None if labels is None else check_labels(labels, len(dataset))
    return checked, None if label_names is None else check_label_names(label_names, checked)


def _members(item: Any) -> Any:
    """Return the members of an item, by name or by position."""
    return item if isinstance(item, Mapping | tuple | list) else (item,)


def _chosen(item: Any, fields: Sequence[int] | Sequence[str] | None) -> list[Any]:
    """Return the names or positions of an item's fields that make up a batch.

    Raises:
        ValueError: for a field that the item does not have, or that cannot become a tensor.
    """
    members = _members(item)
    names = list(members) if isinstance(members, Mapping) else list(range(len(members)))
    selection = names if fields is None else list(fields)
    for name in selection:
        inside = name in names or (isinstance(name, int) and -len(names) <= name < 0 and not isinstance(item, Mapping))
        if not inside:
            raise ValueError(f"fields={fields!r}: the dataset's items have no field {name!r}, but {_listed(names)}")
        value = members[name]
        if not isinstance(value, Tensor | np.ndarray | np.number | np.bool_ | int | float):
            raise ValueError(
                f"field {name!r} of the dataset's items is a {type(value).__name__}, which makes no tensor: choose "
                f"others of {_listed(names)} by fields=, or let the dataset return a tensor, an array or a number"
            )
    if not selection:
        raise ValueError(f"fields={fields!r} takes nothing of the dataset's items, which have {_listed(names)}")
    return selection


def _listed(names: list[Any]) -> str:
    return ", ".join(map(repr, names)) or "none"
