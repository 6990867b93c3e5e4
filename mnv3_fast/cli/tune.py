"""``mnv3-fast tune``: which kernel of each layer is faster on this GPU, measured and kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from rich.box import SIMPLE
from rich.table import Table
from torch import nn

from mnv3_fast.cli.common import (
    BAD_INPUT,
    MISS,
    NETS,
    NOT_WRITTEN,
    check_choices,
    check_output,
    check_positive,
    console,
    errors,
    fail,
    print_json,
    show,
    writing,
)
from mnv3_fast.cli.devices import gpu

if TYPE_CHECKING:
    from mnv3_fast.gpu.choice import Question
    from mnv3_fast.gpu.tuning import Result

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
EPILOG = """Examples:

mnv3-fast tune

mnv3-fast tune small --batch 1 --batch 32 --dtype float16

mnv3-fast tune mobilenetv3_large_100 model.safetensors --size 192 --json

mnv3-fast tune --forget

Ends with status 0; 1 if a kernel computes something else or raises (it is then not chosen); 2 for bad arguments,
without a GPU and where there is nothing to choose between; 3 if it cannot be kept; 130 after Ctrl-C (what was measured
is kept)."""


@dataclass(frozen=True)
class Cell:
    """A network over one kind of input, and what was found of its layers."""

    model: str
    batch: int
    size: int
    dtype: str
    results: list[Result]

    def title(self) -> str:
        """For the head of a table."""
        return f"{self.model}, batch {self.batch}, {self.dtype}, {self.size} x {self.size}"


def tune(
    model: Annotated[
        list[str],
        typer.Argument(
            help="a name that `mnv3-fast info --models` lists, large, small, or a checkpoint file; large and small "
            "unless given",
            metavar="MODEL",
        ),
    ] = [],  # noqa: B006
    batch: Annotated[list[int], typer.Option(help="images a call; may be repeated")] = [1],  # noqa: B006
    size: Annotated[list[int], typer.Option(help="side of the images; may be repeated")] = [224],  # noqa: B006
    dtype: Annotated[
        list[str], typer.Option(help="float32, float16, bfloat16; may be repeated; all unless given")
    ] = [],  # noqa: B006
    device: Annotated[str, typer.Option(help="cuda or cuda:N")] = "cuda",
    forget: Annotated[bool, typer.Option("--forget", help="drop what is kept of this kind of GPU instead")] = False,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Measure the kernels that can compute a layer, of Triton and of CUDA, and keep which is faster on this GPU.

    New processes take it for layers of the same dtype and shape; for others they take what is better by counting.
    """
    for option, values in (("--batch", batch), ("--size", size)):
        check_positive(option, values)
    check_choices("--dtype", dtype, tuple(DTYPES))
    if forget and (model or dtype):
        fail("--forget goes without models and options")
    place = gpu(device)
    path = _path(place)
    if forget:
        _forget(place, path, json)
        return
    missing = _missing_reason(place)
    if missing is not None:
        fail(f"--device {device}: no CUDA kernels, so there is nothing to choose between: {missing}")
    networks = {name: _network(name).eval().to(place) for name in dict.fromkeys(model or NETS)}
    check_output(path.parent)
    cells, whys = [], set()
    for (name, network), images, side, kind in product(networks.items(), batch, size, dict.fromkeys(dtype or DTYPES)):
        cell = Cell(name, images, side, kind, [])
        with writing(path):
            cell.results.extend(_results(cell, network, place, whys))
        cells.append(cell)
    _report([cell for cell in cells if cell.results], place, path, json)
    if not any(cell.results for cell in cells):
        status = MISS if "switched off" in whys else BAD_INPUT
        fail(f"there is nothing to choose between: {'; '.join(sorted(whys))}", status)
    if any(result.wrong for cell in cells for result in cell.results):
        raise typer.Exit(MISS)


def _network(name: str) -> nn.Module:
    """A model's name, with random weights, or a file."""
    from mnv3_fast.checkpoints import build_from
    from mnv3_fast.cli.models import network_of

    try:
        return build_from(None, name).network if Path(name).is_file() else network_of(name, "random")[0]
    except (ValueError, OSError) as error:
        fail(str(error))


