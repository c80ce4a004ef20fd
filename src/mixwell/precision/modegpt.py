"""MoDeGPT: pairs of matrices made narrower together, each by the decomposition that suits what stands between them.

**Equation:** C = mean h h^T of a block's activations. Feed-forward (Nystrom): the r units of largest
    [C (C + l I)^-1]_ff stay, and W_down' = W_down C S (S^T C S)^-1, S choosing them. Queries and keys (CR): the pairs
    (i, i + P/2) that rotate together of largest sum over heads of E q_i^2 E k_i^2 + E q_i'^2 E k_i'^2 stay, with their
    frequencies. Values and output (SVD): the best rank r of C_x^1/2 W_v W_o, all heads that share values together.
    Layer l loses L share softmax(-(1 - cos) / temperature)_l, cos of what it reads and leaves, at most `most`.
**Shapes:** C [F, F], W_down [D, F] -> [D, r]; a head of width P becomes r wide, queries, keys and values alike.
**Reference:** Lin et al. 2024 (2408.09632), algorithms 1 to 3; a public reimplementation where the paper was not seen.
**Differs:** l is a share of C's mean diagonal. One set of pairs for all heads of a layer, whose frequencies stand once
    (as longrope factors). Experts of a layer keep one width, each its own units, and every expert meets every token.
    Widths are multiples of `multiple`, heads even. What text makes of a model is that of the whole one, for all layers.
**Fails when:** queries are normed behind their map (refused; `attention=false` leaves heads as they are), or text is
    so short that C is known in a few directions only.
**Cost:** two passes over the text, O(F^3) a block or expert, 8 F^2 bytes for each C. No gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.kernels.rope import attention_factor, frequencies, scaling_key
from mixwell.mixing import check_above, check_least
from mixwell.mixing.calibration import Inputs, Needs
from mixwell.precision._parts import whole_example
from mixwell.precision.cutting import (
    Block,
    Weights,
    best,
    blocks,
    cosines,
    cut,
    each_matrix,
    kept_units,
    refuse_quantised,
    staying,
)

ORIGINAL = "original_max_position_embeddings"
JITTER = 1e-6  # of the mean diagonal, added to what is inverted
CPU = torch.device("cpu")
PLAIN = {"qk_norm": "none", "clip_qkv": None, "rotary_dim": None}  # nothing stands between the maps and the scores
BLOCKS_ALONE = "; attention=false cuts feed-forward blocks alone."


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of MoDeGPT."""

    share: float = 0.25  # of the width of blocks and heads that goes, 0 up to 1
    temperature: float | None = 0.15  # epsilon, above 0; None: the same share of every layer
    most: float = 0.8  # the largest share that a layer loses, from share up to 1
    ridge: float = 1e-2  # l as a share of C's mean diagonal, above 0
    attention: bool = True  # heads too; False: feed-forward blocks alone
    multiple: int = 8  # widths of blocks are multiples of it, at least 1
    tokens: int = 16_384  # of calibration text

    def __post_init__(self) -> None:
        check_least(self, share=0, multiple=1, tokens=1)
        check_above(self, temperature=0, ridge=0)
        ordered = self.share <= self.most < 1
        if not ordered:
            raise ValueError(f"share is {self.share} and most {self.most}; expected 0 <= share <= most < 1")


def needs(config: Config) -> Needs:
    """Text, for activations."""
    return Needs(tokens=config.tokens)


def promises(config: Config) -> dict[str, float]:
    """Nothing: what goes is missed."""
    return {}


def lost_shares(influence_L: Tensor, config: Config) -> Tensor:
    """What each layer loses [L] by how far it turns the stream (1 - cos, [L]); the mean is `share`."""
    layers = len(influence_L)
    if config.temperature is None:
        return torch.full_like(influence_L, config.share)
    weights_L = (-influence_L / config.temperature).softmax(0)
    lost_L = layers * config.share * weights_L
    full_L = lost_L > config.most
    while bool(full_L.any()):
        left = layers * config.share - config.most * int(full_L.sum())
        rest_L = weights_L.masked_fill(full_L, 0)
        lost_L = (left * rest_L / rest_L.sum()).masked_fill(full_L, config.most)
        over_L = lost_L > config.most
        if not bool(over_L.any()):
            break
        full_L = full_L | over_L
    return lost_L


