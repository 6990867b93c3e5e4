"""What a frozen network takes: seconds to freeze, the first call beside a warm one, bytes kept.

``python -m benchmarks.models.memory`` prints a row for each network and number of threads, each from a process of its
own.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from mnv3_fast import _library
from mnv3_fast.cli.common import machine_line
from mnv3_fast.engine.freeze import freeze
from mnv3_fast.testing.measure import machine_facts, pinned
from mnv3_fast.testing.parity import parity_images, parity_model

WARM_CALLS = 50
COLUMNS = (
    "net",
    "threads",
    "freeze",
    "first call",
    "warm call",
    "plan",
    "of the weights",
    "arena",
    "resident",
    "of it new",
)


def resident() -> int:
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def measure(net: str, threads: int) -> dict[str, Any]:
    """One row; in a fresh process, whose first call has nothing prepared for it."""
    with pinned(threads), torch.inference_mode():
        model, x = parity_model(net), parity_images(1, 224)
        weights = sum(4 * parameter.numel() for parameter in model.parameters())
        model(x)  # torch's own threads and allocator are warm
        before, start = resident(), time.perf_counter()
        engine = freeze(model)
        froze = time.perf_counter()
        engine(x)
        first = time.perf_counter()
        calls = []
        for _ in range(WARM_CALLS):
            begin = time.perf_counter()
            engine(x)
            calls.append(time.perf_counter() - begin)
        return {
            "net": net,
            "threads": threads,
            "freeze": froze - start,
            "first": first - froze,
            "warm": statistics.median(calls),
            "plan": engine.plan.numel(),
            "weights": weights,
            "arena": _library.extension().arena_bytes(),
            "resident": resident(),
            "new": resident() - before,
        }


def line(row: dict[str, Any]) -> str:
    """A row of the Markdown table."""
    mib = {name: row[name] / 2**20 for name in ("plan", "arena", "resident", "new")}
    cells = (
        row["net"], row["threads"], f"{row['freeze']:.3f} s", f"{1e3 * row['first']:.1f} ms",
        f"{1e3 * row['warm']:.2f} ms", f"{mib['plan']:.1f} MiB", f"{row['plan'] / row['weights']:.3f}",
        f"{mib['arena']:.2f} MiB", f"{mib['resident']:.0f} MiB", f"{mib['new']:.0f} MiB",
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """The table."""
    print(machine_line(machine_facts()))
    print(f"\n| {' | '.join(COLUMNS)} |\n|---|{'---:|' * (len(COLUMNS) - 1)}")
    for net in ("large", "small"):
        for threads in (1, 2):
            command = [sys.executable, "-m", "benchmarks.models.memory", net, str(threads)]
            print(line(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
    else:
        main()
