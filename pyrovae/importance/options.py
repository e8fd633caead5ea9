"""The keywords that all questions share, documented and checked in one place."""

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypedDict, TypeVar

import torch

from pyrovae.common.checks import at_least
from pyrovae.programs.compilation import check_mode
from pyrovae.programs.streams import check_seed

P = ParamSpec("P")
R = TypeVar("R")
BATCH_SIZE = 32


class Options(TypedDict, total=False):
    """Keywords that questions share; a function says which of them it takes, and their defaults."""

    batch_size: int
    seed: int
    compile: bool | str
    device: torch.device | str | None
    progress: bool


_TEXTS = {
    "batch_size": "batch_size: observations held by a call of the programs, on which memory depends, and no result.",
    "seed": "seed: of all that is drawn: the same one gives the same numbers, and leaves the caller's random state.",
    "compile": 'compile: whether the programs are traced once and compiled; "auto" does so where it saves more time '
    "than it costs. The random numbers are the same.",
    "device": "device: None means CUDA where there is one.",
    "progress": "progress: whether to show a progress bar.",
}
_KINDS = {"batch_size": int, "seed": int, "compile": bool | str, "device": torch.device | str | None, "progress": bool}
_WIDTH = 112


def shared_keywords(**defaults: Any) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Give a question the keywords that all questions share: its signature, its docstring, and their checks.

    The function takes them as ``**options``, all of them present.

    Args:
        defaults: of ``batch_size`` and ``compile``, where the question takes them; ``seed``, ``device`` and
            ``progress`` are taken by all.

    Example:
        >>> @shared_keywords(batch_size=8)
        ... def count(data, **options):
        ...     return len(data), options["batch_size"], options["seed"]
        >>> count("abc", seed=3)
        (3, 8, 3)
        >>> count("abc", seed=-1)
        Traceback (most recent call last):
        ...
        ValueError: seed must be a whole number from 0 to 2**62, got -1
    """
    known = {"batch_size": None, "seed": 0, "compile": None, "device": None, "progress": True, **defaults}
    values = {name: value for name, value in known.items() if name in defaults or name not in ("batch_size", "compile")}

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        own = inspect.signature(function)
        signature = own.replace(parameters=[*_without_options(own), *map(_keyword, values, values.values())])

        @functools.wraps(function)
        def question(*args: P.args, **kwargs: P.kwargs) -> R:
            signature.bind(*args, **kwargs)  # says what is wrong as Python says it
            options = {**values, **{name: kwargs.pop(name) for name in values if name in kwargs}}
            return function(*args, **kwargs, **_checked(options))

        question.__signature__ = signature  # type: ignore[attr-defined]
        question.__doc__ = _documented(function.__doc__, list(values))
        return question

    return decorate


def without(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return options for a question that does not take some of them, or has a default of its own."""
    return {name: value for name, value in options.items() if name not in names}


def _without_options(signature: inspect.Signature) -> list[inspect.Parameter]:
    return [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]


def _keyword(name: str, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=_KINDS[name])


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    if "batch_size" in options:
        options["batch_size"] = at_least("batch_size", options["batch_size"], 1)
    if "compile" in options:
        check_mode(options["compile"])
    return {**options, "seed": check_seed(options["seed"])}


def _documented(text: str | None, names: list[str]) -> str | None:
    """Put what the keywords mean in the place of ``**options``."""
    if text is None:
        return None
    lines = []
    for name in names:
        words, line = _TEXTS[name].split(), " " * 8
        for word in words:
            if len(line) + len(word) > _WIDTH:
                lines.append(line.rstrip())
                line = " " * 12
            line += f"{word} "
        lines.append(line.rstrip())
    return re.sub(r"^ +\*\*options:.*\n(?: {12,}.*\n)*", lambda _: "\n".join(lines) + "\n", text, flags=re.M)
