"""The selective scan, and the block around it that the Mamba family shares.

Legend: B rows, T positions, L positions of a chunk, D width, I inner width, N states of a channel, R rank of dt,
W convolution width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mixwell.kernels.linear import Linear
from mixwell.kernels.norm import wide
from mixwell.sequence._parts import SequenceMixer


@dataclass(frozen=True, kw_only=True)
class ScanConfig:
    """Options of a selective-scan block."""

    expand: int = 2  # I / D
    state_dim: int = 16  # N, states of each channel
    conv_width: int = 4  # W, positions that the convolution sees; 1 scales each channel
    dt_rank: int | None = None  # R; default ceil(D / 16)
    dt_min: float = 1e-3  # smallest step at the start, above 0
    dt_max: float = 0.1  # largest step at the start, at least dt_min
    chunk_size: int = 16  # L, positions whose states are held at a time; changes memory and speed, not the result

    def __post_init__(self) -> None:
        for name in ("expand", "state_dim", "conv_width", "dt_rank", "chunk_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")
        if not 0 < self.dt_min <= self.dt_max:
            raise ValueError(f"dt_min is {self.dt_min}, dt_max {self.dt_max}; expected 0 < dt_min <= dt_max")


def _chunks(positions: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, positions)) for start in range(0, positions, size)]


def _states(u_LBI: Tensor, dt_LBI: Tensor, A_IN: Tensor, B_LBN: Tensor, state_BIN: Tensor) -> tuple[Tensor, Tensor]:
    """(decays, states) of a chunk [L, B, I, N]: everything in bulk but the multiply-adds along the positions."""
    decay = (dt_LBI.unsqueeze(-1) * A_IN).exp_()
    h = (dt_LBI * u_LBI).unsqueeze(-1) * B_LBN.unsqueeze(-2)
    last = state_BIN
    for now, kept in zip(h.unbind(0), decay.unbind(0)):
        last = now.addcmul_(kept, last)
    return decay, h


class _Scan(torch.autograd.Function):
    """Chunk after chunk; keeps the states between chunks only, and makes the others again in the backward pass."""

    @staticmethod
    def forward(ctx, u_BTI: Tensor, dt_BTI: Tensor, A_IN: Tensor, B_BTN: Tensor, C_BTN: Tensor, state_BIN: Tensor,
                size: int) -> tuple[Tensor, Tensor]:
        y_BTI, starts, state = u_BTI.new_empty(u_BTI.shape), [], state_BIN.clone()
        for at in _chunks(u_BTI.shape[1], size):
            starts.append(state)
            u, dt, B, C = _along(at, u_BTI, dt_BTI, B_BTN, C_BTN)
            _, h = _states(u, dt, A_IN, B, state)
            y_BTI[:, at] = (h @ C.unsqueeze(-1)).squeeze(-1).transpose(0, 1)
            state = h[-1].clone()
        ctx.save_for_backward(u_BTI, dt_BTI, A_IN, B_BTN, C_BTN, *starts)
        ctx.size = size
        return y_BTI, state

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y: Tensor, grad_state: Tensor):
        u_BTI, dt_BTI, A, B_BTN, C_BTN, *starts = ctx.saved_tensors
        grads = [t.new_empty(t.shape) for t in (u_BTI, dt_BTI, B_BTN, C_BTN)]
        grad_A, carry = torch.zeros_like(A), grad_state
        for at, start in reversed(list(zip(_chunks(u_BTI.shape[1], ctx.size), starts))):
            u, dt, B, C, out = _along(at, u_BTI, dt_BTI, B_BTN, C_BTN, grad_y)
            decay, h = _states(u, dt, A, B, start)
            g = out.unsqueeze(-1) * C.unsqueeze(-2)
            for now, kept in zip(reversed(g.unbind(0)), reversed(decay.unbind(0))):
                carry = now.add_(carry) * kept
            grad_in = (g @ B.unsqueeze(-1)).squeeze(-1)
            grad_B = ((dt * u).unsqueeze(-2) @ g).squeeze(-2)
            slope = g.mul_(decay)  # from here on the gradient of dt A
            slope[0] *= start
            slope[1:] *= h[:-1]
            grad_dt = torch.einsum("lbin,in->lbi", slope, A).addcmul_(grad_in, u)
            grad_A += torch.einsum("lbin,lbi->in", slope, dt)
            grad_C = (out.unsqueeze(-2) @ h).squeeze(-2)
            for grad, part in zip(grads, (grad_in * dt, grad_dt, grad_B, grad_C)):
                grad[:, at] = part.transpose(0, 1)
        return grads[0], grads[1], grad_A, grads[2], grads[3], carry, None


def _along(at: slice, *values_BTX: Tensor) -> list[Tensor]:
    """The positions `at` of each, position first."""
    return [v[:, at].transpose(0, 1).contiguous() for v in values_BTX]


def selective_scan(u_BTI: Tensor, dt_BTI: Tensor, A_IN: Tensor, B_BTN: Tensor, C_BTN: Tensor, state_BIN: Tensor,
                   chunk_size: int) -> tuple[Tensor, Tensor]:
    """(y [B, T, I], state after the last position): h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t,  y_t = C_t . h_t.

    All in one type, float32 or better; a position with dt = 0 leaves the state as it was.
    """
    return _Scan.apply(u_BTI, dt_BTI, A_IN, B_BTN, C_BTN, state_BIN, chunk_size)


def causal_conv(u_BTI: Tensor, weight_IW: Tensor, bias_I: Tensor, tail_BWI: Tensor) -> tuple[Tensor, Tensor]:
    """(each channel convolved with its own W weights, the last W - 1 inputs); `tail_BWI` holds those before."""
    whole = torch.cat((tail_BWI, u_BTI), 1)
    T = u_BTI.shape[1]
    y = bias_I
    for w, weight_I in enumerate(weight_IW.unbind(1)):
        y = torch.addcmul(y, weight_I, whole[:, w : w + T])
    return y, whole[:, T:]


class ScanCache:
    """What a scan keeps of the positions so far: the last inputs of the convolution and the states."""

    def __init__(self) -> None:
        self.length = 0
        self.tail_BWI: Tensor | None = None
        self.state_BIN: Tensor | None = None

    def append(self, tail_BWI: Tensor, state_BIN: Tensor, positions: int) -> None:
        """Go on by so many positions."""
        self.tail_BWI, self.state_BIN, self.length = tail_BWI, state_BIN, self.length + positions


class _Dynamics(nn.Module):
    """A and the skip, which stay float32 whatever the model computes in."""

    keep_float32 = True

    def __init__(self, inner: int, states: int, device: torch.device | None) -> None:
        super().__init__()
        rates = torch.arange(1, states + 1, dtype=torch.float32, device=device)
        self.log_rate = nn.Parameter(rates.log().expand(inner, states).clone())
        self.skip = nn.Parameter(torch.ones(inner, device=device))


class ScanBlock(SequenceMixer):
    """The Mamba block. Subclasses may make its four maps in another way (`make`) and say how to apply them (`map`)."""

    config: ScanConfig

    def __init__(self, dim: int, config: ScanConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        device = None if generator is None else generator.device
        self.dim, self.config = dim, config
        self.inner, self.rank = config.expand * dim, config.dt_rank or math.ceil(dim / 16)
        self.in_proj = self.make("in", dim, 2 * self.inner, False, generator)
        bound = config.conv_width**-0.5
        draw = torch.rand(self.inner, config.conv_width, generator=generator, device=device)
        self.conv_weight = nn.Parameter((2 * draw - 1) * bound)
        self.conv_bias = nn.Parameter(torch.zeros(self.inner, device=device))
        self.x_proj = self.make("x", self.inner, self.rank + 2 * config.state_dim, False, generator)
        self.dt_proj = self.make("dt", self.rank, self.inner, True, generator)
        self.dt_proj.keep_float32 = True
        _start_steps(self.dt_proj, self.rank, config, generator)
        self.dynamics = _Dynamics(self.inner, config.state_dim, device)
        self.out = self.make("out", self.inner, dim, False, generator)

    def make(self, name: str, inputs: int, outputs: int, bias: bool, generator: torch.Generator | None) -> Any:
        """The map `name`: one of in, x, dt and out."""
        return Linear(inputs, outputs, bias, generator)

    def map(self, module: Any, x_BTI: Tensor, copies: Any) -> Tensor:
        """Apply one of the maps; `copies` is what `mix` was given."""
        return module(x_BTI)

    def new_cache(self) -> ScanCache:
        """An empty cache for `forward`."""
        return ScanCache()

    def mix(self, x_BTD: Tensor, cache: ScanCache | None, mask_BT: Tensor | None, copies: Any = None) -> Tensor:
        """[B, T, D] -> [B, T, D]; `cache` is read and extended; padding leaves the states alone."""
        c = self.config
        u, z = self.map(self.in_proj, x_BTD, copies).chunk(2, -1)
        if mask_BT is not None:
            u = u * mask_BT.unsqueeze(-1)
        tail, state = self._start(u, cache)
        u, tail = causal_conv(u, self.conv_weight, self.conv_bias, tail)
        u = F.silu(u)
        dt, B, C = wide(self.map(self.x_proj, u, copies)).split((self.rank, c.state_dim, c.state_dim), -1)
        dt = F.softplus(self.map(self.dt_proj, dt.contiguous(), copies))  # oneDNN crawls on strided inputs
        if mask_BT is not None:
            dt = dt * mask_BT.unsqueeze(-1)
        y, state = selective_scan(wide(u), dt, -self.dynamics.log_rate.exp(), B, C, state, c.chunk_size)
        if cache is not None:
            cache.append(tail, state, x_BTD.shape[1])
        y = (y + self.dynamics.skip * wide(u)) * F.silu(wide(z))
        return self.map(self.out, y.to(x_BTD.dtype), copies)

    def _start(self, u_BTI: Tensor, cache: ScanCache | None) -> tuple[Tensor, Tensor]:
        if cache is not None and cache.tail_BWI is not None and cache.state_BIN is not None:
            return cache.tail_BWI, cache.state_BIN
        B = u_BTI.shape[0]
        state = wide(u_BTI[:0]).new_zeros(B, self.inner, self.config.state_dim)
        return u_BTI.new_zeros(B, self.config.conv_width - 1, self.inner), state

    def flops_per_token(self, context_length: int) -> float:
        """2 D 2 I + 2 I (R + 2 N) + 2 R I + 2 I D for the maps, 2 W I and 6 I N for convolution and scan; the same at
        any `context_length`."""
        I, N, R = self.inner, self.config.state_dim, self.rank
        maps = 2 * self.dim * I + I * (R + 2 * N) + R * I + I * self.dim
        return 2.0 * maps + 2.0 * self.config.conv_width * I + 6.0 * I * N


def _start_steps(module: Any, rank: int, config: ScanConfig, generator: torch.Generator | None) -> None:
    """Weights uniform within R^-0.5; biases so that softplus gives steps log-uniform from dt_min to dt_max."""
    weight, bias = (torch.rand(p.shape, generator=generator, device=p.device) for p in (module.weight, module.bias))
    low, high = math.log(config.dt_min), math.log(config.dt_max)
    dt = torch.exp(low + bias * (high - low))
    with torch.no_grad():
        module.weight.copy_((2 * weight - 1) * rank**-0.5)
        module.bias.copy_(dt + torch.log(-torch.expm1(-dt)))
