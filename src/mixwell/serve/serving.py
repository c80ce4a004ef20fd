"""A model with all that answers for it, and the models of one server side by side."""

from __future__ import annotations

import copy
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.exceptions import HTTPException

from mixwell.adapters.many import NONE, Many
from mixwell.core.errors import MixwellError, shown
from mixwell.lm.model import LanguageModel
from mixwell.serve.answers import Reply
from mixwell.serve.asking import Asking
from mixwell.serve.engine import Engine, Limits
from mixwell.serve.metrics import Meters, Metrics
from mixwell.serve.request import Event, Row
from mixwell.serve.text import Spelling
from mixwell.serve.worker import Answers, Worker


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a model is served."""

    name: str  # by which clients call the model
    limits: Limits = field(default_factory=Limits)
    most_waiting: int = 64  # answers that may wait beside those under way
    threads: int | None = None  # that the engine computes with; default torch's
    adapters: Many | None = None  # beside the model: clients choose one by its name
    smaller: LanguageModel | None = None  # a model that drafts for it


class Serving:
    """A model with what answers for it."""

    meters: Meters  # of its answers, given by the house it stands in
    adapter = NONE  # number of the adapter that its rows go through
    parent: str | None = None  # the model that it is an adapter of

    def __init__(self, model: LanguageModel, settings: Settings) -> None:
        self.name, self.model = settings.name, model
        self.adapters = settings.adapters
        self.created = int(time.time())
        self.engine = Engine(model, settings.limits, settings.adapters, settings.smaller)
        self.worker = Worker(self.engine, settings.most_waiting, settings.threads)
        self.asking = Asking(model, self.engine.context)
        self.spelling = Spelling(self.engine.tokenizer)
        self.weights_bytes = _held(model)

    def adapted(self) -> list[Serving]:
        """The model with each of its adapters, under the adapter's name; engine and worker are the model's."""
        found = []
        names = [] if self.adapters is None else self.adapters.names
        for number, name in enumerate(names):
            one = copy.copy(self)
            one.name, one.adapter, one.parent = name, number, self.name
            found.append(one)
        return found

    def card(self) -> dict[str, Any]:
        """The model as /v1/models lists it."""
        chat = self.asking.tokenizer.chat_template is not None
        found = {"id": self.name, "object": "model", "created": self.created, "owned_by": "mixwell",
                 "max_model_len": self.engine.context, "chat": chat}
        if self.engine.keep is not None:
            found["keep"] = self.engine.keep.name
        if self.parent is not None:
            found["parent"] = self.parent
        return found

    async def events(self, reply: Reply, answers: Answers) -> AsyncIterator[Event]:
        """The events of a reply, counted."""
        async for event in answers:
            for _ in event.tokens:
                self._count(reply)
            yield reply.read(event)
        self.meters.whole.observe(time.monotonic() - reply.clock.asked)
        self.meters.prompt_tokens.inc(reply.usage()["prompt_tokens"])

    async def vectors(self, rows: Sequence[Row]) -> list[tuple[float, ...]]:
        """The vectors of rows that ask for them, so many at a time as the engine reads at once."""
        for row in rows:
            self.engine.check(row)
        found: dict[Row, tuple[float, ...]] = {}
        most = self.engine.scheduler.max_rows
        for start in range(0, len(rows), most):
            answers = self.worker.submit(rows[start : start + most])
            try:
                async for event in answers:
                    if event.finish == "error":
                        raise HTTPException(500, event.error)
                    found[event.row] = event.vector
                    self.meters.prompt_tokens.inc(len(event.row.prompt))
            finally:
                answers.cancel()
        return [found[row] for row in rows]

    def _count(self, reply: Reply) -> None:
        """One token more."""
        since = reply.clock.token()
        self.meters.generated.inc()
        if since is None:
            self.meters.first.observe(time.monotonic() - reply.clock.asked)
        else:
            self.meters.between.observe(since)


def _held(model: LanguageModel) -> int:
    """Bytes of a model's parameters and buffers, those that are shared counted once."""
    tensors = [*model.parameters(), *model.buffers()]
    sizes = {tensor.data_ptr(): tensor.nbytes for tensor in tensors if not tensor.is_meta}
    return sum(sizes.values())


class House:
    """The models that a server answers with, those with adapters among them; the first one where a request names none.
    """

    def __init__(self, servings: Sequence[Serving]) -> None:
        self.own = list(servings)
        every = list(servings)
        for serving in servings:
            every += serving.adapted()
        self.servings = {serving.name: serving for serving in every}
        if len(self.servings) < len(every):
            raise MixwellError("two models are served under one name; name one of them otherwise.")
        workers = {serving.name: serving.worker for serving in servings}
        self.metrics = Metrics(workers)
        for name, serving in self.servings.items():
            serving.meters = self.metrics.of(name)

    def find(self, asked: str | None) -> Serving:
        """The model of that name; the first where none is asked for."""
        if asked is None:
            first, *_ = self.servings.values()
            return first
        if asked in self.servings:
            return self.servings[asked]
        names = map(repr, self.servings)
        known = " or ".join(names)
        raise HTTPException(404, f"the model {shown(asked)} is not served here; expected {known}.")

    def start(self) -> None:
        """Begin to answer."""
        for serving in self.own:
            serving.worker.start()

    async def stop(self) -> None:
        """End what is under way."""
        for serving in self.own:
            await serving.worker.stop()
