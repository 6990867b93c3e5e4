"""Ctrl-C, and the end of a job: the iteration that runs is finished and a checkpoint written."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class StopRequest:
    """True once SIGINT or SIGTERM has come.

    Another SIGINT interrupts at once, as without this; not under torchrun (``insistent`` False), which sends to its
    processes what the terminal has sent to them already.
    """

    def __init__(self, insistent: bool) -> None:
        self._asked, self._insistent = False, insistent
        self._before: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self._asked

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers in no other
            self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        if self._insistent:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
