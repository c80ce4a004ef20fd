"""Dumb loops that several layers' tests compare with."""

import torch


def silu(x):
    return x / (1 + torch.exp(-x))


def swiglu(x, gate_up, down):
    """One token through one SwiGLU block."""
    gate, up = (gate_up @ x).chunk(2)
    return down @ (silu(gate) * up)


def mixture(x_TD, weights_TE, expert):
    """sum_e weights[t, e] expert(e, x[t]), token by token."""
    rows = []
    for t in range(x_TD.shape[0]):
        total = torch.zeros_like(x_TD[t])
        for e in range(weights_TE.shape[1]):
            if weights_TE[t, e] != 0:
                total = total + weights_TE[t, e] * expert(e, x_TD[t])
        rows.append(total)
    return torch.stack(rows)


def enlarged(layer, factor=20.0):
    """The layer in float64 with larger weights, away from the small first values where errors hide."""
    layer = layer.double()
    with torch.no_grad():
        for p in layer.parameters():
            p.mul_(factor)
    return layer


def same_forward_and_gradient(found, expected, leaves, generator):
    """Assert that two results agree, and their gradients with respect to every leaf."""
    torch.testing.assert_close(found, expected)
    probe = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    got = torch.autograd.grad((found * probe).sum(), leaves, allow_unused=True)
    wanted = torch.autograd.grad((expected * probe).sum(), leaves, allow_unused=True)
    for a, b, leaf in zip(got, wanted, leaves):
        zero = torch.zeros_like(leaf)
        torch.testing.assert_close(zero if a is None else a, zero if b is None else b)
    assert any(a is not None and a.abs().max() > 0 for a in got)


def tokens(generator, count=9, dim=6):
    """Float64 tokens that take a gradient."""
    return torch.randn(count, dim, generator=generator, dtype=torch.float64, requires_grad=True)
