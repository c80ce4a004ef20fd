"""Ultra-sparse memory (UltraMem): a grid of slots scored by a small Tucker core, and more slots than stored values.

**Equation:** S_row = K_row LN(q_1), S_col = K_col LN(q_2), each [n, r];  C = sum_c C_c the core, u and t its leading
    singular vectors;  rows = top-k of S_row u, columns = top-k of S_col t;  of these k^2 slots the k with the largest
    S_row C S_col^T are kept. Slot -> shuffled -> (value i, expansion p), and core c weighs its part of the value:
    y = sum_p W_p sum_{slots with p} [S^(1) v_i^(1), ..., S^(h) v_i^(h)],  S^(c) = S_row C_c S_col^T.
    core loss = mean of max(0, sigma_j - tau)^2 over the singular values of C but the first.
**Shapes:** x [T, D]; query [2 C, D]; keys [2, n, r, C]; cores [h, r, r]; values [n^2 / E, V]; down_proj [D, E V].
**Reference:** Huang et al. 2024, Ultra-Sparse Memory Network (2411.12364), section 3, eq. 4-17, and the authors' code.
**Differs:** the slots are shuffled by a fixed multiplication instead of a stored permutation; u and t are taken afresh
    each pass, with the sign that makes them point the way of the ones vector; no causal convolution before the query,
    and no learning rate of its own for the values. That a memory reads one layer and writes to a later one, and is
    split over depth, is a matter of the model that holds it. Queries and keys start normal with one over the root of
    the width they read, values with std 0.02.
**Fails when:** the core is far from rank one: rows and columns are then pre-selected by the wrong score. Slots whose
    row and column both score far below zero have high products too, and pre-selection never finds them.
**Cost:** 4 T C (D + n r) + 2 T h k r (r + k) + 2 T k V + 2 T D E V FLOPs forward; memory for n^2 V / E values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.core.method import method
from mixwell.core.routing import Context
from mixwell.experts.layers._parts import ChannelMixer
from mixwell.kernels.linear import linear
from mixwell.kernels.norm import wide
from mixwell.mixing import Mixed, check_least, normal_parameter


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the ultra-sparse memory."""

    num_keys: int  # n, rows and columns of the grid of n^2 slots
    k: int = 32  # slots that a token keeps, 1 to n
    key_dim: int = 64  # C
    value_dim: int = 64  # V, width of a stored value, a multiple of cores
    rank: int = 2  # r, of the Tucker core
    cores: int = 2  # h, cores that weigh one part of the value each
    expansion: int = 4  # E, slots for each stored value, a divisor of n^2
    core_loss: float = 0.001  # alpha, coefficient of the core loss, 0 or more
    margin: float = 0.15  # tau, singular values below it cost nothing, 0 or more

    def __post_init__(self) -> None:
        check_least(self, num_keys=1, k=1, key_dim=1, value_dim=1, rank=1, cores=1, expansion=1)
        if self.k > self.num_keys:
            raise ValueError(f"k is {self.k}; expected 1 to num_keys = {self.num_keys}")
        slots = self.num_keys**2
        if slots % self.expansion or self.value_dim % self.cores:
            raise ValueError(f"expansion {self.expansion} must divide num_keys^2 = {slots}, and cores {self.cores} "
                             f"value_dim = {self.value_dim}")
        core_loss = self.core_loss
        margin = self.margin
        if not (core_loss >= 0 and margin >= 0):
            raise ValueError(f"core_loss is {core_loss} and margin {margin}; expected 0 or more")


def leading(core_RR: Tensor) -> tuple[Tensor, Tensor]:
    """(u, t), the leading singular vectors of a core, signed so that u sums to at least 0."""
    u, _, v = torch.linalg.svd(core_RR.detach())
    first_u = u[:, 0]
    first_v = v[0]
    sign = 1.0 if float(first_u.sum()) >= 0 else -1.0
    return first_u * sign, first_v * sign


def _picked(rows_TNX: Tensor, index_TK: Tensor) -> Tensor:
    """rows[t, index[t, k]]: [T, K, X]."""
    width = rows_TNX.shape[-1]
    index = index_TK.unsqueeze(-1).expand(-1, -1, width)
    return rows_TNX.gather(1, index)


