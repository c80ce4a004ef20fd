"""Adapters into one adapter: what PEFT's LoRA folders change, merged by the rules that merge models.

An adapter is a change of a base, so that a rule which wants a base finds nothing but zeros there. Factors of a merge:

* `cat`: the factors of all stand side by side, each times its weight. The product is the rule's, exactly, and the rank
  the sum of the ranks. For rules that weigh changes and add them up: linear, and task arithmetic untrimmed.
* `svd`: the rule sees whole changes; of what it makes the largest singular parts are kept, `rank` of them.
* `apart`: the rule sees A and B each by themselves, as PEFT's linear, ties and dare do: quick, of the old rank, and not
  the rule of what the adapters do, since B1 A2 comes in.

Legend: E experts, O outputs, I inputs, R rank, N adapters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from mixwell.core.errors import MixwellError, shown
from mixwell.core.rng import generator
from mixwell.formats.declared import Form, Fresh
from mixwell.lm.peft.places import BASE
from mixwell.merge.merging import Model, Rule, in_words, merged
from mixwell.report.targets import check_folder
from mixwell.run.merging import WHOLE, Recipe, recipe_text
from mixwell.run.merging_factors import REMEDY, Adapter, Change, read, write

NAMES = {"cat": ("linear", "cat"), "svd": ("linear", "svd")}  # PEFT's names of linear merges
OF_A_BASE = ("base_model_name_or_path", BASE, "fan_in_fan_out")  # keys of configs
TINY = 1e-30
CARD_TEXT = """---
library_name: peft
{base}tags:
- lora
- merge
- mixwell
---
# {title}

A merge of LoRA adapters made with mixwell. Merged:

{listed}

The recipe:

```yaml
{text}
```
"""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What the merge of adapters holds, for whoever asked for it."""

    folder: Path
    factors: str
    modules: int
    rank: int  # the largest of a module
    parameters: int
    error: float  # |kept - the rule's change| / |the rule's change| over all modules; 0 where factors are not cut


class Made(NamedTuple):
    """The merge of one module."""

    module: str
    change: Change
    lost: float = 0.0  # squared distance to what the rule says
    whole: float = 0.0  # its squared size


class Settings(NamedTuple):
    """How factors come out of a merge."""

    factors: str
    rank: int | None


def merge_adapters(name: str, folders: Sequence[str | Path], *, out: str | Path, options: Mapping[str, Any],
                   seed: int = 0) -> Kept:
    """Merge PEFT's LoRA folders by the method `name` into the folder `out`, which PEFT loads beside the same base.

    options: those of the method, and `factors`, `rank` and `dtype`. Ranks, alphas and modules may differ for `cat` and
    `svd`. Adapters of several bases, parts that are no products, methods that look at models, and options that do not
    go together raise `MixwellError`; nothing is written then.
    """
    check_folder(out)
    adapters = [read(folder) for folder in folders]
    check_alike(adapters)
    recipe, settings = _asked(name, options)
    _check_rule(recipe, len(adapters))
    way = WAYS[settings.factors]
    found = list(way(recipe, adapters, settings.rank, seed))
    changes = {made.module: made.change for made in found}
    first = adapters[0]
    dtype = recipe.dtype or first.dtype
    about = _card(out, recipe, settings, adapters, seed)
    path = write(out, changes, first, dtype, about)
    return _told(path, settings, found)


def _check_rule(recipe: Recipe, count: int) -> None:
    """Raise `MixwellError` where the method looks at models, or takes another number of adapters."""
    entry = recipe.entry
    if not entry.tags.isdisjoint(WHOLE):
        raise MixwellError(f"{entry.name} looks at whole models. {REMEDY}")
    grounded = "base" in entry.tags
    others = count - 1 if _starts(recipe) else count
    rule = Rule(entry, recipe.name)
    rule.check(others, grounded)


