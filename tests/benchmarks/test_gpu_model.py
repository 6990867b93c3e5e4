"""The model of GPUs that are not here: its arithmetic, its counts of instructions, and that the docs have its tables."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("benchmarks.gpu", reason="needs the source tree")
pytest.importorskip("triton")

from benchmarks.gpu import docs, instructions, model, published
from benchmarks.gpu.gpus import EAGER_LAUNCH, GPU, GPUS, GRAPH_LAUNCH
from benchmarks.gpu.sass import Code, Loop, compile_and_read, label, read, rounds, tensor_operations
from mnv3_fast.gpu.network import Network
from mnv3_fast.testing.gpu_bench.levels import Kernel, stages_of
from mnv3_fast.testing.gpu_bench.requested import launches_of

SLOW = GPU("a GPU", 80, 10, 1e9, 128, 1e9, 1000, 1e12)

LISTING = """
.text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   FADD R2, R1, R1 ;
.L_x_0:
        /*0020*/                   LDG.E.128 R4, [R2] ;
.L_x_1:
        /*0030*/                   FFMA R4, R4, R5, R6 ;
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
    assert code == Code(5, 1, (Loop(2, 0, None), Loop(2, 1, 0)))
    assert code.executed((3, 4)) == (5 + 3 * 2 + 12 * 2, 1 + 12)
    assert Code.from_json(json.loads(json.dumps(code.as_json()))) == code
    with pytest.raises(ValueError, match="rounds must have 2 numbers"):
        code.executed((3,))
    with pytest.raises(ValueError, match="got no instruction"):
        read("Function : kernel")


def test_rounds_are_those_of_the_sizes() -> None:
    launches = launches_of(Network(stages_of("large"), torch.float16), (128, 3, 224, 224))
    by_name: dict[str, Any] = {}
    for launch in launches:
        by_name.setdefault(launch.kernel.__name__, []).append(launch)
    assert rounds(by_name["stem_conv_kernel"][0]) == ()  # 27 taps in one step of 32
    assert [rounds(one) for one in by_name["depthwise_conv_kernel"][:4]] == [(2,), (3,), (2,), (5,)]
    assert rounds(by_name["pointwise_conv_kernel"][1]) == (1,)  # 16 inputs in steps of 32
    assert rounds(by_name["pointwise_conv_kernel"][-1]) == (40,)  # 1280
    # 960 channels in steps of 64, 8 parts in steps of 4; 240 in tiles of 128 and steps of 64, 960 likewise.
    assert rounds(by_name["squeeze_excite_gate_kernel"][-1]) == (15, 2, 2, 15, 8, 4)
    # The classifier's last layer: two tiles of 64 images, sixteen of 64 classes, 1280 inputs.
    assert tensor_operations(by_name["pointwise_conv_kernel"][-1]) == 2 * 128 * 1024 * 1280
    assert tensor_operations(by_name["depthwise_conv_kernel"][0]) == 0
    with pytest.raises(ValueError, match="got test_rounds"):
        rounds(replace(launches[0], kernel=test_rounds_are_those_of_the_sizes))


def test_the_longest_time_counts() -> None:
    launch = launches_of(Network(stages_of("small"), torch.float16), (128, 3, 224, 224))[0]
    launch = replace(launch, grid=(25, 1, 1), warps=8)
    # Ten multiprocessors: three programs on the fullest, 8 warps of 1000 instructions each, four a cycle.
    assert model.issue_seconds(SLOW, launch, (1000, 0)) == pytest.approx(3 * 8 * 1000 / 4 * 1e-9)
    # With 64 lanes two fp32 instructions take as long as four others.
    assert model.issue_seconds(replace(SLOW, lanes=64), launch, (1000, 900)) == pytest.approx(3 * 8 * 900 / 2 * 1e-9)
    assert model.memory_seconds(SLOW, Kernel("", 600, 100, 300)) == pytest.approx(1000e-9)
    assert model.memory_seconds(SLOW, Kernel("", 500, 100, 300)) == pytest.approx(400e-9)  # half of L2 holds the map
    found = model.add_up(8, [{"memory": 3.0, "launch": 1.0}, {"memory": 0.5, "launch": 1.0}])
    assert (found.seconds, found.rate, found.bound) == (4.0, 2.0, "memory")
    assert found.parts == {"memory": 0.75, "issue": 0.0, "tensor": 0.0, "launch": 0.25}


