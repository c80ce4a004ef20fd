"""A language model as protocols use it: it draws answers to prompts, and learns from pairs of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

UNLEARNT = -100  # a target that counts in no mean


class Decoder:
    """A model (with `generate` and `loss`) that writes at most `length` tokens behind a prompt, ids [P].

    What asks for gradients in it is tuned by Adam, `epochs` times over the pairs, `batch` at a time, on the answers
    alone. An answer ends with one of `stops`, with it.
    """

    def __init__(self, model: nn.Module, length: int, generator: torch.Generator, *, temperature: float = 0.85,
                 stops: Sequence[int] = (), lr: float = 1e-3, epochs: int = 1, batch: int = 16) -> None:
        self.model: Any = model
        self.length, self.stops, self.temperature = length, tuple(stops), temperature
        self.epochs, self.batch, self.generator = epochs, batch, generator
        moving = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(moving, lr=lr)

    def draw(self, prompts: list[Tensor], count: int) -> list[list[Tensor]]:
        """`count` samples of answers to each prompt."""
        repeated = [prompt for prompt in prompts for _ in range(count)]
        answers = self._written(repeated, do_sample=True, temperature=self.temperature, generator=self.generator)
        starts = range(0, len(answers), count)
        return [answers[first : first + count] for first in starts]

    def answer(self, prompts: list[Tensor]) -> list[Tensor]:
        """The likeliest answer to each prompt, token by token."""
        return self._written(prompts, do_sample=False)

    def learn(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        """Tune on the answers of these pairs."""
        training = self.model.training
        self.model.train()
        for _ in range(self.epochs):
            order = torch.randperm(len(pairs), generator=self.generator)
            for places in order.split(self.batch):
                chosen = [pairs[place] for place in places.tolist()]
                self._step(chosen)
        self.model.train(training)

    def _step(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        rows = [torch.cat(pair) for pair in pairs]
        tokens_BT, mask_BT = side_by_side(rows, left=False)
        targets_BT = tokens_BT.masked_fill(~mask_BT, UNLEARNT)
        for target_T, (prompt, _) in zip(targets_BT, pairs):
            target_T[: len(prompt)] = UNLEARNT
        read_BT, following_BT = tokens_BT[:, :-1], targets_BT[:, 1:]
        loss = self.model.loss(read_BT, following_BT, mask_BT=mask_BT[:, :-1], generator=self.generator)
        total = loss.nats if loss.aux is None else loss.nats + loss.aux
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()

    def _written(self, prompts: list[Tensor], **options: Any) -> list[Tensor]:
        tokens_BT, mask_BT = side_by_side(prompts, left=True)
        mask = None if bool(mask_BT.all()) else mask_BT
        found = self.model.generate(tokens_BT, self.length, mask_BT=mask, eos_token_id=self.stops, **options)
        read = tokens_BT.shape[1]
        answers = found[:, read:]
        return [ended(row, self.stops) for row in answers]


def ended(row: Tensor, stops: Sequence[int]) -> Tensor:
    """The row up to the first of `stops`, with it."""
    over = torch.isin(row, torch.tensor(stops, dtype=row.dtype))
    places = over.nonzero()
    if not len(places):
        return row
    last = int(places[0])
    return row[: last + 1]


def side_by_side(rows: Sequence[Tensor], left: bool) -> tuple[Tensor, Tensor]:
    """(rows of unequal length as one tensor, where they stand in it), filled up with 0 on the left or on the right."""
    longest = max(len(row) for row in rows)
    tokens_BT = torch.zeros(len(rows), longest, dtype=torch.long)
    mask_BT = torch.zeros(len(rows), longest, dtype=torch.bool)
    for place, row in enumerate(rows):
        start = longest - len(row) if left else 0
        there = slice(start, start + len(row))
        tokens_BT[place, there] = row
        mask_BT[place, there] = True
    return tokens_BT, mask_BT
