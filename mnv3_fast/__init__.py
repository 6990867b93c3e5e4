"""MobileNetV3 at hardware speed: a drop-in for the models of torchvision, timm and mmpretrain, with fused kernels."""

from torchvision.models import MobileNet_V3_Large_Weights, MobileNet_V3_Small_Weights

from mnv3_fast import apis, nn, ops
from mnv3_fast._library import (
    backend,
    force_backend,
    force_instruction_set,
    instruction_set,
    instruction_sets,
    missing_reason,
)
from mnv3_fast._version import __version__
from mnv3_fast.acceleration import accelerate, refresh, restore
from mnv3_fast.checkpoints import load_checkpoint
from mnv3_fast.engine.chain import EngineChain
from mnv3_fast.engine.engine import Engine
from mnv3_fast.engine.freeze import freeze
from mnv3_fast.explanation import explain
from mnv3_fast.models.builders import mobilenet_v3_large, mobilenet_v3_small
from mnv3_fast.models.variants import find_variant
from mnv3_fast.models.zoo import create_model, list_models

__all__ = [
    "Engine",
    "EngineChain",
    "MobileNet_V3_Large_Weights",
    "MobileNet_V3_Small_Weights",
    "__version__",
    "accelerate",
    "apis",
    "backend",
    "create_model",
    "explain",
    "find_variant",
    "force_backend",
    "force_instruction_set",
    "freeze",
    "instruction_set",
    "instruction_sets",
    "list_models",
    "load_checkpoint",
    "missing_reason",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "nn",
    "ops",
    "refresh",
    "restore",
]
