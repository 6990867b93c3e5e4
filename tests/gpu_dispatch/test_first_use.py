"""The check before a kernel is first used on a device: what it finds, says, remembers and leaves alone."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import mnv3_fast
from mnv3_fast.gpu import dispatch, first_use
from mnv3_fast.gpu.first_use import DTYPES, KERNELS, Checker
from mnv3_fast.ops import depthwise_conv as public
from mnv3_fast.testing import on_device
from mnv3_fast.testing.compare import op_module
from tests.gpu_dispatch.common import CUDA, KIND, Stand, one_channel_wrong

HALF = torch.float16
SHAPE = "shape [1, 24, 9, 17] is not [2, 24, 9, 17]"
WRONG = (
    "depthwise_conv in float16 is switched off on NVIDIA Test (cuda:0), torch's own operators run instead: "
    f"{SHAPE} (first use 0-channels_last)"
)


def one_image(x: Tensor) -> Tensor:
    return x[:1]


def raises(error: BaseException) -> Any:
    def damage(x: Tensor) -> Tensor:
        raise error

    return damage


def checker(stand: Stand, folder: Path | None = None, kind: tuple[str, str] = KIND) -> Checker:
    return Checker(stand, lambda device: kind, folder)


def test_right_kernels_pass(caplog: pytest.LogCaptureFixture) -> None:
    stand = Stand()
    report = checker(stand).check(CUDA)
    assert report.passed
    assert {(o.kernel, o.dtype) for o in report.outcomes} == {(k, str(d)[6:]) for k in KERNELS for d in DTYPES}
    assert all(o.error is not None and o.limit is not None and o.error <= o.limit for o in report.outcomes)
    ran = [(op, dtype) for op, dtype in stand.calls if op == "depthwise_conv_mean"]
    assert len(ran) == 3 * 3
    assert not caplog.records


def test_a_wrong_kernel_is_switched_off_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    stand = Stand(depthwise_conv=one_channel_wrong)
    found = checker(stand)
    assert [found.usable("depthwise_conv", CUDA, HALF) for _ in range(3)] == [False] * 3
    assert found.usable("pointwise_conv", CUDA, HALF)
    (record,) = caplog.records
    numbers = r"(relative|max)_error 0\.01\d+, limit 0\.00\d+"  # off by a percent; 2 x torch's error + 4 eps of float16
    assert record.levelname == "WARNING"
    assert re.fullmatch(re.escape(WRONG).replace(re.escape(SHAPE), numbers), record.getMessage())
    assert sum(op.startswith("depthwise") for op, _ in stand.calls) == 1  # the first miss ended it


def test_a_kernel_that_raises_is_switched_off_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    found = checker(Stand(stem_conv=raises(RuntimeError("out of\nresource"))))
    assert not found.usable("stem_conv", CUDA, torch.float32)
    assert not found.usable("stem_conv", torch.device("cuda"), torch.float32)
    assert [r.getMessage() for r in caplog.records] == [
        "stem_conv in float32 is switched off on NVIDIA Test (cuda:0), torch's own operators run instead: "
        "RuntimeError: out of resource"
    ]


@pytest.mark.parametrize("damage", [lambda x: x.double(), lambda x: x[:1], lambda x: x * float("nan")])
def test_what_cannot_be_compared_is_a_miss(damage: Any) -> None:
    assert not checker(Stand(squeeze_excite=damage)).usable("squeeze_excite", CUDA, HALF)


def test_the_reference_runs_in_place_of_a_kernel_that_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what is registered for CUDA tensors, on CPU ones."""
    module = op_module("depthwise_conv")
    ran = []
    monkeypatch.setitem(dispatch.RUN, "depthwise_conv", lambda *args: ran.append(args))
    found = checker(Stand(depthwise_conv=one_channel_wrong))
    monkeypatch.setattr(first_use, "checker", lambda: found)
    on_gpu = dispatch.implementation("depthwise_conv", "depthwise_conv", module.REFERENCE)
    args = on_device.arguments(on_device.FIRST_USE["depthwise_conv"][0], HALF)
    output = on_gpu(*args)
    assert ran == []
    assert torch.equal(output, module.reference.depthwise_conv(*args))
    assert output.stride()[1] == 1
    args = on_device.arguments(on_device.FIRST_USE["depthwise_conv"][0], torch.float32)
    found = checker(Stand())
    on_gpu(*args)
    assert len(ran) == 1


def test_two_devices_of_a_kind_are_checked_once_and_told_of_each(caplog: pytest.LogCaptureFixture) -> None:
    stand = Stand(depthwise_conv=one_image)
    found = checker(stand)
    assert not found.usable("depthwise_conv", CUDA, HALF)
    assert not found.usable("depthwise_conv", torch.device("cuda", 1), HALF)
    assert len(stand.calls) == 1
    assert [r.getMessage() for r in caplog.records] == [WRONG, WRONG.replace("cuda:0", "cuda:1")]


