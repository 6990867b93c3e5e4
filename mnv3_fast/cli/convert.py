"""``mnv3-fast convert``: a checkpoint under the names of another library, with a certificate."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from mnv3_fast.cli.common import MISS, check_choices, errors, fail, print_json, show, writing

EPILOG = """Examples:

mnv3-fast convert mobilenet_v3_large-5c1a4163.pth large_timm.pth --to timm

mnv3-fast convert model.safetensors small.safetensors --to safetensors --model tf_mobilenetv3_small_100

Ends with status 0; 1 if both networks do not give the same; 2 for input that cannot be converted; 3 if the output
cannot be written. Whenever it is not 0, nothing has been written."""


def convert(
    source: Annotated[str, typer.Argument(help="a file of torch.save or safetensors, or its URL", metavar="IN")],
    output: Annotated[Path, typer.Argument(help="the file to write", metavar="OUT")],
    to: Annotated[str, typer.Option(help="torchvision, timm, mmpretrain or safetensors (which load_checkpoint reads)")],
    model: Annotated[
        str | None, typer.Option(help="what it is of, where other variants have the same shapes (mnv3-fast info)")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="replace OUT if it exists")] = False,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Write a checkpoint for another library, once its network and the one it came from give the same."""
    from mnv3_fast.checkpoints import converting
    from mnv3_fast.checkpoints.recognition import open_checkpoint

    check_choices("--to", [to], converting.FORMATS)
    with writing(output):
        if output.is_dir():
            fail(f"OUT {output} is a folder, a file is wanted")
        there = output.exists()
    if there and not force:
        fail(f"OUT {output} exists; --force replaces it")
    try:
        checkpoint = open_checkpoint(source)
        with writing(output):
            done = converting.convert(checkpoint, output, to, model)
    except converting.NotEqual as error:
        fail(str(error), MISS)
    except (ValueError, OSError) as error:
        fail(str(error))
    for note in done.notes:
        errors.print(f"mnv3-fast: {note}", highlight=False, soft_wrap=True, markup=False)
    certificate = done.certificate
    if certificate.target is None:
        words = "timm is not installed, so only tensors were compared; with it, both networks are"
        errors.print(f"mnv3-fast: {words}", highlight=False, soft_wrap=True, markup=False)
    if json:
        record = {"in": source, "out": str(output), "to": to, "family": done.family, "variant": done.variant.name}
        print_json(record | {"why": done.why, "notes": done.notes, "certificate": asdict(certificate)})
        return
    table = Table(show_header=False)
    for row in (
        ("read", f"{source}: {done.family}'s names, {done.variant.name} ({done.why})"),
        ("network it is of", certificate.source),
        ("network it is for", certificate.target or f"{done.target.name}, not compared"),
        ("inputs", certificate.inputs if certificate.target else "none"),
        ("tensors equal bit by bit", str(certificate.tensors)),
        ("largest absolute error", "-" if certificate.max_abs is None else f"{certificate.max_abs:.3g}"),
        ("largest relative L2 error", "-" if certificate.relative_l2 is None else f"{certificate.relative_l2:.3g}"),
        ("written", str(output)),
    ):
        table.add_row(*row)
    show(table)
