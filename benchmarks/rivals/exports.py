"""Models for every engine, each export in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from benchmarks.rivals import environments
from benchmarks.rivals.engine import Engine
from benchmarks.rivals.environments import Missing
from benchmarks.rivals.process import LOAD_TIMEOUT, Worker


def export(engines: Iterable[Engine], case_folder: Path, build: Path, failed: dict[str, str]) -> dict[str, str]:
    """Make what is not there yet; returns the engines that have no model of this case, and why.

    Args:
        engines: those that are wanted.
        case_folder: a prepared case.
        build: the folder of everything.
        failed: environments that could not be made, and why.
    """
    missing: dict[str, str] = {}
    broken: dict[str, str] = {}
    for engine in engines:
        reasons = [failed[name] for name in engine.environments() if name in failed]
        for step in engine.exports:
            if reasons or step.name in broken:
                reasons = reasons or [broken[step.name]]
                break
            try:
                _step(engine, step.name, step.environment, case_folder / step.file, build)
            except Missing as reason:
                broken[step.name] = f"export to {step.name}: {reason}"
        reasons += [broken[step.name] for step in engine.exports if step.name in broken]
        if reasons:
            missing[engine.key] = reasons[0]
            print(f"  {engine.name} is missing: {reasons[0]}", flush=True)
    return missing


def _step(engine: Engine, name: str, environment: str | None, file: Path, build: Path) -> None:
    if file.exists():
        return
    began = time.perf_counter()
    interpreter = environments.python(build / "venv", environment)
    log = build / "logs" / f"export-{name}.log"
    worker = Worker(interpreter, ["export", engine.key, name, str(file.parent)], {}, log)
    try:
        worker.answer(LOAD_TIMEOUT)
        if not file.exists():
            raise Missing(f"left no {file.name}, see {log}")
    except BaseException:
        file.unlink(missing_ok=True)  # half a file would pass for a whole one
        raise
    finally:
        worker.end()
    print(f"  {file.parent.name}: {file.name} in {time.perf_counter() - began:.0f} s", flush=True)
