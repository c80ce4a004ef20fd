"""SFPrompt: a model split in head, body and tail; clients train prompts and tail, first without the body, then with it.

**Equation:** client: h = [p ; head(x)], p prompts; server: body(h); client: tail(body(h)). Head and body are frozen. A
    round of a client: (1) local_steps down the loss of tail(h), the body skipped, nothing sent; (2) of its rows the
    share `keep` of largest |softmax(tail(h)) - onehot|_2 (EL2N) stays; (3) steps down the loss of tail(body(h)), for
    each of which h goes up, body(h) comes down, and their two gradients travel the other way; then the changes of p and
    tail are averaged.
**Shapes:** head(x) [N, T, D]; p [P, D]; h and body(h) [N, P + T, D]; logits [N, C].
**Reference:** Cao et al. 2024 (2407.17533).
**Differs:** the paper was read in its abstract and summaries. Prompts stand before what the head gives, so that no
    gradient goes through it. Scores are told anew in every round, under the prompts and tail of the time.
**Fails when:** local steps are many: tail comes to suit the head's features, not the body's; labels are wrong, which is
    what large scores then find.
**Cost:** 4 B (P + T) D numbers a split step, and P D + |tail| both ways; the body's two passes are the server's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.core.method import method
from mixwell.mixing import check_above, check_least
from mixwell.parallel.federated._example import CLASSES, COLUMNS, federation
from mixwell.parallel.federated.clients import Client, Tensors, batches, counted, size_bytes
from mixwell.parallel.federated.learning import (
    Averaging,
    Learning,
    Task,
    below,
    change,
    descended,
    prefixed,
    stepped,
)
from mixwell.parallel.federated.simulation import Answer, Turn

PROMPT = "prompt"


@dataclass(frozen=True, kw_only=True)
class Config(Learning):
    """Options of SFPrompt, beside those of `Learning`, whose `steps` are those with the body."""

    prompts: int = 4  # P
    local_steps: int = 10  # without the body
    keep: float = 0.5  # share of a client's rows that the steps with the body draw from, up to 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, prompts=1, local_steps=0)
        check_above(self, keep=0)
        if self.keep > 1:
            raise ValueError(f"keep is {self.keep}; expected at most 1")


@dataclass(frozen=True, eq=False)
class Parts:
    """A model in three: head and body are frozen, tail's tensors are trained.

    head: x -> [N, T, D]; body: [N, S, D] -> [N, S, D]; tail: (tensors, [N, S, D]) -> logits [N, C].
    """

    head: Callable[[Tensor], Tensor]
    body: Callable[[Tensor], Tensor]
    tail: Callable[[Tensors, Tensor], Tensor]
    start: Tensors  # tail's tensors before training

    def entered(self, prompt_PD: Tensor, x: Tensor) -> Tensor:
        """What goes into the body [N, P + T, D]."""
        with torch.no_grad():
            seen_NTD = self.head(x)
        before_NPD = prompt_PD.expand(len(seen_NTD), -1, -1)
        return torch.cat([before_NPD, seen_NTD], 1)

    def said(self, tensors: Tensors, y_NSD: Tensor) -> Tensor:
        """Logits [N, C] of the tail."""
        return self.tail(below("tail", tensors), y_NSD)

    def logits(self, tensors: Tensors, x: Tensor) -> Tensor:
        """Of the whole model [N, C]."""
        h_NSD = self.entered(tensors[PROMPT], x)
        return self.said(tensors, self.body(h_NSD))


def el2n(logits_NC: Tensor, y_N: Tensor) -> Tensor:
    """How far each row's probabilities are from its label [N]."""
    sure_NC = F.one_hot(y_N, logits_NC.shape[1])
    off_NC = logits_NC.softmax(1) - sure_NC
    return off_NC.norm(dim=1)


