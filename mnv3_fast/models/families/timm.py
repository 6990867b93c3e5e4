"""timm's MobileNetV3 with all of its weights. Figures: timm's ``results-imagenet.csv``, sizes and means of its
``pretrained_cfg`` (1.0.31); resize = floor(crop / crop_pct)."""

from __future__ import annotations

from dataclasses import replace

from mnv3_fast.models.families.variant import (
    BICUBIC,
    BILINEAR,
    LARGE,
    SMALL,
    Preprocessing,
    Triple,
    Variant,
    Weights,
    minimalistic,
)

SOURCE = "timm's results-imagenet.csv"
_URL = "https://github.com/rwightman/pytorch-image-models/releases/download/"
_HUB = "https://huggingface.co/timm/{}/resolve/main/model.safetensors"
_HALF: Triple = (127.5, 127.5, 127.5)
_INCEPTION = Preprocessing(256, 224, "bilinear", _HALF, _HALF)
_MIIL = Preprocessing(256, 224, "bilinear", (0.0, 0.0, 0.0), (255.0, 255.0, 255.0))

# Width 1.5 and depth 1.2: of these blocks of Large there are two each, and of the last 1x1 convolution, too.
_DOUBLED = (0, 2, 5, 7, 11, 14)
LARGE_DEEP = tuple(row for i, row in enumerate(LARGE) for _ in range(2 if i in _DOUBLED else 1))


def _file(tag: str, file: str, top1: float | None, top5: float | None, how: Preprocessing, **more: object) -> Weights:
    return Weights(tag, _URL + file + ".pth", top1, top5, how, **more)  # type: ignore[arg-type]


def _lamb(file: str, top1: float, top5: float) -> tuple[Weights]:
    return (_file("lamb_in1k", f"v0.1-weights/{file}", top1, top5, BICUBIC),)


_LARGE_100 = (
    _file("ra_in1k", "v0.1-weights/mobilenetv3_large_100_ra-f55367f5", 75.784, 92.528, BICUBIC),
    Weights("ra4_e3600_r224_in1k", _HUB.format("mobilenetv3_large_100.ra4_e3600_r224_in1k"), 76.310, 92.842,
            Preprocessing(235, 224, "bicubic", _HALF, _HALF),
            test=(Preprocessing(256, 256, "bicubic", _HALF, _HALF), 77.182, 93.328)),
    _file("miil_in21k_ft_in1k", "v0.1-tresnet/mobilenetv3_large_100_1k_miil_78_0-66471c13", 77.920, 92.894, _MIIL,
          alias="mobilenetv3_large_100_miil"),
    _file("miil_in21k", "v0.1-tresnet/mobilenetv3_large_100_in21k_miil-d71cc17b", None, None, _MIIL,
          num_classes=11221, alias="mobilenetv3_large_100_miil_in21k"),
)  # fmt: skip
_LARGE_150D = (
    Weights("ra4_e3600_r256_in1k", _HUB.format("mobilenetv3_large_150d.ra4_e3600_r256_in1k"), 80.994, 95.474,
            Preprocessing(269, 256, "bilinear", _HALF, _HALF),
            test=(Preprocessing(320, 320, "bilinear", _HALF, _HALF), 81.832, 95.878)),
)  # fmt: skip
_RW = (_file("rmsp_in1k", "v0.1-weights/mobilenetv3_100-35495452", 75.616, 92.696, BICUBIC),)


def _row(name: str, blocks: tuple, width: float, weights: tuple[Weights, ...] = (), stem: int = 16) -> Variant:
    how = weights[0].preprocessing if weights else BILINEAR
    last = 1280 if "large" in name else 1024  # at every width
    default = weights[0].tag if weights else None
    return Variant(name, "timm", blocks, width, "ratio", stem, last, 0.0, 1e-5, 0.1, how, weights, default)


def _tensorflow(name: str, blocks: tuple, width: float, digest: str, top1: float, top5: float) -> Variant:
    weights = _file("in1k", f"v0.1-weights/{name}-{digest}", top1, top5, _INCEPTION)
    last = 1280 if "large" in name else 1024
    activation = "RE" if "minimal" in name else "HS"
    return Variant(
        name, "timm", blocks, width, "ratio", 16, last, 0.0, 1e-3, 0.1, _INCEPTION, (weights,), "in1k",
        activation=activation, padding="same",
    )  # fmt: skip


ROWS = (
    _row("mobilenetv3_small_050", SMALL, 0.5, _lamb("mobilenetv3_small_050_lambc-4b7bbe87", 57.918, 80.144)),
    _row("mobilenetv3_small_075", SMALL, 0.75, _lamb("mobilenetv3_small_075_lambc-384766db", 65.284, 85.462)),
    _row("mobilenetv3_small_100", SMALL, 1.0, _lamb("mobilenetv3_small_100_lamb-266a294c", 67.636, 87.638)),
    _row("mobilenetv3_large_075", LARGE, 0.75),
    _row("mobilenetv3_large_100", LARGE, 1.0, _LARGE_100),
    replace(_row("mobilenetv3_large_150d", LARGE_DEEP, 1.5, _LARGE_150D, stem=24), tails=2),
    Variant(
        "mobilenetv3_rw", "timm", LARGE, 1.0, "ratio", 16, 1280, 0.0, 1e-3, 0.1, BICUBIC, _RW, "rmsp_in1k",
        squeeze_divisor=1, squeeze_activation="block", first_skip=False, head_bias=False,
    ),
    _tensorflow("tf_mobilenetv3_large_075", LARGE, 0.75, "150ee8b0", 73.442, 91.332),
    _tensorflow("tf_mobilenetv3_large_100", LARGE, 1.0, "427764d5", 75.510, 92.600),
    _tensorflow("tf_mobilenetv3_large_minimal_100", minimalistic(LARGE), 1.0, "8596ae28", 72.270, 90.664),
    _tensorflow("tf_mobilenetv3_small_075", SMALL, 0.75, "da427f52", 65.706, 86.130),
    _tensorflow("tf_mobilenetv3_small_100", SMALL, 1.0, "37f49e2b", 67.922, 87.686),
    _tensorflow("tf_mobilenetv3_small_minimal_100", minimalistic(SMALL), 1.0, "922a7843", 62.892, 84.270),
)  # fmt: skip
