"""The benchmark for GPUs, on the CPU: its arithmetic with a clock of our own, engines that fail, and how far it goes dry."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

pytest.importorskip("triton")

from mnv3_fast.cli import app
from mnv3_fast.cli import bench as bench_module
from mnv3_fast.testing.gpu_bench import cells, engines, report, runner
from mnv3_fast.testing.gpu_bench.cells import Cell
from mnv3_fast.testing.gpu_bench.engines import Engine, Missing
from mnv3_fast.testing.gpu_bench.timing import interleave

cli = CliRunner()


class FakeClock:
    """Time as the runs tell it: a run may have seconds, or a list of them, one a call; each turn is written down."""

    def __init__(self, seconds: dict[Any, Any]) -> None:
        self.seconds, self.turns = seconds, []

    def times(self, run: Any, count: int, flush: bool) -> list[float]:
        value = self.seconds[run]
        self.turns.append((run, count, flush))
        if isinstance(value, Exception):
            raise value
        found = value(len(self.turns)) if callable(value) else value
        return [found * (3 if flush else 1)] * count

    def bandwidth(self) -> float:
        return 1e9


class Net(nn.Module):
    """A model that is quickly computed."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 16, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.flatten(1))


def engine(key: str, change: Callable[[Tensor], Any] = lambda x: x, **options: Any) -> Engine:
    def build(model: nn.Module, images: Tensor, dtype: torch.dtype) -> Callable[[], Any]:
        import copy

        mine, x = copy.deepcopy(model).to(dtype), images.to(dtype)
        RUNS[key] = lambda: change(mine(x))
        return RUNS[key]

    return Engine(key, key, build, **options)


RUNS: dict[str, Any] = {}


class NamedClock(FakeClock):
    """Knows the runs by the engines' keys."""

    def times(self, run: Any, count: int, flush: bool) -> list[float]:
        key = next(name for name, value in RUNS.items() if value is run)
        return super().times(key, count, flush)


def raises(error: Exception) -> Callable[[Tensor], Any]:
    def change(x: Tensor) -> Any:
        raise error

    return change


@pytest.fixture(scope="module")
def cell() -> dict[str, Any]:
    """A cell in which one engine is slower, one wrong, one too large, one broken, one not installed, one dies later."""
    torch.manual_seed(0)
    chosen = (
        engine("frozen", ours=True),
        engine("eager"),
        engine("wrong", lambda x: x * 1.001),
        engine("nan", lambda x: x * math.nan),
        engine("half", lambda x: x[:1]),
        engine("large", raises(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))),
        engine("broken", raises(RuntimeError("no\nkernel image"))),
        engine("absent", module="no_such_module"),
        engine("dies"),
    )
    clock = NamedClock(
        {"frozen": 0.01, "eager": lambda turn: 0.02 + 0.001 * turn, "dies": RuntimeError("illegal address")}
    )
    images = torch.randn(4, 3, 4, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "level_bytes", lambda cell: {"b": 4e6, "c": 3e6})
        found = cells.measure(Cell("small", 4, "float32", 4), Net().eval(), images, clock, 1.8, 3, chosen)
    return found | {"turns": clock.turns}


def test_whoever_cannot_is_named_and_has_no_number(cell: dict[str, Any]) -> None:
    assert [row["engine"] for row in cell["rows"]] == ["frozen", "eager"]
    missing = cell["missing"]
    assert missing["large"] == "out of memory"
    assert missing["broken"] == "RuntimeError: no kernel image"
    assert missing["absent"] == "no_such_module is not installed"
    assert missing["dies"] == "RuntimeError: illegal address"
    assert missing["wrong"].startswith("wrong: relative error 0.001, limit 2e-05")
    assert missing["nan"].startswith("wrong: relative error nan")
    assert missing["half"] == "wrong: its output has shape [1, 10], not [4, 10]"
    table = report.table(cell)
    assert "| large | out of memory |" in table
    assert len({line.count("|") for line in table.splitlines()}) == 1


