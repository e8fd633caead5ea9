"""The result of a fit, and how it is saved and loaded."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyro
import torch
from torch import Tensor, nn

from pyrovae.common.checks import writable_folder
from pyrovae.data import attach
from pyrovae.programs.isolation import random_state
from pyrovae.programs.pair import Pair
from pyrovae.programs.parameters import WithParams
from pyrovae.programs.types import Program
from pyrovae.saving import lock
from pyrovae.saving.configuration import NotConfigurable, build, configuration
from pyrovae.tables import Encoding
from pyrovae.training import storage
from pyrovae.training.ending import Ending, ending
from pyrovae.training.tensors import BARE, fitted_tensors, pair_tensors, restore_pair


@dataclass(frozen=True)
class Fit:
    """A fitted pair.

    Attributes:
        model: the fitted generative program: the module that was passed, trained in place, or the function that was
            passed together with the bare ``pyro.param`` values that it was fitted with.
        guide: the fitted recognition program, likewise.
        history: one row per step. ``loss``, ``bound``, ``reconstruction``, ``kl`` and ``validation_bound`` are in nats
            per observation. ``loss`` is that of the objective; ``bound`` is always an evidence lower bound with every
            scale removed. Where latents are shared by all data or summed out, ``bound`` is minus the loss, or NaN where
            a site carries a scale beyond the plate's (``poutine.scale``), and ``reconstruction`` and ``kl`` are NaN.
            The last columns are the weights of the objective at that step, one per weight, by name (``kl_weight``).
        stopped: why the fit ended: "finished", "patience", "diverged" (its last loss was far above its first), or the
            signal that interrupted it.
        seconds: seconds that training took, validation included.
        compiled: when and why the steps ran compiled or eagerly.
        compile: whether the steps ran compiled: ``fit(compile=fitted.compile)`` of the same pair and data runs alike.
        encoding: how the columns of the table became numbers that the pair was fitted to (types, categories, scales);
            every later table is read alike, by name. None where it was fitted to tensors.
    """

    model: Program
    guide: Program
    history: pd.DataFrame = field(repr=False)
    stopped: str = "finished"
    seconds: float = 0.0
    compiled: str = ""
    compile: bool = False
    _bare: dict[str, Tensor] = field(default_factory=dict, repr=False)
    encoding: Encoding | None = field(default=None, repr=False)

    @property
    def ending(self) -> Ending:
        """How the fit ended: converged, still improving, stopped by patience, ... (:class:`Ending`)."""
        return ending(self.history, self.stopped)

    def save(self, folder: str | Path) -> None:
        """Save the fit in ``folder``: tensors as safetensors, everything else as JSON.

        Raises:
            ValueError: when the folder cannot be written, or another process writes there; an earlier fit there is
                kept.
        """
        with lock(writable_folder(folder)):
            storage.write(folder, *describe(self))


def describe(fit: Fit) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the JSON document that a saved fit consists of."""
    pair = Pair(fit.model, fit.guide)
    tensors = {**pair_tensors(pair, fit._bare), "history": torch.from_numpy(fit.history.to_numpy(float))}
    document: dict[str, Any] = {
        "stopped": fit.stopped,
        "seconds": fit.seconds,
        "compiled": fit.compiled,
        "compile": fit.compile,
        "columns": list(fit.history.columns),
        "versions": {"torch": torch.__version__, "pyro": pyro.__version__},
    }
    if fit.encoding is not None:
        document["table"] = fit.encoding.described()
    model = fit.model
    while isinstance(model, WithParams):
        model = model.program
    for role, program in (("model", fit.model), ("guide", fit.guide)):
        try:
            config = configuration(program, f"the {role}", model=model if role == "guide" else None)
            document[role] = {"configuration": config}
        except NotConfigurable as error:
            document[role] = {"configuration": None, "why": str(error)}
    return tensors, document


