"""The model of GPUs that are not here: its arithmetic, and that the docs have its tables."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

pytest.importorskip("benchmarks.gpu", reason="needs the source tree")
pytest.importorskip("triton")

from benchmarks.gpu import docs, model, published
from benchmarks.gpu.gpus import EAGER_LAUNCH, GPU, GPUS
from mnv3_fast.gpu.counts import LAUNCH
from mnv3_fast.gpu.launch import CudaLaunch
from mnv3_fast.testing.gpu_bench.levels import Kernel

SLOW = GPU("a GPU", 80, 10, 1e9, 1e9, 1000, 1e12)


def test_the_longest_time_counts() -> None:
    assert model.memory_seconds(SLOW, Kernel("", 600, 100, 300)) == pytest.approx(1000e-9)
    assert model.memory_seconds(SLOW, Kernel("", 500, 100, 300)) == pytest.approx(400e-9)  # half of L2 holds the map
    found = model.add_up(8, [{"memory": 3.0, "launch": 1.0}, {"memory": 0.5, "launch": 1.0}])
    assert (found.seconds, found.rate, found.bound) == (4.0, 2.0, "memory")
    assert found.parts == {"memory": 0.75, "L2": 0.0, "issue": 0.0, "tensor": 0.0, "launch": 0.25}


def test_a_pass_with_the_library_is_never_slower_by_count() -> None:
    for net, batch, gpu in product(("large", "small"), (1, 128), GPUS):
        with_library, alone = (model.ours(gpu, net, batch, cuda) for cuda in (True, False))
        assert with_library.seconds <= alone.seconds * (1 + 1e-9), (gpu.name, net, batch)
        assert len(model.passes(net, batch, gpu)) <= len(model.passes(net, batch)) == {"large": 57, "small": 46}[net]
        assert all(not isinstance(launch, CudaLaunch) for launch in model.passes(net, batch))


def test_small_batches_are_bound_by_launches_and_large_ones_by_memory() -> None:
    gpu = next(gpu for gpu in GPUS if gpu.name == "RTX 4090")
    assert model.torch_at("a", gpu, "large", 1).seconds == pytest.approx(185 * EAGER_LAUNCH, rel=0.01)
    assert model.torch_at("c", gpu, "large", 1).seconds == pytest.approx(57 * LAUNCH, rel=0.01)
    # 57.0 MB an image at 1008 GB/s are 17,700 img/s; what L2 keeps makes it a little more.
    rate = model.torch_at("a", gpu, "large", 1024).rate
    assert 17_700 <= rate <= 1.05 * 17_700
    assert model.ours(gpu, "large", 128, False).rate <= model.torch_at("c", gpu, "large", 128).rate


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
