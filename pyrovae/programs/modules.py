"""The modules and numbers that a program is made of, wherever it refers to them."""

import dis
import functools
import inspect
import sys
import types
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from pyrovae.programs.handlers import Numbered
from pyrovae.programs.parameters import WithParams
from pyrovae.programs.types import Program


def unwrapped(program: Program) -> Program:
    """Return the program as its author made it."""
    while isinstance(program, WithParams | Numbered):
        program = program.program
    return program


def reachable_modules(program: Program, name: str) -> dict[str, nn.Module]:
    """Return the ``nn.Module`` objects that a program is or refers to, by where they were found.

    Looks at a module itself, a bound method's object, a function's closure and the globals that it names, partials and
    containers. Submodules are not listed besides their parents.
    """
    program = unwrapped(program)  # so that names are the same before and after a fit
    modules: dict[str, nn.Module] = {}
    _search(program, name, modules, set())
    return modules


def _search(value: Any, name: str, modules: dict[str, nn.Module], ids: set[int]) -> None:
    if id(value) in ids or inspect.isclass(value) or isinstance(value, types.ModuleType | Tensor | str | bytes):
        return
    ids.add(id(value))
    if isinstance(value, nn.Module):
        modules[name] = value
        return
    for key, part in _parts(value):
        _search(part, f"{name}.{key}", modules, ids)


def held_modules(program: Program, name: str) -> dict[str, nn.Module]:
    """Return every ``nn.Module`` that a program may run, by where it was found; submodules are listed too.

    Looks where :func:`reachable_modules` does. Looks also into the plain attributes of modules (a list of networks, a
    closure), into dicts with keys of any kind, into sets and slots, and at the globals that an object's methods name.
    """
    modules: dict[str, nn.Module] = {}
    _search_held(program, name, modules, set())
    return modules


def _search_held(value: Any, name: str, modules: dict[str, nn.Module], ids: set[int]) -> None:
    if isinstance(value, Tensor | str | bytes | int | float | types.ModuleType) or inspect.isclass(value):
        return
    if id(value) in ids:
        return
    ids.add(id(value))
    if isinstance(value, nn.Module):
        modules[name] = value
    for key, part in _held_parts(value):
        _search_held(part, name if key in ("program", "_modules") else f"{name}.{key}", modules, ids)


def _held_parts(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, set | frozenset):
        return enumerate(value)
    if isinstance(value, types.MethodType):
        return [("self", value.__self__), ("function", value.__func__)]
    if isinstance(value, types.FunctionType):
        defaults = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        return [] if _of_library(value.__module__) else [*_parts(value), *enumerate(defaults)]
    if isinstance(value, nn.Module):
        return [*vars(value).items(), *_methods(value)]
    if isinstance(value, WithParams | functools.partial | list | tuple):
        return list(_parts(value))
    slots = [name for cls in type(value).__mro__ for name in _names_of_slots(cls) if hasattr(value, name)]
    wrapped = getattr(value, "__dict__", {}).get("__wrapped__")  # of a cached function, which is no FunctionType
    own = [*_attributes(value), *((name, getattr(value, name)) for name in slots)]
    return [*own, ("wrapped", wrapped), *_methods(value)]


def _names_of_slots(cls: type) -> list[str]:
    slots = vars(cls).get("__slots__", ())
    return [] if _of_library(cls.__module__) else [slots] if isinstance(slots, str) else list(slots)


def _methods(value: Any) -> list[tuple[str, types.FunctionType]]:
    """Return the functions of an object's class, without those of libraries."""
    classes = [cls for cls in type(value).__mro__ if not _of_library(cls.__module__)]
    members = [
        (key, getattr(m, "fget", None) or getattr(m, "__func__", m)) for c in classes for key, m in vars(c).items()
    ]
    return [(key, function) for key, function in members if isinstance(function, types.FunctionType)]


def python_numbers(model: Program, guide: Program) -> dict[str, float]:
    """Return the plain numbers that the programs hold, by where they were found: counters, weights, switches."""
    numbers: dict[str, float] = {}
    for role, program in (("model", model), ("guide", guide)):
        _search_numbers(program, role, numbers, set())
    return numbers


def _search_numbers(value: Any, name: str, numbers: dict[str, float], ids: set[int]) -> None:
    if isinstance(value, bool | int | float):
        numbers[name] = value
        return
    if id(value) in ids or inspect.isclass(value) or isinstance(value, types.ModuleType | Tensor | str | bytes):
        return
    ids.add(id(value))
    members = [*value.named_children(), *vars(value).items()] if isinstance(value, nn.Module) else _parts(value)
    for key, part in members:
        _search_numbers(part, f"{name}.{key}", numbers, ids)


def _parts(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, WithParams | Numbered):
        return [("program", value.program)]
    if isinstance(value, functools.partial):
        return [("func", value.func), *enumerate(value.args), *value.keywords.items()]
    if isinstance(value, types.MethodType):
        owner = value.__self__
        return (
            [("self", owner)] if isinstance(owner, nn.Module) else [("function", value.__func__), *_attributes(owner)]
        )
    if isinstance(value, types.FunctionType):
        wrapped = [("wrapped", value.__wrapped__)] if hasattr(value, "__wrapped__") else []
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        closure = [(key, cell.cell_contents) for key, cell in cells if _filled(cell)]
        names = [(key, value.__globals__[key]) for key in _global_names(value.__code__) if key in value.__globals__]
        return [*wrapped, *closure, *(names if not _installed(value) else [])]
    if isinstance(value, dict):
        return [(key, part) for key, part in value.items() if isinstance(key, str)]
    if isinstance(value, list | tuple):
        return enumerate(value)
    return _attributes(value)


def _global_names(code: types.CodeType) -> list[str]:
    """Return the global names that a function reads, those of the functions written inside it included."""
    own = [str(i.argval) for i in dis.get_instructions(code) if i.opname in {"LOAD_GLOBAL", "LOAD_NAME"}]
    inner = [name for part in code.co_consts if isinstance(part, types.CodeType) for name in _global_names(part)]
    return list(dict.fromkeys([*own, *inner]))


def _attributes(value: Any) -> list[tuple[str, Any]]:
    return [] if _installed(value) else list(getattr(value, "__dict__", {}).items())


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _installed(value: Any) -> bool:
    """Whether a function or object belongs to a library, so that its globals hold nothing of the user's."""
    owner = value.__module__ if isinstance(value, types.FunctionType) else type(value).__module__
    return str(owner).split(".")[0] in {"torch", "pyro", "numpy", "builtins", "functools", "contextlib"}


def _of_library(module: Any) -> bool:
    """Whether a module with this name belongs to a library, so that its functions name nothing of the user's."""
    root = str(module).split(".")[0]
    return root in {"torch", "pyro", "numpy", "pyrovae"} or root in sys.stdlib_module_names
