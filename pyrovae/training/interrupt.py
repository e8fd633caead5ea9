"""SIGINT, SIGTERM and SIGHUP during a fit: the fit ends its step, saves and stops."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Interrupts:
    """Inside the block the first signal to stop is only noted; a second one acts as it did before the block.

    A signal that is ignored, as ``nohup`` ignores SIGHUP, stays ignored.

    Outside of the main thread, where Python does not allow signal handlers, it does nothing.

    Attributes:
        received: the signal that came, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                if signal.getsignal(number) not in (None, signal.SIG_IGN):  # None: handled outside of Python
                    self._handlers[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
