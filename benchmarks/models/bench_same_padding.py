"""TensorFlow's padding beside a symmetric one: the same network frozen, which should take the same time.

timm pads in an operator of its own in front of each convolution with a stride; its two networks run beside ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mnv3_fast.engine.freeze import freeze
from mnv3_fast.testing.layers import network_macs
from mnv3_fast.testing.parity import parity_images, parity_model
from mnv3_fast.testing.tolerance import NET_LIMIT, relative_error

MODELS = {"symmetric": "mobilenetv3_{}_100", "SAME": "tf_mobilenetv3_{}_100"}
RIVALS = [f"{library} {padding}" for library in ("timm,", "frozen,") for padding in MODELS]


@pytest.mark.parametrize("net", ["large", "small"])
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("rival", RIVALS)
def bench_same_padding(compete: Callable[..., None], net: str, batch: int, rival: str) -> None:
    """224 x 224, one thread; a ratio of 1 in the row "frozen, symmetric" says that SAME costs nothing."""
    timm = pytest.importorskip("timm")
    models = {
        padding: parity_model(lambda name=name: timm.create_model(name.format(net))) for padding, name in MODELS.items()
    }
    x = parity_images(batch, 224)
    with torch.no_grad():
        expected = {padding: model(x) for padding, model in models.items()}
    assert relative_error(expected["SAME"], expected["symmetric"]) > 0.01

    def make() -> dict[str, Callable[[], Any]]:
        runs: dict[str, Callable[[], Any]] = {}
        for padding, model in models.items():
            engine = freeze(model)
            runs[f"timm, {padding}"] = lambda model=model: model(x)
            runs[f"frozen, {padding}"] = lambda engine=engine: engine(x)
        return runs

    def check(name: str, output: Any) -> float:
        error = relative_error(output, expected[name.split(", ")[1]])
        assert error <= NET_LIMIT, f"{name} is wrong: {error:.3g}"
        return error

    compete(f"padding/{net}/b{batch}", rival, make, check, "frozen, SAME", batch * network_macs(net), 0)
