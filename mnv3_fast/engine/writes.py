"""Whether a graph of torch.fx writes to maps that an engine would read earlier, or hand out anew."""

from __future__ import annotations

import operator
from collections.abc import Set

from torch import fx, nn

OPERATORS = {getattr(operator, f"i{name}") for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")}
OPERATORS |= {operator.iand, operator.ior, operator.ixor, operator.imatmul, operator.setitem}


def shared_write(module: fx.GraphModule, front: Set[fx.Node]) -> fx.Node | None:
    """A node that writes to a value of the front which others read, too; None if there is none.

    A graph keeps no order but that of its values, so nothing tells which of the others have to see what was written.

    Args:
        module: the graph.
        front: its nodes that become engines, and their input.
    """
    for node in module.graph.nodes:
        if node not in front and _writes(module, node) and any(_reaches(module, to, front) for to in _written(node)):
            return node
    return None


def _written(node: fx.Node) -> list[fx.Node]:
    """What a node that writes may write to."""
    out = node.kwargs.get("out")
    return [out] if isinstance(out, fx.Node) else node.all_input_nodes


def _writes(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        called = module.get_submodule(str(node.target))
        return not _is_fresh(called) and any(getattr(inside, "inplace", False) for inside in called.modules())
    if node.op not in ("call_function", "call_method"):
        return False
    name = str(getattr(node.target, "__name__", node.target))
    named = name.endswith("_") and not name.endswith("__")
    asked = True in [arg for arg in node.args if isinstance(arg, bool)] or bool(node.kwargs.get("inplace"))
    return named or asked or node.target in OPERATORS or "out" in node.kwargs


def _is_fresh(called: nn.Module) -> bool:
    """Whether a module's first part computes with weights: its output is memory of its own, and so is all behind it."""
    first = next((part for part in called.modules() if not part._modules), called)
    return next(first.parameters(), None) is not None and not getattr(first, "inplace", False)


def _reaches(module: fx.GraphModule, node: fx.Node, front: Set[fx.Node]) -> bool:
    """Whether a value may lie in the memory of one of the front's that has other readers."""
    waiting, seen, shared = [node], set(), False
    found = False
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        shared |= len(node.users) > 1
        if node in front:
            found = True
        elif not (node.op == "call_module" and _is_fresh(module.get_submodule(str(node.target)))):
            waiting += node.all_input_nodes
    return found and shared
