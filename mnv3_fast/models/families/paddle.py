"""PaddleClas' MobileNetV3_{large,small}_x{0_35,...,1_25}; figures of its page ``docs/en/models/Mobile_en.md``.

Its rules (``ppcls/arch/backbone/legendary_models/mobilenet_v3.py``): every block expands, also the first; the gate is
clip(0.2 x + 0.5); squeeze-excite's channels are a quarter, unrounded; the last convolutions have md(960 w) (small:
md(576 w)) and 1280 channels, the second without a bias; dropout is ``downscale_in_infer``, so that inference multiplies
by 0.8. PaddleClas names the stages of large_x0_35 by small's pattern; the graph built here has large's blocks.
"""

from __future__ import annotations

from mnv3_fast.models.families.variant import (
    BILINEAR,
    LARGE,
    SMALL,
    STEM_CHANNELS,
    Variant,
    Weights,
    make_divisible,
)

SOURCE = "PaddleClas' docs/en/models/Mobile_en.md"
_URL = "https://paddle-imagenet-models-name.bj.bcebos.com/dygraph/legendary_models/{}_pretrained.pdparams"
_BLOCKS = {"large": LARGE, "small": SMALL}
_LAST_BUT_ONE = {"large": 960, "small": 576}


def _row(
    size: str,
    scale: str,
    tops: tuple[float, float],
    published: tuple[str, str],
    ssld: tuple[float, float] | None = None,
) -> Variant:
    name, width = f"MobileNetV3_{size}_x{scale}", float(scale.replace("_", "."))
    weights = [Weights("pretrained", _URL.format(name), *tops, BILINEAR)]
    if ssld is not None:
        weights.append(Weights("ssld_pretrained", _URL.format(f"{name}_ssld"), *ssld, BILINEAR))
    return Variant(
        name, "paddle", _BLOCKS[size], width, "expansion", make_divisible(STEM_CHANNELS * width), 1280, 0.2, 1e-5, 0.1,
        BILINEAR, tuple(weights), "pretrained", published,
        tail_channels=make_divisible(_LAST_BUT_ONE[size] * width), squeeze_divisor=1, gate_slope=0.2,
        always_expand=True, head_bias=False, downscale_dropout=True,
    )  # fmt: skip


ROWS = (
    _row("large", "0_35", (64.3, 85.5), ("2.100 M", "0.077 G")),
    _row("large", "0_5", (69.2, 88.5), ("2.670 M", "0.138 G")),
    _row("large", "0_75", (73.1, 91.1), ("3.910 M", "0.296 G")),
    _row("large", "1_0", (75.3, 92.3), ("5.470 M", "0.450 G"), (79.0, 94.5)),
    _row("large", "1_25", (76.4, 93.0), ("7.440 M", "0.714 G")),
    _row("small", "0_35", (53.0, 76.4), ("1.660 M", "0.026 G"), (55.6, 77.7)),
    _row("small", "0_5", (59.2, 81.5), ("1.900 M", "0.043 G")),
    _row("small", "0_75", (66.0, 86.3), ("2.370 M", "0.088 G")),
    _row("small", "1_0", (68.2, 88.1), ("2.940 M", "0.123 G"), (71.3, 90.1)),
    _row("small", "1_25", (70.7, 89.5), ("3.620 M", "0.195 G")),
)
