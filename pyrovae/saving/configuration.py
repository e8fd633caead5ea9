"""A module's configuration: its constructor's arguments, kept as attributes of the same names.

A saved fit is rebuilt from it. Only what the catalogues of pyrovae list and classes of ``torch.nn`` are ever taken from
a file: a file can neither name other code nor cause a module to be imported.
"""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

CATALOGUES = ("models", "guides", "priors", "likelihoods", "nn")


class NotConfigurable(ValueError):
    """A value that no configuration describes: the user has to supply it."""


def configuration(value: Any, where: str = "it", *, model: Any = None) -> Any:
    """Describe ``value`` by JSON values, modules as ``{"class": "pyrovae.guides.Flow", "arguments": {...}}``.

    Args:
        value: value to be described.
        where: where the value was found, for the error message.
        model: model of the pair, when a guide is described; where the guide refers to it, only the reference is noted.

    Raises:
        NotConfigurable: naming the first part that is not a number, a string, a sequence or a module that a catalogue
            lists.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple | nn.ModuleList):
        return [configuration(item, f"{where}[{i}]", model=model) for i, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"mapping": {k: configuration(item, f"{where}[{k!r}]", model=model) for k, item in value.items()}}
    if model is not None and value is model:
        return {"the": "model"}
    if inspect.isclass(value) and value.__module__.startswith("torch.nn."):
        return {"type": value.__name__}
    if isinstance(value, Constraint):
        constraint_name = next((name for name in constraints.__all__ if getattr(constraints, name) is value), None)
        if constraint_name is not None:
            return {"constraint": constraint_name}
    cls = type(value)
    name = _catalogued(cls) if isinstance(value, nn.Module) else None
    if name is not None:
        variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        names = [name for name, p in inspect.signature(cls).parameters.items() if p.kind not in variadic]
        arguments = {name: configuration(getattr(value, name), f"{where}.{name}", model=model) for name in names}
        return {"class": name, "arguments": arguments}
    raise NotConfigurable(
        f"{where} is a {cls.__module__}.{cls.__qualname__}, which a saved configuration cannot rebuild"
    )


def build(description: Any, *, model: Any = None) -> Any:
    """Build what :func:`configuration` described; ``model`` is the model of the pair.

    Raises:
        ValueError: when the description names anything other than what a catalogue of pyrovae lists or a class of
            ``torch.nn``.
    """
    if isinstance(description, list):
        return tuple(build(item, model=model) for item in description)
    if not isinstance(description, dict):
        return description
    if "mapping" in description:
        return {key: build(item, model=model) for key, item in dict(description["mapping"]).items()}
    if "the" in description:
        return model
    if "type" in description:
        return _member(nn, "torch.nn", description["type"])
    if "constraint" in description:
        return _constraint(description["constraint"])
    cls = _named(str(description.get("class")))
    if cls is None or not isinstance(description.get("arguments"), dict):
        raise ValueError(
            f"a saved configuration names {description.get('class')!r}, but only modules of pyrovae are built, "
            f"those that its catalogues list ({', '.join(CATALOGUES)})"
        )
    return cls(**{name: build(value, model=model) for name, value in description["arguments"].items()})


def _catalogued(cls: type) -> str | None:
    """Return the public name of a class that a catalogue lists, such as "pyrovae.models.VAE"."""
    parts = cls.__module__.split(".")
    if parts[0] != "pyrovae" or len(parts) < 2 or parts[1] not in CATALOGUES:
        return None
    name = f"pyrovae.{parts[1]}.{cls.__name__}"
    return name if _named(name) is cls else None


def _named(name: str) -> type[nn.Module] | None:
    """Return the class of a public name; only its catalogue is imported."""
    parts = name.split(".")
    if len(parts) != 3 or parts[0] != "pyrovae" or parts[1] not in CATALOGUES:
        return None
    catalogue = importlib.import_module(f"pyrovae.{parts[1]}")
    member = getattr(catalogue, parts[-1], None) if parts[-1] in catalogue.__all__ else None
    return member if inspect.isclass(member) and issubclass(member, nn.Module) else None


def _constraint(name: str) -> Constraint:
    constraint = getattr(constraints, name, None) if name in constraints.__all__ else None
    if not isinstance(constraint, Constraint):
        raise ValueError(f"torch has no constraint {name!r}, which the saved configuration names")
    return constraint


def _member(module: Any, path: str, name: str) -> type[nn.Module]:
    cls = getattr(module, name, None)
    if not (inspect.isclass(cls) and issubclass(cls, nn.Module)):
        raise ValueError(f"{path} has no module class {name!r}, which the saved configuration names")
    return cls
