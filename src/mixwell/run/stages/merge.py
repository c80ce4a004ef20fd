"""Merging: several stages' models into one, weighed against each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mixwell.core.checkpoint import held
from mixwell.core.errors import MixwellError
from mixwell.lm import folder as folders
from mixwell.lm.data import TokenData
from mixwell.lm.model import LanguageModel
from mixwell.run.merging import CARD, Recipe, Source, card, lineage, merge_checkpoints, receipts, recipe_text
from mixwell.run.stages._parts import Job, read_model
from mixwell.run.stages.convert import held_out, windows_of
from mixwell.run.stages.models import describe


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """A method of `mixwell list merge`, or a row of one such as ties, and its options."""

    name: str  # as the recipe has it
    method: str  # in full
    options: Mapping[str, Any]

    @property
    def recipe(self) -> Recipe:
        """The method with its options checked."""
        return Recipe.of(self.name, self.options)


def parse_merge(options: Mapping[str, Any], where: str) -> MergeConfig:
    """Check the method's options now."""
    rest = dict(options)
    name = rest.pop("method", None)
    if not isinstance(name, str):
        raise MixwellError(f"{where}: name a method, such as `merge: ties`; `mixwell list merge` has them.")
    recipe = Recipe.of(name, rest, where)
    return MergeConfig(name=name, method=recipe.entry.name, options=recipe.options)


def run_merge(job: Job) -> dict[str, Any]:
    """Merge, weigh against every model on held-out tokens, write."""
    stage = job.stage
    recipe = stage.config.recipe
    data = TokenData.open(job.inputs["tokens"] / "shards")
    tokens_BT = held_out(data)
    roles = [role for role in stage.inputs if role.startswith("model")]
    sources = [Source(read_model(job, role), stage.inputs[role]) for role in roles]
    base = Source(read_model(job, "base"), stage.inputs["base"]) if "base" in stage.inputs else None
    examples_BT = windows_of(data, "train")
    after = held(merge_checkpoints(recipe, sources, base, stage.seed, examples_BT))
    job.progress(0.3, recipe.name)
    parents = sources if base is None else [*sources, base]
    weighed = receipts(recipe, parents, after, tokens_BT)
    job.progress(0.8, "write")
    first = weighed[parents[-1].name]
    record = lineage(recipe, sources, base, stage.seed)
    record |= job.record(tokens=tokens_BT.numel(), receipt=first, receipts=weighed)
    names, ground = [source.name for source in sources], record["base"]
    text = recipe_text(recipe, names, ground, stage.seed)
    about = card(stage.id, text, names, ground)
    folders.write(after.derive(record=record), job.folder / "model", notes={CARD: about})
    return {**describe(LanguageModel.from_checkpoint(after)), "receipt": first, "receipts": weighed}
