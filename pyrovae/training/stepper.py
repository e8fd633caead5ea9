"""The interface of what takes the steps of a fit, and what each step measures."""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from pyrovae.programs.types import Batch
from pyrovae.training.recorder import Recorder

MEASURED = ("loss", "bound", "reconstruction", "kl", "grad_norm")
"""What a step returns as one tensor, in nats per observation except ``grad_norm``: the objective's loss with its
scales; E_q[log p(x, z) - log q(z | x)], E_q[log p(x | z)] and E_q[log q(z | x) - log p(z)] with every scale removed;
and the norm of the gradient of the summed loss, before clipping."""


class Stepper(Protocol):
    """Takes steps, and can be saved and continued."""

    recorder: Recorder
    healthy: Tensor
    optimizer: Any

    def step(self, batch: Batch) -> Tensor:
        """Take a step on a batch; return the measured numbers, in the order of ``MEASURED``."""

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of all parameters."""

    @property
    def lr(self) -> float:
        """The learning rate (of the first group of parameters)."""

    def state(self) -> Any:
        """Return the optimizer's state: tensors and JSON values, nested."""

    def restore(self, state: Any) -> None:
        """Continue from a state."""

    def end_epoch(self, metric: Callable[[], float]) -> None:
        """Note that an epoch has ended; ``metric`` returns a measure of the epoch, the lower the better."""
