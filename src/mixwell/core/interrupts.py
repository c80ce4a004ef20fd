"""Ctrl-C and SIGTERM as a question: work that has something to save finishes its step before it ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn


class Terminate:
    """A handler that makes SIGTERM what Ctrl-C is, a `KeyboardInterrupt`, and remembers that it came."""

    def __init__(self) -> None:
        self.came = False

    def __call__(self, number: int, frame: FrameType | None) -> NoReturn:
        self.came = True
        raise KeyboardInterrupt


class Asked:
    """Whether someone asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.yes = False
        self.number: int | None = None

    def stop(self) -> NoReturn:
        """Do now what the signal would have done at once."""
        if self.number is not None:
            signal.raise_signal(self.number)
        raise KeyboardInterrupt


@contextmanager
def postponed(say: Callable[[], object] = lambda: None) -> Iterator[Asked]:
    """During the block the first Ctrl-C or SIGTERM only sets `Asked.yes` and calls `say`; the next ends as usual.

    A signal for which a program has a handler of its own stays with that; only the main thread gets signals at all.
    """
    asked, usual = Asked(), _ours()

    def once(number: int, frame: FrameType | None) -> None:
        _restore(usual)
        asked.yes, asked.number = True, number
        say()

    for number in usual:
        signal.signal(number, once)
    try:
        yield asked
    finally:
        _restore(usual)


def _ours() -> dict[int, Any]:
    """The handlers, by signal, that would end the process or raise `KeyboardInterrupt`, and may be put off."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    return {number: handler for number, handler in found.items() if _ends(number, handler)}


def _ends(number: int, handler: Any) -> bool:
    if number == signal.SIGINT:
        return handler is signal.default_int_handler
    return handler is signal.SIG_DFL or isinstance(handler, Terminate)


def _restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
