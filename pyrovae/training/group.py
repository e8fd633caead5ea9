"""The processes that fit together: each takes its share of every batch, and all add up their gradients."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pyrovae.internals.torch import TorchDispatchMode, group_store
from pyrovae.programs.noise import first_shape, fresh
from pyrovae.programs.streams import generator
from pyrovae.training.described import difference

_REASON = "pyrovae: why a process stopped"
TIMEOUT = timedelta(minutes=5)  # for a process that hangs; one that dies is noticed at once


class LostProcess(RuntimeError):
    """Another process of the group has died or hangs."""


class Group:
    """The default group of ``torch.distributed`` where it is initialised, else this process alone.

    Attributes:
        rank: rank of this process.
        size: number of processes.
        agreed: what any process has announced, as of the last sum: (save, interrupted, stopped).
    """

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
        self.agreed = (False, False, False)
        self._flags = (False, False, False)

    @contextmanager
    def together(self) -> Iterator[dict[str, Any]]:
        """Let every process of the group prepare inside the block, and check that all can continue with the same.

        The block receives a dict, which it fills with all that must be the same in every process. The block must not
        contain collective operations.

        Raises:
            ValueError: in every process, when one fails, with its reason, or when the dicts are not the same.
        """
        common: dict[str, Any] = {}
        if self.size == 1:
            yield common
            return
        failure: Exception | None = None
        try:
            yield common
        except Exception as error:  # in whatever way
            failure = error
        reports: list[Any] = [None] * self.size
        report = (None if failure is None else f"{type(failure).__name__}: {failure}", common)
        _collective(lambda: dist.all_gather_object(reports, report))
        if failure is not None:
            raise failure
        for rank, (reason, _) in enumerate(reports):
            if reason is not None:
                raise ValueError(f"process {rank} of the group cannot go on: {reason}")
        for rank, (_, other) in enumerate(reports):
            place = difference(reports[0][1], other)
            if place is not None:
                where, first, value = place
                raise ValueError(
                    f"process {rank} of the group was given {where}={value}, and process 0 {where}={first}: give all "
                    "the same"
                )

    def fail(self, reason: str) -> None:
        """Leave the reason why this process stops, for the others to read when they notice that it is gone."""
        if self.size > 1:
            with suppress(RuntimeError):
                group_store().set(_REASON, f"process {self.rank}: {reason}")

    def share(self, total: int) -> "Share":
        """Return this process's share of a batch of ``total`` observations."""
        sizes = [total // self.size + (rank < total % self.size) for rank in range(self.size)]
        return Share(sum(sizes[: self.rank]), sizes[self.rank], total)

    def agree_on(self, save: bool, interrupted: bool, stopped: bool) -> tuple[bool, bool, bool]:
        """Announce to the others, with the next sum, that it is time to save or to stop; return the last agreement.

        A single process gets its own values back. In a group, only the first process decides when to save.
        """
        if self.size == 1:
            return save, interrupted, stopped
        self._flags = (save and self.rank == 0, interrupted, stopped)
        return self.agreed

    def sum(self, row: Tensor, grads: Sequence[Tensor | None], share: "Share", whole: bool) -> list[Tensor]:
        """Return the batch's row and gradients from those of all shares.

        Args:
            row: measured numbers of this share, means over its observations; the gradient's norm comes last.
            grads: gradients of this share's loss.
            share: share of this process.
            whole: whether each share's loss stands for all data, rather than for its own observations.
        """
        part = share.size / share.total
        weight = part if whole else float(share.size > 0)
        dense = [torch.zeros_like(row[0]) if g is None else g for g in grads]
        flags = torch.tensor([float(flag) for flag in self._flags], dtype=row.dtype, device=row.device)
        scaled = [flags, row * part, *(g.flatten() * weight for g in dense)]
        if not share.size:
            scaled = [flags, *(torch.zeros_like(t) for t in scaled[1:])]
        flat = torch.cat([t.to(row.dtype) for t in scaled])
        self._all_reduce(flat)
        flags, row, *summed = flat.split([t.numel() for t in scaled])
        save, interrupted, stopped = (bool(flag > 0) for flag in flags)
        self.agreed = (save, interrupted, stopped)
        totals = [s.view_as(g).to(g.dtype) for s, g in zip(summed, dense, strict=True)]
        row = row.clone()
        row[-1] = torch.nn.utils.get_total_norm(totals)
        return [row, *totals]

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
        reason = _word_left() or " ".join(str(error).split())[:200]
        raise LostProcess(f"another process of the group has died or hangs ({reason})") from error


def _word_left() -> str | None:
    """Return the reason that a lost process left; None where it left none, or the store is lost too."""
    with suppress(RuntimeError):
        store = group_store()
        if store.check([_REASON]):
            return str(store.get(_REASON).decode())
    return None


@contextmanager
def launched() -> Iterator[int]:
    """Join the group of a process that ``torchrun`` started, inside the block; yields the rank, 0 without a group.

    The group uses NCCL on CUDA, each process on the device of its local rank, and gloo on the CPU.
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
    """Wait until every process of the group has called this."""
    if Group().size > 1:
        _collective(dist.barrier)


@dataclass(frozen=True)
class Share:
    """The part of a batch that one process holds: ``size`` of ``total`` observations, from ``start`` on."""

    start: int
    size: int
    total: int

    def of(self, indices: Tensor) -> Tensor:
        """Return this share of a batch's indices; an empty share gets the first index, as something to run."""
        return indices[self.start : self.start + self.size] if self.size else indices[:1]


class SharedNoise(TorchDispatchMode):
    """Draws for the whole batch, and keeps this share's rows: the noise is what a single process would draw.

    Draws from a distribution that is computed cannot be made so; they come from a generator of the process's own.

    Args:
        share: share of the process.
        seed: seed of the process's own generator, different in every process and step.
    """

    def __init__(self, share: Share, seed: int) -> None:
        super().__init__()
        self.share, self.seed = share, seed
        self.own: torch.Generator | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Enlarge a random operation; leave any other as it is."""
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
