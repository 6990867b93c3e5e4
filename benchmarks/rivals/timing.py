"""One cell: every engine in a process of its own, in turns, round after round."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from benchmarks.rivals import cases, environments
from benchmarks.rivals.cases import Case
from benchmarks.rivals.engine import Engine
from benchmarks.rivals.environments import Missing
from benchmarks.rivals.process import LOAD_TIMEOUT, Worker, busy_seconds
from mnv3_fast import _library
from mnv3_fast.testing import NET_LIMIT, relative_error
from mnv3_fast.testing.measure import fma_peak, pinned

T = TypeVar("T")
RIVAL_LIMIT = 1e-4
"""Relative L2 of another engine's output against torchvision's: it must be the same network, in float32."""

DISTURBED, TRIES = 0.1, 3
"""A turn in which others took more than this of a core is taken again, up to so many times."""


class Entry:
    """An engine in a cell: its worker and what is known of it."""

    def __init__(self, engine: Engine, worker: Worker, facts: dict[str, Any]) -> None:
        self.engine, self.worker, self.facts = engine, worker, facts
        self.blocks: list[list[float]] = []
        self.others: list[float] = []

    def record(self) -> dict[str, Any]:
        """For the results."""
        return {
            "engine": self.engine.key,
            "name": self.engine.name,
            **self.facts,
            "blocks": self.blocks,
            "others": self.others,
        }


def check(output: np.ndarray, expected: np.ndarray, ours: bool) -> float:
    """The error of an output; raises Missing for one that is wrong, of which no time is worth knowing."""
    limit = NET_LIMIT if ours else RIVAL_LIMIT
    if output.shape != expected.shape:
        raise Missing(f"wrong: its output has shape {list(output.shape)}, not {list(expected.shape)}")
    error = relative_error(torch.from_numpy(output), torch.from_numpy(expected))
    if not error <= limit:
        raise Missing(f"wrong: relative error {error:.3g}, limit {limit:g}")
    return error


def variables(engine: Engine, threads: int, build: Path) -> tuple[dict[str, str], bool]:
    """A worker's environment, and whether it keeps the engine to the instruction set in use."""
    found = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TORCHINDUCTOR_CACHE_DIR": str(build / f"inductor-{_library.instruction_set()}"),
    }
    wanted = os.environ.get("MNV3_FAST_ISA") or None
    if wanted is None or wanted == _library.instruction_sets()[-1]:
        return found, True
    return found | dict(engine.limits.get(wanted, {})), wanted in engine.limits


def start(engine: Engine, case_folder: Path, threads: int, build: Path) -> Entry:
    """Load an engine in its process and look at its output."""
    environment, limited = variables(engine, threads, build)
    interpreter = environments.python(build / "venv", engine.environment)
    arguments = ["serve", engine.key, str(case_folder), str(threads)]
    worker = Worker(interpreter, arguments, environment, build / "logs" / f"{engine.key}.log")
    try:
        facts = worker.answer(LOAD_TIMEOUT)
        facts |= {"limited": limited, "note": engine.note}
        entry = Entry(engine, worker, facts)
        look(entry, case_folder)
    except BaseException:
        worker.end()
        raise
    return entry


def look(entry: Entry, case_folder: Path) -> None:
    """Compare an engine's output with torchvision's; note the error and the memory of its process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "output.npy"
        entry.facts |= entry.worker.ask(do="output", path=str(path))
        output = np.load(path)
    entry.facts["error"] = check(output, cases.expected_output(case_folder), entry.engine.ours)


def measure(
    case: Case, engines: Iterable[Engine], threads: int, case_folder: Path, build: Path, seconds: float, rounds: int
) -> dict[str, Any]:
    """All engines that can in one cell; the record of it, with those that could not and why."""
    entries: list[Entry] = []
    missing: dict[str, str] = {}
    load = [os.getloadavg()]
    try:
        for engine in engines:  # one after another: an engine that compiles disturbs what is timed
            try:
                entries.append(start(engine, case_folder, threads, build))
            except Missing as reason:
                missing[engine.key] = str(reason)
                print(f"  {engine.name} is missing: {reason}", flush=True)
        peaks = _rounds(entries, missing, seconds, rounds)
        for entry in list(entries):
            _attempt(entry, entries, missing, lambda entry=entry: look(entry, case_folder))
    finally:
        for entry in entries:
            entry.worker.end()
    load.append(os.getloadavg())
    return {
        "case": str(case), "title": f"{case.title()}, {threads} thread{'s' if threads > 1 else ''}", **vars(case),
        "threads": threads, "fma_peak": statistics.median(peaks) if peaks else None, "fma_peaks": peaks,
        "load_average": load, "entries": [entry.record() for entry in entries], "missing": missing,
    }  # fmt: skip


def _attempt(entry: Entry, entries: list[Entry], missing: dict[str, str], call: Callable[[], T]) -> T | None:
    """Take an engine out of the cell as soon as anything fails."""
    try:
        return call()
    except Missing as reason:
        entry.worker.end()
        entries.remove(entry)
        missing[entry.engine.key] = str(reason)
        print(f"  {entry.engine.name} is missing: {reason}", flush=True)
        return None


def _rounds(entries: list[Entry], missing: dict[str, str], seconds: float, rounds: int) -> list[float]:
    """The turns; the order turns round, too. Returns the peak of the FMA units in each round."""
    peaks: list[float] = []
    for turn in range(rounds):
        with pinned(1):
            peaks += [] if (peak := fma_peak()) is None else [peak]
        first = turn % max(1, len(entries))
        for entry in entries[first:] + entries[:first]:
            block = _attempt(entry, entries, missing, lambda entry=entry: _turn(entry.worker, seconds))
            if block is not None:
                entry.blocks.append(block[0])
                entry.others.append(block[1])
    return peaks


def _turn(worker: Worker, seconds: float) -> tuple[list[float], float]:
    """The times of one turn, and how much of a core other processes and the host's other guests took meanwhile.

    A turn that was disturbed is taken again, a few times, and the least disturbed one counts.
    """
    turns = []
    for _ in range(TRIES):
        began, busy, own = time.perf_counter(), busy_seconds(), worker.processor_time() + time.process_time()
        times = worker.ask(do="time", seconds=seconds)["times"]
        wall, busy = time.perf_counter() - began, busy_seconds() - busy
        own = worker.processor_time() + time.process_time() - own
        turns.append((times, max(0.0, busy - own) / wall))
        if turns[-1][1] <= DISTURBED:
            break
    return min(turns, key=lambda turn: turn[1])
