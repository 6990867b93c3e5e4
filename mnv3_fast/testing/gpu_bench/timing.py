"""Turns of several runs on a device, timed by its own clock."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch

from mnv3_fast.testing.measure import Timing

WARM_UP = 5
"""Calls of each run before anything is timed."""
COPY_BYTES = 1 << 29
"""Size of the buffer that is copied to measure the memory's bandwidth: far more than any L2."""


class Clock(Protocol):
    """Times calls; tests put one of their own in place of a device's."""

    def times(self, run: Callable[[], Any], count: int, flush: bool) -> list[float]:
        """Seconds of each of some calls; with ``flush`` L2 is filled with something else before each."""

    def bandwidth(self) -> float:
        """Bytes/s that a copy in memory moves, read and written."""


class EventClock:
    """A CUDA device's own clock: an event before and one behind each call."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        self._scratch = torch.empty(max(2 * cache, 1 << 26), dtype=torch.uint8, device=device)

    def times(self, run: Callable[[], Any], count: int, flush: bool) -> list[float]:
        """As :class:`Clock`. The CPU may be ahead, as it is in use: what it cannot hide is in the time."""
        events = []
        with torch.cuda.device(self.device):
            torch.cuda.synchronize()
            for _ in range(count):
                if flush:
                    self._scratch.zero_()
                start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                start.record()
                run()
                end.record()
                events.append((start, end))
            torch.cuda.synchronize()
        return [start.elapsed_time(end) * 1e-3 for start, end in events]

    def bandwidth(self) -> float:
        """The median of some copies of a large buffer."""
        source = torch.empty(COPY_BYTES, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        times = self.times(lambda: target.copy_(source), 20, False)[5:]
        return 2 * COPY_BYTES / statistics.median(times)


def interleave(
    runs: Mapping[str, Callable[[], Any]], clock: Clock, flush: bool, seconds: float, rounds: int
) -> tuple[dict[str, Timing], dict[str, Exception]]:
    """Time all runs in turn, round after round, so that clocks that sink with heat meet them all alike.

    Args:
        runs: by name; each is warmed up first.
        clock: the device's.
        flush: whether L2 is emptied before each call.
        seconds: about how long the whole takes, warm-up left out.
        rounds: how often each gets its turn; the order turns round, too.

    Returns:
        The times of those that could be run, and what the others raised; one that raises has no later turn.
    """
    share = seconds / rounds / max(1, len(runs))
    counts: dict[str, int] = {}
    blocks: dict[str, list[list[float]]] = {name: [] for name in runs}
    failed: dict[str, Exception] = {}

    def attempt(name: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            failed[name] = error
            return None

    for name, run in runs.items():
        warm = attempt(name, lambda run=run: clock.times(run, WARM_UP, flush))
        if warm is not None:
            counts[name] = max(1, round(share / max(1e-7, min(warm))))
    names = list(runs)
    for turn in range(rounds):
        first = turn % max(1, len(names))
        for name in names[first:] + names[:first]:
            if name in failed:
                continue
            block = attempt(name, lambda name=name: clock.times(runs[name], counts[name], flush))
            if block is not None:
                blocks[name].append(block)
    return {name: timing_of(blocks[name]) for name in runs if name not in failed}, failed


def timing_of(blocks: list[list[float]]) -> Timing:
    """Blocks of calls as rounds."""
    return Timing(tuple(statistics.median(block) for block in blocks), tuple(t for block in blocks for t in block))
