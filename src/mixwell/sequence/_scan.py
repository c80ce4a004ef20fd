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
from mixwell.mixing import check_least
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
        check_least(self, expand=1, state_dim=1, conv_width=1, dt_rank=1, chunk_size=1)
        low = self.dt_min
        high = self.dt_max
        if not 0 < low <= high:
            raise ValueError(f"dt_min is {low}, dt_max {high}; expected 0 < dt_min <= dt_max")


def _chunks(positions: int, size: int) -> list[slice]:
    starts = range(0, positions, size)
    return [slice(start, min(start + size, positions)) for start in starts]


def _states(u_LBI: Tensor, dt_LBI: Tensor, A_IN: Tensor, B_LBN: Tensor, state_BIN: Tensor) -> tuple[Tensor, Tensor]:
    """(decays, states) of a chunk [L, B, I, N]: everything in bulk but the multiply-adds along the positions."""
    decay = (dt_LBI.unsqueeze(-1) * A_IN).exp_()
    inputs = (dt_LBI * u_LBI).unsqueeze(-1)
    h = inputs * B_LBN.unsqueeze(-2)
    last = state_BIN
    steps = zip(h.unbind(0), decay.unbind(0))
    for now, kept in steps:
        last = now.addcmul_(kept, last)
    return decay, h


class _Scan(torch.autograd.Function):
    """Chunk after chunk; keeps the states between chunks only, and makes the others again in the backward pass."""

    @staticmethod
    def forward(ctx, u_BTI: Tensor, dt_BTI: Tensor, A_IN: Tensor, B_BTN: Tensor, C_BTN: Tensor, state_BIN: Tensor,
                size: int) -> tuple[Tensor, Tensor]:
        y_BTI = u_BTI.new_empty(u_BTI.shape)
        state = state_BIN.clone()
        starts = []
        for at in _chunks(u_BTI.shape[1], size):
            starts.append(state)
            u, dt, B, C = _along(at, u_BTI, dt_BTI, B_BTN, C_BTN)
            _, h = _states(u, dt, A_IN, B, state)
            out = C.unsqueeze(-1)
            y = h @ out
            y = y.squeeze(-1)
            y_BTI[:, at] = y.transpose(0, 1)
            state = h[-1].clone()
        ctx.save_for_backward(u_BTI, dt_BTI, A_IN, B_BTN, C_BTN, *starts)
        ctx.size = size
        return y_BTI, state

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y: Tensor, grad_state: Tensor):
        u_BTI, dt_BTI, A, B_BTN, C_BTN, *starts = ctx.saved_tensors
        grads = [t.new_empty(t.shape) for t in (u_BTI, dt_BTI, B_BTN, C_BTN)]
        grad_A = torch.zeros_like(A)
        carry = grad_state
        chunks = list(zip(_chunks(u_BTI.shape[1], ctx.size), starts))
        for at, start in reversed(chunks):
            u, dt, B, C, out = _along(at, u_BTI, dt_BTI, B_BTN, C_BTN, grad_y)
            decay, h = _states(u, dt, A, B, start)
            g, carry = _state_gradients(out, C, decay, carry)
            grad_in = (g @ B.unsqueeze(-1)).squeeze(-1)
            inputs = (dt * u).unsqueeze(-2)
            grad_B = (inputs @ g).squeeze(-2)
            slope = g.mul_(decay)  # from here on the gradient of dt A
            slope[0] *= start
            slope[1:] *= h[:-1]
            grad_dt = torch.einsum("lbin,in->lbi", slope, A)
            grad_dt = grad_dt.addcmul_(grad_in, u)
            grad_A += torch.einsum("lbin,lbi->in", slope, dt)
            grad_C = (out.unsqueeze(-2) @ h).squeeze(-2)
            parts = (grad_in * dt, grad_dt, grad_B, grad_C)
            for grad, part in zip(grads, parts):
                grad[:, at] = part.transpose(0, 1)
        grad_u, grad_dt, grad_B, grad_C = grads
        return grad_u, grad_dt, grad_A, grad_B, grad_C, carry, None


