"""An analysis of `experts.analysis` on every mixture layer of a checkpoint."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixwell.core import registry
from mixwell.core.config import from_dict, to_dict
from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context, Routing
from mixwell.kernels.codes import CodedWeight
from mixwell.kernels.experts import mlp
from mixwell.kernels.packing import Int8Weight, weight_of
from mixwell.lm.documents import Document, read_domain
from mixwell.lm.model import LanguageModel
from mixwell.lm.splitting import split_documents
from mixwell.run import datasets
from mixwell.run.paths import load

FAMILY = "experts.analysis"
ROWS, LENGTH = 64, 256  # windows at most, and tokens of each
DOMAIN_BYTES, HELD_OUT = 1_500_000, 0.05  # of each domain of the standard library, as the default recipe has it


@dataclass(frozen=True)
class Seen:
    """What one mixture layer did with the text: its input [T, D], its context, its routing."""

    mixer: Any
    hidden_TD: Tensor
    context: Context
    routing: Routing


def analyse(name: str, model: LanguageModel | str | Path, *, text: str | Path | None = None,
            **options: Any) -> dict[str, Any]:
    """Run the analysis `name` on a model, given as such or by its place (see `paths`); plain data, ready for JSON.

    text: a file, folder or glob; none: held-out text of the standard library, whose domains are the labels. At most
    64 windows of 256 tokens are read, from all domains in turn. options: fields of the analysis' `Config`. The result
    holds `layers` (layer -> what the analysis found) and how it was measured. A model without mixture layers, or an
    analysis that needs what a layer lacks, raises `MixwellError`.
    """
    entry = registry.find(name.removeprefix(f"{FAMILY}."), within=FAMILY)
    if entry.family != FAMILY:
        raise MixwellError(f"{entry.name} is no analysis; see `mixwell list {FAMILY}`.")
    config = from_dict(entry.module().Config, options, entry.name)
    loaded = model if isinstance(model, LanguageModel) else load(model)
    tokens_BT, labels_B, domains = windows(loaded, text)
    seen = watch(loaded, tokens_BT, labels_B)
    if not seen:
        raise MixwellError("the model has no layer that routes; expected a mixture of experts.")
    run = entry.load()
    try:
        with torch.no_grad():
            layers = {str(layer): run(**_arguments(run, one), config=config) for layer, one in seen.items()}
    except MixwellError:
        raise
    except ValueError as error:
        raise MixwellError(f"{entry.name}: {error}") from error
    return {"analysis": entry.name, "config": to_dict(config), "tokens": tokens_BT[:, :-1].numel(), "domains": domains,
            "text": "held-out text of the standard library" if text is None else str(text), "layers": layers}


def windows(model: LanguageModel, text: str | Path | None) -> tuple[Tensor, Tensor, list[str]]:
    """Token windows int64 [B, T + 1], the domain of each [B], and the domains' names.

    Raises `MixwellError` without a tokenizer, and for fewer than three tokens.
    """
    if model.tokenizer is None:
        raise MixwellError("the model has no tokenizer to read text with; expected tokenizer.json in its folder.")
    streams = {name: _ids(model, documents, name) for name, documents in _documents(text).items()}
    length = min(LENGTH, *(len(ids) - 1 for ids in streams.values()))
    if length < 2:
        raise MixwellError(f"{text} gives too few tokens; expected 3 or more.")
    rows: list[np.ndarray] = []
    labels: list[int] = []
    for at in range(0, ROWS * length, length):
        for label, ids in enumerate(streams.values()):
            if at + length < len(ids) and len(rows) < ROWS:
                rows.append(ids[at : at + length + 1])
                labels.append(label)
    tokens_BT = torch.from_numpy(np.stack(rows))
    return tokens_BT, torch.tensor(labels), [*streams]


def _documents(text: str | Path | None) -> Mapping[str, Sequence[Document]]:
    if text is not None:
        return {str(text): list(read_domain(text))}
    found = datasets.load("standard-library", DOMAIN_BYTES)
    return {name: split_documents(documents, HELD_OUT).held for name, documents in found.items()}


def _ids(model: LanguageModel, documents: Sequence[Document], name: str) -> np.ndarray:
    """Ids of the first documents, enough for all windows."""
    assert model.tokenizer is not None
    ids: list[int] = []
    for document in documents:
        ids += model.tokenizer.prompt(document.text)
        if len(ids) > ROWS * LENGTH:
            break
    if ids and max(ids) >= model.config.vocab_size:
        raise MixwellError(f"{name}: the tokenizer gives id {max(ids)}, the model embeds {model.config.vocab_size}.")
    return np.array(ids, dtype=np.int64)


@torch.no_grad()
def watch(model: LanguageModel, tokens_BT: Tensor, labels_B: Tensor) -> dict[int, Seen]:
    """Read the windows [B, T + 1] in one pass and keep what each layer that routes saw and chose."""
    seen: dict[int, Seen] = {}

    def keep(layer: int) -> Callable[..., None]:
        def hook(mixer: Any, given: tuple[Any, ...], mixed: Any) -> None:
            if mixed.routing is not None:
                hidden_TD, context = given[0], given[1]
                seen[layer] = Seen(mixer, hidden_TD, context, mixed.routing)

        return hook

    handles = [layer.channel_mixer.register_forward_hook(keep(i)) for i, layer in enumerate(model.layers)]
    was_training = model.training
    try:
        model.eval().loss(tokens_BT[:, :-1], tokens_BT[:, 1:], labels_B=labels_B)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return seen


def _arguments(run: Callable[..., Any], one: Seen) -> dict[str, Any]:
    """The arguments that the analysis names, but its config; those with a default only where the layer has them."""
    found = {}
    for name, parameter in inspect.signature(run).parameters.items():
        if name == "config":
            continue
        value = _SOURCES[name](one)
        if value is None and parameter.default is inspect.Parameter.empty:
            raise MixwellError(f"this analysis needs {name}, which {type(one.mixer).__name__} does not have.")
        if value is not None:
            found[name] = value
    return found


def _weight(one: Seen, name: str) -> Tensor | None:
    """A weight of all experts [E, ., .] as float32; None where the layer keeps its experts otherwise."""
    weight = getattr(one.mixer, name, None)
    if not isinstance(weight, Tensor):
        return None
    found: Any = weight_of(one.mixer, name)
    if len(found.shape) != 3:
        return None
    if isinstance(found, (Int8Weight, CodedWeight)):
        return found.dequantised(torch.float32)
    plain = weight.detach()
    return plain.float()


def _norms(one: Seen) -> Tensor | None:
    """||E_i(x)|| of every expert [T, E]."""
    gate_up, down = _weight(one, "gate_up_proj"), _weight(one, "down_proj")
    if gate_up is None or down is None:
        return None
    hidden_TD = one.hidden_TD.float()
    return torch.stack([mlp(hidden_TD, g, d).norm(dim=-1) for g, d in zip(gate_up, down)], dim=-1)


def _router(one: Seen) -> Tensor | None:
    """The router's rows [E, D], where it is a linear map."""
    router = getattr(one.mixer, "router", None)
    weight = getattr(router, "weight", None)
    dim = one.hidden_TD.shape[1]
    linear = isinstance(weight, Tensor) and tuple(weight.shape) == (one.routing.num_experts, dim)
    return weight if linear else None


_SOURCES: dict[str, Callable[[Seen], Any]] = {
    "routing": lambda one: one.routing, "context": lambda one: one.context, "hidden_TD": lambda one: one.hidden_TD,
    "norms_TE": _norms, "gate_up_EFD": lambda one: _weight(one, "gate_up_proj"),
    "down_EDF": lambda one: _weight(one, "down_proj"), "router_ED": _router}
