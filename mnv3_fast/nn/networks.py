"""Mixins for whole networks: one op for all of it, for its end, or for a stem that is no module of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mnv3_fast.engine import cache
from mnv3_fast.models.description import ConvLayer, NetDescription, Unsupported
from mnv3_fast.nn.base import Fused, Packed, current_entry, fused_output, reason_of, run_described, run_entry
from mnv3_fast.nn.conditions import as_autocast, input_reason, is_inference, transform_active, weights_fit
from mnv3_fast.nn.fusion import Fusion, Inside, Reader, describe, fusion_of, traced_description
from mnv3_fast.ops import registration
from mnv3_fast.ops.network.op import PACKED as NETWORK


class WholeNet:
    """A network as one plan, for plain inference passes in which nothing has changed for a while.

    A network whose weights or modules change from call to call is better off with a plan for each block: only those
    that changed are packed again. So after a change, or where the whole cannot be one plan (a hook somewhere, a block
    that runs on torch), some calls pass before it is tried again, up to 1024.
    """

    def __init__(self) -> None:
        self._fusion: Fusion | None = None
        self._patience = self._wait = 1

    def entry(self, root: nn.Module, reader: Reader, inside: Inside) -> tuple[cache.Entry, Sequence[nn.Module]] | None:
        """The plan and the modules after it; None if the network must run part by part."""
        fusion = self._fusion
        entry = None if fusion is None else fusion.current(root)
        if fusion is not None and entry is not None:
            self._patience = 1
            return entry, fusion.description.rest
        if fusion is None and self._wait > 0:
            self._wait -= 1
            return None
        self._fusion = None
        self._patience = self._wait = min(2 * self._patience, 1024)
        if fusion is None:
            return self._packed(root, reader, inside)
        return None

    def _packed(
        self, root: nn.Module, reader: Reader, inside: Inside
    ) -> tuple[cache.Entry, Sequence[nn.Module]] | None:
        fusion = describe(root, reader, inside)
        if isinstance(fusion, str):
            return None
        for module in inside(root):
            module.__dict__.pop("_fusion", None)  # their plans would only take memory
        root.__dict__.pop("_fusion", None)
        tensors = [holder[name] for holder, name in fusion.sources]
        try:
            entry = fusion.plan(tensors)
        except (TypeError, ValueError, RuntimeError):
            return None  # parts that do not fit each other; the one that does not will say so
        assert entry is not None
        cache.drop_parts(entry)
        self._fusion = fusion
        return entry, fusion.description.rest

    def __deepcopy__(self, memo: Any) -> None:
        return None

    def __reduce__(self) -> Any:
        return type(None), ()


class FusedNet(Packed):
    """Mixin for a network that runs as one op in inference and in graphs captured for it.

    Where something is to be differentiated, each part runs on its own: its recomputed forward takes less memory.
    """

    def _net_reader(self) -> NetDescription:
        """The whole network; raises Unsupported."""
        raise NotImplementedError

    def _net_modules(self) -> list[nn.Module]:
        """The modules that are described, with the containers that hold them."""
        raise NotImplementedError

    def _fused_net(self, x: Tensor) -> Tensor | None:
        """The network's output by one op and the modules after it, None if it must run part by part."""
        if torch.compiler.is_compiling():
            return self._captured_net(x)
        if not is_inference(self, x):
            return None
        whole = self.__dict__.get("_whole")
        if whole is None:
            whole = self.__dict__["_whole"] = WholeNet()
        found = whole.entry(self, type(self)._net_reader, type(self)._net_modules)
        if found is None:
            return None
        entry, rest = found
        return _through(rest, run_entry(x, entry))

    def _captured_net(self, x: Tensor) -> Tensor | None:
        if self.training or input_reason(x) is not None or transform_active():
            return None
        description = traced_description(self, type(self)._net_reader, type(self)._net_modules)
        if description is None:
            return None
        x = as_autocast(x)
        tensors, spec, constants = description.flatten()
        if not weights_fit(x, tensors):
            return None
        if registration.wants_grad((x, tensors)) and (x.is_cuda or not registration.exporting()):
            return None  # an exported graph is for inference, wherever its parameters may come from
        return _through(description.rest, NETWORK.run(x, tensors, spec, constants))

    def whole_reason(self) -> str | None:
        """Why this network cannot be one op in inference; None if it can."""
        fusion = describe(self, type(self)._net_reader, type(self)._net_modules)
        return fusion if isinstance(fusion, str) else None


def check_accelerated(children: Any) -> None:
    """Raises Unsupported for a part of a network that the user left as it is."""
    for child in children:
        if not isinstance(child, Fused):
            raise Unsupported(f"{type(child).__name__} among its parts is not accelerated")


class FusedEnd(Packed):
    """Mixin for a network whose last convolution, pool and classifier run as one op in inference."""

    def _reader(self) -> NetDescription:
        raise NotImplementedError

    def _end_modules(self) -> list[nn.Module]:
        raise NotImplementedError

    def _fused_end(self, x: Tensor) -> Callable[[Tensor], Tensor] | None:
        """What runs on the output of the blocks; None if each module must run."""
        if torch.compiler.is_compiling() or not is_inference(self, x):
            return None
        fusion = self.__dict__.get("_fusion")
        entry = None if fusion is None else fusion.current(self)
        if entry is None:
            found = fusion_of(self, type(self)._reader, type(self)._end_modules)
            if isinstance(found, str):
                return None
            fusion, tensors = found
            entry = fusion.plan(tensors)
            assert entry is not None
        return lambda y: _through(fusion.description.rest, run_entry(y, entry))

    def fallback_reason(self, x: Tensor | None = None) -> str | None:
        """As :meth:`Fused.fallback_reason`, for what comes after the blocks."""
        return reason_of(self, x, type(self)._end_modules)


class FusedStem(Packed):
    """Mixin for a network whose stem is a convolution and a norm of the network's own, not a module."""

    def _reader(self) -> ConvLayer:
        raise NotImplementedError

    def _stem_modules(self) -> list[nn.Module]:
        raise NotImplementedError

    def _fused_stem(self, x: Tensor) -> Tensor | None:
        """The stem's output by its op, None if torch must run it."""
        entry = current_entry(self, x)
        if entry is not None:
            return run_entry(x, entry)
        return fused_output(self, x, type(self)._reader, run_described, type(self)._stem_modules)

    def fallback_reason(self, x: Tensor | None = None) -> str | None:
        """As :meth:`Fused.fallback_reason`, for the stem."""
        return reason_of(self, x, type(self)._stem_modules)


def _through(modules: Sequence[nn.Module], y: Tensor) -> Tensor:
    for module in modules:
        y = module(y)
    return y
