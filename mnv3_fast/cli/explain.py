"""``mnv3-fast explain``: what runs each layer of a network, how long it takes, and what bounds it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.table import Table

from mnv3_fast.cli.common import check_positive, console, fail, machine_line, print_json, show

EPILOG = """Examples:

mnv3-fast explain

mnv3-fast explain --model small --batch 8 --threads 2

mnv3-fast explain --accelerated --json

Ends with status 0; 2 for bad arguments."""


def explain(
    model: Annotated[str, typer.Option(help="a name that `mnv3-fast info --models` lists, or large, small")] = "large",
    batch: Annotated[int, typer.Option(help="images a call")] = 1,
    size: Annotated[int, typer.Option(help="side of the images")] = 224,
    threads: Annotated[int, typer.Option(help="intra-op threads")] = 1,
    accelerated: Annotated[bool, typer.Option("--accelerated", help="of accelerate, module by module")] = False,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Time each layer of a frozen network, with random weights, inside of its executor."""
    import torch

    from mnv3_fast import accelerate, freeze
    from mnv3_fast import explain as explain_model
    from mnv3_fast.cli.models import network_of
    from mnv3_fast.testing.measure import machine_facts, pinned

    for option, value in (("--batch", batch), ("--size", size), ("--threads", threads)):
        check_positive(option, [value])
    try:
        network, _, _ = network_of(model, "random")
    except ValueError as error:
        fail(str(error))
    with pinned(threads):
        converted = accelerate(network.eval()) if accelerated else freeze(network.eval())
        explanation = explain_model(converted, torch.rand(batch, 3, size, size))
        facts = machine_facts()
    if json:
        divided, networks = explanation.divided, explanation.networks
        rows = [asdict(row) for row in explanation.rows]
        print_json({"machine": facts, "rows": rows, "networks": networks, "divided": divided})
        return
    if accelerated:
        typer.echo(str(explanation))
        return
    title = f"{model}, batch {batch}, {threads} thread{'s' if threads > 1 else ''}, {size} x {size}"
    table = Table(
        "layer", "MMAC", "MB", "ms", "% of\ncall", "GMAC/s", "% of\npeak", "bound by", title=title, box=SIMPLE,
    )  # fmt: skip
    for row in explanation.rows:
        numbers = (row.milliseconds, row.percent_of_call, row.gmacs, row.percent_of_peak)
        work = [f"{(row.macs or 0) / 1e6:.2f}", f"{(row.bytes or 0) / 1e6:.2f}"]
        table.add_row(
            row.kind, *work, *("" if n is None else f"{n:.{d}f}" for n, d in zip(numbers, (3, 1, 1, 0), strict=True)),
            row.bound or row.reason or "",
        )  # fmt: skip
    show(table)
    shares = [row.percent_of_call for row in explanation.rows if row.percent_of_call is not None]
    tile = next((row.tile for row in explanation.rows if row.tile), None)
    if shares:
        console.print(f"{sum(shares):.1f}% of a call is in its layers; tile of 1x1 convolutions: {tile}")
    console.print(machine_line(facts))
