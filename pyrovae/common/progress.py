"""Progress bars: drawn in place on a terminal and in a notebook, written as a line now and then in a file."""

import sys
from typing import Any, TextIO

from tqdm.auto import tqdm
from tqdm.std import tqdm as plain

_SECONDS, _SECONDS_OF_LINES = 0.5, 5.0  # shortest time between two states that are shown


class _Lines:
    """Writes every state of a bar as a line of its own."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        line = text.replace("\r", "").strip()
        if line:
            self.stream.write(f"{line}\n")

    def flush(self) -> None:
        self.stream.flush()


def progress_bar(*, total: int, label: str | None, unit: str, done: int = 0) -> Any:
    """Return a progress bar of tqdm on standard error.

    Args:
        total: count at which the bar is full.
        label: text before the bar; None shows no bar.
        unit: unit of the count.
        done: count that is done already.
    """
    options: dict[str, Any] = {"total": total, "initial": done, "desc": label, "unit": unit, "disable": label is None}
    if sys.stderr is None or sys.stderr.isatty() or "ipykernel" in sys.modules:
        return tqdm(**options, mininterval=_SECONDS)
    return plain(**options, mininterval=_SECONDS_OF_LINES, file=_Lines(sys.stderr), ncols=100)
