"""Normalisers, marginals, best trees and draws against all projective trees, one by one."""

import itertools

import numpy as np
import pytest
import torch

from mixwell.density.graphs.tree_crf import Config, draw_trees, likeliest_trees, log_likelihood, tree_crf

ARC = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SIB = torch.randn(2, 6, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LENGTHS = torch.tensor([5, 3])


def is_tree(heads, single_root):
    """Whether heads of the words 1..n make a projective tree under 0."""
    n = len(heads)
    arcs = [(h, d + 1) for d, h in enumerate(heads)]
    if any(h == d for h, d in arcs) or (single_root and sum(h == 0 for h in heads) != 1):
        return False
    for d in range(1, n + 1):  # every word comes from the root
        seen = set()
        while d:
            if d in seen:
                return False
            seen.add(d)
            d = heads[d - 1]
    spans = [tuple(sorted(arc)) for arc in arcs]
    return not any(a < c < b < e for (a, b), (c, e) in itertools.product(spans, spans))


def trees(n, single_root):
    return [heads for heads in itertools.product(range(n + 1), repeat=n) if is_tree(heads, single_root)]


def score(arc, sib, heads):
    """Arcs, and neighbours on one side of a head, from inside out."""
    total = sum(float(arc[d + 1, h]) for d, h in enumerate(heads))
    for h in range(len(heads) + 1):
        own = [d + 1 for d, head in enumerate(heads) if head == h]
        for side in ([d for d in own if d > h], [d for d in own if d < h][::-1]):
            if sib is not None:
                total += sum(float(sib[d, h, r]) for r, d in itertools.pairwise(side))
    return total


CASES = [(single, second) for single in (True, False) for second in (True, False)]


@pytest.fixture(scope="module", params=CASES, ids=lambda c: f"single={c[0]} second={c[1]}")
def field(request):
    """A field, and of each sentence all trees with their probabilities."""
    single, second = request.param
    sib = SIB if second else None
    sentences = []
    for b, n in enumerate(LENGTHS.tolist()):
        every = trees(n, single)
        values = np.array([score(ARC[b], None if sib is None else sib[b], heads) for heads in every])
        sentences.append((every, values))
    return sib, Config(single_root=single), sentences


def test_normaliser_and_marginals_are_sums_over_all_trees(field):
    sib, config, sentences = field
    found = tree_crf(ARC, sib, LENGTHS, config)
    for b, (every, values) in enumerate(sentences):
        log_z = np.log(np.exp(values).sum())
        assert float(found.log_partition_B[b]) == pytest.approx(log_z, abs=1e-9)
        wanted = np.zeros((6, 6))
        for heads, p in zip(every, np.exp(values - log_z)):
            for d, h in enumerate(heads):
                wanted[d + 1, h] += p
        np.testing.assert_allclose(found.marginals_BNN[b].numpy(), wanted, atol=1e-9)


def test_best_trees(field):
    sib, config, sentences = field
    marginals = tree_crf(ARC, sib, LENGTHS, config).marginals_BNN
    by_score, by_marginals = (likeliest_trees(ARC, sib, LENGTHS, config, by=by) for by in ("score", "marginals"))
    for b, (every, values) in enumerate(sentences):
        n = len(every[0])
        assert tuple(by_score[b, 1 : n + 1].tolist()) == every[values.argmax()]
        safe = [sum(float(marginals[b, d + 1, h]) for d, h in enumerate(heads)) for heads in every]
        assert tuple(by_marginals[b, 1 : n + 1].tolist()) == every[int(np.argmax(safe))]
        assert by_score[b, 0] == -1 and (by_score[b, n + 1 :] == -1).all()


def test_trees_known_whole_or_in_part(field):
    sib, config, sentences = field
    tree = torch.full((2, 6), -1)
    for b, (every, _) in enumerate(sentences):
        tree[b, 1 : len(every[0]) + 1] = torch.tensor(every[3])
    part = tree.clone()
    part[:, 2:] = -1
    whole, partly = (log_likelihood(ARC, heads, sib, LENGTHS, config) for heads in (tree, part))
    for b, (every, values) in enumerate(sentences):
        log_z = np.log(np.exp(values).sum())
        assert float(whole[b]) == pytest.approx(values[3] - log_z, abs=1e-9)
        kept = [value for heads, value in zip(every, values) if heads[0] == every[3][0]]
        assert float(partly[b]) == pytest.approx(np.log(np.exp(kept).sum()) - log_z, abs=1e-9)
    assert (log_likelihood(ARC, torch.full((2, 6), -1), sib, LENGTHS, config).abs() < 1e-12).all()


def test_the_slope_of_a_partly_known_tree_is_finite_and_right():
    heads = torch.tensor([[-1, 2, -1, -1, 3, -1], [-1, -1, 0, -1, -1, -1]])
    small = (ARC[:1, :3, :3].clone().requires_grad_(), SIB[:1, :3, :3, :3].clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda arc, sib: log_likelihood(arc, heads[:1, :3], sib), small)
    arc = ARC.clone().requires_grad_()
    log_likelihood(arc, heads, SIB, LENGTHS).sum().backward()
    assert arc.grad.isfinite().all() and (arc.grad != 0).any()


def test_draws_come_as_often_as_they_are_probable():
    n = 2000
    arc, sib = ARC[1:, :4, :4].expand(n, 4, 4), SIB[1:, :4, :4, :4].expand(n, 4, 4, 4)
    drawn = draw_trees(arc, torch.Generator().manual_seed(0), sib)
    every = trees(3, True)
    values = np.array([score(ARC[1], SIB[1], heads) for heads in every])
    wanted = np.exp(values) / np.exp(values).sum()
    found = np.array([(drawn[:, 1:] == torch.tensor(heads)).all(1).double().mean().item() for heads in every])
    assert found.sum() == pytest.approx(1)
    np.testing.assert_allclose(found, wanted, atol=4 * np.sqrt(0.25 / n))
    mixed = draw_trees(ARC, torch.Generator().manual_seed(1), SIB, LENGTHS)
    assert is_tree(mixed[0, 1:].tolist(), True) and is_tree(mixed[1, 1:4].tolist(), True) and mixed[1, 4] == -1


def test_refuses():
    with pytest.raises(ValueError, match=r"arcs have shape \(2, 6\)"):
        tree_crf(ARC[0, :2])
    with pytest.raises(ValueError, match="siblings have shape"):
        tree_crf(ARC, SIB[:1])
    with pytest.raises(ValueError, match=r"lengths are \[6, 1\]; expected 2 of 1 to 5"):
        tree_crf(ARC, SIB, torch.tensor([6, 1]))
    with pytest.raises(ValueError, match="by is 'luck'"):
        likeliest_trees(ARC, by="luck")
    with pytest.raises(ValueError, match="no projective tree has the heads"):
        log_likelihood(ARC, torch.tensor([[-1, 3, 4, 0, 3, 3], [-1] * 6]), SIB)  # 1 <- 3 and 2 <- 4 cross
