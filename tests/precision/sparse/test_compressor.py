"""Compressor: sizes and work against a built model, the best of all under a limit, genes, distillation by hand."""

import itertools
import math

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.lm.config import ModelConfig
from mixwell.lm.model import LanguageModel
from mixwell.precision.sparse.compressor import (
    Config,
    Sizes,
    _Pool,
    compressor,
    distillation,
    example,
    fitness,
    values_of,
)
from tests.contracts._tools import fresh


@pytest.mark.parametrize("tied", [True, False])
def test_sizes_and_work_are_those_of_the_model_that_is_built(tied):
    sizes = Sizes(vocab_size=24, heads=2, dim=12, hidden_dim=20, layers=3)
    model = LanguageModel(ModelConfig(**sizes.arch(tied)), fresh())
    assert sizes.parameters(tied) == model.num_parameters()
    assert sizes.flops(16) == pytest.approx(model.flops_per_token(16))
    assert sizes.fits() and not sizes._replace(heads=4).fits()


def test_finds_the_best_of_all_under_its_limit():
    config = Config(limit_bytes=40_000, bytes_per_weight=1.0, vocab_size=(64, 256, 64), heads=(1, 2), dim=(8, 64, 8),
                    hidden_dim=(16, 96, 16), layers=(1, 3, 1), length=32, tie_embeddings=False, population=40,
                    generations=60, crossover=0.5)
    every = [Sizes(*genes) for genes in itertools.product(*values_of(config))]
    within = [one for one in every if one.fits() and one.parameters(False) <= 40_000]
    best = max(one.flops(32) for one in within)
    found = compressor(config, fresh(1))
    assert found.sizes in within and found.flops >= 0.97 * best and found.size_bytes <= 40_000
    assert all(after >= before for before, after in itertools.pairwise(found.history)) and len(found.history) == 60
    assert max(one.flops(32) for one in every) == Sizes(256, 2, 64, 96, 3).flops(32)


def test_fitness_prefers_any_model_within_the_limit_and_then_the_nearest():
    config = Config(limit_bytes=10_000, bytes_per_weight=2.0)
    small, large, larger = (Sizes(64, 1, dim, 32, 1) for dim in (16, 64, 128))
    assert fitness(small, config, 1e6) == small.flops(512) / 1e6 > 0
    assert 0 > fitness(large, config, 1e6) > fitness(larger, config, 1e6)
    assert fitness(large, config, 1e6) == pytest.approx(1 - 2 * large.parameters(True) / 10_000)
    assert fitness(Sizes(64, 8, 16 + 8, 32, 1), config, 1e6) == -math.inf


def test_pairs_swap_genes_or_draw_them_anew():
    one, other = Sizes(64, 1, 8, 8, 1), Sizes(128, 2, 16, 16, 2)
    pool = _Pool(Config(crossover=1.0), fresh())
    for _ in range(20):
        first, second = pool.children(one, other)
        assert all({a, b} == {x, y} for a, b, x, y in zip(first, second, one, other))
    pool = _Pool(Config(crossover=0.0), fresh())
    children = [pool.children(one, other) for _ in range(20)]
    assert all(child.layers in range(1, 13) for pair in children for child in pair)
    assert any(first[0] == 64 and second[0] == 128 and first[2] != 8 for first, second in children)


def test_distillation_against_a_loop_and_nothing_at_the_teacher(generator):
    student = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    found = distillation(student, teacher, 4.0)
    total = 0.0
    for s, t in zip(student.detach().view(6, 5), teacher.view(6, 5)):
        p = [math.exp(v / 4) / sum(math.exp(u / 4) for u in t.tolist()) for v in t.tolist()]
        q = [math.exp(v / 4) / sum(math.exp(u / 4) for u in s.tolist()) for v in s.tolist()]
        total += sum(a * math.log(a / b) for a, b in zip(p, q))
    assert float(found.detach()) == pytest.approx(16 * total / 6)
    assert torch.autograd.gradcheck(lambda x: distillation(x, teacher, 4.0), (student,))
    assert float(distillation(teacher, teacher)) == pytest.approx(0, abs=1e-12)


def test_refusals():
    with pytest.raises(MixwellError, match="no model of these ranges is within 10 bytes; the nearest has"):
        compressor(Config(limit_bytes=10, population=4, generations=2), fresh())
    with pytest.raises(ValueError, match=r"dim is \(32, 16, 16\); expected 1 <= least <= largest and a step"):
        Config(dim=(32, 16, 16))
    with pytest.raises(ValueError, match=r"crossover is 2; expected 0 to 1"):
        Config(crossover=2)
    with pytest.raises(ValueError, match=r"heads is \(\); expected some"):
        Config(heads=())
    with pytest.raises(ValueError, match="temperature is 0"):
        distillation(torch.zeros(1, 2), torch.zeros(1, 2), 0)
    assert example(fresh())["config"].limit_bytes == 100_000
