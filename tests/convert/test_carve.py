"""Carving: every unit in one place, all experts on give the dense block, splits against loops, and refusals."""

import itertools

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from mixwell.convert._clusters import assign_places, k_means
from mixwell.convert.calibration import Seen
from mixwell.convert.carve import (
    Config,
    activations,
    by_coactivation,
    by_scores,
    by_weights,
    carve,
    importance,
    marks,
    needs,
    promises,
    started,
)
from mixwell.core.errors import MixwellError
from tests.contracts._conversions import block, calibration, dense_model, output, silu, spec

SPLITS = ("order", "random", "clustered", "importance", "gradient", "coactivation")
GATE, DOWN = "layers.1.channel_mixer.gate_up_proj", "layers.1.channel_mixer.down_proj"


def units_of(part, whole):
    """Which unit of the dense block each row of a part is."""
    return [(whole == row).all(1).nonzero()[0].item() for row in part]


@pytest.mark.parametrize("split", SPLITS)
def test_every_unit_goes_to_one_place_and_all_on_is_the_dense_block(generator, split):
    before = dense_model(generator)
    even = {} if split == "coactivation" else {"start": "even"}
    config = Config(num_experts=3, shared=1, split=split, router={"k": 3}, **even)
    after = carve(before, config, generator, calibration())
    gate_up = after.tensors[GATE]
    assert gate_up.shape == (3, 4, 6) and spec(after, 1)["hidden_dim"] == 2
    parts = [*gate_up[:, :2], after.tensors["layers.1.channel_mixer.shared_gate_up_proj"][:2]]
    dealt = [units_of(part, before.tensors[GATE][:8]) for part in parts]
    assert sorted(itertools.chain(*dealt)) == list(range(8))
    x = torch.randn(9, 6, generator=generator)
    torch.testing.assert_close(output(after, 1, x), output(before, 1, x), rtol=1e-5, atol=1e-5)
    assert promises(config)["max_logit_error"] <= 1e-3
    assert needs(config).tokens == (8192 if split in SPLITS[3:] else 0)


@pytest.mark.parametrize("scale, factor", [(None, 4.0), (2.5, 2.5)])
def test_chosen_parts_count_by_their_weights_and_the_scale(generator, scale, factor):
    before = dense_model(generator)
    config = Config(num_experts=4, split="order", scale=scale)
    after = carve(before, config, generator)
    x = torch.randn(5, 6, generator=generator)
    rows = after.tensors["layers.1.channel_mixer.router.weight"].double()
    gate_up, down = before.tensors[GATE], before.tensors[DOWN]
    for x_D, y_D in zip(x, output(after, 1, x)):
        scores = (rows @ x_D.double()).exp()
        chosen = scores.topk(2).indices
        wanted = torch.zeros(6, dtype=torch.float64)
        for e in chosen.tolist():
            units = [2 * e, 2 * e + 1]
            part = block(gate_up[[*units, 8 + units[0], 8 + units[1]]], down[:, units], x_D)
            wanted += factor * scores[e] / scores[chosen].sum() * part
        torch.testing.assert_close(y_D, wanted, rtol=1e-5, atol=1e-5)
    assert promises(config) == {}


@pytest.mark.parametrize("gradient", [False, True])
def test_importance_against_a_loop(generator, gradient):
    x, gate_up, down, grad = (torch.randn(*s, generator=generator) for s in ((3, 4), (10, 4), (4, 5), (3, 4)))
    ids = torch.zeros(3, dtype=torch.int64)
    seen = Seen(x_TD=x, routing=None, ids_T=ids, labels_T=ids, grad_TD=grad if gradient else None)
    found = importance(seen, gate_up, down)
    for t in range(3):
        for i in range(5):
            h = silu((gate_up[i] * x[t]).sum()) * (gate_up[5 + i] * x[t]).sum()
            factor = (grad[t] * down[:, i]).sum() if gradient else down[:, i].norm()
            torch.testing.assert_close(found[t, i], (h * factor).abs().double(), rtol=1e-4, atol=1e-5)


def test_the_largest_score_left_fills_its_expert():
    scores = torch.tensor([[9.0, 1, 8, 7, 5, 0], [8.5, 2, 1, 3, 4, 0.5]])
    dealt = by_scores(scores, 2, 1)
    # both rank unit 0 among their two best; then unit 2, which expert 0 alone does, has the larger sum
    assert sorted(dealt.shared.tolist()) == [0, 2]
    assert [group.tolist() for group in dealt.groups] == [[3, 4], [1, 5]]


def test_units_that_fire_together_stay_together():
    """One pair fires always, two pairs on tokens of their own: only the marks tell them apart."""
    marks_TF = torch.zeros(12, 6)
    marks_TF[:, [0, 3]] = 1
    marks_TF[:6, 1] = marks_TF[:5, 4] = 1
    marks_TF[6:, 2] = marks_TF[6:11, 5] = 1
    dealt = by_coactivation(marks_TF, 2, Config(num_experts=2, shared=1, split="coactivation"))
    assert sorted(dealt.shared.tolist()) == [0, 3]
    assert [sorted(group.tolist()) for group in dealt.groups] == [[1, 4], [2, 5]]
    for group, central in zip(dealt.groups, dealt.central):
        assert central in group


