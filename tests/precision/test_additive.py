"""AQLM: words by a loop, every step against brute force, error that never grows, k-means as its limit, refusals."""

import itertools

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.lm.model import LanguageModel
from mixwell.precision import integers
from mixwell.precision._statistics import output_error
from mixwell.precision._words import clustered, nearest_words
from mixwell.precision.additive import (
    Additive,
    Config,
    additive,
    bits_per_weight,
    conjugate,
    encode,
    encode_all,
    error_of,
    example,
    promises,
    searched,
    start,
    with_books,
    with_scales,
)
from tests.contracts._conversions import calibration, whole
from tests.contracts._tools import fresh

SMALL = Config(codebooks=2, code_bits=2, piece=4, clustering=5)


@pytest.fixture
def layer(generator):
    weight = torch.randn(6, 16, generator=generator, dtype=torch.float64)
    mixing = torch.randn(16, 16, generator=generator, dtype=torch.float64)
    x = torch.randn(200, 16, generator=generator, dtype=torch.float64) @ mixing
    return weight, x.T @ x / 200


def loop_error(weight, H, books, codes, scale):
    """tr(D H D^T) number by number."""
    rows, width = weight.shape
    d = books.shape[-1]
    total = 0.0
    for o in range(rows):
        change = [scale[o].item() * sum(books[m, codes[o, i // d, m], i % d].item() for m in range(len(books)))
                  - weight[o, i].item() for i in range(width)]
        total += sum(change[a] * H[a, b].item() * change[b] for a in range(width) for b in range(width))
    return total


def test_the_stored_weight_is_the_sum_of_its_words(layer):
    weight, H = layer
    coded = encode(weight, H, SMALL, fresh())
    back = coded.weight().dequantised(torch.float64)
    for o, i in itertools.product(range(6), range(16)):
        words = sum(coded.codebooks[m, int(coded.codes[o, i // 4 * 2 + m]), i % 4].double() for m in range(2))
        assert abs(back[o, i].item() - (coded.scale[o, 0].double() * words).item()) < 1e-12
    stored = coded.stored("w")
    counted = sum(stored[name].nbytes * 8 for name in ("w", "w.scale", "w.codebooks"))
    assert counted / weight.numel() == bits_per_weight(SMALL, 6, 16)


def test_a_beam_as_wide_as_all_codes_finds_the_best_of_them(layer):
    """One piece: all pairs of words, for each row by brute force."""
    weight, H = layer
    weight, H = weight[:, :4], H[:4, :4]
    found = start(weight, SMALL, fresh())
    best = searched(found, weight, H, 16, fresh())
    for o in range(6):
        errors = {pair: loop_error(weight[o : o + 1], H, found.books_MKd, torch.tensor([[pair]]),
                                   found.scale_O[o : o + 1])
                  for pair in itertools.product(range(4), repeat=2)}
        assert tuple(best.codes_OJM[o, 0].tolist()) == min(errors, key=errors.get)


def test_one_path_takes_the_best_word_of_each_place_in_turn(layer):
    weight, H = layer
    found = start(weight, SMALL, fresh())
    codes = found.codes_OJM.clone()
    order = torch.randperm(4, generator=fresh(2)).tolist()
    for j, m, o in itertools.product(order, range(2), range(2)):
        errors = []
        for k in range(4):
            codes[o, j, m] = k
            errors.append(loop_error(weight[o : o + 1], H, found.books_MKd, codes[o : o + 1], found.scale_O[o : o + 1]))
        codes[o, j, m] = errors.index(min(errors))
    assert torch.equal(searched(found, weight, H, 1, fresh(2)).codes_OJM[:2], codes[:2])


def test_books_and_scales_are_those_of_least_squares(layer):
    """The books of a solver that sees the whole design, and scales at which the slope by a loop is nothing."""
    weight, H = layer
    found = start(weight, SMALL, fresh())
    root = torch.linalg.cholesky(H)
    columns = []
    for number in range(found.books_MKd.numel()):
        unit = torch.zeros(found.books_MKd.numel(), dtype=torch.float64)
        unit[number] = 1
        moved = Additive(unit.view_as(found.books_MKd), found.codes_OJM, found.scale_O)
        columns.append((moved.weight() @ root).flatten())
    answer = torch.linalg.lstsq(torch.stack(columns, 1), (weight @ root).flatten()[:, None], driver="gelsd").solution
    wanted = Additive(answer.view_as(found.books_MKd), found.codes_OJM, found.scale_O)
    learned = with_books(found, weight, H, 200)
    assert error_of(learned, weight, H) == pytest.approx(error_of(wanted, weight, H), rel=1e-6)
    assert error_of(learned, weight, H) == pytest.approx(loop_error(weight, H, learned.books_MKd, learned.codes_OJM,
                                                                     learned.scale_O))
    scaled = with_scales(learned, weight, H)
    slope = ((scaled.weight() - weight) @ H * scaled.unscaled()).sum(1)
    assert float(slope.abs().max()) < 1e-10


@pytest.mark.parametrize("beam", [1, 3])
def test_no_step_makes_the_error_grow(layer, beam):
    weight, H = layer
    found, errors = start(weight, SMALL, fresh()), []
    for _ in range(3):
        for step in (lambda f: with_books(f, weight, H, 3), lambda f: with_scales(f, weight, H),
                     lambda f: searched(f, weight, H, beam, fresh(1))):
            errors.append(error_of(found, weight, H))
            found = step(found)
    errors.append(error_of(found, weight, H))
    assert all(after <= before * (1 + 1e-9) for before, after in itertools.pairwise(errors))
    assert errors[-1] < 0.7 * errors[0]


def test_one_book_of_white_inputs_is_k_means(layer):
    weight, _ = layer
    config = Config(codebooks=1, code_bits=4, piece=4, rounds=0, clustering=5)
    found = start(weight, config, fresh())
    points = (weight / weight.square().mean(1, keepdim=True).sqrt()).reshape(-1, 4)
    words = clustered(points, 16, 5, fresh())
    for row, number in zip(points, found.codes_OJM.flatten().tolist()):
        distances = [float((row - word).square().sum()) for word in words]
        assert distances[number] == pytest.approx(min(distances))
    again = searched(found, weight, torch.eye(16, dtype=torch.float64), 1, fresh())
    assert torch.equal(again.codes_OJM, found.codes_OJM)


def test_words_are_means_of_their_points_and_an_idle_one_stays(generator):
    points = torch.randn(40, 2, generator=generator, dtype=torch.float64)
    words = clustered(points, 5, 100, fresh())
    near = nearest_words(points, words)
    for k in range(5):
        torch.testing.assert_close(words[k], points[near == k].mean(0))
    twice = clustered(points[:2], 4, 3, fresh())  # more words than points
    assert bool(twice.isfinite().all()) and torch.equal(twice[:2], twice[2:])


def test_beats_its_bits_in_integers_on_inputs_that_it_has_not_seen(generator):
    weight = torch.randn(64, 64, generator=generator)
    mixing = torch.linalg.qr(torch.randn(64, 64, generator=generator, dtype=torch.float64))[0]
    x = torch.randn(600, 64, generator=generator, dtype=torch.float64) * torch.arange(1, 65).double().rsqrt() @ mixing
    seen, held = (part.T @ part for part in x.chunk(2))
    config = Config(codebooks=2, code_bits=4, piece=4, rounds=3, steps=10, tolerance=0.0, beam=2)
    errors = [output_error(coded.weight().dequantised(torch.float64) - weight, held) for coded in
              (encode(weight, seen, config, fresh()), integers.encode(weight, integers.Config(bits=2)))]
    assert config.bits == 2 and errors[0] < 0.4 * errors[1]


def test_conjugate_gradients_solve_in_as_many_steps_as_there_are_numbers(generator):
    half = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    A, b = half @ half.T + torch.eye(5), torch.randn(5, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(conjugate(lambda x: A @ x, b, torch.zeros_like(b), 6), torch.linalg.solve(A, b))
    assert torch.equal(conjugate(lambda x: A @ x, torch.zeros_like(b), torch.zeros_like(b), 6), torch.zeros_like(b))


def test_every_expert_has_books_of_its_own(generator):
    stack = torch.randn(2, 8, 16, generator=generator)
    H = torch.eye(16, dtype=torch.float64).expand(2, -1, -1)
    config = Config(code_bits=4, piece=4, rounds=1, clustering=3)
    both = encode_all(stack, H, config, fresh(3))
    draws = fresh(3)
    for e in range(2):
        own = encode(stack[e], H[e], config, draws)
        assert torch.equal(both.codes[e], own.codes) and torch.equal(both.codebooks[e], own.codebooks)
        torch.testing.assert_close(both.weight()[e].dequantised(torch.float32), own.weight().dequantised(torch.float32))


def test_the_head_too_and_damaged_books_are_refused(generator):
    source = whole(example(generator)["checkpoint"])
    config = Config(code_bits=4, piece=4, rounds=1, clustering=2, head=True, tokens=72, max_kl_nats=0.5)
    done = additive(source, config, generator, calibration())
    assert "head.weight.codebooks" in done.tensors and promises(config) == {"kl_nats": 0.5}
    name = "layers.0.channel_mixer.down_proj.codebooks"
    for damaged in (done.tensors[name][:, :, :, :3], done.tensors[name][:, :1]):
        broken = done.derive(tensors={**done.tensors, name: damaged})
        with pytest.raises(MixwellError, match=r"codebooks is .* expected books of"):
            LanguageModel.from_checkpoint(broken)


def test_refusals(generator):
    values = example(generator)
    with pytest.raises(MixwellError, match="pieces of 32 do not divide rows of 16"):
        additive(whole(values["checkpoint"]), Config(codebooks=4, piece=32), generator, calibration())
    with pytest.raises(ValueError, match="3 codebooks of 4 bits over 8 numbers; expected a whole number"):
        Config(codebooks=3, code_bits=4)
    with pytest.raises(ValueError, match="code_bits is 9"):
        Config(code_bits=9)
    with pytest.raises(ValueError, match="tolerance is 1"):
        Config(tolerance=1.0)
