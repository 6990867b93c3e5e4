"""Checkpoints of torchvision, timm and mmpretrain: read, recognised, loaded. Nothing in a file is executed."""

from mnv3_fast.checkpoints.facts import classes_of
from mnv3_fast.checkpoints.files import read_checkpoint, state_of
from mnv3_fast.checkpoints.fitting import torchvision_state
from mnv3_fast.checkpoints.loading import build_from, load_checkpoint, load_into

__all__ = [
    "build_from",
    "classes_of",
    "load_checkpoint",
    "load_into",
    "read_checkpoint",
    "state_of",
    "torchvision_state",
]
