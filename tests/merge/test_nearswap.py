"""Near swap: near numbers are swapped, far ones move by t."""

import pytest
import torch

from mixwell.merge.nearswap import Config, nearswap


def test_near_numbers_are_swapped_and_far_ones_move_by_t(generator):
    base = torch.tensor([0.0, 0.0, 0.0, 1.0])
    other = torch.tensor([0.05, 2.0, -2.0, 1.0])
    found = nearswap([other], base, Config(t=0.1), generator)
    torch.testing.assert_close(found, torch.tensor([0.05, 0.1, -0.1, 1.0]))
    assert torch.equal(nearswap([other], base, Config(t=0.0), generator), base)
    torch.testing.assert_close(nearswap([other], base, Config(t=5.0), generator), other)
    with pytest.raises(ValueError, match="t is -1"):
        Config(t=-1)