def leverage(C: Tensor, ridge: float) -> Tensor:
    """[C (C + l I)^-1]_ff of each unit [F], l being `ridge` times C's mean diagonal."""
    mean = C.diagonal().mean()
    level = ridge * mean
    if not float(level) > 0:  # no unit ever moves
        return torch.zeros(len(C), dtype=C.dtype)
    factor = torch.linalg.cholesky(_raised(C, level))
    inverse = torch.cholesky_inverse(factor)
    return 1 - level * inverse.diagonal()


def _raised(C: Tensor, level: Tensor) -> Tensor:
    """C with `level` added to its diagonal."""
    raised = C.clone()
    raised.diagonal().add_(level)
    return raised


def nystrom(down: Tensor, C: Tensor, kept: Tensor) -> Tensor:
    """The down map [D, n] that makes of the units kept what [D, F] makes of all, as nearly as may be."""
    across = C[:, kept]
    inside = across[kept]
    mean = inside.diagonal().mean()
    solid = _raised(inside, JITTER * mean.clamp_min(JITTER))
    wide = down.double()
    wanted = wide @ across
    found = torch.linalg.solve(solid, wanted.T)
    return found.T.to(down.dtype)


def narrowed(weights: Weights, C: Tensor, width: int, ridge: float) -> Weights:
    """A block, or a stack of experts, with so many units; C [F, F] or [E, F, F]."""
    kept = best(each_matrix(partial(leverage, ridge=ridge), C), width)
    gate_up, _ = kept_units(weights, kept)
    return gate_up, each_matrix(nystrom, weights[1], C, kept)


class Heads(NamedTuple):
    """Attention of a layer: H heads, of which G share keys and values each, P wide."""

    layer: int
    spec: Mapping[str, Any]  # options of its mixer, with those of the model
    heads: int
    shared: int
    width: int

    @property
    def start(self) -> str:
        """What its tensors' names begin with."""
        return f"layers.{self.layer}.sequence_mixer."

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[(H + 2 G) P, ..] as queries [H, P, ..], keys and values [G, P, ..]."""
        by_head = rows.unflatten(0, (-1, self.width))
        q, k, v = by_head.split([self.heads, self.shared, self.shared])
        return q, k, v


def sequence_specs(arch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The sequence mixer's options of each layer."""
    given = arch.get("sequence_mixer", {"method": "sequence.attention"})
    layers = int(arch["num_layers"])
    each = [given] * layers if isinstance(given, Mapping) else given
    return [dict(spec) for spec in each]


def attentions(checkpoint: Checkpoint) -> list[Heads]:
    """The attention of every layer; one that is not plain rotary attention raises `MixwellError`."""
    arch = checkpoint.arch
    found = []
    for layer, own in enumerate(sequence_specs(arch)):
        spec = {**arch, **own}
        _check_attention(spec, layer)
        heads = spec["num_heads"]
        width = spec.get("head_dim") or spec["dim"] // heads
        one = Heads(layer, spec, heads, spec.get("num_kv_heads") or heads, width)
        refuse_quantised(checkpoint, (f"{one.start}qkv.weight", f"{one.start}out.weight"), "MoDeGPT")
        found.append(one)
    return found


def _check_attention(spec: Mapping[str, Any], layer: int) -> None:
    method = str(spec["method"])
    if method.rpartition(".")[2] != "attention":
        raise MixwellError(f"layer {layer} mixes positions by {method}; MoDeGPT cuts sequence.attention{BLOCKS_ALONE}")
    for option, plain in PLAIN.items():
        found = spec.get(option, plain)
        if found != plain:
            raise MixwellError(f"layer {layer} has {option} = {found!r}; MoDeGPT takes {plain!r} only{BLOCKS_ALONE}")
    scaling = spec.get("rope_scaling") or {}
    if scaling.get("type") == "dynamic":
        raise MixwellError(f"layer {layer} has rope_scaling that changes its base with the length, which no choice of "
                           f"pairs keeps{BLOCKS_ALONE}")


