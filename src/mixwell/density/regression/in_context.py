"""Regression mixtures in context: the optimal predictor of a mixture of regressions, and a transformer that learns it.

**Equation:** a prompt (x_1, y_1, ..., x_n) has y_i = w . x_i + sigma e_i with w drawn evenly from w_1..w_m. The Bayes
predictor weighs the tasks by exponential weights, y'_n = sum_j softmax_j(-sum_{i<n} (y_i - w_j . x_i)^2 / (2 sigma^2))
w_j . x_n. A causal transformer over the 2n - 1 tokens (0, x_1), (y_1, 0), ... predicts y_n at x_n's token and is
trained on the mean squared error over all n.

**Shapes:** x (B, T, D), y (B, T), tasks (M, D); predictions (B, T), each from what came before.

**Reference:** Pathak, Sen, Kong, Das (2023), Transformers can optimally learn regression mixture models,
arXiv:2311.08362.

**Differs:** written from memory of the paper. Two small pre-norm blocks with learned positions instead of a GPT-2 of
twelve layers; Adam with linear warm-up and cosine decay.

**Fails when:** prompts are longer than `max_examples`; noise is so small that exponents of the weights overflow the
precision of the training data.

**Cost:** O(B T D M) for the predictor; O(layers B (T^2 width + T width^2)) for the transformer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.core.method import method
from mixwell.density._training import descend


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the in-context regression transformer."""

    dim: int = 4  # D of x
    max_examples: int = 16  # longest prompt, in pairs
    width: int = 64
    layers: int = 2
    heads: int = 4

    def __post_init__(self) -> None:
        for name in ("dim", "max_examples", "width", "layers", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if self.width % self.heads:
            raise ValueError(f"width is {self.width}; expected a multiple of heads, {self.heads}")


def exponential_weights(x_BTD: Tensor, y_BT: Tensor, tasks_MD: Tensor, sigma: float) -> Tensor:
    """The Bayes predictions (B, T) of y_t from x_t and the pairs before it, for tasks drawn evenly; sigma above 0."""
    guess_BTM = x_BTD @ tasks_MD.T
    loss_BTM = (y_BT[..., None] - guess_BTM) ** 2 / (2 * sigma**2)
    before_BTM = F.pad(loss_BTM.cumsum(1)[:, :-1], (0, 0, 1, 0))
    return (before_BTM.neg().softmax(-1) * guess_BTM).sum(-1)


def ridge_predictions(x_BTD: Tensor, y_BT: Tensor, strength: float) -> Tensor:
    """Predictions (B, T) of ridge regression on the pairs before; `strength` is added to the Gram matrix."""
    gram_BTDD = (x_BTD[..., :, None] * x_BTD[..., None, :]).cumsum(1)
    cross_BTD = (x_BTD * y_BT[..., None]).cumsum(1)
    eye_DD = strength * torch.eye(x_BTD.shape[-1], dtype=x_BTD.dtype, device=x_BTD.device)
    w_BTD = torch.linalg.solve(F.pad(gram_BTDD[:, :-1], (0, 0, 0, 0, 1, 0)) + eye_DD,
                               F.pad(cross_BTD[:, :-1], (0, 0, 1, 0))[..., None])[..., 0]
    return (w_BTD * x_BTD).sum(-1)


def draw_prompts(batch: int, examples: int, tasks_MD: Tensor, sigma: float,
                 generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Prompts x (B, T, D) and y (B, T) of the mixture, x standard normal."""
    task_B = torch.randint(len(tasks_MD), (batch,), generator=generator)
    x_BTD = torch.randn(batch, examples, tasks_MD.shape[1], generator=generator, dtype=tasks_MD.dtype)
    noise_BT = torch.randn(batch, examples, generator=generator, dtype=tasks_MD.dtype)
    return x_BTD, (x_BTD @ tasks_MD[task_B, :, None])[..., 0] + sigma * noise_BT


class Block(nn.Module):
    """Causal self-attention and a two-layer perceptron, each after a norm and added back."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attend_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h_BSW: Tensor) -> Tensor:
        """(B, S, W) to the same."""
        B, S, W = h_BSW.shape
        q, k, v = self.qkv(self.attend_norm(h_BSW)).view(B, S, 3, self.heads, W // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, S, W)
        h_BSW = h_BSW + self.out(mixed)
        return h_BSW + self.down(F.gelu(self.up(self.mlp_norm(h_BSW))))


@method(
    title="In-context mixture of regressions",
    paper="Transformers can optimally learn regression mixture models",
    year=2023,
    tags={"module", "float32"},
)
class InContextRegression(nn.Module):
    """Transformer that predicts every y of a prompt from its x and the pairs before it; see the module's card."""

    def __init__(self, config: Config | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config = config or Config()
        self.read = nn.Linear(config.dim + 1, config.width)
        self.position_SW = nn.Parameter(torch.zeros(2 * config.max_examples, config.width))
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.layers))
        self.norm, self.head = nn.LayerNorm(config.width), nn.Linear(config.width, 1)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                scale = 0.02 if "position" in name else 1 / math.sqrt(parameter.shape[1])
                nn.init.normal_(parameter, std=scale, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, x_BTD: Tensor, y_BT: Tensor) -> Tensor:
        """Predictions (B, T); the last y is not read."""
        _, T, D = x_BTD.shape
        longest, dim = self.config.max_examples, self.config.dim
        if longest < T or dim != D:
            raise ValueError(f"a prompt of {T} pairs with {D} columns; expected at most {longest} pairs with {dim}")
        x_tokens = F.pad(x_BTD, (1, 0))
        y_tokens = F.pad(y_BT[..., None], (0, D))
        tokens_BSV = torch.stack([x_tokens, y_tokens], 2).flatten(1, 2)
        h_BSW = self.read(tokens_BSV) + self.position_SW[: 2 * T]
        for block in self.blocks:
            h_BSW = block(h_BSW)
        return self.head(self.norm(h_BSW[:, ::2]))[..., 0]


def train(model: InContextRegression, tasks_MD: Tensor, sigma: float, *, steps: int, batch: int, lr: float,
          generator: torch.Generator) -> Iterator[float]:
    """Train on fresh prompts; yields the mean squared error of every step."""
    def loss() -> Tensor:
        x_BTD, y_BT = draw_prompts(batch, model.config.max_examples, tasks_MD, sigma, generator)
        return F.mse_loss(model(x_BTD, y_BT), y_BT)

    yield from descend(model, loss, steps=steps, lr=lr, warm=max(1, steps // 20))


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two prompts of three pairs."""
    config = Config(dim=2, max_examples=3, width=8, heads=2, layers=1)
    return {"module": InContextRegression(config, generator),
            "x_BTD": torch.randn(2, 3, 2, generator=generator), "y_BT": torch.randn(2, 3, generator=generator)}
