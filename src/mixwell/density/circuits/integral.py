"""Probabilistic integral circuit: a tree of continuous latent variables, compiled to a circuit by quadrature.

**Equation:** p(x) = int p(z_r) prod_i p(x_i | z_i) prod_{i != r} p(z_i | z_pa(i)) dz over [low, high] for every node of
a tree, with p(z_i | z) = exp(-E_i(z_i, z)) / int exp(-E_i(u, z)) du and E_i = softplus of a small net on Fourier
features. A rule with nodes u_1..u_K and weights w_1..w_K turns it into a circuit with K states a node: entry (k, j) of
its sum matrix is w_j exp(-E_i(u_j, u_k)) / sum_l w_l exp(-E_i(u_l, u_k)); log-likelihood trains the nets through it.

**Shapes:** x (N, F), NaN where a feature is summed or integrated out; log densities (N,), in nats.

**Reference:** Gala, de Campos, Peharz, Vergari, Quaeghebeur (2024), Probabilistic Integral Circuits, AISTATS,
arXiv:2310.16986, sections 3 and 4, algorithm 2; equations checked against the authors' code.

**Differs:** every feature has a latent variable of its own (the paper folds those of discrete leaves into their
parents); the root's density is normalised by the rule too. No adaptive quadrature.

**Fails when:** conditionals are sharper than the spacing of the nodes: the compiled circuit is then still a density,
but no longer near the integral.

**Cost:** O(N F K^2) for densities, and O(F K^2 units^2) to compile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.core.method import method
from mixwell.density._training import descend
from mixwell.density.circuits.trees import TreeCircuit, children_first

RULES = ("trapezoid", "midpoint", "legendre")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of a probabilistic integral circuit; `ValueError` for one out of range."""

    leaf: Literal["categorical", "gaussian"] = "categorical"
    n_categories: int = 2  # of a categorical feature: 0, 1, ...
    points: int = 16  # K of the rule it is trained with
    rule: Literal["trapezoid", "midpoint", "legendre"] = "trapezoid"
    units: int = 32  # of the nets, even
    frequency: float = 1.0  # standard deviation of the Fourier features' frequencies, the paper's sigma
    low: float = -1.0  # range of the latent variables
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.leaf not in ("categorical", "gaussian") or self.rule not in RULES:
            raise ValueError(f"leaf is {self.leaf!r} and rule {self.rule!r}; expected categorical or gaussian, and one "
                             f"of {', '.join(RULES)}")
        if self.points < 2 or self.n_categories < 2:
            raise ValueError(f"points is {self.points} and n_categories {self.n_categories}; expected 2 or more")
        odd = self.units % 2 or self.units < 2
        if odd or self.frequency <= 0 or not self.low < self.high:
            raise ValueError(f"units is {self.units}, frequency {self.frequency}, low {self.low}, high {self.high}; "
                             "expected an even number, a positive one, and low below high")


def quadrature(rule: str, points: int, low: float = -1.0, high: float = 1.0) -> tuple[Tensor, Tensor]:
    """Nodes (points,) and positive weights (points,), which sum to high - low, in float64."""
    if rule == "legendre":
        node, weight = np.polynomial.legendre.leggauss(points)
    elif rule == "midpoint":
        node = (np.arange(points) + 0.5) / points * 2 - 1
        weight = np.full(points, 2 / points)
    else:
        node = np.linspace(-1, 1, points)
        weight = np.full(points, 2 / (points - 1))
        weight[[0, -1]] /= 2
    half = (high - low) / 2
    scaled = low + half * (node + 1)
    return torch.from_numpy(scaled), torch.from_numpy(weight * half)


def compile_circuit(parent: Sequence[int], log_root_K: Tensor, log_edge_DKK: Tensor, log_weight_K: Tensor,
                    **leaves: Tensor) -> TreeCircuit:
    """The circuit of unnormalised log densities at the nodes of a rule; the rule normalises them."""
    node_F = torch.arange(len(parent))
    weighted_root_K = log_root_K + log_weight_K
    weighted_edge_DKK = log_edge_DKK + log_weight_K
    root_K = weighted_root_K.log_softmax(-1)
    edge_DKK = weighted_edge_DKK.log_softmax(-1)
    return TreeCircuit(tuple(parent), node_F, root_K, edge_DKK, **leaves)