def _told(path: Path, settings: Settings, found: Sequence[Made]) -> Kept:
    """What came of a merge."""
    lost = sum(made.lost for made in found)
    whole = sum(made.whole for made in found)
    share = lost / max(whole, TINY)
    ranks = [made.change.rank for made in found]
    sizes = [made.change.size for made in found]
    return Kept(folder=path, factors=settings.factors, modules=len(found), rank=max(ranks), parameters=sum(sizes),
                error=math.sqrt(share))


def check_alike(adapters: Sequence[Adapter]) -> None:
    """Raise `MixwellError` where adapters change other bases, or other shapes of one module."""
    first, *others = adapters
    for other in others:
        for key in OF_A_BASE:
            _check_key(key, first, other)
        _check_stacks(first, other)
    for module in modules_of(adapters):
        _check_shapes(module, adapters)


def _check_key(key: str, first: Adapter, other: Adapter) -> None:
    """What a config says of the base is the same, where both say it."""
    mine = first.config.get(key)
    theirs = other.config.get(key)
    if mine is None or theirs is None or mine == theirs:
        return
    raise MixwellError(f"{other.name} has {key} {shown(theirs)}, {first.name} {shown(mine)}; expected adapters of one "
                       "base. Where it is one, write the same into both configs.")


def _check_stacks(first: Adapter, other: Adapter) -> None:
    """Names of experts' factors say how deep they are wrapped: one list of parameters for all."""
    mine = first.parameters
    theirs = other.parameters
    if mine == theirs:
        return
    raise MixwellError(f"{other.name} has target_parameters {shown(theirs)}, {first.name} {shown(mine)}; PEFT's names "
                       f"of experts' factors can be matched for one list only. {REMEDY}")


def _check_shapes(module: str, adapters: Sequence[Adapter]) -> None:
    there = [adapter for adapter in adapters if module in adapter.changes]
    first = there[0]
    shape = first.changes[module].shape
    for other in there:
        found = other.changes[module].shape
        if found == shape:
            continue
        raise MixwellError(f"{other.name} changes {module} by {list(found)}, {first.name} by {list(shape)}; "
                           "expected adapters of one base.")


def modules_of(adapters: Sequence[Adapter]) -> list[str]:
    """All modules that one of them changes, in order."""
    found = {module for adapter in adapters for module in adapter.changes}
    return sorted(found)


def _asked(name: str, options: Mapping[str, Any]) -> tuple[Recipe, Settings]:
    """The method with its options, and what is asked of the factors."""
    rest = dict(options)
    short = name.removeprefix("merge.")
    method, usual = NAMES.get(short, (short, ""))
    factors = rest.pop("factors", usual)
    rank = rest.pop("rank", None)
    recipe = Recipe.of(method, rest, name)
    adds = adds_up(recipe)
    if not factors:
        factors = "cat" if adds else "svd"
    _check_factors(name, factors, rank, adds)
    return recipe, Settings(factors, rank)


def _check_factors(name: str, factors: object, rank: object, adds: bool) -> None:
    """Raise `MixwellError` where the two go with no merge, or not with this one."""
    if factors not in WAYS:
        known = ", ".join(WAYS)
        raise MixwellError(f"{name}.factors: {shown(factors)} is not known; expected {known}.")
    if factors == "cat" and not adds:
        raise MixwellError(f"{name}: factors side by side add up, and this rule does more than add; say factors=svd.")
    if rank is None:
        return
    if type(rank) is not int or rank < 1:
        raise MixwellError(f"{name}.rank: expected a whole number from 1, got {shown(rank)}.")
    if factors == "apart":
        raise MixwellError(f"{name}: factors merged apart keep their rank; leave rank out, or say factors=svd.")


def _starts(recipe: Recipe) -> bool:
    """Whether the rule changes one model by another: the first adapter is its base then, not nothing."""
    return {"base", "ordered"} <= recipe.entry.tags


