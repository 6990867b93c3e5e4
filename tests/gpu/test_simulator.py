"""The simulator of CUDA kernels itself: it computes what a GPU would, and finds what it is there to find."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

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
