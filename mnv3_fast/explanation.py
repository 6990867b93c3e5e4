"""explain(): which module runs on which kernel, and why the others do not."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from mnv3_fast import _library, gpu
from mnv3_fast.acceleration import share, swaps_for, unsupported_reason
from mnv3_fast.engine.engine import Engine
from mnv3_fast.engine.layer_times import LayerWork, bound_of, layers_of, memory_bandwidth, share_of_calls, time_layers
from mnv3_fast.engine.op import OP as RUN_PLAN
from mnv3_fast.models.description import BlockDescription, SqueezeExciteLayer, Unsupported, kind_of_conv
from mnv3_fast.nn.base import Fused
from mnv3_fast.nn.conditions import environment_reason
from mnv3_fast.nn.networks import FusedEnd, FusedNet, FusedStem
from mnv3_fast.ops.elements import convolved_size
from mnv3_fast.ops.network.layout import measure

CALLS = 25  # of each module, for its time


@dataclass(frozen=True)
class Row:
    """One module or one layer of an engine.

    ``kernel`` is the op that runs it ("torch" where it falls back), ``instruction_set`` in an engine on a GPU "Triton"
    or "CUDA" and why, ``macs`` the multiply-adds for the given input, ``milliseconds`` what a call takes in inference
    with warm caches, ``overhead_us`` what of it is not the kernel's: the call, and a look whether anything has changed.

    Layers of an engine are timed inside the executor, as they run one after the other in a pass: ``percent_of_call`` is
    their share of a whole call, ``bytes`` what they must read and write, ``tile`` the pixels x channels whose sums lie
    in registers in their 1x1 convolutions, ``gmacs`` 1e9 multiply-adds a second, ``percent_of_peak`` these in percent
    of the FMA units' peak now on the threads in use, ``bound`` what they wait for: "multiply-adds", "reading weights"
    (from memory, at the bandwidth of a sum over a large tensor), or "neither" if both would take less than half as
    long. A pool right behind a 1x1 convolution is part of that.
    """

    path: str
    kind: str
    kernel: str
    instruction_set: str | None
    reason: str | None
    macs: int | None
    milliseconds: float | None = None
    overhead_us: float | None = None
    tile: str | None = None
    bytes: int | None = None
    gmacs: float | None = None
    percent_of_peak: float | None = None
    bound: str | None = None
    percent_of_call: float | None = None

    def __str__(self) -> str:
        work = "" if self.macs is None else f"{self.macs / 1e6:9.2f} MMAC"
        state = f"{self.kernel} ({self.instruction_set})" if self.reason is None else f"torch: {self.reason}"
        if self.overhead_us is not None:
            state += f", {self.milliseconds:.3f} ms, {self.overhead_us:.0f} us of it beside the kernel"
        elif self.percent_of_call is not None and self.bytes is not None:
            state += (
                f", tile {self.tile}, {self.bytes / 1e6:6.2f} MB, {self.milliseconds:6.3f} ms, "
                f"{self.percent_of_call:4.1f}% of a call, {self.gmacs:5.1f} GMAC/s, {self.percent_of_peak:3.0f}% of "
                f"the peak, bound by {self.bound}"
            )
        return f"{self.path:<28} {self.kind:<24} {work:<16} {state}"


@dataclass(frozen=True)
class Explanation:
    """The rows of a model, and how many of them run on our kernels.

    ``networks`` are those that run as one plan in inference once nothing has changed for two calls, by their paths,
    each with the microseconds of a call that are not the kernels' (None without an input); ``divided`` those that run
    part by part, with the reason; ``threads`` those of torch that the times were taken with.
    """

    rows: list[Row]
    networks: dict[str, float | None] = field(default_factory=dict)
    divided: dict[str, str] = field(default_factory=dict)
    threads: int = 1

    @property
    def fused(self) -> int:
        """How many modules run on our kernels."""
        return sum(row.reason is None for row in self.rows)

    @property
    def fallbacks(self) -> list[Row]:
        """The modules that run on torch, with the reason."""
        return [row for row in self.rows if row.reason is not None]

    def __str__(self) -> str:
        lines = [str(row) for row in self.rows]
        if not lines:
            known = "torchvision's, timm's or mmpretrain's MobileNetV3"
            lines.append(f"no block of {known} and no engine inside: all of it is torch's")
        lines.append(f"{self.fused} on fused kernels, {len(self.fallbacks)} on torch")
        if any(row.milliseconds is not None for row in self.rows):
            share = share_of_calls([(row.path, row.milliseconds, row.percent_of_call) for row in self.rows])
            whole = "" if share is None else f"; engine layers: {share:.1f}% of the time of their calls"
            lines.append(f"times with {self.threads} thread{'s'[: self.threads > 1]}{whole}")
        for path, overhead in self.networks.items():
            cost = "" if overhead is None else f", {overhead:.0f} us of a call beside the kernels"
            lines.append(f"{path or 'the network'}: one plan in inference{cost}")
        for path, reason in self.divided.items():
            lines.append(f"{path or 'the network'}: part by part, since {reason}")
        return "\n".join(lines)


def explain(model: nn.Module, input: Tensor | None = None) -> Explanation:
    """Say for each module that could run on our kernels, or each layer of an engine, what runs it and why.

    Args:
        model: an accelerated model, an engine, or a model with engines inside. It is left as it is.
        input: an input of the model; with it the rows have multiply-adds and times, and the reasons take it into
            account. The rows say what runs in inference; with gradients the classifier of an accelerated model is
            torch's.

    Raises:
        TypeError: if ``model`` is no nn.Module, or ``input`` no tensor and ``model`` no module of a user's own.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"explain: model must be an nn.Module, got {type(model).__name__}")
    ours = isinstance(model, (Fused, FusedNet, FusedStem, Engine))
    if ours and not (input is None or isinstance(input, Tensor)):
        raise TypeError(f"explain: input must be a Tensor, got {type(input).__name__}")
    if ours and input is not None and not (isinstance(model, Engine) or input.is_floating_point()):
        raise TypeError(f"explain: input must be float32, got {input.dtype}; only an engine takes uint8")
    swaps, _ = swaps_for(model)
    inputs = _inputs(model, input)
    networks, divided = {}, {}
    for path, module in model.named_modules():
        if isinstance(module, FusedNet):
            reason = "it is in training mode" if module.training else environment_reason() or module.whole_reason()
            if reason is None:
                networks[path] = _measured(module, inputs.get(path))[1]
            else:
                divided[path] = reason
    return Explanation(list(_rows(model, "", swaps, inputs)), networks, divided, torch.get_num_threads())


