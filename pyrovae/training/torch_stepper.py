"""Steps of a torch optimizer."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pyrovae.programs.compilation import signature
from pyrovae.programs.types import Batch
from pyrovae.training.capture import Captured
from pyrovae.training.compiling import Compiler
from pyrovae.training.gradients import Gradients
from pyrovae.training.group import Group


class TorchStepper:
    """One torch optimizer over all parameters; the gradients run eagerly or compiled.

    On CUDA a compiled step is replayed as one graph, which includes the optimizer's update where the optimizer allows
    that.

    Args:
        gradients: gradients of the objective.
        compiler: runs the gradients.
        optimizer: optimizer of the parameters.
        clip_norm: largest norm of a gradient; None sets no limit.
        group: group of processes that add up their gradients.
        whole: whether a batch's loss stands for all data, because the data plate subsamples.

    Attributes:
        healthy: whether every step so far had a finite loss and gradient. After the first step that had not, the
            parameters no longer change. On CUDA no step waits for its loss, so this is read only now and then.
    """

    def __init__(
        self,
        gradients: Gradients,
        compiler: Compiler,
        optimizer: torch.optim.Optimizer,
        clip_norm: float | None,
        group: Group,
        whole: bool,
    ) -> None:
        self.group, self.whole = group, whole
        self.gradients, self.compiler, self.optimizer, self.clip_norm = gradients, compiler, optimizer, clip_norm
        self.recorder, self.params = gradients.recorder, gradients.params
        self.all_params = [*gradients.params, *gradients.own]
        self.second: torch.optim.Optimizer | None = getattr(gradients.objective, "optimizer", None)
        self.on_host = self.params[0].device.type == "cpu"
        self.healthy = torch.ones((), dtype=torch.bool, device=self.params[0].device)
        self._graphs: dict[Any, Captured] = {}
        self.scheduler: LRScheduler | None = None
        self.every_step = False
        self._prepare_capture()

    def _prepare_capture(self) -> None:
        """Where an optimizer can run inside a CUDA graph, enable that and keep its learning rates on the device."""
        groups = self.optimizer.param_groups
        self._lr = float(groups[0]["lr"])
        self._one_lr = len({float(group["lr"]) for group in groups}) == 1
        groups = groups + ([] if self.second is None else self.second.param_groups)
        alone = not self.on_host and self.group.size == 1  # also for eager steps, so that both ways compute alike
        self._capturable = alone and all("capturable" in group for group in groups)
        if self._capturable:
            for group in groups:
                group["capturable"] = True
                group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=self.healthy.device)

    def schedule(self, scheduler: LRScheduler, *, every_step: bool) -> None:
        """Let a scheduler set the learning rates, after every step or after every epoch."""
        self.scheduler, self.every_step = scheduler, every_step
        self._lr = float(self.optimizer.param_groups[0]["lr"])

    def _advance_scheduler(self, *metric: float) -> None:
        scheduler: Any = self.scheduler
        with warnings.catch_warnings():  # a replayed graph takes the optimizer's step without calling it
            warnings.filterwarnings("ignore", ".*lr_scheduler.step.*before.*optimizer.step.*")
            scheduler.step(*metric)
        self._lr = float(self.optimizer.param_groups[0]["lr"])

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of all parameters."""
        if lr == self._lr and self._one_lr:
            return
        self._lr, self._one_lr = lr, True
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr

    @property
    def lr(self) -> float:
        """The learning rate of the first group of parameters."""
        return self._lr

    def step(self, batch: Batch) -> Tensor:
        """Take a step. Where a loss or gradient is not finite, neither it nor any later step changes a parameter."""
        row = self._step(batch)
        if self.every_step:
            self._advance_scheduler()
        return row

    def _step(self, batch: Batch) -> Tensor:
        if self.on_host:
            row, *grads = self._measured(batch)
            loss, *_, norm = row.tolist()
            if math.isfinite(loss) and math.isfinite(norm):
                self._descend(row[-1], grads)
            else:
                self.healthy.fill_(False)
            return row
        key = signature(batch)
        if key in self._graphs:
            return self._graphs[key](batch)
        row, *grads = self._measured(batch)
        self._descend_if_healthy(row, grads)
        if self._capturable and self.compiler.compiles(batch):
            self._graphs[key] = Captured(self._advance, batch, self._changed())
        return row

    def _measured(self, batch: Batch) -> list[Any]:
        parts = self.compiler.run(self.gradients, batch)
        share = self.gradients.share
        return parts if share is None else self.group.sum(parts[0], parts[1:], share, self.whole)

    def _advance(self, batch: Batch) -> Tensor:
        row, *grads = self.compiler.run(self.gradients, batch)
        self._descend_if_healthy(row, grads)
        return row

    def _descend_if_healthy(self, row: Tensor, grads: Sequence[Tensor | None]) -> None:
        """Take a step without waiting for its numbers, and undo it where a loss or gradient was not finite."""
        self.healthy.logical_and_(row[0].isfinite() & row[-1].isfinite())
        before = [p.detach().clone() for p in self.all_params]
        self._descend(row[-1], grads)
        with torch.no_grad():
            for p, old in zip(self.all_params, before, strict=True):
                p.copy_(torch.where(self.healthy, p, old))

    def _changed(self) -> list[Tensor]:
        states = [*self.optimizer.state.values(), *(self.second.state.values() if self.second is not None else ())]
        moments = [t for state in states for t in state.values() if isinstance(t, Tensor)]
        return [*self.gradients.state.values, *moments, self.healthy]

    def _descend(self, norm: Tensor, grads: Sequence[Tensor | None]) -> None:
        for p, grad in zip(self.all_params, grads, strict=True):
            p.grad = grad
        if self.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.params, self.clip_norm, norm)
        self.optimizer.step()
        if self.second is not None:
            self.second.step()

    def state(self) -> Any:
        """Return the state of the optimizer and of the scheduler, if any."""
        state = self.optimizer.state_dict()
        return state if self.scheduler is None else {**state, "scheduler": self.scheduler.state_dict()}

    def restore(self, state: Any) -> None:
        """Continue from a state."""
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.optimizer.load_state_dict({name: part for name, part in state.items() if name != "scheduler"})
        self._prepare_capture()

    def end_epoch(self, metric: Callable[[], float]) -> None:
        """Advance the scheduler, if it steps after every epoch."""
        if self.scheduler is not None and not self.every_step:
            self._advance_scheduler(*([metric()] if isinstance(self.scheduler, ReduceLROnPlateau) else []))
