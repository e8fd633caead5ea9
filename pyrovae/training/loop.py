"""The loop of a fit: take a step, call the callbacks, evaluate after each epoch, write a checkpoint when it is due."""

import math
import signal
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from pyrovae.common.checks import brief
from pyrovae.objectives import Objective
from pyrovae.programs.streams import stream_seed
from pyrovae.programs.types import Batch
from pyrovae.training.callbacks import Callbacks, Saved, Step, Validated
from pyrovae.training.checkpoints import save
from pyrovae.training.errors import FitError
from pyrovae.training.failures import fail, look, look_first
from pyrovae.training.fitting import Fitting
from pyrovae.training.group import LostProcess
from pyrovae.training.interrupt import Interrupts
from pyrovae.training.torch_stepper import TorchStepper
from pyrovae.training.validation import validate


@dataclass(frozen=True)
class Plan:
    """How a fit continues, and when it ends.

    Attributes:
        total: number of steps in all.
        patience: largest number of epochs without a better validation bound; None allows any number.
        checkpoint: folder to save in, or None.
        checkpoint_seconds: least time between two checkpoints.
        settings: settings that a resumed fit must share.
    """

    total: int
    patience: int | None
    checkpoint: Path | None
    checkpoint_seconds: float
    settings: dict[str, Any] = field(default_factory=dict)


def run(fitting: Fitting, plan: Plan, callbacks: Callbacks, interrupts: Interrupts) -> None:
    """Take the remaining steps.

    Raises:
        FitError: for a step that fails, or a checkpoint that cannot be written.
    """
    position, group = fitting.position, fitting.group
    started, saved, first, reason = time.monotonic() - position.seconds, time.monotonic(), position.step, ""
    for epoch, indices, batch in fitting.batches.between(first, first if position.stopped else plan.total):
        step = _take(fitting, epoch, indices, batch, started, is_first=position.step == first)
        reason = callbacks.on_step(step) or reason
        if position.step % fitting.batches.per_epoch == 0:
            reason = _end_epoch(fitting, plan.patience, callbacks) or reason
        position.seconds = time.monotonic() - started
        interrupted = interrupts.received is not None
        due = interrupted or time.monotonic() - saved >= plan.checkpoint_seconds
        due, interrupted, stopped = group.agree_on(due, interrupted, bool(reason))
        position.stopped = position.stopped or (reason or "stopped by another process" if stopped else "")
        if plan.checkpoint is not None and (due or interrupted):
            write(fitting, plan, callbacks, interrupts.received.name if interrupts.received else "running")
            saved = time.monotonic()
        if interrupted:
            interrupts.received = interrupts.received or signal.SIGTERM  # another process received the signal
            return
        if position.stopped:
            break
    _finish(fitting, plan, callbacks)


def _take(fitting: Fitting, epoch: int, indices: Tensor, batch: Batch, started: float, *, is_first: bool) -> Step:
    """Take a step on a batch, which holds the observations at ``indices``."""
    step, stepper, group = fitting.position.step, fitting.stepper, fitting.group
    weights = _scheduled(fitting, indices, batch)
    if is_first:
        look_first(fitting, batch)
    if group.size > 1 and isinstance(stepper, TorchStepper):
        stepper.gradients.share = group.share(len(indices))
        stepper.gradients.seed = stream_seed("share", fitting.batches.seed, step)
    lr = stepper.lr
    try:
        measured = stepper.step(batch)
    except LostProcess:
        raise
    except Exception as error:  # a program may fail in any way
        fail(fitting, f"{type(error).__name__}: {brief(error)}", indices, batch, cause=error)
    fitting.position.step += 1
    return Step(step, epoch, time.monotonic() - started, measured, lr, weights)


def _scheduled(fitting: Fitting, indices: Tensor, batch: Batch) -> dict[str, float]:
    """Set the learning rate and the objective's weights to their values at this step, and return the weights."""
    step = fitting.position.step
    if fitting.schedule is not None:
        lr = fitting.schedule(step)
        if not 0 <= lr < math.inf:
            text = f"the learning rate's schedule gives {lr}, where a finite number of at least 0 is needed"
            fail(fitting, text, indices, batch)
        fitting.stepper.set_lr(float(lr))
    try:
        return fitting.problem.weights_at(step)
    except ValueError as error:  # from a function of the user's
        fail(fitting, str(error), indices, batch, cause=error)


def _end_epoch(fitting: Fitting, patience: int | None, callbacks: Callbacks) -> str:
    """Keep the state, evaluate it on the validation data, and return the reason to stop, or ""."""
    look(fitting)
    position = fitting.position
    position.epoch += 1
    fitting.keep()
    bound = validate(fitting)
    has_validation = fitting.problem.validation is not None
    fitting.stepper.end_epoch(
        lambda: -bound if has_validation else fitting.history.recent("loss", fitting.batches.per_epoch)
    )
    if not has_validation:
        return ""
    is_best = bound > position.best_bound
    if is_best:
        position.best_bound, position.best_epoch = bound, position.epoch
        fitting.keep_best()
    elif patience is not None and position.epoch - position.best_epoch >= patience:
        position.stopped = "patience"
    return callbacks.on_validation(Validated(position.step, position.epoch, bound, is_best))


def _finish(fitting: Fitting, plan: Plan, callbacks: Callbacks) -> None:
    """Evaluate after an unfinished epoch, go back to the best state if there is one, and write the last checkpoint."""
    position, per_epoch = fitting.position, fitting.batches.per_epoch
    if position.step % per_epoch:
        validate(fitting)
    if not position.stopped and (sentence := fitting.history.diverged(per_epoch)):
        position.stopped = "diverged"
        warnings.warn(sentence, stacklevel=4)
    look(fitting)
    if plan.patience is not None:
        _warn_of_unfinished_weights(fitting)
        fitting.end_at_best()
    if plan.checkpoint is not None:
        write(fitting, plan, callbacks, position.stopped or "finished")


def _warn_of_unfinished_weights(fitting: Fitting) -> None:
    """Warn where the best state is from before the objective's weights came to rest, as in a KL warm-up."""
    position, objective = fitting.position, fitting.problem.objective
    step = position.best_epoch * fitting.batches.per_epoch
    if position.stopped == "patience" and step and isinstance(objective, Objective):
        for sentence in objective.unfinished(step):
            text = sentence.replace("the fit has", "the best validation bound was after").partition(": fit for")[0]
            warnings.warn(f"{text}: give more patience, or let it rise sooner", stacklevel=5)


def write(fitting: Fitting, plan: Plan, callbacks: Callbacks, stopped: str) -> None:
    """Write a checkpoint, and call the callbacks.

    Raises:
        FitError: when it cannot be written; the previous checkpoint stays.
    """
    assert plan.checkpoint is not None
    look(fitting)
    step = fitting.position.step
    try:
        save(fitting, plan.checkpoint, plan.settings, stopped)
    except ValueError as error:
        raise FitError(f"the fit stopped at step {step}: {error}", step=step, site=None, indices=[]) from error
    callbacks.on_checkpoint(Saved(step, plan.checkpoint))
