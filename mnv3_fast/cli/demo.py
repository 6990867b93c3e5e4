"""``mnv3-fast demo``: real photos through torchvision and through us, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.box import SIMPLE
from rich.table import Table
from torch import Tensor, nn

from mnv3_fast.cli.common import (
    NETS,
    check_output,
    check_positive,
    console,
    downloading,
    errors,
    fail,
    machine_line,
    print_json,
    show,
    write_json,
)

EPILOG = """Examples:

mnv3-fast demo

mnv3-fast demo cat.jpg dog.jpg --weights DEFAULT

Ends with status 0; 2 for bad arguments, an unreadable photo or weights that cannot be had; 3 if the report cannot be
written."""

PHOTOS = ("astronaut", "cat", "coffee")  # real photos that lie inside the scikit-image package itself


def demo(
    photos: Annotated[list[Path] | None, typer.Argument(help="your own image files")] = None,
    weights: Annotated[str | None, typer.Option(help="DEFAULT downloads torchvision's trained weights")] = None,
    seconds: Annotated[float, typer.Option(help="time for each interleaved run")] = 5.0,
    threads: Annotated[int, typer.Option(help="intra-op threads")] = 1,
    output: Annotated[Path, typer.Option(help="folder for the report")] = Path("mnv3-fast-demo"),
    json: Annotated[bool, typer.Option("--json", help="print the report as JSON")] = False,
) -> None:
    """Run large and small on real photos: torchvision eager, channels_last, BN-folded, accelerated, frozen."""
    check_positive("--threads", [threads])
    if not seconds > 0:
        fail(f"--seconds must be greater than 0, got {seconds}")
    images, source = load_photos(photos)
    check_output(output)
    from mnv3_fast.testing.measure import machine_facts

    (errors if json else console).print(f"{len(images)} photos: {source}", markup=False)
    rows: list[dict[str, Any]] = []
    classes: list[dict[str, Any]] = []
    for net in NETS:
        model, transform, categories = build(net, weights)
        x = torch.stack([transform(image) for image in images])
        for batch in (1, 8):
            rows += compare(net, model, x.repeat(8, 1, 1, 1)[:batch], x, seconds, threads)
        if categories:
            classes += name_classes(net, model, x, categories)
    facts = machine_facts() | {"threads": threads}
    report = {"machine": facts, "photos": source, "rows": rows, "classes": classes}
    write_json(output / "demo.json", report)
    if json:
        print_json(report)
        return
    if weights is None:
        console.print(
            "weights: seeded random parity weights, so classes mean nothing; --weights DEFAULT downloads trained ones"
        )
    show(table_of(rows))
    for row in classes:
        console.print(f"{row['net']}, photo {row['photo']}: {row['class']} ({row['probability']:.0%})")
    console.print(machine_line(facts))
    console.print(f"report: {output}/demo.json", markup=False)


def load_photos(paths: list[Path] | None) -> tuple[list[Any], str]:
    """The user's files, or the photos that scikit-image brings, as PIL images."""
    from PIL import Image

    from mnv3_fast.models.preprocessing import BadImage, open_image

    if paths:
        try:
            return [open_image(path) for path in paths], ", ".join(str(path) for path in paths)
        except BadImage as error:
            fail(f"not an image that can be read: {error}")
    try:
        from skimage import data
    except ImportError:
        fail(
            "photos come from scikit-image, which is not installed: `pip install mnv3-fast[bench]`, or name image files"
        )
    return [Image.fromarray(getattr(data, name)()) for name in PHOTOS], f"{', '.join(PHOTOS)} from scikit-image"


def build(net: str, weights: str | None) -> tuple[nn.Module, Any, list[str] | None]:
    """torchvision's model, the transform that its weights want, and their categories (None for random weights)."""
    import torchvision

    from mnv3_fast.testing.parity import parity_model

    name = f"mobilenet_v3_{net}"
    if weights is None:
        enum = torchvision.models.get_model_weights(name)
        return parity_model(net), enum.DEFAULT.transforms(), None
    try:
        chosen = torchvision.models.get_model_weights(name)[weights]
    except KeyError:
        available = ", ".join(w.name for w in torchvision.models.get_model_weights(name))
        fail(f"--weights {weights} does not exist for {name}, available: DEFAULT, {available}")
    try:
        with downloading(chosen.url):
            model = torchvision.models.get_model(name, weights=chosen).eval()
    except OSError as error:
        fail(str(error))
    return model, chosen.transforms(), chosen.meta["categories"]


def compare(
    net: str, model: nn.Module, x: Tensor, photos: Tensor, seconds: float, threads: int
) -> list[dict[str, Any]]:
    """One interleaved run on a batch; errors and top-5 on all photos."""
    from mnv3_fast.testing.measure import interleave, pinned
    from mnv3_fast.testing.rivals import model_rivals
    from mnv3_fast.testing.tolerance import relative_error

    with pinned(threads), torch.inference_mode():
        expected = model(photos)
        outputs = {name: run() for name, run in model_rivals(model, photos, compiled=False).items()}
        timings = interleave(model_rivals(model, x, compiled=False), seconds)
    eager = timings["torchvision eager"]
    return [
        {
            "net": net, "batch": x.shape[0], "run": name, "ms": round(t.median * 1e3, 4),
            "faster_than_eager_by": round(t.ratio_to(eager), 3),
            "error": relative_error(outputs[name], expected), "top5_agreement": top5_agreement(outputs[name], expected),
        }
        for name, t in timings.items()
    ]  # fmt: skip


def top5_agreement(ours: Tensor, theirs: Tensor) -> float:
    """The share of torchvision's five best classes that are among ours, over all photos."""
    pairs = zip(ours.topk(5).indices.tolist(), theirs.topk(5).indices.tolist(), strict=True)
    shares = [len(set(a) & set(b)) / 5 for a, b in pairs]
    return sum(shares) / len(shares)


def name_classes(net: str, model: nn.Module, x: Tensor, categories: list[str]) -> list[dict[str, Any]]:
    """The best class of each photo by the frozen network."""
    from mnv3_fast.engine.freeze import freeze

    with torch.inference_mode():
        best = freeze(model)(x).softmax(1).max(1)
    return [
        {"net": net, "photo": i, "class": categories[index], "probability": value}
        for i, (value, index) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True))
    ]


def table_of(rows: list[dict[str, Any]]) -> Table:
    """The rows for a terminal."""
    table = Table("net", "batch", "run", "ms", "faster\nthan eager", "error", "top-5\nthe same", box=SIMPLE)
    for row in rows:
        table.add_row(
            row["net"], str(row["batch"]), row["run"], f"{row['ms']:.3f}", f"{row['faster_than_eager_by']:.2f}",
            f"{row['error']:.1e}", f"{100 * row['top5_agreement']:.0f}%",
        )  # fmt: skip
    return table
