"""``mnv3-fast verify --device cuda``: its rows and report with kernels that are told what to do, and its refusals."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import mnv3_fast
from mnv3_fast.cli import app
from mnv3_fast.cli import verify as cli
from mnv3_fast.gpu import first_use
from mnv3_fast.gpu.first_use import Checker
from mnv3_fast.testing import OP_FAULTS, op_cases, real_layers, verify_device
from tests.gpu_dispatch.common import CUDA, KIND, Stand, one_channel_wrong

runner = CliRunner()
CPU = torch.device("cpu")
FACTS = {"mnv3_fast": mnv3_fast.__version__, "device": "NVIDIA Test", "driver": None, "torch": torch.__version__}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cases of each kernel."""
    monkeypatch.setattr(verify_device, "device_cases", lambda op: op_cases(op)[-3:-1])


def test_every_real_layer_and_edge_is_a_case() -> None:
    for op in first_use.KERNELS:
        cases = verify_device.device_cases(op)
        assert {case.name for case in cases} == {case.name for case in op_cases(op)}
        assert len({case.layout for case in cases}) == 4
    names = {case.name for case in verify_device.device_cases("depthwise_conv")}
    layers = {layer.name for layer in real_layers("large") if layer.op == "depthwise_conv"}
    assert {f"large.{name}" for name in layers} & names
    tallest = max(case.make()[0][0].shape[2] for case in verify_device.device_cases("depthwise_conv")[:3])
    assert tallest == 112  # not shrunk


@pytest.mark.usefixtures("few")
def test_right_kernels_pass_and_faults_are_found() -> None:
    rows = list(verify_device.device_op_rows(CUDA, run=Stand()))
    assert all(row.passed for row in rows), [row for row in rows if not row.passed]
    assert len(rows) == 5 * 3 + sum(fault.case.op in first_use.KERNELS for fault in OP_FAULTS.values())
    assert [row.error > row.limit for row in rows if "planted" in row.name] == [True] * (len(rows) - 15)


@pytest.mark.usefixtures("few")
def test_a_wrong_kernel_and_one_that_raises_are_misses() -> None:
    def raising(x: Any) -> Any:
        raise RuntimeError("no such\ninstruction")

    stand = Stand(depthwise_conv=one_channel_wrong, stem_conv=raising)
    rows = {row.name: row for row in verify_device.device_op_rows(CUDA, [torch.float16], stand)}
    assert {name for name, row in rows.items() if not row.passed} == {"depthwise_conv", "stem_conv"}
    wrong, broken = rows["depthwise_conv"], rows["stem_conv"]
    assert wrong.error is not None and wrong.limit is not None and wrong.error > wrong.limit
    first, worst = (str(wrong.reason).partition(": ")[0], wrong.worst)  # miss, which need not be the same
    assert {first, worst} <= {str(case) for case in verify_device.device_cases("depthwise_conv")}
    assert broken.reason is not None and broken.reason.endswith(": RuntimeError: no such instruction")


@pytest.mark.usefixtures("few")
def test_a_fault_that_nobody_finds_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    fault = next(fault for fault in OP_FAULTS.values() if fault.case.op == "depthwise_conv")
    fault = dataclasses.replace(fault, plant=lambda args, keywords: (args, keywords))
    monkeypatch.setattr(verify_device, "OP_FAULTS", {"nothing": fault})
    *_, row = verify_device.device_op_rows(CUDA, [torch.float32], Stand())
    assert row.name == "planted in nothing"
    assert not row.passed


def test_a_network_that_runs_without_our_kernels_is_a_miss() -> None:
    """On the CPU nothing of ours is launched by Triton."""
    rows = list(verify_device.device_model_rows(CPU, [torch.float32], ["small"]))
    assert [(row.name, row.launches, row.passed, row.reason) for row in rows] == [
        ("small, accelerated", 0, False, "it ran without a kernel of ours"),
        ("small, frozen", 0, False, "it ran without a kernel of ours"),
    ]
    assert all(row.error is not None and row.error <= row.limit == 2e-5 for row in rows)


def test_a_wrong_network_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_device, "accelerate", lambda model: lambda x: model(x) * 1.001)
    monkeypatch.setattr(verify_device, "freeze", lambda model: model.nothing)
    monkeypatch.setattr(verify_device, "SIZES", ((32, 32),))
    wrong, broken = verify_device.device_model_rows(CPU, [torch.float32], ["small"])
    assert wrong.reason == "32 x 32: relative_error 0.001, limit 2e-05"
    assert broken.reason is not None and broken.reason.startswith("AttributeError: ")


