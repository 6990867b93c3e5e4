"""What others published: timm's result files, 224 x 224, images a second of mobilenetv3_large_100 and small_100.

https://github.com/huggingface/pytorch-image-models/tree/main/results, files benchmark-infer-amp-*.csv. "dynamo" in a
name is torch.compile. There is no L4, A100 or H100 among them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One file's two rows. ``level`` is what the model compares it with: a for eager, b for compiled."""

    file: str
    gpu: str
    level: str
    batch: int
    large: int
    small: int


ROWS = (
    Row("nchw-pt240-cu124-rtx3090", "RTX 3090", "a", 1024, 11136, 31411),
    Row("nhwc-pt240-cu124-rtx3090", "RTX 3090", "a", 1024, 13557, 39046),
    Row("nchw-pt240-cu124-rtx4090", "RTX 4090", "a", 1024, 14191, 43953),
    Row("nhwc-pt240-cu124-rtx4090", "RTX 4090", "a", 512, 16892, 58931),
    Row("nchw-pt240-cu124-rtx4090-dynamo", "RTX 4090", "b", 256, 24475, 79753),
    Row("nchw-pt291-cu128-4090-dynamo", "RTX 4090", "b", 1024, 20719, 52168),
    Row("nchw-pt291-cu130-5090", "RTX 5090", "a", 1024, 22036, 63998),
    Row("nchw-pt291-cu130-5090-dynamo", "RTX 5090", "b", 1024, 34722, 95782),
)
