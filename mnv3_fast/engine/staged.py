"""StagedEngine: an engine of a network that gives maps by stage, as timm's do."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mnv3_fast.engine.headed import HeadedEngine
from mnv3_fast.nn.containers import like_input


class StagedEngine(HeadedEngine):
    """A :class:`HeadedEngine` with timm's ``forward_intermediates``.

    Attributes:
        ends: the place in the plan of the last layer of the stem (0) and of each stage (from 1 on).
        stage_ends: those of them that timm counts as features.
    """

    ends: tuple[int, ...] = ()
    stage_ends: Sequence[int] = ()

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        extra_blocks: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps of some stages, in their order, and the map before the pool unless ``intermediates_only``.

        Args:
            x: [N, C, H, W], as the engine takes it.
            indices: of features (with ``extra_blocks`` of the stem and all stages); the last ones if it is a number,
                all if None.
            norm: of no effect, as in timm's.
            stop_early: with ``intermediates_only``; nothing runs behind the last map in any case.
            output_fmt: "NCHW".

        Raises:
            TypeError, ValueError, RuntimeError: as :meth:`Engine.forward`; ValueError also for another ``output_fmt``,
                an index that is out of range, or ``stop_early`` alone.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"forward_intermediates: output_fmt must be NCHW, got {output_fmt}")
        if stop_early and not intermediates_only:
            raise ValueError("forward_intermediates: stop_early is for intermediates_only")
        features = range(len(self.ends)) if extra_blocks else self.stage_ends
        wanted = sorted({features[i] for i in _indices(indices, len(features))})
        y, first, maps = x, 0, []
        for stage in wanted:
            if first <= self.ends[stage]:
                y, first = self._half(first, self.ends[stage] + 1)(y), self.ends[stage] + 1
            maps.append(like_input(y, x))
        if intermediates_only:
            return maps
        pool = self._pool()
        last = len(self.kinds) if pool is None else pool
        return like_input(self._half(first, last)(y) if first < last else y, x), maps


def _indices(indices: int | Sequence[int] | None, count: int) -> list[int]:
    """Places in a list of features; negative ones count from its end."""
    if indices is None or isinstance(indices, int):
        last = count if indices is None else indices
        if not 0 < last <= count:
            raise ValueError(f"forward_intermediates: indices must be from 1 to {count}, got {last}")
        return list(range(count - last, count))
    found = [count + index if index < 0 else index for index in indices]
    if any(not 0 <= index < count for index in found):
        raise ValueError(f"forward_intermediates: indices must be from 0 to {count - 1}, got {list(indices)}")
    return found