def _missing_reason(device: torch.device) -> str | None:
    from mnv3_fast.gpu import choice

    return choice.unusable_reason(device)


def _path(device: torch.device) -> Path:
    from mnv3_fast.gpu import tuned

    try:
        return tuned.choices().path_of(device)
    except OSError as error:
        fail(f"what is measured cannot be kept: {error}", NOT_WRITTEN)


def _forget(device: torch.device, path: Path, json: bool) -> None:
    from mnv3_fast.gpu import tuned

    with writing(path):
        tuned.choices().forget(device)
    if json:
        print_json({"forgotten": str(path)})
    else:
        console.print(f"forgotten: {path}", highlight=False, soft_wrap=True, markup=False)


def _results(cell: Cell, network: nn.Module, device: torch.device, whys: set[str]) -> Iterator[Result]:
    """The layers of a cell as they are measured; ``whys`` gets the reasons of those that have one kernel."""
    from mnv3_fast.gpu import first_use, tuning
    from mnv3_fast.models.description import describe_net
    from mnv3_fast.ops.network.layout import input_channels

    kind = DTYPES[cell.dtype]
    first_use.check_device(device, [kind])
    stages = describe_net(network).stages()
    layers = tuning.layers_of(stages, (cell.batch, input_channels(stages), cell.size, cell.size), kind)
    reasons = {layer.why for layer in layers if not layer.is_open}
    whys |= reasons
    if not any(layer.is_open for layer in layers):
        _say(f"{cell.title()}: nothing to choose: {'; '.join(sorted(reasons))}")
        return
    try:
        for result in tuning.tune(layers, device, tuning.GraphClock(device)):
            names = ", ".join(result.layers)
            _say(f"{cell.title()}, {what(result.question)} of {names}: {result.used} ({_why(result)})")
            for variant, reason in result.missing.items():
                _say(f"{cell.title()}, {what(result.question)} of {names}: {variant}: {reason}")
            yield result
    except torch.AcceleratorError as error:
        fail(f"a kernel left the device in an error: {' '.join(str(error).split())}", MISS)


def _say(text: str) -> None:
    errors.print(text, highlight=False, soft_wrap=True, markup=False)


def what(question: Question) -> str:
    """A question in words."""
    stride = "" if question.window[:2] == (1, 1) else f" stride {question.window[0]}"
    kind = "depthwise" if question.op == "depthwise_conv" else "whole block"
    return f"{kind} {'x'.join(map(str, question.kernel))}{stride}"


def _why(result: Result) -> str:
    return "counted" if result.measured is None else "measured"


def _report(cells: Sequence[Cell], device: torch.device, path: Path, json: bool) -> None:
    if json:
        from mnv3_fast.testing.gpu_bench.runner import facts_of

        print_json({"machine": facts_of(device), "kept": str(path), "cells": [record_of(cell) for cell in cells]})
        return
    for cell in cells:
        show(table_of(cell))
    if cells:
        console.print(f"kept: {path}", highlight=False, soft_wrap=True, markup=False)


def record_of(cell: Cell) -> dict[str, Any]:
    """A cell as JSON has it."""
    layers = []
    for result in cell.results:
        record = asdict(result)
        record["question"]["dtype"] = cell.dtype
        layers.append({**record, "what": what(result.question), "why": _why(result)})
    return {"model": cell.model, "batch": cell.batch, "size": cell.size, "dtype": cell.dtype, "layers": layers}


def table_of(cell: Cell) -> Table:
    """A cell for the terminal."""
    head = "layer", "blocks", "input", "triton\nus", "cuda\nus", "faster\nby", "rounds\nwon", "taken"
    table = Table(*head, title=cell.title(), box=SIMPLE)
    for result in cell.results:
        times = [f"{result.seconds[v] * 1e6:.2f}" if v in result.seconds else "-" for v in ("triton", "cuda")]
        clear = ("-", "-") if result.faster_by is None else (f"{result.faster_by:.2f}", str(result.rounds))
        blocks = ", ".join(name.removeprefix("block ") for name in result.layers)
        shape = " x ".join(map(str, result.question.shape[1:]))
        table.add_row(what(result.question), blocks, shape, *times, *clear, f"{result.used}, {_why(result)}")
    return table
