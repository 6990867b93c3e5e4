"""Graphs of torch.fx (``torchvision.models.feature_extraction``): the front that is a MobileNetV3 becomes engines.

A traced graph has lost the blocks; its nodes call their parts, from convolution to convolution. From the input on they
are read back into stages, as far as they are a MobileNetV3 and nobody else uses what lies inside of a stage. Whatever
comes after stays in the graph and reads the engines' outputs.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx, nn

from mnv3_fast.engine.writes import shared_write
from mnv3_fast.models import torchvision
from mnv3_fast.models.chain import chain_of
from mnv3_fast.models.checks import Unsupported, check_conv, check_residual, is_global_average
from mnv3_fast.models.description import (
    BlockDescription,
    ConvLayer,
    NetDescription,
    PyramidDescription,
    SqueezeExciteLayer,
    kind_of_conv,
)

NAME = "engines"
"""The submodule of a frozen graph."""
ADDITIONS = (operator.add, operator.iadd, torch.add)
FLATTENS = (torch.flatten,)


@dataclass(frozen=True)
class Step:
    """A stage of the graph's front, and the node whose value is its output."""

    end: fx.Node
    layer: ConvLayer | BlockDescription | None  # None: pool and flatten


@dataclass(frozen=True)
class Place:
    """Names of the nodes between which engines stand: the input, and the outputs that others use."""

    input: str
    outputs: tuple[str, ...]


def read_graph(module: fx.GraphModule) -> tuple[PyramidDescription, Place]:
    """The front of a graph as a description; raises Unsupported."""
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        raise Unsupported(f"a graph of {len(inputs)} inputs is no known MobileNetV3")
    steps = _front(module, inputs[0])
    if not any(isinstance(step.layer, BlockDescription) for step in steps):
        raise Unsupported("a graph without inverted residual blocks is no known MobileNetV3")
    written = shared_write(module, _nodes_until(inputs[0], steps[-1].end) | {inputs[0]})
    if written is not None:
        raise Unsupported(f"{written.name} writes in place to a map that others read")
    parts: list[NetDescription] = []
    outputs: list[str] = []
    stretch: list[Step] = []
    for i, step in enumerate(steps):
        stretch.append(step)
        inside = _nodes_until(inputs[0], steps[i + 1].end) if i + 1 < len(steps) else set()
        if any(user not in inside for user in step.end.users):
            parts.append(_part(stretch))
            outputs.append(step.end.name)
            stretch = []
    return PyramidDescription(tuple(parts)), Place(inputs[0].name, tuple(outputs))


def _front(module: fx.GraphModule, start: fx.Node) -> list[Step]:
    """The stages that follow each other from the input on, as far as plans can hold them."""
    steps: list[Step] = []
    end = start
    while (step := _next_step(module, end, first=not steps)) is not None:
        is_output, is_pool = len(end.users) > 1, step.layer is None
        follows_conv = len(steps) > 1 and isinstance(steps[-1].layer, ConvLayer)
        if is_output and is_pool:
            break  # what follows an output is a plan of its own, which no pool can start
        if follows_conv and not is_output and not is_pool:
            break  # a 1x1 convolution of its own ends a plan
        steps.append(step)
        end = step.end
    return steps


def with_chain(module: fx.GraphModule, place: Place, chain: nn.Module) -> fx.GraphModule:
    """The graph, changed in place, with a chain of engines for its front."""
    nodes = {node.name: node for node in module.graph.nodes}
    source = nodes[place.input]
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {source: graph.placeholder(source.target)}
    outputs = graph.call_module(NAME, (copies[source],))
    for i, name in enumerate(place.outputs):
        copies[nodes[name]] = graph.call_function(operator.getitem, (outputs, i))
    wanted = _needed(module.graph, set(copies))
    for node in module.graph.nodes:
        if node in wanted and node not in copies:
            copies[node] = graph.node_copy(node, lambda old: copies[old])
    module.add_submodule(NAME, chain)
    result = fx.GraphModule(module, graph, type(module).__name__)
    result.delete_all_unused_submodules()
    return result.eval()


