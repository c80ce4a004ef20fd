"""Static model pruning: a model learns a task by its masks alone, its weights staying as they were.

**Equation:** the forward pass reads W * M, M the v largest scores S of each matrix, S = 0 at the start; dS = dL/dW' * W
    (straight through). v falls from 1 to `share_kept`: v_f + (1 - v_f) (1 - t)^3. Local: matrix l keeps
    v_l = v sum_l n_l a_l / sum n, a_l = mean sigmoid(S_l / p), in place of the same share. Loss + l_t mean_l mean
    sigmoid(S_l), l_t = `pressure` (1 - (1 - t)^3).
**Shapes:** W and S [.., O, I].
**Reference:** Jiang et al. 2022 (2210.06210), equations 3 to 8, and the authors' code.
**Differs:** shares of matrices are weighed by their size, so that the sum is v whatever the scores say. Distillation is
    the caller's; the task's head has to be one that was there before.
**Fails when:** what the task needs is not in the weights at all.
**Cost:** a score a weight while training; 1 bit a weight and task to keep.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.mixing import check_above, check_least
from mixwell.precision.sparse.sparsifier import Sparsifier, largest_share, sparsifier_example

CUBIC = 3


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of mask scores."""

    share_kept: float = 0.5  # v_f, above 0 and below 1
    shares: Literal["even", "local"] = "even"  # of the matrices
    temperature: float = 1.0  # p of local shares, above 0
    pressure: float = 0.0  # largest coefficient on the mean sigmoid of the scores, at least 0
    weights: tuple[str, ...] = ("*",)  # patterns of the names of matrices

    def __post_init__(self) -> None:
        check_least(self, pressure=0)
        check_above(self, share_kept=0, temperature=0)
        if not self.share_kept < 1:
            raise ValueError(f"share_kept is {self.share_kept}; expected above 0 and below 1")


def risen(done: float) -> float:
    """1 - (1 - t)^3."""
    return 1 - (1 - done) ** CUBIC


def kept_share(done: float, config: Config) -> float:
    """v at a share of the training."""
    return 1 - (1 - config.share_kept) * risen(done)


def local_shares(scores: list[Tensor], share: float, temperature: float) -> list[float]:
    """The share of each matrix, in proportion to its mean sigmoid; of all weights together `share` stay."""
    counts = [float(own.numel()) for own in scores]
    sizes = torch.tensor(counts, dtype=torch.float64)
    asked = torch.stack([_opened(own, temperature) for own in scores])
    whole = torch.zeros_like(sizes, dtype=torch.bool)  # matrices that all stay
    while True:
        taken = sizes[whole].sum()
        rest = (sizes * asked)[~whole].sum()
        level = (share * sizes.sum() - taken) / rest
        found = (level * asked).masked_fill(whole, 1.0)
        over = found > 1
        if not bool(over.any()):
            return found.tolist()
        whole = whole | over


def _opened(scores: Tensor, temperature: float) -> Tensor:
    """The mean sigmoid of a matrix's scores."""
    wide = scores.detach().double()
    return (wide / temperature).sigmoid().mean()


class _Read(torch.autograd.Function):
    """W * M forward; back, the scores get dL/dW' * W and the weights nothing."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return weight * mask

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        (weight,) = ctx.saved_tensors
        return None, grad * weight, None


class _Masked(nn.Module):
    """A weight as its scores let it be read."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros_like(weight))
        self.share = 1.0  # that is read, of each matrix of a stack

    def mask(self) -> Tensor:
        """1 where the weight is read."""
        return largest_share(self.scores, self.share)

    def forward(self, weight: Tensor) -> Tensor:
        found: Tensor = _Read.apply(weight, self.scores, self.mask())
        return found


@method(title="Static model pruning: masks learnt, weights left",
        paper="Pruning Pre-trained Language Models Without Fine-Tuning", year=2022, tags={"weights", "static"})
class MaskScores(Sparsifier):
    """Trains one score a weight and nothing else; all parameters of the model are frozen until `finish`."""

    def __init__(self, model: nn.Module, config: Config, generator: torch.Generator) -> None:
        super().__init__(model, config.weights)
        self.config, self.done = config, 0.0
        self.frozen = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        for name in self.frozen:
            model.get_parameter(name).requires_grad_(False)
        self.forms = [_Masked(getattr(owner, name).detach()) for owner, name in self.places]
        self.put(self.forms)

    def trained(self) -> list[nn.Parameter]:
        """The scores."""
        return [form.scores for form in self.forms]

    def advance(self, done: float) -> None:
        """Keep as many as this share of the training asks for."""
        self.done = done
        share = kept_share(done, self.config)
        scores = [form.scores for form in self.forms]
        shares = [share] * len(scores)
        if self.config.shares == "local":
            shares = local_shares(list(scores), share, self.config.temperature)
        for form, own in zip(self.forms, shares):
            form.share = own

    def losses(self) -> dict[str, Tensor]:
        """The pressure on the scores."""
        means = [form.scores.sigmoid().mean() for form in self.forms]
        coefficient = self.config.pressure * risen(self.done)
        return {"pressure": coefficient * torch.stack(means).mean()}

    def masks(self) -> list[Tensor]:
        """Which weights are read, bool, one mask for each matrix: all that a task adds to the model."""
        return [form.mask().bool() for form in self.forms]

    def finish(self) -> None:
        """Zero what is not read, and let parameters be trained again."""
        super().finish()
        for name in self.frozen:
            self.model.get_parameter(name).requires_grad_(True)


def packed(mask: Tensor) -> Tensor:
    """A mask in bits, uint8 [numel / 8 rounded up]."""
    bits = mask.flatten().to(torch.uint8)
    short = -len(bits) % 8
    padded = torch.cat([bits, bits.new_zeros(short)])
    places = 2 ** torch.arange(8)
    bytes_ = (padded.view(-1, 8) * places).sum(1)
    return bytes_.to(torch.uint8)


def unpacked(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The mask that `packed` gave; raises `MixwellError` where it has another number of bits."""
    count = torch.Size(shape).numel()
    if len(bits) != -(-count // 8):
        raise MixwellError(f"{len(bits)} bytes came for a mask of {count}; expected {-(-count // 8)}.")
    places = 2 ** torch.arange(8)
    found = (bits[:, None] & places) > 0
    return found.flatten()[:count].view(shape)


def masked(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A task's weights: the shared ones, zero outside the task's masks."""
    found = dict(weights)
    for name, mask in masks.items():
        found[name] = weights[name] * mask
    return found


def example(generator: torch.Generator) -> dict[str, Any]:
    """A small network of whose weights half are read at the end."""
    return sparsifier_example(generator, Config())
