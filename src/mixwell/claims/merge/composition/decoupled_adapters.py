"""Decoupled adapters: models of two kinds of input compose better where text and each kind have updates of their own.

Paper: Model Composition for Multimodal Large Language Models.
Tried: a small transformer that reads digits from patches, frozen; one model learns to read noisy pixels, another noisy
sums of rows and columns, each by a projection of its own and low-rank updates of all maps; accuracy with both inputs at
once, of updates apart for the query and for each kind, composed (DAMC), against the mean of single updates of twice the
rank (NaiveMC): as many numbers trained. Learning rates are tuned, and a factor of the merged updates is chosen on
validation rows. Against it: an accuracy that is no higher, or one a point below that of the better model alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side, no_worse
from mixwell.claims.merge._digits import BATCH, Rows, Split, digits, module, right
from mixwell.core.rng import generator

DIM, HIDDEN, BLOCKS, RANK = 32, 64, 2, 4  # rank of each of two updates; one update has twice as many
MAPS = {"q": (DIM, DIM), "k": (DIM, DIM), "v": (DIM, DIM), "o": (DIM, DIM), "up": (HIDDEN, DIM), "down": (DIM, HIDDEN)}
NAMES = [f"{block}.{name}" for block in range(BLOCKS) for name in MAPS]
STEPS, FACTORS, RATES = 150, (0.5, 0.75, 1.0, 1.5), (3e-3, 1e-2, 3e-2)
PIXEL_NOISE, SUM_NOISE = 0.3, 0.1
KINDS = 2
Tensors = Mapping[str, Tensor]
Change = Callable[[str, Tensor, Tensor], Tensor]  # (name of a map, its input, kinds of tokens) -> its answer


class Fitted(NamedTuple):
    """What one model learned: its projection, and updates by name, one a map or two."""

    tensors: dict[str, Tensor]
    kind: int

    def update(self, name: str, part: str) -> Any:
        """A map's update for tokens of text, of the model's kind, or for all (`text`, `kind`, `all`)."""
        own = module("merge.composition.decoupled_adapters")
        start = f"{name}.{part}"
        a, b = self.tensors[f"{start}.a"], self.tensors[f"{start}.b"]
        return own.Update(a, b)


def pieces(x: Tensor, side: int) -> Tensor:
    """Images [N, 64] as squares of pixels [N, T, side * side]."""
    images = x.view(-1, 1, 8, 8)
    return F.unfold(images, side, stride=side).transpose(1, 2)


def seen(x: Tensor, kind: int, seed: int) -> Tensor:
    """What a model of this kind is shown: noisy pixels [N, 16, 4], or noisy sums of rows and columns [N, 2, 8]."""
    draws = generator(seed, "noise", str(kind))
    if kind == 0:
        noise = torch.randn(x.shape, generator=draws)
        return pieces(x + PIXEL_NOISE * noise, 2)
    images = x.view(-1, 8, 8)
    sums = torch.stack([images.mean(1), images.mean(2)], dim=1)
    return sums + SUM_NOISE * torch.randn(sums.shape, generator=draws)


def drawn(shape: tuple[int, ...], draws: torch.Generator) -> Tensor:
    """Weights of spread 1 / sqrt(fan in)."""
    spread = shape[-1] ** -0.5
    weight = torch.randn(shape, generator=draws)
    return spread * weight


def placed(tensors: Tensors, shown: Tensor) -> Tensor:
    """The tokens of what is shown [N, T, D]."""
    return shown @ tensors["project"].T + tensors["places"]


def read(base: Tensors, tokens_BTD: Tensor, kinds_T: Tensor, change: Change) -> Tensor:
    """Logits, from the query that stands in front of the tokens."""
    query = base["query"].expand(len(tokens_BTD), 1, DIM)
    x = torch.cat([query, tokens_BTD], dim=1)
    for block in range(BLOCKS):
        call = functools.partial(_call, change, block, kinds_T)
        inner = F.layer_norm(x, (DIM,))
        q, k, v = (call(name, inner) for name in ("q", "k", "v"))
        looked = F.scaled_dot_product_attention(q, k, v)
        x = x + call("o", looked)
        inner = F.layer_norm(x, (DIM,))
        wide = call("up", inner).relu()
        x = x + call("down", wide)
    answer = F.layer_norm(x[:, 0], (DIM,))
    return answer @ base["head"].T


def _call(change: Change, block: int, kinds: Tensor, name: str, x: Tensor) -> Tensor:
    return change(f"{block}.{name}", x, kinds)


def learn(leaves: dict[str, Tensor], loss: Callable[[Tensor], Tensor], rows: int, seed: int, lr: float) -> None:
    """Steps of Adam on batches; loss: of the rows chosen."""
    for leaf in leaves.values():
        leaf.requires_grad_()
    optimizer = torch.optim.Adam(list(leaves.values()), lr=lr)
    draws = generator(seed, "batches")
    for _ in range(STEPS):
        chosen = torch.randint(0, rows, (BATCH,), generator=draws)
        missed = loss(chosen)
        optimizer.zero_grad()
        missed.backward()
        optimizer.step()
    for leaf in leaves.values():
        leaf.requires_grad_(False)


@functools.lru_cache(maxsize=1)
def start(seed: int) -> tuple[Split, dict[str, Tensor]]:
    """The digits, and the transformer that reads them clean, from four squares."""
    split, draws = digits(seed), generator(seed, "base")
    shapes = {"project": (DIM, 16), "places": (4, DIM), "query": (1, DIM), "head": (10, DIM)}
    shapes |= {name: MAPS[name.partition(".")[2]] for name in NAMES}
    base = {name: drawn(shape, draws) for name, shape in shapes.items()}
    shown, kinds = pieces(split.train.x, 4), torch.zeros(5)

    def loss(chosen: Tensor) -> Tensor:
        tokens = placed(base, shown[chosen])
        logits = read(base, tokens, kinds, functools.partial(plain, base))
        return F.cross_entropy(logits, split.train.y[chosen])

    learn(base, loss, len(shown), seed, 3e-3)
    return split, base


def plain(base: Tensors, name: str, x: Tensor, kinds: Tensor) -> Tensor:
    """A map of the base."""
    return x @ base[name].T


def one_update(base: Tensors, update: Callable[[str], Any], name: str, x: Tensor, kinds: Tensor) -> Tensor:
    """A map with one update for all tokens."""
    learned = update(name)
    return plain(base, name, x, kinds) + learned(x)


def apart(base: Tensors, models: Sequence[Fitted], share: float, name: str, x: Tensor, kinds: Tensor) -> Tensor:
    """A map with updates apart for text and for each model's kind."""
    own = module("merge.composition.decoupled_adapters")
    found = [own.Tuned(model.update(name, "text"), model.update(name, "kind")) for model in models]
    config = own.Config(coefficients=(share,) * len(models))
    return own.decoupled_adapters(x, kinds, base[name], found, config)


