"""Sentences for bad arguments: what was got, what was expected."""

import math
import tempfile
from pathlib import Path


def at_least(name: str, value: int, least: int) -> int:
    """Return ``value`` when it is a whole number of at least ``least``.

    Raises:
        ValueError: naming the argument, what was got and what was expected.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return value


def positive(name: str, value: float) -> float:
    """Return ``value`` when it is a finite number above zero.

    Raises:
        ValueError: naming the argument, what was got and what was expected.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a finite number above 0, got {value!r}")
    return value


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
