"""The table of engines, ours first. Nothing of an engine is imported before it is exported or loaded."""

from __future__ import annotations

from benchmarks.rivals.engine import Engine
from benchmarks.rivals.engines import executorch, litert, mnn, ncnn, onnxruntime, openvino, ours, torch_compile

ENGINES: dict[str, Engine] = {
    engine.key: engine
    for module in (ours, openvino, litert, onnxruntime, executorch, ncnn, mnn, torch_compile)
    for engine in module.ENGINES
}
FROZEN, ACCELERATED = (engine.key for engine in ours.ENGINES)
