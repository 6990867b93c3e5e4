"""Records of the GPU benchmark as Markdown and as a picture; from the record alone, which can be read again later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mnv3_fast.testing.gpu_bench.engines import ENGINES, FROZEN

HEAD = (
    "| | time | img/s | frozen is faster by | % of roofline b | c | L2 flushed: time | frozen is faster by | error |\n"
    "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
)
NAMES = {engine.key: engine.name for engine in ENGINES}


def table(cell: dict[str, Any]) -> str:
    """A cell: the fastest first; losses stay in it, and so do engines that are missing."""
    lines = [HEAD]
    for row in sorted(cell["rows"], key=lambda row: row["warm"]["ms"]):
        warm, flushed = row["warm"], row["flushed"]
        cells = [
            row["name"], time_text(warm["ms"]), f"{warm['images_per_second']:,.0f}", _ratio(warm),
            f"{warm['percent_of_b']:.0f}%", f"{warm['percent_of_c']:.0f}%", time_text(flushed["ms"]), _ratio(flushed),
            f"{row['error']:.1e}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"| {NAMES.get(key, key)} | {reason}{' |' * 8}" for key, reason in cell["missing"].items()]
    return "\n".join(lines)


def dry_table(cells: list[dict[str, Any]]) -> str:
    """What a dry run came to."""
    lines = [
        "| | launches | compilations | programs | unique MB an image | requested / unique | level c, MB an image |",
        "|---|" + "---:|" * 6,
    ]
    for cell in cells:
        images = cell["batch"] * 1e6
        lines.append(
            f"| {cell['title']} | {cell['launches']} | {cell['compilations']} | {cell['programs']:,} "
            f"| {cell['unique'] / images:.2f} | {cell['requested'] / cell['unique']:.2f} "
            f"| {cell['bytes']['c'] / images:.2f} |"
        )
    reasons = {key: reason for cell in cells for key, reason in cell["engines"].items() if reason}
    return "\n".join(
        [*lines, "", *(f"{NAMES.get(key, key)} is missing: {reason}  " for key, reason in reasons.items())]
    )


def markdown(record: dict[str, Any]) -> str:
    """All cells, with who measured; of a dry run, that nothing was."""
    facts = record["machine"]
    call = f"`{' '.join(record['call'])}`"
    if record["dry"]:
        words = "A dry run: every launch was made and handed over, none was started, nothing was timed."
        head = [words, f"torch {facts['torch']}, {facts['date']}", "", call, ""]
        return "\n".join([*head, dry_table(record["cells"])]) + "\n"
    out = [
        f"{facts['gpu']}, CUDA {facts['cuda']}, torch {facts['torch']}, {facts['date']}; {record['rounds']} rounds; "
        "times by CUDA events, medians of all calls; TF32 off",
        *([f"Ours without CUDA graphs: {facts['no_graphs']}"] if facts.get("no_graphs") else []),
        "",
        call,
    ]
    for cell in record["cells"]:
        out += [f"\n**{cell['title']}**\n", table(cell)]
        if cell["bandwidth"] is not None:
            bytes_ = {level: f"{count / 1e6:,.1f} MB" for level, count in cell["bytes"].items()}
            out.append(
                f"\nA copy moves {cell['bandwidth'] * 1e-9:,.0f} GB/s; a pass moves {bytes_['b']} at level b and "
                f"{bytes_['c']} at level c; error against fp64, limit {cell['limit']:.1e}."
            )
    return "\n".join(out) + "\n"


def wrong(record: dict[str, Any]) -> list[str]:
    """The cells in which an engine of ours computed something else."""
    ours = [engine.key for engine in ENGINES if engine.ours]
    return [
        f"{cell['title']}, {NAMES[key]}: {reason}"
        for cell in record["cells"]
        for key, reason in cell.get("missing", {}).items()
        if key in ours and reason.startswith("wrong")
    ]


def plot(record: dict[str, Any], path: Path) -> bool:
    """A panel a cell: images a second of each engine. False without matplotlib, or if there is nothing to draw."""
    cells = [cell for cell in record["cells"] if cell.get("rows")]
    try:
        import matplotlib
    except ImportError:
        return False
    if not cells:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(3, len(cells))
    lines = -(-len(cells) // columns)
    figure, axes = pyplot.subplots(lines, columns, figsize=(5 * columns, 2.4 * lines), squeeze=False)
    for axis in axes.flat[len(cells) :]:
        axis.axis("off")
    for axis, cell in zip(axes.flat, cells, strict=False):
        rows = sorted(cell["rows"], key=lambda row: row["warm"]["images_per_second"])
        values = [row["warm"]["images_per_second"] for row in rows]
        colors = ["C0" if row["engine"] == FROZEN else "C7" for row in rows]
        axis.bar_label(axis.barh([row["name"] for row in rows], values, color=colors), fmt="{:,.0f}", fontsize=7)
        axis.margins(x=0.2)
        axis.set_title(cell["title"], fontsize=9)
        axis.tick_params(labelsize=7)
    figure.supxlabel("images a second", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return True


def time_text(milliseconds: float) -> str:
    """Microseconds below one millisecond."""
    return f"{milliseconds * 1e3:.0f} us" if milliseconds < 1 else f"{milliseconds:.2f} ms"


def _ratio(figures: dict[str, Any]) -> str:
    return "" if figures["frozen_is_faster_by"] is None else f"{figures['frozen_is_faster_by']:.2f}"
