"""The comparison with other engines: its arithmetic, and that nothing wrong or missing passes in silence."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("benchmarks.rivals", reason="needs the source tree")

from benchmarks.rivals import environments, exports, results, timing
from benchmarks.rivals.cases import Case, sizes
from benchmarks.rivals.engine import Engine, Export
from benchmarks.rivals.engines import ACCELERATED, ENGINES, FROZEN
from benchmarks.rivals.environments import Missing
from benchmarks.rivals.process import Worker


def entry(key: str, *blocks: list[float], **facts: Any) -> dict[str, Any]:
    standard = {
        "error": 1e-6,
        "peak_rss": 50e6,
        "limited": True,
        "note": "",
        "versions": {"engine": "1.0"},
        "others": [0.25],
    }
    return {"engine": key, "name": ENGINES[key].name, "blocks": list(blocks), **standard, **facts}


@pytest.fixture
def record() -> dict[str, Any]:
    """Three rounds on a machine that becomes slower, an engine that we lose to, and one that is missing."""
    cell = {
        "case": "small-b8-224x224", "title": "small, batch 8", "batch": 8, "threads": 2, "macs": 60_000_000,
        "fma_peak": 50.0, "load_average": [[0.5, 0, 0], [0.6, 0, 0]],
        "entries": [
            entry("frozen", [0.001] * 3, [0.002] * 3, [0.004] * 3),
            entry("accelerated", [0.002] * 3, [0.002] * 3, [0.004] * 3),
            entry("openvino", [0.003] * 3, [0.003] * 3, [0.016] * 3),
            entry("ncnn", [0.0005, 0.0005, 9.0], [0.001] * 3, [0.002] * 3, note="a loop", limited=False),
        ],
        "missing": {"mnn": "pip install failed: no such version"},
    }  # fmt: skip
    machine = {"cpu": "a CPU", "instruction_set": "avx2", "date": "2026-01-01"}
    names = {key: engine.name for key, engine in ENGINES.items()}
    call = {"environment": {"MNV3_FAST_ISA": "avx2"}, "arguments": ["--nets", "small"]}
    return {**call, "machine": machine, "rounds": 3, "seconds": 0.2, "names": names, "cells": [cell]}


def test_ratios_are_of_the_same_rounds(record: dict[str, Any]) -> None:
    rows = {row.engine: row for row in results.rows(record["cells"][0])}
    assert rows["openvino"].milliseconds == pytest.approx(3.0)
    assert rows["openvino"].frozen_is_faster_by == pytest.approx(3.0)  # of 3, 1.5 and 4; the medians' is 1.5
    assert rows["openvino"].accelerated_is_faster_by == pytest.approx(1.5)
    assert rows["frozen"].frozen_is_faster_by == 1.0
    assert rows["frozen"].gmacs == pytest.approx(30.0)
    assert rows["frozen"].percent_of_peak == pytest.approx(30.0)  # of two cores


def test_losses_stay_and_missing_engines_are_named(record: dict[str, Any]) -> None:
    table = results.markdown(record)
    (loss,) = [line for line in table.splitlines() if line.startswith("| ncnn")]
    assert "| 0.50 (0.50 to 0.50) |" in loss
    assert "with all instruction sets" in loss
    assert "| MNN | missing |" in table
    assert "MNN is missing: pip install failed: no such version" in table
    assert "ncnn: a loop." in table
    assert "`MNV3_FAST_ISA=avx2 python -m benchmarks.rivals --nets small`" in table
    assert "other processes took 25% of a core" in table
    lines = {line["engine"]: line for line in csv.DictReader(results.to_csv(record).splitlines())}
    assert set(lines) == {"frozen", "accelerated", "openvino", "ncnn", "mnn"}
    assert lines["mnn"]["note"] == "missing: pip install failed: no such version"
    assert float(lines["ncnn"]["frozen_is_faster_by"]) == 0.5


def test_a_table_without_ours_has_no_ratio(record: dict[str, Any]) -> None:
    record["cells"][0]["entries"] = record["cells"][0]["entries"][2:]
    assert all(row.frozen_is_faster_by is None for row in results.rows(record["cells"][0]))
    assert "| OpenVINO | 3.00 ms |  |  |" in results.markdown(record)


@pytest.mark.parametrize("ours", [True, False])
def test_a_wrong_output_is_refused(ours: bool) -> None:
    expected = np.linspace(-1, 1, 2000, dtype=np.float32).reshape(2, 1000)
    limit = 2e-5 if ours else 1e-4
    assert timing.check(expected * np.float32(1 + 0.9 * limit), expected, ours) == pytest.approx(0.9 * limit, rel=0.05)
    with pytest.raises(Missing, match="wrong: relative error"):
        timing.check(expected * np.float32(1 + 1.1 * limit), expected, ours)
    with pytest.raises(Missing, match="wrong: relative error nan"):
        timing.check(np.where(expected > 0, expected, np.nan), expected, ours)
    with pytest.raises(Missing, match=r"wrong: its output has shape \[1, 1000\], not \[2, 1000\]"):
        timing.check(expected[:1], expected, ours)


def test_who_keeps_to_an_instruction_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("mnv3_fast._library.instruction_sets", lambda: ("baseline", "avx2", "avx512"))
    monkeypatch.setenv("MNV3_FAST_ISA", "avx2")
    environment, limited = timing.variables(ENGINES["openvino"], 1, tmp_path)
    assert limited
    assert environment["ONEDNN_MAX_CPU_ISA"] == environment["OV_CPU_MAX_ISA"] == "AVX2"
    assert timing.variables(ENGINES[FROZEN], 1, tmp_path)[1]
    assert not timing.variables(ENGINES["onnxruntime"], 1, tmp_path)[1]
    for value in ("avx512", ""):
        monkeypatch.setenv("MNV3_FAST_ISA", value)
        environment, limited = timing.variables(ENGINES["openvino"], 1, tmp_path)
        assert limited
        assert "ONEDNN_MAX_CPU_ISA" not in environment


def test_every_environment_has_its_requirements() -> None:
    named = {name for engine in ENGINES.values() for name in engine.environments()}
    assert named == {path.stem for path in environments.REQUIREMENTS.glob("*.txt")}
    assert (FROZEN, ACCELERATED) == (results.FROZEN, results.ACCELERATED)


def test_what_cannot_be_installed_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mnn.txt").write_text("no requirement at all\n")
    monkeypatch.setattr(environments, "REQUIREMENTS", tmp_path)
    failed = environments.set_up(tmp_path / "venv", ["mnn"])
    assert "pip install failed" in failed["mnn"]
    ours = ENGINES[FROZEN]
    missing = exports.export([ours, ENGINES["mnn"]], tmp_path, tmp_path, failed)
    assert missing == {"mnn": failed["mnn"]}


def test_what_cannot_be_exported_is_missing_for_all_who_need_it(tmp_path: Path) -> None:
    step = Export("shared", "model.bin", None, lambda folder: None)
    engines = [Engine(key, key, lambda folder, threads: None, exports=(step,)) for key in ("one", "two")]
    missing = exports.export(engines, tmp_path, tmp_path, {})  # the process does not know these engines
    assert missing.keys() == {"one", "two"}
    assert "export to shared: KeyError: 'one'" in missing["one"] == missing["two"]


@pytest.mark.slow
def test_a_worker_that_fails_or_dies_says_so(tmp_path: Path) -> None:
    worker = Worker(Path(sys.executable), ["serve", FROZEN, str(tmp_path), "1"], {}, tmp_path / "log")
    with pytest.raises(Missing, match=r"FileNotFoundError: .*case\.json"):
        worker.answer(60)
    with pytest.raises(Missing, match="its process ended with status 0"):
        worker.ask(do="time", seconds=0.1)
    worker.end()


def test_cases_have_names() -> None:
    assert str(Case("large", 1.0, 8, *sizes("224"))) == "large-b8-224x224"
    assert str(Case("small", 0.75, 1, *sizes("193x257"))) == "small-0.75-b1-193x257"
