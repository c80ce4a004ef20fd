"""Drafts by a smaller model of the same tokens: what it finds likeliest is guessed, and the model verifies it.

The answers are the model's own. What it costs is a pass of the smaller model for each guess, row by row; it pays where
a pass of the large model costs many of them and the two often agree, as a model and its nested or distilled part do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mixwell.core.errors import MixwellError
from mixwell.lm.model import LanguageModel
from mixwell.serve.packing import mixes_tokens, side_by_side
from mixwell.serve.speculation import agreeing

WIDTH = 4  # guesses at most
AT_ONCE = 256  # ids that the smaller model reads in a step at most: a long prompt holds nobody up


def check_smaller(model: LanguageModel, smaller: LanguageModel) -> None:
    """Raise `MixwellError` for a model that cannot guess for another one."""
    if smaller.tokenizer is None or model.tokenizer is None:
        raise MixwellError("the model that drafts has no tokenizer; expected a folder with tokenizer.json.")
    if smaller.tokenizer.vocabulary != model.tokenizer.vocabulary:
        raise MixwellError("the model that drafts has other tokens than the one it drafts for; take one that was made "
                           "from it, or trained with its tokenizer.")
    if not side_by_side(smaller.config) or mixes_tokens(smaller):
        raise MixwellError("the model that drafts keeps more than keys and values of a row, and cannot go back; take "
                           "another one.")


class Smaller:
    """Guesses what one row says next with a smaller model, which keeps what it read of the row."""

    def __init__(self, model: LanguageModel, width: int = WIDTH, at_once: int = AT_ONCE) -> None:
        self.model, self.width, self.at_once = model, width, at_once
        self.cache = model.new_cache()
        self.read: list[int] = []

    @torch.inference_mode()
    def draft(self, ids: Sequence[int], said: int, longest: int) -> list[int]:
        """Guesses for what follows `ids`, of which `said` are the answer so far; none while the prompt is read."""
        left = longest - said - 1
        width = min(self.width, left)
        if width <= 0 or len(ids) + width > self.model.config.max_positions:
            return []
        self._go_back(ids)
        new = list(ids[len(self.read) :])
        if len(new) > self.at_once:
            self._next(new[: self.at_once])
            return []
        found = [self._next(new)]
        while len(found) < width:
            found.append(self._next(found[-1:]))
        return found

    def learn(self, predicted: Sequence[int], accepted: int) -> None:
        """Take in a pass; what was guessed wrongly is forgotten at the next draft."""

    def _go_back(self, ids: Sequence[int]) -> None:
        """Forget what was read beyond the ids, the last of which is read anew for what it says of the next."""
        before = list(ids[:-1])
        if before[: len(self.read)] == self.read:  # all guesses held: nothing is to be forgotten
            return
        agreed = agreeing(self.read, before)
        del self.read[agreed:]
        self.cache.go_back(torch.tensor([self.read], dtype=torch.int64))

    def _next(self, new: Sequence[int]) -> int:
        logits_1V = self.model.next_logits(torch.tensor([list(new)]), self.cache)
        self.read += new
        return int(logits_1V.argmax())
