"""Sentences for bad arguments: what was got, what was expected."""

import math
import tempfile
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np


def at_least(name: str, value: Any, least: int) -> int:
    """Return ``value`` as an int when it is a whole number of at least ``least``; NumPy's are whole numbers too.

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


def check_schedule(lr: Any) -> None:
    """See that a learning rate is one, or a function of the step that gives one at the first.

    Raises:
        ValueError: naming what was got and what was expected.
    """
    if not callable(lr):
        positive("lr", lr)
        return
    try:
        first = lr(0)
    except Exception as error:  # a function of the user's may fail in any way
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
    """Create ``folder`` where it is missing, and see that a file can be written into it.

    Raises:
        ValueError: when it is a file, cannot be created, or cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # its own, should several processes look at once
            pass
    except OSError as error:
        raise ValueError(
            f"cannot write into the folder {str(folder)!r} ({error.strerror}): name a writable one"
        ) from None
    return folder
