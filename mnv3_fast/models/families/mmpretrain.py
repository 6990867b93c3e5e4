"""mmpretrain's five configurations (``configs/mobilenet_v3``); figures of its model page, FLOPs with one multiply-add
as one (those of large are met only if two operations are added for each value that leaves a BatchNorm)."""

from __future__ import annotations

from dataclasses import replace

from mnv3_fast.models.families.variant import BICUBIC, BILINEAR, LARGE, SMALL, Preprocessing, Variant, Weights

SOURCE = "mmpretrain's model page"
_URL = "https://download.openmmlab.com/mmclassification/v0/mobilenet_v3/"
_CIFAR = Preprocessing(32, 32, "bilinear", (125.307, 122.961, 113.8575), (51.5865, 50.847, 51.255))


def _converted(name: str, file: str, top1: float, top5: float, how: Preprocessing = BICUBIC) -> Weights:
    return Weights("3rdparty_in1k", _URL + file, top1, top5, how, alias=name)


def _own(file: str, top1: float, top5: float) -> Weights:
    return Weights("8xb128_in1k", _URL + file, top1, top5, BILINEAR)


_CONFIGURATIONS = (
    Variant("mobilenet-v3-small-050_8xb128_in1k", "mmpretrain", SMALL, 0.5, "ratio", 16, 1024, 0.2, 1e-5, 0.1, BICUBIC,
            (_converted("mobilenet-v3-small-050_3rdparty_in1k",
                        "mobilenet-v3-small-050_3rdparty_in1k_20221114-e0b86be1.pth", 57.91, 80.19),),
            "3rdparty_in1k", ("1.59 M", "0.02 G")),
    Variant("mobilenet-v3-small-075_8xb128_in1k", "mmpretrain", SMALL, 0.75, "ratio", 16, 1024, 0.2, 1e-5, 0.1, BICUBIC,
            (_converted("mobilenet-v3-small-075_3rdparty_in1k",
                        "mobilenet-v3-small-075_3rdparty_in1k_20221114-2011fa76.pth", 65.23, 85.44),),
            "3rdparty_in1k", ("2.04 M", "0.04 G")),
    Variant("mobilenet-v3-small_8xb128_in1k", "mmpretrain", SMALL, 1.0, "ratio", 16, 1024, 0.2, 1e-3, 0.01, BILINEAR,
            (_own("mobilenet-v3-small_8xb128_in1k_20221114-bd1bfcde.pth", 66.68, 86.74),
             _converted("mobilenet-v3-small_3rdparty_in1k", "convert/mobilenet_v3_small-8427ecf0.pth", 67.66, 87.41,
                        BILINEAR)),
            "8xb128_in1k", ("2.54 M", "0.06 G")),
    Variant("mobilenet-v3-large_8xb128_in1k", "mmpretrain", LARGE, 1.0, "ratio", 16, 1280, 0.2, 1e-3, 0.01, BILINEAR,
            (_own("mobilenet-v3-large_8xb128_in1k_20221114-0ed9ed9a.pth", 73.49, 91.31),
             _converted("mobilenet-v3-large_3rdparty_in1k", "convert/mobilenet_v3_large-3ea3c186.pth", 74.04, 91.34,
                        BILINEAR)),
            "8xb128_in1k", ("5.48 M", "0.23 G")),
    Variant("mobilenet-v3-small_8xb16_cifar10", "mmpretrain", SMALL, 1.0, "ratio", 16, 1280, 0.0, 1e-3, 0.01, _CIFAR,
            num_classes=10),
)  # fmt: skip


def _aliases(name: str) -> tuple[str, ...]:
    """The names of the same network's lazy configuration and of mmcls 0.x's."""
    lazy = name.replace("mobilenet-v3", "mobilenet_v3").replace("-", "_")
    older = name.replace("8xb128", "8xb32")
    return (lazy, older) if name.startswith(("mobilenet-v3-small_8xb128", "mobilenet-v3-large_8xb128")) else (lazy,)


ROWS = tuple(replace(row, aliases=_aliases(row.name)) for row in _CONFIGURATIONS)
