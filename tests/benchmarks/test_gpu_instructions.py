"""Instructions of compiled kernels: read from listings, multiplied by the turns of loops, and those of the file current."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("benchmarks.gpu", reason="needs the source tree")
pytest.importorskip("triton")

from benchmarks.gpu import cubin, loops
from benchmarks.gpu import instructions as counting
from benchmarks.gpu.gpus import GPUS
from benchmarks.gpu.sass import compile_and_read, read
from mnv3_fast.gpu import instructions
from mnv3_fast.gpu.instructions import Code, Loop, label, of_source, rounds, tensor_operations
from mnv3_fast.gpu.launch import AnyLaunch, CudaLaunch
from mnv3_fast.gpu.network import Network
from mnv3_fast.testing.gpu_bench.levels import stages_of
from mnv3_fast.testing.gpu_bench.requested import launches_of

COMMAND = "python -m benchmarks.gpu.instructions && python -m benchmarks.gpu.docs benchmarks.gpu"
LISTING = """
.text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   FADD R2, R1, R1 ;
.L_x_0:
        /*0020*/                   LDG.E.128 R4, [R2] ;
        /*0028*/                   HMMA.16816.F32 R4, R4, R8, R4 ;
.L_x_1:
        /*0030*/                   FFMA R4, R4, R5, R6 ;
        /*0038*/                   FFMA2 R8, R8.F32x2.HI_LO, R10.F32x2.HI_LO, R12.F32x2.HI_LO ;
        /*0040*/              @!P0 BRA `(.L_x_1) ;
        /*0050*/               @P1 BRA `(.L_x_0) ;
        /*0060*/                   STG.E.128 [R2], R4 ;
        /*0070*/                   EXIT ;
