"""All cells of the GPU benchmark, measured or dry, as one record."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torchvision
from torch import nn

from mnv3_fast._version import __version__
from mnv3_fast.gpu.graphs import missing_reason
from mnv3_fast.testing.gpu_bench.cells import Cell, dry, measure
from mnv3_fast.testing.gpu_bench.engines import ENGINES, Engine
from mnv3_fast.testing.gpu_bench.timing import Clock, EventClock
from mnv3_fast.testing.parity import parity_images, parity_model

ROUNDS = 9


def facts_of(device: torch.device | None) -> dict[str, Any]:
    """The device, None for a dry run, versions and date; ``no_graphs``: why our passes are in no CUDA graph, if so."""
    facts = {
        "torch": torch.__version__, "torchvision": torchvision.__version__, "mnv3_fast": __version__,
        "cuda": torch.version.cuda, "date": datetime.date.today().isoformat(), "gpu": None,
    }  # fmt: skip
    if device is not None:
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "gpu": properties.name, "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count, "l2_bytes": properties.L2_cache_size,
            "memory_bytes": properties.total_memory, "no_graphs": missing_reason(device),
        }  # fmt: skip
    return facts


def dry_cells(cells: Sequence[Cell], engines: Sequence[Engine] = ENGINES) -> Iterator[dict[str, Any]]:
    """The record of each cell, as far as it goes without a GPU."""

    @functools.cache
    def model(net: str) -> nn.Module:
        return getattr(torchvision.models, f"mobilenet_v3_{net}")().eval()

    for cell in cells:
        yield dry(cell, model(cell.net), engines)


def measured_cells(
    cells: Sequence[Cell],
    device: torch.device,
    seconds: float,
    engines: Sequence[Engine] = ENGINES,
    make_clock: Callable[[torch.device], Clock] = EventClock,
) -> Iterator[dict[str, Any]]:
    """The record of each cell, as soon as it is there. A cell whose images do not fit says so of every engine."""
    models: dict[tuple[str, int], nn.Module] = {}
    clock = make_clock(device)
    for cell in cells:
        try:
            if (cell.net, cell.size) not in models:
                models = {(cell.net, cell.size): parity_model(cell.net, size=cell.size).to(device)}
            images = parity_images(cell.batch, cell.size).to(device)
            yield measure(cell, models[cell.net, cell.size], images, clock, seconds, ROUNDS, engines)
        except torch.OutOfMemoryError:
            missing = {engine.key: "out of memory" for engine in engines}
            yield {**vars(cell), "title": cell.title(), "bandwidth": None, "rows": [], "missing": missing}


def record_of(facts: dict[str, Any], call: Sequence[str], cells: Sequence[dict[str, Any]], dry: bool) -> dict[str, Any]:
    """What is written as JSON."""
    return {"machine": facts, "call": list(call), "dry": dry, "rounds": ROUNDS, "cells": list(cells)}
