"""The simulator of CUDA kernels itself: it computes what a GPU would, and finds what it is there to find."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from mnv3_fast.gpu.fragments import pack_fragments
from tests.gpu.simulator import build

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="the simulator is compiled with g++")


@pytest.fixture(scope="module")
def program() -> Path:
    return build.link([build.compile_object(build.HERE / name) for name in ("simulator.cpp", "small_kernels.cu")])


def run(program: Path, name: str, given: bytes = b"") -> subprocess.CompletedProcess:
    return subprocess.run([program, name], capture_output=True, input=given)


def both_orders(program: Path, name: str) -> tuple[list[float], list[float]]:
    done = run(program, name)
    assert done.returncode == 0, done.stderr
    pairs = [line.split() for line in done.stdout.decode().splitlines()]
    return [float(a) for a, _ in pairs], [float(b) for _, b in pairs]


def test_shuffles_exchange_values_within_a_warp(program: Path) -> None:
    forward, reverse = both_orders(program, "shuffles")
    wanted = []
    for lane in range(64):
        warp = range(lane // 32 * 32, lane // 32 * 32 + 32)
        wanted.append(sum(warp) * 10000 + min(lane + 1, warp[-1]) * 100 + warp[0])
    assert forward == reverse == wanted * 2


def test_a_barrier_makes_both_orders_equal_and_a_race_does_not(program: Path) -> None:
    wanted = [float((lane + 1) % 64) for lane in range(64)] * 2
    assert both_orders(program, "barrier") == (wanted, wanted)
    forward, reverse = both_orders(program, "race")
    assert np.isnan(forward).any() and not np.array_equal(forward, reverse, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_tensor_cores_multiply_matrices(program: Path, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    left, right = (torch.randn(2, 16, 16, generator=generator).to(dtype) for _ in range(2))
    given = [left.flatten(), *[pack_fragments(each, dtype).flatten() for each in right]]
    words = b"".join(tensor.view(torch.int16).numpy().tobytes() for tensor in given)
    done = run(program, f"product_{str(dtype).removeprefix('torch.')}", words)
    assert done.returncode == 0, done.stderr
    forward, reverse = torch.frombuffer(bytearray(done.stdout), dtype=torch.float32).view(2, 2, 16, 16)
    assert torch.equal(forward, reverse)
    wanted = left.double() @ right.double().transpose(1, 2)
    torch.testing.assert_close(forward.double(), wanted, rtol=0, atol=1e-5)


def test_fragments_beyond_a_weight_are_zeros() -> None:
    weight = torch.randn(24, 40)
    packed = pack_fragments(weight, torch.float16)
    assert packed.shape == (2, 3, 32, 8)
    assert packed[1, :, :, 4:].count_nonzero() == 0 and packed[:, 2, :, 2:4].count_nonzero() == 0
    kept = packed[packed != 0]
    assert torch.equal(kept.sort().values, weight.half().flatten().sort().values)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("divergent", "threads wait for others that do not come"),
        ("past_shared", "heap-buffer-overflow"),
        ("past_global", "heap-buffer-overflow"),
        ("misaligned", "misaligned address"),
    ],
)
def test_faults_end_the_program(program: Path, name: str, words: str) -> None:
    done = run(program, name)
    assert done.returncode != 0
    assert words in done.stderr.decode()


def test_numbers_are_rounded_as_torch_rounds_them(program: Path) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    half, brain = every.view(torch.float16).float(), every.view(torch.bfloat16).float()
    middle = (half[:-1] + half[1:]) / 2  # halfway between neighbours, where ties go to even
    around = torch.cat([torch.nextafter(middle, torch.tensor(float(sign) * torch.inf)) for sign in (-1, 1)])
    values = torch.cat([half, brain, middle, around, torch.tensor([65519.99, 65520.0, 1e-8, 2.0**-25, 3.4e38])])
    done = run(program, "conversions", values.numpy().tobytes())
    assert done.returncode == 0, done.stderr
    fields = [("half", "<i2"), ("brain", "<i2"), ("half_back", "<f4"), ("brain_back", "<f4")]
    results = np.frombuffer(done.stdout, dtype=fields)
    for name, dtype in (("half", torch.float16), ("brain", torch.bfloat16)):
        ours = torch.from_numpy(results[name].copy()).view(dtype)
        assert torch.equal(torch.isnan(ours), torch.isnan(values))
        finite = ~torch.isnan(values)
        assert torch.equal(ours[finite].view(torch.int16), values[finite].to(dtype).view(torch.int16))
        back = torch.from_numpy(results[f"{name}_back"].copy())
        assert torch.equal(back[finite], ours[finite].float())
