"""Merging experts: clusters against SciPy, leaders and alignment against loops, equal experts merged without a loss."""

import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage

from mixwell.convert._usage import usage
from mixwell.convert.merge_experts import (
    Config,
    aligned,
    around_leaders,
    average_linkage,
    leaders_of,
    merge_experts,
    merged,
    needs,
    promises,
)
from mixwell.core.checkpoint import channel_mixers, with_channel_mixers
from mixwell.core.errors import MixwellError
from tests.contracts._conversions import block, calibration, output, sparse_model, spec

GATE, DOWN, ROUTER = (f"layers.1.channel_mixer.{n}" for n in ("gate_up_proj", "down_proj", "router.weight"))


def partition(groups):
    return {frozenset(group) for group in groups}


def test_average_linkage_agrees_with_scipy(generator):
    for count in (2, 3, 5):
        points = torch.randn(9, 4, generator=generator, dtype=torch.float64)
        labels = fcluster(linkage(points.numpy(), "average"), count, "maxclust")
        wanted = {frozenset(i for i in range(9) if labels[i] == label) for label in set(labels)}
        assert partition(average_linkage(points, count)) == wanted


@pytest.mark.parametrize("centred", [False, True])
def test_the_others_join_the_leader_with_the_most_alike_logits(generator, centred):
    logits = torch.randn(30, 5, generator=generator) + torch.tensor([0.0, 3, 3, -3, 0])
    found = around_leaders(logits, [2, 0], centred)
    for e in (1, 3, 4):
        scores = []
        for leader in (2, 0):
            a, b = (logits[:, c].double() - (logits[:, c].double().mean() if centred else 0) for c in (e, leader))
            scores.append(float((a * b).sum() / (a.norm() * b.norm())))
        assert e in found[scores.index(max(scores))]
    assert found[0][0] == 2 and found[1][0] == 0


def test_busy_layers_keep_more_where_all_are_ranked_together(generator):
    found = usage(sparse_model(generator), [0, 1], calibration(rows=2))
    found[0].count_E, found[1].count_E = torch.tensor([9.0, 8, 8, 8]), torch.tensor([30.0, 1, 1, 1])
    assert leaders_of(found, 2, "layer") == {0: [0, 1], 1: [0, 1]}
    assert leaders_of(found, 2, "all") == {0: [0, 1, 2], 1: [0]}


def test_means_go_by_usage_and_alignment_undoes_a_shuffle(generator):
    gate_up, down = torch.randn(2, 8, 6, generator=generator), torch.randn(2, 6, 4, generator=generator)
    count = torch.tensor([3.0, 1.0], dtype=torch.float64)
    found = merged((gate_up, down), [0, 1], count, align=False)
    torch.testing.assert_close(found[0], 0.75 * gate_up[0] + 0.25 * gate_up[1])
    torch.testing.assert_close(found[1], 0.75 * down[0] + 0.25 * down[1])
    even = merged((gate_up, down), [0, 1], torch.zeros(2, dtype=torch.float64), align=False)
    torch.testing.assert_close(even[1], down.mean(0))
    shuffle = torch.tensor([2, 0, 3, 1])
    twin = gate_up[0][torch.cat([shuffle, 4 + shuffle])], down[0][:, shuffle]
    back = aligned(twin, (gate_up[0], down[0]))
    assert torch.equal(back[0], gate_up[0]) and torch.equal(back[1], down[0])
    both = torch.stack([gate_up[0], twin[0]]), torch.stack([down[0], twin[1]])
    torch.testing.assert_close(merged(both, [0, 1], count, align=True)[0], gate_up[0])


@pytest.mark.parametrize("options", [{}, {"by": "router"}, {"by": "router", "across": "all", "centred": True},
                                     {"align": True}])
def test_equal_experts_merge_without_a_loss_and_the_router_stays(generator, options):
    checkpoint, text = sparse_model(generator), calibration()
    tensors = dict(checkpoint.tensors)
    for i in range(2):
        for name in ("gate_up_proj", "down_proj"):
            full = f"layers.{i}.channel_mixer.{name}"
            tensors[full] = tensors[full][:1].expand(4, -1, -1).clone()
    checkpoint = checkpoint.derive(tensors=tensors)
    after = merge_experts(checkpoint, Config(**options), generator, text)
    x = torch.randn(7, 6, generator=generator)
    torch.testing.assert_close(output(after, 1, x), output(checkpoint, 1, x), rtol=1e-5, atol=1e-5)
    assert after.tensors[ROUTER] is checkpoint.tensors[ROUTER]


def test_a_token_visits_the_mean_of_the_experts_that_it_chose(generator):
    checkpoint, text = sparse_model(generator), calibration()
    after = merge_experts(checkpoint, Config(keep=3), generator, text)
    assert spec(after, 1)["num_experts"] == 3 and after.tensors[GATE].shape == (3, 8, 6)
    members = spec(after, 1)["router"]["members"]
    x = torch.randn(6, generator=generator)
    p = torch.softmax(checkpoint.tensors[ROUTER].double() @ x.double(), 0)
    chosen = p.topk(2).indices.tolist()
    wanted = sum(p[e] / p[chosen].sum() * block(after.tensors[GATE][members[e]], after.tensors[DOWN][members[e]], x)
                 for e in chosen)
    torch.testing.assert_close(output(after, 1, x[None])[0], wanted, rtol=1e-4, atol=1e-4)
    assert promises(Config()) == {} and needs(Config(tokens=7)).tokens == 7
    some = merge_experts(checkpoint, Config(layers=(1,)), generator, text)
    assert [spec(some, layer)["num_experts"] for layer in range(2)] == [4, 2]


def test_refuses_what_it_cannot_do(generator):
    checkpoint, text = sparse_model(generator), calibration()
    with pytest.raises(MixwellError, match="has 4 experts; expected keep"):
        merge_experts(checkpoint, Config(keep=4), generator, text)
    specs = [dict(s) | {"router": {"method": "loss_free_bias"}} for s in channel_mixers(checkpoint.arch)]
    with pytest.raises(MixwellError, match="routes by 'loss_free_bias'"):
        merge_experts(checkpoint.derive(arch=with_channel_mixers(checkpoint.arch, specs)), Config(), generator, text)
    for options in ({"keep": 0}, {"across": "all"}, {"centred": True}):
        with pytest.raises(ValueError, match=r"expected|by is 'outputs'"):
            Config(**options)
