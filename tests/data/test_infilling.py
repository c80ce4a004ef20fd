"""The layout by hand, what counts in the loss, the way back, refusals."""

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.data import infilling
from mixwell.data.infilling import Config

SIGNS = {"mask": 100, "eos": 97, "sep": 98, "eom": 99}


def test_the_layout_and_what_counts():
    tokens = torch.arange(8)
    spans = torch.tensor([[1, 3], [3, 4]])
    found, counted = infilling.infilling(tokens, spans, Config(**SIGNS, loss="spans"))
    assert found.tolist() == [0, 100, 101, 4, 5, 6, 7, 97, 98, 100, 1, 2, 99, 98, 101, 3, 99]
    assert found[counted].tolist() == [1, 2, 99, 3, 99]
    _, every = infilling.infilling(tokens, spans, Config(**SIGNS, loss="all"))
    assert every.all() and len(every) == len(found) == 8 + 4 * 2 + 1


def test_the_document_comes_back(generator):
    tokens = torch.randint(50, (30,), generator=generator)
    for spans in ([[0, 30]], [[0, 1], [29, 30]], [[5, 9], [9, 11], [20, 28]], []):
        given = torch.tensor(spans, dtype=torch.int64).reshape(-1, 2)
        found, _ = infilling.infilling(tokens, given, Config(**SIGNS))
        assert torch.equal(infilling.restored(found, Config(**SIGNS), len(spans)), tokens)


def test_refusals():
    for spans in ([[2, 2]], [[3, 5], [4, 6]], [[5, 9]], [[-1, 2]]):
        with pytest.raises(MixwellError, match="expected spans in order"):
            infilling.infilling(torch.arange(8), torch.tensor(spans), Config(**SIGNS))
    with pytest.raises(ValueError, match="expected one of all, spans"):
        Config(**SIGNS, loss="some")
    with pytest.raises(ValueError, match="four different ids"):
        Config(mask=1, eos=1, sep=2, eom=3)
