"""The ultra-sparse memory against a loop over tokens, slots and cores."""

import pytest
import torch

from mixwell.core.routing import Context
from mixwell.experts.layers.ultra_sparse_memory import Config, UltraSparseMemory, leading, stride, tucker_top_k
from tests.experts.layers._loops import same_forward_and_gradient, tokens


def norm(v, gain):
    return (v - v.mean()) / (v.var(unbiased=False) + 1e-5).sqrt() * gain


def loop(layer, x):
    config, m, n = layer.config, layer.memory, layer.config.num_keys
    count, part = n * n // config.expansion, config.value_dim // config.cores
    core = m.cores.sum(0).detach()
    u, _, v = torch.linalg.svd(core)
    u, t = u[:, 0], v[0]
    if u.sum() < 0:
        u, t = -u, -t
    q = [norm(h, m.query_gain) for h in (m.query @ x).chunk(2)]
    s = [torch.stack([torch.stack([norm(m.keys[a, i, r], m.key_gain) @ q[a] for r in range(config.rank)])
                      for i in range(n)]) for a in range(2)]
    rows = sorted(range(n), key=lambda i: -float((s[0][i] @ u).detach()))[:config.k]
    columns = sorted(range(n), key=lambda j: -float((s[1][j] @ t).detach()))[:config.k]
    every = {(i, j): torch.stack([s[0][i] @ c @ s[1][j] for c in m.cores]) for i in rows for j in columns}
    kept = sorted(every, key=lambda ij: -float(every[ij].sum().detach()))[:config.k]
    pools = [[torch.zeros(part, dtype=x.dtype) for _ in range(config.cores)] for _ in range(config.expansion)]
    for i, j in kept:
        slot = (i * n + j) * stride(n * n) % (n * n)
        p, value = slot // count, layer.values[slot % count]
        for c in range(config.cores):
            pools[p][c] = pools[p][c] + every[i, j][c] * value[c * part:(c + 1) * part]
    return layer.down_proj @ torch.cat([torch.cat(cores) for cores in pools])


@pytest.mark.parametrize("options", [
    {}, {"rank": 1, "cores": 1, "expansion": 1}, {"rank": 3, "cores": 4, "expansion": 9}, {"k": 6},
])
def test_agrees_with_a_loop_forward_and_gradient(generator, options):
    options = {"num_keys": 6, "k": 3, "key_dim": 4, "value_dim": 8} | options
    layer = UltraSparseMemory(6, Config(**options), generator).double()
    with torch.no_grad():
        layer.values.mul_(50)
    x = tokens(generator)
    expected = torch.stack([loop(layer, z) for z in x])
    same_forward_and_gradient(layer(x, Context()).y_TD, expected, [x, *layer.parameters()], generator)


def test_the_shuffle_is_a_permutation():
    for slots in (1, 2, 36, 100, 1024, 12544):
        assert sorted(i * stride(slots) % slots for i in range(slots)) == list(range(slots))


def scores_of(generator, n, second):
    """Positive row and column scores, and a core whose second singular value is `second`."""
    rows, columns = torch.rand(2, 50, n, 2, generator=generator)
    u, v = torch.tensor([[0.8, -0.6], [0.6, 0.8]]), torch.tensor([[0.6, 0.8], [0.8, -0.6]])
    return rows, columns, (u @ torch.diag(torch.tensor([1.0, second])) @ v).unsqueeze(0)


@pytest.mark.parametrize("second, least", [(0.0, 1.0), (0.15, 0.8)])
def test_pre_selection_finds_the_best_slots_where_the_core_is_near_rank_one(generator, second, least):
    rows, columns, core = scores_of(generator, 32, second)
    _, slots = tucker_top_k(rows, columns, core, 8)
    every = torch.einsum("tir,rs,tjs->tij", rows, core[0], columns).flatten(1)
    best = every.topk(8, dim=-1).indices
    overlap = sum(len(set(a) & set(b)) for a, b in zip(slots.tolist(), best.tolist())) / best.numel()
    assert overlap >= least
    if second == 0:
        assert torch.equal(slots, best)


def test_pre_selection_sees_slots_with_positive_scores_only(generator):
    """Where row and column both speak for a slot almost nothing is missed; products of two negatives are never seen."""
    layer = UltraSparseMemory(16, Config(num_keys=32, k=8), generator)
    rows, columns = layer.memory(torch.randn(60, 16, generator=generator))
    core = layer.memory.cores.sum(0)
    u, t = leading(core)
    slots = tucker_top_k(rows, columns, layer.memory.cores, 8)[1]
    every = torch.einsum("tir,rs,tjs->tij", rows, core, columns)
    positive = (rows @ u > 0).unsqueeze(2) & (columns @ t > 0).unsqueeze(1)

    def overlap(scores):
        best = scores.flatten(1).topk(8).indices
        return sum(len(set(a) & set(b)) for a, b in zip(slots.tolist(), best.tolist())) / best.numel()

    assert overlap(every.masked_fill(~positive, -1e9)) > 0.95 > overlap(every)


def test_the_core_loss_is_what_exceeds_the_margin(generator):
    layer = UltraSparseMemory(6, Config(num_keys=6, k=3, rank=3, margin=0.2, core_loss=0.5), generator).double()
    with torch.no_grad():
        layer.memory.cores.zero_()
        layer.memory.cores[0] = torch.diag(torch.tensor([3.0, 0.7, 0.1]))
    mixed = layer(tokens(generator), Context())
    torch.testing.assert_close(mixed.losses["core"], torch.tensor(0.5**2 / 2, dtype=torch.float64))
    torch.testing.assert_close(mixed.aux, 0.5 * mixed.losses["core"])
    mixed.aux.backward()
    assert layer.memory.cores.grad.abs().max() > 0
    single = UltraSparseMemory(6, Config(num_keys=6, k=3, rank=1, core_loss=0.0), generator)
    mixed = single(torch.randn(3, 6, generator=generator), Context())
    assert mixed.losses["core"] == 0 and mixed.aux is None


def test_more_slots_than_stored_values(generator):
    layer = UltraSparseMemory(6, Config(num_keys=8, k=3, expansion=4), generator)
    assert layer.values.shape[0] == 16
    assert layer(torch.zeros(0, 6), Context()).y_TD.shape == (0, 6)


def test_counts_its_flops(generator):
    layer = UltraSparseMemory(6, Config(num_keys=8, k=3, key_dim=4, value_dim=10, rank=2, cores=2), generator)
    queries, keys = 2 * 6 * 8, 2 * (2 * 8 * 2 * 4)
    core = 2 * (2 * 3 * 2 * 2 + 2 * 3 * 3 * 2)
    assert layer.flops_per_token() == queries + keys + core + 2 * 3 * 10 + 2 * 6 * 4 * 10


@pytest.mark.parametrize("options, message", [
    ({"k": 9}, "k is 9"), ({"expansion": 5}, "must divide"), ({"value_dim": 7}, "must divide"),
    ({"margin": -0.1}, "margin -0.1"),
])
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**({"num_keys": 8, "k": 3} | options))


def test_keys_start_with_one_over_the_root_of_their_width(generator):
    layer = UltraSparseMemory(8, Config(num_keys=40, key_dim=25), generator)
    keys = next(p for name, p in layer.named_parameters() if name.endswith("keys"))
    assert keys.shape[-1] == 25 and keys.std().item() == pytest.approx(0.2, rel=0.05)
