"""Light-PEFT: masks and worth against loops, a cut model against one whose masks are 0, what it refuses."""

import pytest
import torch

from mixwell.adapters.light_peft import Config, Importance, LightPEFT, cut, staying
from mixwell.core.errors import MixwellError
from mixwell.lm.model import LanguageModel
from tests.contracts._adapters import TOKENS, logits, model, moved
from tests.contracts._tools import fresh

OPTIONS = {"rank": 4, "alpha": 8.0}
OUT, DOWN = "layers.0.sequence_mixer.out.weight", "layers.1.channel_mixer.down_proj"


def beside(size=0.1, network=None, targets=None, **options):
    network = network or model()
    return moved(LightPEFT.attach(network, targets, Config(**OPTIONS | options), fresh()), size=size)


def backward(there):
    there.model.train()
    loss = there.model.loss(TOKENS[:, :-1], TOKENS[:, 1:])
    there.model.zero_grad()
    (loss.nats if loss.aux is None else loss.nats + loss.aux).backward()
    return loss


def test_a_mask_stands_before_out_by_heads_and_before_down_proj_by_units():
    there = beside()
    assert there.adapters[OUT].mask.shape == (4,) and there.adapters[DOWN].mask.shape == (24,)
    assert there.adapters["layers.0.sequence_mixer.qkv.weight"].mask is None
    for name in (OUT, DOWN):
        own = there.adapters[name]
        A, B = own.A.detach(), own.B.detach()
        W, c = own.target.tensor.detach(), own.mask.detach().repeat_interleave(4 if name == OUT else 1)
        expected = [[(W[o, i] + 2 * sum(B[o, r] * A[r, i] for r in range(4))) * c[i] - W[o, i]
                     for i in range(W.shape[1])] for o in range(W.shape[0])]
        torch.testing.assert_close(own.delta_weight(), torch.tensor(expected))


def test_the_penalty_is_an_output_in_training():
    there = beside(penalty=0.01)
    loss = backward(there)
    masks = [own.mask for own in there.adapters.values() if own.mask is not None]
    total = sum(mask.abs().sum() for mask in masks)
    torch.testing.assert_close(loss.aux, 0.01 * total)
    assert all(mask.grad.all() for mask in masks)


def test_worth_is_the_share_of_the_result_and_the_gradients_product():
    there = beside()
    seen, own = [], there.adapters[DOWN]
    importance = Importance(there)
    after = own.after
    own.after = lambda x, y, *rest: seen.append((x, y)) or after(x, y, *rest)
    expected, ranks = 0, torch.zeros(4)
    for _ in range(2):
        seen.clear()
        backward(there)
        x, y = seen[0]
        rows = [((2 * own.B @ (own.A @ (own.mask * row))).norm() / out.norm()).item() for row, out in zip(x, y)]
        expected += sum(rows) / len(rows) / 2
        for r in range(4):
            into = (own.A * own.A.grad)[r].tolist()
            out = (own.B * own.B.grad)[:, r].tolist()
            ranks[r] += (abs(sum(into) / 24) + abs(sum(out) / 16)) / 2
        importance.observe()
        with torch.no_grad():
            own.A += 0.05
    assert importance.modules()[DOWN] == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(importance.ranks()[DOWN], ranks)
    importance.close()
    backward(there)
    assert own.ratios is None


@pytest.mark.parametrize("options", [
    {"heads": 0.5, "units": 0.25, "modules": 0.5, "ranks": 0.5},
    {"heads": 0.5, "units": 0.0, "modules": 0.0, "ranks": 0.0},
    {"heads": 0.0, "units": 0.4, "modules": 0.75, "ranks": 0.3}])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_what_is_cut_is_what_masks_of_zero_leave_out(options, kv_heads):
    attention = {"method": "attention", "num_heads": 4, "num_kv_heads": kv_heads, "bias": True}
    there = beside(network=model(sequence_mixer=attention), **options)
    importance = Importance(there)
    backward(there)
    importance.observe()
    importance.close()
    made = cut(there, importance)
    small = LanguageModel.from_checkpoint(made.checkpoint).eval()
    left = made.attach(small)
    there.model.eval()
    with torch.no_grad():  # the same by masks of 0 and 1 and by ranks set to 0
        for name, own in there.adapters.items():
            ranks = importance.ranks()[name]
            stays = torch.zeros(4, dtype=torch.bool)
            if name in made.config.rank_pattern:
                stays[ranks.argsort(descending=True)[: made.config.rank_pattern[name]]] = True
            own.B[:, ~stays] = 0
            if own.mask is None:
                continue
            if name.endswith("out.weight"):
                shared = 4 // kv_heads
                worth = own.mask.abs().view(-1, shared).sum(1)
                own.mask.copy_(staying(worth, options["heads"]).repeat_interleave(shared))
            else:
                others = torch.cat([a.mask.abs() for n, a in there.adapters.items() if n.endswith("down_proj")])
                before = made.checkpoint.tensors[name].shape[1]
                keep = own.mask.abs() >= others.sort(descending=True).values[-int(options["units"] * 48 + 1e-9) - 1]
                own.kept = keep
                assert int(keep.sum()) == before
        for own in there.adapters.values():
            if hasattr(own, "kept"):
                own.mask.copy_(own.kept)
    torch.testing.assert_close(logits(small), logits(there.model), rtol=1e-4, atol=2e-6)
    count = len(there.adapters) - int(options["modules"] * len(there.adapters))
    assert len(made.config.rank_pattern) <= count
    assert sum(made.config.rank_pattern.values()) == 4 * count - int(options["ranks"] * 4 * count + 1e-9)
    assert small.num_parameters() - left.num_parameters < model().num_parameters()
    assert left.method == "adapters.lora"


def test_of_equal_worth_the_last_ones_go():
    assert staying(torch.tensor([1.0, 1.0, 1.0, 2.0]), 0.5).tolist() == [True, False, False, True]
    assert staying(torch.ones(3), 0.0).all()


def test_experts_of_a_mixture_keep_their_units():
    there = beside(network=model(sparse=True))
    assert all(own.mask is None for name, own in there.adapters.items() if "experts" in name or own.target.stack)
    logits(there.model)


def test_what_cannot_be_is_refused():
    there = beside()
    importance = Importance(there)
    with pytest.raises(MixwellError, match="no step was observed"):
        cut(there, importance)
    with pytest.raises(MixwellError, match="has seen no tokens or has no gradient"):
        importance.observe()
    some = beside(targets=["layers.0.sequence_mixer.out", "gate_up_proj"])
    importance = Importance(some)
    backward(some)
    importance.observe()
    with pytest.raises(MixwellError, match="heads are cut in every layer or in none"):
        cut(some, importance)
    attention = {"method": "attention", "num_heads": 4, "qk_norm": "full"}
    normed = beside(network=model(sequence_mixer=attention))
    importance = Importance(normed)
    backward(normed)
    importance.observe()
    with pytest.raises(MixwellError, match="layer 0 has heads that are not cut"):
        cut(normed, importance)
    for options, message in (({"heads": 1.0}, r"heads is 1\.0"), ({"penalty": -1.0}, "penalty is -1"),
                             ({"rank": 0}, "rank is 0")):
        with pytest.raises(ValueError, match=message):
            Config(**options)
