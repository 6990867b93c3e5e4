"""``python -m benchmarks.rivals``: other inference engines on the same networks, beside ours, in one interleaved run.

It installs each engine into an environment of its own, exports the networks, checks every output against
torchvision's and gives the engines turns, one process each. An engine that cannot take part is named with the reason.
Run it on a machine that has nothing else to do. MNV3_FAST_ISA=avx2 keeps ourselves to AVX2, and the engines that can be
told.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.rivals import environments, exports, plots, results, roofline, timing
from benchmarks.rivals.cases import Case, prepare, sizes
from benchmarks.rivals.engines import ENGINES
from mnv3_fast.testing.measure import machine_facts


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; cells are the product of nets, widths, batches, sizes and threads."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rivals", description=__doc__)
    add = parser.add_argument
    add("--nets", nargs="+", choices=("large", "small"), default=["large", "small"])
    add("--widths", nargs="+", type=float, default=[1.0], help="width multipliers")
    add("--batches", nargs="+", type=int, default=[1, 8, 32])
    add("--sizes", nargs="+", type=sizes, default=[(224, 224)], help="224 or 193x257, height first")
    add("--threads", nargs="+", type=int, default=[1, 2])
    add("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    add("--seconds", type=float, default=0.2, help="of one turn")
    add("--rounds", type=int, default=15, help="turns of each engine in a cell")
    add("--build", type=Path, default=Path("build/rivals"), help="environments, models and logs")
    add("--output", type=Path, help="folder of the report, that of --build unless given")
    add("--prepare", action="store_true", help="install and export, time nothing")
    add("--no-roofline", action="store_true", help="leave our layers out")
    add("--report", type=Path, metavar="JSON", help="write the report of an earlier run again")
    options = parser.parse_args(arguments)
    options.build = options.build.resolve()
    options.output = (options.output or options.build).resolve()
    return options


def main() -> None:
    """Prepare, time, report; the report is written after every cell."""
    options = parse()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.report:
        report(json.loads(options.report.read_text()), options.output)
        return
    engines = [ENGINES[key] for key in options.engines]
    needed = dict.fromkeys(name for engine in engines for name in engine.environments())
    failed = environments.set_up(options.build / "venv", needed)
    models = options.build / "models" / environments.digest()
    nets = product(options.nets, options.widths, options.batches, options.sizes)
    cases = [Case(net, width, batch, *size) for net, width, batch, size in nets]
    macs, missing = {}, {}
    for case in cases:
        print(f"exporting {case}", flush=True)
        folder = models / str(case)
        macs[case] = prepare(case, folder)
        missing[case] = exports.export(engines, folder, options.build, failed)
    if options.prepare:
        return
    record: dict[str, Any] = {
        "machine": machine_facts(),
        "environment": {
            name: value for name, value in os.environ.items() if name.startswith(("MNV3_FAST_", "MALLOC_"))
        },
        "arguments": sys.argv[1:],
        "began": datetime.datetime.now().isoformat(timespec="seconds"),
        "seconds": options.seconds,
        "rounds": options.rounds,
        "names": {key: engine.name for key, engine in ENGINES.items()},
        "cells": [],
    }
    for case, threads in product(cases, options.threads):
        print(f"timing {case}, {threads} threads", flush=True)
        able = [engine for engine in engines if engine.key not in missing[case]]
        cell = timing.measure(case, able, threads, models / str(case), options.build, options.seconds, options.rounds)
        record["cells"].append({**cell, "macs": macs[case], "missing": missing[case] | cell["missing"]})
        report(record, options.output)
    if not options.no_roofline:
        record["roofline"] = roofline.measure()
    record["ended"] = datetime.datetime.now().isoformat(timespec="seconds")
    report(record, options.output)
    print(results.markdown(record))


def report(record: dict[str, Any], folder: Path) -> None:
    """rivals.json, rivals.csv, tables.md, ratios.png and, where it was measured, roofline.png."""
    (folder / "rivals.json").write_text(json.dumps(record, indent=1))
    (folder / "rivals.csv").write_text(results.to_csv(record))
    (folder / "tables.md").write_text(results.markdown(record))
    plots.ratio_plot(record, folder / "ratios.png")
    if "roofline" in record:
        plots.roofline_plot(record["roofline"], folder / "roofline.png")


if __name__ == "__main__":
    main()
