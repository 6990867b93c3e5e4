"""Images a second from files: ``predict`` beside loops around torchvision's model over the same files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from PIL import Image

from mnv3_fast.engine.freeze import freeze
from mnv3_fast.models.preprocessing import scale_and_shift
from mnv3_fast.models.variants import Preprocessing
from mnv3_fast.prediction import Classifier, predict_files
from mnv3_fast.testing.layers import network_macs
from mnv3_fast.testing.parity import parity_model
from mnv3_fast.testing.tolerance import NET_LIMIT

LOOP, LOADER, OURS = "torchvision loop", "torchvision, DataLoader of 2 workers", "mnv3_fast predict"
COUNT, BATCH = 64, 8


class Files(torch.utils.data.Dataset):
    """Files through torchvision's transforms."""

    def __init__(self, paths: list[str], transform: Callable[[Any], Any]) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        return self.transform(Image.open(self.paths[index]).convert("RGB"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Photos of 500 x 375 pixels, as ImageNet's are, cut out of those that scikit-image brings."""
    from skimage import data

    folder: Path = tmp_path_factory.mktemp("photos")
    sources = [Image.fromarray(getattr(data, name)()) for name in ("astronaut", "coffee", "rocket")]
    paths = []
    for i in range(COUNT):
        photo = sources[i % 3]
        left = 3 * (i % 11)
        photo.crop((left, 0, photo.width, photo.height)).resize((500, 375)).save(folder / f"{i:03}.jpg", quality=90)
        paths.append(str(folder / f"{i:03}.jpg"))
    return paths


@pytest.mark.parametrize("net", ["large", "small"])
@pytest.mark.parametrize("rival", [LOOP, LOADER, OURS])
def bench_images_from_files(compete: Callable[..., None], photos: list[str], net: str, rival: str) -> None:
    """64 photos, batches of 8, two cores."""
    model = parity_model(net).to(memory_format=torch.channels_last)
    transform = torchvision.models.MobileNet_V3_Large_Weights.IMAGENET1K_V1.transforms()
    how = Preprocessing(256, 224, "bilinear")
    scale, shift = scale_and_shift(how)
    classifier = Classifier(freeze(model, scale=scale, shift=shift), how, tuple(str(i) for i in range(1000)))

    def classify(batches: Any) -> list[list[float]]:
        scores = [model(x.contiguous(memory_format=torch.channels_last)).softmax(1).topk(5).values for x in batches]
        return torch.cat(scores).tolist()

    def loop() -> list[list[float]]:
        files = Files(photos, transform)
        return classify(torch.stack([files[j] for j in range(i, i + BATCH)]) for i in range(0, COUNT, BATCH))

    loader = torch.utils.data.DataLoader(Files(photos, transform), BATCH, num_workers=2, persistent_workers=True)

    def ours() -> list[list[float]]:
        return [[guess.score for guess in p.guesses] for p in predict_files(classifier, photos, 5, BATCH, 2)]

    with torch.inference_mode():
        expected = torch.tensor(loop()).log()  # logits but for a constant: what the limit is for

    def check(name: str, scores: Any) -> float:
        error = float((torch.tensor(scores).log() - expected).norm() / expected.norm())
        assert error <= NET_LIMIT, f"{name} is wrong: {error:.3g}"
        return error

    def make() -> dict[str, Callable[[], Any]]:
        return {LOOP: loop, LOADER: lambda: classify(loader), OURS: ours}

    compete(f"files/{net}", rival, make, check, OURS, COUNT * network_macs(net), 0, threads=2)
