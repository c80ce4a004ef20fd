"""EVA: LoRA that starts along what its layers see of the new text, with ranks where that explains most.

**Equation:** rows of A = the leading principal components of a layer's inputs, B = 0; of all ratios of explained
    variance the largest are kept, rank a layer in the mean: a layer's rank is how many of its own are among them.
**Shapes:** inputs [N, I] of each target; components [K, I], K = round(rank rho); A [R, I], R of each target its own.
**Reference:** Paischer et al. 2024, EVA (2410.07170), algorithm 1; PEFT's implementation by the authors.
**Differs:** components are kept in float64 by the incremental analysis of Ross et al. 2008, with
    exact decompositions. Experts of a stack have one rank and one A at the start, from all that comes into the stack.
    Every token of the text counts. What it leaves is a LoRA with its pattern of ranks, and is saved as one.
**Fails when:** the text that is looked at is not that of the training; a budget of a few ranks goes to narrow inputs.
**Cost:** passes over text until components stand still, and a decomposition of [N + K, I] of each target a pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.adapters._parts import WeightAdapter, example_target, listed
from mixwell.adapters.attached import Attached, Known, Standing, attach, check_free
from mixwell.adapters.targets import Target, find
from mixwell.core import registry
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.mixing import check_above, check_least

LORA = "adapters.lora"
TINY = 1e-300  # of a variance that is none


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of EVA."""

    rank: int = 8  # mean over the targets; the budget is as many times the targets
    alpha: float = 8.0  # the change counts alpha / rank times at every target
    rho: float = 2.0  # no target has more than rho times the mean rank; 1 = all have the same
    tau: float = 0.99  # cosine with its former self from which on a component stands still
    whiten: bool = False  # divide components by the roots of their singular values
    batches: int = 64  # windows of text that are looked at, at most
    dropout: float = 0.0  # of LoRA

    def __post_init__(self) -> None:
        check_least(self, rank=1, rho=1, batches=1)
        check_above(self, alpha=0)
        if not 0 < self.tau <= 1:
            raise ValueError(f"tau is {self.tau}; expected above 0, up to 1")

    @property
    def most(self) -> int:
        """K, components of each target that are kept."""
        return round(self.rank * self.rho)


@dataclass(frozen=True, eq=False)
class Components:
    """Leading principal components of the rows seen so far, float64."""

    rows: int
    mean_I: Tensor
    spread_I: Tensor  # sum of squared distances from the mean
    values_K: Tensor  # singular values of the centred rows
    vectors_KI: Tensor

    def ratios(self) -> Tensor:
        """Share of the variance that each component explains [K]."""
        whole = self.spread_I.sum()
        own_K = self.values_K.square()
        return own_K / whole.clamp_min(TINY)


def none_yet(width: int) -> Components:
    """Before any row."""
    zeros = torch.zeros(width, dtype=torch.float64)
    none = zeros[:0]
    return Components(0, zeros, zeros, none, zeros.expand(0, -1))


def updated(seen: Components, rows_NI: Tensor, most: int) -> Components:
    """The components with some rows more."""
    rows_NI = rows_NI.double()
    count = len(rows_NI)
    mean_I = rows_NI.mean(0)
    centred_NI = rows_NI - mean_I
    together = seen.rows + count
    apart_I = mean_I - seen.mean_I
    weight = seen.rows * count / together
    former_KI = seen.values_K[:, None] * seen.vectors_KI
    between_I = weight**0.5 * apart_I
    stacked = torch.cat((former_KI, centred_NI, between_I[None]))
    _, S, Vh = torch.linalg.svd(stacked, full_matrices=False)
    kept = min(most, together)
    spread_I = seen.spread_I + centred_NI.square().sum(0) + weight * apart_I.square()
    mean_I = seen.mean_I + apart_I * (count / together)
    return Components(together, mean_I, spread_I, S[:kept], Vh[:kept])


def shared_out(ratios: Mapping[str, Tensor], budget: int) -> dict[str, int]:
    """How many of the `budget` largest ratios are each target's."""
    pairs = [(ratio, name) for name, own in ratios.items() for ratio in own.tolist()]
    pairs.sort(key=lambda pair: -pair[0])
    found = dict.fromkeys(ratios, 0)
    best = pairs[:budget]
    for _, name in best:
        found[name] += 1
    return found


def standing_still(before: Components, after: Components, tau: float) -> int:
    """How many of the leading components are what they were, up to their sign."""
    count = min(len(before.values_K), len(after.values_K))
    products = before.vectors_KI[:count] * after.vectors_KI[:count]
    cosines = products.sum(1).abs()
    moved = (cosines < tau).nonzero()
    return int(moved[0]) if len(moved) else count


class _Watch(WeightAdapter):
    """Keeps what comes into a product."""

    parts = ("places",)
    places: Tensor

    def __init__(self, target: Target) -> None:
        super().__init__(target, None)
        self.register_buffer("places", torch.zeros(target.stack))
        self.rows: list[Tensor] = []

    def after(self, x: Tensor, y: Tensor, weight: Any, places: Tensor) -> Tensor:
        """The product as it is."""
        rows = x.detach().flatten(0, -2)
        self.rows.append(rows.cpu())
        return y

    def taken(self) -> Tensor:
        """The rows of a pass [N, I], which are then forgotten."""
        found = torch.cat(self.rows)
        self.rows = []
        return found


