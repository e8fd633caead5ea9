"""The processes that fit together: each takes its share of every batch, and all add up their gradients."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyrovae.noise import first_shape, fresh
from pyrovae.streams import generator

TIMEOUT = timedelta(minutes=5)  # for a process that hangs; one that dies is noticed at once


class LostProcess(RuntimeError):
    """Another process of the group has died or hangs."""


class Group:
    """The default group of ``torch.distributed`` where it is initialised, else this process alone.

    Attributes:
        rank: of this process.
        size: number of processes.
        agreed: what :meth:`tell` was told by any process, as of the last sum: (save, stop).
    """

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
        self.agreed = (False, False)
        self._told = (False, False)

    def share(self, total: int) -> "Share":
        """Return this process's share of a batch of ``total`` data."""
        sizes = [total // self.size + (rank < total % self.size) for rank in range(self.size)]
        return Share(sum(sizes[: self.rank]), sizes[self.rank], total)

    def tell(self, save: bool, stop: bool) -> None:
        """Tell the others, with the next sum, that it is time to save, or to stop."""
        self._told = (save and self.rank == 0, stop)

    def sum(self, row: Tensor, grads: Sequence[Tensor | None], share: "Share", whole: bool) -> list[Tensor]:
        """Return the batch's row and gradients from those of all shares.

        Args:
            row: what was measured on this share, means over its data; the gradient's norm last.
            grads: of this share's loss.
            share: of this process.
            whole: whether each share's loss stands for all data, rather than for its own.
        """
        part = share.size / share.total
        weight = part if whole else float(share.size > 0)
        given = [torch.zeros_like(row[0]) if g is None else g for g in grads]
        told = torch.tensor([float(flag) for flag in self._told], dtype=row.dtype, device=row.device)
        scaled = [told, row * part, *(g.flatten() * weight for g in given)]
        if not share.size:
            scaled = [told, *(torch.zeros_like(t) for t in scaled[1:])]
        flat = torch.cat([t.to(row.dtype) for t in scaled])
        self._all_reduce(flat)
        told, row, *summed = flat.split([t.numel() for t in scaled])
        self.agreed = (bool(told[0] > 0), bool(told[1] > 0))
        found = [s.view_as(g).to(g.dtype) for s, g in zip(summed, given, strict=True)]
        row = row.clone()
        row[-1] = torch.nn.utils.get_total_norm(found)
        return [row, *found]

    def same(self, tensors: Sequence[Tensor]) -> None:
        """Give every process the tensors of the first."""
        if self.size > 1:
            for tensor in tensors:
                _collective(lambda t=tensor: dist.broadcast(t, 0))

    def _all_reduce(self, flat: Tensor) -> None:
        _collective(lambda: dist.all_reduce(flat))


def _collective(act: Any) -> None:
    try:
        act()
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise LostProcess(f"another process of the group has died or hangs ({reason})") from error


@contextmanager
def launched() -> Iterator[int]:
    """Join the group of a process that ``torchrun`` started, inside the block; gives this process's rank, else 0.

    NCCL on CUDA, each process on the device of its local rank; gloo on the CPU.
    """
    if not (dist.is_available() and dist.is_torchelastic_launched()) or dist.is_initialized():
        yield Group().rank
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()


def wait_for_all() -> None:
    """Wait until every process of the group is here."""
    if Group().size > 1:
        _collective(dist.barrier)


@dataclass(frozen=True)
class Share:
    """The part of a batch that one process holds: ``size`` data from ``start``, of ``total``."""

    start: int
    size: int
    total: int

    def of(self, indices: Tensor) -> Tensor:
        """Return this share of a batch's indices; the first of them where the share is empty, to have something."""
        return indices[self.start : self.start + self.size] if self.size else indices[:1]


class SharedNoise(TorchDispatchMode):
    """Draws for the whole batch, and keeps this share's rows: a datum gets the noise that it would get in one process.

    What cannot be drawn so, from a distribution that is computed, comes from a generator of the process's own.

    Args:
        share: of the process.
        seed: of the process's own generator: other in every process and step.
    """

    def __init__(self, share: Share, seed: int) -> None:
        super().__init__()
        self.share, self.seed = share, seed
        self.own: torch.Generator | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Enlarge a random operation; pass any other on."""
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        shape, rows = first_shape(args), max(self.share.size, 1)
        dim = next((d for d, n in enumerate(shape or ()) if n == rows), None)
        if shape is None or dim is None:
            return func(*args, **kwargs)
        fills = func._schema.name.endswith("_")
        if not (func in fresh or fills) or any(isinstance(a, Tensor) for a in args[1:]):
            if any(argument.name == "generator" for argument in func._schema.arguments):
                kwargs = {**kwargs, "generator": self._generator(args)}
            return func(*args, **kwargs)
        sizes = list(shape)
        sizes[dim] = self.share.total
        if isinstance(args[0], Tensor):
            whole = func(args[0].new_empty(sizes), *args[1:], **kwargs)
        else:
            whole = func(*(sizes if a is shape else a for a in args), **kwargs)
        mine = whole.narrow(dim, self.share.start if self.share.size else 0, rows)
        return args[0].copy_(mine) if fills else mine.contiguous()

    def _generator(self, args: Any) -> torch.Generator:
        if self.own is None:
            device = next((a.device for a in args if isinstance(a, Tensor)), torch.device("cpu"))
            self.own = generator("of a share", self.seed, self.share.start, device=device)
        return self.own
