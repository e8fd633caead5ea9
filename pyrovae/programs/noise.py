"""Random numbers of each observation's own: its answer does not depend on which others share its batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyrovae.internals.torch import TorchDispatchMode
from pyrovae.programs.streams import datum_seeds

_aten = torch.ops.aten
fresh: dict[Any, Callable[[Tensor, torch.Generator, Any], Tensor]] = {
    _aten.rand.default: lambda t, g, _: t.uniform_(0, 1, generator=g),
    _aten.rand_like.default: lambda t, g, _: t.uniform_(0, 1, generator=g),
    _aten.randn.default: lambda t, g, _: t.normal_(0, 1, generator=g),
    _aten.randn_like.default: lambda t, g, _: t.normal_(0, 1, generator=g),
    _aten.randint.default: lambda t, g, args: t.random_(0, args[0], generator=g),
    _aten.randint.low: lambda t, g, args: t.random_(args[0], args[1], generator=g),
}
_INTEGER = {_aten.randint.default, _aten.randint.low}


@dataclass(frozen=True)
class Draw:
    """A random operation that a program runs, described so that it can be drawn before the program runs.

    Attributes:
        func: the operation.
        args: its positional arguments; a tensor that is filled, or whose shape is taken, stands for that shape.
        kwargs: its keyword arguments.
        data_dim: dimension of the data plate at the site that is sampled; None outside of sites.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    data_dim: int | None = None

    @classmethod
    def of(cls, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], data_dim: int | None = None) -> "Draw":
        """Describe an operation.

        Raises:
            ValueError: when its distribution depends on the value of a tensor.
        """
        fills = func in fresh or func._schema.name.endswith("_")
        if not fills or any(isinstance(value, Tensor) for value in [*args[1:], *kwargs.values()]):
            raise ValueError(f"{func} draws from a distribution that is computed")
        first = args[0]
        template = torch.empty_like(first, device="meta") if isinstance(first, Tensor) else first
        device = {"device": first.device} if isinstance(first, Tensor) else {}
        return cls(func, (template, *args[1:]), {**device, **kwargs}, data_dim)

    def matches(self, func: Any, args: tuple[Any, ...]) -> bool:
        """Whether this is the same operation."""
        return self.func == func and first_shape(args) == first_shape(self.args)


