"""The networks and images that every engine gets, as files: weights, images and torchvision's output."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor, nn

CASE, WEIGHTS, IMAGES, OUTPUT = "case.json", "weights.pt", "images.npy", "output.npy"


@dataclass(frozen=True)
class Case:
    """One network on one batch: ``net`` is large or small, ``width`` its multiplier."""

    net: str
    width: float
    batch: int
    image_height: int
    image_width: int

    def __str__(self) -> str:
        net = self.net if self.width == 1 else f"{self.net}-{self.width:g}"
        return f"{net}-b{self.batch}-{self.image_height}x{self.image_width}"

    def title(self) -> str:
        """For the head of a table."""
        net = self.net if self.width == 1 else f"{self.net}, width {self.width:g}"
        return f"{net}, batch {self.batch}, {self.image_height} x {self.image_width}"


def sizes(text: str) -> tuple[int, int]:
    """``224`` or ``193x257`` as height and width."""
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def prepare(case: Case, folder: Path) -> int:
    """Write a case into its folder, unless it is there; returns its multiply-adds."""
    if (folder / CASE).exists():
        return json.loads((folder / CASE).read_text())["macs"]
    import torch

    from mnv3_fast.testing import parity_images, parity_model
    from mnv3_fast.testing.layers import model_macs

    folder.mkdir(parents=True, exist_ok=True)
    model = parity_model(case.net, width_mult=case.width)
    images = parity_images(case.batch, case.image_height, case.image_width)
    with torch.inference_mode():
        np.save(folder / OUTPUT, model(images).numpy())
    np.save(folder / IMAGES, images.numpy())
    torch.save(model.state_dict(), folder / WEIGHTS)
    macs = case.batch * model_macs(model, case.image_height, case.image_width)
    (folder / CASE).write_text(json.dumps({**asdict(case), "macs": macs}))
    return macs


def network(folder: Path) -> nn.Module:
    """torchvision's network with the weights of a case, in eval mode."""
    import torch
    import torchvision

    case = json.loads((folder / CASE).read_text())
    model = getattr(torchvision.models, f"mobilenet_v3_{case['net']}")(width_mult=case["width"])
    model.load_state_dict(torch.load(folder / WEIGHTS, weights_only=True))
    return model.eval()


def images(folder: Path) -> np.ndarray:
    """The images of a case [N, 3, H, W]."""
    return np.load(folder / IMAGES)


def image_tensor(folder: Path) -> Tensor:
    """The same as a tensor."""
    import torch

    return torch.from_numpy(images(folder))


def expected_output(folder: Path) -> np.ndarray:
    """What torchvision computes from them [N, classes]."""
    return np.load(folder / OUTPUT)
