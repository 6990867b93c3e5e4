"""HeadedEngine: an engine of a network that is also called in two halves, features and head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mnv3_fast.engine.engine import Engine
from mnv3_fast.engine.kinds import POOL
from mnv3_fast.engine.plan import read_plan
from mnv3_fast.engine.slicing import slice_plan
from mnv3_fast.nn.containers import like_input


class HeadedEngine(Engine):
    """An :class:`Engine` with timm's ``forward_features`` and ``forward_head``.

    A call of the whole is one plan. A half is cut out of it when it is first called, which copies its weights; in a
    captured graph it must have been called before.
    """

    def __init__(self, plan: Tensor, geometry: list[int], input_channels: int, rest: nn.Module, source: str) -> None:
        super().__init__(plan, geometry, input_channels, rest, source)
        self.kinds = tuple(node.kind for node in read_plan(plan))

    def forward_features(self, x: Tensor) -> Tensor:
        """[N, C, H, W], as the engine takes it -> the map before the pool, in the memory format of the input.

        Raises:
            TypeError, ValueError, RuntimeError: as :meth:`Engine.forward`.
        """
        pool = self._pool()
        return self.run(x) if pool is None else like_input(self._half(0, pool)(x), x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The map of :meth:`forward_features` -> logits [N, K], or with ``pre_logits`` the features before them.

        Raises:
            TypeError, ValueError, RuntimeError: as :meth:`Engine.forward`.
        """
        pool = self._pool()
        if pool is None:
            modules = list(self.rest)
            for module in modules[:-1] if pre_logits else modules:
                x = module(x)
            return x
        last = pool + 2 if pre_logits else len(self.kinds)
        half = self._half(pool + 1, last)
        half._check(x)  # as it came, not as it is pooled
        features = half(nn.functional.adaptive_avg_pool2d(x, 1)).flatten(1)
        return features if pre_logits else self.rest(features)

    def linear_layers(self) -> list[Engine]:
        """The layers behind the pool, each as an engine of its own that reads [N, F, 1, 1]; they copy their weights."""
        pool = self._pool()
        assert pool is not None, "a network without a pool has none"
        return [self._cut(i, i + 1) for i in range(pool + 1, len(self.kinds))]

    def _pool(self) -> int | None:
        """The place of the pool in the plan; None if the head is torch's."""
        return self.kinds.index(POOL) if POOL in self.kinds else None

    def _half(self, first: int, last: int) -> Engine:
        halves = self.__dict__.setdefault("_halves", {})
        if (first, last) not in halves:
            if torch.compiler.is_compiling():
                raise RuntimeError("Engine: call this method once before a capture: it cuts a piece out of the plan")
            halves[first, last] = self._cut(first, last)
        return halves[first, last]

    def _cut(self, first: int, last: int) -> Engine:
        plan, geometry = slice_plan(self.plan, self.geometry, first, last)
        channels = self.input_channels if first == 0 else read_plan(plan)[0].words[1]
        cut = Engine(plan, geometry, channels, nn.Identity(), self.source)
        cut.normalises, cut.restores_format = self.normalises, False
        return cut

    def _apply(self, fn: Any, recurse: bool = True) -> Engine:
        self.__dict__.pop("_halves", None)
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **keywords: Any) -> None:
        self.__dict__.pop("_halves", None)
        super()._load_from_state_dict(*args, **keywords)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_halves"}
