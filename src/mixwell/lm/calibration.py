"""Calibration text going through a model, for conversions that look at what its layers see; one batch at a time.

Legend: B rows, S positions of a row, T = B S tokens of a batch, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from mixwell.convert.calibration import Seen
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context
from mixwell.lm import met
from mixwell.lm.model import LanguageModel
from mixwell.lm.tokenizer import MAIN, Tokenizer
from mixwell.mixing import Mixed

DOMAINS = 4  # of random tokens; the standard library has as many
ROWS = 4  # of a batch: what layers see of them is in memory at one time


class TextCalibration:
    """Windows of text with the domain of each, and models by name; see `convert.calibration.Calibration`."""

    def __init__(self, tokens_NS: Tensor, labels_N: Tensor | None = None, num_domains: int = 1,
                 models: Callable[[str], Checkpoint] | None = None) -> None:
        self.batches: Sequence[Tensor] = tokens_NS.split(ROWS)
        labels_N = torch.zeros(len(tokens_NS), dtype=torch.int64) if labels_N is None else labels_N
        self.labels: Sequence[Tensor] = labels_N.split(ROWS)
        self.num_domains = num_domains
        self._models = models
        self._last: list[tuple[Checkpoint, LanguageModel]] = []  # what `logits` ran last
        self._loads: tuple[Checkpoint | None, dict[int, Tensor]] = (None, {})  # as `inputs` last counted them

    def look_up(self, models: Callable[[str], Checkpoint] | None) -> None:
        """Find other models by `models` from now on."""
        self._models = models

    def seen(self, checkpoint: Checkpoint, *, gradients: bool = False) -> Iterator[list[Seen]]:
        """Of each batch, what every layer of the model saw."""
        watched = _Watched(checkpoint)
        for tokens_BS, labels_B in zip(self.batches, self.labels):
            yield watched.read(tokens_BS, labels_B, gradients)

    def streams(self, checkpoint: Checkpoint) -> Iterator[list[Tensor]]:
        """Of each batch, the residual stream [T, D] that each layer reads, and what the last one leaves."""
        watched = _Watched(checkpoint)
        for tokens_BS, labels_B in zip(self.batches, self.labels):
            watched.read(tokens_BS, labels_B, gradients=False)
            yield [*watched.streams, watched.left_TD]

    def logits(self, checkpoint: Checkpoint, tokens_BS: Tensor, moving: Mapping[str, Tensor]) -> Tensor:
        """Logits [B, S, V] of the model with the tensors `moving` in their places, with a gradient by these."""
        placed = {name: value.float() for name, value in moving.items()}
        return functional_call(self._running(checkpoint), placed, (tokens_BS,)).logits_BTV

    def _running(self, checkpoint: Checkpoint) -> LanguageModel:
        """The checkpoint as a model; the last two are kept, since a teacher and its student take turns."""
        for known, model in self._last:
            if known is checkpoint:
                return model
        made = LanguageModel.from_checkpoint(checkpoint, dtype=torch.float32).eval()
        made.requires_grad_(False)
        self._last = [*self._last[-1:], (checkpoint, made)]
        return made

    def inputs(self, checkpoint: Checkpoint, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        """Of each batch, what the weights named are multiplied with; every expert meets every token."""
        watched = met.Met(checkpoint, names)
        for tokens_BS in self.batches:
            yield watched.read(tokens_BS)
        self._loads = checkpoint, watched.loads

    def routed(self, checkpoint: Checkpoint) -> dict[int, Tensor]:
        """Of each layer with a router, how many tokens it sent to each expert."""
        known, loads = self._loads
        return loads if known is checkpoint else met.routed(self._running(checkpoint), self.batches)

    def gates(self, checkpoint: Checkpoint) -> dict[int, Tensor]:
        """Of each layer with a router, what the weights that it gave each expert sum up to, float64 [E]."""
        return met.gates(self._running(checkpoint), self.batches)

    def over(self, tokens_NS: Tensor) -> TextCalibration:
        """The same over other windows, of no domain."""
        return TextCalibration(tokens_NS, models=self._models)

    def slopes(self, checkpoint: Checkpoint, at: Mapping[str, Tensor], *, rows: int = 0) -> Iterator[dict[str, Tensor]]:
        """Gradients of the mean cross-entropy by the tensors `at`, for each `rows` windows or for all."""
        tokens_NS = torch.cat(list(self.batches))
        return met.slopes(checkpoint, at, tokens_NS, rows)

    def through(self, checkpoint: Checkpoint, tokens_BS: Tensor, x_BSD: Tensor | None, layers: Sequence[int],
                moving: Mapping[str, Tensor]) -> Tensor:
        """What the residual stream is behind some layers, with the tensors `moving` in their places."""
        return met.through(self._running(checkpoint), tokens_BS, x_BSD, layers, moving)

    def model(self, name: str) -> Checkpoint:
        """The model that `name` leads to."""
        if self._models is None:
            raise MixwellError(f"model {name!r} is asked for; nobody said where models are looked up.")
        return self._models(name)

    def states(self, checkpoint: Checkpoint, text: str, *, residual: bool) -> list[Tensor]:
        """What each layer reads [T, D] over a text, or what its channel mixer does behind the norm.

        Raises `MixwellError` where the model has no tokenizer, or the text gives no token.
        """
        if MAIN not in checkpoint.files:
            raise MixwellError("the model has no tokenizer to read prompts with; expected a tokenizer.json beside it.")
        ids = Tokenizer.from_files(checkpoint.files).prompt(text)
        if not ids:
            raise MixwellError(f"the text {text!r} gives no token; expected some words.")
        watched = _Watched(checkpoint)
        seen = watched.read(torch.tensor([ids]), torch.zeros(1, dtype=torch.int64), gradients=False)
        return watched.streams if residual else [layer.x_TD for layer in seen]


class _Watched:
    """A model whose channel mixers are watched as text goes through it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.model = LanguageModel.from_checkpoint(checkpoint, dtype=torch.float32).eval()
        self.model.requires_grad_(False)
        self.model.embed.register_forward_hook(_starts_gradient)
        self.inputs: list[Tensor] = []
        self.mixed: list[Mixed] = []
        self.streams: list[Tensor] = []  # what each layer read of the last batch [T, D]
        self.left_TD = torch.zeros(0)  # and what the last one left
        self.model.norm.register_forward_pre_hook(self._keep_last)
        for layer in self.model.layers:
            layer.register_forward_pre_hook(self._keep_stream)
            layer.channel_mixer.register_forward_hook(self._keep)

    def _keep(self, mixer: nn.Module, given: tuple[Tensor, Context], mixed: Mixed) -> None:
        self.inputs.append(given[0])
        self.mixed.append(mixed)

    def _keep_stream(self, layer: nn.Module, given: tuple[Any, ...]) -> None:
        x_BSD = given[0].detach()
        self.streams.append(x_BSD.flatten(0, 1))

    def _keep_last(self, norm: nn.Module, given: tuple[Any, ...]) -> None:
        x_BSD = given[0].detach()
        self.left_TD = x_BSD.flatten(0, 1)

    def read(self, tokens_BS: Tensor, labels_B: Tensor, gradients: bool) -> list[Seen]:
        """What every layer saw of one batch; its own records are emptied again."""
        self.inputs, self.mixed, self.streams = [], [], []
        with torch.set_grad_enabled(gradients):
            logits_BSV = self.model(tokens_BS, labels_B=labels_B).logits_BTV
        grads = self._gradients(logits_BSV, tokens_BS) if gradients else [None] * len(self.inputs)
        ids_T = tokens_BS.flatten()
        labels_T = labels_B.repeat_interleave(tokens_BS.shape[1])
        found = []
        for x_TD, mixed, grad_TD in zip(self.inputs, self.mixed, grads):
            own = x_TD.detach()
            found.append(Seen(x_TD=own, routing=mixed.routing, ids_T=ids_T, labels_T=labels_T, grad_TD=grad_TD))
        self.inputs, self.mixed = [], []
        return found

    def _gradients(self, logits_BSV: Tensor, tokens_BS: Tensor) -> list[Tensor]:
        """Of the summed cross-entropy by what each channel mixer gave."""
        targets_N = tokens_BS[:, 1:].flatten()
        before_N = logits_BSV[:, :-1].flatten(0, 1)
        nats = F.cross_entropy(before_N, targets_N, reduction="sum")
        outputs = [mixed.y_TD for mixed in self.mixed]
        return list(torch.autograd.grad(nats, outputs))


def _starts_gradient(embedding: nn.Module, given: Any, x_BSD: Tensor) -> Tensor:
    """No weight asks for a gradient; the embedded text does, so that what the layers give has one."""
    return x_BSD.detach().requires_grad_() if torch.is_grad_enabled() else x_BSD


def random_calibration(arch: Mapping[str, Any], rows: int, length: int, generator: torch.Generator,
                       models: Callable[[str], Checkpoint] | None = None) -> TextCalibration:
    """Random tokens of `DOMAINS` domains, where only shapes and costs count."""
    tokens_NS = torch.randint(0, arch["vocab_size"], (rows, length), generator=generator)
    labels_N = torch.arange(DOMAINS).repeat(rows)[:rows]
    return TextCalibration(tokens_NS, labels_N, DOMAINS, models)