def test_marks_are_the_units_of_highest_score(generator):
    x, gate_up = torch.randn(4, 3, generator=generator), torch.randn(16, 3, generator=generator)
    found = marks(x, gate_up, Config(marked=3))
    for t in range(4):
        scores = []
        for i in range(8):
            g, u = gate_up[i] / gate_up[i].norm(), gate_up[8 + i] / gate_up[8 + i].norm()
            unit = x[t] / x[t].norm()
            scores.append(float((silu((unit * g).sum()) * (unit * u).sum()).abs()))
        best = sorted(range(8), key=lambda i: -scores[i])[:3]
        assert sorted(found[t].nonzero().flatten().tolist()) == sorted(best)
    assert marks(x, gate_up, Config()).sum(1).tolist() == [1.0] * 4


def test_alike_rows_share_a_cluster(generator):
    kinds = torch.eye(6)[:3].repeat_interleave(2, 0)[[0, 2, 4, 1, 3, 5]]
    gate_up = torch.cat([kinds, kinds]) + 0.01 * torch.randn(12, 6, generator=generator)
    dealt = by_weights(gate_up, torch.randn(6, 6, generator=generator), Config(num_experts=3), 2, generator)
    assert sorted(sorted(g.tolist()) for g in dealt.groups) == [[0, 3], [1, 4], [2, 5]]


def test_the_router_starts_from_token_clusters_with_logits_of_spread_1(generator):
    x, centres = torch.randn(50, 6, generator=generator), torch.randn(3, 6, generator=generator)
    rows = started(centres, x)
    assert abs(float((x @ rows.T).std()) - 1) < 1e-5 and rows.mean(0).abs().max() < 1e-6
    before = dense_model(generator)
    config = Config(num_experts=4, split="gradient", start="centroids")
    after = carve(before, config, generator, calibration())
    assert after.tensors["layers.0.channel_mixer.router.weight"].mean(0).abs().max() < 1e-5


def test_coactivation_reads_its_router_off_the_units(generator):
    before = dense_model(generator)
    after = carve(before, Config(num_experts=3, shared=1, split="coactivation"), generator, calibration())
    rows = after.tensors["layers.1.channel_mixer.router.gate"]
    unit = before.tensors[GATE][:8]
    unit = unit / unit.norm(dim=1, keepdim=True)
    for e, row in enumerate(rows):
        chosen = (unit - row).norm(dim=1).argmin().item()
        assert (unit[chosen] - row).norm() < 1e-5
        assert chosen in units_of(after.tensors[GATE][e, :2], before.tensors[GATE][:8])
    assert spec(after, 1)["router"]["method"] == "representative" and spec(after, 1)["balance"] == {}


def test_places_are_kept_and_the_cost_is_near_the_least(generator):
    for _ in range(5):
        cost = torch.rand(24, 4, generator=generator)
        found = assign_places(cost, [6, 6, 8, 4])
        assert torch.bincount(found).tolist() == [6, 6, 8, 4]
        columns = torch.tensor([0] * 6 + [1] * 6 + [2] * 8 + [3] * 4)
        rows, places = linear_sum_assignment(cost[:, columns].numpy())
        least = float(cost[:, columns][rows, places].sum())
        mine = float(cost.gather(1, found[:, None]).sum())
        assert least - 1e-6 <= mine <= 1.1 * least


def test_k_means_finds_what_is_far_apart(generator):
    x = torch.cat([torch.randn(10, 3, generator=generator) + shift for shift in (0.0, 20.0, 40.0)])
    centres, found = k_means(x, 3, generator)
    assert len(found[:10].unique()) == len(found[10:20].unique()) == len(found[20:].unique()) == 1
    torch.testing.assert_close(centres[found[0]], x[:10].mean(0), rtol=1e-4, atol=1e-4)


def test_activations_take_the_gate_from_above(generator):
    x, gate_up = torch.randn(2, 3, generator=generator), torch.randn(4, 3, generator=generator)
    wanted = silu(x @ gate_up[:2].T) * (x @ gate_up[2:].T)
    torch.testing.assert_close(activations(x, gate_up), wanted)


def test_refuses_what_it_cannot_do(generator):
    with pytest.raises(MixwellError, match="8 hidden units do not fall into 3 equal parts"):
        carve(dense_model(generator), Config(num_experts=3), generator)
    with pytest.raises(ValueError, match="tokens are clustered for importance"):
        Config(start="centroids")
    with pytest.raises(ValueError, match="expected top_k"):
        Config(start="even", router={"method": "sinkhorn"})
    with pytest.raises(ValueError, match="reads its router off the units"):
        Config(split="coactivation", start="even")
    for options in ({"num_experts": 1}, {"shared": -1}, {"scale": 0.0}, {"marked": 0}):
        with pytest.raises(ValueError, match="expected"):
            Config(**options)


def test_balance_and_layers_are_as_asked(generator):
    config = Config(num_experts=4, balance={"z_loss": 0.5}, layers=(1,))
    after = carve(dense_model(generator), config, generator)
    assert spec(after, 1)["balance"] == {"z_loss": 0.5} and spec(after, 0)["method"] == "experts.layers.swiglu"
