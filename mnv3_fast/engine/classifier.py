"""A frozen classifier of mmpretrain's: its own methods on engines."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mnv3_fast.engine.engine import Engine
from mnv3_fast.engine.headed import HeadedEngine
from mnv3_fast.nn.stand_ins import MadeStandIn, stand_in


class EngineBackbone(nn.Module):
    """The whole classifier as one engine, called as its backbone: the map before the pool, in a tuple."""

    def __init__(self, engine: HeadedEngine) -> None:
        super().__init__()
        self.engine = engine

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """[N, C, H, W], as the engine takes it -> ([N, C', H', W'],)."""
        return (self.engine.forward_features(x),)


class EngineLinear(nn.Module):
    """One fully connected layer of a head and its activation."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine

    def forward(self, x: Tensor) -> Tensor:
        """[N, F] -> [N, F']."""
        return self.engine(x[:, :, None, None]).flatten(1)


class FrozenClassifier(MadeStandIn):
    """Mixin in front of ImageClassifier: in the mode "tensor" all of it is one call, else its own code runs.

    That code (``extract_feat``, ``predict``, ``loss``) calls the backbone, the neck and the head's layers, which are
    engines but for the neck's pool.
    """

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = "tensor") -> Any:
        """As mmpretrain's."""
        return self.backbone.engine(inputs) if mode == "tensor" else super().forward(inputs, data_samples, mode)


def with_engine(classifier: Any, engine: HeadedEngine) -> nn.Module:
    """Put the engine of a whole classifier in the place of its weights; ``classifier`` itself is changed."""
    classifier.backbone = EngineBackbone(engine)
    for i, layer in enumerate(engine.linear_layers()):
        classifier.head.layers[i] = EngineLinear(layer)
    classifier.__class__ = stand_in(FrozenClassifier, type(classifier))
    return classifier
