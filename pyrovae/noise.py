"""Random numbers that belong to the datum: its answer does not depend on which others share its batch."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_FROM_SIZE: dict[Any, Callable[..., Tensor]] = {
    torch.ops.aten.rand.default: lambda t, g: t.uniform_(0, 1, generator=g),
    torch.ops.aten.randn.default: lambda t, g: t.normal_(0, 1, generator=g),
}
_SEEDS = 2**32  # distinct seeds of torch's CPU generator


def datum_seed(seed: int, index: int) -> int:
    """Return the seed of one datum's stream: different for every datum of a call, unrelated between calls' seeds."""
    mixed = (seed * 0x9E3779B97F4A7C15 + 0xD1B54A32D192ED03) % 2**64
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) % 2**64
    return ((mixed >> 32) + index) % _SEEDS


class DatumNoise(TorchDispatchMode):
    """Draws every random tensor that has a row per datum from that datum's own generator.

    Inside this mode a batch holds each of its data ``repeats`` times in a row, so that the rows of datum ``i`` are
    ``i * repeats`` to ``(i + 1) * repeats - 1``. A random operation whose result has a dimension of that many rows is
    done datum by datum; one that has none (noise shared by all data) is left to torch's global generator.

    Args:
        seed: of the call.
        indices: of the data of this batch within the whole set.
        device: of the generators.
    """

    def __init__(self, seed: int, indices: Sequence[int], device: torch.device) -> None:
        super().__init__()
        self.generators = [torch.Generator(device).manual_seed(datum_seed(seed, i)) for i in indices]
        self.repeats = 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Send a random operation to the data's generators; pass any other on."""
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags and kwargs.get("generator") is None:
            shape = args[0].shape if isinstance(args[0], Tensor) else args[0]
            rows = self.repeats * len(self.generators)
            dim = next((d for d, n in enumerate(shape) if n == rows), None) if isinstance(shape, Sequence) else None
            if dim is not None:
                return self._by_datum(func, dim, args, kwargs)
        return func(*args, **kwargs)

    def _by_datum(self, func: Any, dim: int, args: Any, kwargs: Any) -> Any:
        if func in _FROM_SIZE:
            out = torch.empty(args[0], **kwargs)
            return self._fill(out, dim, lambda piece, g: _FROM_SIZE[func](piece, g))
        takes_generator = any(argument.name == "generator" for argument in func._schema.arguments)
        if not takes_generator:
            return func(*args, **kwargs)
        if func._schema.name.endswith("_"):
            return self._fill(args[0], dim, lambda piece, g: func(piece, *args[1:], **{**kwargs, "generator": g}))
        rows = args[0].shape[dim]
        pieces = []
        for i, generator in enumerate(self.generators):
            part = [
                a.narrow(dim, i * self.repeats, self.repeats)
                if isinstance(a, Tensor) and a.dim() > dim and a.shape[dim] == rows
                else a
                for a in args
            ]
            pieces.append(func(*part, **{**kwargs, "generator": generator}))
        return torch.cat(pieces, dim)

    def _fill(self, out: Tensor, dim: int, draw: Callable[[Tensor, torch.Generator], Any]) -> Tensor:
        for i, generator in enumerate(self.generators):
            target = out.narrow(dim, i * self.repeats, self.repeats)
            if target.is_contiguous():
                draw(target, generator)
            else:  # a strided target would be filled in another order
                piece = torch.empty_like(target, memory_format=torch.contiguous_format)
                draw(piece, generator)
                target.copy_(piece)
        return out
