"""Hard batches against a loop; all of them is plain training; ties keep their order."""

import numpy as np
import pytest

from mixwell.data.pool import Pool
from mixwell.data.selection.hard_batches import Config, hard_batches


def chosen(losses, share):
    pool = Pool.measured(np.zeros((len(losses), 1)), np.array(losses))
    return list(hard_batches(pool, Config(share=share), np.random.default_rng(0)).indices_S)


def test_agrees_with_a_loop_and_keeps_the_order_of_ties():
    rng = np.random.default_rng(1)
    losses = [float(x) for x in rng.integers(0, 6, 23)]
    for share in (0.1, 0.5, 1.0):
        left, expected = list(range(23)), []
        while len(expected) < share * 23:
            hardest = max(left, key=lambda place: (losses[place], -place))
            left.remove(hardest)
            expected.append(hardest)
        assert chosen(losses, share) == expected


def test_shares_are_rounded_up_and_whole_ones_are_exact():
    assert len(chosen([1.0] * 10, 0.3)) == 3 and len(chosen([1.0] * 10, 0.31)) == 4
    assert chosen([1.0, 3.0, 2.0], 1.0) == [1, 2, 0]
    for share in (0, 1.1):
        with pytest.raises(ValueError, match=r"share is .*; expected a number above 0 and at most 1"):
            Config(share=share)
