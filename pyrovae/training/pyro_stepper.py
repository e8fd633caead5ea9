"""Steps of a Pyro optimizer, taken by Pyro's own SVI."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.infer import SVI
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from pyrovae.programs.layout import Layout
from pyrovae.programs.pair import Pair
from pyrovae.programs.types import Batch
from pyrovae.training.gradients import beyond_bound, total_loss
from pyrovae.training.recorder import Recorder


class PyroStepper:
    """``pyro.infer.SVI`` with the user's ``pyro.optim.PyroOptim``, which sets its own learning rates and clipping."""

    def __init__(self, pair: Pair, layout: Layout, objective: Any, optimizer: Any) -> None:
        self.recorder = Recorder(pair, layout, register=True)
        self.layout, self.objective, self.optimizer = layout, objective, optimizer
        self.healthy = torch.ones((), dtype=torch.bool)
        self.svi = SVI(self.recorder.model, self.recorder.guide, optimizer, loss=objective)

    def set_lr(self, lr: float) -> None:
        """Raise an error: Pyro's optimizer has its own learning rates."""
        raise NotImplementedError

    @property
    def lr(self) -> float:
        """NaN: Pyro's optimizer has a learning rate for every parameter."""
        return math.nan

    def step(self, batch: Batch) -> Tensor:
        """Take Pyro's step."""
        self.recorder.clear()
        loss = total_loss(self.svi.step(*self.recorder.given(batch)), batch)
        size = self.recorder.loss_size(self.layout, len(batch[0]))
        loss = loss / size
        parts = self.recorder.decompose(len(batch[0]), self.layout, loss - beyond_bound(self.objective) / size)
        self.healthy.logical_and_(loss.cpu().isfinite())
        return torch.stack([part.to(loss.dtype) for part in (loss, *parts, torch.full_like(loss, math.nan))])

    def state(self) -> Any:
        """Return the state of Pyro's optimizer."""
        return self.optimizer.get_state()

    def restore(self, state: Any) -> None:
        """Continue from a state of Pyro's optimizer."""
        self.optimizer.set_state(state)

    def end_epoch(self, metric: Callable[[], float]) -> None:
        """Step Pyro's learning-rate scheduler, if there is one; ``ReduceLROnPlateau`` steps by the metric."""
        if isinstance(self.optimizer, pyro.optim.PyroLRScheduler):
            schedulers = self.optimizer.optim_objs.values()
            waits = any(isinstance(scheduler, ReduceLROnPlateau) for scheduler in schedulers)
            self.optimizer.step(*([metric()] if waits else []))
