"""The small model of the family's contract, and where what was kept came from."""

import pytest
import torch

from mixwell.core.rng import generator
from tests.contracts._keeping import small


@pytest.fixture(scope="session")
def model():
    return small()


@pytest.fixture(scope="session")
def text():
    return torch.randint(40, (2, 30), generator=generator(1))


def places_of(kept, whole):
    """Which positions of the whole were kept, of each head of the first row."""
    found = []
    for own, every in zip(kept.keys[0], whole.keys[0]):
        apart = (own[:, None] - every).abs().sum(-1)
        assert (apart.min(1).values == 0).all()
        found.append(apart.argmin(1).tolist())
    return found
