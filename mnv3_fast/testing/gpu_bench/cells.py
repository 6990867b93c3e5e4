"""One cell of the benchmark: a network, a batch and a dtype, on every engine that can, checked first and timed then."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mnv3_fast.gpu.launch import Launch, observe, run
from mnv3_fast.gpu.network import Network
from mnv3_fast.gpu.traffic import traffic
from mnv3_fast.models.description import describe_net
from mnv3_fast.testing.gpu_bench.engines import ENGINES, FROZEN, Engine, Missing, Run
from mnv3_fast.testing.gpu_bench.levels import kernels, layers_of, stages_of
from mnv3_fast.testing.gpu_bench.requested import launches_of
from mnv3_fast.testing.gpu_bench.timing import Clock, interleave
from mnv3_fast.testing.measure import Timing
from mnv3_fast.testing.tolerance import NET_LIMIT, op_limit, relative_error

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
BATCHES = (1, 8, 32, 128, 256)
STATES = ("warm", "flushed")
"""L2 as the call before left it, and emptied."""
CALLS = 4
"""So many, of which the last is checked: engines that capture CUDA graphs replay one by then, as they do when timed."""
CHUNK = 16
"""Images of which the reference computes the output at a time."""


@dataclass(frozen=True)
class Cell:
    """What is computed: "large" or "small", a batch of square images, a name of DTYPES."""

    net: str
    batch: int
    dtype: str
    size: int = 224

    def title(self) -> str:
        """For the head of a table."""
        return f"{self.net}, batch {self.batch}, {self.dtype}, {self.size} x {self.size}"


def level_bytes(cell: Cell) -> dict[str, int]:
    """The bytes that a pass moves at levels b and c."""
    layers = layers_of(stages_of(cell.net), (cell.batch, 3, cell.size, cell.size))
    size = DTYPES[cell.dtype].itemsize
    return {level: sum(k.bytes for layer in layers for k in kernels(layer, level, size)) for level in "bc"}


@contextmanager
def plain_float32(benchmark: bool = True) -> Iterator[None]:
    """float32 without TF32 in everyone's products and convolutions; ``benchmark``: cuDNN may try its algorithms."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
    cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = False, False, benchmark
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before


def reference(model: nn.Module, images: Tensor, dtype: torch.dtype) -> tuple[Tensor, float]:
    """The output in fp64 [N, classes], and the error that torch's eager run in a dtype makes against it."""
    exact, theirs = copy.deepcopy(model).double(), copy.deepcopy(model).to(dtype)
    parts = images.split(CHUNK)
    expected = torch.cat([exact(part.double()) for part in parts])
    return expected, relative_error(torch.cat([theirs(part.to(dtype)) for part in parts]), expected)


def limit_of(torch_error: float, dtype: torch.dtype) -> float:
    """The error against fp64 above which an output is wrong."""
    return NET_LIMIT if dtype is torch.float32 else op_limit(torch_error, dtype)


def words(error: BaseException) -> str:
    """Why an engine is missing, in a line."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    if isinstance(error, Missing):
        return str(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def build(engine: Engine, model: nn.Module, images: Tensor, dtype: torch.dtype, expected: Tensor, limit: float) -> Any:
    """An engine's run and its error.

    Raises:
        Missing: if it cannot be had, does not run, or computes something else; the message says why.
    """
    if reason := engine.missing_reason():
        raise Missing(reason)
    try:
        run = engine.build(model, images, dtype)
        for _ in range(CALLS):
            output = run()
    except Exception as error:
        raise Missing(words(error)) from error
    if output.shape != expected.shape:
        raise Missing(f"wrong: its output has shape {list(output.shape)}, not {list(expected.shape)}")
    error = relative_error(output, expected)
    if not error <= limit:
        raise Missing(f"wrong: relative error {error:.3g}, limit {limit:.3g}")
    return run, error


def measure(
    cell: Cell, model: nn.Module, images: Tensor, clock: Clock, seconds: float, rounds: int,
    engines: Sequence[Engine] = ENGINES,
) -> dict[str, Any]:  # fmt: skip
    """Build, check and time every engine in a cell.

    Args:
        cell: what is computed.
        model, images: float32, on the device.
        clock: of the device.
        seconds: about how long the timing takes, for L2 warm and flushed together.
        rounds: turns of each engine.

    Returns:
        The record of the cell: ``rows`` of those that ran, ``missing`` with the reasons of the others.
    """
    dtype = DTYPES[cell.dtype]
    runs: dict[str, Run] = {}
    errors: dict[str, float] = {}
    missing: dict[str, str] = {}
    with plain_float32(), torch.inference_mode():
        expected, torch_error = reference(model, images, dtype)
        limit = limit_of(torch_error, dtype)
        for engine in engines:
            try:
                runs[engine.key], errors[engine.key] = build(engine, model, images, dtype, expected, limit)
            except Missing as reason:
                missing[engine.key] = str(reason)
                if isinstance(reason.__cause__, torch.OutOfMemoryError):
                    _free()
        bandwidth, timings = clock.bandwidth(), {}
        for state in STATES:
            timings[state], failed = interleave(runs, clock, state == "flushed", seconds / len(STATES), rounds)
            for name, error in failed.items():
                missing[name] = words(error)
                del runs[name]
    bytes_ = level_bytes(cell)
    rows = [
        {
            "engine": engine.key, "name": engine.name, "error": errors[engine.key],
            **{state: _figures(timings[state], engine.key, cell.batch, bytes_, bandwidth) for state in STATES},
        }
        for engine in engines if engine.key in runs
    ]  # fmt: skip
    return {
        **asdict(cell), "title": cell.title(), "bandwidth": bandwidth, "bytes": bytes_, "limit": limit,
        "torch_error": torch_error, "rows": rows, "missing": missing,
    }  # fmt: skip


def _figures(
    timings: dict[str, Timing], name: str, batch: int, bytes_: dict[str, int], bandwidth: float
) -> dict[str, Any]:
    mine = timings[name]
    frozen = timings[FROZEN].ratio_to(mine) if FROZEN in timings else None
    return {
        "ms": mine.median * 1e3, "p99_ms": mine.p99 * 1e3, "spread": mine.spread,
        "images_per_second": batch / mine.median, "frozen_is_faster_by": frozen,
        **{f"percent_of_{level}": 100 * bytes_[level] / bandwidth / mine.median for level in bytes_},
    }  # fmt: skip


def _free() -> None:
    """Memory of an engine that did not fit, for those after it."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def dry(cell: Cell, model: nn.Module, engines: Sequence[Engine] = ENGINES) -> dict[str, Any]:
    """As far as a cell goes without a GPU: weights packed, launches of a pass made and handed over, none started.

    Args:
        cell: what would be computed.
        model: a float32 model on the CPU, in eval mode.
    """
    network = Network(describe_net(model).stages(), DTYPES[cell.dtype])
    seen: list[Launch] = []
    observer: Callable[[Launch], bool] = lambda launch: seen.append(launch) is None  # noqa: E731
    with observe(observer):
        run(launches_of(network, (cell.batch, 3, cell.size, cell.size)))
    moved = [traffic(launch) for launch in seen]
    return {
        **asdict(cell), "title": cell.title(), "launches": len(seen), "compilations": len({one.key() for one in seen}),
        "programs": sum(one.grid[0] * one.grid[1] * one.grid[2] for one in seen), "bytes": level_bytes(cell),
        "unique": sum(t.unique_bytes for t in moved), "requested": sum(t.requested_bytes for t in moved),
        "engines": {engine.key: engine.missing_reason() for engine in engines},
    }  # fmt: skip
