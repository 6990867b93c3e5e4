"""Which kernel a layer gets, and why: the order of reasons, what tests and ``tune`` force, what there is no kernel for."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mnv3_fast.cli import app
from mnv3_fast.gpu import choice, cuda_library, first_use, tuned
from mnv3_fast.gpu.choice import NoKernel, Question
from tests.gpu_dispatch.common import CUDA
from tests.gpu_dispatch.fake_library import H100, FakeLibrary, install

SAME3 = (1, 1, 1, 1, 1, 1, 1, 1)
LAYER = Question("depthwise_conv", torch.float16, (1, 72, 56, 56), (3, 3), SAME3, 2)
SEVEN = replace(LAYER, kernel=(7, 7), window=(1, 1, 3, 3, 3, 3, 1, 1))
CPU = torch.device("cpu")
MISSING_REASON = cuda_library.missing_reason  # all tests here have another in its place
NONE = (
    "depthwise_conv: its CUDA kernel is asked for, and there is no kernel for depthwise_conv 7x7 in float16 of "
    "(1, 72, 56, 56) with window (1, 1, 3, 3, 3, 3, 1, 1)"
)


def test_the_order_of_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each that speaks is heard before those below it."""
    assert choice.reason(LAYER, CPU) == ("triton", "no CUDA kernels: the device is cpu")
    usable: list[tuple] = []
    monkeypatch.setattr(first_use, "usable", lambda *asked: bool(usable.append(asked)) or len(usable) > 1)
    with monkeypatch.context() as patch:
        patch.setattr(choice, "unusable_reason", lambda device: "it is gone")
        assert choice.reason(SEVEN, CUDA) == ("triton", "no CUDA kernels: it is gone")
    with monkeypatch.context() as patch:
        install(FakeLibrary({}), patch)
        assert choice.reason(SEVEN, CUDA)[0] == "triton"
        assert choice.reason(SEVEN, CUDA)[1].startswith("no kernel for depthwise_conv 7x7")
        assert usable == []  # nothing is checked for a layer that has no kernel
        assert choice.reason(LAYER, CUDA) == ("triton", "switched off")
        assert usable == [("depthwise_conv_cuda", CUDA, torch.float16)]
        assert choice.reason(LAYER, CUDA) == ("cuda", "counted")
        assert choice.reason(replace(LAYER, dtype=torch.float32), CUDA) == ("triton", "counted")
        patch.setattr(tuned, "lookup", lambda question, device: "triton" if question == LAYER else None)
        assert choice.reason(LAYER, CUDA) == ("triton", "tuned")
        assert choice.reason(replace(LAYER, activation=1), CUDA) == ("cuda", "counted")
        with choice.force(depthwise_conv="cuda"):
            assert choice.reason(LAYER, CUDA) == ("cuda", "forced")
            assert choice.choose(LAYER, CPU) == "cuda"


def test_what_is_forced_where_there_is_no_kernel_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    install(FakeLibrary({}), monkeypatch)
    with choice.force(depthwise_conv="cuda"):
        with pytest.raises(NoKernel, match=f"^{re.escape(NONE)}$"):
            choice.choose(SEVEN, CUDA)
        with choice.force(depthwise_conv="triton"):
            assert choice.choose(SEVEN, CUDA) == "triton"


def test_refusals() -> None:
    wanted = "force: an op of depthwise_conv, inverted_residual must be triton or cuda, got "
    with pytest.raises(ValueError, match=f"^{wanted}pointwise_conv='cuda'$"), choice.force(pointwise_conv="cuda"):
        pass
    with pytest.raises(ValueError, match=f"^{wanted}depthwise_conv='CUDA'$"), choice.force(depthwise_conv="CUDA"):
        pass
    with (
        pytest.raises(RuntimeError, match="^mnv3_fast: no CUDA kernels: this is a test$"),
        choice.force(inverted_residual="cuda"),
    ):
        pass
    with choice.force(depthwise_conv="triton"):  # needs no library
        assert choice.reason(LAYER, CUDA) == ("triton", "forced")
    assert choice.forced("depthwise_conv") is None


def test_what_is_forced_is_this_threads_and_ends_with_the_block() -> None:
    seen: list[tuple] = []
    with choice.assume(H100):
        with pytest.raises(KeyboardInterrupt), choice.force(depthwise_conv="triton"):
            thread = threading.Thread(target=lambda: seen.append(choice.state()))
            thread.start()
            thread.join()
            seen.append(choice.state())
            raise KeyboardInterrupt
        seen.append(choice.state())
    assert seen == [((), None), ((("depthwise_conv", "triton"),), H100), ((), H100)]


def test_info_says_whether_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    def said() -> str:
        return json.loads(CliRunner().invoke(app, ["info", "--json"]).stdout)["CUDA kernels"]

    assert said() == "none: this is a test"
    install(FakeLibrary({}), monkeypatch)
    assert said() == str(cuda_library.FILE)


def test_one_kernel_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    install(FakeLibrary({}), monkeypatch)
    for kernel, found in (
        ("depthwise_conv_cuda", ("cuda", "triton")),
        ("inverted_residual_cuda", ("triton", "cuda")),
        ("stem_conv", ("triton", "triton")),
    ):
        with choice.only(kernel):
            assert tuple(map(choice.forced, choice.OPS)) == found


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (12, 0)])
def test_an_old_gpu_has_no_cuda_kernels(capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_library, "load", lambda: FakeLibrary({}))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    old = "they are for compute capability 8.0 and later, this is 7.5"
    assert choice.unusable_reason(CUDA) == (old if capability < (8, 0) else None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"^mnv3_fast: no CUDA kernels: _cuda.so is not in .*: the package was installed without it"),
        (b"no library", r"^mnv3_fast: _cuda.so could not be loaded: .*"),
    ],
)
def test_a_library_that_is_missing_or_damaged(
    content: bytes | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_library, "missing_reason", MISSING_REASON)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(cuda_library, "FILE", tmp_path / "_cuda.so")
    if content is not None:
        (tmp_path / "_cuda.so").write_bytes(content)
    with pytest.raises(RuntimeError, match=message) as raised:
        cuda_library.load()
    said = str(raised.value).removeprefix("mnv3_fast: no CUDA kernels: ")
    assert choice.reason(LAYER, CUDA) == ("triton", f"no CUDA kernels: {said}")
    assert cuda_library.hash_of() == ("" if content is None else hashlib.sha256(content).hexdigest())
    with pytest.raises(RuntimeError, match=re.escape(str(raised.value))), choice.force(depthwise_conv="cuda"):
        pass
