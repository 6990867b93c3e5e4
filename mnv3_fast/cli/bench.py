"""``mnv3-fast bench``: both networks against their rivals in one interleaved run, on the CPU or on a GPU."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from itertools import product
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
    compiling,
    console,
    errors,
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

mnv3-fast bench --device cuda --net large --batch 1 --batch 128 --dtype float16

mnv3-fast bench --device cuda --dry-run

Ends with status 0; 1 if a result is wrong (then it has no numbers); 2 for bad arguments and without the GPU that was
asked for; 3 if the report cannot be written."""


def bench(
    net: Annotated[list[str], typer.Option(help="large, small; may be repeated")] = ["large", "small"],  # noqa: B006
    batch: Annotated[
        list[int], typer.Option(help="images a call; may be repeated; 1, on a GPU 1, 8, 32, 128 and 256 unless given")
    ] = [],  # noqa: B006
    threads: Annotated[
        list[int], typer.Option(help="intra-op threads of the CPU; may be repeated; 1 unless given")
    ] = [],  # noqa: B006
    size: Annotated[list[int], typer.Option(help="side of the images; may be repeated")] = [224],  # noqa: B006
    seconds: Annotated[float, typer.Option(help="time for each interleaved run")] = 6.0,
    compiled: Annotated[
        bool, typer.Option(help="also torch.compile with freezing (30 s); a GPU has it among its rivals anyway")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N")] = "cpu",
    dtype: Annotated[
        list[str], typer.Option(help="float32, float16, bfloat16; of a GPU; may be repeated; all unless given")
    ] = [],  # noqa: B006
    engine: Annotated[
        list[str],
        typer.Option(help="eager, amp, compiled, tensorrt, accelerated, frozen; of a GPU; may be repeated"),
    ] = [],  # noqa: B006
    dry_run: Annotated[bool, typer.Option("--dry-run", help="of a GPU: as far as the launches; needs no GPU")] = False,
    output: Annotated[Path, typer.Option(help="folder for the report")] = Path("mnv3-fast-bench"),
    json: Annotated[bool, typer.Option("--json", help="print the report as JSON, too")] = False,
) -> None:
    """Time networks, batches, threads and sizes; write JSON, CSV and a plot. No number stands on a wrong result."""
    check_choices("--net", net, NETS)
    if device == "cpu":
        for option, given in (("--dtype", dtype), ("--engine", engine), ("--dry-run", dry_run)):
            if given:
                fail(f"{option} is for --device cuda")
        batch, threads = batch or [1], threads or [1]
    elif threads:
        fail("--threads is for --device cpu")
    for option, values in (("--batch", batch), ("--threads", threads), ("--size", size)):
        check_positive(option, values)
    if not seconds > 0:
        fail(f"--seconds must be greater than 0, got {seconds}")
    if device == "cpu":
        _bench_cpu(net, batch, threads, size, seconds, compiled, output, json)
    else:
        _bench_gpu(device, net, batch, dtype, size, engine, seconds, dry_run, output, json)


def _bench_cpu(
    nets: list[str], batches: list[int], threads: list[int], sizes: list[int],
    seconds: float, compiled: bool, output: Path, json: bool,
) -> None:  # fmt: skip
    from mnv3_fast.testing.measure import machine_facts

    check_output(output)
    rows = [
        row
        for name, side, images, count in product(nets, sizes, batches, threads)
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


def _bench_gpu(
    device: str, nets: list[str], batches: list[int], dtypes: list[str], sizes: list[int], chosen: list[str],
    seconds: float, dry: bool, output: Path, json: bool,
) -> None:  # fmt: skip
    place = _gpu(device, dry)
    try:
        from mnv3_fast.testing.gpu_bench import cells as one
        from mnv3_fast.testing.gpu_bench import report, runner
        from mnv3_fast.testing.gpu_bench.engines import ENGINES, telling
    except ImportError as error:
        fail(f"--device {device} needs Triton, which comes with torch on Linux: {error}")

    check_choices("--dtype", dtypes, tuple(one.DTYPES))
    check_choices("--engine", chosen, tuple(engine.key for engine in ENGINES))
    check_output(output)
    engines = [engine for engine in ENGINES if not chosen or engine.key in chosen]
    wanted = product(nets, sizes, dtypes or one.DTYPES, batches or one.BATCHES)
    cells = [one.Cell(net, batch, dtype, size) for net, size, dtype, batch in wanted]
    done: list[dict[str, Any]] = []
    facts, call = runner.facts_of(None if dry else place), ["mnv3-fast", *sys.argv[1:]]
    record = runner.record_of(facts, call, done, dry)
    with compiling() as progress:
        found = runner.dry_cells(cells, engines)  # a generator, so nothing is done yet
        if not dry:
            found = runner.measured_cells(cells, place, seconds, telling(engines, progress))
        for cell in found:  # written as it grows: a run takes hours where everything compiles
            errors.print(cell["title"])
            done.append(cell)
            record = runner.record_of(facts, call, done, dry)
            write_json(output / "bench-gpu.json", record)
    text = report.markdown(record)
    with writing(output / "bench-gpu.md"):
        (output / "bench-gpu.md").write_text(text, encoding="utf-8")
    with writing(output / "bench-gpu.png"):
        report.plot(record, output / "bench-gpu.png")
    if json:
        print_json(record)
    else:
        sys.stdout.write(text)
    if misses := report.wrong(record):
        fail(f"bench: no number on a wrong result: {'; '.join(misses)}", MISS)


def _gpu(name: str, dry: bool) -> torch.device:
    """The device of a name; ends if there is no such name, or if the device is not there and a dry run not wanted."""
    try:
        device = torch.device(name)
    except RuntimeError:
        fail(f"--device must be cpu, cuda or cuda:N, got {name!r}")
    if device.type != "cuda":
        fail(f"--device must be cpu, cuda or cuda:N, got {name!r}")
    if dry:
        return device
    if not torch.cuda.is_available():
        fail(f"--device {name}: torch {torch.__version__} finds no GPU; --dry-run goes as far as the launches")
    if device.index is not None and device.index >= torch.cuda.device_count():
        fail(f"--device {name}: there are {torch.cuda.device_count()} GPUs, numbered from 0")
    return torch.device("cuda", device.index or 0)


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
