"""EngineChain: a frozen network with several outputs, such as the backbone of a detector."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mnv3_fast.engine.engine import Engine
from mnv3_fast.nn.containers import like_input


class EngineChain(nn.Module):
    """One engine for each stretch between two outputs, run one after the other. Inference only; made by ``freeze``.

    Each stretch writes the map that is wanted and the next one reads it where it lies, so an output costs one more
    call, a few microseconds, and no copy (but for the memory format, which is the input's).

    Attributes:
        parts: the engines.
        extra: modules after them that stay torch's; each gives an output.
        names: of the outputs, for an OrderedDict; None for a ``container`` (list or tuple).
        source: the class of the frozen module.
    """

    def __init__(
        self,
        parts: Sequence[Engine],
        extra: Sequence[nn.Module],
        names: Sequence[str] | None,
        container: type,
        source: str,
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        for part in parts:
            part.restores_format = False  # the next part reads channels_last
        self.extra = nn.ModuleList(extra)
        self.names = None if names is None else tuple(names)
        self.container = container
        self.source = source
        self.train(False)

    def forward(self, input: Tensor) -> Any:
        """[N, C, H, W] as an :class:`Engine` takes it -> the outputs, in the memory format of the input.

        Raises:
            TypeError, ValueError, RuntimeError: as :meth:`Engine.forward`.
        """
        outputs: list[Tensor] = []
        x = input
        for part in self.parts:
            x = part(x)
            outputs.append(like_input(x, input))
        for module in self.extra:
            outputs.append(module(outputs[-1]))
        return self.container(outputs) if self.names is None else OrderedDict(zip(self.names, outputs, strict=True))

    @property
    def dtype(self) -> torch.dtype:
        """Of activations and outputs."""
        return self.parts[0].dtype

    def train(self, mode: bool = True) -> EngineChain:
        """Stays in eval mode whatever a surrounding model does."""
        return super().train(False)

    def extra_repr(self) -> str:
        return f"{self.source}, {len(self.parts)} engines, {len(self.parts) + len(self.extra)} outputs"
