"""Light-PEFT: early in a tuning, masks and gradients tell which heads, units, adapters and ranks can go; they go.

**Equation:** y = (W + s B A)(c * x), s = alpha / R; c, from 1, a number for each head before a layer's `out`, for each
    hidden unit before its `down_proj`, and 1 elsewhere; loss + penalty sum |c|.
    Over steps: an adapter's worth = mean of ||s B A x|| / ||W x||, that of its rank j = |mean_i A_ji dA_ji| +
    |mean_o B_oj dB_oj|. Cut: of each layer the heads of least |c|, of all layers together units, adapters and ranks
    of least worth. What stays goes on with c = 1, W as it was and the slices of A and B.
**Shapes:** x [..., I], W [O, I], A [R, I], B [O, R]; c [heads] or [I].
**Reference:** Gu et al. 2024, Light-PEFT (2406.03792), and its released code.
**Differs:** a mask stands before `out`, where it does what one on the attention's weights does. With grouped keys and
    values whole groups go. `Importance` is fed by the caller's loop, there in the second half of the first phase. What
    is left is LoRA (`adapters.lora`), its ranks in a pattern.
**Fails when:** the masks have hardly moved: then their order is chance. Not for heads with sinks or a norm over all.
**Cost:** LoRA's, and the masks' product; behind the cut less of everything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mixwell.adapters._parts import WeightAdapter, check_rank, example_target, product, thin_pair
from mixwell.adapters.attached import Attached, attach
from mixwell.adapters.targets import Target
from mixwell.core import registry
from mixwell.core.checkpoint import Checkpoint, channel_mixers
from mixwell.core.config import to_dict
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.mixing import check_above, check_least, check_not_negative, check_rate

HEADS, UNITS = "sequence_mixer.out.weight", "channel_mixer.down_proj"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of Light-PEFT; shares are of what goes."""

    rank: int = 8  # R
    alpha: float = 16.0  # the change counts alpha / R times
    penalty: float = 1e-4  # coefficient of the masks' sum
    heads: float = 1 / 3  # of each layer, 0 up to 1
    units: float = 1 / 3  # of all layers' hidden units, 0 up to 1
    modules: float = 0.75  # of the adapters, 0 up to 1
    ranks: float = 0.5  # of the ranks of the adapters that stay, 0 up to 1

    def __post_init__(self) -> None:
        check_least(self, rank=1)
        check_above(self, alpha=0)
        check_not_negative(self, "penalty")
        check_rate(self, "heads", "units", "modules", "ranks")