def _state_gradients(out_LBI: Tensor, C_LBN: Tensor, decay: Tensor, carry: Tensor) -> tuple[Tensor, Tensor]:
    """(gradient of a chunk's states [L, B, I, N], gradient of the state before it), from the last position back."""
    g = out_LBI.unsqueeze(-1) * C_LBN.unsqueeze(-2)
    backward = zip(reversed(g.unbind(0)), reversed(decay.unbind(0)))
    for now, kept in backward:
        carry = now.add_(carry) * kept
    return g, carry


def _along(at: slice, *values_BTX: Tensor) -> list[Tensor]:
    """The positions `at` of each, position first."""
    cut = [value[:, at] for value in values_BTX]
    return [value.transpose(0, 1).contiguous() for value in cut]


def selective_scan(u_BTI: Tensor, dt_BTI: Tensor, A_IN: Tensor, B_BTN: Tensor, C_BTN: Tensor, state_BIN: Tensor,
                   chunk_size: int) -> tuple[Tensor, Tensor]:
    """(y [B, T, I], state after the last position): h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t,  y_t = C_t . h_t.

    All in one type, float32 or better; a position with dt = 0 leaves the state as it was.
    """
    return _Scan.apply(u_BTI, dt_BTI, A_IN, B_BTN, C_BTN, state_BIN, chunk_size)


def causal_conv(u_BTI: Tensor, weight_IW: Tensor, bias_I: Tensor, tail_BWI: Tensor) -> tuple[Tensor, Tensor]:
    """(each channel convolved with its own W weights, the last W - 1 inputs); `tail_BWI` holds those before."""
    whole = torch.cat((tail_BWI, u_BTI), 1)
    positions = u_BTI.shape[1]
    y = bias_I
    for w, weight_I in enumerate(weight_IW.unbind(1)):
        seen = whole[:, w : w + positions]
        y = torch.addcmul(y, weight_I, seen)
    tail = whole[:, positions:]
    return y, tail


class ScanCache:
    """What a scan keeps of the positions so far: the last inputs of the convolution and the states."""

    def __init__(self) -> None:
        self.length = 0
        self.tail_BWI: Tensor | None = None
        self.state_BIN: Tensor | None = None

    def append(self, tail_BWI: Tensor, state_BIN: Tensor, positions: int) -> None:
        """Go on by so many positions."""
        self.tail_BWI = tail_BWI
        self.state_BIN = state_BIN
        self.length += positions


class _Dynamics(nn.Module):
    """A and the skip, which stay float32 whatever the model computes in."""

    keep_float32 = True

    def __init__(self, inner: int, states: int, device: torch.device | None) -> None:
        super().__init__()
        counting = torch.arange(1, states + 1, device=device)
        rates = counting.float()
        log_rate = rates.log().expand(inner, states)
        self.log_rate = nn.Parameter(log_rate.clone())
        ones = torch.ones(inner, device=device)
        self.skip = nn.Parameter(ones)


