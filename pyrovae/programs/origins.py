"""Where in the batch the cells of an observed value come from, whatever a program did to get at them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrovae.internals.torch import TorchDispatchMode, tree_leaves
from pyrovae.programs.types import Batch

_aten = torch.ops.aten
_MOVES = {  # operations whose result holds cells of their first argument, moved
    _aten.clone.default, _aten.contiguous.default, _aten.index.Tensor, _aten.index_select.default,
    _aten.gather.default, _aten.take.default, _aten.flip.default, _aten.roll.default, _aten.repeat.default,
    _aten.masked_fill.Scalar, _aten.nan_to_num.default, _aten.constant_pad_nd.default, _aten._unsafe_view.default,
    _aten.lift_fresh.default, _aten.detach.default,
}  # fmt: skip
_INDEXED = {_aten.index.Tensor, _aten.index_select.default, _aten.gather.default, _aten.take.default}
_MASKED = {_aten.where.self, _aten.masked_fill.Scalar}
_REPLACE = {*_MASKED, _aten.nan_to_num.default, _aten.constant_pad_nd.default, _aten._to_copy.default}
_JOINS = {_aten.cat.default, _aten.stack.default}
_FRESH = {  # operations whose result has the shape of a tensor, and nothing of its cells
    _aten.zeros_like.default, _aten.ones_like.default, _aten.full_like.default, _aten.empty_like.default,
    _aten.rand_like.default, _aten.randn_like.default, _aten.new_zeros.default, _aten.new_ones.default,
    _aten.new_full.default, _aten.new_empty.default, _aten.new_empty_strided.default,
}  # fmt: skip
_NOWHERE = -1


@dataclass(frozen=True)
class Reading:
    """How an observed site reads the batch: a tensor of it as it is, or some of its cells.

    Attributes:
        source: position of the tensor in the batch.
        columns: columns in a row of that tensor, laid out flat, in the shape that the site has for one observation;
            None for the whole tensor as it is. A cell that is not from the batch (padding) has column -1.
        data_dim: dimension of the data in what the site observes, counted from the right.
        dtype: dtype of what the site observes.
        exact: whether the cells are only moved; if not, they may also be cast, filled or replaced by a mask.
    """

    source: int
    columns: Tensor | None
    data_dim: int
    dtype: torch.dtype
    exact: bool = True

    def of(self, batch: Batch) -> Tensor:
        """Return what the site observes of a batch, as far as it comes from the batch."""
        tensor = batch[self.source]
        if self.columns is None:
            return tensor
        columns = self.columns.to(tensor.device)
        cells = tensor.reshape(len(tensor), -1)[:, columns.clamp(min=0)].to(self.dtype)
        return cells.movedim(0, self.data_dim + cells.dim())

    def into(self, batch: Batch, value: Tensor) -> Batch:
        """Return the batch with a value in place of what the site observes."""
        tensor = batch[self.source]
        if self.columns is None:
            return (*batch[: self.source], kept_whole(value, tensor.dtype), *batch[self.source + 1 :])
        columns = self.columns.to(tensor.device)
        shape = (len(tensor), *columns.shape)
        rows = value.movedim(value.dim() + self.data_dim, 0).expand(shape)
        kind = kept_whole(rows, tensor.dtype).dtype
        flat = tensor.to(kind).reshape(len(tensor), -1).clone()
        flat[:, columns[columns >= 0]] = rows[:, columns >= 0].to(kind)
        return (*batch[: self.source], flat.reshape(tensor.shape), *batch[self.source + 1 :])

    def inside(self, value: Tensor) -> Tensor:
        """Return which cells of a value at the site are from the batch, in the value's shape."""
        if self.columns is None:
            return torch.ones_like(value, dtype=torch.bool)
        rows = (self.columns >= 0).to(value.device).unsqueeze(0)
        return rows.movedim(0, self.data_dim + rows.dim()).expand(value.shape)


