"""Pruning-aware tuning: a language model is tuned while one mask for all layers thins its residual stream.

**Equation:** what the embedding and every mixer give becomes v m (x + B A x), A, B and v of each, B = 0 and v = 1 at
    first; m of all: sigmoid(tau theta) + max(1/2 - t, 0), theta = 0 at first, tau = 1 / (1 - ln(t T) / ln T + 1e-6), t
    the share done of T steps; from `held` on theta and tau stay. Loss + `pressure` |#(theta >= 0) - d| / d (straight
    through) + mean_{theta > 0} (theta - 1/2)^2 + mean_{theta <= 0} (theta + 1/2)^2 + sum mean (A A^T - I)^2. At the end
    d channels stay, and everything is folded: (I + B A) and v into what writes to the stream, their rows; columns of
    what reads it; gains of norms times sqrt(D / d).
**Shapes:** A [R, D], B [D, R], v and theta [D]; the stream [.., D] -> [.., d].
**Reference:** Liu et al. 2024 (2408.14721), sections 3.2 to 3.4, and the authors' code.
**Differs:** the d largest theta stay, so that the width is as asked for. v is folded, too, which the released merge
    leaves out, and norms' eps times D / d, so that the folded model is the masked one. Low-rank adapters beside are the
    caller's; whatever of the model asks for a gradient is tuned. Tied embeddings come apart.
**Fails when:** steps are few (under some 500): theta does not part.
**Cost:** 4 R D FLOPs a token for the embedding and each mixer while tuning; none after.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.core.checkpoint import Checkpoint, channel_mixers, with_channel_mixers
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.mixing import check_above, check_least
from mixwell.precision._folding import fed

WRITERS = ("out.weight", "down_proj")  # endings of what adds to the stream, by rows
BIASES = ("out.bias", "down_bias")
HALF = 0.5
APART = 1e-6  # keeps tau finite


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of pruning-aware tuning."""

    share: float = 0.25  # of the stream's channels that go, above 0 and below 1
    rank: int = 200  # R, at least 1, at most D
    steps: int = 10_000  # T, of the tuning, at least 2
    held: float = 0.8  # share of the tuning after which the mask stays, above 0, up to 1
    pressure: float = 10.0  # on the number of channels, at least 0
    multiple: int = 8  # the width that stays is a multiple of it, at least 1

    def __post_init__(self) -> None:
        check_least(self, rank=1, steps=2, pressure=0, multiple=1)
        check_above(self, share=0, held=0)
        if not self.share < 1:
            raise ValueError(f"share is {self.share}; expected above 0 and below 1")
        if self.held > 1:
            raise ValueError(f"held is {self.held}; expected above 0, up to 1")


class Thinned(nn.Module):
    """v m (x + B A x)."""

    def __init__(self, dim: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        into = torch.empty(rank, dim)
        nn.init.kaiming_uniform_(into, a=math.sqrt(5), generator=generator)
        self.A = nn.Parameter(into)
        self.B = nn.Parameter(torch.zeros(dim, rank))
        self.v = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, mask_D: Tensor) -> Tensor:
        """[.., D] -> [.., D]."""
        A, B = self.A.to(x.dtype), self.B.to(x.dtype)
        low = x @ A.T
        moved = x + low @ B.T
        scale_D = self.v * mask_D
        return scale_D.to(x.dtype) * moved

    def matrix(self) -> Tensor:
        """diag(v) (I + B A), float64 [D, D]."""
        B = self.B.detach().double()
        A = self.A.detach().double()
        whole = B @ A
        whole.diagonal().add_(1)
        scale = self.v.detach().double()
        return scale.unsqueeze(1) * whole

    def away(self) -> Tensor:
        """Mean squared distance of A A^T from the identity."""
        inner = self.A @ self.A.T
        away = inner - torch.eye(len(inner), device=inner.device)
        return away.square().mean()


@method(title="Pruning-aware tuning of the residual stream",
        paper="PAT: Pruning-Aware Tuning for Large Language Models", year=2024)
