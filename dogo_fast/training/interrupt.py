"""SIGTERM and SIGINT: while training they ask for an end at the next step boundary, where a checkpoint can be written;
before and after they end the run at once, since there is nothing to save."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

from dogo_fast.errors import RunInterrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupt:
    """``with Interrupt() as interrupt:`` ... ``if interrupt.asked: save and leave``.

    The first signal sets ``asked``; a second one acts as if nobody listened. Outside the main thread nothing can be
    listened to, and signals act as always.
    """

    def __init__(self) -> None:
        self.asked: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            self._before = listen(self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def listen(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Handle the signals; returns what handled them before."""
    return {number: signal.signal(number, handler) for number in SIGNALS}


@contextlib.contextmanager
def ending_at_once(how_to_go_on: str) -> Iterator[None]:
    """A signal raises RunInterrupted, wherever the program is, with this advice in its message.

    Outside the main thread nothing changes.
    """

    def end(number: int, frame: FrameType | None) -> None:
        raise RunInterrupted(f"stopped by {signal.Signals(number).name}; what was saved is kept. {how_to_go_on}")

    before = listen(end) if threading.current_thread() is threading.main_thread() else {}
    try:
        yield
    except Exception as error:
        cause = error.__cause__ or error.__context__
        if isinstance(cause, RunInterrupted):
            raise cause from None  # a library has made an error of its own of it, as pydantic does
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
