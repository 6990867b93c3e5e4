"""The results table: what each variant costs and what was published of it; ``python -m mnv3_fast.models.table``.

``mnv3-fast info --models`` shows it; ``python -m benchmarks.gpu.docs mnv3_fast.models`` writes it into docs/models.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mnv3_fast.models.construction import block_settings
from mnv3_fast.models.families.torchvision import scaled
from mnv3_fast.models.families.variant import Preprocessing, Variant, make_divisible
from mnv3_fast.models.variants import FAMILIES, VARIANTS

RULE = (
    "MACs are multiply-adds of convolutions and fully connected layers, one for each weight and place it is used at; "
    "BatchNorm, activations, pools and additions count nothing. Published FLOPs are as their authors state them: "
    "torchvision, mmpretrain and Keras mean multiply-adds, Paddle two operations each."
)
WIDTHS = (0.35, 0.5, 0.75, 1.25)


@dataclass(frozen=True)
class Counts:
    """Trainable parameters, and multiply-adds for a square image of some size."""

    parameters: int
    macs: int
    size: int


def count(variant: Variant, size: int | None = None) -> Counts:
    """What a variant costs, by arithmetic on its row; ``size`` is its crop if not given."""
    size = size or variant.preprocessing.crop
    channels, pixels = variant.stem_channels, -(-size // 2)
    parameters, macs = 29 * channels, 27 * channels * pixels**2
    for settings in block_settings(variant):
        inside, outputs = settings.expanded_channels, settings.out_channels
        if variant.always_expand or inside != channels:
            parameters += (channels + 2) * inside
            macs += channels * inside * pixels**2
        pixels = pixels if settings.dilation > 1 else -(-pixels // settings.stride)
        window = settings.kernel**2
        parameters += (window + 2) * inside + (inside + 2) * outputs
        macs += (window + outputs) * inside * pixels**2
        if settings.use_se:
            squeezed = make_divisible(inside // 4, variant.squeeze_divisor)
            parameters += 2 * squeezed * inside + squeezed + inside
            macs += 2 * squeezed * inside
        channels = outputs
    tail = variant.tail_channels or 6 * channels
    for inputs in (channels, *[tail] * (variant.tails - 1)):
        parameters += (inputs + 2) * tail
        macs += inputs * tail * pixels**2
    head = tail * variant.last_channel + variant.last_channel * variant.num_classes
    biases = variant.head_bias * variant.last_channel + variant.num_classes
    return Counts(parameters + head + biases, macs + head, size)


def records() -> list[dict[str, Any]]:
    """The table for JSON: a record a variant, with its files of weights and what was published of each."""
    found = []
    for variant in VARIANTS.values():
        counts = count(variant)
        parameters, flops = variant.published or (None, None)
        found.append(
            {
                "name": variant.name, "aliases": list(variant.aliases), "family": variant.family,
                "parameters": counts.parameters, "macs": counts.macs, "size": counts.size,
                "published_parameters": parameters, "published_flops": flops,
                "default_weights": variant.default_weights,
                "weights": [
                    {"tag": w.tag, "url": w.url, "num_classes": w.num_classes, "results": list(_results(w))}
                    for w in variant.weights
                ],
                "source": FAMILIES[variant.family].SOURCE,
            }
        )  # fmt: skip
    return found


def _results(weights: Any) -> Iterator[dict[str, Any]]:
    """The published results of a file, at each size."""
    at_sizes = [(weights.preprocessing, weights.top1, weights.top5), *([weights.test] if weights.test else [])]
    for how, top1, top5 in at_sizes:
        yield {"top1": top1, "top5": top5, **_prepared(how)}


def _prepared(how: Preprocessing) -> dict[str, Any]:
    return {
        "size": how.crop, "resize": how.resize, "interpolation": how.interpolation,
        "mean": list(how.mean), "std": list(how.std),
    }  # fmt: skip


HEAD = ("name", "family", "params", "published", "MACs (M)", "at", "weights", "top-1", "top-5", "at", "source")


def lines() -> Iterator[tuple[str, ...]]:
    """The table's rows as text under ``HEAD``: one for each file of weights and size."""
    for record in records():
        published = record["published_flops"] or "-"
        cells = [record["name"], record["family"], f"{record['parameters']:,}", published]
        cells += [f"{record['macs'] / 1e6:.1f}", str(record["size"])]
        results = [(weights["tag"], result) for weights in record["weights"] for result in weights["results"]]
        for tag, result in results or [("-", {"top1": None, "top5": None, "size": "-"})]:
            tops = [_percent(result[top]) for top in ("top1", "top5")]
            yield (*cells, tag, *tops, str(result["size"]), record["source"] if results else "-")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:g}" if value % 1 else f"{value:.1f}"


def torchvision_lines() -> Iterator[tuple[str, ...]]:
    """Options of torchvision's two networks, with parameters and multiply-adds at 224."""
    for name in ("mobilenet_v3_large", "mobilenet_v3_small"):
        options: list[dict[str, Any]] = [{"width": width} for width in WIDTHS]
        for option in [*options, {"reduced_tail": True}, {"dilated": True}]:
            variant = scaled(VARIANTS[name], **option)
            counts = count(variant)
            words = variant.name.removeprefix(name).strip(" ()")
            yield name, words, f"{counts.parameters:,}", f"{counts.macs / 1e6:.1f}"


def markdown(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """A table of Markdown."""
    rule = tuple("---" for _ in head)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def main(_: list[str] | None = None) -> None:
    """Print the tables as they stand in docs/models.md."""
    torchvisions = markdown(("name", "options", "params", "MACs (M) at 224"), torchvision_lines())
    print(f"{RULE}\n\n{markdown(HEAD, lines())}\n\n{torchvisions}")


if __name__ == "__main__":
    main()