class Nets(nn.Module):
    """`count` nets of one hidden layer on shared Fourier features of `inputs` numbers."""

    def __init__(self, inputs: int, outputs: int, count: int, config: Config,
                 generator: torch.Generator | None) -> None:
        super().__init__()
        U = config.units

        def normal(*shape: int, scale: float) -> Tensor:
            return scale * torch.randn(*shape, generator=generator)

        self.frequency_IU: Tensor
        frequency_IU = normal(inputs, U // 2, scale=config.frequency)
        self.register_buffer("frequency_IU", frequency_IU)
        self.hidden_DUU = nn.Parameter(normal(count, U, U, scale=U**-0.5))
        self.bias_DU = nn.Parameter(torch.zeros(count, 1, U))
        self.out_DUO = nn.Parameter(normal(count, U, outputs, scale=U**-0.5))
        self.shift_DO = nn.Parameter(torch.zeros(count, 1, outputs))

    def forward(self, z_PI: Tensor) -> Tensor:
        """(P, I) to (count, P, outputs)."""
        angle_PU = 2 * torch.pi * z_PI @ self.frequency_IU
        features_PU = torch.cat([angle_PU.cos(), angle_PU.sin()], -1)
        raw_DPU = features_PU @ self.hidden_DUU + self.bias_DU
        hidden_DPU = torch.tanh(raw_DPU)
        return hidden_DPU @ self.out_DUO + self.shift_DO


@method(
    title="Probabilistic integral circuit",
    paper="Probabilistic Integral Circuits",
    year=2024,
    tags={"module", "density", "float32", "categories"},
)
class IntegralCircuit(nn.Module):
    """Continuous latent tree over features, one node each; `parent` says where every feature hangs (-1: the root).

    `ValueError` unless `parent` has one root above all.
    """

    def __init__(self, parent: Sequence[int], config: Config | None = None,
                 generator: torch.Generator | None = None) -> None:
        super().__init__()
        children_first(parent)
        nodes = len(parent)
        self.parent = tuple(parent)
        self.config = config = config or Config()
        outputs = 2
        if config.leaf == "categorical":
            outputs = config.n_categories
        self.root_net = Nets(1, 1, 1, config, generator)
        self.edge_nets = Nets(2, 1, nodes, config, generator)
        self.leaf_nets = Nets(1, outputs, nodes, config, generator)

    def circuit(self, points: int | None = None, rule: str | None = None) -> TreeCircuit:
        """The circuit with `points` states a node (those of the config by default); gradients flow through it."""
        c = self.config
        dtype = self.root_net.shift_DO.dtype
        z_K, weight_K = quadrature(rule or c.rule, points or c.points, c.low, c.high)
        z_K1 = z_K.to(dtype)[:, None]
        K = len(z_K1)
        above_P1 = z_K1.repeat_interleave(K, 0)
        pairs_P2 = torch.cat([above_P1, z_K1.repeat(K, 1)], -1)
        log_edge_DP1 = -F.softplus(self.edge_nets(pairs_P2))
        log_root_1K1 = -F.softplus(self.root_net(z_K1))
        leaf_FKO = self.leaf_nets(z_K1)
        if c.leaf == "categorical":
            leaves = {"log_table_FKV": leaf_FKO.log_softmax(-1)}
        else:
            mean_FK, raw_FK = leaf_FKO.unbind(-1)
            leaves = {"mean_FK": mean_FK, "log_scale_FK": raw_FK.clamp(-7, 7)}
        log_edge_DKK = log_edge_DP1.view(len(self.parent), K, K)
        log_weight_K = weight_K.to(dtype).log()
        return compile_circuit(self.parent, log_root_1K1[0, :, 0], log_edge_DKK, log_weight_K, **leaves)

    def forward(self, x_NF: Tensor) -> Tensor:
        """Log density of rows (N,), in nats, by the config's rule; errors as of `TreeCircuit.log_prob`."""
        return self.circuit().log_prob(x_NF)


def train(model: IntegralCircuit, x_NF: Tensor, *, steps: int, batch: int, lr: float,
          generator: torch.Generator) -> Iterator[float]:
    """Maximum likelihood by Adam on batches of rows; yields each step's mean loss in nats."""

    def loss() -> Tensor:
        rows = torch.randint(len(x_NF), (batch,), generator=generator)
        return -model(x_NF[rows]).mean()

    yield from descend(model, loss, steps=steps, lr=lr)


def example(generator: torch.Generator) -> dict[str, Any]:
    """A chain of three binary features and eight rows."""
    config = Config(points=4, units=4)
    module = IntegralCircuit((-1, 0, 1), config, generator)
    x_NF = torch.randint(0, 2, (8, 3), generator=generator)
    return {
        "module": module,
        "x_NF": x_NF.float(),
    }
