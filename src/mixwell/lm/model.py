"""A decoder-only language model put together from the rooms' methods by name.

Legend: B rows, S or T positions in a row, T tokens of a batch together in channel mixers, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mixwell.core import rng
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.core.rng import normal
from mixwell.core.routing import Context, Routing
from mixwell.kernels.embed import embed, mean_nats, row_nats
from mixwell.kernels.linear import Linear, linear
from mixwell.kernels.norm import RMSNorm
from mixwell.lm import generate as sampling
from mixwell.lm.config import ModelConfig
from mixwell.mixing import Router

if TYPE_CHECKING:
    from mixwell.lm.tokenizer import Tokenizer

RESIDUAL_OUTPUTS = ("out.weight", "down_proj")  # the last map of a branch, by the end of its name


@dataclass(frozen=True, eq=False)
class Output:
    """What a forward pass gives."""

    logits_BTV: Tensor  # float32 or better
    routings: list[Routing | None]  # one a layer
    losses: dict[str, Tensor]  # auxiliary losses, mean over the layers that have them, before their coefficients
    aux: Tensor | None  # sum over layers of coefficient times loss


@dataclass(frozen=True, eq=False)
class Loss:
    """What training minimises: `nats + aux`."""

    nats: Tensor  # mean cross-entropy in nats per target that counts
    aux: Tensor | None
    losses: dict[str, Tensor]
    routings: list[Routing | None]


HISTORY = 64  # ids that a cache keeps for routers that go by words of several tokens; no word is longer
PADDING = -1  # stands in them where nothing was read


class Cache:
    """What the layers keep of the positions read so far, the last ids read, and the next position of each row."""

    def __init__(self, layers: list[Any]) -> None:
        self.layers = layers
        self.ids_BS: Tensor | None = None  # None before anything was read
        self.next_B: Tensor | int = 0  # int where all rows stand at the same position

    def advance(self, tokens_BT: Tensor, mask_BT: Tensor | None) -> Tensor:
        """Positions [B or 1, T] of new tokens; padding takes no position."""
        B, T = tokens_BT.shape
        read = tokens_BT if mask_BT is None else tokens_BT.masked_fill(~mask_BT, PADDING)
        if self.ids_BS is not None:
            read = torch.cat((self.ids_BS, read), 1)
        self.ids_BS = read[:, -HISTORY:]
        if mask_BT is None:
            steps = torch.arange(T, device=tokens_BT.device).unsqueeze(0)
            start = self.next_B if isinstance(self.next_B, int) else self.next_B.unsqueeze(1)
            self.next_B = self.next_B + T
            return steps + start
        counts = mask_BT.long().cumsum(1)
        start = torch.as_tensor(self.next_B, device=tokens_BT.device).expand(B)
        self.next_B = start + counts[:, -1]
        return (counts - 1).clamp_min(0) + start.unsqueeze(1)


class _Embedding(nn.Module):
    def __init__(self, rows: int, dim: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal((rows, dim), 0.02, generator))

    def forward(self, ids: Tensor) -> Tensor:
        return embed(self.weight, ids)


class Layer(nn.Module):
    """x + sequence_mixer(norm(x)), then x + channel_mixer(norm(x))."""

    sequence_mixer: Any
    channel_mixer: Any

    def __init__(self, config: ModelConfig, index: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.sequence_norm = RMSNorm(config.dim, config.norm_eps)
        self.sequence_mixer = _build(config.sequence(index), config.dim, generator, f"layer {index}")
        self.channel_norm = RMSNorm(config.dim, config.norm_eps)
        self.channel_mixer = _build(config.channel(index), config.dim, generator, f"layer {index}")

    def forward(self, x_BTD: Tensor, positions_BT: Tensor, cache: Any, mask_BT: Tensor | None,
                context: Context) -> tuple[Tensor, Any]:
        """[B, T, D] -> [B, T, D], and what the mixers gave beside."""
        h = self.sequence_norm(x_BTD)
        across = self.sequence_mixer(h, positions_BT, cache, mask_BT, context)
        x_BTD = x_BTD + across.y_BTD
        mixed = self.channel_mixer(self.channel_norm(x_BTD).flatten(0, 1), context)
        return x_BTD + mixed.y_TD.view_as(x_BTD), (across, mixed)


def _build(method: tuple[Any, Any], dim: int, generator: torch.Generator | None, where: str) -> Any:
    entry, config = method
    try:
        return entry.load()(dim, config, generator)
    except MixwellError:
        raise
    except ValueError as error:
        raise MixwellError(f"{where}, {entry.name}: {error}") from error


class LanguageModel(nn.Module):
    """A decoder-only language model.

    Parameters are drawn from `generator` (default: seed 0): normal with std 0.02, the last map of each residual branch
    scaled by 1 / sqrt(2 num_layers) (Radford et al. 2019). `dtype` is the type computed in; norms and routers stay
    float32. Impossible shapes raise `MixwellError`.
    """

    def __init__(self, config: ModelConfig, generator: torch.Generator | None = None,
                 dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        if generator is None and torch.get_default_device().type != "meta":
            generator = rng.generator(0)
        self.config = config
        self.lineage: tuple[Mapping[str, Any], ...] = ()
        self.files: dict[str, bytes] = {}  # tokenizer.json and the like, carried from folder to folder
        self._tokenizer: Tokenizer | None = None
        self.embed = _Embedding(config.vocab_size, config.dim, generator)
        self.layers: Any = nn.ModuleList(Layer(config, i, generator) for i in range(config.num_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        if not config.tie_embeddings:
            self.head = Linear(config.dim, config.vocab_size, False, generator)
        self._share_routers()
        self._refuse_deaf_routers()
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith(RESIDUAL_OUTPUTS) and not parameter.is_meta:  # for the reason given in `normal`
                    parameter.mul_((2 * config.num_layers) ** -0.5)
        self.cast(dtype)

    def routers(self) -> list[Any]:
        """The router of each layer, None where a layer has none."""
        return [getattr(layer.channel_mixer, "router", None) for layer in self.layers]

    def _share_routers(self) -> None:
        """Let routers that keep parameters in common over depth take them from the first of their kind."""
        first: dict[type, Any] = {}
        for router in self.routers():
            if router is not None and router is not first.setdefault(type(router), router):
                router.share(first[type(router)])

    def _refuse_deaf_routers(self) -> None:
        """A router that follows the load must be one that `after_step` reaches; else it would silently do nothing."""
        heard = {id(router) for router in self.routers()}
        for name, module in self.named_modules():
            if isinstance(module, Router) and hasattr(module, "update") and id(module) not in heard:
                raise MixwellError(f"{name}: {type(module).__name__} follows the load of its experts, which this layer "
                                   "does not report; choose another router here.")

    @property
    def needs_tokens(self) -> bool:
        """Whether a router waits for `fit_tokens`."""
        return any(getattr(router, "needs_tokens", False) for router in self.routers())

    def fit_tokens(self, tokens_N: Tensor, generator: torch.Generator | None = None) -> None:
        """Hand training text to the routers that go by how often token ids occur and have not seen any yet."""
        for router in self.routers():
            if getattr(router, "needs_tokens", False):
                router.fit_tokens(tokens_N, generator)

    def after_step(self, seen: Sequence[Sequence[Routing | None]]) -> None:
        """Tell the layers that follow the load of the optimiser step just done: the routings of its forward passes."""
        for i, layer in enumerate(self.layers):
            layer.channel_mixer.after_step([routings[i] for routings in seen if routings[i] is not None])

    def cast(self, dtype: torch.dtype) -> LanguageModel:
        """Compute in `dtype` from now on, in place; norms and routers stay float32 unless `dtype` is wider."""
        self.dtype = dtype
        _cast(self, dtype)
        return self

    @property
    def head_weight(self) -> Tensor:
        """The head's weights [V, D], int8 ones in the type computed in."""
        if self.config.tie_embeddings:
            return self.embed.weight
        weight = self.head.weight
        return weight if weight.is_floating_point() else (weight * self.head.get_buffer("weight_scale")).to(self.dtype)

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that came with the model's files, or the one set since; None where there is none."""
        if self._tokenizer is None and "tokenizer.json" in self.files:
            from mixwell.lm.tokenizer import Tokenizer

            self._tokenizer = Tokenizer.from_files(self.files)
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.files = {**self.files, **tokenizer.save_files()}

    def new_cache(self) -> Cache:
        """An empty cache for `forward`."""
        return Cache([layer.sequence_mixer.new_cache() for layer in self.layers])

    def forward(self, tokens_BT: Tensor, *, cache: Cache | None = None, mask_BT: Tensor | None = None,
                labels_B: Tensor | None = None, step: int = 0, generator: torch.Generator | None = None) -> Output:
        """Logits of the token that follows each one.

        tokens_BT int64 [B, T]; mask_BT bool, False marks padding; labels_B int64, the domain of each row; `cache` is
        read and extended; step and generator reach routers with a schedule or with draws (in training only).
        """
        h, routings, losses, aux = self._trunk(tokens_BT, cache, mask_BT, labels_B, step, generator)
        return Output(self._logits(h), routings, losses, aux)

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor, *, mask_BT: Tensor | None = None,
             labels_B: Tensor | None = None, step: int = 0, generator: torch.Generator | None = None) -> Loss:
        """Mean cross-entropy of `targets_BT` [B, T] where `mask_BT` is True, and the auxiliary losses beside.

        A target of -100 counts in no mean either. Logits are made and used up in chunks.
        """
        h, routings, losses, aux = self._trunk(tokens_BT, None, mask_BT, labels_B, step, generator)
        counts = targets_BT != -100 if mask_BT is None else mask_BT & (targets_BT != -100)
        rows, targets = h.flatten(0, 1), targets_BT.flatten()
        if not bool(counts.all()):
            rows, targets = rows[counts.flatten()], targets[counts.flatten()]
        return Loss(mean_nats(rows, self.head_weight, targets), aux, losses, routings)

    @torch.no_grad()
    def token_nats(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Cross-entropy in nats of each target, float32 [B, T], without gradient."""
        h = self._trunk(tokens_BT, None, None, None, 0, None, losses=False)[0]
        return row_nats(h.flatten(0, 1), self.head_weight, targets_BT.flatten()).view(targets_BT.shape)

    def next_logits(self, tokens_BT: Tensor, cache: Cache, mask_BT: Tensor | None = None,
                    labels_B: Tensor | None = None) -> Tensor:
        """Logits of the token after the last one, float32 [B, V]; `cache` is read and extended."""
        return self._logits(self._trunk(tokens_BT, cache, mask_BT, labels_B, 0, None, losses=False)[0][:, -1])

    def generate(self, tokens_BT: Tensor, max_new_tokens: int, **options: Any) -> Tensor:
        """Continue each row; see `mixwell.lm.generate.generate`."""
        return sampling.generate(self, tokens_BT, max_new_tokens, **options)

    def _trunk(self, tokens_BT: Tensor, cache: Cache | None, mask_BT: Tensor | None, labels_B: Tensor | None, step: int,
               generator: torch.Generator | None, losses: bool = True) -> tuple[
                   Tensor, list[Routing | None], dict[str, Tensor], Tensor | None]:
        """Everything but the head: final states [B, T, D], routings, losses, aux."""
        B, T = tokens_BT.shape
        memory = cache or Cache([])
        earlier_BS = memory.ids_BS
        positions = memory.advance(tokens_BT, mask_BT)
        base: dict[str, Any] = {
            "batch_shape": (B, T), "token_ids_T": tokens_BT.flatten(), "earlier_ids_BS": earlier_BS,
            "num_layers": len(self.layers), "step": step,
            "mask_T": None if mask_BT is None else mask_BT.flatten(), "positions_T": positions.expand(B, T).flatten(),
            "labels_T": None if labels_B is None else labels_B.repeat_interleave(T),
            "generator": generator if self.training else None, "losses": losses}
        x = self.embed(tokens_BT)
        state, all_mixed = None, []
        for i, layer in enumerate(self.layers):
            context = Context(layer=i, state=state, **base)
            x, (across, mixed) = layer(x, positions, None if cache is None else cache.layers[i], mask_BT, context)
            all_mixed += [across, mixed]
            state = state if mixed.routing is None else mixed.routing.state
        return self.norm(x), [m.routing for m in all_mixed[1::2]], *_gathered(all_mixed)

    def _logits(self, h: Tensor) -> Tensor:
        logits = linear(h, self.embed.weight) if self.config.tie_embeddings else self.head(h)
        return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits

    def flops_per_token(self, context_length: int) -> float:
        """Forward FLOPs per token, two a multiply-add, active experts only, mean over a row of `context_length` tokens.

        Training takes three times as many.
        """
        layers = sum(layer.sequence_mixer.flops_per_token(context_length) + layer.channel_mixer.flops_per_token()
                     for layer in self.layers)
        return layers + 2.0 * self.config.vocab_size * self.config.dim

    def num_parameters(self, active: bool = False) -> int:
        """Number of parameters; with `active`, of each channel mixer only those that a token's products touch."""
        total = sum(p.numel() for p in self.parameters())
        return total - sum(_idle(layer.channel_mixer) for layer in self.layers) if active else total

    def to_checkpoint(self) -> Checkpoint:
        """The model as a value; its tensors are the parameters themselves, not copies."""
        from mixwell.lm.checkpoint import to_checkpoint

        return to_checkpoint(self)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, dtype: torch.dtype | str = "auto") -> LanguageModel:
        """A model with the checkpoint's tensors; `dtype` "auto" keeps the type they are stored in."""
        from mixwell.lm.checkpoint import from_checkpoint

        return from_checkpoint(checkpoint, dtype)

    def save(self, folder: str | Path) -> Path:
        """Write a Hugging Face folder; see `mixwell.lm.checkpoint.write`."""
        from mixwell.lm.checkpoint import write

        return write(self.to_checkpoint(), folder)


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    if getattr(module, "keep_float32", False):
        dtype = torch.promote_types(dtype, torch.float32)
    for parameter in module.parameters(recurse=False):
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    for child in module.children():
        _cast(child, dtype)


def _gathered(all_mixed: list[Any]) -> tuple[dict[str, Tensor], Tensor | None]:
    """(mean of each loss over the mixers that have it, sum of their aux)."""
    names = dict.fromkeys(name for mixed in all_mixed for name in mixed.losses)
    losses = {n: torch.stack([m.losses[n].float() for m in all_mixed if n in m.losses]).mean() for n in names}
    terms = [m.aux for m in all_mixed if m.aux is not None]
    return losses, torch.stack(terms).sum() if terms else None


def _idle(mixer: Any) -> int:
    """Parameters of a channel mixer that a token does not touch: each one touched takes two FLOPs."""
    total = sum(p.numel() for p in mixer.parameters())
    return max(0, total - round(mixer.flops_per_token() / 2))