def _rows(module: nn.Module, path: str, swaps: dict[type, type[Fused]], inputs: dict[str, Tensor]) -> Iterator[Row]:
    x = inputs.get(path)
    if isinstance(module, Engine):
        yield from _engine_rows(path, module, x)
        return
    if isinstance(module, Fused):
        yield _module_row(path, type(module).__name__, module, module.fallback_reason(x), x)
        return
    if isinstance(module, FusedStem):
        yield _module_row(f"{path}.conv_stem".lstrip("."), "stem", module, module.fallback_reason(x), x)
    fused = swaps.get(type(module))
    if fused is not None:
        reason = unsupported_reason(module, fused) or "it is not accelerated"
        yield Row(path, type(module).__name__, "torch", None, reason, None)
    for name, child in module._modules.items():
        if child is not None:
            yield from _rows(child, f"{path}.{name}".lstrip("."), swaps, inputs)
    if isinstance(module, FusedEnd):
        yield _end_row(f"{path}.classifier".lstrip("."), module, x)


def _inputs(model: nn.Module, input: Any) -> dict[str, Tensor]:
    """What each fused module and engine gets to see in one pass, by its path."""
    if input is None:
        return {}
    # Running statistics must stay as they are: in training mode a copy in eval mode runs, on the same tensors.
    running = share(model).eval() if any(module.training for module in model.modules()) else model
    seen: dict[str, Tensor] = {}
    handles = []
    for path, module in running.named_modules():
        if isinstance(module, (Fused, FusedNet, FusedStem, Engine)):

            def look(_: nn.Module, args: tuple, keywords: dict, path: str = path) -> None:
                given = [*args, *keywords.values()]
                if given:  # else the call ends in an error of its own
                    seen[path] = given[0]

            handles.append(module.register_forward_pre_hook(look, with_kwargs=True))
    try:
        with torch.no_grad():
            running(input)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _module_row(path: str, kind: str, module: Fused | FusedStem, reason: str | None, x: Tensor | None) -> Row:
    try:
        description = module._reader()
    except Unsupported:
        return Row(path, kind, "torch", None, reason, None)
    macs = None if x is None else _macs(description, x.shape)
    if reason is not None:
        return Row(path, kind, "torch", None, reason, macs)
    milliseconds, overhead = (None, None) if isinstance(module, FusedStem) else _measured(module, x)
    return Row(path, kind, _kernel_name(description), _library.instruction_set(), None, macs, milliseconds, overhead)


