"""Timing that can be believed: all rivals in one interleaved loop, ratios from the same rounds, the machine named."""

from __future__ import annotations

import datetime
import gc
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision

from mnv3_fast import _library
from mnv3_fast._version import __version__


@dataclass(frozen=True)
class Timing:
    """Seconds of one rival: each entry of ``rounds`` is the median of one round."""

    rounds: tuple[float, ...]
    calls: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median over all calls."""
        return statistics.median(self.calls)

    @property
    def p99(self) -> float:
        """99th percentile over all calls."""
        ordered = sorted(self.calls)
        return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]

    @property
    def spread(self) -> float:
        """Interquartile range of the calls over their median."""
        if len(self.calls) < 4:
            return 0.0
        first, _, third = statistics.quantiles(self.calls, n=4)
        return (third - first) / self.median

    def ratio_to(self, other: Timing) -> float:
        """How many times faster than ``other``: the median over the rounds that both ran in."""
        return statistics.median(theirs / mine for mine, theirs in zip(self.rounds, other.rounds, strict=True))


def interleave(runs: dict[str, Callable[[], Any]], seconds: float = 2.0, rounds: int = 9) -> dict[str, Timing]:
    """Time all runs in turn, round after round, so that a drift of the machine meets them all alike.

    Args:
        runs: calls without arguments; each is warmed up first.
        seconds: about how long the whole takes, warm-up left out.
        rounds: how often each gets its turn; the order turns round too.
    """
    budgets: dict[str, int] = {}
    share = seconds / rounds / len(runs)
    with torch.inference_mode(), _no_collection():
        for name, run in runs.items():
            for _ in range(3):
                run()
            start = time.perf_counter()
            run()
            budgets[name] = max(1, int(share / max(1e-7, time.perf_counter() - start)))
        times: dict[str, list[list[float]]] = {name: [] for name in runs}
        names = list(runs)
        for turn in range(rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                times[name].append(_calls(runs[name], budgets[name]))
    return {
        name: Timing(tuple(statistics.median(calls) for calls in each), tuple(t for calls in each for t in calls))
        for name, each in times.items()
    }


def _calls(run: Callable[[], Any], count: int) -> list[float]:
    run()  # brings its own data back into the caches after the others
    times = []
    for _ in range(count):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


@contextmanager
def _no_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Torch on that many threads, the process on as many processors."""
    before, count = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, sorted(before)[:threads])
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
        torch.set_num_threads(count)


def fma_peak() -> float | None:
    """GMAC/s of one core in registers, now; None without compiled kernels."""
    return _library.extension().fma_peak(0.3) if _library.EXTENSION else None


def peak_memory() -> int:
    """The process's largest resident size so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def machine_facts() -> dict[str, Any]:
    """Who measured: CPU, cores, instruction set, versions, date, allocator setting."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "instruction_set": _library.instruction_set(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "mnv3_fast": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "date": datetime.date.today().isoformat(),
        "malloc": {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")} or "default",
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    fields: dict[str, str] = {}
    if info.exists():
        for line in info.read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name", platform.processor() or platform.machine())
    family = f", family {fields['cpu family']} model {fields['model']}" if "cpu family" in fields else ""
    return name + family
