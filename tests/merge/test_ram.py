"""Reinforced agent merging: unique changes come over whole, shared ones are averaged, gains follow what is shared."""

import pytest
import torch

from mixwell.merge.naming import method_of
from mixwell.merge.ram import Config, ram


def test_unique_changes_are_whole_and_shared_ones_averaged(generator):
    base = torch.tensor([1.0, 1.0, 1.0, 1.0])
    first = base + torch.tensor([0.5, 0.4, 0.0, 0.001])
    second = base + torch.tensor([0.0, 0.2, 0.0, 0.0])
    found = ram([first, second], base, Config(epsilon=0.01), generator)
    torch.testing.assert_close(found, torch.tensor([1.5, 1.3, 1.0, 1.0]))


def test_gains_follow_what_is_shared(generator):
    base = torch.zeros(5)
    first = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0])
    second = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0])
    found = ram([first, second], base, Config(r=0.3, alpha=1.0), generator)
    unique = 1 + 0.3 * (1 / 3)  # one entry is shared, three are the first model's own
    torch.testing.assert_close(found, torch.tensor([1.0, unique, unique, unique, 0.0]))
    bounded = ram([first, second], base, Config(r=0.3, alpha=0.1), generator)
    torch.testing.assert_close(bounded[1:4], torch.full((3,), 1 + 0.3 * 0.1))


def test_the_published_names():
    assert method_of("ram")[1] == {} and method_of("ramplus_tl")[1] == {"r": 0.1}
    with pytest.raises(ValueError, match="epsilon is -1"):
        Config(epsilon=-1)
