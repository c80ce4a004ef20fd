"""SCE against a loop over numbers; selection, weights and erasure one by one."""

import pytest
import torch

from mixwell.merge.sce import Config, sce, selection, shares


def dumb(tensors, base, kept):
    deltas = [[float(v - b) * k for v, b, k in zip(t.flatten(), base.flatten(), kept)] for t in tensors]
    sizes = [sum(v * v for v in delta) / len(delta) for delta in deltas]
    weights = [size / sum(sizes) for size in sizes]
    out = []
    for place, start in enumerate(base.flatten().tolist()):
        column = [delta[place] for delta in deltas]
        sign = 1 if sum(column) >= 0 else -1
        agreeing = [(w, v) for w, v in zip(weights, column) if v * sign > 0]
        divisor = max(sum(w for w, _ in agreeing), 1e-6)
        out.append(start + sum(w * v for w, v in agreeing) / divisor)
    return torch.tensor(out).view(base.shape)


@pytest.mark.parametrize("share", [1.0, 0.4])
def test_every_number_is_that_of_a_loop(share, generator):
    base = torch.randn(4, 5, generator=generator)
    tensors = [base + size * torch.randn(4, 5, generator=generator) for size in (0.5, 1.0, 2.0)]
    deltas = [tensor - base for tensor in tensors]
    kept = [True] * 20 if share == 1 else selection(deltas, share).flatten().tolist()
    assert sum(kept) == round(20 * share)
    found = sce(tensors, base, Config(select_topk=share), generator)
    torch.testing.assert_close(found, dumb(tensors, base, kept), rtol=1e-5, atol=1e-5)


def test_the_farthest_model_weighs_most_unless_all_are_near(generator):
    near, far = torch.full((4,), 0.1), torch.full((4,), 0.3)
    assert shares([near, far], 1e-6) == pytest.approx([0.1, 0.9])
    assert shares([near * 1e-4, far * 1e-4], 1e-6) == [0.5, 0.5]
    assert shares([near * 1e-4, far * 1e-4], 0.0) == pytest.approx([0.1, 0.9])


def test_one_model_has_no_variance_and_the_base_comes_back(generator):
    base, only = torch.randn(3, 3, generator=generator), torch.randn(3, 3, generator=generator)
    torch.testing.assert_close(sce([only], base, Config(), generator), only)
    assert torch.equal(sce([only], base, Config(select_topk=0.5), generator), base)
    near = [base + 1e-5 * torch.ones(3, 3), base + 3e-5 * torch.ones(3, 3)]
    assert float((sce(near, base, Config(), generator) - base).mean()) == pytest.approx(2e-5, rel=0.05)
    assert float((sce(near, base, Config(floor=0.0), generator) - base).mean()) == pytest.approx(2.8e-5, rel=0.05)
    with pytest.raises(ValueError, match="select_topk is 2"):
        Config(select_topk=2)
