"""The events of a fit, and the callbacks that receive them: history, progress bar and objects of the caller's."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pyrovae.common.checks import shown
from pyrovae.common.progress import progress_bar
from pyrovae.training.stepper import MEASURED

if TYPE_CHECKING:
    from pyrovae.training.result import Fit

EVENTS = ("on_step", "on_validation", "on_checkpoint", "on_end")


class _Stoppable:
    """An event at which a callback may ask the fit to stop."""

    reason: str

    def stop(self, reason: str) -> None:
        """Ask the fit to stop after this step; ``reason`` becomes :attr:`Fit.stopped`."""
        self.reason = str(reason) or "stopped"


@dataclass
class Step(_Stoppable):
    """A step that was taken.

    Attributes:
        step: number of the step, from 0.
        epoch: number of its epoch, from 0.
        seconds: seconds of training so far.
        measured: ``[5]`` on the device: loss, bound, reconstruction and KL in nats per observation, and the gradient's
            norm. The attributes of these names (``loss``, ``bound``, ``reconstruction``, ``kl``, ``grad_norm``) wait
            for the device; on CUDA, read them only now and then.
        lr: learning rate.
        weights: weights of the objective at this step, by name.
        reason: reason for which a callback asked to stop, or "".
    """

    step: int
    epoch: int
    seconds: float
    measured: Tensor
    lr: float
    weights: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""

    def __getattr__(self, name: str) -> float:
        if name in MEASURED:
            return float(self.measured[MEASURED.index(name)])
        raise AttributeError(name)


@dataclass
class Validated(_Stoppable):
    """An epoch's evaluation on the validation data.

    Attributes:
        step: number of steps taken.
        epoch: number of epochs that have ended.
        bound: validation bound in nats per observation.
        is_best: whether the bound is the highest so far.
        reason: reason for which a callback asked to stop, or "".
    """

    step: int
    epoch: int
    bound: float
    is_best: bool
    reason: str = ""


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was written.

    Attributes:
        step: number of steps that it holds.
        folder: folder of the checkpoint.
    """

    step: int
    folder: Path


def checked(callback: Any) -> list[Any]:
    """Return one callback, or several, as a list.

    Raises:
        ValueError: for an object that has none of the methods.
    """
    callbacks = [] if callback is None else list(callback) if isinstance(callback, list | tuple) else [callback]
    for candidate in callbacks:
        if isinstance(candidate, type) or not any(callable(getattr(candidate, name, None)) for name in EVENTS):
            raise ValueError(
                f"callback must be an object with any of the methods {', '.join(EVENTS)}, or a list of such, got "
                f"{shown(candidate)}"
            )
    return callbacks


class Callbacks:
    """Several callbacks, called one after the other; a callback has only the methods that it needs.

    Args:
        callbacks: callbacks in the order in which they are called.
    """

    def __init__(self, callbacks: Iterable[Any]) -> None:
        self.callbacks = list(callbacks)
        self._methods = {name: [getattr(c, name) for c in self.callbacks if hasattr(c, name)] for name in EVENTS}

    def on_step(self, step: Step) -> str:
        """Report a step; return the reason to stop the fit, or ""."""
        return self._tell("on_step", step)

    def on_validation(self, validated: Validated) -> str:
        """Report an evaluation; return the reason to stop the fit, or ""."""
        return self._tell("on_validation", validated)

    def on_checkpoint(self, saved: Saved) -> None:
        """Report a checkpoint."""
        for tell in self._methods["on_checkpoint"]:
            tell(saved)

    def on_end(self, fit: "Fit") -> None:
        """Report the end of the fit, whatever its reason."""
        for tell in self._methods["on_end"]:
            tell(fit)

    def _tell(self, name: str, event: Any) -> str:
        for tell in self._methods[name]:
            tell(event)
        reason: str = event.reason
        return reason


class ProgressBar:
    """Shows the steps, and the bound each time that the bar is redrawn anyway, so that no step waits.

    Args:
        total: number of steps of the fit.
        done: number of steps already taken.
        shown: whether the bar is visible.
    """

    def __init__(self, total: int, done: int, shown: bool) -> None:
        self.shown = shown
        self.bar = progress_bar(total=total, label="fit" if shown else None, unit="step", done=done)

    def on_step(self, step: Step) -> None:
        """Count a step."""
        self.bar.update()
        if self.shown and self.bar.n == self.bar.last_print_n:
            self.bar.set_postfix(bound=f"{step.bound:.2f}", refresh=False)

    def close(self) -> None:
        """Leave the bar as it is."""
        self.bar.close()