class Given(TorchDispatchMode):
    """Gives a program numbers that were drawn before, one tensor for each of its random operations."""

    def __init__(self, draws: Sequence[Draw], noise: Sequence[Tensor]) -> None:
        super().__init__()
        self._next = zip(draws, noise, strict=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer a random operation with the next numbers; run any other as it is."""
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        expected, numbers = next(self._next, (None, None))
        if expected is None or not expected.matches(func, args):
            raise ValueError("the program draws other random numbers from call to call")
        return args[0].copy_(numbers) if func._schema.name.endswith("_") else numbers


class _Site(Messenger):
    """Knows which dimension the data have in what the current site draws."""

    data_dim: int | None = None

    def _pyro_sample(self, msg: Any) -> None:
        shape = getattr(msg["fn"], "batch_shape", ())  # of all plates: they have expanded it by now
        self.data_dim = len(shape) - 1 if shape else None

    def _pyro_post_sample(self, msg: Any) -> None:
        self.data_dim = None


class DatumNoise(TorchDispatchMode):
    """Draws each observation's rows of a random tensor from that observation's own generator.

    Inside this mode a batch holds each of its data ``repeats`` times in a row, so that the rows of observation ``i``
    are ``i * repeats`` to ``(i + 1) * repeats - 1``. A random operation whose result has a dimension as long as the
    batch is done observation by observation. One whose result has none (noise shared by all data) is left to torch's
    global generator. A sampler that loops until a whole batch is accepted (von Mises) runs until its slowest
    observation is accepted, so it still depends on the batch.

    Attributes:
        repeats: how often each observation is in the batch.
        outer: when not 0, the number of particles, which have a dimension of their own, left of all others; the batch
            then holds each observation once.
        record: when not None, a list that gets a :class:`Draw` for every random operation.

    Args:
        purpose: purpose of the draws, which names their stream.
        seed: seed of the call.
        indices: indices of this batch's data within the whole set.
        device: device of the generators.
    """

    def __init__(self, purpose: str, seed: int, indices: Sequence[int], device: torch.device) -> None:
        super().__init__()
        self.generators = [torch.Generator(device).manual_seed(s) for s in datum_seeds(purpose, seed, indices)]
        self.repeats = 1
        self.outer = 0
        self.record: list[Draw] | None = None
        self._site = _Site()

    def __enter__(self) -> "DatumNoise":
        """Begin to draw."""
        self._site.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        """Draw no longer."""
        super().__exit__(*raised)
        self._site.__exit__(*raised)

    def numbers(self, draw: Draw) -> Tensor:
        """Draw the numbers that a program will ask for."""
        self._site.data_dim = draw.data_dim
        layout = self._rows(first_shape(draw.args) or ())
        device = {"device": draw.kwargs.get("device")}
        if draw.func._schema.name.endswith("_"):
            args: tuple[Any, ...] = (self._laid_out(draw.args[0], **device), *draw.args[1:])
            kwargs = {key: value for key, value in draw.kwargs.items() if key != "device"}
        else:
            args, kwargs = draw.args, draw.kwargs
        out: Tensor = draw.func(*args, **kwargs) if layout is None else self._by_datum(draw.func, *layout, args, kwargs)
        return out

    def _laid_out(self, like: Tensor, device: Any) -> Tensor:
        """Return an empty tensor in which each observation's numbers are next to each other."""
        layout = self._rows(like.shape)
        if layout is None:
            return torch.empty(like.shape, dtype=like.dtype, device=device)
        sizes = list(like.shape)
        first = sizes.pop(layout[0])
        return torch.empty([first, *sizes], dtype=like.dtype, device=device).movedim(0, layout[0])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a random operation with the observations' generators; run any other as it is."""
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags and kwargs.get("generator") is None:
            shape = first_shape(args)
            layout = None if shape is None else self._rows(shape)
            if self.record is not None:
                self.record.append(Draw.of(func, args, kwargs, self._site.data_dim))
            if layout is not None:
                return self._by_datum(func, *layout, args, kwargs)
        return func(*args, **kwargs)

    def _rows(self, shape: Sequence[int]) -> tuple[int, int] | None:
        """Return the dimension that holds the data, and its number of entries per observation; None where none does.

        Distributions flatten what they pass to torch, so an observation may own several neighbouring entries of the
        first dimension.
        """
        if self.outer:
            dims = [d for d, n in enumerate(shape) if d > 0 and n == len(self.generators)]
            if dims and shape[0] == self.outer:
                return self._one_of(dims), 1
            if shape and shape[0] and shape[0] % (self.outer * len(self.generators)) == 0:
                raise ValueError(f"noise of shape {tuple(shape)} is not laid out by particle and observation")
            return None
        rows = self.repeats * len(self.generators)
        dims = [d for d, n in enumerate(shape) if n == rows]
        if dims:
            return self._one_of(dims), self.repeats
        return (0, shape[0] // len(self.generators)) if shape and shape[0] and shape[0] % rows == 0 else None

    def _one_of(self, dims: list[int]) -> int:
        """Return the dimension of the data among several of its length: others may be a plate or an event."""
        data_dim = self._site.data_dim
        return data_dim if data_dim in dims else dims[0]

    def _by_datum(self, func: Any, dim: int, count: int, args: Any, kwargs: Any) -> Any:
        fill = fresh.get(func)
        if fill is not None:
            out = _empty(func, args, kwargs)
            return self._fill(out, dim, count, lambda piece, g: fill(piece, g, args))
        if not any(argument.name == "generator" for argument in func._schema.arguments):
            return func(*args, **kwargs)
        if func._schema.name.endswith("_"):
            rest = args[1:]
            return self._fill(args[0], dim, count, lambda piece, g: func(piece, *rest, **{**kwargs, "generator": g}))
        size = next(a.shape[dim] for a in args if isinstance(a, Tensor))
        has_rows = [isinstance(a, Tensor) and a.dim() > dim and a.shape[dim] == size for a in args]
        pieces = []
        for i, generator in enumerate(self.generators):
            part = [a.narrow(dim, i * count, count) if rows else a for a, rows in zip(args, has_rows, strict=True)]
            pieces.append(func(*part, **{**kwargs, "generator": generator}))
        return torch.cat(pieces, dim)

    def _fill(self, out: Tensor, dim: int, count: int, draw: Callable[[Tensor, torch.Generator], Any]) -> Tensor:
        for i, generator in enumerate(self.generators):
            target = out.narrow(dim, i * count, count)
            if count == 1:
                target = target.select(dim, 0)
            if target.is_contiguous():
                draw(target, generator)
            else:  # a strided target would be filled in another order
                piece = torch.empty_like(target, memory_format=torch.contiguous_format)
                draw(piece, generator)
                target.copy_(piece)
        return out


def first_shape(args: Any) -> Sequence[int] | None:
    """Return the shape of what an operation will draw: that of its first tensor, or else the size that it is given."""
    for argument in args:
        if isinstance(argument, Tensor):
            return argument.shape
        if isinstance(argument, Sequence) and not isinstance(argument, str):
            return argument
    return None


def _empty(func: Any, args: Any, kwargs: Any) -> Tensor:
    if isinstance(args[0], Tensor):
        options = {key: value for key, value in kwargs.items() if value is not None and key != "layout"}
        return torch.empty_like(args[0], **{**options, "memory_format": torch.contiguous_format})
    size = next(a for a in args if isinstance(a, Sequence))
    integer = {"dtype": torch.int64} if func in _INTEGER and kwargs.get("dtype") is None else {}
    return torch.empty(size, **{**kwargs, **integer})
