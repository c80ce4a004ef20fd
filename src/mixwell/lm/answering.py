"""A model's answer in a conversation, piece by piece as it is generated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from mixwell.core.errors import MixwellError
from mixwell.lm import generate
from mixwell.lm.chat import Chat
from mixwell.lm.conversation import Conversation
from mixwell.lm.model import LanguageModel
from mixwell.lm.streaming import Text

USUAL = 512  # tokens of an answer at most, where neither caller nor model says


class Answer:
    """An answer under way: iterate over its pieces of text. Then `ended` tells whether the model came to an end.

    It ends at one of the model's `stop_ids`. variables: of the chat template. options: as of `LanguageModel.generate`.
    """

    def __init__(self, model: LanguageModel, conversation: Conversation, max_new_tokens: int | None = None,
                 variables: Mapping[str, Any] = {}, **options: Any) -> None:
        if model.tokenizer is None:
            raise MixwellError("the model has no tokenizer; expected a folder with tokenizer.json.")
        self.model, self.tokenizer = model, model.tokenizer
        self.prompt = Chat(self.tokenizer).prompt(conversation, **variables)
        self.most = max_new_tokens or model.generation.max_new_tokens or USUAL
        self.options = options
        self.ids: list[int] = []
        self.ended = False
        self.text = ""
        self._written = Text(self.tokenizer)

    def __iter__(self) -> Iterator[str]:
        stops = self.model.stop_ids
        drawing = self.model.drawing({**self.options, "eos_token_id": stops})
        for new_B in generate.steps(self.model, torch.tensor([self.prompt]), self.most, **drawing):
            number = int(new_B[0])
            self.ended = number in stops
            if not self.ended:
                self.ids.append(number)
                yield from self._told(self._written.push(number))
        yield from self._told(self._written.close())

    def _told(self, piece: str) -> Iterator[str]:
        """A piece, where it is one; a character that is not whole yet waits."""
        self.text += piece
        if piece:
            yield piece
