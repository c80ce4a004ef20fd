"""Kernel selection beside loops: codewords that never repeat, nearest by the weights themselves."""

import itertools
import math

import pytest
import torch

from mixwell.precision.training.binary import Binary
from mixwell.precision.training.binary import Config as BinaryConfig
from mixwell.precision.training.kernel_selection import (
    Config,
    KernelSelection,
    assigned,
    bits_per_weight,
    nearest,
    pattern_numbers,
    patterns,
    sinkhorn,
)
from tests.contracts._tools import fresh


def built(**options):
    config = Config(**{"length": 3, "words": 4} | options)
    return KernelSelection((2, 6), config, fresh(1))


def test_patterns_are_all_sign_patterns_and_know_their_numbers():
    book = patterns(3)
    assert {tuple(row) for row in book.tolist()} == set(itertools.product((-1.0, 1.0), repeat=3))
    assert pattern_numbers(book * 0.3).tolist() == list(range(8))
    assert patterns(9).shape == (512, 9)


def test_sinkhorn_against_a_loop_and_the_best_permutation_against_all():
    logits = torch.randn(4, 4, generator=fresh(2))
    table = [[math.exp(value) for value in row] for row in logits.tolist()]
    for _ in range(6):
        table = [[value / sum(row) for value in row] for row in table]
        sums = [sum(column) for column in zip(*table)]
        table = [[value / total for value, total in zip(row, sums)] for row in table]
    soft = sinkhorn(logits, 6)
    torch.testing.assert_close(soft, torch.tensor(table), rtol=1e-4, atol=1e-6)
    best = max(itertools.permutations(range(4)), key=lambda rows: sum(table[i][j] for j, i in enumerate(rows)))
    assert assigned(soft).tolist() == list(best)


def test_the_nearest_word_is_that_of_the_weights_and_not_of_their_signs():
    words = torch.tensor([[1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]])
    piece = torch.tensor([0.1, 0.1, 0.9])  # two signs agree with the first word, the weight with the second
    assert nearest(piece, words) == 1
    distances = [(piece - word).square().sum().item() for word in words]
    assert distances[1] < distances[0]


def test_codewords_never_repeat_and_every_piece_is_one():
    module = built(every=1)
    weight = torch.randn(2, 6, generator=fresh(3))
    for _ in range(5):
        words = module.words()
        assert len({tuple(row) for row in words.tolist()}) == 4
    binary = module.eval().binary(weight)
    known = {tuple(row) for row in module.words().tolist()}
    assert {tuple(piece.tolist()) for piece in binary.view(-1, 3)} <= known


def test_all_words_are_a_plain_binary_product():
    module, weight = built(words=8), torch.randn(2, 6, generator=fresh(4))
    x = torch.randn(5, 6, generator=fresh(5))
    plain = Binary((2, 6), BinaryConfig(operator="dorefa"), fresh())
    torch.testing.assert_close(module(x, weight), plain(x, weight))


def test_gradients_of_weights_and_preferences():
    module, weight = built(tau=0.5).eval(), torch.randn(2, 6, generator=fresh(6)).requires_grad_()
    dy = torch.randn(2, 6, generator=fresh(7))
    dw, dX = torch.autograd.grad(module.binary(weight), (weight, module.preference), dy)
    assert torch.equal(dw, dy * (weight.abs() <= 1))
    X = module.preference.detach().double().requires_grad_()
    soft = sinkhorn(X / 0.5, 10)
    words = module.words().detach()
    chosen = nearest(weight.view(2, 2, 3), words)
    pulls, total = dy.view(2, 2, 3), 0.0
    for i, j in itertools.product((0, 1), (0, 1)):
        blend = soft[:, chosen[i, j]] @ patterns(3).double()
        total = total + (blend * pulls[i, j]).sum()
    (expected,) = torch.autograd.grad(total, X)
    torch.testing.assert_close(dX, expected.float(), rtol=1e-3, atol=1e-6)


def test_a_start_from_a_trained_weight_takes_its_most_frequent_patterns():
    module = built(words=2).eval()
    weight = torch.tensor([[1.0, 1, -1, 1, 1, -1], [-1.0, 1, 1, 1, 1, -1]])
    module.start(weight)
    assert module.words().tolist() == [[1, 1, -1], [-1, 1, 1]]


def test_the_assignment_waits_its_steps():
    module = built(every=3)
    module.words()
    first = module.rows.clone()
    with torch.no_grad():
        module.preference.copy_(-5 * module.preference)
    module.words(), module.words()
    assert torch.equal(module.rows, first)
    module.eval().words()  # a look in between moves nothing
    module.train()
    assert torch.equal(module.rows, first)
    module.words()
    assert not torch.equal(module.rows, first)


def test_bits_are_an_index_a_piece_and_the_words():
    assert bits_per_weight(Config(), 9 * 1000) == 5 / 9 + 9 * 32 / 9000


def test_refusals():
    with pytest.raises(ValueError, match="words is 9; 3 weights have 8 patterns"):
        Config(length=3, words=9)
    with pytest.raises(ValueError, match="length is 11; expected at most 10"):
        Config(length=11)
    with pytest.raises(ValueError, match=r"rows of 6 weights; expected a multiple of length, 4"):
        KernelSelection((2, 6), Config(length=4, words=2), fresh())
    for name, value in (("rounds", 0), ("every", 0), ("tau", 0.0)):
        with pytest.raises(ValueError, match=name):
            Config(**{name: value})