def _needed(graph: fx.Graph, given: set[fx.Node]) -> set[fx.Node]:
    """The nodes that the output follows from, back to those given."""
    found: set[fx.Node] = set()
    waiting = [node for node in graph.nodes if node.op == "output"]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += [] if node in given else node.all_input_nodes
    return found


def _nodes_until(first: fx.Node, end: fx.Node) -> set[fx.Node]:
    """The nodes on the ways from one to another, both included."""
    found = {end}
    waiting = [end]
    while waiting:
        node = waiting.pop()
        for previous in node.all_input_nodes:
            if previous not in found:
                found.add(previous)
                waiting += [] if previous is first else [previous]
    return found


def _part(steps: Sequence[Step]) -> NetDescription:
    layers = [step.layer for step in steps]
    pooled = layers[-1] is None
    return replace(chain_of([layer for layer in layers if layer is not None]), pooled=pooled)


def _next_step(module: fx.GraphModule, start: fx.Node, first: bool) -> Step | None:
    """The stage that reads a node; None where there is none, or more than one."""
    convs = [(user, conv) for user in start.users if (conv := _conv(module, user)) is not None]
    if not convs:
        return None if first else _pool(module, start)
    if len(convs) > 1:
        return None
    node, conv = convs[0]
    if _kind(conv) == ("stem" if first else "pointwise"):
        block = None if first else _block(module, start, node, conv)
        return block or Step(node, conv)
    return _block(module, start, node, conv) if _kind(conv) == "depthwise" else None


def _block(module: fx.GraphModule, start: fx.Node, node: fx.Node, conv: ConvLayer) -> Step | None:
    """[expand], depthwise, [squeeze-excite], project, [+ input]: each used by the next and nobody else."""
    expand = None
    if _kind(conv) == "pointwise":
        expand = conv
        following = _only_user(node)
        found = None if following is None else _conv(module, following)
        if following is None or found is None:
            return None
        node, conv = following, found
    if _kind(conv) != "depthwise":
        return None
    depthwise = conv
    node_after = _only_user(node)
    squeeze = None if node_after is None else _squeeze_excite(module, node_after)
    if squeeze is not None and node_after is not None:
        node_after = _only_user(node_after)
    project = None if node_after is None else _conv(module, node_after)
    if node_after is None or project is None or _kind(project) != "pointwise":
        return None
    sum_node = _only_user(node_after)
    residual = sum_node is not None and _adds(sum_node, node_after, start)
    end = sum_node if residual and sum_node is not None else node_after
    check_conv(project.conv, "pointwise")
    return Step(end, BlockDescription(expand, depthwise, squeeze, project, check_residual(depthwise, residual)))


def _pool(module: fx.GraphModule, start: fx.Node) -> Step | None:
    """A global average pool and the flatten behind it."""
    for node in start.users:
        if node.op == "call_module" and is_global_average(module.get_submodule(str(node.target))):
            flat = _only_user(node)
            if flat is not None and flat.target in FLATTENS and flat.args == (node, 1) and not flat.kwargs:
                return Step(flat, None)
    return None


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _adds(node: fx.Node, left: fx.Node, right: fx.Node) -> bool:
    return node.target in ADDITIONS and set(node.args) == {left, right} and not node.kwargs


def _conv(module: fx.GraphModule, node: fx.Node) -> ConvLayer | None:
    if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return None
    try:
        return torchvision.read_conv(module.get_submodule(str(node.target)))
    except Unsupported:
        return None


def _squeeze_excite(module: fx.GraphModule, node: fx.Node) -> SqueezeExciteLayer | None:
    if node.op != "call_module" or len(node.args) != 1:
        return None
    try:
        return torchvision.read_squeeze_excite(module.get_submodule(str(node.target)))
    except Unsupported:
        return None


def _kind(conv: ConvLayer) -> str | None:
    try:
        return kind_of_conv(conv)
    except Unsupported:
        return None