def load(folder: str | Path, model: Program | None = None, guide: Program | None = None) -> Fit:
    """Load a saved fit, onto the CPU. No code from the folder is run.

    Args:
        folder: folder that :meth:`Fit.save`, a checkpoint or the command ``pyrovae fit`` wrote.
        model: the generative program; None rebuilds it from its saved configuration, which modules of pyrovae have.
        guide: the recognition program, likewise. Modules that are passed receive the saved values in place.

    Raises:
        ValueError: when the folder holds no readable fit, when a program cannot be rebuilt and was not passed, or when
            the programs that were passed are not those that were saved.
    """
    folder = storage.fit_folder(folder)
    tensors, document = storage.read(folder)
    source = repr(str(folder))
    try:
        return _loaded(tensors, document, source, model, guide)
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError, OverflowError, RecursionError) as error:
        raise ValueError(  # of a document that was written by hand
            f"{source} is not a fit as pyrovae saves it: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error


def _loaded(tensors: dict[str, Tensor], document: dict[str, Any], source: str, model: Any, guide: Any) -> Fit:
    programs: dict[str, Any] = {"model": model, "guide": guide}
    for role, program in programs.items():
        if program is None:
            with random_state("initial values", 0):  # initial values are drawn, then overwritten
                programs[role] = _rebuilt(role, document, source, programs["model"])
    _attach(programs["model"], programs["guide"])
    pair = Pair(programs["model"], programs["guide"])
    own_tensors = fitted_tensors(tensors)
    bare = {key.removeprefix(f"{BARE}/"): value for key, value in own_tensors.items() if key.startswith(f"{BARE}/")}
    members = {key: value for key, value in own_tensors.items() if not key.startswith(f"{BARE}/")}
    _match_dtypes(pair, members)
    restore_pair(pair, {}, members, source)
    encoding = Encoding.of(document["table"]) if "table" in document else None
    programs_with_bare = carrying(pair.model, pair.guide, {"params": {}, "constraints": {}}, dict(bare), encoding)
    rows = pd.DataFrame(tensors["history"].numpy(), columns=document["columns"]).astype({"step": int, "epoch": int})
    outcome = document["stopped"], document["seconds"], document.get("compiled", ""), document.get("compile", False)
    return Fit(*programs_with_bare, rows, *outcome, bare, encoding)


def carrying(
    model: Program, guide: Program, store: dict[str, Any], pending: dict[str, Tensor], encoding: Encoding | None
) -> tuple[Program, Program]:
    """Return the programs with the bare parameters that they share, and with the way in which their table was read.

    Modules are returned as they are where there are no bare parameters, and functions where there is no table either.
    """
    has_bare = bool(pending) or not all(isinstance(value, nn.Parameter) for value in store["params"].values())
    programs = [
        WithParams(program, store, pending)
        if has_bare or (encoding is not None and not isinstance(program, nn.Module))
        else program
        for program in (model, guide)
    ]
    for program in programs:
        attach(program, encoding)
    return programs[0], programs[1]


def _rebuilt(role: str, document: dict[str, Any], source: str, model: Any) -> Any:
    entry = document.get(role) or {}
    if entry.get("configuration") is None:
        why = entry.get("why", f"its {role} has no saved configuration")
        raise ValueError(f"{source} cannot rebuild its {role} ({why}): pass load(..., {role}=...)")
    return build(entry["configuration"], model=model)


def _attach(model: Any, guide: Any) -> None:
    """Attach the guide to the parts of a rebuilt model that refer to it."""
    parts: list[Any] = list(model.modules()) if isinstance(model, nn.Module) else []
    for part in parts:
        if hasattr(part, "attach") and part.guide is None:
            part.attach(guide)


def _match_dtypes(pair: Pair, tensors: dict[str, Tensor]) -> None:
    for name, module in pair.modules.items():
        dtypes = {t.dtype for key, t in tensors.items() if key.startswith(f"{name}/") and t.is_floating_point()}
        if len(dtypes) == 1:
            module.to(dtypes.pop())
