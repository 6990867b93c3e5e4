"""mmpretrain's names: ``init_model``, ``inference_model``, as its MobileNetV3 page had them in the 1.0 candidates.

from mnv3_fast.apis import inference_model, init_model
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mnv3_fast.acceleration import accelerate
from mnv3_fast.checkpoints import build_from
from mnv3_fast.models.preprocessing import image_of, scale_and_shift
from mnv3_fast.models.variants import Variant, build, variant_of

__all__ = ["DataPreprocessor", "ImageClassifier", "inference_model", "init_model"]

STAGES = ("backbone", "neck", "pre_logits")


class DataPreprocessor(nn.Module):
    """Images [N, 3, H, W], RGB from 0 to 255, uint8 or float32, to the network's input: (x - mean) / std."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        scale, shift = scale_and_shift(variant.preprocessing)
        self.register_buffer("scale", scale.view(3, 1, 1), persistent=False)
        self.register_buffer("shift", shift.view(3, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where inputs belong."""
        return self.scale.device

    def forward(self, images: Tensor) -> Tensor:
        """Normalised, float32, on the model's device.

        Raises:
            TypeError, ValueError: for anything but images [N, 3, H, W].
        """
        if not isinstance(images, Tensor):
            raise TypeError(f"data_preprocessor: images must be a Tensor [N, 3, H, W], got {type(images).__name__}")
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"data_preprocessor: images must be [N, 3, H, W], got {list(images.shape)}")
        return images.to(self.device) * self.scale + self.shift


class ImageClassifier(nn.Module):
    """One of mmpretrain's MobileNetV3 classifiers: torchvision's network, accelerated, with mmpretrain's methods.

    Attributes:
        network: the torchvision model; backbone, neck and head are its parts.
        variant: what it was built from.
        classes: the names of the classes.
    """

    def __init__(self, variant: Variant, classes: tuple[str, ...], network: nn.Module | None = None) -> None:
        super().__init__()
        self.network = accelerate(build(variant) if network is None else network, inplace=True)
        self.data_preprocessor = DataPreprocessor(variant)
        self.variant = variant
        self.classes = classes

    @property
    def backbone(self) -> nn.Module:
        """Stem, blocks and last 1x1 convolution."""
        return self.network.features

    @property
    def neck(self) -> nn.Module:
        """Global average pooling."""
        return self.network.avgpool

    @property
    def head(self) -> nn.Module:
        """The fully connected layers."""
        return self.network.classifier

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = "tensor") -> Tensor:
        """Logits [N, num_classes] of normalised images [N, 3, H, W].

        Raises:
            ValueError: for a mode other than "tensor".
        """
        if mode != "tensor":
            raise ValueError(f"ImageClassifier: mode must be 'tensor', got {mode!r}; predict with inference_model")
        return self.network(inputs)

    def extract_feat(self, inputs: Tensor, stage: str = "neck") -> tuple[Tensor, ...]:
        """What comes out of a stage, in a tuple of one.

        Args:
            inputs: normalised images [N, 3, H, W].
            stage: "backbone" (the map [N, C, H/32, W/32]), "neck" (pooled, [N, C]) or "pre_logits" (the input of the
                last fully connected layer).

        Raises:
            ValueError: for another stage; the message lists them.
        """
        if stage not in STAGES:
            raise ValueError(f"extract_feat: stage must be one of {', '.join(STAGES)}, got {stage!r}")
        features = self.backbone(inputs)
        if stage == "backbone":
            return (features,)
        features = self.neck(features).flatten(1)
        return (features if stage == "neck" else self.head[:-1](features),)


def init_model(
    config: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
) -> ImageClassifier:
    """Build a model in eval mode.

    Args:
        config: a configuration's name, ``mobilenet-v3-small-050_8xb128_in1k``, or its path,
            ``configs/mobilenet_v3/mobilenet-v3-small-050_8xb128_in1k.py``; the file itself is not read.
        checkpoint: a path or a URL, of mmpretrain's, timm's or torchvision's names of the parameters; None leaves the
            random weights of a new network, with a warning. The model has as many classes as its weights. A URL is
            downloaded once, into torch's hub folder.
        device: where the model goes; None is the CPU.

    Raises:
        TypeError: for a config that is no name or path.
        ValueError: for an unknown config, or a checkpoint that does not fit or may not be read.
        FileNotFoundError: if the checkpoint does not exist.
    """
    variant = variant_of(config, "init_model")
    if checkpoint is not None:
        built = build_from(variant, checkpoint)
        model = ImageClassifier(variant, built.classes, built.network)
    else:
        model = ImageClassifier(variant, variant.classes())
        name = os.fspath(config)
        why = f"{name} names trained weights, which are not downloaded unasked: " if "3rdparty" in name else ""
        warnings.warn(f"init_model: {why}this model's weights are random; give checkpoint", stacklevel=2)
    return model.to(device).eval()


@torch.no_grad()
def inference_model(model: ImageClassifier, image: Any) -> dict[str, Any]:
    """Classify one image.

    Args:
        model: of :func:`init_model`.
        image: a path, a PIL image, or a uint8 array as OpenCV reads it ([H, W, 3] in BGR order, or [H, W]).

    Returns:
        ``pred_label`` (int), ``pred_score`` (float, its probability), ``pred_scores`` (float32 array of all
        probabilities) and ``pred_class`` (the label's name).

    Raises:
        TypeError: if the model is none of :func:`init_model`, or the image is of another type.
        ValueError: for a model in training mode or with more or fewer outputs than names in its ``classes``, or an
            image that cannot be read.
    """
    if not isinstance(model, ImageClassifier):
        raise TypeError(f"inference_model: model must come from init_model, got {type(model).__name__}")
    if model.training:
        raise ValueError("inference_model: the model is in training mode; call model.eval() first")
    batch = image_of(image, model.variant.preprocessing).unsqueeze(0)
    scores = model(model.data_preprocessor(batch)).softmax(1)[0].cpu().numpy()
    if len(scores) != len(model.classes):
        raise ValueError(
            f"inference_model: the model has {len(scores)} outputs and {len(model.classes)} names; set model.classes"
        )
    label = int(np.argmax(scores))
    return {
        "pred_scores": scores,
        "pred_label": label,
        "pred_score": float(scores[label]),
        "pred_class": model.classes[label],
    }
