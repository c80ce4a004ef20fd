"""The HyperAdapter against loops, its two losses, retrieval, what it refuses."""

import math

import pytest
import torch

from mixwell.adapters.hyper_adapter import Config, HyperAdapter, instance_loss, prototype_loss, start_task
from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context
from tests.contracts._adapters import TOKENS, model, moved
from tests.contracts._tools import fresh

OPTIONS = {"num_tasks": 3, "rank": 2, "code": 4, "hidden": 5}
NAME = "layers.1.channel_mixer"
LABELS = torch.tensor([2, 0, 2])


def beside(size=0.3, **options):
    there = moved(HyperAdapter.attach(model(), None, Config(**OPTIONS | options), fresh()), size=size)
    there.model.double().eval()
    return there


def linear(mapping, x):
    return mapping.weight @ x + mapping.bias


def test_each_row_has_the_adapter_that_its_prototype_writes():
    there = beside()
    own, writer = there.adapters[NAME], there.adapters[NAME].writer
    mixer = own.target.owner
    x_TD = torch.randn(6, 16, generator=fresh(3), dtype=torch.float64)
    labels = LABELS.repeat_interleave(2)
    with torch.no_grad():
        y = mixer(x_TD, Context(batch_shape=(3, 2), labels_T=labels)).y_TD
        base = own.base(x_TD, Context()).y_TD
        for t, x in enumerate(x_TD):
            code = torch.cat((writer.prototypes[labels[t]], writer.layers[1]))
            h = linear(writer.out_of, linear(writer.into, code).clamp_min(0))
            h = (h - h.mean()) / (h.var(unbiased=False) + 1e-6).sqrt() * writer.norm.weight + writer.norm.bias
            V, U = linear(writer.heads["down"], h).view(2, 16), linear(writer.heads["up"], h).view(16, 2)
            hidden = (V @ x + linear(writer.heads["down_bias"], h)).clamp_min(0)
            torch.testing.assert_close(y[t], base[t] + U @ hidden + linear(writer.heads["up_bias"], h))


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def test_the_losses_agree_with_loops():
    z = torch.randn(5, 4, generator=fresh(1), dtype=torch.float64)
    prototypes = torch.randn(3, 4, generator=fresh(2), dtype=torch.float64)
    tasks = torch.tensor([0, 1, 0, 2, 0])  # 1 and 2 are alone
    found, near = [], []
    for i in range(5):
        s = [math.exp(cosine(z[i], other) / 0.5) for other in z]
        bottom = sum(s) - s[i]
        alike = [p for p in range(5) if p != i and tasks[p] == tasks[i]]
        if alike:
            found.append(-sum(math.log(s[p] / bottom) for p in alike) / len(alike))
        to = [cosine(z[i], prototype) / 0.5 for prototype in prototypes]
        others = sum(math.exp(to[t]) for t in range(3) if t != tasks[i])
        near.append(math.log(others) - to[tasks[i]])
    assert float(instance_loss(z, tasks, 0.5)) == pytest.approx(sum(found) / 3)
    assert float(prototype_loss(z, prototypes, tasks, 0.5)) == pytest.approx(sum(near) / 5)
    assert float(instance_loss(z[:1], tasks[:1], 0.5)) == 0
    own = -sum(cosine(row, prototypes[0]) for row in z) / 2.5
    assert float(prototype_loss(z, prototypes[:1], torch.zeros(5, dtype=torch.long), 0.5)) == pytest.approx(own)


def test_the_losses_are_outputs_once_with_their_coefficients_and_reach_prototypes_and_retriever():
    there = beside(instances=0.3, prototypes=0.7, temperature=0.5)
    found = there.model.train()(TOKENS, labels_B=LABELS)
    alike, near = found.losses["adapter_instances"], found.losses["adapter_prototypes"]
    torch.testing.assert_close(found.aux, (0.3 * alike + 0.7 * near).float(), rtol=1e-5, atol=1e-6)
    found.aux.backward()
    writer = there.adapters[NAME].writer
    assert writer.reads.weight.grad.any() and writer.prototypes.grad.any(1).all()
    assert writer.layers.grad is None  # nothing that a row says of itself enters its adapter


