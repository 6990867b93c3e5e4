"""``python -m tests.gpu.emulate OP --n --c --h --w ... --dtype``: one op on the emulator, judged, as JSON.

Exit status 0 if all is well; 1 for an error above tolerance, a byte that was not written or written twice, a race or an
access out of bounds; 2 for arguments that make no sense and for a fault that cannot be planted.

``--backend cuda`` runs the op's CUDA kernels in the simulator (``tests/gpu/simulator``) instead of what Triton compiled.
A whole block (``inverted_residual``) is its launches in a row, with squeeze-excite where ``--squeeze`` is given.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from mnv3_fast.ops.elements import ACTIVATIONS
from tests.gpu.compile import WrongTriton, require_triton


def _size(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m tests.gpu.emulate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("op", help=", ".join(TAKES))
    for name, words in (("n", "images"), ("c", "input channels"), ("h", "input rows"), ("w", "input columns")):
        parser.add_argument(f"--{name}", type=_size, required=True, help=words)
    parser.add_argument("--out", type=_size, help="output channels")
    parser.add_argument("--hidden", type=_size, help="expanded channels")
    parser.add_argument("--squeeze", type=_size, help="squeezed channels")
    parser.add_argument("--kernel", type=_size, default=3)
    parser.add_argument("--stride", type=_size, default=1)
    parser.add_argument("--padding", type=int, help="unless given, so much that stride 1 keeps the size")
    parser.add_argument("--dilation", type=_size, default=1)
    parser.add_argument("--activation", choices=list(ACTIVATIONS), default="none")
    for name, words in (
        ("gate", "multiply the input"),
        ("residual", "add a map"),
        ("mean", "channel means too"),
        ("bytes", "a uint8 image"),
    ):
        parser.add_argument(f"--{name}", action="store_true", help=words)
    parser.add_argument(
        "--layout", choices=["channels_last", "contiguous"], default="channels_last", help="of an image"
    )
    parser.add_argument("--dtype", choices=["fp32", "fp16", "bf16"], required=True)
    parser.add_argument("--backend", choices=["triton", "cuda"], default="triton")
    parser.add_argument(
        "--plant", choices=["barrier", "bound", "mma"], help="damage the kernel first: exit status 1 is then right"
    )
    return parser


TAKES = {
    "depthwise_conv": {"kernel", "stride", "padding", "dilation", "activation", "mean"},
    "pointwise_conv": {"out", "activation", "gate", "residual"},
    "squeeze_excite_gate": {"squeeze", "activation"},
    "squeeze_excite": {"squeeze", "activation"},
    "stem_conv": {"out", "kernel", "stride", "padding", "dilation", "activation", "bytes", "layout"},
    "inverted_residual": {"out", "hidden", "squeeze", "kernel", "stride", "padding", "activation", "residual"},
}
"""The options that mean something to an op; others are refused rather than ignored."""


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.op not in TAKES:
        parser.error(f"op must be one of {', '.join(TAKES)}, got {options.op!r}")
    for name in sorted(set.union(*TAKES.values()) - TAKES[options.op]):
        if getattr(options, name) != parser.get_default(name):
            parser.error(f"{options.op} takes no --{name}")
    if options.padding is not None and options.padding < 0:
        parser.error(f"--padding must be at least 0, got {options.padding}")
    if options.op in ("depthwise_conv", "inverted_residual") and options.kernel not in (1, 3, 5, 7):
        parser.error(f"--kernel must be 1, 3, 5 or 7, got {options.kernel}")
    if options.op == "inverted_residual" and options.hidden is None:
        parser.error("inverted_residual needs --hidden")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    _check(parser, options)
    try:
        require_triton()
    except WrongTriton as error:
        parser.error(str(error))
    from tests.gpu import verdict as emulated
    from tests.gpu.plant import NothingToDamage
    from tests.gpu.requests import Request
    from tests.gpu.simulator import verdict as simulated

    fault = options.plant
    request = Request(**{name: value for name, value in vars(options).items() if name not in ("plant", "backend")})
    if "kernel" in TAKES[options.op] and min(request.out_size) < 1:
        parser.error(f"the window does not fit into a map of {request.h} x {request.w}")
    if options.op == "inverted_residual" and request.residual and not request.keeps_shape():
        out = f"{request.outputs} x {request.out_size[0]} x {request.out_size[1]}"
        parser.error(f"--residual needs an output like the input, {request.c} x {request.h} x {request.w}, got {out}")
    if options.backend == "cuda" and (reason := simulated.missing_reason(request)):
        parser.error(f"--backend cuda: {reason}")
    backend = simulated if options.backend == "cuda" else emulated
    try:
        verdict = backend.plant_and_judge(request, fault) if fault else backend.judge(request)
    except NothingToDamage as error:
        parser.error(f"--plant {fault}: {error}")
    print(json.dumps(verdict.as_json(), indent=2))
    return 1 if verdict.faults else 0


if __name__ == "__main__":
    sys.exit(main())
