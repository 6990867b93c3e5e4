"""The process of one engine. It runs in that engine's environment, which has neither mnv3_fast nor the other engines.

python -m benchmarks.rivals.worker export ENGINE STEP FOLDER
python -m benchmarks.rivals.worker serve ENGINE FOLDER THREADS

``serve`` loads the engine and answers, then obeys requests on standard input; requests and answers are lines of JSON.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import time
import traceback
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from benchmarks.rivals.engine import Engine, Run
from benchmarks.rivals.engines import ENGINES
from benchmarks.rivals.engines.ours import TREE

LEAST_CALLS = 3


def main(arguments: list[str]) -> None:
    """One step of an export, or the loop of answers."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what an engine prints must not come between the answers
    _end_with_parent()
    command, key, *rest = arguments
    try:
        if command == "export":
            step, folder = rest
            next(export for export in ENGINES[key].exports if export.name == step).run(Path(folder))
            _answer(answers, {})
        else:
            folder, threads = rest
            _serve({**ENGINES, TREE.key: TREE}[key], Path(folder), int(threads), answers)
    except Exception as error:
        traceback.print_exc()
        _answer(answers, {"error": f"{type(error).__name__}: {error}"})


def _answer(answers: TextIO, value: dict[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")


def _end_with_parent() -> None:
    """A worker may be stopped when its parent dies, and would then stay for ever."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _serve(engine: Engine, folder: Path, threads: int, answers: TextIO) -> None:
    # Before anything is imported: pools of threads look at this when they start.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    start = time.perf_counter()
    run = engine.load(folder, threads)
    run()
    loaded = time.perf_counter() - start
    for _ in range(2):
        run()
    gc.collect()
    gc.disable()
    _answer(answers, {"load_seconds": loaded, "versions": _versions(engine), "load_peak_rss": _peak_rss()})
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "time":
            _answer(answers, {"times": _times(run, request["seconds"])})
        elif request["do"] == "output":
            np.save(request["path"], np.asarray(run(), dtype=np.float32))
            _answer(answers, {"peak_rss": _peak_rss()})


def _times(run: Run, seconds: float) -> list[float]:
    """Seconds of each call in one turn; the first call wakes threads and caches, and is not counted."""
    run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < LEAST_CALLS or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def _versions(engine: Engine) -> dict[str, str]:
    return {name: metadata.version(name) for name in engine.packages}


def _peak_rss() -> int:
    """Bytes, imports and loading included. What getrusage says begins with the memory of the parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))


if __name__ == "__main__":
    main(sys.argv[1:])
