"""``mnv3-fast bench``: both networks against their rivals in one interleaved run."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.box import SIMPLE
from rich.table import Table

from mnv3_fast.cli.common import (
    MISS,
    NETS,
    check_choices,
    check_output,
    check_positive,
    console,
    fail,
    machine_line,
    print_json,
    show,
    write_json,
    writing,
)

EPILOG = """Examples:

mnv3-fast bench

mnv3-fast bench --net large --batch 1 --batch 8 --threads 1 --threads 2 --compiled

mnv3-fast bench --seconds 1 --json

Ends with status 0; 1 if a result is wrong (then there are no numbers); 2 for bad arguments; 3 if the report cannot be
written."""


def bench(
    net: Annotated[list[str], typer.Option(help="large, small; may be repeated")] = ["large", "small"],  # noqa: B006
    batch: Annotated[list[int], typer.Option(help="images a call; may be repeated")] = [1],  # noqa: B006
    threads: Annotated[list[int], typer.Option(help="intra-op threads; may be repeated")] = [1],  # noqa: B006
    size: Annotated[list[int], typer.Option(help="side of the images; may be repeated")] = [224],  # noqa: B006
    seconds: Annotated[float, typer.Option(help="time for each interleaved run")] = 6.0,
    compiled: Annotated[bool, typer.Option(help="also torch.compile with freezing (compiles for about 30 s)")] = False,
    output: Annotated[Path, typer.Option(help="folder for the report")] = Path("mnv3-fast-bench"),
    json: Annotated[bool, typer.Option("--json", help="print the report as JSON, too")] = False,
) -> None:
    """Time networks, batches, threads and sizes; write JSON, CSV and a plot. No number stands on a wrong result."""
    check_choices("--net", net, NETS)
    for option, values in (("--batch", batch), ("--threads", threads), ("--size", size)):
        check_positive(option, values)
    if not seconds > 0:
        fail(f"--seconds must be greater than 0, got {seconds}")
    from mnv3_fast.testing.measure import machine_facts

    check_output(output)
    rows = [
        row
        for name in net
        for side in size
        for images in batch
        for count in threads
        for row in measure(name, images, count, side, seconds, compiled)
    ]
    facts = machine_facts()
    write_json(output / "bench.json", {"machine": facts, "rows": rows})
    with writing(output / "bench.csv"), (output / "bench.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with writing(output / "bench.png"):
        plot = _plot(rows, output / "bench.png")
    if json:
        print_json({"machine": facts, "rows": rows})
        return
    for table in tables_of(rows):
        show(table)
    console.print(machine_line(facts))
    console.print(
        f"report: {output}/bench.json, bench.csv{', bench.png' if plot else ' (no plot: matplotlib is missing)'}"
    )


def measure(net: str, batch: int, threads: int, size: int, seconds: float, compiled: bool) -> list[dict[str, Any]]:
    """One interleaved run of a network and its rivals; every rival is compared with torchvision first."""
    from mnv3_fast.testing.layers import network_macs
    from mnv3_fast.testing.measure import fma_peak, interleave, peak_memory, pinned
    from mnv3_fast.testing.parity import parity_images, parity_model
    from mnv3_fast.testing.rivals import model_rivals
    from mnv3_fast.testing.tolerance import NET_LIMIT, relative_error

    model, x = parity_model(net), parity_images(batch, size)
    with pinned(threads), torch.no_grad():
        runs = model_rivals(model, x, compiled)
        expected = model(x)
        errors = {name: relative_error(run(), expected) for name, run in runs.items()}
        wrong = {name: error for name, error in errors.items() if not error <= NET_LIMIT}
        if wrong:
            fail(f"bench: no number on a wrong result: {wrong}", MISS)
        peak = fma_peak()
        timings = interleave(runs, seconds)
    macs = batch * network_macs(net, size)
    best = timings["mnv3_fast frozen"]
    return [
        {
            "net": net, "batch": batch, "threads": threads, "size": size, "rival": name,
            "ms": round(t.median * 1e3, 4), "p99_ms": round(t.p99 * 1e3, 4), "spread": round(t.spread, 4),
            "frozen_is_faster_by": round(best.ratio_to(t), 3),
            "gmacs": round(macs / t.median * 1e-9, 2),
            "percent_of_peak": None if peak is None else round(100 * macs / t.median * 1e-9 / (peak * threads), 1),
            "error": errors[name], "peak_rss_mib": round(peak_memory() / 2**20),
        }
        for name, t in timings.items()
    ]  # fmt: skip


def tables_of(rows: list[dict[str, Any]]) -> Iterator[Table]:
    """The rows for a terminal of 80 columns, a table a cell."""
    cells = list(dict.fromkeys((r["net"], r["batch"], r["threads"], r["size"]) for r in rows))
    for net, batch, threads, size in cells:
        title = f"{net}, batch {batch}, {threads} thread{'s' if threads > 1 else ''}, {size} x {size}"
        table = Table(
            "run", "ms", "p99", "spread", "frozen is\nfaster by", "% of\npeak", "error", title=title, box=SIMPLE
        )
        for r in rows:
            if (r["net"], r["batch"], r["threads"], r["size"]) != (net, batch, threads, size):
                continue
            peak = "" if r["percent_of_peak"] is None else f"{r['percent_of_peak']:.0f}%"
            table.add_row(
                r["rival"], f"{r['ms']:.2f}", f"{r['p99_ms']:.2f}", f"{100 * r['spread']:.0f}%",
                f"{r['frozen_is_faster_by']:.2f}", peak, f"{r['error']:.1e}",
            )  # fmt: skip
        yield table


def _plot(rows: list[dict[str, Any]], path: Path) -> bool:
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    cells = list(dict.fromkeys((r["net"], r["batch"], r["threads"], r["size"]) for r in rows))
    names = list(dict.fromkeys(r["rival"] for r in rows))
    figure, axes = pyplot.subplots(figsize=(2 + 2.2 * len(cells), 4))
    for i, name in enumerate(names):
        values = [
            next(r["gmacs"] for r in rows if (r["net"], r["batch"], r["threads"], r["size"], r["rival"]) == (*c, name))
            for c in cells
        ]
        axes.bar([j + i / (len(names) + 1) for j in range(len(cells))], values, 1 / (len(names) + 1), label=name)
    axes.set_xticks([j + 0.4 for j in range(len(cells))], [f"{n}\nb{b} t{t} @{s}" for n, b, t, s in cells])
    axes.set_ylabel("GMAC/s")
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return True
