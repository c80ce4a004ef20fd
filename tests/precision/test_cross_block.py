"""CBQ: bounds and windows by hand, a start that is nearest, the loss by a loop, whole windows closer, refusals."""

import pytest
import torch

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.lm import met
from mixwell.lm.model import LanguageModel
from mixwell.precision._parts import WEIGHTS, chosen, nearest
from mixwell.precision.cross_block import (
    Config,
    Learned,
    Streams,
    bound,
    cross_block,
    distance,
    example,
    inside,
    learn,
    opened,
    promises,
    truncated,
    windows,
)
from tests.contracts._conversions import calibration, whole
from tests.contracts._tools import fresh


@pytest.fixture(scope="module")
def model():
    mixture = example(fresh())["checkpoint"]
    made = whole(Checkpoint({**mixture.arch, "num_layers": 2}, {}))
    large = {name: value * 8 for name, value in made.tensors.items() if name.endswith(WEIGHTS)}
    return made.derive(tensors={**made.tensors, **large})


def test_a_bound_keeps_what_is_close_and_cuts_what_is_apart():
    """Candidates above the fences, each split by hand: the widest gap but for the spread below it."""
    sizes = torch.cat([torch.linspace(0, 1, 101), torch.tensor([2.6, 2.7, 2.9, 6.0, 6.1])]).double()
    signed = sizes * torch.tensor([1.0, -1.0]).repeat(53)
    for spread in (0.0, 1.0, 1e6):
        outside = [2.6, 2.7, 2.9, 6.0, 6.1]
        worth = []
        for count in range(1, 5):
            kept = torch.tensor(outside[:count], dtype=torch.float64)
            gap = outside[count] - outside[count - 1]
            worth.append(gap**2 - spread * float(kept.var(unbiased=False)))
        wanted = outside[worth.index(max(worth))]
        assert bound(signed, spread) == pytest.approx(wanted)
    assert bound(signed, 1.0) == pytest.approx(2.9)
    calm = torch.linspace(-1, 1, 50)
    assert torch.equal(truncated(calm, 1.0), calm)
    stack = torch.stack([calm.view(5, 10), signed[-50:].view(5, 10).float()])
    assert torch.equal(truncated(stack, 1.0)[0], stack[0])  # each expert has a bound of its own


@pytest.mark.parametrize(("window", "overlap", "wanted"), [
    (2, 1, [(0, 1), (1, 2), (2, 3), (3, 4)]), (1, 0, [(0,), (1,), (2,), (3,), (4,)]),
    (3, 1, [(0, 1, 2), (2, 3, 4)]), (2, 0, [(0, 1), (2, 3), (4,)]), (9, 1, [(0, 1, 2, 3, 4)])])
def test_windows_slide_over_all_layers(window, overlap, wanted):
    assert [tuple(layers) for layers in windows(5, Config(window=window, overlap=overlap))] == wanted


def test_starts_at_nearest_and_learns_fewer_numbers_than_there_are_weights(generator):
    weight = torch.randn(3, 16, 64, generator=generator)
    config = Config(bits=3, group_size=32, truncate=False, rank=2)
    learned = opened(weight, config, generator)
    away = (learned.groups / learned.scale.unsqueeze(-1) % 1 - 0.5).abs()
    assert float(away.min()) > 1e-6  # no tie
    assert torch.equal(learned.coded().codes, nearest(weight, 3, 32, True).codes)
    torch.testing.assert_close(learned.final(), learned.coded().weight().dequantised(torch.float32))
    assert learned.tall.numel() + learned.wide.numel() == 3 * 2 * (16 + 64)


def test_scales_and_both_factors_get_the_gradient_of_differences(generator):
    weight = torch.randn(4, 8, generator=generator)
    narrow = opened(weight, Config(bits=3, group_size=8, rank=2, truncate=False), generator)
    learned = Learned(*(part.detach().double().requires_grad_() for part in list(vars(narrow).values())[:-1]), 3)
    with torch.no_grad():
        learned.wide.normal_(0, 0.1, generator=generator)
    aim = torch.randn(4, 8, generator=generator, dtype=torch.float64)

    def loss():
        return ((learned.weight(learned.up()) - aim) ** 2).sum()

    loss().backward()
    with torch.no_grad():
        for part in (learned.tall, learned.wide, learned.stretch):
            found = part.grad.flatten()
            for place in range(0, part.numel(), 3):
                values = []
                for move in (1e-6, -2e-6):
                    part.view(-1)[place] += move
                    values.append(float(loss()))
                part.view(-1)[place] += 1e-6
                assert (values[0] - values[1]) / 2e-6 == pytest.approx(float(found[place]), rel=1e-4, abs=1e-4)


