"""Which kernel computes a layer on a GPU: Triton's or the CUDA one. Asked when the launches of a pass are made.

In this order: what a test or ``tune`` forces; Triton's where there is no CUDA kernel or it may not run; what was
measured on this device; what is better by counting.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from mnv3_fast.gpu import counts, cuda_library, tuned
from mnv3_fast.gpu.counts import Properties
from mnv3_fast.ops.elements import resolve_window

if TYPE_CHECKING:
    from mnv3_fast.gpu.packing import Block

VARIANTS = ("triton", "cuda")
OPS = ("depthwise_conv", "inverted_residual")
"""Those that have a CUDA kernel. A block by "triton" is a launch a layer, and asks again for its depthwise layer."""


@dataclass(frozen=True)
class Question:
    """What a choice follows from.

    Attributes:
        op: of :data:`OPS`.
        dtype: of activations and weights.
        shape: of the input, N, C, H, W.
        kernel: h, w of the depthwise convolution.
        window: of it, as numbers: stride h, w, padding left, right, top, bottom, dilation h, w.
        activation: of it: 0 none, 1 relu, 2 hardswish, 3 relu6.
        sums: whether a depthwise layer gives the sums of its channels.
        hidden, squeeze: a block's expanded and squeezed channels; 0 without the layer.
        out: a block's output channels.
    """

    op: str
    dtype: torch.dtype
    shape: tuple[int, int, int, int]
    kernel: tuple[int, int]
    window: tuple[int, ...]
    activation: int = 0
    sums: bool = False
    hidden: int = 0
    squeeze: int = 0
    out: int = 0


def block_questions(block: Block, shape: Sequence[int], dtype: torch.dtype) -> tuple[Question, Question]:
    """What the choices for a block and an input of a shape follow from: of the whole, and of its depthwise layer."""
    layer, squeeze = block.depthwise, block.squeeze_excite
    n, c, h, w = shape
    window = tuple(resolve_window((h, w), layer.kernel, layer.window))
    rest = layer.kernel, window, layer.activation
    whole = Question(
        "inverted_residual", dtype, (n, c, h, w), *rest, hidden=layer.channels if block.expand else 0,
        squeeze=squeeze.layers[0].shape[0] if squeeze else 0, out=block.project.channels,
    )  # fmt: skip
    return whole, Question("depthwise_conv", dtype, (n, layer.channels, h, w), *rest, squeeze is not None)


_forced: ContextVar[dict[str, str]] = ContextVar("_forced", default={})  # noqa: B039, never written to
_assumed: ContextVar[Properties | None] = ContextVar("_assumed", default=None)


class NoKernel(ValueError):
    """A CUDA kernel is asked for (:func:`force`) where there is none."""


def choose(question: Question, device: torch.device) -> str:
    """ "triton" or "cuda".

    Args:
        question: about the layer.
        device: that its weights are on.

    Raises:
        NoKernel: where "cuda" is forced (:func:`force`) and there is no kernel for the layer.
    """
    return reason(question, device)[0]


def reason(question: Question, device: torch.device) -> tuple[str, str]:
    """The choice, and why: "forced", "no CUDA kernels: ...", "no kernel for ...", "switched off", "tuned", "counted".

    Raises:
        NoKernel: as :func:`choose`.
    """
    wanted, assumed = forced(question.op), _assumed.get()
    if wanted is None and assumed is None and (missing := unusable_reason(device)) is not None:
        return "triton", f"no CUDA kernels: {missing}"
    unknown = _unknown(question)
    if wanted == "cuda" and unknown:
        raise NoKernel(f"{question.op}: its CUDA kernel is asked for, and there is {unknown}")
    if wanted is not None:
        return wanted, "forced"
    if unknown:
        return "triton", unknown
    if assumed is not None:
        return counts.better(question, assumed), "counted"
    from mnv3_fast.gpu import first_use  # which asks for choices itself when it runs a kernel

    if not first_use.usable(f"{question.op}_cuda", device, question.dtype):
        return "triton", "switched off"
    found = tuned.lookup(question, device)
    if found is not None:
        return found, "tuned"
    return counts.better(question, counts.properties(device)), "counted"


def depthwise_conv(question: Question, device: torch.device) -> ModuleType:
    """What makes the launches of a depthwise layer, ``mnv3_fast.ops.depthwise_conv.cuda_kernel`` or ``triton_kernel``.

    Raises:
        NoKernel: as :func:`choose`.
    """
    if choose(question, device) == "cuda":
        from mnv3_fast.ops.depthwise_conv import cuda_kernel

        return cuda_kernel
    from mnv3_fast.ops.depthwise_conv import triton_kernel  # imports Triton, which choices do without

    return triton_kernel


@contextmanager
def force(**variants: str) -> Iterator[None]:
    """Inside of the ``with`` block the named ops are computed by a variant, in this thread: for tests and ``tune``.

    ``force(depthwise_conv="cuda", inverted_residual="triton")``. A layer that has no CUDA kernel then raises.

    Raises:
        ValueError: for an op or a variant that does not exist.
        RuntimeError: for "cuda" without the library.
    """
    for op, variant in variants.items():
        if op not in OPS or variant not in VARIANTS:
            raise ValueError(f"force: an op of {', '.join(OPS)} must be {' or '.join(VARIANTS)}, got {op}={variant!r}")
    if "cuda" in variants.values() and _assumed.get() is None:
        cuda_library.load()
    token = _forced.set({**_forced.get(), **variants})
    try:
        yield
    finally:
        _forced.reset(token)


def only(kernel: str) -> AbstractContextManager[None]:
    """Inside of the ``with`` block the kernel of an op ("depthwise_conv", "depthwise_conv_cuda") runs, else Triton's.

    Raises:
        RuntimeError: as :func:`force`.
    """
    return force(**{op: "cuda" if kernel == f"{op}_cuda" else "triton" for op in OPS})


@contextmanager
def assume(gpu: Properties) -> Iterator[None]:
    """Inside of the ``with`` block choices are made as by counting on a GPU that is not there, with the library.

    So launches can be made and counted; they cannot be run.
    """
    token = _assumed.set(gpu)
    try:
        yield
    finally:
        _assumed.reset(token)


def forced(op: str) -> str | None:
    """The variant that an op is forced to."""
    return _forced.get().get(op)


def state() -> tuple[object, ...]:
    """What choices follow from besides the question: part of the key of what is kept and holds launches."""
    return tuple(sorted(_forced.get().items())), _assumed.get()


def is_known(question: Question) -> bool:
    """Whether there is a CUDA kernel for a layer, in whatever state the library is."""
    return _unknown(question) is None


def packs(device: torch.device) -> bool:
    """Whether weights on a device are packed for CUDA kernels, too."""
    return _assumed.get() is not None or unusable_reason(device) is None


def unusable_reason(device: torch.device) -> str | None:
    """Why a device has no CUDA kernels; None if it has."""
    if device.type != "cuda":
        return f"the device is {device}"
    missing = cuda_library.unusable_reason()
    if missing is not None:
        return missing
    return cuda_library.unusable_reason(".".join(map(str, torch.cuda.get_device_capability(device))))


def _unknown(question: Question) -> str | None:
    """Why a layer has no CUDA kernel."""
    from mnv3_fast.ops.depthwise_conv import cuda_kernel as depthwise_conv
    from mnv3_fast.ops.inverted_residual import cuda_kernel as inverted_residual

    layer = question.shape, question.kernel, question.window
    if question.op == "depthwise_conv":
        known = depthwise_conv.is_known(*layer)
    else:
        known = inverted_residual.is_known(question.dtype, *layer, question.hidden, question.squeeze, question.out)
    if known:
        return None
    channels = "" if question.op == "depthwise_conv" else f" -> {question.hidden} -> {question.out} channels"
    size, dtype = "x".join(map(str, question.kernel)), str(question.dtype).removeprefix("torch.")
    return f"no kernel for {question.op} {size} in {dtype} of {question.shape}{channels} with window {question.window}"
