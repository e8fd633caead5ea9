"""The loss of an objective and its gradient, as a function of the batch."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from pyrovae.objectives import Objective
from pyrovae.programs.layout import Layout
from pyrovae.programs.pair import Pair
from pyrovae.programs.state import State
from pyrovae.programs.types import Batch
from pyrovae.training.bfloat16 import bfloat16_layers
from pyrovae.training.group import Share, SharedNoise
from pyrovae.training.recorder import Recorder

Params = dict[str, Tensor]


class Gradients:
    """The loss of any ``pyro.infer.ELBO`` and its gradient, as a function of the batch.

    The gradient is that of the objective's loss, summed over the batch, as ``pyro.infer.SVI`` takes it.

    Args:
        pair: pair of programs.
        layout: layout of the pair.
        objective: any ``pyro.infer.ELBO``.
        params: parameters by which the loss is differentiated.
        state: every tensor that the programs read.
        bfloat16: whether layers that multiply matrices do so in bfloat16.

    Attributes:
        share: the part that the batch is of a larger one, whose other parts are in other processes; None where the
            batch is the whole.
        seed: seed of the noise that processes do not share.
    """

    def __init__(
        self, pair: Pair, layout: Layout, objective: Any, params: Params, state: State, bfloat16: bool = False
    ) -> None:
        self.differentiable = hasattr(objective, "differentiable_loss")
        self.recorder = Recorder(pair, layout, register=not self.differentiable)
        self.layout, self.objective, self.state = layout, objective, state
        self.share: Share | None = None
        self.seed = 0
        self._bfloat16_modules = pair.all_modules if bfloat16 else []
        self.params = list(params.values())
        self.own = list(objective.own.parameters()) if isinstance(objective, Objective) else []
        self._places = [state.index(p) for p in (*self.params, *self.own)]

    def measure(self, batch: Batch) -> list[Tensor | None]:
        """Return the measured numbers of a batch, ``[5]``, and the gradient of every parameter; changes nothing.

        The last tensor of the batch holds the numbers of its observations.

        The gradients of the objective's own parameters come last.
        """
        return self._measure(batch, [*self.params, *self.own])

    def pure(self, *tensors: Tensor) -> list[Tensor | None]:
        """Do what :meth:`measure` does, as a function of all that it reads: the programs' state and the batch."""
        num_leaves = len(self.state.leaves)
        state, batch = tensors[:num_leaves], tensors[num_leaves:]
        with torch.enable_grad(), self.state.replaced(state):
            result = self._measure(batch, [state[i] for i in self._places])
        self.recorder.clear()
        return result

    def _measure(self, batch: Batch, params: Sequence[Tensor]) -> list[Tensor | None]:
        self.recorder.clear()
        batch = self.recorder.given(batch)
        noise = nullcontext() if self.share is None else SharedNoise(self.share, self.seed)
        with bfloat16_layers(self._bfloat16_modules), noise:
            loss, grads = self._gradients(batch, params)
        norm = torch.nn.utils.get_total_norm([grad for grad in grads[: len(self.params)] if grad is not None])
        size = self.recorder.loss_size(self.layout, len(batch[0]))
        loss = loss / size
        parts = self.recorder.decompose(len(batch[0]), self.layout, loss - beyond_bound(self.objective) / size)
        row = torch.stack([part.to(loss.dtype) for part in (loss, *parts, norm)])
        return [row, *grads]

    def _gradients(self, batch: Batch, params: Sequence[Tensor]) -> tuple[Tensor, list[Tensor | None]]:
        if self.differentiable:
            loss: Tensor = self.objective.differentiable_loss(self.recorder.model, self.recorder.guide, *batch)
            return loss.detach(), list(torch.autograd.grad(loss, params, allow_unused=True))
        for p in params:
            p.grad = None
        total = self.objective.loss_and_grads(self.recorder.model, self.recorder.guide, *batch)
        return total_loss(total, batch), [p.grad for p in params]


def beyond_bound(objective: Any) -> Any:
    """Return the part of an objective's last loss that is not minus a bound; 0 where the objective states none."""
    beyond = getattr(objective, "beyond_bound", None)
    return 0.0 if beyond is None else beyond


def total_loss(loss: Any, batch: Batch) -> Tensor:
    """Return an objective's loss as one number: the sum, where there is one loss per observation."""
    total = sum(loss) if isinstance(loss, tuple) else loss
    return torch.as_tensor(total, dtype=torch.get_default_dtype(), device=batch[0].device).detach()
