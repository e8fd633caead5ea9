"""Sentences for bad arguments: what was got, what was expected."""

import math
import tempfile
from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np


def at_least(name: str, value: Any, least: int) -> int:
    """Return ``value`` as an int when it is a whole number, NumPy's included, of at least ``least``.

    Raises:
        ValueError: naming the argument, what was got and what was expected.
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return int(value)


def positive(name: str, value: Any) -> float:
    """Return ``value`` as a float when it is a finite number above zero.

    Raises:
        ValueError: naming the argument, what was got and what was expected.
    """
    if not _is_number(value) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a finite number above 0, got {value!r}")
    return float(value)


def not_negative(name: str, value: Any) -> float:
    """Return ``value`` as a float when it is a finite number of at least zero.

    Raises:
        ValueError: naming the argument, what was got and what was expected.
    """
    if not _is_number(value) or not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")
    return float(value)


def finite(name: str, value: Any) -> float:
    """Return ``value`` as a float when it is a finite number.

    Raises:
        ValueError: naming the argument, what was got and what was expected.
    """
    if not _is_number(value) or not -math.inf < value < math.inf:
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return float(value)


def share(name: str, value: Any, *, ends: bool = True) -> float:
    """Return ``value`` as a float when it is a number between 0 and 1; with ``ends``, 0 and 1 are included.

    Raises:
        ValueError: naming the argument, what was got and what was expected.
    """
    if not _is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {shown(value)}")
    if not ends and value in (0, 1):
        raise ValueError(f"{name} must be between 0 and 1, got {shown(value)}: neither 0 nor 1 itself")
    return float(value)


def widths(name: str, value: Any, *, empty: bool = True) -> tuple[int, ...]:
    """Return ``value`` as a tuple of ints when it is a sequence of whole numbers of at least 1, which may be empty.

    Raises:
        ValueError: naming the argument, what was got and what was expected.
    """
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise ValueError(
            f"{name} must be a sequence of whole numbers, got {shown(value)}: give a tuple, such as (128, 128)"
        )
    if not all(isinstance(v, Integral) and not isinstance(v, bool | np.bool_) and int(v) >= 1 for v in value):
        raise ValueError(f"{name} must be whole numbers of at least 1, got {shown(value)}")
    if not empty and not value:
        raise ValueError(f"{name} must have at least one number, got {shown(value)}")
    return tuple(int(v) for v in value)


def flag(name: str, value: Any) -> bool:
    """Return ``value`` as a bool when it is one.

    Raises:
        ValueError: naming the argument, what was got and what was expected.
    """
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def site_name(name: str, value: Any) -> str:
    """Return ``value`` when it can be the name of a site, a string that is not empty.

    Raises:
        ValueError: naming the argument, what was got and what was expected.
    """
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} must be the name of a site, such as 'z', got {shown(value)}")
    return value


def not_a_class(name: str, value: Any) -> None:
    """Check that ``value`` is an object, where its class is easily given by mistake.

    Raises:
        ValueError: saying what to write.
    """
    if isinstance(value, type):
        raise ValueError(f"{name} must be an object, got the class {value.__name__}: write {value.__name__}(...)")


def program(name: str, value: Any) -> None:
    """Check that ``value`` can be called and is not a class.

    Raises:
        ValueError: naming the argument, what was got and what was expected.
    """
    not_a_class(name, value)
    if not callable(value):
        raise ValueError(f"{name} must be a program that can be called, got {shown(value)}")


def shown(value: Any) -> str:
    """Return how a value is printed, if that is one short line that says what it is, and its type otherwise."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    text = repr(value)
    says = len(text) <= 80 and "\n" not in text and " at 0x" not in text
    return text if says else f"a {type(value).__name__}"


def check_schedule(lr: Any) -> None:
    """Check that ``lr`` is a learning rate, or a function of the step that returns one at the first step.

    Raises:
        ValueError: naming what was got and what was expected.
    """
    if not callable(lr):
        lr = positive("lr", lr)
        return
    try:
        first = lr(0)
    except Exception as error:  # a user's function may fail in any way
        raise ValueError(
            f"lr must be a number or a function of the step, but lr(0) fails: {type(error).__name__}: {error}"
        ) from error
    not_negative("lr(0)", first)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool | np.bool_)


def brief(error: BaseException) -> str:
    """Return what an error says in one line, without the table of shapes that Pyro adds."""
    return " ".join(str(error).partition("Trace Shapes:")[0].split())


def writable_folder(folder: str | Path) -> Path:
    """Create ``folder`` where it is missing, and check that a file can be written into it.

    Raises:
        ValueError: when it is a file, cannot be created, or cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # a file of its own, in case several processes check at once
            pass
    except OSError as error:
        raise ValueError(
            f"cannot write into the folder {str(folder)!r} ({error.strerror}): name a writable one"
        ) from None
    return folder