@torch.no_grad()
def _measured(module: nn.Module, x: Tensor | None) -> tuple[float | None, float | None]:
    """Milliseconds of a call, and microseconds of it outside of the kernel: medians of many, on a copy of the tree."""
    if x is None or x.dtype is not torch.float32 or environment_reason() is not None:
        return None, None
    module = share(module).eval()
    last_run = _library.extension().last_run
    for _ in range(3):  # packs the weights, of a network the second time
        module.forward(x)  # past its hooks, which are not ours to call
    totals, outside = [], []
    for _ in range(CALLS):
        runs, _ = last_run()
        start = time.perf_counter()
        module.forward(x)
        total = time.perf_counter() - start
        if last_run()[0] == runs:
            return None, None  # a lone depthwise convolution or squeeze-excite: no plan
        totals.append(total)
        outside.append(total - last_run()[1])
    return statistics.median(totals) * 1e3, statistics.median(outside) * 1e6


def _end_row(path: str, module: FusedEnd, x: Tensor | None) -> Row:
    """The pool and the classifier; the convolution before them has a row of its own."""
    reason = module.fallback_reason(x)
    try:
        head = module._reader().head
    except Unsupported:
        return Row(path, "pool, classifier", "torch", None, reason, None)
    macs = None if x is None else x.shape[0] * sum(layer.linear.weight.numel() for layer in head)
    kernel, instruction_set = ("run_plan", _library.instruction_set()) if reason is None else ("torch", None)
    return Row(path, "pool, classifier", kernel, instruction_set, reason, macs)


def _kernel_name(description: Any) -> str:
    if isinstance(description, BlockDescription):
        return "inverted_residual"
    if isinstance(description, SqueezeExciteLayer):
        return "squeeze_excite"
    return f"{kind_of_conv(description)}_conv"


def _macs(description: Any, shape: torch.Size) -> int:
    if isinstance(description, SqueezeExciteLayer):
        return shape[0] * (description.fc1.weight.numel() + description.fc2.weight.numel())
    if isinstance(description, BlockDescription) or kind_of_conv(description) != "depthwise":
        return measure(shape, [description.stage()])[1]
    out_h, out_w = convolved_size(shape[2:], description.conv.kernel_size, description.window())
    return shape[0] * description.weights() * out_h * out_w


def _engine_rows(path: str, engine: Engine, x: Tensor | None) -> list[Row]:
    on_gpu = engine.plan.is_cuda
    compiled = gpu.missing_reason() is None if on_gpu else _library.EXTENSION and _library.backend() == "auto"
    instruction_set = _library.instruction_set() if compiled and not on_gpu else None
    kernel = "run_plan" if compiled else "reference"
    reason = None if compiled else environment_reason(engine.plan.device.type)
    layers = layers_of(engine.plan, None if x is None else x.shape)
    variants = gpu.variants(engine.plan, engine.dtype, x.shape) if on_gpu and compiled and x is not None else None
    rows = [
        Row(f"{path}.{i}".lstrip("."), layer.kind, kernel, variant, reason, layer.macs, bytes=layer.bytes)
        for i, (layer, variant) in enumerate(zip(layers, variants or [instruction_set] * len(layers), strict=True))
    ]
    rows = _timed(rows, layers, engine, x) if instruction_set and x is not None and x.numel() > 0 else rows
    for name, module in engine.rest.named_modules():
        if name or not isinstance(module, nn.Identity):
            label = f"{path}.rest{'.' if name else ''}{name}".lstrip(".")
            rows.append(Row(label, type(module).__name__, "torch", None, "it follows the plan and stays torch's", None))
    return rows


def _timed(rows: list[Row], layers: list[LayerWork], engine: Engine, x: Tensor) -> list[Row]:
    """The rows of an engine with what its layers take, and of a whole call of its plan."""
    times = time_layers(lambda image: RUN_PLAN(image, engine.plan, engine.geometry), x)
    threads = torch.get_num_threads()
    peak, bandwidth = _library.extension().fma_peak(0.2) * threads, memory_bandwidth()
    pixels, channels = _library.extension().tile()
    timed = []
    for row, layer, seconds in zip(rows, layers, times.layers, strict=True):
        assert layer.macs is not None
        if seconds > 0 and layer.macs > 0:
            gmacs = layer.macs / seconds * 1e-9
            row = replace(
                row,
                tile=f"{pixels}x{channels}",
                milliseconds=seconds * 1e3,
                gmacs=gmacs,
                percent_of_peak=100 * gmacs / peak,
                bound=bound_of(layer, seconds, peak * 1e9, bandwidth),
                percent_of_call=100 * seconds / times.call,
            )
        timed.append(row)
    return timed
