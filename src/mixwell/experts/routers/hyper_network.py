"""HyperRouter: a fixed random network writes the router's weights from a small trainable embedding.

**Equation:** [W; b] = reshape(A_2 relu(A_1 r + c_1) + c_2), with A, c drawn once and kept, r trainable;
    h = W x + b;  p = softmax(h);  I = top-k of p;  w_i = p_i, over their sum where k > 1.
**Shapes:** r [R], A_1 [H, R], A_2 [E (D + 1), H], x [T, D], indices and weights [T, K], scores [T, E].
**Reference:** Do et al. 2023, HyperRouter (2312.07035), section 3; compared in LibMoE (2411.00918).
**Differs:** `train_network` trains A and c as well, as LibMoE's code does (the paper keeps them fixed). The growth of k
    over training that the code also has is a schedule of the trainer's, not of the router. Draws are scaled by their
    fan-in and the logits by 1 / sqrt(D), so that they start at the size of a plain router's for every width.
**Fails when:** H is far below E (D + 1) / R and the routes needed lie outside the network's range.
**Cost:** O(H E D) to write the weights, once a forward pass, then O(T E D).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.kernels.norm import wide
from mixwell.mixing import Router, check_k, check_least, normal_parameter, select


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the hyper-network router."""

    k: int = 2  # experts per token, 1 to E
    embedding_dim: int | None = None  # R, width of the trainable embedding, at least 1; default D
    hidden_dim: int | None = None  # H, hidden width of the network, at least 1; default D / 4
    train_network: bool = False  # train the network too, not the embedding alone

    def __post_init__(self) -> None:
        check_least(self, k=1, embedding_dim=1, hidden_dim=1)


def write_weights(embedding_R: Tensor, network: tuple[Tensor, Tensor, Tensor, Tensor], num_experts: int) -> Tensor:
    """The router's weights with the bias as last column, [E, D + 1]."""
    inner, inner_bias, outer, outer_bias = network
    hidden = torch.relu(inner @ embedding_R + inner_bias)
    return (outer @ hidden + outer_bias).view(num_experts, -1)


def route(logits_TE: Tensor, config: Config) -> Routing:
    """The routing that the logits [T, E] give."""
    scores = logits_TE.softmax(-1)
    indices, weights = select(scores, config.k, renormalise=config.k > 1)
    return Routing(indices, weights, scores, logits_TE)


@method(
    title="Hyper-network router",
    paper=(
        "HyperRouter: Towards Efficient Training and Inference of Sparse Mixture of Experts",
        "LIBMoE: A Library for comprehensive benchmarking Mixture of Experts in Large Language Models",
    ),
    year=2023,
    tags={"token-choice", "batch-invariant", "exact-k", "simplex", "dense-at-full-k"},
)
class HyperNetwork(Router):
    """Router whose weights a fixed network writes from a trainable embedding; see the module's card."""

    config: Config

    def __init__(self, dim: int, num_experts: int, config: Config | None = None,
                 generator: torch.Generator | None = None) -> None:
        config = config or Config()
        check_k(config.k, num_experts)
        super().__init__(dim, num_experts, config, generator)
        width = config.embedding_dim or dim
        hidden = config.hidden_dim or max(1, dim // 4)
        outputs = num_experts * (dim + 1)
        self.embedding = normal_parameter((width,), generator, 1.0)
        self.inner = normal_parameter((hidden, width), generator, width**-0.5)
        self.inner_bias = nn.Parameter(self.embedding.new_zeros(hidden))
        self.outer = normal_parameter((outputs, hidden), generator, hidden**-0.5)
        self.outer_bias = nn.Parameter(self.embedding.new_zeros(outputs))
        for parameter in self.network:
            parameter.requires_grad_(config.train_network)

    @property
    def network(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A_1, c_1, A_2, c_2."""
        return self.inner, self.inner_bias, self.outer, self.outer_bias

    def forward(self, x_TD: Tensor, context: Context) -> Routing:
        """Route the tokens [T, D]."""
        x = wide(x_TD)
        written = write_weights(self.embedding, self.network, self.num_experts)
        written = written.to(x.dtype)
        weight = written[:, :-1]
        bias = written[:, -1]
        logits = x @ weight.T + bias
        scale = self.dim**-0.5
        return route(logits * scale, self.config)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six, four experts."""
    config = Config(hidden_dim=3)
    x_TD = torch.randn(8, 6, generator=generator)
    return {"dim": 6, "num_experts": 4, "config": config, "x_TD": x_TD}
