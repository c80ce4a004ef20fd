"""Octavius against a loop over tokens, its one gate, reading in pieces, what it refuses."""

import pytest
import torch

from mixwell.adapters import lora
from mixwell.adapters.octavius import Config, Octavius
from mixwell.core.errors import MixwellError
from tests.contracts._adapters import TOKENS, logits, model, moved
from tests.contracts._tools import fresh

OPTIONS = {"num_experts": 3, "rank": 2}
NAME = "layers.1.sequence_mixer.qkv.weight"
END = 7


def rows():
    """Three rows of twelve tokens that end their instruction at 4, at 0, and never."""
    found = TOKENS[:, :12].masked_fill(TOKENS[:, :12] == END, 8)
    found[0, 4], found[0, 9], found[1, 0] = END, END, END
    return found


def beside(size=0.3, **options):
    there = moved(Octavius.attach(model(), None, Config(**OPTIONS | options), fresh()), size=size)
    there.model.double().eval()
    return there


def softmax_top_2(values):
    p = torch.softmax(values, 0)
    best = p.argsort(descending=True)[:2]
    return {int(e): p[e] / p[best].sum() for e in best}


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("until", [END, None])
def test_it_agrees_with_a_loop_over_tokens_and_experts(causal, until):
    there = beside(until=until, causal=causal)
    own, tokens = there.adapters[NAME], rows()
    seen = {}
    layer = own.target.owner
    hook = layer.register_forward_hook(lambda _, given, found: seen.update(x=given[0], y=found))
    with torch.no_grad():
        there.model(tokens)
    hook.remove()
    embedding, W, b = there.model.embed.weight, layer.weight, layer.bias
    for row, ids in enumerate(tokens.tolist()):
        length = 12 if until is None or END not in ids else ids.index(END) + 1
        for t in range(12):
            last = min(t + 1, length) if causal else length
            m = sum(embedding[i] for i in ids[:last]) / last
            x = seen["x"][row, t]
            y = W @ x + b
            for e, g in softmax_top_2(own.router.weight @ m).items():
                y = y + g * own.B[e] @ (own.A[e] @ x)
            torch.testing.assert_close(seen["y"][row, t], y)


def test_behind_the_instruction_a_row_has_one_gate_and_all_targets_share_it():
    there = beside(until=END)
    assert len({id(adapter.router) for adapter in there.adapters.values()}) == 1
    assert sum("router" in name for name in there.tensors()) == 1
    found = {}
    for name, adapter in there.adapters.items():
        adapter.gates = lambda n, own=adapter, name=name: found.setdefault(name, type(own).gates(own, n))
    with torch.no_grad():
        there.model(rows())
    first, *others = found.values()
    assert len(others) == 3 and all(other is first for other in others)  # computed once a pass
    gates = first.view(3, 12, 3)
    torch.testing.assert_close(gates[0, 5:], gates[0, 4].expand(7, 3))
    assert not torch.allclose(gates[2, 5], gates[2, 6])  # an instruction that goes on


def test_one_expert_is_lora():
    options = {"num_experts": 1, "router": {"method": "top_k", "k": 1, "constant": True, "renormalise": True}}
    there = beside(**options)
    plain = lora.LoRA.attach(model(), ["qkv", "out"], lora.Config(rank=2, alpha=2.0), fresh())
    with torch.no_grad():
        for name, adapter in plain.adapters.items():
            adapter.A.copy_(there.adapters[name].A[0])
            adapter.B.copy_(there.adapters[name].B[0])
    plain.model.double()
    torch.testing.assert_close(logits(there.model), logits(plain.model))


@pytest.mark.parametrize("until", [END, None])
def test_reading_in_pieces_is_reading_at_once_and_no_token_sees_a_later_one(until):
    there, tokens = beside(until=until), rows()
    whole = there.model(tokens).logits_BTV
    cache, pieces = there.model.new_cache(), []
    with torch.no_grad():
        for piece in tokens.split([3, 1, 1, 7], 1):
            pieces.append(there.model(piece, cache=cache).logits_BTV)
    torch.testing.assert_close(torch.cat(pieces, 1), whole)
    torch.testing.assert_close(there.model(tokens[:, :6]).logits_BTV, whole[:, :6])


def test_padding_is_no_part_of_an_instruction():
    there, tokens = beside(until=END), rows()
    whole = there.model(tokens).logits_BTV
    padded = torch.cat((torch.full((3, 2), 5), tokens), 1)
    mask = torch.ones_like(padded, dtype=torch.bool)
    mask[:, :2] = False
    torch.testing.assert_close(there.model(padded, mask_BT=mask).logits_BTV[:, 2:], whole)


def test_gradients_agree_with_differences():
    there, tokens = beside(until=END), rows()
    own = there.adapters[NAME]
    for part in (own.A, own.B, own.router.weight):
        (grad,) = torch.autograd.grad(there.model(tokens).logits_BTV.square().sum(), part)
        way = torch.randn(part.shape, generator=fresh(4), dtype=torch.float64)
        found = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                part += step * way
                found.append(there.model(tokens).logits_BTV.square().sum())
                part -= step * way
        torch.testing.assert_close((grad * way).sum(), (found[0] - found[1]) / 2e-6, rtol=1e-4, atol=1e-6)


def test_dropout_is_drawn_in_training_alone():
    there = beside(dropout=0.5)
    still = there.model(TOKENS, generator=fresh()).logits_BTV
    assert torch.equal(still, there.model(TOKENS).logits_BTV)
    there.model.train()
    first, second = (there.model(TOKENS, generator=fresh(seed)).logits_BTV for seed in (1, 2))
    assert not torch.equal(first, second)


def test_what_cannot_be_is_refused():
    with pytest.raises(MixwellError, match="is a stack of 4 experts"):
        Octavius.attach(model(sparse=True), ["all-linear"], Config(**OPTIONS), fresh())
    with pytest.raises(MixwellError, match=r"rank is 17 at layers\.0"):
        Octavius.attach(model(), None, Config(rank=17), fresh())
    with pytest.raises(MixwellError, match="stands in no network with an embedding"):
        Octavius.attach(model().layers[0], None, Config(**OPTIONS), fresh())
    with pytest.raises(MixwellError, match=r"layers\.0\.sequence_mixer\.qkv\.weight is not called with the network's"):
        beside().adapters["layers.0.sequence_mixer.qkv.weight"].target.owner(torch.zeros(2, 16, dtype=torch.float64))
    there = beside()
    cache = there.model.new_cache()
    cache.kept = None
    with pytest.raises(MixwellError, match="rows come in pieces side by side"):
        there.model(TOKENS, cache=cache)
    for options, message in (({"dropout": 1.0}, r"dropout is 1\.0"), ({"until": -1}, "until is -1; expected")):
        with pytest.raises(ValueError, match=message):
            Config(**options)
