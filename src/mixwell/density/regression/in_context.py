"""Regression mixtures in context: the optimal predictor of a mixture of regressions, and a transformer that learns it.

**Equation:** a prompt (x_1, y_1, ..., x_n) has y_i = w . x_i + sigma e_i with w drawn evenly from w_1..w_m. The Bayes
predictor gives the tasks exponential weights, y'_n = sum_j softmax_j(-sum_{i<n} (y_i - w_j . x_i)^2 / (2 sigma^2))
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
from mixwell.density._gaussian import outer
from mixwell.density._training import descend


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the in-context regression transformer; `ValueError` for one out of range."""

    dim: int = 4  # D of x
    max_examples: int = 16  # longest prompt, in pairs
    width: int = 64
    layers: int = 2
    heads: int = 4

    def __post_init__(self) -> None:
        for name in ("dim", "max_examples", "width", "layers", "heads"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} is {value}; expected 1 or more")
        if self.width % self.heads:
            raise ValueError(f"width is {self.width}; expected a multiple of heads, {self.heads}")


def exponential_weights(x_BTD: Tensor, y_BT: Tensor, tasks_MD: Tensor, sigma: float) -> Tensor:
    """The Bayes predictions (B, T) of y_t from x_t and the pairs before it, for tasks drawn evenly; sigma above 0."""
    guess_BTM = x_BTD @ tasks_MD.T
    gap_BTM = y_BT[..., None] - guess_BTM
    square_BTM = gap_BTM**2
    loss_BTM = square_BTM / (2 * sigma**2)
    before_BTM = _before(loss_BTM.cumsum(1))
    weight_BTM = before_BTM.neg().softmax(-1)
    return (weight_BTM * guess_BTM).sum(-1)


def _before(value_BTV: Tensor) -> Tensor:
    """Values one place later, zeros at the first."""
    earlier = value_BTV[:, :-1]
    return F.pad(earlier, (0, 0, 1, 0))


def ridge_predictions(x_BTD: Tensor, y_BT: Tensor, strength: float) -> Tensor:
    """Predictions (B, T) of ridge regression on the pairs before; `strength` is added to the Gram matrix."""
    D = x_BTD.shape[-1]
    square_BTV = outer(x_BTD, x_BTD).flatten(2)
    cross_BTD = x_BTD * y_BT[..., None]
    gram_BTDD = _before(square_BTV.cumsum(1)).unflatten(2, (D, D))
    before_BTD = _before(cross_BTD.cumsum(1))
    eye_DD = torch.eye(D, dtype=x_BTD.dtype, device=x_BTD.device)
    ridge_BTDD = gram_BTDD + strength * eye_DD
    w_BTD = torch.linalg.solve(ridge_BTDD, before_BTD[..., None])[..., 0]
    return (w_BTD * x_BTD).sum(-1)


def draw_prompts(batch: int, examples: int, tasks_MD: Tensor, sigma: float,
                 generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Prompts x (B, T, D) and y (B, T) of the mixture, x standard normal."""
    M, D = tasks_MD.shape
    task_B = torch.randint(M, (batch,), generator=generator)
    options: Any = {"generator": generator, "dtype": tasks_MD.dtype}
    x_BTD = torch.randn(batch, examples, D, **options)
    noise_BT = torch.randn(batch, examples, **options)
    w_BD1 = tasks_MD[task_B, :, None]
    clean_BT1 = x_BTD @ w_BD1
    y_BT = clean_BT1[..., 0] + sigma * noise_BT
    return x_BTD, y_BT


class Block(nn.Module):
    """Causal self-attention and a two-layer perceptron, each after a norm and added back."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        wide = 4 * width
        self.attend_norm = nn.LayerNorm(width)
        self.mlp_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, wide)
        self.down = nn.Linear(wide, width)

    def forward(self, h_BSW: Tensor) -> Tensor:
        """(B, S, W) to the same."""
        h_BSW = h_BSW + self._attend(self.attend_norm(h_BSW))
        wide = F.gelu(self.up(self.mlp_norm(h_BSW)))
        return h_BSW + self.down(wide)

    def _attend(self, h_BSW: Tensor) -> Tensor:
        B, S, W = h_BSW.shape
        heads = self.qkv(h_BSW).view(B, S, 3, self.heads, W // self.heads)
        q_BHSV, k_BHSV, v_BHSV = heads.permute(2, 0, 3, 1, 4)
        mixed_BHSV = F.scaled_dot_product_attention(q_BHSV, k_BHSV, v_BHSV, is_causal=True)
        mixed_BSW = mixed_BHSV.transpose(1, 2).reshape(B, S, W)
        return self.out(mixed_BSW)


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
        width, heads = config.width, config.heads
        self.read = nn.Linear(config.dim + 1, width)
        self.position_SW = nn.Parameter(torch.zeros(2 * config.max_examples, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 1)
        for name, parameter in self.named_parameters():
            _initialise(name, parameter, generator)

    def forward(self, x_BTD: Tensor, y_BT: Tensor) -> Tensor:
        """Predictions (B, T); the last y is not read. A `ValueError` for prompts that are too long or too wide."""
        _, T, D = x_BTD.shape
        longest, dim = self.config.max_examples, self.config.dim
        if longest < T or dim != D:
            raise ValueError(f"a prompt of {T} pairs with {D} columns; expected at most {longest} pairs with {dim}")
        x_tokens = F.pad(x_BTD, (1, 0))
        y_tokens = F.pad(y_BT[..., None], (0, D))
        pairs = torch.stack([x_tokens, y_tokens], 2)
        tokens_BSV = pairs.flatten(1, 2)
        position_SW = self.position_SW[: 2 * T]
        h_BSW = self.read(tokens_BSV) + position_SW
        for block in self.blocks:
            h_BSW = block(h_BSW)
        at_x_BTW = self.norm(h_BSW[:, ::2])
        return self.head(at_x_BTW)[..., 0]


def _initialise(name: str, parameter: nn.Parameter, generator: torch.Generator | None) -> None:
    """Normal matrices that keep the size of what they are applied to, no biases."""
    if parameter.ndim > 1:
        scale = 0.02
        if "position" not in name:
            scale = 1 / math.sqrt(parameter.shape[1])
        nn.init.normal_(parameter, std=scale, generator=generator)
    elif name.endswith("bias"):
        nn.init.zeros_(parameter)


def train(model: InContextRegression, tasks_MD: Tensor, sigma: float, *, steps: int, batch: int, lr: float,
          generator: torch.Generator) -> Iterator[float]:
    """Train on fresh prompts; yields the mean squared error of every step."""
    examples = model.config.max_examples

    def loss() -> Tensor:
        x_BTD, y_BT = draw_prompts(batch, examples, tasks_MD, sigma, generator)
        return F.mse_loss(model(x_BTD, y_BT), y_BT)

    warm = max(1, steps // 20)
    yield from descend(model, loss, steps=steps, lr=lr, warm=warm)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two prompts of three pairs."""
    config = Config(dim=2, max_examples=3, width=8, heads=2, layers=1)
    return {"module": InContextRegression(config, generator),
            "x_BTD": torch.randn(2, 3, 2, generator=generator), "y_BT": torch.randn(2, 3, generator=generator)}
