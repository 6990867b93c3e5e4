"""Doubles of mmpretrain's MobileNetV3 and of what it is built of, which the tests cannot install.

Written after the sources that mnv3_fast/models/mmpretrain.py names: the same names of classes, modules, children and
attributes, the same order of layers and the same arithmetic; no registry, no configuration, no initialisation.
"""

from __future__ import annotations

import itertools
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.models.mmcv_doubles import ConvModule, DropPath, HSigmoid, HSwish, of

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "ReLU": lambda: nn.ReLU(inplace=True),
    "HSwish": lambda: nn.Hardswish(inplace=True),
}
SMALL = "3,16,16,s,R,2 3,72,24,,R,2 3,88,24,,R,1 5,96,40,s,H,2 5,240,40,s,H,1 5,240,40,s,H,1 5,120,48,s,H,1 "
SMALL += "5,144,48,s,H,1 5,288,96,s,H,2 5,576,96,s,H,1 5,576,96,s,H,1"
SMALL_050 = "3,16,8,s,R,2 3,40,16,,R,2 3,56,16,,R,1 5,64,24,s,H,2 5,144,24,s,H,1 5,144,24,s,H,1 5,72,24,s,H,1 "
SMALL_050 += "5,72,24,s,H,1 5,144,48,s,H,2 5,288,48,s,H,1 5,288,48,s,H,1"
LARGE = (
    "3,16,16,,R,1 3,64,24,,R,2 3,72,24,,R,1 5,72,40,s,R,2 5,120,40,s,R,1 5,120,40,s,R,1 3,240,80,,H,2 3,200,80,,H,1 "
)
LARGE += "3,184,80,,H,1 3,184,80,,H,1 3,480,112,s,H,1 3,672,112,s,H,1 5,672,160,s,H,2 5,960,160,s,H,1 5,960,160,s,H,1"
ARCHITECTURES = {"small": SMALL, "small_050": SMALL_050, "large": LARGE}
"""Kernel, hidden channels, outputs, squeeze-excite, activation, stride of each block."""