@torch.no_grad()
def surveyed(model: nn.Module, targets: Sequence[Target], text: Iterable[Tensor],
             config: Config) -> tuple[dict[str, int], dict[str, Components]]:
    """(the rank of each target, the components of its inputs) after as much text as it takes.

    text: windows of token ids, int64 [B, T] each.
    """
    watches = {target.name: _Watch(target) for target in targets}
    there = Attached(model, Standing("adapters.eva", None, watches))
    training = model.training
    model.eval()
    try:
        return _followed(model, watches, text, config)
    finally:
        model.train(training)
        there.detach()


def _followed(model: nn.Module, watches: Mapping[str, _Watch], text: Iterable[Tensor],
              config: Config) -> tuple[dict[str, int], dict[str, Components]]:
    """As `surveyed`; a target whose own components stand still is left alone until it gets a rank more."""
    found = {name: none_yet(watch.target.inputs) for name, watch in watches.items()}
    ranks = dict.fromkeys(watches, config.rank)
    still = dict.fromkeys(watches, 0)
    for tokens_BT in islice(text, config.batches):
        model(tokens_BT)
        for name, watch in watches.items():
            rows_NI = watch.taken()
            if still[name] < ranks[name]:
                former = found[name]
                found[name] = updated(former, rows_NI, config.most)
                still[name] = standing_still(former, found[name], config.tau)
        ratios = {name: _eligible(watches[name].target, seen, config) for name, seen in found.items()}
        ranks = shared_out(ratios, config.rank * len(watches))
        if all(still[name] >= rank for name, rank in ranks.items()):
            break
    if not all(seen.rows for seen in found.values()):
        raise MixwellError("EVA looked at no window, so it has nothing to start along; hand in text that is not empty "
                           "and was not read to its end before.")
    return ranks, found


def _eligible(target: Target, seen: Components, config: Config) -> Tensor:
    """The ratios of as many components as the target may have ranks."""
    most = min(config.most, target.outputs, target.inputs)
    return seen.ratios()[:most]


@method(
    title="EVA, LoRA started along the variance of its inputs",
    paper="One Initialization to Rule them All: Fine-tuning via Explained Variance Adaptation",
    year=2024,
    tags={"matrix", "experts", "text"},
)
class EVA:
    """Puts a LoRA beside a model that starts along its inputs; see the module's card."""

    targets = ("all-linear",)

    @classmethod
    def attach(cls, model: nn.Module, targets: Sequence[str] | str | None, config: Config,
               generator: torch.Generator | None = None, **given: Any) -> Attached:
        """Look at `text`, windows of token ids, and put the LoRA beside the model."""
        return attach(cls, model, targets, config, generator, **given)

    @classmethod
    def stands(cls, model: nn.Module, targets: Sequence[str] | str | None, config: Config, generator: torch.Generator,
               known: Known) -> Standing:
        """A LoRA at every target that got a rank."""
        there = find(model, listed(cls.targets if targets is None else targets))
        for target in there:
            check_free(target)
        components: dict[str, Components] = {}
        if known.held is not None:
            ranks = _held(there, known.held)
        elif known.text is not None:
            ranks, components = surveyed(model, there, known.text, config)
        elif not known.begin:
            ranks = {target.name: config.rank for target in there}  # the budget, before it is shared out
        else:
            raise MixwellError("EVA starts along what the layers see of a text; hand in text, windows of token ids.")
        kept = [target for target in there if ranks[target.name]]
        names = [target.name for target in kept]
        own = {name: ranks[name] for name in names}
        lora = registry.find(LORA)
        options = _options(lora.module().Config, own, config)
        made = lora.load().build(kept, options, generator)
        beside = dict(zip(names, made))
        for name in components.keys() & beside.keys():
            _start(beside[name].A, components[name], config.whiten)
        return Standing(LORA, options, beside)


def _held(targets: Sequence[Target], tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The ranks that a saved adapter has."""
    found = {target.name: 0 for target in targets}
    for name in found:
        part = f"{name}/A"
        if part in tensors:
            found[name] = tensors[part].shape[-2]
    return found


def _options(lora: Any, ranks: Mapping[str, int], config: Config) -> Any:
    """LoRA's, with the change at every target counted alike."""
    per_rank = config.alpha / config.rank
    alphas = {name: per_rank * rank for name, rank in ranks.items()}
    return lora(rank=config.rank, alpha=config.alpha, dropout=config.dropout, rank_pattern=dict(ranks),
                alpha_pattern=alphas)


@torch.no_grad()
def _start(A: Tensor, seen: Components, whiten: bool) -> None:
    """Let the rows of A [..., R, I] be the leading components."""
    rank = A.shape[-2]
    rows = seen.vectors_KI[:rank]
    if whiten:
        lengths = seen.values_K[:rank].sqrt()
        rows = rows / lengths[:, None]
    A.copy_(rows)


def example(generator: torch.Generator) -> dict[str, Any]:
    """A mean rank of two."""
    return {"target": example_target(generator), "config": Config(rank=2, alpha=4.0)}
