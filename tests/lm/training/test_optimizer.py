"""AdamW on masters against a float64 loop and torch's own, and the schedule."""

import math

import pytest
import torch
from torch import nn

from mixwell.core.errors import MixwellError
from mixwell.lm.training.optimizer import MasterAdamW, decays
from mixwell.lm.training.schedule import learning_rate

BETAS, EPS, DECAY = (0.9, 0.95), 1e-8, 0.1


class Net(nn.Module):
    def __init__(self, generator):
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.router = nn.Linear(6, 3, bias=False)
        self.mix = nn.Linear(6, 6)
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)
        for parameter in self.parameters():
            if parameter.requires_grad:
                parameter.data = torch.randn(parameter.shape, generator=generator)

    def cast(self, dtype):
        for parameter in (self.embed.weight, self.mix.weight):
            parameter.data = parameter.data.to(dtype)

    def forward(self, ids):
        x = self.embed(ids) @ self.mix.weight.T + self.mix.bias
        return (self.router(x.float()) ** 2).mean()


@pytest.fixture
def net(generator):
    return Net(generator)


IDS = torch.tensor([0, 3, 3, 5])


def gradients(net, scale=1.0):
    (net(IDS) * scale).backward()


def adamw_loop(values, grads, lr, decay, clip):
    """AdamW (Loshchilov & Hutter 2019, algorithm 2) on lists of numbers: grads[step][i]; returns the last values."""
    first, second = [0.0] * len(values), [0.0] * len(values)
    for t, row in enumerate(grads, start=1):
        norm = math.sqrt(sum(g * g for g in row))
        shrink = min(1.0, clip / norm) if clip else 1.0
        for i, g in enumerate(row):
            g *= shrink
            first[i] = BETAS[0] * first[i] + (1 - BETAS[0]) * g
            second[i] = BETAS[1] * second[i] + (1 - BETAS[1]) * g * g
            m, v = first[i] / (1 - BETAS[0] ** t), second[i] / (1 - BETAS[1] ** t)
            values[i] = values[i] * (1 - lr * decay[i]) - lr * m / (math.sqrt(v) + EPS)
    return values


@pytest.mark.parametrize("clip", [0.0, 0.5, 1e6])
def test_agrees_with_a_float64_loop(net, clip):
    optimizer = MasterAdamW(net, betas=BETAS, eps=EPS, weight_decay=DECAY)
    named = {n: p for n, p in net.named_parameters() if p.requires_grad}
    values = torch.cat([p.detach().double().flatten() for p in named.values()]).tolist()
    decay = [DECAY * decays(n, p) for n, p in named.items() for _ in range(p.numel())]
    rows = []
    for _ in range(4):
        gradients(net)
        rows.append(torch.cat([p.grad.double().flatten() for p in named.values()]).tolist())
        norm = optimizer.grad_norm()
        assert norm.item() == pytest.approx(math.sqrt(sum(g * g for g in rows[-1])), rel=1e-6)
        optimizer.step(0.05, norm.item(), clip)
    found = torch.cat([p.detach().double().flatten() for p in named.values()])
    torch.testing.assert_close(found, torch.tensor(adamw_loop(values, rows, 0.05, decay, clip)).double(),
                               atol=2e-6, rtol=1e-5)
    assert torch.equal(net.frozen, torch.ones(2, 2))


@pytest.mark.slow
def test_in_float32_without_clipping_it_is_torchs_adamw(net, generator):
    other = Net(generator)
    other.load_state_dict(net.state_dict())
    optimizer = MasterAdamW(net, betas=BETAS, eps=EPS, weight_decay=0.0)
    theirs = torch.optim.AdamW(other.parameters(), lr=0.03, betas=BETAS, eps=EPS, weight_decay=0.0, foreach=False)
    for _ in range(5):
        gradients(net)
        gradients(other)
        optimizer.step(0.03)
        theirs.step()
        theirs.zero_grad()
    for mine, other_one in zip(net.parameters(), other.parameters()):
        torch.testing.assert_close(mine, other_one, atol=1e-6, rtol=1e-6)


def test_bfloat16_matrices_with_float32_masters(net):
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    optimizer = MasterAdamW(net, dtype="bf16")
    dtypes = {n: p.dtype for n, p in net.named_parameters()}
    assert [n for n, d in dtypes.items() if d == torch.bfloat16] == ["embed.weight", "mix.weight"]
    state = optimizer.tensors()
    assert all(torch.equal(state[f"master.{n}"], before[n]) for n in before if n != "frozen")
    for _ in range(200):  # steps so small that bfloat16 alone would round every one of them away
        gradients(net)
        optimizer.step(1e-5)
    drift = (optimizer.tensors()["master.mix.weight"] - before["mix.weight"]).abs().max()
    assert 1e-4 < drift < 4e-3
    for name, parameter in net.named_parameters():
        if name != "frozen":
            assert torch.equal(parameter, optimizer.tensors()[f"master.{name}"].to(parameter.dtype))


