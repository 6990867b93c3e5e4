"""Reading checkpoints: nothing in a file is executed."""

import os
from typing import Any

from torchvision.models.mobilenetv3 import MobileNetV3

from mnv3_fast.checkpoints.files import classes_of, read_checkpoint, state_of
from mnv3_fast.checkpoints.fitting import torchvision_state

__all__ = ["classes_of", "load_into", "read_checkpoint", "torchvision_state"]


def load_into(model: MobileNetV3, source: str | os.PathLike[str]) -> dict[str, Any]:
    """Load a checkpoint of any known names into a torchvision network; gives the file's dictionary back.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_checkpoint` and :func:`torchvision_state`.
    """
    checkpoint = read_checkpoint(source)
    model.load_state_dict(torchvision_state(state_of(checkpoint), model))
    return checkpoint