def adds_up(recipe: Recipe) -> bool:
    """Whether the rule weighs changes and adds them up."""
    name, config = recipe.entry.name, recipe.config
    if name == "merge.linear":
        return True
    if name != "merge.task_arithmetic":
        return False
    untrimmed = config.sparsify == "none"
    return untrimmed and not config.consensus


def _side_by_side(recipe: Recipe, adapters: Sequence[Adapter], rank: int | None,
                  seed: int) -> Iterator[Made]:
    """Factors of all adapters, of `rank` where one is asked for."""
    count = len(adapters)
    weights = _weights(recipe, count)
    for module in modules_of(adapters):
        whole = _stacked(module, adapters, weights)
        if rank is None:
            yield Made(module, whole)
            continue
        parts = _thin(whole)
        yield _cut(module, *parts, rank)


def _stacked(module: str, adapters: Sequence[Adapter], weights: Sequence[float]) -> Change:
    """The factors of all adapters that change the module, each times its weight."""
    As, Bs = [], []
    for adapter, weight in zip(adapters, weights):
        change = adapter.changes.get(module)
        if change is None:
            continue
        As.append(change.A)
        Bs.append(weight * change.B)
    A = torch.cat(As, dim=-2)
    B = torch.cat(Bs, dim=-1)
    return Change(A, B)


def _weights(recipe: Recipe, count: int) -> list[float]:
    """What the rule makes of each of `count` changes: its value on each alone."""
    alone = list(torch.eye(count, dtype=torch.float64))
    zeros = torch.zeros(count, dtype=torch.float64)
    draws = generator(0)
    with in_words(recipe.entry.name):
        together: Tensor = recipe.entry.load()(alone, zeros, recipe.config, draws)
    return together.tolist()


def _thin(change: Change) -> tuple[Tensor, Tensor, Tensor]:
    """Singular parts (U, S, V^T) of a product, by those of the small matrix between its factors' bases."""
    A = change.A.double()
    B = change.B.double()
    left, down = torch.linalg.qr(B)
    right, across = torch.linalg.qr(A.mT)
    small = down @ across.mT
    inner, values, outer = torch.linalg.svd(small, full_matrices=False)
    U = left @ inner
    Vh = outer @ right.mT
    return U, values, Vh


def _cut(module: str, U: Tensor, S: Tensor, Vh: Tensor, rank: int) -> Made:
    """The `rank` largest singular parts, half of each value in either factor; zeros where there are fewer."""
    kept = S[..., :rank]
    roots = kept.sqrt()
    B = U[..., :rank] * roots.unsqueeze(-2)
    A = Vh[..., :rank, :] * roots.unsqueeze(-1)
    lacking = rank - roots.shape[-1]
    if lacking > 0:
        A = pad(A, (0, 0, 0, lacking))
        B = pad(B, (0, lacking))
    squares = S.square()
    lost = squares[..., rank:].sum()
    whole = squares.sum()
    change = Change(A.float(), B.float())
    return Made(module, change, lost.item(), whole.item())


def _decomposed(recipe: Recipe, adapters: Sequence[Adapter], rank: int | None,
                seed: int) -> Iterator[Made]:
    """As `_side_by_side`: singular parts of what the rule makes of whole changes, of the adapters' largest rank."""
    ranks = [change.rank for adapter in adapters for change in adapter.changes.values()]
    most = rank or max(ranks)
    if adds_up(recipe):
        yield from _side_by_side(recipe, adapters, most, seed)
        return
    forms = _forms(adapters)
    changes = [Products(adapter.changes, forms) for adapter in adapters]
    made = _by_rule(recipe, changes, forms, seed)
    for module in forms:
        whole = made[module].double()
        U, S, Vh = torch.linalg.svd(whole, full_matrices=False)
        yield _cut(module, U, S, Vh, most)


