"""Keras' MobileNetV3Large and MobileNetV3Small (``keras.applications``, whose docstring has the figures).

Padding is TensorFlow's, images become -1 to 1 inside of Keras' model (here: mean and std 127.5). Its BatchNorm momentum
.999 is torch's .001. The page says nothing of resizing; the crop is the one of TF-Slim, which trained the weights.
"""

from __future__ import annotations

from mnv3_fast.models.families.variant import LARGE, SMALL, Preprocessing, Variant, Weights, minimalistic

SOURCE = "docstring of keras.applications.MobileNetV3"
_URL = "https://storage.googleapis.com/tensorflow/keras-applications/mobilenet_v3/weights_mobilenet_v3_{}_float.h5"
_CENTRED = Preprocessing(256, 224, "bilinear", (127.5, 127.5, 127.5), (127.5, 127.5, 127.5))


def _row(
    size: str, kind: str, width: float, top1: float, published: tuple[str, str], aliases: tuple[str, ...] = ()
) -> Variant:
    blocks = {"large": LARGE, "small": SMALL}[size]
    minimal = kind == "minimalistic"
    file = _URL.format(f"{size}{'_minimalistic' if minimal else ''}_224_{width}")
    name = f"keras_mobilenetv3_{size}_{'minimalistic_' if minimal else ''}{round(100 * width):03d}"
    return Variant(
        name, "keras", minimalistic(blocks) if minimal else blocks, width, "ratio", 16,
        {"large": 1280, "small": 1024}[size], 0.2, 1e-3, 0.001, _CENTRED,
        (Weights("imagenet", file, top1, None, _CENTRED),), "imagenet", published, aliases,
        activation="RE" if minimal else "HS", padding="same",
    )  # fmt: skip


ROWS = (
    _row("large", "full", 1.0, 75.6, ("5.4 M", "217 M"), ("MobileNetV3Large",)),
    _row("large", "full", 0.75, 73.3, ("4.0 M", "155 M")),
    _row("large", "minimalistic", 1.0, 72.3, ("3.9 M", "209 M")),
    _row("small", "full", 1.0, 68.1, ("2.9 M", "66 M"), ("MobileNetV3Small",)),
    _row("small", "full", 0.75, 65.4, ("2.4 M", "44 M")),
    _row("small", "minimalistic", 1.0, 61.9, ("2.0 M", "65 M")),
)
