"""Experts that wait on disk: the few used last stay in memory, those of the next layer are fetched ahead.

**Equation:** each layer keeps k experts. A step asks for the experts of its tokens: those that are there are hits; the
    others are read, and whichever was used longest ago goes. While layer l computes, the router of layer l + a looks at
    layer l's output, through layer l + a's own norm; the experts that it likes best are read beside and count as kept
    once they are used.
**Shapes:** an expert's gate_up_proj [2 F, D] and down_proj [D, F]; rows [N, D] sorted by expert.
**Reference:** Eliseev and Mazur 2023, Fast Inference of Mixture-of-Experts Language Models with Offloading
    (2312.17238), sections 3.1 and 3.2.
**Differs:** experts come from a file into the processor's memory; the paper's come from there onto a GPU. Fetching
    ahead follows the paper's text, as the released code has none. Experts keep the digits that they are saved with (the
    paper rounds them to 2 and 3 bits: compress the model before). The model is read whole before its experts are left
    out.
**Fails when:** a step has tokens of many rows, whose experts together are more than k: then nearly all are read.
**Cost:** k experts a layer in memory; a read of 3 D F numbers for each miss.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.formats.tensors import save_tensors
from mixwell.kernels.experts import mlp
from mixwell.kernels.packing import CHANGES
from mixwell.lm.model import LanguageModel
from mixwell.mixing import check_least

Expert = tuple[Tensor, Tensor]  # gate_up_proj [2 F, D], down_proj [D, F]
Fetch = Callable[[int, int], Expert]  # of a layer, an expert
STACKS = ("gate_up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of offloading."""

    resident: int = 4  # k, experts that a layer keeps
    ahead: int = 1  # a, layers that fetching looks ahead; 0: nothing is fetched ahead
    foreseen: int = 2  # experts of a token that are fetched ahead

    def __post_init__(self) -> None:
        check_least(self, resident=1, ahead=0, foreseen=1)


class Residents:
    """The experts of one layer that are in memory, those used last behind."""

    def __init__(self, layer: int, fetch: Fetch, most: int, reader: ThreadPoolExecutor) -> None:
        self.layer, self.fetch, self.most, self.reader = layer, fetch, most, reader
        self.kept: OrderedDict[int, Expert] = OrderedDict()
        self.coming: dict[int, Future[Expert]] = {}  # fetched ahead, not used yet
        self.counts: Counter[str] = Counter()  # hits, misses, foreseen

    def get(self, expert: int) -> Expert:
        """An expert, from memory where it is there, which is the one used last from now on."""
        if expert in self.kept:
            self.counts["hits"] += 1
            self.kept.move_to_end(expert)
            return self.kept[expert]
        found = self._read(expert)
        self.kept[expert] = found
        if len(self.kept) > self.most:
            self.kept.popitem(last=False)
        return found

    def _read(self, expert: int) -> Expert:
        started = self.coming.pop(expert, None)
        if started is None:
            self.counts["misses"] += 1
            return self.fetch(self.layer, expert)
        self.counts["foreseen"] += 1
        return started.result()

    def expect(self, experts: Sequence[int]) -> None:
        """Begin to read experts that are likely to be asked for next; what was expected before is forgotten."""
        before, self.coming = self.coming, {}
        for expert in experts:
            if expert not in self.kept:
                self.coming[expert] = before.get(expert) or self._started(expert)

    def _started(self, expert: int) -> Future[Expert]:
        return self.reader.submit(self.fetch, self.layer, expert)

    def run(self, rows_ND: Tensor, counts_E: Tensor, usual: Any) -> Tensor:
        """Rows sorted by expert through their experts [N, D], those in memory first."""
        parts = rows_ND.split(counts_E.tolist())
        used = [expert for expert, part in enumerate(parts) if len(part)]
        there_first = sorted(used, key=lambda expert: expert not in self.kept)
        done = {}
        for expert in there_first:
            gate_up, down = self.get(expert)
            done[expert] = mlp(parts[expert], gate_up, down)
        return torch.cat([done[expert] for expert in used])


