"""The Mamba block as a loop over rows, positions, channels and states."""

import torch


def softplus(x):
    return torch.log1p(torch.exp(x))


def silu(x):
    return x / (1 + torch.exp(-x))


def loop(layer, x_BTD, maps):
    """`maps(name, row, position, vector)` applies a projection; everything else is written out."""
    c, I, R = layer.config, layer.inner, layer.rank
    rates = torch.exp(layer.dynamics.log_rate)
    rows = []
    for b in range(x_BTD.shape[0]):
        h = [[torch.zeros((), dtype=x_BTD.dtype) for _ in range(c.state_dim)] for _ in range(I)]
        inputs, out = [], []
        for t in range(x_BTD.shape[1]):
            both = maps("in_proj", b, t, x_BTD[b, t])
            inputs.append(both[:I])
            u = []
            for i in range(I):
                total = layer.conv_bias[i]
                for w in range(c.conv_width):
                    at = t - (c.conv_width - 1) + w
                    if at >= 0:
                        total = total + layer.conv_weight[i, w] * inputs[at][i]
                u.append(silu(total))
            u = torch.stack(u)
            small = maps("x_proj", b, t, u)
            B, C = small[R : R + c.state_dim], small[R + c.state_dim :]
            dt = softplus(maps("dt_proj", b, t, small[:R]))
            y = []
            for i in range(I):
                for n in range(c.state_dim):
                    h[i][n] = torch.exp(-dt[i] * rates[i, n]) * h[i][n] + dt[i] * B[n] * u[i]
                y.append(sum(C[n] * h[i][n] for n in range(c.state_dim)) + layer.dynamics.skip[i] * u[i])
            out.append(maps("out", b, t, torch.stack(y) * silu(both[I:])))
        rows.append(torch.stack(out))
    return torch.stack(rows)


def shake(layer, scale=0.5):
    """The layer in float64 with normal values of some size, so that no error hides; rates stay near 1 to N."""
    layer = layer.double()
    draws = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, p in layer.named_parameters():
            noise = torch.randn(p.shape, generator=draws, dtype=torch.float64) * scale
            p.copy_(p + noise if "log_rate" in name else noise)
    return layer


def inputs(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def gradients(y, layer, x):
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(4), dtype=y.dtype)
    return list(torch.autograd.grad((y * weights).sum(), [x, *layer.parameters()]))
