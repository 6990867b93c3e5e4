"""Small sets of images on disk, crops of the photos that scikit-image ships, and what torchvision says of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

PHOTOS = ("astronaut", "cat", "coffee", "rocket", "chelsea")


def write_crops(folder: Path, counts: dict[str, int], seed: int = 0, quality: int = 90) -> None:
    """``folder/CLASS/NUMBER.JPEG``: for each class so many crops of different sizes, the same for the same seed."""
    random = np.random.default_rng(seed)
    for place, (name, count) in enumerate(sorted(counts.items())):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            photo = getattr(data, PHOTOS[(place + number) % len(PHOTOS)])()
            height, width = random.integers(90, 260, 2)
            top, left = (
                random.integers(0, limit - size + 1)
                for limit, size in zip(photo.shape[:2], (height, width), strict=True)
            )
            crop = photo[top : top + height, left : left + width]
            Image.fromarray(crop).save(folder / name / f"{number:03}.JPEG", quality=quality)


def write_labels(root: Path, split: str) -> None:
    """Class folders below ``root/split`` made flat, with their labels in ``root/meta/split.txt``."""
    lines = []
    for label, folder in enumerate(sorted((root / split).iterdir())):
        for file in sorted(folder.iterdir()):
            name = f"{folder.name}_{file.name}"
            file.rename(root / split / name)
            lines.append(f"{name} {label}\n")
        folder.rmdir()
    (root / "meta").mkdir(exist_ok=True)
    (root / "meta" / f"{split}.txt").write_text("".join(lines))
