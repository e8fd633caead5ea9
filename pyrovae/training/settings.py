"""What a fit that is resumed must have been, and what all processes of a group must be asked for."""

import json
from typing import Any

from pyrovae.training.described import described, of_an_optimizer
from pyrovae.training.fitting import Fitting
from pyrovae.training.optimizers import Optimization


def settings(fitting: Fitting, optimization: Optimization, precision: str) -> dict[str, Any]:
    """Describe a fit by JSON values, as they are read back from a checkpoint."""
    problem, batches = fitting.problem, fitting.batches
    described_by_name = {
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
    return dict(json.loads(json.dumps(described_by_name)))


def _name(value: Any, default: str) -> str:
    if value is None:
        return default
    wrapped = [getattr(value, f"pt_{part}_constructor", None) for part in ("scheduler", "optim")]  # by one of Pyro's
    parts = [value, *(part for part in wrapped if part is not None)]
    return " of ".join(str(getattr(part, "__qualname__", type(part).__qualname__)) for part in parts)