def offloadable(mixer: nn.Module) -> bool:
    """Whether a channel mixer is a sparse mixture whose experts can wait on disk."""
    config = getattr(mixer, "config", None)
    plain = getattr(config, "clamp", None) is None
    return plain and hasattr(type(mixer), "spread") and all(hasattr(mixer, name) for name in STACKS)


def spill(model: LanguageModel, path: Path) -> Fetch:
    """Write all experts to a safetensors file, and return what reads one of them from there."""
    stacks = {}
    for number, layer in enumerate(model.layers):
        if offloadable(layer.channel_mixer):
            for name in STACKS:
                stacks[f"{number}.{name}"] = getattr(layer.channel_mixer, name).detach()
    save_tensors(path, stacks)
    return partial(_from_file, path)


def _from_file(path: Path, layer: int, expert: int) -> Expert:
    with safe_open(path, "pt") as file:
        gate_up, down = (file.get_slice(f"{layer}.{name}")[expert] for name in STACKS)
    return gate_up, down


@method(title="Experts offloaded to disk", paper="Fast Inference of Mixture-of-Experts Language Models with Offloading",
        year=2023)
class Offload:
    """A model whose experts are fetched as they are needed; its answers are the same."""

    def __init__(self, model: LanguageModel, fetch: Fetch, config: Config) -> None:
        """Take the experts of `model`'s sparse mixtures out of memory; raises `MixwellError` where it has none."""
        self.config = config
        self.reader = ThreadPoolExecutor(1)
        self.residents: dict[int, Residents] = {}
        for number, layer in enumerate(model.layers):
            if offloadable(layer.channel_mixer):
                self._take(number, layer.channel_mixer, fetch)
        if not self.residents:
            raise MixwellError("the model has no sparse mixture whose experts could wait on disk; serve it as it is.")
        for number, layer in enumerate(model.layers):
            target = number + config.ahead
            if config.ahead and target in self.residents:
                layer.register_forward_hook(partial(self._look_ahead, model.layers[target], self.residents[target]))

    def _take(self, number: int, mixer: Any, fetch: Fetch) -> None:
        """Let one layer ask for its experts, and free what it holds of them."""
        if mixer._modules.get(CHANGES):
            raise MixwellError(f"layer {number} has an adapter beside its experts, which have to be in memory for it; "
                               "merge the adapter first.")
        residents = Residents(number, fetch, self.config.resident, self.reader)
        self.residents[number] = residents
        mixer.spread = residents.run
        for name in STACKS:
            held = getattr(mixer, name)
            setattr(mixer, name, nn.Parameter(held.detach().to("meta"), requires_grad=False))

    def _look_ahead(self, target: Any, residents: Residents, layer: Any, given: Sequence[Any], results: Any) -> None:
        """Expect the experts that the target layer's router likes best for a layer's output, k at most."""
        states_BTD = results[0]
        norm = getattr(target, "channel_norm", nn.Identity())
        normed_TD = norm(states_BTD).flatten(0, 1)
        context = replace(given[-1], layer=given[-1].layer + self.config.ahead, losses=False)
        routing = target.channel_mixer.router(normed_TD, context)
        best_TK = routing.indices_TK[:, : self.config.foreseen]
        wanted = Counter(best_TK.flatten().tolist()).most_common(self.config.resident)
        residents.expect([expert for expert, _ in wanted if expert >= 0])

    def counts(self) -> Counter[str]:
        """Experts asked for, over all layers: `hits` in memory, `foreseen` read ahead, `misses` read while waited for.
        """
        total: Counter[str] = Counter()
        for residents in self.residents.values():
            total += residents.counts
        return total


def example(generator: torch.Generator) -> dict[str, Any]:
    """Sixteen experts of a layer."""
    gate_up = torch.randn(16, 4, 3, generator=generator)
    down = torch.randn(16, 3, 2, generator=generator)

    def fetch(layer: int, expert: int) -> Expert:
        return gate_up[expert], down[expert]

    return {"fetch": fetch, "config": Config(resident=2)}
