"""Reading checkpoints: nothing in a file is executed."""

from mnv3_fast.checkpoints.files import read_checkpoint
from mnv3_fast.checkpoints.keys import torchvision_state

__all__ = ["read_checkpoint", "torchvision_state"]
