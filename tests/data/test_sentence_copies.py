"""Which copies stay, against a loop; both ends of the power; refusals."""

import math

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.data.sentence_copies import Config, sentence_copies


def test_agrees_with_a_loop(generator):
    ids = torch.randint(-5, 5, (300,), generator=generator)
    for power in (0.5, 0.3):
        seen, expected = {}, []
        for own in ids.tolist():
            seen[own] = seen.get(own, 0) + 1
            expected.append(seen[own] <= math.floor(ids.tolist().count(own) ** power + 1e-9))
        assert sentence_copies(ids, Config(power=power)).tolist() == expected


def test_squares_keep_their_roots_and_the_ends_keep_one_or_all():
    ids = torch.cat([torch.full((count,), count) for count in (1, 4, 9, 64, 99)])
    kept = ids[sentence_copies(ids, Config())]
    assert [int((kept == count).sum()) for count in (1, 4, 9, 64, 99)] == [1, 2, 3, 8, 9]
    assert int(sentence_copies(ids, Config(power=0.0)).sum()) == 5
    assert sentence_copies(ids, Config(power=1.0)).all()
    assert len(sentence_copies(torch.empty(0, dtype=torch.int64), Config())) == 0


def test_refusals():
    with pytest.raises(MixwellError, match=r"torch.float32 of shape \(3,\); expected whole numbers"):
        sentence_copies(torch.ones(3), Config())
    with pytest.raises(ValueError, match="power is 2; expected 0 to 1"):
        Config(power=2)