class PruningAware:
    """Stands in a language model (`embed`, `layers` of two mixers) from its making to `finish`.

    Raises `MixwellError` for learned positions, for norms that are not plain RMS norms before each mixer, and for a
    rank above the width.
    """

    def __init__(self, model: Any, config: Config, generator: torch.Generator) -> None:
        self.model, self.config, self.done = model, config, 0.0
        dim = int(model.config.dim)
        if model.config.learned_positions:
            raise MixwellError("the model adds learned positions to the stream, which no mask of its own thins.")
        if config.rank > dim:
            raise MixwellError(f"rank is {config.rank} and the model {dim} wide; expected at most so much.")
        fed(model.to_checkpoint(), "pruning-aware tuning")  # refuses before anything is changed
        self.theta = nn.Parameter(torch.zeros(dim))
        self.fixed: Tensor | None = None  # a mask of zeros and ones
        writers = [model.embed]
        for layer in model.layers:
            writers += [layer.sequence_mixer, layer.channel_mixer]
        self.thinned = nn.ModuleList(Thinned(dim, config.rank, generator) for _ in writers)
        self.hooks = [writer.register_forward_hook(self._hook(own)) for writer, own in zip(writers, self.thinned)]

    def _hook(self, own: nn.Module) -> Any:
        def thin(module: nn.Module, given: Any, out: Any) -> Any:
            mask_D = self.mask()
            if isinstance(out, Tensor):
                return own(out, mask_D)
            first, *others = out
            return type(out)(own(first, mask_D), *others)

        return thin

    @property
    def width(self) -> int:
        """d, the channels that stay."""
        dim, multiple = len(self.theta), self.config.multiple
        wanted = (1 - self.config.share) * dim
        steps = int(wanted / multiple)
        return min(dim, max(1, steps) * multiple)

    def mask(self) -> Tensor:
        """m [D]."""
        if self.fixed is not None:
            return self.fixed
        moving = self.done < self.config.held
        theta = self.theta if moving else self.theta.detach()
        opened = torch.sigmoid(self.sharpness() * theta)
        return opened + max(HALF - self.done, 0.0)

    def sharpness(self) -> float:
        """tau."""
        now = min(self.done, self.config.held)
        step = max(1.0, now * self.config.steps)
        risen = math.log(step) / math.log(self.config.steps)
        return 1 / (1 - risen + APART)

    def advance(self, done: float) -> None:
        """Come to this share of the tuning, 0 to 1."""
        self.done = done

    def trained(self) -> list[nn.Parameter]:
        """What is tuned: the mask, what stands beside every writer, and whatever of the model asks for a gradient."""
        own = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return [self.theta, *self.thinned.parameters(), *own]

    def losses(self) -> dict[str, Tensor]:
        """Terms of the loss: of the number of channels, of how far theta parts, of A."""
        theta = self.theta
        open_D = (theta >= 0).to(theta.dtype)
        count = (open_D + theta - theta.detach()).sum()
        away = (count - self.width).abs() / self.width
        sides = [_mean((theta - HALF).square(), theta > 0), _mean((theta + HALF).square(), theta <= 0)]
        own = [one.away() for one in self.thinned]  # type: ignore[operator]
        return {"channels": self.config.pressure * away, "parting": sides[0] + sides[1],
                "identity": torch.stack(own).sum()}

    def kept(self) -> Tensor:
        """The channels that stay, in order [d]."""
        order = self.theta.detach().argsort(descending=True, stable=True)
        first = order[: self.width]
        return first.sort().values

    def harden(self) -> None:
        """Read with zeros and ones from now on."""
        mask_D = torch.zeros_like(self.theta.detach())
        mask_D[self.kept()] = 1
        self.fixed = mask_D

    def finish(self) -> Checkpoint:
        """The narrow model, everything folded; the model handed in is left without hooks."""
        for hook in self.hooks:
            hook.remove()
        matrices = [one.matrix() for one in self.thinned]  # type: ignore[operator]
        return folded(self.model.to_checkpoint(), matrices, self.kept())


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """The mean of some values, 0 of none."""
    some = where.sum().clamp_min(1)
    return (values * where).sum() / some


def folded(checkpoint: Checkpoint, matrices: list[Tensor], kept: Tensor) -> Checkpoint:
    """A model whose stream has the channels `kept` [d] alone; matrices [D, D] of the embedding and of each mixer."""
    tensors = dict(checkpoint.tensors)
    dim, width = int(checkpoint.arch["dim"]), len(kept)
    louder = math.sqrt(dim / width)
    readers = fed(checkpoint, "pruning-aware tuning")
    head = tensors.get("head.weight", tensors["embed.weight"])
    readers["norm.weight"] = ["head.weight"]
    tensors["head.weight"] = head
    for norm, names in readers.items():
        gain = tensors[norm]
        tensors[norm] = (gain.double()[kept] * louder).to(gain.dtype)
        for name in names:
            tensors[name] = tensors[name][..., kept].contiguous()
    first, *others = [matrix[kept] for matrix in matrices]
    tensors["embed.weight"] = _by_columns(tensors["embed.weight"], first)
    for number, rows in enumerate(others):
        layer, channel = divmod(number, 2)
        kind = "channel" if channel else "sequence"
        _write(tensors, f"layers.{layer}.{kind}_mixer.", rows)
    changed = [name for name, value in checkpoint.tensors.items() if tensors[name] is not value]
    record = {"account": {"used": changed}}
    return checkpoint.derive(arch=_narrow_arch(checkpoint.arch, width), tensors=tensors, record=record)


def _write(tensors: dict[str, Tensor], start: str, rows: Tensor) -> None:
    """Fold the rows [d, D] of a matrix into what a mixer adds to the stream."""
    for name, value in tensors.items():
        if not name.startswith(start):
            continue
        if name.endswith(WRITERS):
            made = rows @ value.double()
            tensors[name] = made.to(value.dtype)
        elif name.endswith(BIASES):
            tensors[name] = _by_columns(value, rows)


def _by_columns(value: Tensor, rows: Tensor) -> Tensor:
    made = value.double() @ rows.T
    return made.to(value.dtype)


def _narrow_arch(arch: Mapping[str, Any], width: int) -> dict[str, Any]:
    """The architecture with a narrow stream; heads and hidden units stay as wide as they are."""
    dim, eps = int(arch["dim"]), float(arch.get("norm_eps", 1e-5))
    given = arch.get("sequence_mixer", {"method": "sequence.attention"})
    specs = given if isinstance(given, (list, tuple)) else [given] * int(arch["num_layers"])
    inner = {"norm_eps": eps}  # of queries and keys, as wide as before
    mixers = [{**inner, **spec} for spec in specs]
    head_dim = arch.get("head_dim") or dim // int(arch["num_heads"])
    narrow = with_channel_mixers(arch, channel_mixers(arch))
    return {**narrow, "dim": width, "head_dim": head_dim, "norm_eps": eps * dim / width, "tie_embeddings": False,
            "sequence_mixer": mixers}


def example(generator: torch.Generator) -> dict[str, Any]:
    """Half of a stream of sixteen channels; a model is handed in beside."""
    return {"config": Config(share=0.5, rank=4, steps=40), "generator": generator}
