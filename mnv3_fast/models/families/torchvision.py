"""torchvision's MobileNetV3: every width, with a reduced tail, dilated. Figures: its weights' ``meta`` (0.29)."""

from __future__ import annotations

from dataclasses import replace

from mnv3_fast.models.families.variant import (
    BILINEAR,
    LARGE,
    SMALL,
    STEM_CHANNELS,
    BlockRow,
    Preprocessing,
    Variant,
    Weights,
    make_divisible,
)

SOURCE = "torchvision's weights' meta"
_URL = "https://download.pytorch.org/models/"

LARGE_ROW = Variant(
    "mobilenet_v3_large", "torchvision", LARGE, 1.0, "expansion", 16, 1280, 0.2, 1e-3, 0.01, BILINEAR,
    (
        Weights("IMAGENET1K_V1", _URL + "mobilenet_v3_large-8738ca79.pth", 74.042, 91.340, BILINEAR),
        Weights("IMAGENET1K_V2", _URL + "mobilenet_v3_large-5c1a4163.pth", 75.274, 92.566,
                Preprocessing(232, 224, "bilinear")),
    ),
    "IMAGENET1K_V2", ("5,483,032", "0.217 G"), ("large",),
)  # fmt: skip
SMALL_ROW = Variant(
    "mobilenet_v3_small", "torchvision", SMALL, 1.0, "expansion", 16, 1024, 0.2, 1e-3, 0.01, BILINEAR,
    (Weights("IMAGENET1K_V1", _URL + "mobilenet_v3_small-047dcff4.pth", 67.668, 87.402, BILINEAR),),
    "IMAGENET1K_V1", ("2,542,856", "0.057 G"), ("small",),
)  # fmt: skip
ROWS = (LARGE_ROW, SMALL_ROW)


def scaled(row: Variant, width: float = 1.0, reduced_tail: bool = False, dilated: bool = False) -> Variant:
    """A row of width 1 at another width, with half of the channels behind stride 16, or dilated in place of stride 32.

    Of these only a dilated network takes the row's weights.

    Raises:
        ValueError: for a width that is not above 0.
    """
    if not width > 0:
        raise ValueError(f"width_mult must be greater than 0, got {width}")
    if width == 1 and not reduced_tail and not dilated:
        return row
    divider = 2 if reduced_tail else 1
    words = [f"width_mult={width:g}"] if width != 1 else []
    words += [word for word, wanted in (("reduced_tail", reduced_tail), ("dilated", dilated)) if wanted]
    fits = width == 1 and not reduced_tail
    return replace(
        row,
        name=f"{row.name} ({', '.join(words)})",
        aliases=(),
        blocks=(*row.blocks[:-3], *_last_blocks(row.blocks[-3:], divider, 2 if dilated else 1)),
        width=width,
        stem_channels=make_divisible(STEM_CHANNELS * width),
        last_channel=make_divisible(row.last_channel // divider * width),
        weights=row.weights if fits else (),
        default_weights=row.default_weights if fits else None,
        published=None,
    )


def _last_blocks(rows: tuple[BlockRow, ...], divider: int, dilation: int) -> tuple[BlockRow, ...]:
    """The first of the three has its hidden channels from the map of stride 16, which stays as it is."""
    hidden = (rows[0].hidden, *(row.hidden // divider for row in rows[1:]))
    return tuple(
        replace(row, hidden=inside, outputs=row.outputs // divider, dilation=dilation)
        for row, inside in zip(rows, hidden, strict=True)
    )