@method(
    title="Light-PEFT, early pruning of model and adapters",
    paper="Light-PEFT: Lightening Parameter-Efficient Fine-Tuning via Early Pruning",
    year=2024,
    tags={"matrix"},
)
class LightPEFT(WeightAdapter):
    """LoRA with masks to be cut by; see the module's card."""

    parts = ("A", "B", "mask")
    targets = ("all-linear",)
    config: Config

    def __init__(self, target: Target, config: Config, generator: torch.Generator) -> None:
        super().__init__(target, config)
        check_rank(config.rank, target)
        self.scale = config.alpha / config.rank
        self.A, self.B = thin_pair(target.stack, target.outputs, target.inputs, config.rank, generator)
        groups = _groups(target)
        self.mask = nn.Parameter(self.A.new_ones(groups)) if groups else None
        self.maps_input = groups > 0
        self.ratios: list[Tensor] | None = None  # filled where an `Importance` watches

    def before(self, x: Tensor, A: Tensor, B: Tensor, mask: Tensor | None) -> Tensor:
        """What goes in, masked."""
        if mask is None:
            return x
        if self.training and self.context.losses:
            size = mask.abs().sum()
            self.report({"adapter_mask": size}, self.config.penalty * size)
        return self._masked(x, mask)

    def after(self, x: Tensor, y: Tensor, weight: Any, A: Tensor, B: Tensor, mask: Tensor | None) -> Tensor:
        """W (c * x) + s B A (c * x)."""
        masked = x if mask is None else self._masked(x, mask)
        change = self.scale * product(masked, A, B)
        if self.ratios is not None:
            ratio = change.detach().norm(dim=-1) / y.detach().norm(dim=-1).clamp_min(1e-12)
            self.ratios.append(ratio.mean().float())
        return y + change

    def delta(self, weight: Tensor, A: Tensor, B: Tensor, mask: Tensor | None) -> Tensor:
        """(W + s B A) diag(c) - W."""
        change = self.scale * B @ A
        if mask is None:
            return change
        whole = weight + change
        return whole * self._spread(mask) - weight

    def _masked(self, x: Tensor, mask: Tensor) -> Tensor:
        """c * x."""
        return x * self._spread(mask).to(x.dtype)

    def _spread(self, mask: Tensor) -> Tensor:
        """c of each input [I]."""
        return mask.repeat_interleave(self.target.inputs // len(mask))


def _groups(target: Target) -> int:
    """Numbers of a target's mask: heads, hidden units, or none."""
    if target.name.endswith(HEADS):
        return int(getattr(target.owner, "heads", 0) or getattr(target.site, "heads", 0))
    if target.name.endswith(UNITS) and not target.stack:
        return target.inputs
    return 0


class Importance:
    """What adapters and their ranks were worth, mean over the steps observed; tokens are counted alike."""

    def __init__(self, attached: Attached) -> None:
        self.attached = attached
        self.steps = 0
        self._modules = dict.fromkeys(attached.adapters, 0.0)
        self._ranks = {name: torch.zeros(adapter.config.rank) for name, adapter in attached.adapters.items()}
        for adapter in attached.adapters.values():
            adapter.ratios = []

    def observe(self) -> None:
        """Take in one step: behind its backward pass, before its gradients are cleared."""
        for name, adapter in self.attached.adapters.items():
            ratios, adapter.ratios = adapter.ratios, []
            if not ratios or adapter.A.grad is None:
                raise MixwellError(f"{name} has seen no tokens or has no gradient; observe behind a backward pass.")
            seen = torch.stack(ratios)
            self._modules[name] += float(seen.mean())
            self._ranks[name] += rank_worth(adapter.A, adapter.B)
        self.steps += 1

    def close(self) -> None:
        """Stop watching."""
        for adapter in self.attached.adapters.values():
            adapter.ratios = None

    def modules(self) -> dict[str, float]:
        """Worth of each adapter."""
        steps = self._counted()
        return {name: worth / steps for name, worth in self._modules.items()}

    def ranks(self) -> dict[str, Tensor]:
        """Worth of each rank of each adapter [R]."""
        steps = self._counted()
        return {name: worth / steps for name, worth in self._ranks.items()}

    def _counted(self) -> int:
        if not self.steps:
            raise MixwellError("no step was observed, so nothing is known of what can go; call observe().")
        return self.steps


def rank_worth(A: Tensor, B: Tensor) -> Tensor:
    """|mean_i A_ji dA_ji| + |mean_o B_oj dB_oj| of each rank [R]; a stack's experts are summed over."""
    assert A.grad is not None and B.grad is not None
    into = (A * A.grad).mean(-1).abs()
    out_of = (B * B.grad).mean(-2).abs()
    both = (into + out_of).detach()
    return both.reshape(-1, both.shape[-1]).sum(0)


def staying(worth: Tensor, share: float) -> Tensor:
    """Which stay when int(share * n) of least worth go, bool [n]; of equal worth the last ones go."""
    going = int(share * len(worth) + 1e-9)
    order = worth.argsort(descending=True, stable=True)
    kept = order[: len(worth) - going]
    found = torch.zeros(len(worth), dtype=torch.bool)
    found[kept] = True
    return found


class Cut(NamedTuple):
    """The smaller model, and LoRA beside it as it goes on."""

    checkpoint: Checkpoint
    config: Any  # of `adapters.lora`, the ranks of each target in its pattern
    tensors: Mapping[str, Tensor]

    def attach(self, model: nn.Module) -> Attached:
        """Put what is left of the adapters beside a model made from the checkpoint."""
        lora: Any = registry.find("adapters.lora").load()
        found = attach(lora, model, list(self.config.rank_pattern), self.config, begin=False)
        found.load_tensors(self.tensors)
        return found


def cut(attached: Attached, importance: Importance) -> Cut:
    """Cut model and adapters by their config's shares.

    Raises `MixwellError` for layers that are no plain attention and dense blocks, and where nothing was observed.
    """
    config: Config = attached.config
    kept = _adapters_kept(importance, config)
    heads = _heads_kept(attached, config)
    units = _units_kept(attached, config)
    base = attached.base_tensors()
    tensors = {name: _sliced(name, base[name], 0, heads, units) for name in base}
    tensors = {name: _sliced(name, tensors[name], -1, heads, units) for name in tensors}
    sizes: dict[str, int] = {}
    thin: dict[str, Tensor] = {}
    for target, ranks in kept.items():
        adapter = attached.adapters[target]
        sizes[target] = int(ranks.sum())
        A, B = adapter.A.detach()[ranks], adapter.B.detach()[:, ranks]
        thin[f"{target}/A"] = _sliced(target, A, -1, heads, units)
        thin[f"{target}/B"] = _sliced(target, B, 0, heads, units)
    options = registry.find("adapters.lora").module().Config
    alphas = {target: config.alpha / config.rank * size for target, size in sizes.items()}
    lora = options(rank_pattern=sizes, alpha_pattern=alphas)
    return Cut(Checkpoint(_smaller(attached, heads, units), tensors), lora, thin)


def _adapters_kept(importance: Importance, config: Config) -> dict[str, Tensor]:
    """Which ranks stay of each adapter that stays, bool [R]."""
    modules = importance.modules()
    worth = torch.tensor(list(modules.values()))
    names = [name for name, stays in zip(modules, staying(worth, config.modules).tolist()) if stays]
    ranks = importance.ranks()
    every = torch.cat([ranks[name] for name in names])
    parts = staying(every, config.ranks).split(config.rank)
    return {name: part for name, part in zip(names, parts) if bool(part.any())}


def _masks(attached: Attached, ending: str) -> dict[int, Tensor]:
    """|c| by layer."""
    found = {}
    for name, adapter in attached.adapters.items():
        if name.endswith(ending) and adapter.mask is not None:
            layer = int(name.split(".")[1])
            found[layer] = adapter.mask.detach().abs()
    return found


class Kept(NamedTuple):
    """Rows of a layer's `qkv` and columns of its `out` that stay, and the numbers of heads of both kinds."""

    rows: Tensor
    columns: Tensor
    heads: int
    kv_heads: int


def _heads_kept(attached: Attached, config: Config) -> dict[int, Kept]:
    found = {}
    model: Any = attached.model
    masks = _masks(attached, HEADS)
    for layer, worth_H in masks.items():
        mixer = model.layers[layer].sequence_mixer
        _check_attention(mixer, layer)
        shared = mixer.heads // mixer.kv_heads
        worth_G = worth_H.view(mixer.kv_heads, shared).sum(1)
        groups = staying(worth_G, config.heads)
        heads = groups.repeat_interleave(shared)
        columns = heads.repeat_interleave(mixer.width)
        shown = groups.repeat_interleave(mixer.width)
        rows = torch.cat((columns, shown, shown))
        found[layer] = Kept(rows, columns, int(heads.sum()), int(groups.sum()))
    if found and len(found) < len(model.layers):
        raise MixwellError("heads are cut in every layer or in none; let targets take `out` of all, or none.")
    return found


def _check_attention(mixer: Any, layer: int) -> None:
    plain = type(mixer).__name__ == "Attention" and getattr(mixer, "sinks", None) is None
    if not plain or mixer.config.qk_norm == "full":
        raise MixwellError(f"layer {layer} has heads that are not cut: {type(mixer).__name__} with sinks, a norm over "
                           "all heads, or another kind; leave `out` out of targets.")


def _units_kept(attached: Attached, config: Config) -> dict[int, Tensor]:
    masks = _masks(attached, UNITS)
    if not masks:
        return {}
    sizes = [len(mask) for mask in masks.values()]
    every = torch.cat(list(masks.values()))
    parts = staying(every, config.units).split(sizes)
    for layer, part in zip(masks, parts):
        if not bool(part.any()):
            raise MixwellError(f"no unit of layer {layer} would stay; lower units.")
    return dict(zip(masks, parts))


def _sliced(name: str, value: Tensor, axis: int, heads: Mapping[int, Kept], units: Mapping[int, Tensor]) -> Tensor:
    """What stays of a tensor along one side, that of outputs (0) or that of inputs (-1)."""
    parts = name.split(".")
    if parts[0] != "layers":
        return value
    layer, rest = int(parts[1]), ".".join(parts[2:])
    kept: Tensor | None = None
    if layer in heads:
        own = heads[layer]
        sides = {(0, "sequence_mixer.qkv.weight"): own.rows, (0, "sequence_mixer.qkv.bias"): own.rows,
                 (-1, HEADS): own.columns}
        kept = sides.get((axis, rest))
    if layer in units:
        halves = torch.cat((units[layer], units[layer]))
        own_units = {(0, "channel_mixer.gate_up_proj"): halves, (-1, UNITS): units[layer]}
        kept = own_units.get((axis, rest), kept)
    if kept is None:
        return value.clone() if axis else value
    return value[kept] if axis == 0 else value[..., kept]


def _smaller(attached: Attached, heads: Mapping[int, Kept], units: Mapping[int, Tensor]) -> dict[str, Any]:
    """The architecture of what is left."""
    model: Any = attached.model
    arch: dict[str, Any] = to_dict(model.config)
    if heads:
        own = heads[0]
        width = model.layers[0].sequence_mixer.width
        arch |= {"num_heads": own.heads, "num_kv_heads": own.kv_heads, "head_dim": width}
        spec = arch["sequence_mixer"]
        listed = [spec] if isinstance(spec, Mapping) else list(spec)
        arch["sequence_mixer"] = _without_sizes(listed, alike=isinstance(spec, Mapping))
    if units:
        mixers = channel_mixers(arch)
        for layer, kept in units.items():
            mixers[layer]["hidden_dim"] = int(kept.sum())
        arch["channel_mixer"] = mixers
    return arch


def _without_sizes(specs: Sequence[Mapping[str, Any]], alike: bool) -> Any:
    """Options of attention whose numbers of heads are the model's."""
    own = ("num_heads", "num_kv_heads", "head_dim")
    found = [{name: value for name, value in spec.items() if name not in own} for spec in specs]
    return found[0] if alike else found


def example(generator: torch.Generator) -> dict[str, Any]:
    """A layer of six inputs and five outputs, rank two."""
    return {"target": example_target(generator), "config": Config(rank=2, alpha=4.0)}
