"""A plan of some stages of another plan, from its bytes alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mnv3_fast.engine.kinds import BLOCK, LINEAR, POINTWISE, POOL, STEM
from mnv3_fast.engine.plan import HEADER_WORDS, MAGIC, NODE_WORDS, VERSION, Node, read_plan

OFFSETS = {STEM: (14, 15, 17, 18), BLOCK: tuple(range(22, 32)), POINTWISE: (4, 5), POOL: (), LINEAR: (4, 5)}
"""The words of each kind of node that are offsets of data; 0 for data that it does not have."""


def slice_plan(plan: Tensor, geometry: Sequence[int], first: int, last: int) -> tuple[Tensor, list[int]]:
    """The stages [first, last) of a plan as a plan of their own: a copy of their bytes.

    Linear layers that come first read a map instead, as a plan must: [N, C, 1, 1] -> [N, F, 1, 1], the same sums.

    Args:
        plan, geometry: an engine's; the result has the same dtype.
        first, last: the first stage, and the one after the last.

    Raises:
        ValueError: if there are no such stages, or they would start with a pool.
    """
    nodes = read_plan(plan)
    if not 0 <= first < last <= len(nodes):
        raise ValueError(f"slice_plan: the plan has stages 0 to {len(nodes) - 1}, got [{first}, {last})")
    inside = nodes[first:last]
    if inside[0].kind == POOL:
        raise ValueError("slice_plan: a plan cannot start with a pool")
    if inside[0].kind == LINEAR:
        inside = [Node(POINTWISE, {**node.words, 0: POINTWISE}) for node in inside]
    begin, end = _start(nodes, first, plan.numel()), _start(nodes, last, plan.numel())
    table = 8 * (HEADER_WORDS + NODE_WORDS * len(inside))
    start = table + -table % 64
    rows = [word for node in inside for word in _moved(node, start - begin)]
    is_map = int(all(node.kind not in (POOL, LINEAR) for node in inside))
    channels = _outputs(inside)
    header = [MAGIC, VERSION, start + end - begin, len(inside), _inputs(inside[0]), channels, is_map]
    words = torch.tensor([*header, *[0] * (HEADER_WORDS - len(header)), *rows], dtype=torch.int64)
    sliced = plan.new_zeros(start + end - begin)
    sliced[: 8 * words.numel()] = words.to(plan.device).view(torch.uint8)
    sliced[start:] = plan[begin:end]
    spatial = [node.kind in (STEM, BLOCK) for node in nodes]
    skipped, taken = 2 + 10 * sum(spatial[:first]), 10 * sum(spatial[first:last])
    return sliced, [geometry[0] // 2 * 2 + is_map, channels, *geometry[skipped : skipped + taken]]


def _start(nodes: Sequence[Node], index: int, size: int) -> int:
    """Where the data of a node and all after it starts; the nodes' data lie in their order."""
    offsets = [node.words[word] for node in nodes[index:] for word in OFFSETS[node.kind]]
    return min((offset for offset in offsets if offset), default=size)


def _moved(node: Node, by: int) -> list[int]:
    words = [node.words[i] for i in range(NODE_WORDS)]
    for i in OFFSETS[node.kind]:
        words[i] += by if words[i] else 0
    return words


def _inputs(node: Node) -> int:
    return node.words[1]


def _outputs(nodes: Sequence[Node]) -> int:
    last = next(node for node in reversed(nodes) if node.kind != POOL)
    return last.words[3] if last.kind == BLOCK else last.words[2]