def test_a_row_without_a_label_takes_the_nearest_task_and_keeps_it():
    there = beside(until=7)
    writer = there.adapters[NAME].writer
    tokens = TOKENS.masked_fill(TOKENS == 7, 8)
    tokens[:, 5] = 7
    first = there.adapters["layers.0.channel_mixer"]
    seen = []
    hook = first.target.owner.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        free = there.model(tokens).logits_BTV
        hook.remove()
        means = [rows[:6].mean(0) for rows in seen[0].view(3, 17, 16)]
        z = [linear(writer.codes, linear(writer.reads, mean).clamp_min(0)) for mean in means]
        near = [max(range(3), key=lambda t, row=row: cosine(row, writer.prototypes[t])) for row in z]
        said = there.model(tokens, labels_B=torch.tensor(near)).logits_BTV
        torch.testing.assert_close(free, said)
        cache = there.model.new_cache()
        parts = [there.model(part, cache=cache).logits_BTV for part in tokens.split([8, 9], 1)]
        torch.testing.assert_close(torch.cat(parts, 1), free)
        padded = torch.cat((TOKENS[:, :2], tokens), 1)
        mask = torch.ones_like(padded, dtype=torch.bool)
        mask[:, :2] = False
        torch.testing.assert_close(there.model(padded, mask_BT=mask).logits_BTV[:, 2:], free)


def test_a_new_task_starts_from_the_nearest_prototype():
    there = beside()
    writer = there.adapters[NAME].writer
    with torch.no_grad():
        before = writer.prototypes.clone()
        like = start_task(there, TOKENS, 1)
        assert like in (0, 2) and torch.equal(writer.prototypes[1], before[like])
        assert torch.equal(writer.prototypes[[0, 2]], before[[0, 2]])
        labelled = [there.model(TOKENS, labels_B=torch.full((3,), task)).logits_BTV for task in (1, like)]
        assert torch.equal(*labelled)
    with pytest.raises(MixwellError, match="task is 3; expected one of 0 to 2"):
        start_task(there, TOKENS, 3)


def test_the_start_is_the_base_but_for_what_heads_start_with():
    there = HyperAdapter.attach(model(), None, Config(**OPTIONS | {"num_tasks": 1}), fresh())
    x_TD = torch.randn(6, 16, generator=fresh(3))
    mixer, own = there.adapters[NAME].target.owner, there.adapters[NAME]
    away = (mixer(x_TD, Context()).y_TD - own.base(x_TD, Context()).y_TD).abs().max()
    assert 0 < away < 3e-3
    assert there.num_parameters == sum(p.numel() for p in there.adapters[NAME].writer.parameters())  # shared by layers


def test_what_cannot_be_is_refused():
    there = beside()
    mixer = there.adapters["layers.0.channel_mixer"].target.owner
    with pytest.raises(MixwellError, match="knows the tasks 0 to 2 and got 0 to 3"):
        there.model(TOKENS, labels_B=torch.tensor([0, 3, 1]))
    x = torch.zeros(2, 16, dtype=torch.float64)
    with pytest.raises(MixwellError, match="nothing is kept here"):
        mixer(x, Context())
    there.model.train()
    with pytest.raises(MixwellError, match="knows 3 tasks and trains without labels"):
        there.model(TOKENS)
    with pytest.raises(MixwellError, match=r"rank is 17 at layers\.0"):
        HyperAdapter.attach(model(), None, Config(rank=17), fresh())
    for options, message in (({"temperature": 0.0}, "temperature is"), ({"until": -1}, "until is -1"),
                             ({"instances": -1.0}, "instances is -1")):
        with pytest.raises(ValueError, match=message):
            Config(**options)