class ScanBlock(SequenceMixer):
    """The Mamba block. Subclasses may make its four maps in another way (`make`) and say how to apply them (`map`)."""

    config: ScanConfig

    def __init__(self, dim: int, config: ScanConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.config = config
        self.inner = config.expand * dim
        self.rank = config.dt_rank or math.ceil(dim / 16)
        states = config.state_dim
        self.in_proj = self.make("in", dim, 2 * self.inner, False, generator)
        conv = _uniform((self.inner, config.conv_width), config.conv_width**-0.5, generator)
        self.conv_weight = nn.Parameter(conv)
        self.conv_bias = nn.Parameter(conv.new_zeros(self.inner))
        self.x_proj = self.make("x", self.inner, self.rank + 2 * states, False, generator)
        self.dt_proj = self.make("dt", self.rank, self.inner, True, generator)
        self.dt_proj.keep_float32 = True
        _start_steps(self.dt_proj, self.rank, config, generator)
        self.dynamics = _Dynamics(self.inner, states, conv.device)
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
        u, z = self.map(self.in_proj, x_BTD, copies).chunk(2, -1)
        u = _unpadded(u, mask_BT)
        tail, state = self._start(u, cache)
        u, tail = causal_conv(u, self.conv_weight, self.conv_bias, tail)
        u = F.silu(u)
        dt, B, C = self._selection(u, copies)
        dt = _unpadded(dt, mask_BT)  # a step of 0 leaves the state as it was
        A = -self.dynamics.log_rate.exp()
        wide_u = wide(u)
        y, state = selective_scan(wide_u, dt, A, B, C, state, self.config.chunk_size)
        if cache is not None:
            cache.append(tail, state, x_BTD.shape[1])
        y = y + self.dynamics.skip * wide_u
        y = y * F.silu(wide(z))
        return self.map(self.out, y.to(x_BTD.dtype), copies)

    def _selection(self, u_BTI: Tensor, copies: Any) -> tuple[Tensor, Tensor, Tensor]:
        """What the inputs choose at each position: dt [B, T, I], B and C [B, T, N], in float32 or better."""
        states = self.config.state_dim
        small = wide(self.map(self.x_proj, u_BTI, copies))
        dt, B, C = small.split((self.rank, states, states), -1)
        dt = self.map(self.dt_proj, dt.contiguous(), copies)  # oneDNN crawls on strided inputs
        return F.softplus(dt), B, C

    def _start(self, u_BTI: Tensor, cache: ScanCache | None) -> tuple[Tensor, Tensor]:
        if cache is not None and cache.tail_BWI is not None and cache.state_BIN is not None:
            return cache.tail_BWI, cache.state_BIN
        rows = len(u_BTI)
        in_wide = wide(u_BTI[:0])
        state = in_wide.new_zeros(rows, self.inner, self.config.state_dim)
        before = self.config.conv_width - 1
        tail = u_BTI.new_zeros(rows, before, self.inner)
        return tail, state

    def flops_per_token(self, context_length: int) -> float:
        """2 D 2 I + 2 I (R + 2 N) + 2 R I + 2 I D for the maps, 2 W I and 6 I N for convolution and scan; the same at
        any `context_length`."""
        inner = self.inner
        states = self.config.state_dim
        out_of_u = inner * (self.rank + 2 * states)
        outer = 2 * self.dim * inner + inner * self.dim
        maps = outer + out_of_u + self.rank * inner
        conv = 2.0 * self.config.conv_width * inner
        return 2.0 * maps + conv + 6.0 * inner * states


def _uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator | None,
             device: torch.device | None = None) -> Tensor:
    """Draws from -bound to bound, by default on the generator's device."""
    if device is None and generator is not None:
        device = generator.device
    draw = torch.rand(shape, generator=generator, device=device)
    return (2 * draw - 1) * bound


def _unpadded(x_BTI: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Zeros where the mask is False."""
    if mask_BT is None:
        return x_BTI
    return x_BTI * mask_BT.unsqueeze(-1)


def _start_steps(module: Any, rank: int, config: ScanConfig, generator: torch.Generator | None) -> None:
    """Weights uniform within R^-0.5; biases so that softplus gives steps log-uniform from dt_min to dt_max."""
    weight = _uniform(module.weight.shape, rank**-0.5, generator, module.weight.device)
    draw = torch.rand(module.bias.shape, generator=generator, device=module.bias.device)
    low = math.log(config.dt_min)
    high = math.log(config.dt_max)
    dt = torch.exp(low + draw * (high - low))
    inverse_softplus = dt + torch.log(-torch.expm1(-dt))
    with torch.no_grad():
        module.weight.copy_(weight)
        module.bias.copy_(inverse_softplus)