@pytest.mark.parametrize("wrong", [1, verify_device.REPLAYS])
def test_a_replay_that_differs_is_a_miss(monkeypatch: pytest.MonkeyPatch, wrong: int) -> None:
    """By one bit of one value; the call that launches can be counted in is the first."""
    calls = iter(range(100))

    def changed(output: torch.Tensor) -> torch.Tensor:
        if next(calls) == wrong:
            output[0, 0] = torch.nextafter(output[0, 0], torch.tensor(9.0))
        return output

    monkeypatch.setattr(verify_device, "accelerate", lambda model: lambda x: changed(model(x)))
    monkeypatch.setattr(verify_device, "freeze", lambda model: model)
    monkeypatch.setattr(verify_device, "SIZES", ((32, 32),))
    first, second = verify_device.device_model_rows(CPU, [torch.float32], ["small"])
    assert first.reason == "32 x 32: a later call, by a CUDA graph, gives something else"
    assert second.reason == "it ran without a kernel of ours"


@pytest.mark.parametrize("passed", [True, False])
def test_the_command_writes_its_report(passed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand() if passed else Stand(squeeze_excite=one_channel_wrong)
    checker = Checker(stand, lambda device: KIND, tmp_path / "cache")
    rows = [verify_device.DeviceRow("large, frozen", "float16", 3, 1e-4, 4e-3, "32 x 32", 58, True)]
    monkeypatch.setattr(first_use, "checker", lambda: checker)
    monkeypatch.setattr(cli, "gpu", lambda *names: CUDA)
    monkeypatch.setattr(verify_device, "device_facts", lambda device: FACTS)
    monkeypatch.setattr(verify_device, "device_op_rows", lambda device, dtypes: iter(()))
    monkeypatch.setattr(verify_device, "device_model_rows", lambda device, dtypes: iter(rows))
    command = ["verify", "--device", "cuda", "--dtype", "float16", "--output", str(tmp_path / "report"), "--json"]
    result = runner.invoke(app, command)
    assert result.exit_code == (0 if passed else 1), result.output
    report = json.loads((tmp_path / "report" / "verify.json").read_text())
    assert report == json.loads(result.stdout)
    assert report["passed"] is passed
    assert report["machine"] == FACTS
    assert len(report["first_use"]) == 5
    text = (tmp_path / "report" / "verify.txt").read_text()
    word = "passed" if passed else "MISS"
    assert text.startswith(f"mnv3_fast {mnv3_fast.__version__} on NVIDIA Test: {word}\n")
    assert "large, frozen float16: 3 cases, error 0.0001, limit 0.004, equal\n" in text
    assert ("squeeze_excite float16: error" in text) is True
    assert ("switched off: " in text) is not passed
    assert "large, frozen float16: as it should be" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "tpu"], "--device must be cpu, cuda or cuda:N, got 'tpu'"),
        (["--device", "cuda:x"], "--device must be cpu, cuda or cuda:N, got 'cuda:x'"),
        (["--device", "cuda", "--dtype", "int8"], "--dtype must be one of float32, float16, bfloat16, got 'int8'"),
        (["--dtype", "float16"], "--dtype is for --device cuda; on the CPU there is float32 alone"),
    ],
)
def test_refusals(options: list[str], message: str) -> None:
    result = runner.invoke(app, ["verify", *options])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in " ".join(result.stderr.split())


def test_refusals_of_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(device: str = "cuda") -> str:
        result = runner.invoke(app, ["verify", "--device", device, "--output", str(tmp_path / "report")])
        assert result.exit_code == 2
        assert not (tmp_path / "report").exists()
        return " ".join(result.stderr.split())

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    wanted = "mnv3-fast: --device cuda: torch finds no GPU that it can use; is there one, and its driver?"
    assert refusal() == wanted
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    assert refusal().endswith("was built without support for GPUs")
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert refusal("cuda:2") == "mnv3-fast: --device cuda:2: the last one here is cuda:1"
    with mnv3_fast.force_backend("reference"):
        assert refusal("cuda:1").endswith("MNV3_FAST_BACKEND=reference has switched the kernels off")
    monkeypatch.setattr(first_use, "triton_version", lambda: ("", "ImportError: broken"))
    assert refusal("cuda:1") == "mnv3-fast: --device cuda:1: Triton cannot be imported: ImportError: broken"
