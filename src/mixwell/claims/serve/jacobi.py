"""Jacobi decoding: fewer passes of the model for the same text.

Paper: Fast Chain-of-Thought: A Glance of Future from Parallel Decoding Leads to Answers Faster.
Tried: the bench's language model, dense, of width 64; greedy continuations of 32 tokens of windows of held-out text,
counted in passes a token, with windows of 4 guesses. Plain decoding takes one pass a token. Beside: guesses by look-up
in the row, as many. Passes are not seconds: a pass over more positions takes longer, much so on a processor; the
paper's 20 % are of seconds on a GPU. Against it: less than a tenth saved. Continuations that loop are left out, since
there any guess holds, and a text that differs from plain decoding's ends the trial.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side, Untestable
from mixwell.claims.language import dense, held_out
from mixwell.lm.model import LanguageModel
from mixwell.serve.jacobi import Config, Jacobi
from mixwell.serve.lookup import Config as LookupConfig
from mixwell.serve.lookup import Lookup
from mixwell.serve.request import Drafter
from mixwell.serve.speculation import agreeing

WRITTEN, READ, ROWS = 32, 32, 12  # tokens of a continuation and of its prompt, prompts of each domain
VARIED = 0.5  # share of distinct 4-grams below which a text is a loop


def predicted(model: LanguageModel, ids: Sequence[int], count: int) -> list[int]:
    """The likeliest token behind each of the last `count` ids."""
    tokens_1T = torch.tensor([list(ids)])
    places = torch.arange(len(ids) - count, len(ids))
    cache = model.new_cache()
    with torch.inference_mode():
        logits_NV, _ = model.read(tokens_1T, cache, places)
    best_N = logits_NV.argmax(-1)
    return best_N.tolist()


def continued(model: LanguageModel, prompt: Sequence[int], drafter: Drafter | None) -> tuple[list[int], int]:
    """The greedy continuation, and the passes that it took."""
    ids, passes = list(prompt), 0
    while len(ids) < READ + WRITTEN:
        said = len(ids) - READ
        guesses = drafter.draft(ids, said, WRITTEN) if drafter else []
        asked = len(guesses) + 1
        found = predicted(model, [*ids, *guesses], asked)
        accepted = 1 + agreeing(guesses, found)
        ids += found[:accepted]
        passes += 1
        if drafter:
            drafter.learn(found, accepted)
    return ids[READ:], passes


def varied(text: Sequence[int]) -> bool:
    """Whether a text is no loop."""
    shifted = [text[place:] for place in range(4)]
    grams = list(zip(*shifted))
    distinct = set(grams)
    return len(distinct) >= VARIED * len(grams)


def drafting(kind: str, size: int) -> Drafter | None:
    """What guesses."""
    if kind == "jacobi":
        return Jacobi(Config(first=size, last=size))
    if kind == "lookup":
        return Lookup(LookupConfig(width=size))
    return None


def passes(bench: Bench, seed: int, *, kind: str, size: int) -> float:
    """Passes a token over the continuations that do not loop."""
    model = bench.train(dense(bench, 64), seed).model
    windows, _ = held_out(bench, ROWS, READ)
    spent = written = 0
    for prompt in windows.tolist():
        plain, _ = continued(model, prompt, None)
        text, count = continued(model, prompt, drafting(kind, size))
        if text != plain:
            raise Untestable("a text differs from plain decoding's, by ties or by rounding")
        if varied(text):
            spent += count
            written += len(text)
    if written < 8 * WRITTEN:
        raise Untestable(f"{written // WRITTEN} continuations do not loop; expected 8 at least")
    return spent / written


SIZE = 4  # guesses
CLAIM = Claim(
    "Jacobi decoding takes a tenth fewer passes for the same text.", "passes a token", at_least=0.1, relative=True,
    sides={"method": Side(passes, {"kind": "jacobi", "size": SIZE}),
           "baseline": Side(passes, {"kind": "none", "size": 0}),
           "look-up": Side(passes, {"kind": "lookup", "size": SIZE})})
