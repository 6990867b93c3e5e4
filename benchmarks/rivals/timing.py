"""One cell: every engine in a process of its own, in turns, round after round."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.rivals import cases, environments
from benchmarks.rivals.cases import Case
from benchmarks.rivals.engine import Engine
from benchmarks.rivals.environments import Missing
from benchmarks.rivals.process import LOAD_TIMEOUT, Worker, machine_times
from mnv3_fast import _library
from mnv3_fast.testing import NET_LIMIT, relative_error
from mnv3_fast.testing.measure import fma_peak, pinned

RIVAL_LIMIT = 1e-4
"""Relative L2 of another engine's output against torchvision's: it must be the same network, in float32."""


class Entry:
    """An engine in a cell: its worker and what is known of it."""

    def __init__(self, engine: Engine, worker: Worker, facts: dict[str, Any]) -> None:
        self.engine, self.worker, self.facts = engine, worker, facts
        self.blocks: list[list[float]] = []

    def record(self) -> dict[str, Any]:
        """For the results."""
        return {"engine": self.engine.key, "name": self.engine.name, **self.facts, "blocks": self.blocks}


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
        "TORCHINDUCTOR_CACHE_DIR": str(build / "inductor"),
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
        peaks, busy = _rounds(entries, missing, seconds, rounds)
        for entry in list(entries):
            _attempt(entry, entries, missing, lambda entry=entry: look(entry, case_folder))
    finally:
        for entry in entries:
            entry.worker.end()
    load.append(os.getloadavg())
    return {
        "case": str(case), "title": f"{case.title()}, {threads} thread{'s' if threads > 1 else ''}", **vars(case),
        "threads": threads, "fma_peak": statistics.median(peaks) if peaks else None, "fma_peaks": peaks,
        "load_average": load, **busy, "entries": [entry.record() for entry in entries], "missing": missing,
    }  # fmt: skip


def _attempt(entry: Entry, entries: list[Entry], missing: dict[str, str], call: Any) -> Any:
    """Take an engine out of the cell as soon as anything fails."""
    try:
        return call()
    except Missing as reason:
        entry.worker.end()
        entries.remove(entry)
        missing[entry.engine.key] = str(reason)
        print(f"  {entry.engine.name} is missing: {reason}", flush=True)
        return None


def _rounds(
    entries: list[Entry], missing: dict[str, str], seconds: float, rounds: int
) -> tuple[list[float], dict[str, float]]:
    """The turns; the order turns round, too. Also the peak of the FMA units and what other processes took meanwhile."""
    peaks: list[float] = []
    began, (busy, stolen) = time.perf_counter(), machine_times()
    own = sum(entry.worker.processor_time() for entry in entries) + time.process_time()
    for turn in range(rounds):
        with pinned(1):
            peaks += [] if (peak := fma_peak()) is None else [peak]
        first = turn % max(1, len(entries))
        for entry in entries[first:] + entries[:first]:
            answer = _attempt(entry, entries, missing, lambda e=entry: e.worker.ask(do="time", seconds=seconds))
            if answer is not None:
                entry.blocks.append(answer["times"])
    wall, (busy_after, stolen_after) = time.perf_counter() - began, machine_times()
    own = sum(entry.worker.processor_time() for entry in entries) + time.process_time() - own
    return peaks, {
        "seconds": wall,
        "others_busy": max(0.0, busy_after - busy - own) / wall,  # of one processor
        "stolen": (stolen_after - stolen) / wall,
    }