def _forms(adapters: Sequence[Adapter]) -> dict[str, Form]:
    """Type and shape of the change of each module."""
    found = {}
    for module in modules_of(adapters):
        there = [adapter for adapter in adapters if module in adapter.changes]
        shape = there[0].changes[module].shape
        found[module] = Form(torch.float32, shape)
    return found


class Products(Fresh):
    """Whole changes by module, each made when it is asked for; zeros where there is none, as a base's all are."""

    def __init__(self, changes: Mapping[str, Change], forms: Mapping[str, Form]) -> None:
        super().__init__(forms)
        self._changes, self._forms = changes, forms

    def __getitem__(self, name: str) -> Tensor:
        change = self._changes.get(name)
        if change is not None:
            return change.product()
        shape = self._forms[name].shape
        return torch.zeros(shape)

    def form(self, name: str) -> Form:
        """Type and shape of a change, without making it."""
        return self._forms[name]


def _by_rule(recipe: Recipe, changes: Sequence[Mapping[str, Tensor]], forms: Mapping[str, Form],
             seed: int) -> Mapping[str, Tensor]:
    """The method of merging models, on changes."""
    models = []
    for number, tensors in enumerate(changes, start=1):
        name = f"adapter {number}"
        models.append(Model(tensors, name))
    ground = None
    if _starts(recipe):
        ground = models.pop(0)
    elif "base" in recipe.entry.tags:
        nothing = Products({}, forms)
        ground = Model(nothing, "the base")
    return merged(recipe.entry.name, models, ground, recipe.config, seed, torch.float32, recipe.name)


def _apart(recipe: Recipe, adapters: Sequence[Adapter], rank: int | None,
           seed: int) -> Iterator[Made]:
    """As `_side_by_side`: what the rule makes of all A, and of all B."""
    modules = modules_of(adapters)
    for adapter in adapters:
        _check_all_there(adapter, modules)
    for module in modules:
        _check_one_rank(module, adapters)
    halves = [_halves(adapter) for adapter in adapters]
    forms = {}
    for name, tensor in halves[0].items():
        shape = tuple(tensor.shape)
        forms[name] = Form(tensor.dtype, shape)
    made = _by_rule(recipe, halves, forms, seed)
    for module in modules:
        A, B = made[f"{module}.A"], made[f"{module}.B"]
        change = Change(A, B)
        yield Made(module, change)


def _check_all_there(adapter: Adapter, modules: Sequence[str]) -> None:
    missing = [module for module in modules if module not in adapter.changes]
    if missing:
        first = missing[0]
        raise MixwellError(f"{adapter.name} does not change {first}, others do; factors merged apart want the same "
                           "modules of all. Say factors=svd.")


def _check_one_rank(module: str, adapters: Sequence[Adapter]) -> None:
    ranks = {adapter.changes[module].rank for adapter in adapters}
    if len(ranks) == 1:
        return
    found = sorted(ranks)
    raise MixwellError(f"{module} has the ranks {found}; factors merged apart want one rank of all. Say factors=svd.")


def _halves(adapter: Adapter) -> dict[str, Tensor]:
    """A and B of every module."""
    found = {}
    for module, change in adapter.changes.items():
        for part, value in zip("AB", change):
            name = f"{module}.{part}"
            found[name] = value
    return found


def _card(out: str | Path, recipe: Recipe, settings: Settings, adapters: Sequence[Adapter], seed: int) -> str:
    """README.md of the merge."""
    names = [adapter.name for adapter in adapters]
    listed = "\n".join(f"- `{name}`" for name in names)
    lines = [recipe_text(recipe, names, None, seed)]
    for key, value in settings._asdict().items():
        if value is not None:
            lines.append(f"{key}: {value}")
    text = "\n".join(lines)
    base = adapters[0].config.get("base_model_name_or_path")
    ground = f"base_model: {base}\n" if base else ""
    title = Path(out).name
    return CARD_TEXT.format(title=title, base=ground, listed=listed, text=text)


WAYS = {"cat": _side_by_side, "svd": _decomposed, "apart": _apart}
