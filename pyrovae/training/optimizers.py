"""The optimizers that a fit takes: torch's and Pyro's. For others, an error says what to pass instead."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.optim.multi import MultiOptimizer
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from pyrovae.common.checks import check_schedule, positive, shown
from pyrovae.training.compiling import Compiler
from pyrovae.training.gradients import Gradients
from pyrovae.training.group import Group
from pyrovae.training.problem import Problem
from pyrovae.training.pyro_stepper import PyroStepper
from pyrovae.training.stepper import Stepper
from pyrovae.training.torch_stepper import TorchStepper

DEFAULT_LR = 1e-3


@dataclass(frozen=True)
class Optimization:
    """How gradients become steps.

    Attributes:
        optimizer: None (Adam), a class, a function of the parameters, or an optimizer of torch or Pyro.
        lr: learning rate, or a function of the step.
        clip_norm: largest norm of a gradient; None sets no limit.
        scheduler: function of the optimizer that makes a scheduler of its learning rates, or None.
        every_step: whether the scheduler steps after every step, and not after every epoch.
    """

    optimizer: Any
    lr: Any
    clip_norm: float | None
    scheduler: Any = None
    every_step: bool = False

    @classmethod
    def checked(
        cls, optimizer: Any, lr: Any, clip_norm: Any, scheduler: Any = None, scheduler_every: Any = "epoch"
    ) -> "Optimization":
        """Return the settings after a check of each.

        Raises:
            ValueError: naming what was got and what was expected.
        """
        if clip_norm is not None:
            clip_norm = positive("clip_norm", clip_norm)
        check_optimizer(optimizer)
        check_schedule(lr)
        if scheduler_every not in ("epoch", "step"):
            raise ValueError(f'scheduler_every must be "epoch" or "step", got {scheduler_every!r}')
        if scheduler is not None:
            _check_scheduler(scheduler, optimizer, lr)
        lr = lr if callable(lr) else positive("lr", lr)
        return cls(optimizer, lr, clip_norm, scheduler, scheduler_every == "step")

    @property
    def has_own_lr(self) -> bool:
        """Whether the optimizer was made with its learning rates."""
        is_instance = isinstance(self.optimizer, torch.optim.Optimizer | pyro.optim.PyroOptim)
        return is_instance or (self.optimizer is not None and not isinstance(self.optimizer, type))


def stepper_of(problem: Problem, optimization: Optimization, compiler: Compiler, group: Group) -> Stepper:
    """Return the stepper of a problem.

    Raises:
        ValueError: for settings that the optimizer would ignore.
    """
    optimizer, lr = optimization.optimizer, optimization.lr
    if optimization.has_own_lr and not callable(lr) and lr != DEFAULT_LR:
        raise ValueError(f"lr={lr} would be ignored, since the optimizer that was passed has its own: set it there")
    if isinstance(optimizer, pyro.optim.PyroOptim):
        if callable(lr) or optimization.clip_norm is not None:
            raise ValueError("a Pyro optimizer has its own learning rates and clipping: set them there, not in fit")
        if problem.bfloat16:
            raise ValueError(
                "Pyro's optimizers take their steps in pyro.infer.SVI, which knows no bfloat16: use torch's"
            )
        if group.size > 1:
            raise ValueError("Pyro's optimizers cannot add up the gradients of several processes: use torch's")
        compiler.runner.decline("Pyro's optimizers take their steps in pyro.infer.SVI")
        return PyroStepper(problem.pair, problem.layout, problem.objective, optimizer)
    torch_optimizer = make_optimizer(optimizer, problem.params, float(lr(0)) if callable(lr) else lr)
    gradients = Gradients(
        problem.pair, problem.layout, problem.objective, problem.params, problem.state, problem.bfloat16
    )
    stepper = TorchStepper(
        gradients, compiler, torch_optimizer, optimization.clip_norm, group, problem.layout.subsampled
    )
    if optimization.scheduler is not None:
        stepper.schedule(_made_scheduler(optimization.scheduler, torch_optimizer), every_step=optimization.every_step)
    return stepper


def _check_scheduler(scheduler: Any, optimizer: Any, lr: Any) -> None:
    """Check that an argument can make a scheduler, and that nothing else sets the learning rate.

    Raises:
        ValueError: naming what was got and what to do.
    """
    if isinstance(scheduler, LRScheduler) or not callable(scheduler):
        raise ValueError(
            "scheduler must be a function of the optimizer that makes a scheduler, such as lambda optimizer: "
            f"torch.optim.lr_scheduler.StepLR(optimizer, 10), got {shown(scheduler)}"
        )
    if callable(lr):
        raise ValueError("lr is a function of the step, and scheduler sets the learning rate too: give one of them")
    if isinstance(optimizer, pyro.optim.PyroOptim):
        raise ValueError("a Pyro optimizer has schedulers of its own (pyro.optim): leave scheduler out")


def _made_scheduler(scheduler: Any, optimizer: torch.optim.Optimizer) -> LRScheduler:
    try:
        instance = scheduler(optimizer)
    except TypeError as error:
        raise ValueError(f"scheduler cannot be made from the optimizer alone: {error}") from None
    if not isinstance(instance, LRScheduler):
        raise ValueError(f"scheduler must make a torch.optim.lr_scheduler, got {shown(instance)}")
    return instance


def check_optimizer(optimizer: Any) -> None:
    """Check that an argument can be an optimizer.

    Raises:
        ValueError: for anything else, and for an optimizer that needs more than the gradient of one loss.
    """
    kind = optimizer if isinstance(optimizer, type) else type(optimizer)
    if isinstance(optimizer, pyro.optim.PyroOptim):
        _check_kind(optimizer.pt_optim_constructor)
    elif issubclass(kind, LRScheduler):
        raise ValueError(
            f"optimizer must not be a learning-rate scheduler, got {kind.__name__}: pass an optimizer, and lr=a "
            "function of the step that returns the learning rate"
        )
    elif issubclass(kind, torch.optim.Optimizer | MultiOptimizer):
        _check_kind(kind)
    elif getattr(optimizer, "__module__", "").startswith("pyro.optim"):  # Pyro's are functions of their settings
        raise ValueError(
            f"optimizer must be made with its settings, as pyro.optim.{optimizer.__name__}({{...}}), got the function"
        )
    elif optimizer is not None and (isinstance(optimizer, type) or not callable(optimizer)):
        raise ValueError(
            f"optimizer must be a torch or Pyro optimizer, or a function that makes one of torch, got {optimizer!r}"
        )


def _check_kind(kind: Any) -> None:
    """Check that a class of optimizers steps by a gradient; a function cannot be checked."""
    if not isinstance(kind, type):
        return
    if issubclass(kind, torch.optim.SparseAdam):
        raise ValueError(
            "SparseAdam takes no dense gradients, which the parameters of a pair have: use torch.optim.Adam, or "
            "torch.optim.SGD with embeddings that are sparse"
        )
    step: Callable[..., Any] = getattr(kind, "step", lambda: None)
    closure = inspect.signature(step).parameters.get("closure")
    if issubclass(kind, MultiOptimizer) or (closure is not None and closure.default is inspect.Parameter.empty):
        raise ValueError(
            f"{kind.__name__} works on the loss itself, but a fit provides only the gradient of one random loss: use "
            "an optimizer that takes a gradient, such as torch.optim.Adam"
        )


def make_optimizer(optimizer: Any, params: dict[str, Tensor], lr: float) -> torch.optim.Optimizer:
    """Return a torch optimizer over ``params``: Adam by default, the user's own, or one that the user's factory makes.

    Raises:
        ValueError: when the optimizer does not cover exactly the pair's parameters.
    """
    if optimizer is None:
        return torch.optim.Adam(params.values(), lr=lr, fused=True)
    if isinstance(optimizer, torch.optim.Optimizer):
        ids = {id(p) for group in optimizer.param_groups for p in group["params"]}
        missing = [name for name, p in params.items() if id(p) not in ids]
        stray = ids - {id(p) for p in params.values()}
        if stray:
            raise ValueError(
                f"the optimizer holds {len(stray)} parameters that are not the pair's: make it over the pair's alone"
            )
        if missing:
            raise ValueError(
                f"the optimizer does not hold the pair's parameter {missing[0]!r} ({len(missing)} in all): pass a "
                "function of the parameters, such as lambda params: torch.optim.Adam(params, lr=1e-3)"
            )
        return optimizer
    factory: Callable[..., Any] = optimizer
    instance = factory(list(params.values()), lr=lr) if isinstance(optimizer, type) else factory(list(params.values()))
    check_optimizer(instance)
    if not isinstance(instance, torch.optim.Optimizer):
        raise ValueError(f"optimizer must make a torch.optim.Optimizer, got {type(instance).__name__}")
    return instance
