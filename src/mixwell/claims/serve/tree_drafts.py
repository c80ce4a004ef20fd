"""Tree drafts: many n-grams at once say more of what follows than the latest of them.

Paper: From Hours to Minutes: Lossless Acceleration of Ultra Long Sequence Generation up to 100K Tokens.
Tried: 8 windows of 1,000 tokens of the bench's text, two of each domain, taken as what a model says; in each pass
the last token's most frequent continuations so far, as a tree of at most 24 nodes, against one line of as many tokens
by look-up of what followed the last tokens. Lengths are tuned for both. Passes a token. Against it: less than a
twentieth saved. The paper's heads, which guess where nothing repeats, are not tried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.trunk import windows
from mixwell.serve.lookup import continuation
from mixwell.serve.speculation import agreeing
from mixwell.serve.tree_drafts import Grams

NODES, WIDTH, ROWS, PARTS = 24, 1000, 2, 32

Guess = Callable[[int], list[Sequence[int]]]  # branches of what follows, by how many tokens are said


def passes_of(text: Sequence[int], guess: Guess) -> int:
    """Passes in which a text is said: each gives the tokens that agree and one more."""
    said, count = 1, 0
    while said < len(text):
        held = [agreeing(branch, text[said:]) for branch in guess(said)]
        said += 1 + max(held, default=0)
        count += 1
    return count


def tree(text: Sequence[int], length: int) -> Guess:
    """The most frequent continuations of the last token, as many as nodes allow."""
    grams, learnt = Grams(length), 0

    def guess(said: int) -> list[Sequence[int]]:
        nonlocal learnt
        known = text[learnt:said]
        if len(known) > length:
            grams.learn(known)
            learnt = said - length
        return list(grams.best(text[said - 1], NODES // length))

    return guess


def line(text: Sequence[int], size: int) -> Guess:
    """What followed the last `size` tokens, fewer where they never stood before."""

    def guess(said: int) -> list[Sequence[int]]:
        for agreed in range(size, 0, -1):
            found = continuation(text[:said], agreed, NODES)
            if found:
                return [found]
        return []

    return guess


def passes(bench: Bench, seed: int, *, kind: str, length: int) -> float:
    """Passes a token over the windows of a seed; up to 32 seeds have others each."""
    tokens, _ = windows(bench.data, "train", ROWS * PARTS, WIDTH)
    parts = tokens.view(-1, PARTS, ROWS, WIDTH)
    own = parts[:, seed % PARTS].flatten(0, 1)
    guessing = tree if kind == "tree" else line
    count = 0
    for text in own.tolist():
        guess = guessing(text, length)
        count += passes_of(text, guess)
    said = len(own) * (WIDTH - 1)
    return count / said


CLAIM = Claim(
    "Trees of n-grams take a twentieth of the passes off that one line takes.", "passes a token", at_least=0.05,
    relative=True, sides={"method": Side(passes, {"kind": "tree"}, {"length": (2, 3, 4, 6, 8)}),
                          "baseline": Side(passes, {"kind": "line"}, {"length": (2, 3, 4, 6, 8)})})