def test_the_distance_by_a_loop(generator):
    y, aim = torch.randn(2, 2, 3, 5, generator=generator, dtype=torch.float64)
    total = 0.0
    for b in range(2):
        for t in range(3):
            p, q = aim[b, t].exp() / aim[b, t].exp().sum(), y[b, t].exp() / y[b, t].exp().sum()
            total += float((p * (p / q).log()).sum())
    share = float(((y - aim) ** 2).sum() / (aim**2).sum())
    assert float(distance(y, aim)) == pytest.approx(share + total / 6)
    assert float(distance(aim, aim)) == pytest.approx(0)


def test_layers_one_behind_the_other_are_the_model(model):
    text = calibration()
    tokens = text.batches[0]
    running = LanguageModel.from_checkpoint(model, dtype=torch.float32).eval()
    first = text.through(model, tokens, None, range(1), {})
    last = text.through(model, tokens, first, range(1, running.config.num_layers), {})
    with torch.no_grad():
        torch.testing.assert_close(running.logits_of(running.norm(last)), running(tokens).logits_BTV)
    name = "layers.1.channel_mixer.down_proj"
    moved = text.through(model, tokens, first, range(1, 2), {name: model.tensors[name] * 2})
    other = model.derive(tensors={**model.tensors, name: model.tensors[name] * 2})
    torch.testing.assert_close(moved, text.through(other, tokens, first, range(1, 2), {}))


def test_learning_brings_a_window_closer_and_moves_nothing_outside(model):
    config = Config(bits=2, group_size=8, steps=40, lr=0.03, scale_lr=0.002, weight=0.05, warm_up=0.1, rank=3,
                    tokens=72)
    text, names = calibration(), chosen(model, False)
    weights = {name: opened(model.tensors[name], config, fresh(1)) for name in names}
    before = {name: learned.final() for name, learned in weights.items()}
    nothing = [None] * len(text.batches)
    streams, layers = Streams(model, text, nothing, nothing), range(1)
    learn(inside(weights, layers), streams, layers, config)
    errors = []
    with torch.no_grad():
        for final in (before, {name: learned.final() for name, learned in weights.items()}):
            found = [distance(streams.through(b, None, layers, final), aim)
                     for b, aim in enumerate(streams.aims(layers))]
            errors.append(float(sum(found)))
    assert errors[1] < 0.8 * errors[0]
    for name, learned in weights.items():
        still = not name.startswith("layers.0.")
        assert torch.equal(learned.final(), before[name]) == still


def test_every_layer_is_learned_behind_those_rounded_before(model):
    config = Config(bits=3, group_size=8, window=1, overlap=0, steps=3, tokens=72, max_kl_nats=0.5)
    done = cross_block(model, config, fresh(1), calibration())
    start = {name: nearest(truncated(model.tensors[name], config.spread), 3, 8, True) for name in chosen(model, False)}
    for layer in range(2):
        assert any(not torch.equal(coded.stored(name)[f"{name}.scale"], done.tensors[f"{name}.scale"])
                   for name, coded in start.items() if name.startswith(f"layers.{layer}."))
    assert promises(config) == {"kl_nats": 0.5}


def test_refusals(model, monkeypatch):
    with pytest.raises(ValueError, match="overlap is 2; expected less than window = 2"):
        Config(overlap=2)
    with pytest.raises(ValueError, match="warm_up is 1"):
        Config(warm_up=1.0)
    with pytest.raises(MixwellError, match="group_size 12 does not divide"):
        cross_block(example(fresh())["checkpoint"], Config(group_size=12), fresh(), calibration())
    running = LanguageModel.from_checkpoint(model, dtype=torch.float32)
    routing = running(calibration().batches[0]).routings[0]
    object.__setattr__(routing, "state", torch.zeros(1))
    layer = running.layers[0].channel_mixer
    monkeypatch.setattr(layer, "forward", lambda x, context: type("Mixed", (), {"routing": routing, "y_TD": x})())
    with pytest.raises(MixwellError, match="hands a state on to the next layer's router"):
        met.through(running, calibration().batches[0], None, range(1), {})
