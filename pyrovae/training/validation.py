"""The bound of the validation data."""

import math

import torch

from pyrovae.common.weights import drawn_by_weight, weighted
from pyrovae.data import Data
from pyrovae.importance.log_weights import stream
from pyrovae.importance.question import Question
from pyrovae.programs.isolation import modes, random_state
from pyrovae.programs.streams import generator
from pyrovae.training.errors import FitError
from pyrovae.training.fitting import Fitting

DATA_AT_ONCE = 256


def validate(fitting: Fitting) -> float:
    """Write the validation bound into the last row of the history, and return it; NaN without validation data.

    Raises:
        FitError: when the bound is not a number.
    """
    data, step = fitting.problem.validation, fitting.position.step
    if data is None:
        return math.nan
    try:
        bound = torch.tensor(_bound(fitting, data), dtype=torch.float64, device=data.device)
        fitting.group.same([bound])  # so that all processes decide alike
    except ValueError as error:
        text = f"the fit stopped at step {step}: the validation bound cannot be computed: {error}"
        raise FitError(text, step=step, site=None, indices=[]) from error
    fitting.history.validated(float(bound))
    return float(bound)


@torch.no_grad()
def _bound(fitting: Fitting, data: Data) -> float:
    """Return the mean bound in nats per observation, with the same noise at every call."""
    problem, layout, seed = fitting.problem, fitting.problem.layout, fitting.batches.seed
    with modes(problem.modules, training=False), random_state("validation", seed, data.device):
        if not layout.global_latents and not layout.unguided:
            question = Question(problem.pair.numbered(layout), data, layout, seed, DATA_AT_ONCE)
            bounds = torch.cat([part[0] for _, part in stream(question, 1)]).double()
            return float(weighted(bounds, data.weights).mean())
        if data.weights is not None:  # a loss of a batch has no observations of its own to weight
            rows = drawn_by_weight(data.weights, len(data), generator("validation by weight", seed))
            data = data.subset(rows)
        recorder, total = fitting.stepper.recorder, 0.0
        for indices, batch in data.batches(DATA_AT_ONCE):
            loss = problem.loss(recorder, batch)
            total -= loss / recorder.loss_size(layout, len(indices)) * len(indices)
            recorder.clear()
        return total / len(data)
