"""A small labelled set: each class is one of scikit-image's photos, each image a crop of it.

Images to train with come from the upper two thirds of a photo, those to validate with from the lowest third, so that no
pixel is in both.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "retina", "hubble_deep_field")


def write_photos(root: Path, train: int, val: int, classes: int = len(PHOTOS), size: int = 80, seed: int = 0) -> Path:
    """``root/{train,val}/PHOTO/N.jpg``, so many of each class; square crops of about ``size`` pixels."""
    random = np.random.default_rng(seed)
    for name in PHOTOS[:classes]:
        photo = getattr(data, name)()
        border = photo.shape[0] * 2 // 3
        for split, part, count in (("train", photo[:border], train), ("val", photo[border:], val)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                side = min(int(random.integers(size * 3 // 4, size * 5 // 4)), *part.shape[:2])
                top, left = (int(random.integers(0, limit - side + 1)) for limit in part.shape[:2])
                Image.fromarray(part[top : top + side, left : left + side]).save(folder / f"{number}.jpg", quality=92)
    return root
