"""pytest-benchmark's JSON as Markdown tables: ``python -m benchmarks.report FILE...`` prints them.

Ratio, time, % of the measured FMA peak and error stand in one row; a loss stays in the table.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HEAD = "| | time | ours is faster by | % of peak | error |\n|---|---:|---:|---:|---:|"


def read(paths: list[Path]) -> dict[str, list[dict[str, Any]]]:
    """The extra_info of every entry, by group."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for path in paths:
        for entry in json.loads(path.read_text())["benchmarks"]:
            facts = entry["extra_info"]
            allocator = "" if facts["malloc"] == "default" else ", the allocator keeps memory"
            groups.setdefault(entry["group"] + allocator, []).append(facts)
    return groups


def time_text(microseconds: float) -> str:
    """us below a millisecond, else ms."""
    return f"{microseconds:.1f} us" if microseconds < 1000 else f"{microseconds / 1000:.2f} ms"


def table(rows: list[dict[str, Any]]) -> str:
    """One group as a table."""
    lines = [HEAD]
    for row in rows:
        peak = "" if row["percent_of_peak"] is None else f"{row['percent_of_peak']:.0f}%"
        lines.append(
            f"| {row['rival']} | {time_text(row['median_us'])} | {row['ours_is_faster_by']:.2f} | {peak} "
            f"| {row['error']:.1e} |"
        )
    return "\n".join(lines)


def op_table(groups: dict[str, list[dict[str, Any]]], op: str) -> str:
    """All layers of an op: our time and how many times faster we are than each rival."""
    mine = {name: rows for name, rows in groups.items() if name.startswith(f"{op}/") and "/compiled" not in name}
    rivals = [row["rival"] for row in next(iter(mine.values())) if row["rival"] != "mnv3_fast"]
    lines = [
        f"| layer | ours | % of peak | error | {' | '.join(f'faster than {r} by' for r in rivals)} |",
        f"|---|---:|---:|---:|{'---:|' * len(rivals)}",
    ]
    for name, rows in mine.items():
        by_name = {row["rival"]: row for row in rows}
        ours = by_name["mnv3_fast"]
        ratios = [f"{by_name[r]['ours_is_faster_by']:.2f}" if r in by_name else "" for r in rivals]
        cells = [
            name.split("/")[1],
            time_text(ours["median_us"]),
            f"{ours['percent_of_peak'] or 0:.0f}%",
            f"{ours['error']:.1e}",
        ]
        lines.append(f"| {' | '.join(cells + ratios)} |")
    return "\n".join(lines)


def main(paths: list[str]) -> None:
    """Print everything."""
    groups = read([Path(path) for path in paths])
    facts = next(iter(groups.values()))[0]
    out = [f"{facts['cpu']}, {facts['instruction_set']}, torch {facts['torch']}, {facts['date']}"]
    of_ops = [name for name, rows in groups.items() if any(row["rival"] == "mnv3_fast" for row in rows)]
    ops = list(dict.fromkeys(name.split("/")[0] for name in of_ops))
    for name, rows in groups.items():
        if name.split("/")[0] not in ops:
            out += [f"\n**{name}**\n", table(rows)]
    for op in ops:
        out += [f"\n**{op}**\n", op_table(groups, op)]
    sys.stdout.write("\n".join(out) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
