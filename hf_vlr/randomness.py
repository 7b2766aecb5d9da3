"""Randomness as a function of (seed, epoch, index, use), never of how far a generator has run.

Augmentation, text draws, sampling order and dropout all take their seeds from here, so that a run which is resumed
in mid-epoch, split over other process counts or loaded by other worker counts makes the same draws.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


def seed_for(seed: int, epoch: int, index: int, use: str) -> int:
    """A 63-bit seed that depends on all four arguments and on nothing else.

    `use` names what is drawn ("augment", "text", "order", "dropout", ...), so that two draws for the same sample are
    independent. `index` is a sample's position in the epoch, or a step.
    """
    key = f"{seed}/{epoch}/{index}/{use}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1


def numpy_generator(seed: int, epoch: int, index: int, use: str) -> np.random.Generator:
    """A numpy generator seeded by `seed_for`."""
    return np.random.Generator(np.random.PCG64(seed_for(seed, epoch, index, use)))


@contextmanager
def torch_seeded(seed: int, epoch: int, index: int, use: str) -> Iterator[None]:
    """Run a block under torch's CPU generator seeded by `seed_for`, and put the caller's state back afterwards.

    torchvision's transforms draw from that global generator, which is why it is set rather than passed.
    """
    # numpy's part is also for commands that read arrays alone, and torch takes seconds to import
    import torch

    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed_for(seed, epoch, index, use))
    try:
        yield
    finally:
        torch.set_rng_state(state)
