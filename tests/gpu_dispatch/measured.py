"""Questions and answers as ``tune`` keeps them, for tests of their file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from mnv3_fast.gpu.choice import Question
from mnv3_fast.gpu.keyed_file import KEY_FIELDS
from mnv3_fast.gpu.tuned import Choices

WINDOW = (1, 1, 1, 1, 1, 1, 1, 1)
LAYER = Question("depthwise_conv", torch.float16, (1, 64, 56, 56), (3, 3), WINDOW, 1, True)
OTHER = dataclasses.replace(LAYER, shape=(8, 64, 56, 56))
BLOCK = Question("inverted_residual", torch.bfloat16, (1, 96, 7, 7), (5, 5), WINDOW, 2, False, 576, 144, 96)
FOUND = {LAYER: "triton", BLOCK: "cuda"}


def key_of(device: torch.device, name: str = "NVIDIA Test") -> dict[str, str]:
    return dict(zip(KEY_FIELDS, (name, "9.0", "2.15.0", "3.9.0", "1.0", "ab" * 32, "cd" * 32), strict=True))


def choices(folder: Path | None, name: str = "NVIDIA Test") -> Choices:
    return Choices(lambda device: key_of(device, name), folder)
