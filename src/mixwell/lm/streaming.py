"""The text of ids as they come: whole characters only, and nothing that may turn out to begin a stop text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mixwell.lm.tokenizer import Tokenizer

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what the beginning of a character decodes to


class Text:
    """What an answer says so far. `stopped` is True once one of the `stops` stood in it."""

    def __init__(self, tokenizer: Tokenizer, stops: Iterable[str] = ()) -> None:
        self.tokenizer, self.stops = tokenizer, tuple(stops)
        self.stopped = False
        self._ids: list[int] = []
        self._from, self._upto = 0, 0  # ids whose text gives those behind them their context, and those told
        self._held = ""

    def push(self, number: int) -> str:
        """What can be told now that the id `number` came."""
        self._ids.append(number)
        return self._told(self._decoded())

    def close(self) -> str:
        """What was held back; no id will come."""
        if self.stopped:
            return ""
        rest = self._told(self._decoded(last=True))
        held, self._held = self._held, ""
        return rest if self.stopped else rest + held

    def _decoded(self, last: bool = False) -> str:
        """Text of the ids that were not told yet, once it ends in a whole character."""
        before = self._decode(self._ids[self._from : self._upto])
        both = self._decode(self._ids[self._from :])
        if not last and (both.endswith(UNFINISHED) or len(both) <= len(before)):
            return ""
        self._from, self._upto = self._upto, len(self._ids)
        return both[len(before) :]

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special=True)

    def _told(self, new: str) -> str:
        """`new` and what was held back, up to a stop, or to what may become one."""
        text = self._held + new
        places = [text.find(stop) for stop in self.stops]
        found = [place for place in places if place >= 0]
        if found:
            end = min(found)
            self.stopped, self._held = True, ""
            return text[:end]
        overlaps = [overlap(text, stop) for stop in self.stops]
        sure = len(text) - max(overlaps, default=0)
        self._held = text[sure:]
        return text[:sure]


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins."""
    most = min(len(text), len(stop) - 1)
    for length in range(most, 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
