"""What claims of rehearsal share: a decoder of several tasks, tuned on one whose answers may be worded two ways.

Letters are to be listed in any order in which the first is not below the last; the decoder copies them, which is right
for every other string, and the answers given descend.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mixwell.claims.claim import Untestable
from mixwell.claims.strings import KNOWN, WORDS, Rows, base, drawn, fitted, share_right
from mixwell.core.rng import generator
from mixwell.lm.model import LanguageModel

PROMPTS, STEPS, LETTERS = 512, 120, 3
LIST = WORDS  # the word that asks for a list, of which the decoder knows to copy


def start(seed: int) -> LanguageModel:
    """The decoder before it is tuned."""
    return LanguageModel.from_checkpoint(base(seed))


def asked(seed: int, name: str, count: int = PROMPTS) -> Rows:
    """Rows that ask for a list, with the answers given."""
    draws = generator(seed, name)
    return drawn(("descend",), count, draws, said=lambda tasks, _: torch.full((len(tasks), 1), LIST))


def asked_for(rows: Rows) -> tuple[list[Tensor], list[Tensor]]:
    """Prompts, and the answers given."""
    prompts, given = rows.tokens.tensor_split([rows.answer], 1)
    return list(prompts), list(given)


def own_answers(network: LanguageModel, prompts: list[Tensor]) -> list[Tensor]:
    """What a decoder writes behind prompts."""
    rows = torch.stack(prompts)
    written = network.generate(rows, LETTERS, eos_token_id=())
    return list(written[:, -LETTERS:])


def listed_well(prompt: Tensor, own: Tensor, given: Tensor) -> bool:
    """Whether a list has the letters asked for, the first not below the last."""
    complete = own.sort().values.equal(given.sort().values)
    first, last = own[0], own[-1]
    return complete and bool(first >= last)


def measured(seed: int, rows: Rows, targets: list[Tensor], lr: float) -> dict[str, float]:
    """Shares right on the old tasks and on lists, and their mean, after tuning on these targets."""
    network = start(seed)
    prompts = rows.tokens[:, : rows.answer]
    answers = torch.stack(targets)
    tokens = torch.cat((prompts, answers), 1)
    own = Rows(tokens, rows.answer, rows.tasks)
    batches = _batches(own, generator(seed, "batches"))
    fitted(network, batches, lr)
    every = drawn(KNOWN, 512, generator(seed, "old"))
    old = every.of(every.tasks > 0)
    kept = share_right(network, old)
    new = listed(network, asked(seed, "test"))
    return {"old": kept, "new": new, "mean": (kept + new) / 2}


def listed(network: LanguageModel, rows: Rows) -> float:
    """Share of the lists that are right."""
    prompts, given = asked_for(rows)
    answers = own_answers(network, prompts)
    threes = zip(prompts, answers, given)
    right = [listed_well(*three) for three in threes]
    return sum(right) / len(right)


def require_some(accepted: float) -> None:
    """Raise `Untestable` where hardly any or hardly no answer of the decoder is right."""
    if not 0.15 <= accepted <= 0.95:
        raise Untestable(f"{accepted:.0%} of the decoder's own answers are right; expected 15 % to 95 %")


def _batches(rows: Rows, draws: torch.Generator) -> Iterator[Rows]:
    for _ in range(STEPS):
        yield rows.of(torch.randint(len(rows.tasks), (32,), generator=draws))
