"""From an image file to a network's input: decode, resize, crop. Normalising is left to the network's first kernel."""

from __future__ import annotations

import os
import stat
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from mnv3_fast.models.variants import Preprocessing

LONGEST = 65536
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "F")
"""Modes of more than eight bits a value; PIL would cut their values off at 255."""


class BadImage(ValueError):
    """A file that is no image, or a damaged one; the message says what is wrong with it."""


def open_image(path: str | os.PathLike[str], plain: bool = False) -> Image.Image:
    """Decode a file to RGB, upright as its EXIF data says; 16-bit images are scaled to 8 bits.

    Args:
        path: of the file.
        plain: as torchvision's ImageFolder and mmpretrain read data sets, neither turned nor scaled: published
            accuracies are of such pixels.

    Raises:
        BadImage: if the file is missing, no image, damaged, or so large that it may be a decompression bomb.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise BadImage(f"{path}: not a regular file")
        with Image.open(path) as image:
            image.load()
            return image.convert("RGB") if plain else to_rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        raise BadImage(f"{path}: {error}") from error
    except UnidentifiedImageError as error:
        raise BadImage(f"{path}: no image that PIL can read") from error
    except FileNotFoundError as error:
        raise BadImage(f"{path}: there is no such file") from error
    except BadImage:
        raise
    except Exception as error:  # PIL has decoders for dozens of formats, and each raises what it likes
        raise BadImage(f"{path}: damaged or unreadable: {error or type(error).__name__}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB with 8 bits a channel; an alpha channel is dropped.

    ``info["mode_before"]`` of the result tells the mode that it had.
    """
    mode = image.mode
    if mode in DEEP_MODES:
        values = np.asarray(image, dtype=np.float64)
        if not np.isfinite(values).all():
            raise BadImage("it has values that are not finite")
        top = 65535.0 if mode.startswith("I") else max(float(values.max(initial=0)), 1e-12)
        image = Image.fromarray(np.clip(values * (255.0 / top), 0, 255).round().astype(np.uint8))
    result = image if image.mode == "RGB" else image.convert("RGB")
    result.info["mode_before"] = mode
    return result


def prepare(image: Image.Image, how: Preprocessing) -> Tensor:
    """An RGB image as [3, crop, crop], uint8: the short side resized, the centre cropped.

    Raises:
        BadImage: if it is empty, or so thin that its long side would be resized to more than ``LONGEST`` pixels.
    """
    short, long = min(image.size), max(image.size)
    if short == 0 or long * how.resize > LONGEST * short:
        raise BadImage(f"{image.size[0]} x {image.size[1]} pixels: too thin to be resized to {how.resize}")
    mode = InterpolationMode(how.interpolation)
    image = transforms.resize(image, [how.resize], interpolation=mode)
    image = transforms.center_crop(image, [how.crop, how.crop])
    return transforms.pil_to_tensor(image)


def image_of(source: Any, how: Preprocessing) -> Tensor:
    """A path, a PIL image or an array (H, W, 3 in BGR order, or H, W; uint8, as OpenCV reads) as :func:`prepare`.

    Raises:
        BadImage: for a file that cannot be read.
        TypeError, ValueError: for anything else, or an array of another shape or dtype.
    """
    if isinstance(source, (str, os.PathLike)):
        try:
            return prepare(open_image(source), how)
        except BadImage as error:
            named = str(error) if str(error).startswith(f"{source}: ") else f"{source}: {error}"
            raise BadImage(named) from error
    if isinstance(source, Image.Image):
        try:
            source.load()  # PIL reads a file when its pixels are asked for
        except (OSError, SyntaxError) as error:
            raise BadImage(f"the PIL image is damaged: {error}") from error
        return prepare(to_rgb(source), how)
    if not isinstance(source, np.ndarray):
        raise TypeError(f"image must be a path, a PIL image or a NumPy array, got {type(source).__name__}")
    if source.dtype != np.uint8 or source.ndim not in (2, 3) or (source.ndim == 3 and source.shape[2] != 3):
        shape = list(source.shape)
        raise ValueError(f"image must be a uint8 array [H, W, 3] in BGR order or [H, W], got {source.dtype} {shape}")
    if source.size == 0:
        raise ValueError(f"image must have at least one pixel, got {list(source.shape)}")
    array = source if source.ndim == 2 else source[:, :, ::-1]
    return prepare(to_rgb(Image.fromarray(np.ascontiguousarray(array))), how)


def scale_and_shift(how: Preprocessing) -> tuple[Tensor, Tensor]:
    """What turns values 0 to 255 into the network's: x * scale + shift, each [3]; rounded once from float64."""
    mean, std = torch.tensor(how.mean, dtype=torch.float64), torch.tensor(how.std, dtype=torch.float64)
    return (1 / std).float(), (-mean / std).float()
