"""A step on CUDA as one graph, which is replayed without the host."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from pyrovae.programs.types import Batch

WARM_UP = 3  # runs on a side stream before a capture, as torch requires


class Captured:
    """Replays everything that ``advance`` launches: loss, gradients, clipping and the optimizer's update.

    Args:
        advance: takes a step on a batch and returns a tensor; it neither reads a value back nor branches on one.
        batch: an example of its argument.
        changed: every tensor that a step changes in place. The capture restores these tensors and the random state.
    """

    def __init__(self, advance: Callable[[Batch], Tensor], batch: Batch, changed: Iterable[Tensor]) -> None:
        device = batch[0].device
        self.batch = tuple(t.clone() for t in batch)
        copies = [(t, t.detach().clone()) for t in changed]
        stream = torch.cuda.Stream(device)
        with torch.random.fork_rng(devices=[device], device_type="cuda"):
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    advance(self.batch)
            torch.cuda.current_stream(device).wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.row = advance(self.batch)
        with torch.no_grad():
            for tensor, value in copies:
                tensor.copy_(value)

    def __call__(self, batch: Batch) -> Tensor:
        """Take the step on another batch."""
        for static, tensor in zip(self.batch, batch, strict=True):
            static.copy_(tensor)
        self.graph.replay()
        return self.row.clone()
