"""Federating: clients among whom the text is dealt out train the model, and what they send is counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from mixwell.core import units
from mixwell.core.config import from_dict
from mixwell.core.errors import MixwellError, shown, suggest
from mixwell.core.machine import hold_memory
from mixwell.lm import folder as folders
from mixwell.lm.data import TokenData
from mixwell.lm.federated import METHODS, Dealing, federate, method_of
from mixwell.lm.model import LanguageModel
from mixwell.parallel.federated.clients import Tensors, counted
from mixwell.parallel.federated.simulation import Setting, Turn
from mixwell.run.stages._parts import Job, read_model
from mixwell.run.stages.models import describe


@dataclass(frozen=True, kw_only=True)
class Federation:
    """A method of `mixwell list parallel.federated`, how text is dealt out, and the world of the clients."""

    method: str  # in full
    options: Mapping[str, Any]  # of the method
    dealing: Dealing
    setting: Setting

    @property
    def batch_size(self) -> int:
        """Windows of a client's step."""
        return int(self._option("batch_size", 1))

    @property
    def tokens(self) -> int:
        """That clients train on in all rounds, where nobody leaves."""
        asked = counted(self.setting.share, self.dealing.clients)
        steps = self.setting.rounds * asked * int(self._option("steps", 1))
        return steps * self.batch_size * self.dealing.seq_len

    def _option(self, name: str, default: Any) -> Any:
        _, config = method_of(self.method, self.options)
        return getattr(config, name, default)


def parse_federate(options: Mapping[str, Any], where: str) -> Federation:
    """Sort the options into the method's, those of the dealing and those of the world; check all now."""
    rest = dict(options)
    name = rest.pop("method", None)
    if not isinstance(name, str):
        raise MixwellError(f"{where}: name a method, such as `federate: fed_avg`. Known: {', '.join(METHODS)}.")
    entry, _ = method_of(name, {}, where)
    config = entry.module().Config
    world = [name for name in _names(Setting) if name != "seed"]  # the stage's
    dealing = from_dict(Dealing, _taken(rest, _names(Dealing)), where)
    setting = from_dict(Setting, _taken(rest, world), where)
    own = _taken(rest, _names(config))
    for key in rest:
        known = [*_names(config), *_names(Dealing), *world]
        raise MixwellError(f"{where}: unknown key {shown(key)}.{suggest(key, known)} Known keys: {', '.join(known)}.")
    method_of(entry.name, own, where)
    clients, liars = dealing.clients, setting.liars
    if liars >= clients:
        raise MixwellError(f"{where}: liars is {liars} of {clients} clients; expected an honest one.")
    return Federation(method=entry.name, options=own, dealing=dealing, setting=setting)


def _names(config: type) -> list[str]:
    return [option.name for option in fields(config)]


def _taken(rest: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """What stands under these names, which is taken out."""
    return {name: rest.pop(name) for name in names if name in rest}


def run_federate(job: Job) -> dict[str, Any]:
    """All rounds, from the first: a stage that was killed begins again."""
    hold_memory()
    config: Federation = job.stage.config
    before = read_model(job)
    model = LanguageModel.from_checkpoint(before)
    data = TokenData.open(job.inputs["tokens"] / "shards")
    setting = replace(config.setting, seed=job.stage.seed)

    def watch(turn: Turn, state: Tensors) -> None:
        done = turn.number + 1
        job.progress(done / turn.rounds, f"round {done}")

    found = federate(model, data, config.method, config.options, dealing=config.dealing, setting=setting, watch=watch)
    answers = [len(one.answered) for one in found.ledger]
    learnt = sum(one.counted for one in found.ledger)
    facts = {"down_bytes": found.down_bytes, "up_bytes": found.up_bytes, "rounds": len(answers),
             "rounds_counted": learnt, "answers": sum(answers)}
    record = job.record(**facts)
    after = replace(model.to_checkpoint(), lineage=before.lineage, files=before.files)
    folders.write(after.derive(record=record), job.folder / "model")
    return {**describe(model), **facts, "notices": _notices(len(answers) - learnt)}


def _notices(idle: int) -> list[str]:
    """What is to be said of rounds in which nothing was learnt."""
    if not idle:
        return []
    return [f"In {units.counted(idle, 'round')} nobody answered, or too few to tell lies from the truth; nothing was "
            "learnt there."]