@of("mmpretrain.models.utils.se_layer")
class SELayer(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(8, (channels // 4 + 4) // 8 * 8)
        squeezed += 8 if squeezed < 0.9 * (channels // 4) else 0
        self.global_avgpool = nn.AdaptiveAvgPool2d(1)
        self.return_weight = False
        self.conv1 = ConvModule(channels, squeezed, 1, activation=nn.ReLU(inplace=True))
        self.conv2 = ConvModule(squeezed, channels, 1, activation=HSigmoid())

    def forward(self, x: Tensor) -> Tensor:
        gate = self.conv2(self.conv1(self.global_avgpool(x)))
        return gate if self.return_weight else x * gate


@of("mmpretrain.models.utils.inverted_residual")
class InvertedResidual(nn.Module):
    def __init__(
        self,
        inputs: int,
        row: str,
        norm: Callable[[int], nn.Module],
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        kernel, hidden, outputs, squeeze, activation, stride = row.split(",")
        hidden, outputs, stride, kernel = int(hidden), int(outputs), int(stride), int(kernel)
        act = ACTIVATIONS["ReLU" if activation == "R" else "HSwish"]
        self.with_res_shortcut = stride == 1 and inputs == outputs
        self.with_cp = with_cp
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()
        self.with_se, self.with_expand_conv = bool(squeeze), hidden != inputs
        if self.with_expand_conv:
            self.expand_conv = ConvModule(inputs, hidden, 1, norm=norm, activation=act())
        self.depthwise_conv = ConvModule(hidden, hidden, kernel, stride, kernel // 2, hidden, norm, act())
        if self.with_se:
            self.se = SELayer(hidden)
        self.linear_conv = ConvModule(hidden, outputs, 1, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.run, x, use_reentrant=True) if self.with_cp and x.requires_grad else self.run(x)

    def run(self, x: Tensor) -> Tensor:
        y = self.expand_conv(x) if self.with_expand_conv else x
        y = self.depthwise_conv(y)
        y = self.linear_conv(self.se(y) if self.with_se else y)
        return x + self.drop_path(y) if self.with_res_shortcut else y


def batch_norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


@of("mmpretrain.models.backbones.mobilenet_v3")
class MobileNetV3(nn.Module):
    def __init__(
        self,
        arch: str = "small",
        norm: Callable[[int], nn.Module] = batch_norm,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        rows = ARCHITECTURES[arch].split()
        self.layers = [f"layer{i}" for i in range(len(rows) + 2)]
        self.out_indices = (len(rows) + 1,) if out_indices is None else out_indices
        self.frozen_stages, self.norm_eval = frozen_stages, norm_eval
        self.layer0 = ConvModule(3, 16, 3, 2, 1, norm=norm, activation=ACTIVATIONS["HSwish"]())
        channels = 16
        for i, row in enumerate(rows):
            self.add_module(f"layer{i + 1}", InvertedResidual(channels, row, norm, drop_path_rate, with_cp))
            channels = int(row.split(",")[2])
        self.feat_dim = int(rows[-1].split(",")[1])
        last = ConvModule(channels, self.feat_dim, 1, norm=norm, activation=ACTIVATIONS["HSwish"]())
        self.add_module(self.layers[-1], last)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        outputs = []
        for i, name in enumerate(self.layers):
            x = getattr(self, name)(x)
            if i in self.out_indices:
                outputs.append(x)
        return tuple(outputs)

    def train(self, mode: bool = True) -> MobileNetV3:
        super().train(mode)
        for i in range(self.frozen_stages + 1):
            getattr(self, f"layer{i}").eval().requires_grad_(False)
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self


@of("mmpretrain.models.necks.gap")
class GlobalAveragePooling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gap = nn.AdaptiveAvgPool2d((1, 1))

    def forward(self, inputs: Any) -> Any:
        if isinstance(inputs, tuple):
            return tuple(self.gap(x).view(x.size(0), -1) for x in inputs)
        return self.gap(inputs).view(inputs.size(0), -1)


@of("mmpretrain.models.heads.stacked_head")
class LinearBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, dropout: float = 0.0, act: nn.Module | None = None) -> None:
        super().__init__()
        self.fc = nn.Linear(inputs, outputs)
        self.norm = None
        self.act = act
        self.dropout = nn.Dropout(dropout) if dropout > 0 else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        for module in (self.norm, self.act, self.dropout):
            x = x if module is None else module(x)
        return x


@of("mmpretrain.models.heads.stacked_head")
class StackedLinearClsHead(nn.Module):
    def __init__(self, num_classes: int, in_channels: int, mid_channels: Sequence[int], dropout: float = 0.2) -> None:
        super().__init__()
        widths = [in_channels, *mid_channels]
        hidden = [LinearBlock(a, b, dropout, nn.Hardswish()) for a, b in itertools.pairwise(widths)]
        self.layers = nn.ModuleList([*hidden, LinearBlock(widths[-1], num_classes)])

    def pre_logits(self, feats: tuple[Tensor, ...]) -> Tensor:
        x = feats[-1]
        for layer in self.layers[:-1]:
            x = layer(x)
        return x

    @property
    def fc(self) -> nn.Module:
        return self.layers[-1]

    def forward(self, feats: tuple[Tensor, ...]) -> Tensor:
        return self.fc(self.pre_logits(feats))

    def loss(self, feats: tuple[Tensor, ...], data_samples: list[int]) -> dict[str, Tensor]:
        return {"loss": nn.functional.cross_entropy(self(feats), torch.tensor(data_samples))}

    def predict(self, feats: tuple[Tensor, ...], data_samples: Any = None) -> list[dict[str, Any]]:
        scores = self(feats).softmax(1)
        return [{"pred_score": score, "pred_label": score.argmax()} for score in scores]


@of("mmpretrain.models.utils.data_preprocessor")
class ClsDataPreprocessor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([123.675, 116.28, 103.53])[:, None, None], persistent=False)

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        return {"inputs": data["inputs"] - self.mean, "data_samples": None}


@of("mmpretrain.models.classifiers.image")
class ImageClassifier(nn.Module):
    def __init__(self, backbone: nn.Module, neck: nn.Module | None, head: nn.Module | None) -> None:
        super().__init__()
        self.data_preprocessor = ClsDataPreprocessor()
        self.backbone, self.neck, self.head = backbone, neck, head

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = "tensor") -> Any:
        if mode == "tensor":
            feats = self.extract_feat(inputs)
            return feats if self.head is None else self.head(feats)
        if mode == "loss":
            return self.loss(inputs, data_samples)
        if mode == "predict":
            return self.predict(inputs, data_samples)
        raise RuntimeError(f'Invalid mode "{mode}".')

    def extract_feat(self, inputs: Tensor, stage: str = "neck") -> Any:
        x = self.backbone(inputs)
        if stage == "backbone":
            return x
        x = x if self.neck is None else self.neck(x)
        return x if stage == "neck" else self.head.pre_logits(x)

    def loss(self, inputs: Tensor, data_samples: Any) -> dict[str, Tensor]:
        return self.head.loss(self.extract_feat(inputs), data_samples)

    def predict(self, inputs: Tensor, data_samples: Any = None) -> Any:
        return self.head.predict(self.extract_feat(inputs), data_samples)

    def test_step(self, data: dict[str, Any]) -> Any:
        data = self.data_preprocessor(data, False)
        return self(**data, mode="predict")


def classifier(arch: str = "small_050", classes: int = 10, **options: Any) -> nn.Module:
    """A fresh ImageClassifier with mmpretrain's neck and head."""
    backbone = MobileNetV3(arch, **options)
    head = StackedLinearClsHead(classes, backbone.feat_dim, [64])
    return ImageClassifier(backbone, GlobalAveragePooling(), head)


BRICKS = (ConvModule, DropPath, HSigmoid, HSwish)
CLASSES = [*BRICKS, *(value for value in list(vars().values()) if getattr(value, "__module__", "").startswith("mmp"))]


@contextmanager
def importable() -> Iterator[None]:
    """The doubles can be imported from where they say they are defined, as pickle does."""
    made: list[str] = []
    for cls in CLASSES:
        parts = cls.__module__.split(".")
        for name in (".".join(parts[:i]) for i in range(1, len(parts) + 1)):
            if name not in sys.modules:
                sys.modules[name] = types.ModuleType(name)
                made.append(name)
        setattr(sys.modules[cls.__module__], cls.__name__, cls)
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]
