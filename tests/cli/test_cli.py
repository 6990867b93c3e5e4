"""The command line: what it prints, what it writes, and how it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

import mnv3_fast
from mnv3_fast.cli import app, guarded
from mnv3_fast.data.loading import WorkerDied
from mnv3_fast.data.processes import ProcessesLost
from mnv3_fast.testing import verify as verification

runner = CliRunner()


def test_info() -> None:
    result = runner.invoke(app, ["info"])
    assert result.exit_code == 0
    assert mnv3_fast.__version__ in result.output


def test_bench_writes_its_report(tmp_path: Path) -> None:
    options = ["bench", "--net", "small", "--size", "64", "--batch", "2", "--seconds", "0.2", "--output", str(tmp_path)]
    result = runner.invoke(app, options)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "bench.json").read_text())
    assert report["machine"]["torch"]
    assert {row["rival"] for row in report["rows"]} >= {
        "torchvision eager",
        "mnv3_fast accelerated",
        "mnv3_fast frozen",
    }
    assert all(row["ms"] > 0 and row["error"] <= 2e-5 for row in report["rows"])
    with (tmp_path / "bench.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(report["rows"])


def test_bench_refuses_a_wrong_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mnv3_fast.testing.rivals.freeze", lambda model: lambda x: model(x) * 1.001)
    options = ["bench", "--net", "small", "--size", "64", "--seconds", "0.2", "--output", str(tmp_path)]
    result = runner.invoke(app, options)
    assert result.exit_code == 1
    assert "no number on a wrong result" in result.stderr
    assert not (tmp_path / "bench.json").exists()


@pytest.mark.slow
def test_demo_on_own_photos(tmp_path: Path) -> None:
    from PIL import Image

    for i in range(2):
        Image.effect_noise((300, 280), 80 + 20 * i).convert("RGB").save(tmp_path / f"{i}.png")
    photos = [str(tmp_path / f"{i}.png") for i in range(2)]
    result = runner.invoke(app, ["demo", *photos, "--seconds", "0.02", "--output", str(tmp_path)])
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "demo.json").read_text())["rows"]
    assert len(rows) == 2 * 2 * 5
    assert all(row["top5_agreement"] == 1 and row["error"] <= 2e-5 for row in rows)
    assert "seeded random parity weights" in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["bench", "--net", "medium"], "--net must be one of large, small, got 'medium'"),
        (["bench", "--batch", "0"], "--batch must be at least 1, got 0"),
        (["bench", "--seconds", "-1"], "--seconds must be greater than 0"),
        (["demo", "--threads", "0"], "--threads must be at least 1"),
        (["explain", "--size", "100000000"], "there is not enough memory for this"),
        (["demo", "nothing.jpg"], "not an image that can be read: nothing.jpg: there is no such file"),
        (["demo", "--weights", "IMAGENET21K"], "--weights IMAGENET21K does not exist"),
    ],
)
def test_refusals(options: list[str], message: str) -> None:
    result = runner.invoke(app, options)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), "there is not enough memory for this"),
        (ProcessesLost("another of the processes has ended"), "another of the processes has ended"),
        (WorkerDied("a process that decodes images died"), "a process that decodes images died"),
    ],
)
def test_what_ends_without_a_traceback(error: Exception, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    def verb() -> None:
        raise error

    with pytest.raises(typer.Exit) as end:
        guarded(verb)()
    assert end.value.exit_code == 2
    assert f"mnv3-fast: {message}" in capsys.readouterr().err


def rows(passed: bool) -> list[verification.Row]:
    return [
        verification.Row("depthwise_conv", "avx2", 3, 0.5, 1.0, True),
        verification.Row("large, frozen", "avx2", 3, 1e-4, 2e-5, passed),
    ]


@pytest.mark.parametrize("passed", [True, False])
def test_verify_ends_with_status_1_on_a_miss(passed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "op_rows", lambda: rows(True))
    monkeypatch.setattr(verification, "model_rows", lambda: rows(passed))
    result = runner.invoke(app, ["verify"])
    assert result.exit_code == (0 if passed else 1)
    assert ("MISS" in result.stdout) is not passed
    assert "depthwise_conv avx2: as it should be" in result.stderr  # as soon as it is known


def test_verify_computes_what_it_prints() -> None:
    found = {row.name: row for row in verification.verify_models()}
    assert found["small, frozen"].passed
    assert all(row.passed for name, row in found.items() if "planted" in name)
    assert sum("planted" in name for name in found) == 12
