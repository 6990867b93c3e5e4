"""The check of the library's kernels before their first use: when it is made, what a miss changes, what is remembered."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mnv3_fast.gpu import choice, cuda_library, first_use
from mnv3_fast.gpu.choice import Question
from mnv3_fast.gpu.first_use import CUDA_KERNELS, DTYPES, KERNELS, Checker
from mnv3_fast.gpu.outcomes import name_of
from mnv3_fast.testing import on_device, op_cases, verify_device
from mnv3_fast.testing.cases import Case
from mnv3_fast.testing.op_faults import OP_FAULTS
from tests.gpu_dispatch.common import CUDA, KIND, Stand, one_channel_wrong
from tests.gpu_dispatch.fake_library import FakeLibrary, install

HALF = torch.float16
SAME3 = (1, 1, 1, 1, 1, 1, 1, 1)
LAYER = Question("depthwise_conv", HALF, (1, 72, 56, 56), (3, 3), SAME3, 2)
WRONG = (
    r"depthwise_conv_cuda in float16 is switched off on NVIDIA Test \(cuda:0\), Triton's kernels run instead: "
    r"(relative|max)_error 0\.01\d+, limit 0\.00\d+ \(first use 0-channels_last\)"
)


@pytest.fixture(autouse=True)
def _library(monkeypatch: pytest.MonkeyPatch) -> None:
    install(FakeLibrary({}), monkeypatch)


class ForcedStand(Stand):
    """Writes down what is forced, and damages the CUDA kernels alone."""

    def __init__(self, **damage: Any) -> None:
        super().__init__(**damage)
        self.forced: list[tuple[str, str | None]] = []

    def __call__(self, op: str, args: tuple, device: torch.device) -> Any:
        name = op.removesuffix("_mean")
        self.forced.append((name, choice.forced(name)))
        damage, self.damage = self.damage, self.damage if choice.forced(name) == "cuda" else {}
        try:
            return super().__call__(op, args, device)
        finally:
            self.damage = damage


def checker(stand: Stand, folder: Path | None = None, kind: tuple[str, str] = KIND) -> Checker:
    return Checker(stand, lambda device: kind, folder)


def test_each_kernel_is_checked_alone() -> None:
    stand = ForcedStand()
    report = checker(stand).check(CUDA)
    assert report.passed
    wanted = {(kernel, name_of(dtype)) for kernel in KERNELS for dtype in DTYPES}
    wanted |= {(kernel, name_of(dtype)) for kernel, dtypes in CUDA_KERNELS.items() for dtype in dtypes}
    assert {(outcome.kernel, outcome.dtype) for outcome in report.outcomes} == wanted
    assert set(stand.forced) == {
        ("depthwise_conv", "triton"), ("depthwise_conv", "cuda"), ("inverted_residual", "cuda"),
        *[(kernel, None) for kernel in KERNELS if kernel != "depthwise_conv"],
    }  # fmt: skip


def test_every_case_and_fault_has_a_kernel_and_together_they_have_each() -> None:
    """Sizes and strides; of blocks with squeeze-excite and without."""
    questions = [question_of(case) for cases in on_device.CUDA_FIRST_USE.values() for case in cases]
    faults = [fault.case for fault in OP_FAULTS.values() if fault.case.op in choice.OPS]
    assert [choice.is_known(each) for each in questions] == [True] * len(questions)
    assert [choice.is_known(question_of(case)) for case in faults] == [True] * len(faults)
    every = {(k, stride) for k in (3, 5) for stride in (1, 2)}
    for op in choice.OPS:
        assert {(each.kernel[0], each.window[0]) for each in questions if each.op == op} == every
    assert {each.squeeze > 0 for each in questions if each.op == "inverted_residual"} == {True, False}


def question_of(case: Case) -> Question:
    """What a case asks."""
    args, keywords = case.make()
    (n, c, h, w), stride = args[0].shape, keywords.get("stride", 1)
    block = case.op == "inverted_residual"
    weight = args[1][0] if block else args[1]
    window = (stride, stride, *[weight.shape[-1] // 2] * 4, 1, 1)
    channels = {}
    if block:
        squeeze = keywords["squeeze_excite"][0].shape[0] if "squeeze_excite" in keywords else 0
        channels = {"hidden": keywords["expand"][0].shape[0], "squeeze": squeeze, "out": args[2][0].shape[0]}
    return Question(case.op, HALF, (n, c, h, w), tuple(weight.shape[2:]), window, **channels)


def test_a_wrong_kernel_leaves_its_layers_to_triton(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stand = ForcedStand(depthwise_conv=one_channel_wrong)
    found = checker(stand)
    monkeypatch.setattr(first_use, "checker", lambda: found)
    assert [choice.reason(LAYER, CUDA) for _ in range(3)] == [("triton", "switched off")] * 3
    assert found.usable("depthwise_conv", CUDA, HALF)  # Triton's is right
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert re.fullmatch(WRONG, record.getMessage())


def test_an_error_of_the_library_is_a_miss(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fails(x: Tensor) -> Tensor:
        raise RuntimeError("depthwise_conv: its CUDA kernel was not started: no kernel image is available")

    found = checker(ForcedStand(depthwise_conv=fails))
    monkeypatch.setattr(first_use, "checker", lambda: found)
    assert choice.reason(LAYER, CUDA) == ("triton", "switched off")
    (record,) = caplog.records
    assert record.getMessage().endswith(
        "RuntimeError: depthwise_conv: its CUDA kernel was not started: no kernel image is available"
    )


def test_nothing_is_chosen_that_was_not_checked_before_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    found = checker(stand := ForcedStand())
    monkeypatch.setattr(first_use, "checker", lambda: found)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(first_use, "recording", lambda: True)
    assert choice.reason(LAYER, CUDA) == ("triton", "switched off")
    assert stand.calls == []
    monkeypatch.setattr(first_use, "recording", lambda: False)
    assert choice.reason(LAYER, CUDA) == ("cuda", "counted")


def test_without_triton_nothing_of_it_is_said_to_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(first_use, "triton_version", lambda: ("", "ImportError: broken"))
    assert not checker(ForcedStand()).usable("depthwise_conv_cuda", CUDA, HALF)
    assert [record.getMessage() for record in caplog.records] == [
        "depthwise_conv_cuda is switched off on NVIDIA Test (cuda:0), torch's own operators run instead: "
        "Triton cannot be imported: ImportError: broken"
    ]


def test_an_older_gpu_is_not_checked_for_them() -> None:
    stand = ForcedStand()
    report = checker(stand, kind=("Tesla T4", "7.5")).check(CUDA, [HALF])
    assert [outcome.kernel for outcome in report.outcomes] == list(KERNELS)


def test_another_library_is_checked_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not checker(ForcedStand(depthwise_conv=one_channel_wrong), tmp_path).usable(
        "depthwise_conv_cuda", CUDA, HALF
    )
    stand = ForcedStand()
    assert not checker(stand, tmp_path).usable("depthwise_conv_cuda", CUDA, HALF)
    assert stand.calls == []
    monkeypatch.setattr(cuda_library, "hash_of", lambda: "ef" * 32)
    assert checker(stand, tmp_path).usable("depthwise_conv_cuda", CUDA, HALF)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.fixture
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_device, "device_cases", lambda op: op_cases(op)[:2])


@pytest.mark.usefixtures("_few")
def test_verify_has_rows_of_each_kernel_and_of_faults_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_use, "checker", lambda: checker(ForcedStand()))
    rows = list(verify_device.device_op_rows(CUDA, run=ForcedStand()))
    assert all(row.passed for row in rows), [row for row in rows if not row.passed]
    names = [(row.name, row.dtype) for row in rows]
    assert [dtype for name, dtype in names if name == "inverted_residual_cuda"] == ["float16", "bfloat16"]
    assert [dtype for name, dtype in names if name == "depthwise_conv_cuda"] == ["float32", "float16", "bfloat16"]
    planted = {name.removeprefix("planted in ").removesuffix(", CUDA") for name, _ in names if name.endswith(", CUDA")}
    ops = ("depthwise_conv", "inverted_residual")
    assert planted == {fault for fault, each in OP_FAULTS.items() if each.case.op in ops}


@pytest.mark.usefixtures("_few")
def test_verify_tells_of_a_wrong_kernel_and_of_one_that_has_no_case(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(x: Tensor) -> Tensor:
        raise choice.NoKernel("no kernel")

    monkeypatch.setattr(first_use, "checker", lambda: checker(ForcedStand()))
    stand = ForcedStand(depthwise_conv=one_channel_wrong, inverted_residual=none)
    rows = {row.name: row for row in verify_device.device_op_rows(CUDA, [HALF], stand)}
    assert {name for name, row in rows.items() if not row.passed and "planted" not in name} == {
        "depthwise_conv_cuda",
        "inverted_residual_cuda",
    }
    assert (rows["inverted_residual_cuda"].cases, rows["inverted_residual_cuda"].reason) == (
        0,
        "there is no case that it computes",
    )
    planted = [row for name, row in rows.items() if name.startswith("planted in inverted_residual")]
    assert planted
    assert not any(row.passed for row in planted)
