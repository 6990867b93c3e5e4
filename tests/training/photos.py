"""A small labelled set: each class is one of scikit-image's photos, each image a crop of it.

A photo is cut into tiles; crops to validate with come from every fourth of them, those to train with from the others, so
that no pixel is in both.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "retina", "hubble_deep_field")
TILE = 80


def write_photos(root: Path, train: int, val: int, classes: int = len(PHOTOS), seed: int = 0) -> Path:
    """``root/{train,val}/PHOTO/N.jpg``, so many of each class; square crops of 60 to 80 pixels."""
    random = np.random.default_rng(seed)
    for name in PHOTOS[:classes]:
        photo = getattr(data, name)()
        corners = [
            (top, left)
            for top in range(0, photo.shape[0] - TILE + 1, TILE)
            for left in range(0, photo.shape[1] - TILE + 1, TILE)
        ]
        for split, count in (("train", train), ("val", val)):
            folder = root / split / name
            folder.mkdir(parents=True)
            tiles = [corner for place, corner in enumerate(corners) if (place % 4 == 0) == (split == "val")]
            for number in range(count):
                side = int(random.integers(TILE * 3 // 4, TILE + 1))
                top, left = tiles[random.integers(len(tiles))] + random.integers(0, TILE - side + 1, 2)
                Image.fromarray(photo[top : top + side, left : left + side]).save(folder / f"{number}.jpg", quality=92)
    return root
