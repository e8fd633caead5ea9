"""Descriptions of a fit's settings, by which a resumed fit and every process of a group are checked."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyro
from torch import Tensor, nn

from pyrovae.programs.modules import reachable_modules, unwrapped
from pyrovae.programs.sites import sample_sites
from pyrovae.programs.types import Program, Trace
from pyrovae.saving.configuration import NotConfigurable, configuration

NAME = "name"
_DEPTH = 8
_RUNNING = {"own", "optimizer", "max_plate_nesting", "max_iarange_nesting"}  # what an objective sets as it runs
_HOW = {"params", "capturable", "fused", "foreach", "initial_lr"}  # of an optimizer's groups: how it computes, not what


def of_a_program(program: Program, role: str, trace: Trace, *, model: Any = None) -> Any:
    """Describe a program: by the configuration that rebuilds it where it has one, else by its modules and sites.

    Args:
        program: program to describe.
        role: "model" or "guide".
        trace: trace of the program on some data.
        model: model of the pair, where the guide is described.
    """
    program = unwrapped(program)
    try:
        return configuration(program, model=None if model is None else unwrapped(model))
    except NotConfigurable:
        modules = [of_a_module(module) for module in reachable_modules(program, role).values()]
        sites = {name: _of_a_distribution(site["fn"]) for name, site in sample_sites(trace)}
        return {"modules": modules, "sites": sites}


def of_a_module(module: nn.Module) -> Any:
    """Describe a module: by its configuration, or by the names of its parts and what torch prints of them."""
    try:
        return configuration(module)
    except NotConfigurable:
        parts = {name: of_a_module(child) for name, child in module.named_children()}
        return {NAME: _name(module), "settings": module.extra_repr(), **parts}


def of_an_optimizer(optimizer: Any, *, scheduled: bool) -> Any:
    """Describe the settings of an optimizer of torch or of Pyro, without its state.

    Args:
        optimizer: optimizer to describe.
        scheduled: whether its learning rate is a function of the step.
    """
    if isinstance(optimizer, pyro.optim.PyroOptim):
        return {
            "arguments": described(optimizer.pt_optim_args),
            "schedule": described(getattr(optimizer, "kwargs", {})),
        }
    omitted = _HOW | ({"lr"} if scheduled else set())
    return {"groups": [{k: described(v) for k, v in g.items() if k not in omitted} for g in optimizer.param_groups]}


def described(value: Any, depth: int = 0) -> Any:
    """Describe an objective or a setting by JSON values, the same in every process; a function by its name alone."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.numel() == 1):
        return value.item()
    if isinstance(value, list | tuple):
        return [described(part, depth + 1) for part in value]
    if isinstance(value, Mapping):
        return {str(key): described(part, depth + 1) for key, part in value.items()}
    if isinstance(value, nn.Module):
        return of_a_module(value)
    attributes = getattr(value, "__dict__", {}) if depth < _DEPTH and not callable(value) else {}
    if hasattr(value, "loss_and_grads"):
        attributes = vars(value)
    public = {k: v for k, v in attributes.items() if not k.startswith("_") and k not in _RUNNING}
    return {NAME: _name(value), **{k: described(v, depth + 1) for k, v in public.items()}}


def _of_a_distribution(fn: Any) -> str:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return type(fn).__name__


def _name(value: Any) -> str:
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def difference(one: Any, other: Any, where: str = "") -> tuple[str, str, str] | None:
    """Return the first place where two descriptions differ, and what each holds there; None where they agree."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        if _shown(one) != _shown(other):
            return where, _shown(one), _shown(other)
        for key in {**one, **other}:
            inside = where if key == "arguments" else f"{where}.{key}" if where else str(key)
            if key not in one or key not in other:
                first, second = (_shown(d[key]) if key in d else "nothing" for d in (one, other))
                return inside, first, second
            if (place := difference(one[key], other[key], inside)) is not None:
                return place
        return None
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return next((place for i, (a, b) in pairs if (place := difference(a, b, f"{where}[{i}]")) is not None), None)
    same = one == other or (one != one and other != other)
    return None if same else (where, _shown(one), _shown(other))


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(value.get("class", value.get(NAME, value.get("type", "other settings")))).rpartition(".")[2]
    return str(value)
