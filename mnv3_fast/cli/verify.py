"""``mnv3-fast verify``: equality of every op and of both networks on this machine, planted faults included."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table

from mnv3_fast.cli.common import (
    MISS,
    check_choices,
    check_output,
    console,
    errors,
    fail,
    print_json,
    show,
    write_json,
    writing,
)
from mnv3_fast.cli.devices import gpu
from mnv3_fast.cli.verify_checkpoint import verify_checkpoint

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
EPILOG = """Examples:

mnv3-fast verify

mnv3-fast verify --json

mnv3-fast verify --device cuda --dtype float16

mnv3-fast verify --checkpoint model.safetensors --model mobilenetv3_large_100

Ends with status 0 if everything is equal and every planted fault is found (of a checkpoint: if nothing is found), else
1; 2 without the GPU that was asked for, or for a checkpoint that cannot be read; 3 if the report cannot be written."""


def verify(
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N")] = "cpu",
    dtype: Annotated[list[str], typer.Option(help="float32, float16, bfloat16; of a GPU; may be repeated")] = [],  # noqa: B006
    output: Annotated[Path, typer.Option(help="folder for the report of a GPU")] = Path("mnv3-fast-verify"),
    checkpoint: Annotated[str | None, typer.Option(help="look for faults in this file instead")] = None,
    model: Annotated[str | None, typer.Option(help="what the checkpoint should be of (mnv3-fast info)")] = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Compare every op and both networks with torch on this machine, planted faults included. Takes some minutes.

    Of a GPU it writes verify.json and verify.txt, to be attached to a bug report. With --checkpoint it looks for faults
    in a file: wrong eps, padding, mean and std, scaling, dead or untouched BatchNorm, NaN.
    """
    if checkpoint is not None:
        if device != "cpu" or dtype:
            fail("--checkpoint goes without --device and --dtype")
        verify_checkpoint(checkpoint, model, json)
        return
    if model is not None:
        fail("--model goes with --checkpoint")
    if device == "cpu" and dtype:
        fail("--dtype is for --device cuda; on the CPU there is float32 alone")
    check_choices("--dtype", dtype, tuple(DTYPES))
    if device != "cpu":
        _verify_device(device, [DTYPES[name] for name in dict.fromkeys(dtype)] or list(DTYPES.values()), output, json)
        return
    from mnv3_fast.testing.verify import model_rows, op_rows

    rows = []
    for row in itertools.chain(op_rows(), model_rows()):
        rows.append(row)
        state = "as it should be" if row.passed else "MISS"
        errors.print(f"{row.name} {row.instruction_set}".strip() + f": {state}", highlight=False, soft_wrap=True)
    passed = all(row.passed for row in rows)
    if json:
        print_json({"passed": passed, "rows": [dataclasses.asdict(row) for row in rows]})
    else:
        table = Table("what", "instruction set", "cases", "worst error", "limit", "")
        table.caption = "ops: worst error over its limit (2 x torch's own error + 4 eps); networks: relative L2"
        for row in rows:
            word = "found" if "planted" in row.name else "equal"
            mark = f"[green]{word}[/green]" if row.passed else "[red]MISS[/red]"
            table.add_row(row.name, row.instruction_set, str(row.cases), f"{row.error:.3g}", f"{row.limit:g}", mark)
        show(table)
        console.print("everything equal, every planted fault found" if passed else "[red]there are misses[/red]")
    if not passed:
        raise typer.Exit(MISS)


def _verify_device(name: str, dtypes: list[torch.dtype], output: Path, json: bool) -> None:
    device = gpu(name, "cpu, cuda or cuda:N")
    check_output(output)
    from mnv3_fast.gpu import first_use
    from mnv3_fast.testing.verify_device import (
        device_facts,
        device_model_rows,
        device_op_rows,
        report_of,
        report_text,
    )

    checked = first_use.check_device(device, dtypes, again=True)
    rows = []
    for row in itertools.chain(device_op_rows(device, dtypes), device_model_rows(device, dtypes)):
        rows.append(row)
        state = "as it should be" if row.passed else f"MISS: {row.reason}"
        errors.print(f"{row.name} {row.dtype}: {state}", highlight=False, soft_wrap=True, markup=False)
    report = report_of(device_facts(device), checked, rows)
    write_json(output / "verify.json", report)
    with writing(output / "verify.txt"):
        (output / "verify.txt").write_text(report_text(report), encoding="utf-8")
    if json:
        print_json(report)
    else:
        console.print(report_text(report), highlight=False, soft_wrap=True, markup=False)
        console.print(f"report: {output}/verify.json, verify.txt", highlight=False, soft_wrap=True, markup=False)
    if not report["passed"]:
        raise typer.Exit(MISS)