.L_x_2:
        /*0080*/                   BRA `(.L_x_2);
        /*0090*/                   NOP;
"""


def test_a_listing_is_read_as_loops_in_loops() -> None:
    code = read(LISTING)
    assert code == Code(5, 1, (Loop(3, 0, None), Loop(3, 3, 0)))  # FFMA2 multiplies two numbers
    assert code.executed((3, 4)) == (5 + 3 * 3 + 12 * 3, 1 + 12 * 3)
    assert Code.from_json(json.loads(json.dumps(code.as_json()))) == code
    with pytest.raises(ValueError, match="rounds must have 2 numbers"):
        code.executed((3,))
    with pytest.raises(ValueError, match="got no instruction"):
        read("Function : kernel")


def _large() -> dict[str, list[AnyLaunch]]:
    by_name: dict[str, list[AnyLaunch]] = {}
    for launch in launches_of(Network(stages_of("large"), torch.float16), (128, 3, 224, 224)):
        by_name.setdefault(launch.kernel.__name__, []).append(launch)
    return by_name


def test_rounds_are_those_of_the_sizes() -> None:
    by_name, none = _large(), Code(1, 0, ())
    assert rounds(by_name["stem_conv_kernel"][0], none) == ()  # 27 taps in one step of 32
    assert [rounds(one, none) for one in by_name["depthwise_conv_kernel"][:4]] == [(2,), (3,), (2,), (5,)]
    assert rounds(by_name["pointwise_conv_kernel"][1], none) == (1,)  # 16 inputs in steps of 32
    assert rounds(by_name["pointwise_conv_kernel"][-1], none) == (40,)  # 1280
    # 960 channels in steps of 64, 8 parts in steps of 4; 240 in tiles of 128 and steps of 64, 960 likewise.
    assert rounds(by_name["squeeze_excite_gate_kernel"][-1], none) == (15, 2, 2, 15, 8, 4)
    # The classifier's last layer: two tiles of 64 images, sixteen of 64 classes, 1280 inputs.
    assert tensor_operations(by_name["pointwise_conv_kernel"][-1]) == 2 * 128 * 1024 * 1280
    assert tensor_operations(by_name["depthwise_conv_kernel"][0]) == 0
    with pytest.raises(ValueError, match="got test_rounds"):
        rounds(replace(by_name["stem_conv_kernel"][0], kernel=test_rounds_are_those_of_the_sizes), none)


def _cuda(size: int, stride: int, summed: bool, dtype: torch.dtype = torch.float16) -> CudaLaunch:
    wanted = {"KERNEL": size, "STRIDE": stride, "SUMS": summed}
    return next(
        launch
        for launch in counting.depthwise_launches()
        if isinstance(launch, CudaLaunch)
        and launch.arguments["input"].dtype == dtype
        and wanted.items() <= launch.constants.items()
    )


def test_loops_of_the_cuda_depthwise_kernel_turn_as_often_as_its_work_asks() -> None:
    """64 channels are 8 words of 8, a map of 14 x 14 is 14 tiles of 2 x 7: one block."""
    launch = _cuda(5, 1, True)
    assert (launch.arguments["across"], launch.arguments["down"]) == (8, 14)
    found = (
        Loop(400, 280, None, "rows"), Loop(11, 0, None, "sums"), Loop(15, 0, None, "sums"), Loop(6, 1, 2, "tiles")
    )  # fmt: skip
    assert rounds(launch, Code(500, 0, found)) == (4, 0, 1, 14)
    assert rounds(_cuda(5, 1, False), Code(500, 0, found)) == (4, 0, 0, 14)
    assert rounds(_cuda(3, 1, False), Code(500, 0, found[:1])) == (
        2,
    )  # of four rows the first and the last stand apart
    with pytest.raises(ValueError, match="loops must be rows, taps, sums, tiles, got 'columns'"):
        rounds(launch, Code(500, 0, (Loop(400, 280, None, "columns"),)))


def test_loops_that_the_compiler_wrote_several_times_turn_less_often() -> None:
    """23 turns: one of 16, one of 4, and what is left; the loop inside of one is another one."""
    found = (
        Loop(50, 16, None, "a", 16), Loop(20, 4, None, "a", 4), Loop(5, 1, None, "a", 1), Loop(7, 0, 2, "a", 2)
    )  # fmt: skip
    assert of_source(Code(9, 0, found), {"a": 23}) == (1, 1, 3, 11.5)
    assert of_source(Code(9, 0, found[:2]), {"a": 23}) == (1, 1.75)


SOURCE = """\
void add() {
  for (int i = 0; i < n; i++) sum += x[i];
}
void kernel() {
  if (asked == kRelu) f(std::integral_constant<Activation, kRelu>());
  else f(std::integral_constant<Activation, kNone>());
  add(x);
  for (int j = 0; j < m; j++)
    add(y);
  with_activation(a.depthwise_activation, f);
}
"""
LISTED = """
//## File "{0}", line 5 inlined at "{0}", line 10
//## File "{0}", line 10
/*0000*/ FADD R1, R1, R1 ;
//## File "{0}", line 6 inlined at "{0}", line 10
//## File "{0}", line 10
/*0008*/ MOV R1, R1 ;
.L_x_0:
//## File "{0}", line 2 inlined at "{0}", line 7
//## File "{0}", line 7
/*0010*/ FADD R1, R1, R2 ;
/*0018*/ FADD R1, R1, R3 ;
/*0020*/ @P0 BRA `(.L_x_0) ;
.L_x_1:
//## File "{0}", line 8
/*0028*/ MOV R1, R1 ;
.L_x_2:
//## File "{0}", line 2 inlined at "{0}", line 9
//## File "{0}", line 9
/*0030*/ FADD R1, R1, R2 ;
/*0038*/ @P0 BRA `(.L_x_2) ;
//## File "{0}", line 8
/*0040*/ @P0 BRA `(.L_x_1) ;
"""


def test_loops_are_known_by_the_lines_they_come_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a.cu").write_text(SOURCE)
    text, launch = LISTED.format(tmp_path / "a.cu"), _cuda(3, 1, False)
    add = "for (int i = 0; i < n;"
    rules = (loops.Rule("x", add, "add(x)", each=1), loops.Rule("y", add, "add(y)"), loops.Rule("all", "for (int j"))
    monkeypatch.setitem(loops.RULES, "depthwise_conv", rules)
    launch = replace(launch, arguments={**launch.arguments, "depthwise_activation": 1})
    code = read(text, loops.source_of(launch))
    # The MOV is that of no activation.
    assert code == Code(1, 1, (Loop(3, 2, None, "x", 2), Loop(2, 0, None, "all"), Loop(2, 1, 1, "y")))
    assert Code.from_json(json.loads(json.dumps(code.as_json()))) == code
    monkeypatch.setitem(loops.RULES, "depthwise_conv", rules[:2])
    with pytest.raises(ValueError, match="is none of benchmarks/gpu/loops.py"):
        read(text, loops.source_of(launch))


def test_counts_are_of_these_kernels() -> None:
    record = json.loads(instructions.FILE.read_text())
    assert record["sources"] == counting.digest(), f"the Triton kernels changed: {COMMAND}"
    assert record["cuda"] == {kernel: cubin.digest(kernel) for kernel in cubin.SOURCES}, f"CUDA's changed: {COMMAND}"
    assert record["reader"] == counting.reader(), f"what reads the code changed: {COMMAND}"
    wanted = counting.kernels()
    assert set(instructions.load()) == set(wanted), f"other compilations: {COMMAND}"
    for name, launch in wanted.items():
        codes = instructions.load()[name]
        assert {gpu.architecture for gpu in GPUS} <= set(codes), f"other architectures: {COMMAND}"
        for code in codes.values():
            assert code.executed(rounds(launch, code))[0] > code.instructions / 2
    assert {100 in codes for name, codes in instructions.load().items() if "depthwise" in name} == {True}


def test_a_count_is_what_the_compiler_makes() -> None:
    import triton

    if triton.__version__ != json.loads(instructions.FILE.read_text())["triton"]:
        pytest.skip("counted with another Triton")
    launch = next(one for one in counting.kernels().values() if one.kernel.__name__ == "channel_sums_kernel")
    assert compile_and_read(launch, 80) == instructions.load()[label(launch)][80]


@pytest.mark.nvcc
@pytest.mark.skipif(counting.find_nvcc() is None, reason="there is no nvcc")
@pytest.mark.parametrize("kernel", list(cubin.SOURCES))
def test_a_count_is_what_nvcc_makes(kernel: str) -> None:
    nvcc = str(counting.find_nvcc())
    if cubin.version(nvcc) != json.loads(instructions.FILE.read_text())["nvcc"]:
        pytest.skip("counted with another nvcc")
    launch = next(one for one in counting.kernels().values() if one.kernel.__name__ == f"{kernel}_cuda_kernel")
    assert cubin.compile_and_read(nvcc, launch, 90) == instructions.load()[label(launch)][90]


def test_what_was_not_counted_takes_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = {
        "a_kernel dtype=float16 SIZE=3 SUMS=False": {80: Code(1, 0, ()), 90: Code(2, 0, ())},
        "a_kernel dtype=float32 SIZE=5 SUMS=True": {80: Code(3, 0, ())},
        "a_kernel_too dtype=float32 SIZE=5 SUMS=True": {80: Code(4, 0, ())},
    }
    monkeypatch.setattr(instructions, "load", lambda: codes)
    find = instructions.find.__wrapped__
    assert find("a_kernel dtype=float16 SIZE=3 SUMS=False", 90).instructions == 2
    assert (
        find("a_kernel dtype=bfloat16 SIZE=3 SUMS=True EVEN=True", 89).instructions == 1
    )  # shares as much as the next
    assert find("a_kernel dtype=bfloat16 SIZE=5 SUMS=True", 120).instructions == 3
    assert find("a_kernel dtype=float16 SIZE=3 SUMS=False", 100).instructions == 2
    assert find("a_kernel dtype=float16 SIZE=3 SUMS=False", 75).instructions == 1
    with pytest.raises(ValueError, match="must be one that was counted, got b_kernel"):
        find("b_kernel dtype=float16", 90)


def test_what_has_not_changed_is_not_counted_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without nvcc, too; but then what has changed is refused."""
    import triton

    cuda, other = _cuda(3, 1, True), _large()["channel_sums_kernel"][0]
    both = {label(cuda): cuda, label(other): other}
    code = Code(100, 10, ()).as_json()
    record: dict[str, Any] = {
        "triton": triton.__version__, "nvcc": "13.2", "reader": counting.reader(), "sources": "one",
        "cuda": {kernel: cubin.digest(kernel) for kernel in cubin.SOURCES},
        "counts": {name: {str(each): code for each in counting.ARCHITECTURES} for name in both},
    }  # fmt: skip
    counted: list[tuple[str, int]] = []

    def count(launch: AnyLaunch, architecture: int, nvcc: str | None) -> Code:
        counted.append((label(launch), architecture))
        return Code(7, 0, ())

    monkeypatch.setattr(counting, "FILE", tmp_path / "counts.json")
    monkeypatch.setattr(counting, "find_nvcc", lambda: None)
    monkeypatch.setattr(counting, "kernels", lambda: both)
    monkeypatch.setattr(counting, "digest", lambda: "one")
    monkeypatch.setattr(counting, "count", count)
    counting.write(record)
    counting.main()
    assert (json.loads((tmp_path / "counts.json").read_text()), counted) == (record, [])
    assert "counts of CUDA kernels stay those of nvcc 13.2" in capsys.readouterr().err
    counting.write({**record, "sources": "another"})
    counting.main()
    assert counted == [(label(other), architecture) for architecture in counting.ARCHITECTURES]
    assert json.loads((tmp_path / "counts.json").read_text())["counts"][label(other)]["80"] == [7, 0, []]
    for changed in (
        {"cuda": {**record["cuda"], "depthwise_conv": "another"}},
        {"reader": [record["reader"][0], "another"]},
    ):
        counting.write({**record, **changed})
        with pytest.raises(SystemExit, match="of depthwise_conv.* must be counted anew.*pip install nvidia-cuda-nvcc"):
            counting.main()


def test_comments_and_layout_are_no_other_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "csrc").mkdir()
    monkeypatch.setattr(cubin, "ROOT", tmp_path)
    monkeypatch.setattr(cubin, "SOURCES", {"a": "a.cu"})
    (tmp_path / "csrc" / "a.cu").write_text('#include "b.h"\nint x = kB;\n')
    (tmp_path / "csrc" / "b.h").write_text("constexpr int kB = 1;\n")
    before = cubin.digest("a")
    (tmp_path / "csrc" / "b.h").write_text("constexpr int\n    kB = 1;  // one\n")
    assert cubin.digest("a") == before
    (tmp_path / "csrc" / "b.h").write_text("constexpr int kB = 2;\n")
    assert cubin.digest("a") != before
