"""A decoder-only network put together from the rooms' methods by name.

Legend: B rows, S or T positions in a row, T tokens of a batch together in channel mixers, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from mixwell.core import rng
from mixwell.core.errors import MixwellError
from mixwell.core.rng import normal
from mixwell.core.routing import Context, Peers, Routing
from mixwell.kernels.codes import width_of
from mixwell.kernels.embed import embed, mean_nats, row_nats, softcapped
from mixwell.kernels.linear import Linear, linear, plain
from mixwell.kernels.norm import build_norm, wide
from mixwell.kernels.packing import CHANGES, weight_of
from mixwell.lm import again
from mixwell.lm.cache import Cache
from mixwell.lm.config import ModelConfig
from mixwell.lm.layer import build_layer
from mixwell.mixing import Router

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


class _Trunk(NamedTuple):
    """What everything but the head gives."""

    states_BTD: Tensor  # behind the last norm
    routings: list[Routing | None]
    losses: dict[str, Tensor]
    aux: Tensor | None


IGNORED = -100  # a target that counts in no mean


class _Embedding(nn.Module):
    def __init__(self, rows: int, dim: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal((rows, dim), 0.02, generator))

    def forward(self, ids: Tensor) -> Tensor:
        return embed(self.weight, ids)


class Network(nn.Module):
    """A decoder-only network.

    Parameters are drawn from `generator` (default: seed 0): normal with std 0.02, the last map of each residual branch
    scaled by 1 / sqrt(2 num_layers) (Radford et al. 2019). `dtype` is the type computed in; norms and routers stay
    float32. Impossible shapes raise `MixwellError`.
    """

    read_directly: ClassVar[tuple[str, ...]] = ("head.weight",)  # by the loss, past whatever stands beside it

    def __init__(self, config: ModelConfig, generator: torch.Generator | None = None,
                 dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        if generator is None and torch.get_default_device().type != "meta":
            generator = rng.generator(0)
        self.config = config
        self.peers: Peers | None = None  # processes over whose tokens balance is asked for
        self.checkpointing = False  # whether training passes keep no activations inside layers: memory for time
        self.embed = _Embedding(config.vocab_size, config.dim, generator)
        if config.learned_positions:
            self.positions = _Embedding(config.max_positions, config.dim, generator)
        layers = (build_layer(config, i, generator) for i in range(config.num_layers))
        self.layers: Any = nn.ModuleList(layers)
        self.norm = build_norm(config.norm, config.dim, config.norm_eps)
        if not config.tie_embeddings:
            self.head = Linear(config.dim, config.vocab_size, False, generator)
        self._share_routers()
        self._check_loads_are_reported()
        self._shrink_residual_outputs()
        self.cast(dtype)

    def routers(self) -> list[Any]:
        """The router of each layer, None where a layer has none."""
        return [getattr(layer.channel_mixer, "router", None) for layer in self.layers]

    def _share_routers(self) -> None:
        """Let routers that keep parameters in common over depth take them from the first of their kind."""
        firsts: dict[type, Any] = {}
        for router in self.routers():
            if router is None:
                continue
            first = firsts.setdefault(type(router), router)
            if router is not first:
                router.share(first)

    def _check_loads_are_reported(self) -> None:
        """A router that follows the load must be one that `after_step` reaches; else it would silently do nothing."""
        reached = {id(router) for router in self.routers()}
        for name, module in self.named_modules():
            follows = isinstance(module, Router) and hasattr(module, "update")
            if follows and id(module) not in reached:
                raise MixwellError(f"{name}: {type(module).__name__} follows the load of its experts, which this layer "
                                   "does not report; choose another router here.")

    @torch.no_grad()
    def _shrink_residual_outputs(self) -> None:
        branches = 2 * self.config.num_layers
        for name, parameter in self.named_parameters():
            last = name.endswith(RESIDUAL_OUTPUTS)
            if last and not parameter.is_meta:  # for the reason given in `normal`
                parameter.mul_(branches**-0.5)

    @property
    def needs_tokens(self) -> bool:
        """Whether a router waits for `fit_tokens`."""
        waiting = next(self._waiting(), None)
        return waiting is not None

    def fit_tokens(self, tokens_N: Tensor, generator: torch.Generator | None = None) -> None:
        """Hand training text to the routers that go by how often token ids occur and have not seen any yet."""
        for router in self._waiting():
            router.fit_tokens(tokens_N, generator)

    def _waiting(self) -> Iterator[Any]:
        """The routers that need text; asked one by one, since one that shares a table needs none after the first."""
        for router in self.routers():
            if getattr(router, "needs_tokens", False):
                yield router

    def after_step(self, seen: Sequence[Sequence[Routing | None]]) -> None:
        """Tell the layers that follow the load of the optimiser step just done: the routings of its forward passes."""
        for i, layer in enumerate(self.layers):
            own = [routings[i] for routings in seen]
            layer.channel_mixer.after_step([routing for routing in own if routing is not None])

    def cast(self, dtype: torch.dtype) -> Self:
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
        if weight.is_floating_point():
            return weight
        kept = weight_of(self.head, "weight")
        return plain(kept, self.embed.weight)

    def new_cache(self) -> Cache:
        """An empty cache for `forward`."""
        return Cache([layer.sequence_mixer.new_cache() for layer in self.layers])

    def forward(self, tokens_BT: Tensor, *, cache: Cache | None = None, mask_BT: Tensor | None = None,
                labels_B: Tensor | None = None, step: int = 0, generator: torch.Generator | None = None) -> Output:
        """Logits of the token that follows each one.

        tokens_BT int64 [B, T]; mask_BT bool, False marks padding; labels_B int64, the domain of each row; `cache` is
        read and extended; step and generator reach routers with a schedule or with draws (in training only).
        """
        trunk = self._trunk(tokens_BT, cache, mask_BT, labels_B, step, generator)
        logits_BTV = self.logits_of(trunk.states_BTD)
        return Output(logits_BTV, trunk.routings, trunk.losses, trunk.aux)

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor, *, mask_BT: Tensor | None = None,
             labels_B: Tensor | None = None, step: int = 0, generator: torch.Generator | None = None) -> Loss:
        """Mean cross-entropy of `targets_BT` [B, T] where `mask_BT` is True, and the auxiliary losses beside.

        A target of -100 counts in no mean either. Logits are made and used up in chunks.
        """
        trunk = self._trunk(tokens_BT, None, mask_BT, labels_B, step, generator)
        counts_BT = targets_BT != IGNORED
        if mask_BT is not None:
            counts_BT = mask_BT & counts_BT
        rows_TD = trunk.states_BTD.flatten(0, 1)
        targets_T = targets_BT.flatten()
        if not bool(counts_BT.all()):
            counts_T = counts_BT.flatten()
            rows_TD, targets_T = rows_TD[counts_T], targets_T[counts_T]
        nats = mean_nats(rows_TD, self.head_weight, targets_T, self.config.logit_softcap)
        return Loss(nats, trunk.aux, trunk.losses, trunk.routings)

    @torch.no_grad()
    def token_nats(self, tokens_BT: Tensor, targets_BT: Tensor, labels_B: Tensor | None = None,
                   generator: torch.Generator | None = None) -> Tensor:
        """Cross-entropy in nats of each target, float32 [B, T], without gradient."""
        trunk = self._trunk(tokens_BT, None, None, labels_B, generator=generator, losses=False)
        rows_TD = trunk.states_BTD.flatten(0, 1)
        targets_T = targets_BT.flatten()
        nats_T = row_nats(rows_TD, self.head_weight, targets_T, self.config.logit_softcap)
        return nats_T.view(targets_BT.shape)

    def next_logits(self, tokens_BT: Tensor, cache: Cache, mask_BT: Tensor | None = None,
                    labels_B: Tensor | None = None) -> Tensor:
        """Logits of the token after the last one, float32 [B, V]; `cache` is read and extended."""
        trunk = self._trunk(tokens_BT, cache, mask_BT, labels_B, losses=False)
        last_BD = trunk.states_BTD[:, -1]
        return self.logits_of(last_BD)

    def read(self, tokens_BT: Tensor, cache: Cache, places_N: Tensor) -> tuple[Tensor, list[Routing | None]]:
        """Logits [N, V] behind the tokens at `places_N` of the B * T, float32, and each layer's routing of all tokens.

        `cache` is read and extended.
        """
        asked_ND, routings = self.states(tokens_BT, cache, places_N)
        return self.logits_of(asked_ND), routings

    def states(self, tokens_BT: Tensor, cache: Cache, places_N: Tensor) -> tuple[Tensor, list[Routing | None]]:
        """What the head is given at `places_N` of the B * T tokens [N, D], and each layer's routing of all tokens.

        `cache` is read and extended.
        """
        trunk = self._trunk(tokens_BT, cache, None, None, losses=False)
        states_TD = trunk.states_BTD.flatten(0, 1)
        return states_TD.index_select(0, places_N), trunk.routings

    def _trunk(self, tokens_BT: Tensor, cache: Cache | None, mask_BT: Tensor | None, labels_B: Tensor | None,
               step: int = 0, generator: torch.Generator | None = None, losses: bool = True) -> _Trunk:
        """Everything but the head."""
        memory = cache or Cache([None] * len(self.layers))
        earlier_BS = memory.ids_BS
        positions_BT = memory.advance(tokens_BT, mask_BT)
        draws = generator if self.training else None
        facts = token_facts(tokens_BT, positions_BT, mask_BT, labels_B)
        facts |= {"earlier_ids_BS": earlier_BS, "num_layers": len(self.layers), "step": step, "generator": draws,
                  "losses": losses, "peers": self.peers, "kept": memory.kept}
        forgets = self._forgets()
        x_BTD = self._embedded(tokens_BT, positions_BT)
        state: Tensor | None = None
        routings: list[Routing | None] = []
        parts: list[Any] = []  # what the mixers gave, in the order in which they came
        for i, (layer, part) in enumerate(zip(self.layers, memory.layers)):
            context = Context(layer=i, state=state, **facts)
            run = again.checkpointed(layer) if forgets else layer
            x_BTD, across, mixed = run(x_BTD, positions_BT, part, mask_BT, context)
            parts += [across, mixed]
            routings.append(mixed.routing)
            if mixed.routing is not None:
                state = mixed.routing.state
        states_BTD = self.norm(x_BTD)
        if self.config.logit_scale != 1.0:
            states_BTD = states_BTD * self.config.logit_scale
        return _Trunk(states_BTD, routings, *_gathered(parts))

    def _embedded(self, tokens_BT: Tensor, positions_BT: Tensor) -> Tensor:
        """What the first layer reads [B, T, D]."""
        x_BTD = self.embed(tokens_BT)
        if self.config.embed_scale != 1.0:
            x_BTD = x_BTD * x_BTD.new_tensor(self.config.embed_scale)  # rounded as the weights are
        if not self.config.learned_positions:
            return x_BTD
        most = self.config.max_positions
        if positions_BT.numel() and int(positions_BT.max()) >= most:
            raise MixwellError(f"the input is longer than {most} tokens, and this model has learnt no more positions; "
                               "cut it.")
        return x_BTD + self.positions(positions_BT)

    def _forgets(self) -> bool:
        return self.checkpointing and self.training and torch.is_grad_enabled()

    def logits_of(self, h: Tensor) -> Tensor:
        """Logits [..., V], float32 or wider, of `states` [..., D]."""
        logits = linear(h, self.embed.weight) if self.config.tie_embeddings else self.head(h)
        logits = wide(logits)
        return softcapped(logits, self.config.logit_softcap)

    def flops_per_token(self, context_length: int) -> float:
        """Forward FLOPs per token, two a multiply-add, active experts only, mean over a row of `context_length` tokens.

        Training takes three times as many.
        """
        layers = sum(layer.flops_per_token(context_length) for layer in self.layers)
        head = 2.0 * self.config.vocab_size * self.config.dim
        return layers + head

    def num_parameters(self, active: bool = False) -> int:
        """Number of parameters; with `active`, of each channel mixer only those that a token's products touch.

        Of adapters beside it all count as active.
        """
        total = _numbers(self)
        if not active:
            return total
        idle = sum(_idle(layer.channel_mixer) for layer in self.layers)
        return total - idle


def token_facts(tokens_BT: Tensor, positions_BT: Tensor, mask_BT: Tensor | None,
                 labels_B: Tensor | None) -> dict[str, Any]:
    """What `Context` says of the tokens themselves, row-major [B * T]."""
    B, T = tokens_BT.shape
    return {
        "batch_shape": (B, T),
        "token_ids_T": tokens_BT.flatten(),
        "positions_T": positions_BT.expand(B, T).flatten(),
        "mask_T": None if mask_BT is None else mask_BT.flatten(),
        "labels_T": None if labels_B is None else labels_B.repeat_interleave(T),
    }


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    if getattr(module, "keep_float32", False):
        dtype = torch.promote_types(dtype, torch.float32)
    for parameter in module.parameters(recurse=False):
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    for child in module.children():
        _cast(child, dtype)


def _gathered(parts: list[Any]) -> tuple[dict[str, Tensor], Tensor | None]:
    """(mean of each loss over the mixers that have it, sum of their aux)."""
    found: dict[str, list[Tensor]] = {}
    terms = []
    for part in parts:
        for name, loss in part.losses.items():
            values = found.setdefault(name, [])
            values.append(loss.float())
        if part.aux is not None:
            terms.append(part.aux)
    losses = {name: torch.stack(values).mean() for name, values in found.items()}
    aux = torch.stack(terms).sum() if terms else None
    return losses, aux


def _idle(mixer: Any) -> int:
    """Parameters of a channel mixer that a token does not touch: each one touched takes two FLOPs."""
    held = [layer._modules[CHANGES] for layer in mixer.modules() if CHANGES in layer._modules]
    beside = _numbers(nn.ModuleList(held))  # adapters, whose products `flops_per_token` does not count
    total = _numbers(mixer) - beside
    touched = round(mixer.flops_per_token() / 2)
    return max(0, total - touched)


def _numbers(module: nn.Module) -> int:
    """Weights of a module; codes count as the weights that they stand for."""
    total = sum(p.numel() for p in module.parameters())
    for layer in module.modules():
        for name, weight in layer._parameters.items():
            if weight is not None and weight.dtype == torch.uint8:
                bits = layer.get_buffer(f"{name}_bits")
                total += bits.numel() * width_of(weight, bits) - weight.numel()
    return total