def test_small_batches_are_bound_by_launches_and_large_ones_by_memory() -> None:
    gpu = next(gpu for gpu in GPUS if gpu.name == "RTX 4090")
    assert model.torch_at("a", gpu, "large", 1).seconds == pytest.approx(185 * EAGER_LAUNCH, rel=0.01)
    assert model.torch_at("c", gpu, "large", 1).seconds == pytest.approx(57 * GRAPH_LAUNCH, rel=0.01)
    # 57.0 MB an image at 1008 GB/s are 17,700 img/s; what L2 keeps makes it a little more.
    rate = model.torch_at("a", gpu, "large", 1024).rate
    assert 17_700 <= rate <= 1.05 * 17_700
    assert model.ours(gpu, "large", 128).rate <= model.torch_at("c", gpu, "large", 128).rate


def test_counts_are_of_these_kernels() -> None:
    record = json.loads(instructions.FILE.read_text())
    command = "python -m benchmarks.gpu.instructions && python -m benchmarks.gpu.docs benchmarks.gpu"
    assert record["sources"] == instructions.digest(), f"the kernels changed: {command}"
    wanted = instructions.kernels()
    for gpu in GPUS:
        assert set(instructions.load()[gpu.architecture]) == set(wanted), f"other compilations: {command}"
    for name, launch in wanted.items():
        for codes in instructions.load().values():
            codes[name].executed(rounds(launch))


def test_a_count_is_what_the_compiler_makes() -> None:
    import triton

    if triton.__version__ != json.loads(instructions.FILE.read_text())["triton"]:
        pytest.skip("counted with another Triton")
    launch = next(one for one in instructions.kernels().values() if one.kernel.__name__ == "channel_sums_kernel")
    assert compile_and_read(launch, 80) == instructions.load()[80][label(launch)]


def test_published_rows_are_of_gpus_that_the_model_knows() -> None:
    assert {row.gpu for row in published.ROWS} <= {gpu.name for gpu in GPUS}
    compiled = next(row for row in published.ROWS if row.file == "nchw-pt240-cu124-rtx4090-dynamo")
    assert (compiled.large, compiled.batch) == (24475, 256)
    lines = model.comparison().splitlines()
    assert len(lines) == 2 + len(published.ROWS)
    rate = model.torch_at("b", next(gpu for gpu in GPUS if gpu.name == "RTX 4090"), "large", 256).rate
    assert f"| b | 24,475 | {rate:,.0f} | {rate / 24475:.2f} |" in model.comparison()


def test_the_docs_have_todays_tables() -> None:
    text = docs.FILE.read_text(encoding="utf-8")
    cheap = {command: block for command, block in docs.blocks(text).items() if "benchmarks.gpu" in command}
    assert len(cheap) >= 3
    for command, block in cheap.items():
        assert block == docs.printed(command), f"{command}: python -m benchmarks.gpu.docs benchmarks.gpu writes it anew"


def test_a_block_that_is_not_current_is_seen_and_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs, "printed", lambda command: f"\n{command.split()[-1]}\n\n")
    text = (
        "a\n<!-- generated: python -m x one -->\nold\n<!-- end -->\nb <!-- generated: python -m y two -->\n<!-- end -->"
    )
    assert docs.blocks(text) == {"python -m x one": "old\n", "python -m y two": ""}
    assert docs.renewed(text, "x one") == text.replace("old\n", "\none\n\n")
    assert "\ntwo\n" in docs.renewed(text)


def test_the_docs_name_no_command_that_is_not_there() -> None:
    root = Path(docs.FILE).parent.parent
    for command in docs.blocks(docs.FILE.read_text(encoding="utf-8")):
        module = command.split()[2].replace(".", "/")
        assert (root / f"{module}.py").exists() or not (root / "tests" / "gpu" / "sass.py").exists(), command
