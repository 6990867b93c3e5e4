"""Random numbers that depend on where in the training they are drawn, and on nothing that came before.

Every image and every iteration has a seed of its own, from the run's seed, the epoch and its position. So there is no
state of a generator to keep, the number of workers changes nothing, and a run that goes on draws what it would have
drawn.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_of(*place: int) -> int:
    """64 well-mixed bits for a place, such as (seed, epoch, position): NumPy's SeedSequence."""
    # SeedSequence fills up with zeros: without its length a place would equal the one that a 0 follows.
    return int(np.random.SeedSequence((len(place), *place)).generate_state(1, np.uint64)[0])


def seed_generators(seed: int) -> None:
    """Seed torch's generators of all devices, NumPy's and Python's."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, the generators on the CPU begin at a seed; afterwards they are as they were."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
