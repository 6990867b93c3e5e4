"""Pictures of a record: ratios of each cell, and our layers under the roofline."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from benchmarks.rivals.results import FROZEN, rows

COLUMNS = 3


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def ratio_plot(record: dict[str, Any], path: Path) -> None:
    """A panel a cell: how many times faster the frozen engine is than each other one. Below 1 we lose."""
    pyplot = _pyplot()
    cells = record["cells"]
    columns = min(COLUMNS, len(cells))
    lines = math.ceil(len(cells) / columns)
    figure, axes = pyplot.subplots(lines, columns, figsize=(5 * columns, 2.6 * lines), squeeze=False)
    for axis in axes.flat[len(cells) :]:
        axis.axis("off")
    for axis, cell in zip(axes.flat, cells, strict=False):
        shown = [row for row in rows(cell) if row.engine != FROZEN and row.frozen_is_faster_by is not None][::-1]
        values = [row.frozen_is_faster_by for row in shown]
        bars = axis.barh([row.name for row in shown], values, color=["C0" if v >= 1 else "C3" for v in values])
        axis.bar_label(bars, fmt="%.2f", fontsize=7, padding=2)
        axis.axvline(1, color="black", linewidth=1)
        axis.margins(x=0.12)
        axis.set_title(cell["title"], fontsize=9)
        axis.tick_params(labelsize=7)
    figure.supxlabel("mnv3_fast frozen is faster by", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def roofline_plot(roofline: dict[str, Any], path: Path) -> None:
    """Our layers at batch 1 on one core: speed over the multiply-adds for each byte that must move."""
    pyplot = _pyplot()
    figure, axis = pyplot.subplots(figsize=(7, 4.5))
    layers, peak, bandwidth = roofline["layers"], roofline["fma_peak"], roofline["bandwidth"]
    for op in dict.fromkeys(layer["op"] for layer in layers):
        mine = [layer for layer in layers if layer["op"] == op]
        intensity = [layer["macs"] / layer["bytes"] for layer in mine]
        axis.scatter(intensity, [layer["macs"] / layer["seconds"] * 1e-9 for layer in mine], s=14, label=op)
    least, most = (f(layer["macs"] / layer["bytes"] for layer in layers) for f in (min, max))
    line = [least * (most / least) ** (i / 100) for i in range(101)]
    axis.plot(line, [min(peak, bandwidth * x) for x in line], color="black", linewidth=1)
    axis.annotate(f"{peak:.0f} GMAC/s", (most, peak), fontsize=7, ha="right", va="bottom")
    axis.annotate(f"memory, {bandwidth:.0f} GB/s", (least, bandwidth * least), fontsize=7, va="top")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("multiply-adds a byte")
    axis.set_ylabel("GMAC/s")
    axis.set_title("Layers of both networks, batch 1, one core; above the line: data from the caches", fontsize=9)
    axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