def test_figures_are_of_the_same_rounds(cell: dict[str, Any]) -> None:
    frozen, eager = cell["rows"]
    assert frozen["warm"]["ms"] == pytest.approx(10)
    assert frozen["flushed"]["ms"] == pytest.approx(30)
    assert frozen["warm"]["images_per_second"] == pytest.approx(400)
    assert frozen["warm"]["frozen_is_faster_by"] == 1.0
    # 4 MB at 1 GB/s are 4 ms of these 10.
    assert frozen["warm"]["percent_of_b"] == pytest.approx(40)
    assert frozen["warm"]["percent_of_c"] == pytest.approx(30)
    turns = [i + 1 for i, (run, _, flush) in enumerate(cell["turns"]) if run == "eager" and not flush][1:]
    ratios = sorted((0.02 + 0.001 * turn) / 0.01 for turn in turns)
    assert len(ratios) == 3
    assert eager["warm"]["frozen_is_faster_by"] == pytest.approx(ratios[1])
    assert {flush for _, _, flush in cell["turns"]} == {True, False}


def test_turns_are_interleaved_and_go_round() -> None:
    clock = FakeClock({"a": 0.01, "b": 0.02})
    timings, failed = interleave({"a": "a", "b": "b"}, clock, False, 1.2, 3)  # type: ignore[dict-item]
    assert [run for run, _, _ in clock.turns] == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert [count for _, count, _ in clock.turns[2:4]] == [20, 10]  # 0.2 s each
    assert not failed
    assert len(timings["a"].rounds) == 3


def test_a_wrong_result_of_ours_is_told_apart() -> None:
    rows = [{"title": "small", "missing": {"frozen": "wrong: relative error 1", "eager": "wrong: relative error 1"}}]
    assert report.wrong({"cells": rows}) == ["small, mnv3_fast frozen: wrong: relative error 1"]
    assert report.wrong({"cells": [{"title": "s", "missing": {"frozen": "out of memory"}}]}) == []


def test_16_bit_is_judged_by_what_torch_errs() -> None:
    model, images = Net().eval(), torch.randn(4, 3, 4, 4)
    with torch.no_grad():
        expected, error = cells.reference(model, images, torch.float16)
        assert expected.dtype is torch.float64
        assert 0 < error < 1e-2
        assert cells.limit_of(error, torch.float16) == pytest.approx(2 * error + 4 * 2**-10)
        with pytest.raises(Missing, match="wrong: relative error 0.0"):
            wrong = engine("wrong", lambda x: x * 1.02)
            cells.build(wrong, model, images, torch.float16, expected, cells.limit_of(error, torch.float16))
    assert cells.limit_of(1.0, torch.float32) == 2e-5