def pair_scores(grams: Tensor, heads: Heads) -> Tensor:
    """What each pair of channels carries over all heads [P / 2]; second moments of q, k and v, [H + 2 G, P, P]."""
    powers = grams.diagonal(dim1=-2, dim2=-1)
    q_HP, k_GP, _ = heads.split(powers.flatten())
    times = heads.heads // heads.shared
    keys_HP = k_GP.repeat_interleave(times, 0)
    carried_HP = q_HP * keys_HP
    carried_P = carried_HP.sum(0)
    by_half = carried_P.unflatten(0, (2, -1))
    return by_half.sum(0)


def value_output(gram: Tensor, out: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(B [r, P], out' [r, N]): B v and out' for values v with second moments `gram` [P, P] and their maps out [P, N].

    No other pair of this rank loses less of out^T v in the mean square.
    """
    powers, turned = torch.linalg.eigh(gram)
    largest = powers.amax().clamp_min(JITTER)
    roots = powers.clamp_min(JITTER * largest).sqrt()
    white = torch.diag(roots) @ turned.T
    left, size, right = torch.linalg.svd(white @ out, full_matrices=False)
    kept = slice(rank)
    back = left.T[kept] / roots
    scaled = torch.diag(size[kept])
    return back @ turned.T, scaled @ right[kept]


def kept_rotation(heads: Heads, kept: Tensor) -> dict[str, Any] | None:
    """The `rope_scaling` under which a head as narrow as the pairs kept turns as these did."""
    theta = heads.spec.get("rope_theta", 10000.0)
    scaling = heads.spec.get("rope_scaling")
    plain = _turns(2 * len(kept), theta, None, 0)
    usual = heads.spec.get("max_positions", 2048)
    original = (scaling or {}).get(ORIGINAL, usual)
    factors = {}
    for name, length in (("short_factor", 0), ("long_factor", original + 1)):
        turns = _turns(heads.width, theta, scaling, length)
        apart = plain / turns[kept]
        factors[name] = apart.tolist()
    loudness = attention_factor(scaling)
    return {"type": "longrope", **factors, "factor": 1.0, ORIGINAL: original, "attention_factor": loudness}


def _turns(width: int, theta: float, scaling: Mapping[str, Any] | None, length: int) -> Tensor:
    """Radians a position of each pair, float64."""
    key = scaling_key(scaling)
    return frequencies(width, float(theta), key, length, CPU).double()


def narrowed_heads(checkpoint: Checkpoint, heads: Heads, grams: Tensor, width: int) -> dict[str, Tensor]:
    """The tensors of a layer's attention, its heads so wide; and `kept`, the pairs that stay."""
    out_name = f"{heads.start}out.weight"
    carried = pair_scores(grams, heads)
    kept = best(carried, width // 2)
    channels = torch.cat([kept, kept + heads.width // 2])
    backs, out = _values(grams[-heads.shared :], checkpoint.tensors[out_name], heads, width)
    made = {out_name: out, "kept": kept}
    for part in ("weight", "bias"):
        name = f"{heads.start}qkv.{part}"
        if name in checkpoint.tensors:
            made[name] = _rows(checkpoint.tensors[name], heads, channels, backs)
    return made


def _values(grams_GPP: Tensor, out: Tensor, heads: Heads, width: int) -> tuple[list[Tensor], Tensor]:
    """B of each group of heads that share values, and the output map [D, H r]."""
    rows = out.double().T
    by_value = rows.unflatten(0, (heads.shared, -1, heads.width))  # [G, n, P, D]
    beside = by_value.transpose(1, 2).flatten(2)  # [G, P, n D]
    backs: list[Tensor] = []
    outs: list[Tensor] = []
    for gram, maps in zip(grams_GPP, beside):
        back, left = value_output(gram, maps, width)
        backs.append(back)
        outs += left.split(len(out), 1)
    together = torch.cat(outs)
    return backs, together.T.to(out.dtype)


def _rows(rows: Tensor, heads: Heads, channels: Tensor, backs: Sequence[Tensor]) -> Tensor:
    """Rows of queries and keys that stay, and the values' mapped by B: a weight, or a bias."""
    *turned, v = heads.split(rows)
    values = [back @ own.double() for back, own in zip(backs, v)]
    narrow = torch.stack(values)
    parts = [own[:, channels] for own in turned]
    whole = torch.cat([*parts, narrow.to(rows.dtype)])
    return whole.flatten(0, 1)


def second_moments(checkpoint: Checkpoint, found: Sequence[Block], heads: Sequence[Heads],
                   calibration: Inputs) -> dict[str, Tensor]:
    """Mean outer products of units [.., F, F] by a block's down map, and of q, k and v [H + 2 G, P, P] by their map."""
    widths_of = {f"{one.start}qkv": one.width for one in heads}
    names = [block.down for block in found] + [f"{place}.weight" for place in widths_of]
    total: dict[str, Tensor] = {}
    tokens = 0
    for batch in calibration.inputs(checkpoint, names):
        for name, x in batch.items():
            place = name.removesuffix(".weight")
            h = x.double()
            if place in widths_of:
                h = _projected(checkpoint, place, h, widths_of[place])
            own = h.mT @ h
            total[name] = total.get(name, 0) + own
        tokens += h.shape[-2]
    return {name: value / tokens for name, value in total.items()}


def _projected(checkpoint: Checkpoint, place: str, x_TD: Tensor, width: int) -> Tensor:
    """Queries, keys and values of each head [H + 2 G, T, P]."""
    weight = checkpoint.tensors[f"{place}.weight"]
    bias = checkpoint.tensors.get(f"{place}.bias")
    wide = weight.double()
    y_TR = x_TD @ wide.T
    if bias is not None:
        y_TR = y_TR + bias.double()
    by_head = y_TR.unflatten(1, (-1, width))
    return by_head.transpose(0, 1)


@method(title="MoDeGPT: pairs of matrices made narrower together",
        paper="MoDeGPT: Modular Decomposition for Large Language Model Compression", year=2024, tags={"narrower"})
def modegpt(checkpoint: Checkpoint, config: Config, generator: torch.Generator, calibration: Inputs) -> Checkpoint:
    """A checkpoint with narrower feed-forward blocks and heads. Draws nothing from `generator`.

    Raises `MixwellError` for layers that are neither SwiGLU blocks nor mixtures of them, for attention that is not
    plain, for quantised weights and for blocks narrower than `multiple`.
    """
    found = blocks(checkpoint, "MoDeGPT")
    heads = attentions(checkpoint) if config.attention else []
    same_L = cosines(checkpoint, calibration).mean(1)
    lost_L = lost_shares(1 - same_L, config)
    kept_L = (1 - lost_L).tolist()
    moments = second_moments(checkpoint, found, heads, calibration)
    made = {}
    for block, width in staying(checkpoint, found, kept_L, config.multiple).items():
        weights = block.weights(checkpoint)
        if width < weights[1].shape[-1]:
            made[block] = narrowed(weights, moments[block.down], width, config.ridge)
    others, specs = cut_heads(checkpoint, heads, moments, kept_L)
    return cut(checkpoint, made, calibration, others=others, sequence_mixers=specs)


def cut_heads(checkpoint: Checkpoint, heads: Sequence[Heads], moments: Mapping[str, Tensor],
               kept_L: Sequence[float]) -> tuple[dict[str, Tensor], list[dict[str, Any]] | None]:
    """Tensors of narrower attention, and the options of every layer's; nothing where no head is cut."""
    others: dict[str, Tensor] = {}
    specs = sequence_specs(checkpoint.arch)
    for one in heads:
        pairs = max(1, round(one.width * kept_L[one.layer] / 2))
        width = 2 * pairs
        if width >= one.width:
            continue
        grams = moments[f"{one.start}qkv.weight"]
        made = narrowed_heads(checkpoint, one, grams, width)
        kept = made.pop("kept")
        rotation = kept_rotation(one, kept)
        scale = one.spec.get("score_scale") or one.width**-0.5
        others |= made
        specs[one.layer] |= {"head_dim": width, "rope_scaling": rotation, "score_scale": scale}
    return others, specs if others else None


def example(generator: torch.Generator) -> dict[str, Any]:
    """A model of one layer with attention and a mixture, all half as wide."""
    source = whole_example(generator)
    heads = {"num_heads": 2, "num_kv_heads": 2, "head_dim": 4}
    arch = {**source.arch, **heads, "vocab_size": 13}
    whole = source.derive(arch=arch)
    config = Config(share=0.5, multiple=2, tokens=72)
    return {"checkpoint": whole, "config": config, "generator": generator}