def kept_whole(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a value in another dtype, or as it is where a dtype of whole numbers would change it."""
    cast = value.to(dtype)
    return cast if dtype.is_floating_point or bool((cast == value).all()) else value


class Origins(TorchDispatchMode):
    """Follows the cells of a batch through what a program does inside the block.

    Slices, reshapes, indices, filling masks, casts, stacks and similar operations move cells. Every other operation
    computes something from them.

    Args:
        batch: tensors that the program is given.
    """

    def __init__(self, batch: Batch) -> None:
        super().__init__()
        self._batch = batch
        self._starts: list[int] = []
        self._cells: dict[int, tuple[Tensor, Tensor]] = {}  # by the id of a tensor, kept here so that no id is reused
        self._inexact: set[int] = set()  # ids of those whose cells may have been replaced
        self._results: dict[int, tuple[Tensor, str, int]] = {}
        size = 0
        for tensor in batch:
            self._starts.append(size)
            cells = torch.arange(size, size + tensor.numel(), device=tensor.device).reshape(tensor.shape)
            self._cells.setdefault(id(tensor), (tensor, cells))
            size += tensor.numel()
        self._used = torch.zeros(size, dtype=torch.bool, device="cpu")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and note where it moves the cells."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if func not in _FRESH and any(id(t) in self._cells or id(t) in self._results for t in inputs):
            self._note(func, args, kwargs, inputs, out)
        return out

    def reading(self, value: Tensor, data_dim: int) -> Reading | str:
        """Return how a value that a program observes reads the batch, or why it does not, in a few words.

        Args:
            value: value that was observed.
            data_dim: dimension of the data in the value, counted from the right.
        """
        if id(value) in self._results:
            _, operation, source = self._results[id(value)]
            return f"is a function ({operation}) of tensor {source} of the batch"
        if id(value) not in self._cells:
            return "is not a tensor of the batch"
        cells = self._cells[id(value)][1].cpu()
        if value.dim() < -data_dim or not bool((cells >= 0).any()):
            return "is not a tensor of the batch"
        return self._regular(cells.movedim(value.dim() + data_dim, 0), value, data_dim)

    def function_of(self, value: Tensor) -> int | None:
        """Return the position in the batch of the tensor that a value was computed from; None if from none."""
        return self._results[id(value)][2] if id(value) in self._results else None

    def is_used(self, reading: Reading) -> bool:
        """Whether the program also computed with what a site observes."""
        tensor, start = self._batch[reading.source], self._starts[reading.source]
        rows = self._used[start : start + tensor.numel()].reshape(len(tensor), -1)
        columns = slice(None) if reading.columns is None else reading.columns[reading.columns >= 0]
        return bool(rows[:, columns].any())

    def _regular(self, cells: Tensor, value: Tensor, data_dim: int) -> Reading | str:
        """Return the reading of cells ``[N, ...]`` that are the same columns in every row, or why there is none."""
        if len(cells) != len(self._batch[0]):
            return "has another length than the batch"
        first = cells[cells >= 0].min()
        source = self._source(int(first))
        tensor, start = self._batch[source], self._starts[source]
        width, count = tensor[0].numel(), len(tensor)
        rows = torch.arange(count, device="cpu").reshape(-1, *[1] * (cells.dim() - 1)) * width
        columns = torch.where(cells >= 0, cells - start - rows, _NOWHERE)
        inside = columns[columns != _NOWHERE]
        same = len(cells) == count and bool((columns == columns[:1]).all())
        if not same or int(inside.min()) < 0 or int(inside.max()) >= width:
            return "reads other cells of the batch for one observation than for another"
        if len(inside := columns[0][columns[0] >= 0].unique()) < int((columns[0] >= 0).sum()):
            return "reads a cell of the batch twice"
        whole = tuple(value.shape) == tuple(tensor.shape) and bool(
            (columns[0].flatten() == torch.arange(width, device="cpu")).all()
        )
        kept = None if whole and value.dtype == tensor.dtype else columns[0]
        return Reading(source, kept, data_dim, value.dtype, id(value) not in self._inexact)

    def _source(self, cell: int) -> int:
        """Return the position of the tensor that a cell belongs to."""
        return max(k for k, start in enumerate(self._starts) if start <= cell)

    def _note(self, func: Any, args: Any, kwargs: Any, inputs: list[Tensor], out: Any) -> None:
        results = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        numbers = self._moved(func, args, kwargs) if self._moves(func, args) else None
        if numbers is None:
            self._compute(func, inputs, results)
            return
        if func in _MASKED:
            self._use(tensor for tensor in (args[0] if func is _aten.where.self else args[1],))
        for tensor, cells in zip(results, numbers, strict=True):
            self._cells.setdefault(id(tensor), (tensor, cells))
            if func in _REPLACE or any(id(t) in self._inexact for t in inputs):
                self._inexact.add(id(tensor))

    def _moved(self, func: Any, args: Any, kwargs: Any) -> list[Tensor] | None:
        """Return the cells' numbers moved as the cells are; None for an operation that numbers do not take."""
        try:
            numbers = func(*self._as_cells(func, args), **{k: v for k, v in kwargs.items() if k != "dtype"})
        except (RuntimeError, NotImplementedError):  # view_as_complex, say
            return None
        return list(tree_leaves(numbers))

    def _moves(self, func: Any, args: Any) -> bool:
        if func in _JOINS:
            return any(id(t) in self._cells for t in args[0])
        if func is _aten.where.self:  # which of two cells it is may depend on the batch
            chosen = all(map(self._is_of_batch, args))
            return not chosen and any(id(t) in self._cells for t in args[1:])
        first = args[0] if args else None
        moving = func.is_view or func in _MOVES or func is _aten._to_copy.default
        if not moving or not isinstance(first, Tensor) or id(first) not in self._cells:
            return False
        return func not in _INDEXED or not any(map(self._is_of_batch, tree_leaves(args[1:])))

    def _is_of_batch(self, value: Any) -> bool:
        return isinstance(value, Tensor) and (id(value) in self._cells or id(value) in self._results)

    def _as_cells(self, func: Any, args: Any) -> Any:
        """Return the arguments of an operation that moves cells, with each cell replaced by its number.

        A mask that fills hides cells, whichever they are in this batch, and moves none.
        """
        if func in _JOINS:
            return ([self._numbers(t) for t in args[0]], *args[1:])
        if func is _aten.where.self:
            condition, one, other = args
            if self._is_of_batch(one) and not self._is_of_batch(other):
                condition = torch.ones_like(condition, dtype=torch.bool)
            elif self._is_of_batch(other) and not self._is_of_batch(one):
                condition = torch.zeros_like(condition, dtype=torch.bool)
            return condition, self._numbers(one), self._numbers(other)
        if func is _aten.constant_pad_nd.default:
            return (self._numbers(args[0]), args[1], _NOWHERE)
        if func is _aten.masked_fill.Scalar:
            return self._numbers(args[0]), torch.zeros_like(args[1]), _NOWHERE
        return (self._numbers(args[0]), *(() if func is _aten.nan_to_num.default else args[1:]))

    def _numbers(self, value: Any) -> Any:
        """Return the numbers of a tensor's cells; those of a tensor that is not of the batch are nowhere."""
        if not isinstance(value, Tensor):
            return value
        kept = self._cells.get(id(value))
        return torch.full_like(value, _NOWHERE, dtype=torch.int64) if kept is None else kept[1]

    def _use(self, tensors: Iterable[Tensor]) -> int:
        """Note that the program computes with tensors; return the position in the batch where the last is from."""
        source = 0
        for tensor in tensors:
            if id(tensor) in self._cells:
                cells = self._cells[id(tensor)][1].cpu()
                cells = cells[cells >= 0]
                self._used[cells] = True
                source = self._source(int(cells[0])) if len(cells) else source
            elif id(tensor) in self._results:
                source = self._results[id(tensor)][2]
        return source

    def _compute(self, func: Any, inputs: list[Tensor], results: list[Tensor]) -> None:
        """Note that something was computed with cells of the batch."""
        source = self._use(inputs)
        if func._schema.is_mutable:  # all tensors that share the memory are changed, too
            memory = {tensor.untyped_storage().data_ptr() for tensor in results}
            results = results + [t for t, _ in self._cells.values() if t.untyped_storage().data_ptr() in memory]
        for tensor in results:
            self._results[id(tensor)] = (tensor, str(func._schema.name).removeprefix("aten::"), source)
