"""``mnv3-fast tune``, with the CPU for a GPU: what it prints and keeps, and how it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("triton")

from mnv3_fast.cli import app
from mnv3_fast.cli import tune as verb
from mnv3_fast.gpu import choice, first_use, tuned, tuning
from mnv3_fast.testing.gpu_bench import runner as facts
from mnv3_fast.testing.parity import parity_model
from tests.gpu_dispatch import fake_gpu
from tests.gpu_dispatch.common import one_channel_wrong
from tests.gpu_dispatch.fake_gpu import FakeGpu

cli = CliRunner()
CPU = torch.device("cpu", 0)
SMALL = ["tune", "small", "--size", "32", "--dtype", "float16"]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeGpu:
    """A GPU that can be tuned."""
    found = fake_gpu.install(monkeypatch, tmp_path / "cache")
    monkeypatch.setattr(verb, "gpu", lambda name: CPU)
    monkeypatch.setattr(first_use, "check_device", lambda *args: None)
    monkeypatch.setattr(facts, "facts_of", lambda device: {"gpu": "NVIDIA Test"})
    monkeypatch.setattr(tuning, "GraphClock", lambda device: found)
    return found


def words(text: str) -> str:
    return " ".join(text.split())


def test_it_prints_what_it_keeps(gpu: FakeGpu) -> None:
    result = cli.invoke(app, SMALL)
    assert result.exit_code == 0, result.output
    title, head, *rows, last = result.stdout.splitlines()
    assert title == "small, batch 1, float16, 32 x 32"
    assert head.split("\t") == ["layer", "blocks", "input", "triton us", "cuda us", "faster by", "rounds won", "taken"]
    cells = [row.split("\t") for row in rows]
    assert cells[0] == ["depthwise 3x3 stride 2", "1", "16 x 16 x 16", "3.00", "2.00", "1.50", "11", "cuda, measured"]
    assert cells[1] == ["depthwise 3x3 stride 2", "2", "72 x 8 x 8", "2.00", "1.00", "2.00", "11", "cuda, measured"]
    whole = [row for row in cells if row[0].startswith("whole block")]
    assert whole[0] == ["whole block 3x3 stride 2", "2", "16 x 8 x 8", "3.00", "5.00", "1.67", "11", "triton, measured"]
    blocks = [int(n) for row in cells if row[0].startswith("depthwise") for n in row[1].split(", ")]
    assert blocks == list(range(1, 12))
    path = tuned.choices().path_of(CPU)
    assert last == f"kept: {path}"
    kept = json.loads(path.read_text())["choices"]
    assert [item["variant"] for item in kept] == [row[-1].split(",")[0] for row in cells]
    assert "small, batch 1, float16, 32 x 32, depthwise 3x3 stride 2 of block 1: cuda (measured)" in result.stderr


def test_json(gpu: FakeGpu) -> None:
    gpu.seconds["depthwise_conv_cuda"] = 2e-6
    options = ["--batch", "1", "--batch", "2", "--dtype", "float32", "--json"]
    result = cli.invoke(app, [*SMALL, *options])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["machine"] == {"gpu": "NVIDIA Test"}
    assert report["kept"] == str(tuned.choices().path_of(CPU))
    found = [(cell["model"], cell["batch"], cell["size"], cell["dtype"]) for cell in report["cells"]]
    assert found == [("small", batch, 32, dtype) for batch in (1, 2) for dtype in ("float16", "float32")]
    first = report["cells"][0]["layers"][0]
    assert first["question"]["shape"] == [1, 16, 16, 16]
    assert (first["measured"], first["used"], first["why"]) == (None, "triton", "counted")
    assert first["seconds"] == pytest.approx({"triton": 3e-6, "cuda": 3e-6})
    assert not any(layer["question"]["op"] == "inverted_residual" for layer in report["cells"][1]["layers"])
    assert report["cells"][2]["layers"][0]["question"]["shape"] == [2, 16, 16, 16]


def test_a_wrong_kernel_ends_with_status_1(gpu: FakeGpu) -> None:
    gpu.damage["fused"] = lambda x: 3 * one_channel_wrong(x) - 2 * x
    result = cli.invoke(app, SMALL)
    assert result.exit_code == 1
    assert "whole block 3x3 stride 2 of block 2: cuda: wrong: " in words(result.stderr)
    (row,) = [line for line in result.stdout.splitlines() if line.startswith("whole block 3x3 stride 2")]
    assert row.split("\t")[3:] == ["3.00", "-", "-", "-", "triton, measured"]


def test_a_device_in_an_error_ends_it(gpu: FakeGpu) -> None:
    def dies(x: torch.Tensor) -> torch.Tensor:
        raise torch.AcceleratorError("CUDA error: an illegal\nmemory access")

    gpu.damage["cuda"] = dies
    result = cli.invoke(app, SMALL)
    assert result.exit_code == 1
    assert "a kernel left the device in an error: CUDA error: an illegal memory access" in words(result.stderr)


def test_after_ctrl_c_what_was_measured_is_kept(gpu: FakeGpu) -> None:
    def interrupted(x: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    gpu.damage["fused"] = interrupted
    result = cli.invoke(app, SMALL)
    assert result.exit_code == 130
    kept = json.loads(tuned.choices().path_of(CPU).read_text())["choices"]
    assert {item["op"] for item in kept} == {"depthwise_conv"}


def test_a_checkpoint_is_a_model(gpu: FakeGpu, tmp_path: Path) -> None:
    path = tmp_path / "small.pth"
    torch.save(parity_model("small", size=32).state_dict(), path)
    result = cli.invoke(app, ["tune", str(path), "--size", "32", "--dtype", "float16", "--json"])
    assert result.exit_code == 0, result.output
    (cell,) = json.loads(result.stdout)["cells"]
    assert cell["model"] == str(path)
    assert len(cell["layers"]) > 10


def test_forget(gpu: FakeGpu) -> None:
    path = tuned.choices().path_of(CPU)
    assert cli.invoke(app, SMALL).exit_code == 0
    assert path.exists()
    result = cli.invoke(app, ["tune", "--forget"])
    assert (result.exit_code, result.stdout) == (0, f"forgotten: {path}\n")
    assert not path.exists()
    result = cli.invoke(app, ["tune", "--forget", "--json"])
    assert (result.exit_code, json.loads(result.stdout)) == (0, {"forgotten": str(path)})
    path.mkdir()
    result = cli.invoke(app, ["tune", "--forget"])
    assert result.exit_code == 3
    assert f"{path} cannot be written: " in words(result.stderr)


def test_a_place_that_cannot_be_written_ends_it_before_anything_is_measured(
    gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("in the way")
    result = cli.invoke(app, SMALL)
    assert result.exit_code == 3
    assert "cache cannot be written: " in words(result.stderr)
    monkeypatch.setattr(tuned, "choices", lambda: tuned.Choices(lambda device: {}, None))
    result = cli.invoke(app, SMALL)
    assert result.exit_code == 3
    assert "what is measured cannot be kept: the user has no home directory" in words(result.stderr)
    assert gpu.timed == []


@pytest.mark.usefixtures("gpu")
def test_without_the_library_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "unusable_reason", lambda device: "_cuda.so is not in /there")
    result = cli.invoke(app, SMALL)
    assert result.exit_code == 2
    message = "--device cuda: no CUDA kernels, so there is nothing to choose between: _cuda.so is not in /there"
    assert message in words(result.stderr)
    assert result.stdout == ""


@pytest.mark.parametrize(("usable", "why", "status"), [(False, "switched off", 1), (True, "no kernel for this", 2)])
@pytest.mark.usefixtures("gpu")
def test_nothing_to_choose_between(usable: bool, why: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_use, "usable", lambda *args: usable)
    monkeypatch.setattr(choice, "_unknown", lambda question: None if why == "switched off" else why)
    result = cli.invoke(app, SMALL)
    assert result.exit_code == status
    assert f"small, batch 1, float16, 32 x 32: nothing to choose: {why}" in words(result.stderr)
    assert f"there is nothing to choose between: {why}" in words(result.stderr)
    assert not tuned.choices().path_of(CPU).exists()


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["medium"], "unknown model 'medium'"),
        (["small", "--batch", "0"], "--batch must be at least 1, got 0"),
        (["small", "--size", "-1"], "--size must be at least 1, got -1"),
        (["small", "--dtype", "fp8"], "--dtype must be one of float32, float16, bfloat16, got 'fp8'"),
        (["small", "--forget"], "--forget goes without models and options"),
        ([__file__], "checkpoint"),
    ],
)
def test_refusals(options: list[str], message: str) -> None:
    result = cli.invoke(app, ["tune", *options])
    assert result.exit_code == 2
    assert message in words(result.stderr)


def test_devices() -> None:
    for name in ("cpu", "tpu", "cuda:x"):
        result = cli.invoke(app, ["tune", "--device", name])
        assert result.exit_code == 2
        assert f"--device must be cuda or cuda:N, got '{name}'" in words(result.stderr)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    result = cli.invoke(app, ["tune"])
    assert result.exit_code == 2
    assert re.search("--device cuda: (torch finds no GPU|this torch .* without support for GPUs)", words(result.stderr))


def test_a_corrupt_file_is_told_of_once_and_put_right(gpu: FakeGpu, caplog: pytest.LogCaptureFixture) -> None:
    path = tuned.choices().path_of(CPU)
    path.parent.mkdir()
    path.write_text("{")
    assert cli.invoke(app, SMALL).exit_code == 0
    (record,) = caplog.records
    assert record.getMessage() == f"{path} is ignored: it is no JSON"
    assert len(json.loads(path.read_text())["choices"]) > 10
