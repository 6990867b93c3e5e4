"""The command line of the emulator: what it prints, and its exit status."""

from __future__ import annotations

import json

import pytest

from tests.gpu.emulate import main
from tests.gpu.simulator import build

POINTWISE = ["pointwise_conv", "--n", "1", "--c", "40", "--h", "3", "--w", "5", "--out", "24", "--dtype", "fp16"]
DEPTHWISE = ["depthwise_conv", "--n", "1", "--c", "8", "--h", "5", "--w", "5", "--dtype", "fp32"]


def test_a_right_kernel_is_printed_as_json_with_status_0(capsys: pytest.CaptureFixture) -> None:
    assert main([*POINTWISE, "--gate", "--residual", "--activation", "hardswish"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["faults"] == [] and printed["planted"] is None
    assert 0 < printed["error"]["output"] <= printed["tolerance"]["output"]
    assert printed["written"] == 3 * 5 * 24 * 2
    assert printed["requested"] >= printed["unique"] > 3 * 5 * (40 + 24) * 2


@pytest.mark.parametrize("arguments", [
    ["squeeze_excite_gate", "--n", "2", "--c", "24", "--h", "3", "--w", "3", "--squeeze", "8", "--dtype", "bf16"],
    ["squeeze_excite", "--n", "1", "--c", "8", "--h", "3", "--w", "3", "--squeeze", "8", "--dtype", "fp32"],
    ["stem_conv", "--n", "1", "--c", "3", "--h", "9", "--w", "9", "--out", "16", "--stride", "2", "--bytes", "--dtype", "fp16"],
    [*DEPTHWISE, "--kernel", "5", "--stride", "2", "--padding", "1", "--dilation", "1", "--mean"],
    ["inverted_residual", "--n", "1", "--c", "8", "--h", "5", "--w", "4", "--hidden", "24", "--squeeze", "8", "--residual",
     "--dtype", "fp32"],
], ids=lambda arguments: arguments[0])  # fmt: skip
def test_every_op_is_right(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["faults"] == []


@pytest.mark.parametrize(("fault", "word"), [("barrier", "race"), ("bound", "out of bounds"), ("mma", "error")])
def test_a_planted_fault_gives_status_1(fault: str, word: str, capsys: pytest.CaptureFixture) -> None:
    assert main([*POINTWISE, "--plant", fault]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["planted"].startswith(fault)
    assert any(word in found for found in printed["faults"])


CUDA = ["--backend", "cuda"]
BLOCK = ["inverted_residual", "--n", "2", "--c", "16", "--h", "7", "--w", "5", "--hidden", "40", "--dtype", "bf16"]
WIDE = ["depthwise_conv", "--n", "1", "--c", "128", "--h", "7", "--w", "14", "--dtype", "fp32"]
"""As many channels as a warp has words of, so that several warps stage the taps."""
needs_compiler = pytest.mark.skipif(build.compiler() is None, reason="the simulator is compiled with g++")


@needs_compiler
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_a_cuda_kernel_is_judged_by_the_same_command(dtype: str, capsys: pytest.CaptureFixture) -> None:
    arguments = [*DEPTHWISE[:-1], dtype, "--kernel", "5", "--activation", "hardswish", "--mean", *CUDA]
    assert main(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["faults"] == [] and set(printed["error"]) == {"output", "mean"}


@needs_compiler
@pytest.mark.parametrize("options", [
    ["--residual", "--activation", "relu"],
    ["--squeeze", "8", "--kernel", "5", "--stride", "2", "--out", "24", "--activation", "hardswish"],
], ids=["one launch", "two launches"])  # fmt: skip
def test_a_block_is_judged_by_the_same_command(options: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main([*BLOCK, *options, *CUDA]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["faults"] == [] and 0 < printed["error"]["output"] <= printed["tolerance"]["output"]


@needs_compiler
@pytest.mark.parametrize("squeeze", [[], ["--squeeze", "8"]], ids=["one launch", "two launches"])
@pytest.mark.parametrize("fault", ["barrier", "bound"])
def test_a_fault_planted_in_a_block_gives_status_1(
    fault: str, squeeze: list[str], capsys: pytest.CaptureFixture
) -> None:
    assert main([*BLOCK, *squeeze, "--plant", fault, *CUDA]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["planted"].startswith(fault) and printed["faults"]


@needs_compiler
@pytest.mark.parametrize(("fault", "word"), [("bound", "out of bounds"), ("barrier", "race")])
def test_a_fault_planted_in_a_cuda_kernel_gives_status_1(fault: str, word: str, capsys: pytest.CaptureFixture) -> None:
    assert main([*WIDE, "--plant", fault, *CUDA]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["planted"].startswith(fault)
    assert any(word in found for found in printed["faults"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*DEPTHWISE, "--plant", "mma"], "--plant mma: the compiled kernel has no matrix product"),
        ([*DEPTHWISE, "--plant", "mma", *CUDA], "--plant mma: only compiled kernels are damaged so"),
        ([*DEPTHWISE, "--dilation", "2", *CUDA], "--backend cuda: the CUDA kernel has 3x3 and 5x5, strides 1 and 2"),
        (
            [*POINTWISE, *CUDA],
            "--backend cuda: there are CUDA kernels for depthwise_conv and inverted_residual, none for pointwise_conv",
        ),
        (
            [*BLOCK[:-1], "fp32", *CUDA],
            "--backend cuda: the CUDA kernels have fp16 and bf16, 3x3 and 5x5, strides 1 and 2",
        ),
        (
            [*BLOCK, "--out", "20", *CUDA],
            "channels that are multiples of 8 and no more of them than fit, got inverted_",
        ),
        (
            [*BLOCK, "--out", "24", "--residual"],
            "--residual needs an output like the input, 16 x 7 x 5, got 24 x 7 x 5",
        ),
        ([*BLOCK, "--stride", "2", "--residual"], "an output like the input, 16 x 7 x 5, got 16 x 4 x 3"),
        ([*BLOCK, "--kernel", "2"], "--kernel must be 1, 3, 5 or 7, got 2"),
        ([*BLOCK, "--dilation", "2"], "inverted_residual takes no --dilation"),
        ([*BLOCK[:-4], *BLOCK[-2:]], "inverted_residual needs --hidden"),
        ([*DEPTHWISE, "--hidden", "8"], "depthwise_conv takes no --hidden"),
        ([*DEPTHWISE, "--gate"], "depthwise_conv takes no --gate"),
        ([*DEPTHWISE, "--kernel", "4"], "--kernel must be 1, 3, 5 or 7, got 4"),
        ([*DEPTHWISE, "--padding", "-1"], "--padding must be at least 0, got -1"),
        ([*DEPTHWISE, "--padding", "0", "--dilation", "9"], "the window does not fit into a map of 5 x 5"),
        ([*DEPTHWISE, "--dtype", "fp64"], "argument --dtype: invalid choice: 'fp64'"),
        (
            ["depthwise_conv", "--n", "0", "--c", "8", "--h", "5", "--w", "5", "--dtype", "fp16"],
            "argument --n: must be at least 1, got 0",
        ),
        (
            ["depthwise_conv", "--n", "x", "--c", "8", "--h", "5", "--w", "5", "--dtype", "fp16"],
            "argument --n: invalid",
        ),
        (["conv", *DEPTHWISE[1:]], "op must be one of depthwise_conv, pointwise_conv"),
        (DEPTHWISE[:-2], "the following arguments are required: --dtype"),
    ],
)
def test_bad_arguments_give_status_2_and_a_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.out == ""
