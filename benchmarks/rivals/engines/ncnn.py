"""ncnn, converted by pnnx, in float32. Its maps have no batch dimension: a batch is a loop over images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rivals import cases
from benchmarks.rivals.engine import Engine, Export, Run


def export(folder: Path) -> None:
    """For one image, since that is what a pass takes."""
    import pnnx

    os.chdir(folder)  # pnnx writes beside the file that it is given, and its own files into the working directory
    pnnx.export(cases.network(folder), "network.pt", (cases.image_tensor(folder)[:1],), fp16=False)


def load(folder: Path, threads: int) -> Run:
    """One pass an image."""
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = False
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = net.opt.use_bf16_storage = False
    net.load_param(str(folder / "network.ncnn.param"))
    net.load_model(str(folder / "network.ncnn.bin"))
    batch = [ncnn.Mat(image).clone() for image in cases.images(folder)]

    def run() -> Any:
        rows = []
        for image in batch:
            extractor = net.create_extractor()
            extractor.input("in0", image)
            rows.append(np.array(extractor.extract("out0")[1]))
        return np.stack(rows)

    return run


_EXPORT = Export("ncnn", "network.ncnn.bin", "ncnn", export)
ENGINES = (Engine("ncnn", "ncnn", load, "ncnn", (_EXPORT,), ("ncnn", "pnnx"), "a batch is a loop over its images"),)
