"""torchvision's detectors and segmenters around MobileNetV3 as parity models, and when two of their results agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import detection, segmentation
from torchvision.ops import box_iou
from torchvision.transforms import functional

from mnv3_fast.testing.parity import randomize_

IOU, SCORE, MARGIN = 0.99, 1e-4, 1e-3
"""Two boxes are the same from this IoU and score difference on; scores this near to the threshold do not count."""
MASK_LIMIT = 1e-4
"""The part of a mask's pixels that may differ."""
CLASS_SPREAD = 4.0
THRESHOLD = 0.5
"""The score from which a parity model's boxes count."""

_DETECTION: dict[str, Any] = {"weights": None, "weights_backbone": None}
DETECTORS: dict[str, Callable[[], nn.Module]] = {
    "ssdlite320": lambda: detection.ssdlite320_mobilenet_v3_large(**_DETECTION, score_thresh=THRESHOLD),
    "fasterrcnn_fpn": lambda: detection.fasterrcnn_mobilenet_v3_large_fpn(**_DETECTION, box_score_thresh=THRESHOLD),
    "fasterrcnn_320_fpn": lambda: detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        **_DETECTION, box_score_thresh=THRESHOLD
    ),
}
SEGMENTERS: dict[str, Callable[[], nn.Module]] = {
    "lraspp": lambda: segmentation.lraspp_mobilenet_v3_large(**_DETECTION),
    "deeplabv3": lambda: segmentation.deeplabv3_mobilenet_v3_large(**_DETECTION, aux_loss=True),
}


@torch.no_grad()
def detector_model(name: str, seed: int = 0) -> nn.Module:
    """A parity model of one of ``DETECTORS`` or ``SEGMENTERS``, in eval mode: random weights that show a fault.

    The backbone is a parity model as a classifier's is. A detector's last layers are scaled on a photo, so that scores
    and boxes are spread as those of a trained one: fresh ones give thousands of boxes with the same score, among which
    rounding decides.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = (DETECTORS | SEGMENTERS)[name]()
    randomize_(model.backbone, seed, 320 if name == "ssdlite320" else 128)
    spreads = _spreads(model.eval())
    handles = [layer.register_forward_hook(_scaled_to(spread)) for layer, spread in spreads.items()]
    if spreads:
        model(photos("coffee"))
    for handle in handles:
        handle.remove()
    return model


def _spreads(model: nn.Module) -> dict[Any, float]:
    """The layers that give scores and boxes, with how widely what they give is to be spread."""
    if isinstance(model, detection.FasterRCNN):
        predictor = model.roi_heads.box_predictor
        spreads = {model.rpn.head.cls_logits: 2.0, model.rpn.head.bbox_pred: 0.2}
        spreads |= {predictor.cls_score: CLASS_SPREAD, predictor.bbox_pred: 0.5}
    elif isinstance(model, detection.ssd.SSD):
        scores, boxes = model.head.classification_head.module_list, model.head.regression_head.module_list
        spreads = {level[1]: CLASS_SPREAD for level in scores} | {level[1]: 0.5 for level in boxes}
    else:
        spreads = {}
    return spreads


def _scaled_to(spread: float) -> Callable[[Any, Any, Tensor], Tensor]:
    """A hook that scales a layer on its first call, so that its outputs have a standard deviation."""
    scaled: list[Any] = []

    def scale(layer: Any, args: Any, output: Tensor) -> Tensor:
        if scaled:  # one layer may run on several maps
            return output
        scaled.append(layer)
        factor = spread / float(output.std())
        layer.weight.mul_(factor)
        layer.bias.mul_(factor)
        return output * factor

    return scale


def photos(*names: str) -> list[Tensor]:
    """Photos that lie inside of the scikit-image package: [3, H, W], values 0 to 1."""
    from skimage import data

    return [functional.to_tensor(getattr(data, name)()) for name in names]


def unmatched(ours: dict[str, Tensor], theirs: dict[str, Tensor], threshold: float) -> list[str]:
    """The boxes of one image, of either result, that have no partner in the other; in words.

    Partners have the same label, overlap with an IoU of at least ``IOU`` and differ by at most ``SCORE``. Boxes whose
    score is within ``MARGIN`` of the threshold do not count.
    """
    return _alone(ours, theirs, threshold, "ours") + _alone(theirs, ours, threshold, "theirs")


def _alone(some: dict[str, Tensor], others: dict[str, Tensor], threshold: float, whose: str) -> list[str]:
    alike = box_iou(some["boxes"].double(), others["boxes"].double()) >= IOU
    alike &= some["labels"][:, None] == others["labels"][None, :]
    alike &= (some["scores"][:, None] - others["scores"][None, :]).abs() <= SCORE
    counts = (some["scores"] - threshold).abs() > MARGIN
    return [
        f"{whose}: box {some['boxes'][i].tolist()}, label {int(some['labels'][i])}, score {some['scores'][i]:.6f}"
        for i in torch.nonzero(counts & ~alike.any(1)).flatten().tolist()
    ]


def mask_difference(ours: Tensor, theirs: Tensor) -> float:
    """The part of the pixels whose class differs; of logits [N, classes, H, W]."""
    return float((ours.argmax(1) != theirs.argmax(1)).double().mean())