def split_gradient(parts: Parts, tensors: Tensors, rows: Any) -> tuple[dict[str, Tensor], int]:
    """The gradient of the whole model's loss, as client and server find it, and the bytes sent each way."""
    pairs = tensors.items()
    tail = {name: tensor.detach().requires_grad_() for name, tensor in pairs}
    prompt_PD = tail.pop(PROMPT)
    with torch.enable_grad():
        h_NSD = parts.entered(prompt_PD, rows.x)
        up_NSD = h_NSD.detach().requires_grad_()  # here the client sends
        y_NSD = parts.body(up_NSD)
        down_NSD = y_NSD.detach().requires_grad_()  # here the server does
        said_NC = parts.said(tail, down_NSD)
        missed = F.cross_entropy(said_NC, rows.y)
    inputs = [down_NSD, *tail.values()]
    back_NSD, *grads = torch.autograd.grad(missed, inputs)
    (returned_NSD,) = torch.autograd.grad(y_NSD, up_NSD, back_NSD)
    (of_prompt,) = torch.autograd.grad(h_NSD, prompt_PD, returned_NSD)
    way = 2 * size_bytes({"h": up_NSD})
    found = {PROMPT: of_prompt}
    found |= zip(tail, grads)
    return found, way


@method(
    title="SFPrompt: split federated tuning of prompts and tail",
    paper="SFPrompt: Communication-Efficient Split Federated Fine-Tuning for Large Pre-Trained Models over "
          "Resource-Limited Devices",
    year=2024,
    tags={"rules"},
)
class SFPrompt(Averaging):
    """See the module's card. The state: `prompt` and the tail's tensors below `tail.`."""

    config: Config

    def __init__(self, task: Parts, config: Config) -> None:
        self.parts = task
        super().__init__(Task({}, self.local_loss), config)

    def start(self, clients: Sequence[Client], generator: torch.Generator) -> Tensors:
        """Small prompts, and the tail as it is."""
        first = clients[0].rows.x[:1]
        seen_1TD = self.parts.head(first)
        shape = self.config.prompts, seen_1TD.shape[2]
        drawn_PD = torch.randn(shape, generator=generator)
        prompt_PD = 0.02 * drawn_PD.to(seen_1TD.dtype)
        return {PROMPT: prompt_PD, **prefixed("tail", self.parts.start)}

    def local(self, tensors: Tensors, x: Tensor) -> Tensor:
        """Logits without the body [N, C]."""
        h_NSD = self.parts.entered(tensors[PROMPT], x)
        return self.parts.said(tensors, h_NSD)

    def local_loss(self, tensors: Tensors, rows: Any) -> Tensor:
        """The loss without the body."""
        return F.cross_entropy(self.local(tensors, rows.x), rows.y)

    def answer(self, client: Client, message: Tensors, memory: Tensors, turn: Turn) -> Answer:
        """The change after both phases, with what went to and fro in the second."""
        config, rows = self.config, client.rows
        draws = turn.draws("batches", client.number)
        size, way = config.batch_size, 0
        own = batches(rows, size, config.local_steps, draws)
        tensors = descended(self.local_loss, message, own, config.lr)
        kept = self.pruned(tensors, rows)
        for part in batches(kept, size, config.steps, draws):
            grads, sent = split_gradient(self.parts, tensors, part)
            tensors = stepped(tensors, grads, config.lr)
            way += sent
        step = change(tensors, message)
        return Answer(step, len(rows), down_bytes=way, up_bytes=way)

    @torch.no_grad()
    def pruned(self, tensors: Tensors, rows: Any) -> Any:
        """The rows with the largest scores."""
        said_NC = self.local(tensors, rows.x)
        score_N = el2n(said_NC, rows.y)
        order_N = score_N.argsort(descending=True, stable=True)
        count = counted(self.config.keep, len(rows))
        hardest = order_N[:count]
        return rows.of(hardest)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Five clients; a body that mixes positions, and a linear tail on their mean."""
    width = 6
    embed = torch.randn(COLUMNS, width, generator=generator)
    mix = 0.5 * torch.randn(width, width, generator=generator)
    start = {"weight": 0.1 * torch.randn(CLASSES, width, generator=generator), "bias": torch.zeros(CLASSES)}

    def head(x_ND: Tensor) -> Tensor:
        return x_ND[..., None] * embed.to(x_ND.dtype)

    def body(h_NSD: Tensor) -> Tensor:
        mean_N1D = h_NSD.mean(1, keepdim=True)
        return h_NSD + torch.tanh((h_NSD + mean_N1D) @ mix.to(h_NSD.dtype))

    def tail(tensors: Tensors, y_NSD: Tensor) -> Tensor:
        mean_ND = y_NSD.mean(1)
        weight, bias = tensors["weight"], tensors["bias"]
        return F.linear(mean_ND, weight, bias)

    clients = federation(generator)["clients"]
    config = Config(prompts=2, local_steps=2, steps=2, batch_size=4)
    return {"task": Parts(head, body, tail, start), "clients": clients, "config": config}
