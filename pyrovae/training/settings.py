"""The settings that a resumed fit must share with its checkpoint, and all processes of a group with each other."""

import json
from typing import Any

from pyrovae.training.described import described, of_an_optimizer
from pyrovae.training.fitting import Fitting
from pyrovae.training.optimizers import Optimization


def settings(fitting: Fitting, optimization: Optimization, precision: str) -> dict[str, Any]:
    """Describe a fit by JSON values, in the form in which a checkpoint returns them."""
    problem, batches = fitting.problem, fitting.batches
    described_by_name: dict[str, Any] = {
        "seed": batches.seed,
        "batch_size": batches.batch_size,
        **problem.programs,
        "objective": described(problem.objective),
        "data": problem.data.fingerprint(),
        "validation_data": None if problem.validation is None else problem.validation.fingerprint(),
        "lr": described(optimization.lr),
        "clip_norm": optimization.clip_norm,
        "precision": precision,
        "optimizer": {
            "name": _name(optimization.optimizer, "Adam"),
            **of_an_optimizer(fitting.stepper.optimizer, scheduled=callable(optimization.lr)),
        },
    }
    if batches.size < len(problem.data):
        described_by_name["least_batch"] = batches.least
    if optimization.scheduler is not None:
        scheduler: Any = getattr(fitting.stepper, "scheduler", None)
        described_by_name["scheduler"] = {
            "name": type(scheduler).__qualname__, "every_step": optimization.every_step,
            **{name: described(value) for name, value in scheduler.state_dict().items()},
        }  # fmt: skip
    return dict(json.loads(json.dumps(described_by_name)))


def _name(value: Any, default: str) -> str:
    if value is None:
        return default
    constructors = [getattr(value, f"pt_{part}_constructor", None) for part in ("scheduler", "optim")]  # of Pyro's
    parts = [value, *(part for part in constructors if part is not None)]
    return " of ".join(str(getattr(part, "__qualname__", type(part).__qualname__)) for part in parts)