def fresh(kind: int, decoupled: bool, draws: torch.Generator) -> Fitted:
    """A model before it learned anything: its updates change nothing."""
    count, width = ((16, 4), (2, 8))[kind]
    found = {"project": drawn((DIM, width), draws), "places": drawn((count, DIM), draws)}
    rank, parts = (RANK, ("text", "kind")) if decoupled else (2 * RANK, ("all",))
    for name in NAMES:
        outputs, inputs = MAPS[name.partition(".")[2]]
        for part in parts:
            found[f"{name}.{part}.a"] = drawn((rank, inputs), draws)
            found[f"{name}.{part}.b"] = torch.zeros(outputs, rank)
    return Fitted(found, kind)


def kinds_of(models: Sequence[Fitted], alone: bool) -> Tensor:
    """Of the query and each model's tokens: a model alone is the first of its kind."""
    found = [-1]
    for model in models:
        kind = 0 if alone else model.kind
        found += [kind] * len(model.tensors["places"])
    return torch.tensor(found)


def logits(seed: int, models: Sequence[Fitted], shown: Sequence[Tensor], change: Change) -> Tensor:
    """What models say of their inputs, side by side."""
    _, base = start(seed)
    pairs = zip(models, shown)
    tokens = [placed(model.tensors, each) for model, each in pairs]
    together = torch.cat(tokens, dim=1)
    kinds = kinds_of(models, len(models) == 1)
    return read(base, together, kinds, change)


def alone(seed: int, model: Fitted, decoupled: bool) -> Change:
    """The maps of one model."""
    _, base = start(seed)
    if decoupled:
        return functools.partial(apart, base, [model], 1.0)
    return functools.partial(one_update, base, functools.partial(model.update, part="all"))


@functools.lru_cache(maxsize=2)
def fitted(seed: int, decoupled: bool, lr: float) -> tuple[Fitted, ...]:
    """One model a kind, trained apart."""
    split, _ = start(seed)
    models = []
    for kind in range(KINDS):
        model = fresh(kind, decoupled, generator(seed, "updates", str(kind)))
        shown, change = seen(split.train.x, kind, seed), alone(seed, model, decoupled)

        def loss(chosen: Tensor, model: Fitted = model, shown: Tensor = shown, change: Change = change) -> Tensor:
            found = logits(seed, [model], [shown[chosen]], change)
            return F.cross_entropy(found, split.train.y[chosen])

        learn(model.tensors, loss, len(shown), seed + kind, lr)
        models.append(model)
    return tuple(models)


def both(seed: int, models: Sequence[Fitted], rows: Rows, draw: int, change: Change) -> float:
    """Accuracy with all inputs at once."""
    shown = [seen(rows.x, model.kind, draw) for model in models]
    return right(logits(seed, models, shown, change), rows)


def composed(bench: Bench, seed: int, *, decoupled: bool, lr: float) -> float:
    """Test accuracy of the models composed, the factor chosen on validation rows."""
    (split, base), models = start(seed), fitted(seed, decoupled, lr)
    changes: list[Change] = []
    for factor in FACTORS:
        if decoupled:
            changes.append(functools.partial(apart, base, models, factor / KINDS))
        else:
            changes.append(functools.partial(one_update, base, functools.partial(mean_update, models, factor)))
    scores = [both(seed, models, split.valid, seed + 1, change) for change in changes]
    best = changes[scores.index(max(scores))]
    return both(seed, models, split.test, seed + 2, best)


def mean_update(models: Sequence[Fitted], factor: float, name: str) -> Any:
    """NaiveMC's update of a map, times a factor."""
    own = module("merge.composition.decoupled_adapters")
    update = own.naive([model.update(name, "all") for model in models])
    return update._replace(scale=factor)


def better(bench: Bench, seed: int, *, lr: float) -> float:
    """Test accuracy of the better of the decoupled models, each with its own input alone."""
    split, _ = start(seed)
    found = []
    for model in fitted(seed, True, lr):
        found.append(both(seed, [model], split.test, seed + 2, alone(seed, model, True)))
    return max(found)


GRID = {"lr": RATES}
CLAIM = Claim(
    "Updates apart for each kind of input compose better than their mean.", "accuracy with both inputs",
    lower_is_better=False, provided=(no_worse(baseline="better model alone", lower_is_better=False),),
    sides={"method": Side(composed, {"decoupled": True}, GRID), "baseline": Side(composed, {"decoupled": False}, GRID),
           "better model alone": Side(better, {}, GRID)})