def test_what_is_checked_is_what_is_timed() -> None:
    """An engine that is right until it replays a graph is wrong."""
    model, images, calls = Net().eval(), torch.randn(4, 3, 4, 4), iter(range(100))
    with torch.no_grad():
        expected, _ = cells.reference(model, images, torch.float32)
        late = engine("late", lambda x: x if next(calls) < 2 else x * 1.02)
        with pytest.raises(Missing, match="wrong: relative error 0.0"):
            cells.build(late, model, images, torch.float32, expected, 2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rivals_run_the_same_network(dtype: torch.dtype) -> None:
    """Those that the CPU has, too: eager and AMP in each dtype, ourselves in float32."""
    from mnv3_fast.testing.parity import parity_images, parity_model

    model, images = parity_model("small", size=48), parity_images(2, 48)
    before = [parameter.clone() for parameter in model.parameters()]
    with torch.inference_mode():
        expected, error = cells.reference(model, images, dtype)
        limit = cells.limit_of(error, dtype)
        for one in engines.ENGINES:
            if one.key in ("eager", "amp") or (one.ours and dtype is torch.float32):
                run, mine = cells.build(one, model, images, dtype, expected, limit)
                assert mine <= limit
                assert run().shape == (2, 1000)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_images_that_do_not_fit_are_a_named_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(runner, "parity_model", lambda net, size: Net())
    monkeypatch.setattr(runner, "measure", full)
    place = torch.device("cpu")
    (found,) = runner.measured_cells([Cell("small", 1, "float16", 8)], place, 1.0, make_clock=lambda _: FakeClock({}))
    assert set(found["missing"].values()) == {"out of memory"}
    facts = {"gpu": "a GPU", "cuda": "13", "torch": "2", "date": "today"}
    text = report.markdown(runner.record_of(facts, ["bench"], [found], False))
    assert "| mnv3_fast frozen | out of memory |" in text
    assert "A copy moves" not in text


def test_the_report_says_who_measured(cell: dict[str, Any], tmp_path: Path) -> None:
    facts = {"gpu": "a GPU", "cuda": "13.2", "torch": "2.15", "date": "today"}
    record = runner.record_of(facts, ["mnv3-fast", "bench"], [cell], False)
    text = report.markdown(record)
    assert "a GPU, CUDA 13.2, torch 2.15, today" in text
    assert "`mnv3-fast bench`" in text
    assert "graphs" not in text
    facts["no_graphs"] = "switched off"
    assert "Ours without CUDA graphs: switched off" in report.markdown(record | {"machine": facts})
    assert "A copy moves 1 GB/s; a pass moves 4.0 MB at level b and 3.0 MB at level c" in text
    pytest.importorskip("matplotlib")
    assert report.plot(record, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
    assert not report.plot({"cells": []}, tmp_path / "none.png")


def test_a_dry_run_goes_as_far_as_the_launches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mnv3_fast.gpu.launch.Launch.run", lambda self: pytest.fail("a launch was started"))
    options = [
        "bench",
        "--device",
        "cuda",
        "--dry-run",
        "--net",
        "small",
        "--dtype",
        "float16",
        "--batch",
        "1",
        "--batch",
        "128",
    ]
    result = cli.invoke(app, [*options, "--output", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "A dry run: every launch was made and handed over, none was started, nothing was timed." in result.stdout
    one, many = json.loads((tmp_path / "bench-gpu.json").read_text())["cells"]
    assert (one["launches"], many["launches"]) == (46, 46)
    assert many["programs"] > 40 * one["programs"]
    assert many["unique"] / 128e6 == pytest.approx(6.1, rel=0.1)
    assert "frozen" in one["engines"]
    assert (tmp_path / "bench-gpu.md").read_text() == result.stdout


def test_the_command_measures_what_a_device_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole command with the CPU for a device and a clock that makes its times up."""

    def fake(cells_: list[Cell], device: torch.device, seconds: float, chosen: list[Engine]) -> Any:
        assert [one.key for one in chosen] == ["eager", "frozen"]
        clock = type("Clock", (FakeClock,), {"times": lambda self, run, count, flush: [0.001] * count})({})
        return runner_measured(cells_, torch.device("cpu"), seconds, chosen, make_clock=lambda _: clock)

    runner_measured = runner.measured_cells
    monkeypatch.setattr(runner, "measured_cells", fake)
    monkeypatch.setattr(runner, "facts_of", lambda _: {"gpu": "none", "cuda": "", "torch": "", "date": ""})
    monkeypatch.setattr(bench_module, "_gpu", lambda name, dry: torch.device("cuda", 0))
    options = ["--net", "small", "--size", "32", "--batch", "2", "--dtype", "float32", "--seconds", "0.1"]
    options += ["--engine", "frozen", "--engine", "eager", "--output", str(tmp_path), "--json"]
    result = cli.invoke(app, ["bench", "--device", "cuda", *options])
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout)["cells"]
    assert [row["engine"] for row in found["rows"]] == ["eager", "frozen"]
    assert all(row["error"] <= 2e-5 for row in found["rows"])
    # An engine of ours that computes something else ends the command with status 1, and its row has no number.
    monkeypatch.setattr(engines, "freeze", lambda model, progress: lambda x: model(x) * 1.001)
    result = cli.invoke(app, ["bench", "--device", "cuda", *options])
    assert result.exit_code == 1
    assert "no number on a wrong result: small, batch 2, float32, 32 x 32, mnv3_fast frozen" in " ".join(
        result.stderr.split()
    )
    (found,) = json.loads(result.stdout)["cells"]
    assert [row["engine"] for row in found["rows"]] == ["eager"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    result = cli.invoke(app, ["bench", "--device", "cuda"])
    assert result.exit_code == 2
    assert "finds no GPU; --dry-run goes as far as the launches" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "tpu", "--dry-run"], "--device must be cpu, cuda or cuda:N, got 'tpu'"),
        (["--device", "meta", "--dry-run"], "--device must be cpu, cuda or cuda:N, got 'meta'"),
        (["--device", "cuda", "--dry-run", "--threads", "2"], "--threads is for --device cpu"),
        (
            ["--device", "cuda", "--dry-run", "--dtype", "fp8"],
            "--dtype must be one of float32, float16, bfloat16, got 'fp8'",
        ),
        (["--device", "cuda", "--dry-run", "--engine", "onnx"], "--engine must be one of eager, amp, compiled"),
        (["--dry-run"], "--dry-run is for --device cuda"),
        (["--dtype", "float16"], "--dtype is for --device cuda"),
        (["--engine", "eager"], "--engine is for --device cuda"),
    ],
)
def test_refusals(options: list[str], message: str) -> None:
    result = cli.invoke(app, ["bench", *options])
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