def test_the_outcome_is_kept_for_the_next_process(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = checker(Stand(depthwise_conv=one_image), tmp_path)
    assert not first.usable("depthwise_conv", CUDA, HALF)
    assert first.usable("stem_conv", CUDA, HALF)
    stand = Stand()
    second = checker(stand, tmp_path)
    assert not second.usable("depthwise_conv", CUDA, HALF)
    assert second.usable("stem_conv", CUDA, HALF)
    assert stand.calls == []
    assert [r.getMessage() for r in caplog.records] == [WRONG, WRONG]
    other = checker(stand, tmp_path, ("NVIDIA Test", "8.0"))
    assert other.usable("depthwise_conv", CUDA, HALF)
    again = second.check(CUDA, [HALF], again=True)
    assert again.passed
    assert checker(Stand(depthwise_conv=one_image), tmp_path).usable("depthwise_conv", CUDA, HALF)


def test_too_little_memory_is_not_remembered(tmp_path: Path) -> None:
    first = checker(Stand(stem_conv=raises(torch.OutOfMemoryError("no memory"))), tmp_path)
    assert not first.usable("stem_conv", CUDA, HALF)
    assert checker(Stand(), tmp_path).usable("stem_conv", CUDA, HALF)


def test_a_kernel_that_breaks_the_device_is_not_blamed_on_the_next(tmp_path: Path) -> None:
    broken = Stand(stem_conv=raises(torch.AcceleratorError("CUDA error: an illegal memory access")))
    first = checker(broken, tmp_path)
    assert not first.usable("stem_conv", CUDA, HALF)
    assert not first.usable("squeeze_excite", CUDA, HALF)
    assert {op for op, _ in broken.calls} == {"stem_conv"}
    second = checker(Stand(), tmp_path)
    assert not second.usable("stem_conv", CUDA, HALF)
    assert second.usable("squeeze_excite", CUDA, HALF)


def test_nothing_is_checked_while_a_graph_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand()
    found = checker(stand)
    assert found.usable("stem_conv", CUDA, HALF)
    count = len(stand.calls)
    with FakeTensorMode():
        assert found.usable("stem_conv", CUDA, HALF)
        assert not found.usable("squeeze_excite", CUDA, HALF)
        assert [o.kernel for o in found.check(CUDA, [HALF]).outcomes] == ["stem_conv"]
        assert not Checker(stand).usable("stem_conv", CUDA, HALF)  # there is no such device
        assert Checker(stand).check(CUDA) == first_use.Report(CUDA, {}, ())
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not found.usable("squeeze_excite", CUDA, HALF)
    assert len(stand.calls) == count
    monkeypatch.undo()
    assert found.usable("squeeze_excite", CUDA, HALF)


def test_the_off_switch(caplog: pytest.LogCaptureFixture) -> None:
    stand = Stand()
    found = checker(stand)
    with mnv3_fast.force_backend("reference"):
        assert not found.usable("stem_conv", CUDA, HALF)
        assert found.check(CUDA).outcomes == ()
    assert stand.calls == []
    assert not caplog.records
    assert found.usable("stem_conv", CUDA, HALF)


def test_without_triton_one_warning_for_a_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(first_use, "triton_version", lambda: ("", "ModuleNotFoundError: No module named 'triton'"))
    stand = Stand()
    found = checker(stand, tmp_path)
    for dtype in DTYPES:
        assert not found.usable("stem_conv", CUDA, dtype)
    assert [r.getMessage() for r in caplog.records] == [
        "stem_conv is switched off on NVIDIA Test (cuda:0), torch's own operators run instead: "
        "Triton cannot be imported: ModuleNotFoundError: No module named 'triton'"
    ]
    assert stand.calls == []
    assert list(tmp_path.iterdir()) == []


def test_what_the_user_set_does_not_matter() -> None:
    """Default dtype and device, autocast, grad mode and the random state stay as they are, and change nothing."""
    stand = Stand()
    state = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
            assert checker(stand).check(CUDA).passed
    finally:
        torch.set_default_dtype(torch.float32)
    assert {dtype for _, dtype in stand.calls} == set(DTYPES)
    assert torch.equal(torch.get_rng_state(), state)


def test_threads_check_once() -> None:
    stand = Stand()
    found = checker(stand)
    answers: list[bool] = []
    work = [
        threading.Thread(target=lambda: answers.append(found.usable("squeeze_excite", CUDA, HALF))) for _ in range(4)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert answers == [True] * 4
    assert len(stand.calls) == len(on_device.FIRST_USE["squeeze_excite"])


def test_the_library_asks_one_checker(monkeypatch: pytest.MonkeyPatch) -> None:
    assert first_use.checker() is first_use.checker()
    found = checker(Stand())
    monkeypatch.setattr(first_use, "checker", lambda: found)
    assert first_use.check_device(CUDA, [HALF]).passed
    assert first_use.usable("stem_conv", CUDA, HALF)


def test_on_the_cpu_nothing_is_checked(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(first_use, "checker", raises(AssertionError("asked")))
    public(torch.ones(1, 8, 3, 3), torch.ones(8, 1, 3, 3))
    assert not caplog.records


@pytest.mark.parametrize(("hip", "capability"), [(None, "9.0"), ("7.0", "gfx942")])
def test_a_device_is_described(hip: str | None, capability: str, monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name="A GPU", major=9, minor=0, gcnArchName="gfx942")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert first_use.describe(CUDA) == ("A GPU", capability)


def test_a_device_without_a_number_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Checker(Stand(stem_conv=one_image), lambda device: (f"GPU {device.index}", "9.0"))
    good = Checker(Stand(), lambda device: (f"GPU {device.index}", "9.0"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for index in (0, 1):
        monkeypatch.setattr(torch.cuda, "current_device", lambda index=index: index)
        assert not found.usable("stem_conv", torch.device("cuda"), HALF)
        assert good.check(torch.device("cuda"), [HALF]).device == torch.device("cuda", index)
        assert not found.usable("stem_conv", torch.device("cuda", index), HALF)
    assert len(found._run.calls) == 2
