"""The network that is trained: built or loaded, its backbone frozen or not, and the engine that validates it."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchvision.models.mobilenetv3 import MobileNetV3

from mnv3_fast.acceleration import accelerate
from mnv3_fast.checkpoints import load_into, read_checkpoint
from mnv3_fast.checkpoints.files import state_of
from mnv3_fast.engine.freeze import freeze
from mnv3_fast.models.preprocessing import scale_and_shift
from mnv3_fast.models.variants import Variant, build

LAST_BIASES = ("classifier.3.bias", "head.layers.1.fc.bias", "classifier.bias")
"""What torchvision, mmpretrain and timm call the bias of the last layer, which has an element for each class."""


def starting_network(
    variant: Variant, num_classes: int, dropout: float | None, checkpoint: str | os.PathLike[str] | None
) -> MobileNetV3:
    """An accelerated network of a variant, in training mode; fresh, or with a checkpoint's weights.

    A checkpoint of another number of classes gives all but the last layer, which is then fresh.

    Raises:
        FileNotFoundError, ValueError: if the checkpoint cannot be read or does not fit.
    """
    network = build(variant, num_classes=num_classes, dropout=dropout)
    if checkpoint is not None:
        loaded = build(variant, num_classes=_classes_in(checkpoint, num_classes), dropout=dropout)
        load_into(loaded, checkpoint)
        if loaded.classifier[-1].out_features != num_classes:
            loaded.classifier[-1] = network.classifier[-1]
        network = loaded.train()
    return accelerate(network, inplace=True)


def _classes_in(checkpoint: str | os.PathLike[str], otherwise: int) -> int:
    """How many classes a checkpoint's last layer has; ``otherwise`` where none has a known name."""
    for name, value in state_of(read_checkpoint(checkpoint)).items():
        if name.endswith(LAST_BIASES) and value.dim() == 1:
            return len(value)
    return otherwise


def training_mode(network: MobileNetV3, freeze_backbone: bool) -> None:
    """Training mode; a frozen backbone stays in eval mode and without gradients, where its fused kernels run."""
    network.train()
    if freeze_backbone:
        network.features.eval().requires_grad_(False)


def validation_engine(
    variant: Variant, num_classes: int, state: Mapping[str, Tensor], device: torch.device
) -> nn.Module:
    """An engine for uint8 images with the weights of a state_dict.

    A network of its own is frozen, since that in training may have norms that no kernel runs.
    """
    network = build(variant, num_classes=num_classes)
    network.load_state_dict(state)
    scale, shift = scale_and_shift(variant.preprocessing)
    return freeze(network.to(device).eval(), scale=scale, shift=shift)