def test_gradients_add_up_in_float32(net):
    optimizer = MasterAdamW(net, dtype="bf16")
    gradients(net)
    one = optimizer.grad_norm()
    assert net.mix.weight.grad is None  # already with the master
    for _ in range(2):
        gradients(net, 2.0**-9)  # in bfloat16, 1 + 2**-9 is 1 again
    assert optimizer.grad_norm().item() == pytest.approx(one.item() * (1 + 2**-8), rel=1e-6)
    optimizer.step(0.0)
    gradients(net)
    assert torch.equal(optimizer.grad_norm(), one)


def test_a_zero_gradient_is_a_fixed_point_and_none_leaves_all_as_it_was(net):
    optimizer = MasterAdamW(net, weight_decay=0.0)
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    gradients(net, 0.0)
    optimizer.step(0.1)
    assert all(torch.equal(p, before[n]) for n, p in net.named_parameters())
    (net.mix.weight**2).sum().backward()
    optimizer.step(0.1)
    assert not torch.equal(net.mix.weight, before["mix.weight"])
    assert torch.equal(net.embed.weight, before["embed.weight"])
    assert optimizer.tensors()["step.embed.weight"] == 1 and optimizer.tensors()["step.mix.weight"] == 2


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_resuming_is_bit_identical(net, generator, dtype):
    optimizer = MasterAdamW(net, dtype=dtype)
    for _ in range(3):
        gradients(net)
        optimizer.step(0.01)
    state = {n: t.clone() for n, t in optimizer.tensors().items()}
    other = Net(generator)
    resumed = MasterAdamW(other, dtype=dtype)
    resumed.load_tensors(state)
    for _ in range(3):
        gradients(net)
        gradients(other)
        optimizer.step(0.01, 9.0, 1.0)
        resumed.step(0.01, 9.0, 1.0)
    for name, tensor in optimizer.tensors().items():
        assert torch.equal(tensor, resumed.tensors()[name]), name
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters()))


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_gradients_from_before_and_after_are_not_its_own(net, dtype):
    gradients(net)
    optimizer = MasterAdamW(net, dtype=dtype)
    assert all(p.grad is None for p in net.parameters())
    gradients(net)
    optimizer.release()
    assert all(p.grad is None for p in net.parameters())
    gradients(net)
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)  # the hooks are off


def test_matrices_decay_but_not_norms_biases_and_the_embedding():
    matrix, vector, stack = torch.ones(2, 2), torch.ones(2), torch.ones(3, 2)
    assert decays("layers.0.channel_mixer.gate_up_proj", matrix) and decays("head.weight", matrix)
    assert not any((decays("norm.weight", vector), decays("embed.weight", matrix), decays("experts.up_bias", stack)))


def test_refusals(net):
    optimizer = MasterAdamW(net)
    with pytest.raises(MixwellError, match=r"no gradient .* call backward\(\) first"):
        optimizer.grad_norm()
    with pytest.raises(MixwellError, match=r"holds nothing for 'embed.weight', \[7, 6\] expected"):
        optimizer.load_tensors({})
    with pytest.raises(MixwellError, match=r"holds \[2\] for 'embed.weight'"):
        optimizer.load_tensors({"master.embed.weight": torch.ones(2)})
    with pytest.raises(MixwellError, match="no parameter to train"):
        MasterAdamW(net.requires_grad_(False))


def test_schedule_rises_stays_and_falls():
    def at(progress, shape="linear"):
        return learning_rate(progress, peak=2.0, floor=0.5, warmup=0.1, decay=0.4, shape=shape)

    assert [at(0), at(0.05), at(0.1), at(0.6)] == [0.0, 1.0, 2.0, 2.0]
    assert at(0.8) == pytest.approx(1.25) and at(1.0) == at(7.0) == pytest.approx(0.5)
    assert at(0.7, "1-sqrt") == pytest.approx(0.5 + 1.5 * (1 - math.sqrt(0.25)))
    assert at(1.0, "1-sqrt") == pytest.approx(0.5)
    assert learning_rate(0.0, peak=2.0) == learning_rate(1.0, peak=2.0) == 2.0
    values = [at(i / 100) for i in range(60, 101)]
    assert values == sorted(values, reverse=True)