def tucker_top_k(rows_TnR: Tensor, columns_TnR: Tensor, cores_hRR: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(scores of each core [T, k, h], slots i n + j [T, k]) of the k best slots of the k best rows and columns."""
    u, t = leading(cores_hRR.sum(0))
    size = rows_TnR.shape[1]
    i = (rows_TnR.detach() @ u).topk(k, dim=-1).indices
    j = (columns_TnR.detach() @ t).topk(k, dim=-1).indices
    rows = _picked(rows_TnR, i)
    columns = _picked(columns_TnR, j)
    scores = torch.einsum("tir,hrs,tjs->tijh", rows, cores_hRR, columns)
    scores = scores.flatten(1, 2)
    best = scores.detach().sum(-1).topk(k, dim=-1).indices
    row = i.gather(1, best // k)
    column = j.gather(1, best % k)
    return _picked(scores, best), row * size + column


def stride(slots: int) -> int:
    """A multiplier without a common factor with `slots`, near the golden section, so that neighbours are spread."""
    step = max(1, round(slots * (math.sqrt(5) - 1) / 2))
    while math.gcd(step, slots) != 1:
        step += 1
    return step


def pooled(values_NV: Tensor, slots_TK: Tensor, scores_TKh: Tensor, expansion: int) -> Tensor:
    """Values summed for each expansion, each part of a value with its own core's scores: [T, E V]."""
    (values, width), cores = values_NV.shape, scores_TKh.shape[-1]
    slots = values * expansion
    shuffled = slots_TK * stride(slots) % slots
    expansion_TK = shuffled // values
    order = expansion_TK.argsort(dim=1, stable=True)
    rows = (shuffled % values).gather(1, order).flatten()
    ends = F.one_hot(expansion_TK, expansion).sum(1).flatten().cumsum(0)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    parts = values_NV.view(values * cores, width // cores)
    weights = _picked(scores_TKh, order).to(values_NV.dtype).flatten(0, 1)
    bags = []
    for core in range(cores):
        own = weights[:, core].contiguous()
        bags.append(F.embedding_bag(rows * cores + core, parts, starts, mode="sum", per_sample_weights=own))
    joined = torch.cat(bags, dim=1)
    return joined.view(len(slots_TK), expansion * width)


class _Scores(nn.Module):
    """Scores of rows and columns, and the core between them, in float32 or better."""

    keep_float32 = True

    def __init__(self, dim: int, config: Config, generator: torch.Generator | None) -> None:
        super().__init__()
        width = config.key_dim
        rank = config.rank
        cores = config.cores
        std = width**-0.5
        halves = 2 * width
        self.query = normal_parameter((halves, dim), generator, std=dim**-0.5)
        keys = config.num_keys
        self.keys = normal_parameter((2, keys, rank, width), generator, std)
        gain = self.query.new_full((width,), width**-0.33)
        self.query_gain = nn.Parameter(gain)
        self.key_gain = nn.Parameter(gain.clone())
        draw = torch.rand((cores, rank, rank), generator=generator, device=gain.device)
        self.cores = nn.Parameter(draw)

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        x = wide(x_TD)
        width = self.keys.shape[-1:]
        halves = F.linear(x, self.query.to(x.dtype)).unflatten(-1, (2, -1))
        queries = F.layer_norm(halves, width, self.query_gain.to(x.dtype))
        keys = F.layer_norm(self.keys.to(x.dtype), width, self.key_gain.to(x.dtype))
        both = torch.einsum("tpc,pnrc->ptnr", queries, keys)
        return both[0], both[1]


@method(
    title="Ultra-sparse memory (UltraMem)",
    paper="Ultra-Sparse Memory Network",
    year=2024,
    tags={"tokenwise"},
)
class UltraSparseMemory(ChannelMixer):
    """Memory with Tucker-decomposed scores and implicit value expansion; see the module's card."""

    config: Config

    def __init__(self, dim: int, config: Config, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.config = config
        self.memory = _Scores(dim, config, generator)
        stored = config.num_keys**2 // config.expansion
        pooled_dim = config.expansion * config.value_dim
        self.values = normal_parameter((stored, config.value_dim), generator)
        self.down_proj = normal_parameter((dim, pooled_dim), generator, pooled_dim**-0.5)

    def retrieve(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """(scores of each core [T, k, h], slots [T, k]) that each token keeps."""
        rows, columns = self.memory(x_TD)
        cores = self.memory.cores.to(rows.dtype)
        return tucker_top_k(rows, columns, cores, self.config.k)

    def forward(self, x_TD: Tensor, context: Context) -> Mixed:
        """[T, D] -> [T, D], with the core loss."""
        if not len(x_TD):
            return Mixed(x_TD.clone())
        scores, slots = self.retrieve(x_TD)
        values = pooled(self.values, slots, scores, self.config.expansion)
        y = linear(values, self.down_proj)
        loss = self.core_loss()
        coefficient = self.config.core_loss
        aux = coefficient * loss if coefficient else None
        return Mixed(y, losses={"core": loss}, aux=aux)

    def core_loss(self) -> Tensor:
        """Mean squared excess of the core's other singular values over the margin, a scalar; 0 at rank 1."""
        core = self.memory.cores.sum(0)
        others = torch.linalg.svdvals(core)[1:]
        excess = (others - self.config.margin).relu()
        return excess.square().sum() / max(others.numel(), 1)

    def flops_per_token(self) -> float:
        """4 C (D + n r) for the scores, 2 h k r (r + k) for the core, 2 k V and 2 D E V for the values."""
        c = self.config
        keys = 4.0 * c.key_dim * (self.dim + c.num_keys * c.rank)
        core = 2.0 * c.cores * c.k * c.rank * (c.rank + c.k)
        values = 2.0 * c.k * c.value_dim
        out = 2.0 * self.dim * c.expansion * c.value_dim
        return keys + core + values + out


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six that keep three of 36 slots, four slots for each stored value."""
    config = Config(num_keys=6, k=3, key_dim=4, value_dim=4)
    x_TD = torch.randn(8, 6, generator=generator)
    return {"dim": 6, "config": config, "x_TD": x_TD}
