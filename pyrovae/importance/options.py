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
    """Keywords that questions share; each function says which of them it takes, and their defaults."""

    batch_size: int
    seed: int
    compile: bool | str
    device: torch.device | str | None
    progress: bool


_TEXTS = {
    "batch_size": "batch_size: number of observations per call of the programs; memory depends on it, results do not.",
    "seed": "seed: seed of all draws; the same seed gives the same numbers. The caller's random state stays as it is.",
    "compile": 'compile: whether the programs are traced once and compiled; "auto" does so where it saves more time '
    "than it costs. The random numbers are the same.",
    "device": "device: device of the computation; None means CUDA where there is one.",
    "progress": "progress: whether to show a progress bar.",
}
_KINDS = {"batch_size": int, "seed": int, "compile": bool | str, "device": torch.device | str | None, "progress": bool}
_WIDTH = 112


def shared_keywords(**defaults: Any) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Give a question the keywords that all questions share: its signature, its docstring, and their checks.

    The function takes them as ``**options``, all of them present.

    Args:
        defaults: defaults of ``batch_size`` and ``compile``, where the question takes them; all questions take
            ``seed``, ``device`` and ``progress``.

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
    keywords = {"batch_size": None, "seed": 0, "compile": None, "device": None, "progress": True, **defaults}
    values = {
        name: value for name, value in keywords.items() if name in defaults or name not in ("batch_size", "compile")
    }

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        own = inspect.signature(function)
        signature = own.replace(parameters=[*_without_options(own), *map(_keyword, values, values.values())])

        @functools.wraps(function)
        def question(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{function.__name__}() {error}") from None
            options = {**values, **{name: kwargs.pop(name) for name in values if name in kwargs}}
            return function(*args, **kwargs, **_checked(options))

        question.__signature__ = signature  # type: ignore[attr-defined]
        question.__doc__ = _documented(function.__doc__, list(values))
        return question

    return decorate


def without(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return options without some of them, for a question that does not take these or has its own defaults."""
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
    """Replace ``**options`` in a docstring by what the keywords mean."""
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
