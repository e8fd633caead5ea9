"""Steps that fail: what was wrong, where, and for which observations. The fit goes back to the last good state."""

import math
from contextlib import suppress
from typing import NoReturn

import pyro
import torch
from torch import Tensor

from pyrovae.importance.particles import non_finite_site
from pyrovae.programs.densities import mean_density
from pyrovae.programs.isolation import modes, random_state
from pyrovae.programs.types import Batch
from pyrovae.training.callbacks import Step
from pyrovae.training.errors import FitError
from pyrovae.training.fitting import Fitting

LOOK_EVERY = 64  # steps on CUDA between two checks of their losses; each check waits for the device


class Watch:
    """Checks the steps of a fit: every step on the CPU, one in ``LOOK_EVERY`` on CUDA, where a check waits.

    Args:
        fitting: the fit.
    """

    def __init__(self, fitting: Fitting) -> None:
        self.fitting = fitting
        self._every = 1 if fitting.problem.data.device.type == "cpu" else LOOK_EVERY

    def on_step(self, step: Step) -> None:
        """Check the steps when a check is due."""
        if (step.step + 1) % self._every == 0:
            look(self.fitting)


def look_first(fitting: Fitting, batch: Batch) -> None:
    """Run the objective once with Pyro's validation, so that a mistake gets Pyro's own message; uses up no noise."""
    problem = fitting.problem
    with (
        modes(problem.modules, training=False),
        random_state("first look", fitting.batches.seed, problem.data.device),
        pyro.validation_enabled(True),
        torch.no_grad(),
    ):
        # an objective that only has gradients has no loss
        with suppress(NotImplementedError), fitting.compiler.counting():
            problem.loss(fitting.stepper.recorder, batch)


def look(fitting: Fitting) -> None:
    """See that every step so far was finite.

    Raises:
        FitError: for the first step that was not; the message says where that came from.
    """
    if bool(fitting.stepper.healthy):
        return
    fitting.position.step = fitting.history.cut_at_first_not_finite()
    indices = fitting.batches.indices(fitting.position.step)
    batch = fitting.problem.data.batch(indices)
    loss, norm = fitting.history.failed
    if math.isfinite(loss):
        fail(fitting, f"the gradient's norm is {norm:g}", indices, batch)
    site, bad = _culprit(fitting, batch)
    numbers = ", ".join(str(int(i)) for i in indices[bad][:5])
    more = ", ..." if len(bad) > 5 else ""
    rest = [i for i in range(len(indices)) if i not in set(bad)]
    text = f"the loss is {loss:g}, first at site {site!r}, for data [{numbers}{more}]"
    fail(fitting, text, indices[bad + rest], batch, site=site)


def _culprit(fitting: Fitting, batch: Batch) -> tuple[str, list[int]]:
    """Return the first site with a density that is not finite, and the positions of its observations in the batch."""
    num_data, recorder = len(batch[0]), fitting.stepper.recorder
    if fitting.group.size > 1:  # the recorded traces are of this process's share alone
        recorder.clear()
    if not recorder.model_traces:  # as after a compiled step: run the programs once more, eagerly
        with suppress(Exception), torch.no_grad():
            fitting.problem.loss(recorder, batch)
    if not recorder.model_traces or not recorder.guide_traces:
        return "unknown", []
    model_trace, guide_trace = recorder.model_traces[-1], recorder.guide_traces[-1]
    with torch.no_grad():
        plate = fitting.problem.layout.plate
        total = mean_density(model_trace, plate, num_data) - mean_density(guide_trace, plate, num_data)
        return non_finite_site(model_trace, guide_trace), (~total.isfinite()).nonzero().flatten().tolist()


def fail(
    fitting: Fitting,
    text: str,
    indices: Tensor,
    batch: Batch,
    *,
    site: str | None = None,
    cause: Exception | None = None,
) -> NoReturn:
    """Go back to the last good state, unless this batch alone is to blame, and raise.

    Args:
        fitting: the fit.
        text: what was wrong.
        indices: indices of the batch's observations, the bad ones first.
        batch: batch of these observations.
        site: the site with the first density that is not finite.
        cause: the exception that was raised.
    """
    if not _still_good(fitting, len(batch[0])):
        fitting.back_to(fitting.kept.good)
    fitting.stepper.healthy.fill_(True)  # the state is good again
    step, data = fitting.position.step, indices.tolist()
    numbers = ", ".join(map(str, data[:8])) + (", ..." if len(data) > 8 else "")
    raise FitError(
        f"the fit stopped at step {step}, batch of data [{numbers}]: {text}; the last good state is kept",
        step=step,
        site=site,
        indices=data,
    ) from cause


def _still_good(fitting: Fitting, size: int) -> bool:
    """Whether the parameters give a finite loss on other data, so that this batch alone is to blame."""
    problem = fitting.problem
    others = problem.data.batch(fitting.batches.order(0)[:size])
    try:
        with torch.no_grad(), modes(problem.modules, training=False):
            return math.isfinite(problem.loss(fitting.stepper.recorder, others))
    except Exception:  # a program may fail in any way, so the other data are no better
        return False
