"""Checkpoints: a saved fit, and everything that is needed to continue to the same result."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyrovae.objectives import Objective
from pyrovae.training import storage
from pyrovae.training.described import difference
from pyrovae.training.fitting import Fitting
from pyrovae.training.result import Fit, describe
from pyrovae.training.tensors import fitted_tensors, history_rows, restore_pair

SAMPLED = 16  # number of steps at which a resumed fit's schedules are checked


def save(fitting: Fitting, folder: Path, settings: dict[str, Any], stopped: str) -> None:
    """Write a checkpoint, in the first process only.

    Args:
        fitting: the fit.
        folder: folder to write into, which the caller has locked.
        settings: settings that a resumed fit must share.
        stopped: why the fit ended, or "running".
    """
    fitting.agree()
    if fitting.group.rank:
        return
    problem, position = fitting.problem, fitting.position
    tensors, document = describe(_so_far(fitting, stopped))
    document["resume"] = {
        "settings": settings,
        "optimizer": storage.flatten(fitting.stepper.state(), "optimizer", tensors),
        "compiled": fitting.compiler.state(),
        "progress": [
            position.step,
            position.epoch,
            position.best_epoch,
            position.best_bound if position.best_epoch else None,
            position.stopped,
        ],
    }
    if isinstance(problem.objective, Objective):
        tensors.update({f"objective/{key}": value for key, value in problem.objective.own.state_dict().items()})
        if problem.objective.optimizer is not None:
            state = problem.objective.optimizer.state_dict()
            document["resume"]["second"] = storage.flatten(state, "second", tensors)
    tensors.update(_random_states(problem.data.device))
    for prefix, state in (("best", fitting.kept.best), ("last", fitting.kept.last)):
        tensors.update({f"{prefix}/{key}": value for key, value in state.items()})
    storage.write(folder, tensors, document)


def _so_far(fitting: Fitting, stopped: str) -> Fit:
    problem, runner = fitting.problem, fitting.compiler.runner
    return Fit(
        problem.pair.model,
        problem.pair.guide,
        fitting.history.frame(),
        stopped,
        fitting.position.seconds,
        "; ".join(runner.lines),
        bool(runner.chosen),
        problem.bare,
        problem.data.encoding,
    )


def _random_states(device: torch.device) -> dict[str, Tensor]:
    states = {"random": torch.get_rng_state()}
    if device.type == "cuda":
        states["random-cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore(fitting: Fitting, folder: Path, settings: dict[str, Any]) -> None:
    """Continue from a checkpoint.

    Raises:
        ValueError: when the checkpoint is unreadable, or is of another pair or other settings.
    """
    tensors, document = storage.read(folder)
    _see_that_it_goes_on(document, folder, settings)
    problem, resume = fitting.problem, document["resume"]
    source = _part(tensors, "last/") or fitted_tensors(tensors)
    restore_pair(problem.pair, problem.bare, source, repr(str(folder)))
    fitting.stepper.restore(storage.unflatten(resume["optimizer"], tensors))
    if isinstance(problem.objective, Objective):
        problem.objective.own.load_state_dict(_part(tensors, "objective/"))
        if problem.objective.optimizer is not None:
            problem.objective.optimizer.load_state_dict(storage.unflatten(resume["second"], tensors))
    fitting.compiler.restore(resume.get("compiled", {}))
    fitting.compiler.runner.lines[:] = [line for line in document.get("compiled", "").split("; ") if line]
    _see_same_schedules(fitting, folder, pd.DataFrame(history_rows(tensors), columns=document["columns"]))
    position = fitting.position
    position.step, position.epoch, position.best_epoch, best_bound, position.stopped = resume["progress"]
    position.best_bound = -math.inf if best_bound is None else best_bound
    position.seconds = document["seconds"]
    fitting.kept.best, fitting.kept.good = _part(tensors, "best/"), fitting.copied()
    fitting.history.go_on_from(_with_weights(fitting, history_rows(tensors)))
    torch.set_rng_state(tensors["random"])
    if problem.data.device.type == "cuda" and "random-cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random-cuda"], problem.data.device)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}


def _see_that_it_goes_on(document: dict[str, Any], folder: Path, settings: dict[str, Any]) -> None:
    resume = document.get("resume")
    if resume is None:
        raise ValueError(f"{str(folder)!r} holds a saved fit that cannot be resumed: name another checkpoint folder")
    if "settings" not in resume:
        raise ValueError(
            f"the checkpoint in {str(folder)!r} was made by an older version of pyrovae, which did not save its "
            "settings: load() it, or resume=False"
        )
    mismatch = difference(resume["settings"], settings)
    if mismatch is not None:
        where, old, new = mismatch
        raise ValueError(
            f"the checkpoint in {str(folder)!r} was made with {where}={old}, got {where}={new}: use the same, "
            "or resume=False"
        )


def _see_same_schedules(fitting: Fitting, folder: Path, rows: pd.DataFrame) -> None:
    """Check, at some of the steps taken, that learning rate and weights were those of the present schedules.

    Raises:
        ValueError: for the first that was not, which the message names.
    """
    for _, row in rows.iloc[np.unique(np.linspace(0, len(rows) - 1, SAMPLED).round().astype(int))].iterrows():
        step = int(row["step"])
        weights = fitting.problem.weights_at(step)
        values = dict(zip(fitting.history.weight_columns, weights.values(), strict=True))
        if fitting.schedule is not None:
            values["lr"] = float(fitting.schedule(step))
        for name, value in values.items():
            if name in row and not math.isclose(row[name], value, rel_tol=1e-5, abs_tol=1e-12):
                raise ValueError(
                    f"the checkpoint in {str(folder)!r} was made with {name}={row[name]:g} at step {step}, got "
                    f"{name}={value:g} there: use the same, or resume=False"
                )


def _with_weights(fitting: Fitting, rows: np.ndarray) -> np.ndarray:
    """Return a saved history's rows with the objective's weights, which older versions of pyrovae did not save."""
    history = fitting.history
    if rows.shape[1] == len(history.columns):
        return rows
    weights = [[*fitting.problem.weights_at(int(step)).values()] for step in rows[:, 0]]
    return np.hstack([rows, np.reshape(weights, (len(rows), len(history.weights)))])
