"""What came out, as rows, as CSV and as Markdown; from the record alone, so that a record can be read again later."""

from __future__ import annotations

import csv
import io
import statistics
from dataclasses import asdict, dataclass, fields
from typing import Any

from mnv3_fast.testing.measure import Timing

FROZEN, ACCELERATED = "frozen", "accelerated"
HEAD = (
    "| | time | frozen is faster by (quartiles) | accelerated is faster by | GMAC/s | % of peak | error | memory |\n"
    "|---|---:|---:|---:|---:|---:|---:|---:|"
)


@dataclass(frozen=True)
class Row:
    """One engine in one cell. Ratios are medians over rounds, of blocks of the same round; above 1 we are faster."""

    case: str
    threads: int
    engine: str
    name: str
    milliseconds: float
    frozen_is_faster_by: float | None
    frozen_lower_quartile: float | None
    frozen_upper_quartile: float | None
    accelerated_is_faster_by: float | None
    gmacs: float
    percent_of_peak: float | None
    error: float
    peak_rss_mb: float
    limited: bool
    note: str


def timing(blocks: list[list[float]]) -> Timing:
    """Blocks of calls as rounds."""
    return Timing(tuple(statistics.median(block) for block in blocks), tuple(t for block in blocks for t in block))


def ratios(ours: Timing, theirs: Timing) -> list[float]:
    """Their time over ours, round by round."""
    return [b / a for a, b in zip(ours.rounds, theirs.rounds, strict=True)]


def rows(cell: dict[str, Any]) -> list[Row]:
    """A cell's engines, fastest first."""
    timings = {entry["engine"]: timing(entry["blocks"]) for entry in cell["entries"]}
    found = []
    for entry in cell["entries"]:
        theirs = timings[entry["engine"]]
        faster = {ours: ratios(timings[ours], theirs) for ours in (FROZEN, ACCELERATED) if ours in timings}
        frozen = faster.get(FROZEN)
        quartiles = statistics.quantiles(frozen, n=4, method="inclusive") if frozen and len(frozen) > 1 else [None] * 3
        gmacs = cell["macs"] / theirs.median * 1e-9
        peak = cell["fma_peak"]
        found.append(
            Row(
                cell["case"],
                cell["threads"],
                entry["engine"],
                entry["name"],
                theirs.median * 1e3,
                statistics.median(frozen) if frozen else None,
                quartiles[0],
                quartiles[2],
                statistics.median(faster[ACCELERATED]) if ACCELERATED in faster else None,
                gmacs,
                None if peak is None else 100 * gmacs / (peak * cell["threads"]),
                entry["error"],
                entry["peak_rss"] / 1e6,
                entry["limited"],
                entry["note"],
            )
        )
    return sorted(found, key=lambda row: row.milliseconds)


def table(cell: dict[str, Any], names: dict[str, str]) -> str:
    """A cell in Markdown: losses stay in it, and so do engines that are missing."""
    lines = [HEAD]
    for row in rows(cell):
        cells = [
            row.name + ("" if row.limited else " (with all instruction sets)"),
            time_text(row.milliseconds),
            _ratio(row.frozen_is_faster_by, row.frozen_lower_quartile, row.frozen_upper_quartile),
            _ratio(row.accelerated_is_faster_by),
            f"{row.gmacs:.1f}",
            "" if row.percent_of_peak is None else f"{row.percent_of_peak:.0f}%",
            f"{row.error:.1e}",
            f"{row.peak_rss_mb:.0f} MB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"| {names[key]} | missing |{' |' * 6}" for key in cell["missing"]]
    reasons = [f"{names[key]} is missing: {reason}" for key, reason in cell["missing"].items()]
    notes = [f"{row.name}: {row.note}." for row in rows(cell) if row.note and cell["batch"] > 1]
    return "\n".join(lines + [""] + [line + "  " for line in reasons + notes] if reasons or notes else lines)


def others(cell: dict[str, Any]) -> float:
    """How much of a core processes that are not measured took during the turns, on average."""
    return statistics.fmean([share for entry in cell["entries"] for share in entry["others"]] or [0.0])


def markdown(record: dict[str, Any]) -> str:
    """All cells, with who measured and what was going on meanwhile."""
    facts = record["machine"]
    environment = [f"{name}={value}" for name, value in record["environment"].items()]
    versions = dict(
        sorted({pair for cell in record["cells"] for e in cell["entries"] for pair in e["versions"].items()})
    )
    out = [
        f"{facts['cpu']}, {facts['instruction_set']}, {facts['date']}; {record['rounds']} rounds of "
        f"{record['seconds']:g} s an engine; {', '.join(f'{name} {version}' for name, version in versions.items())}",
        "",
        f"`{' '.join([*environment, 'python -m benchmarks.rivals', *record['arguments']])}`",
        "",
        "Time is the median of all calls, memory the peak of an engine's process with Python, its imports and loading.",
    ]
    for cell in record["cells"]:
        peak = "" if cell["fma_peak"] is None else f"FMA peak {cell['fma_peak']:.1f} GMAC/s a core; "
        out += [
            f"\n**{cell['title']}**\n",
            table(cell, record["names"]),
            f"\n{peak}load average {cell['load_average'][0][0]:.2f}; other processes took "
            f"{100 * others(cell):.0f}% of a core meanwhile.",
        ]
    return "\n".join(out) + "\n"


def to_csv(record: dict[str, Any]) -> str:
    """All rows; a missing engine has its name and the reason as its note."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    for cell in record["cells"]:
        writer.writerows(asdict(row) for row in rows(cell))
        for key, reason in cell["missing"].items():
            place = {"case": cell["case"], "threads": cell["threads"]}
            writer.writerow({**place, "engine": key, "name": record["names"][key], "note": f"missing: {reason}"})
    return text.getvalue()


def time_text(milliseconds: float) -> str:
    """Microseconds below one millisecond."""
    return f"{milliseconds * 1e3:.0f} us" if milliseconds < 1 else f"{milliseconds:.2f} ms"


def _ratio(value: float | None, lower: float | None = None, upper: float | None = None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if lower is None else f"{value:.2f} ({lower:.2f} to {upper:.2f})"
