"""The server as an ASGI application: OpenAI's endpoints over one model and its engine."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from mixwell import __version__
from mixwell.core.errors import MixwellError, on_one_line, shown
from mixwell.lm.model import LanguageModel
from mixwell.serve.answers import ChatReply, CompletionReply, Reply
from mixwell.serve.asking import Asking, Prompt
from mixwell.serve.engine import Engine, Limits
from mixwell.serve.guard import Guard, Rules, error_body
from mixwell.serve.metrics import Metrics
from mixwell.serve.request import Event, Row
from mixwell.serve.schemas import ChatRequest, CompletionRequest, DetokenizeRequest, Sampling, TokenizeRequest
from mixwell.serve.text import Spelling
from mixwell.serve.worker import Answers, Busy, Worker

LOG = logging.getLogger("mixwell.serve")
AGAIN_S = 1  # seconds after which a client that found the queue full may ask again
PING_S = 15.0  # silence after which a stream says that it is still there


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a model is served."""

    name: str  # by which clients call the model
    limits: Limits = field(default_factory=Limits)
    most_waiting: int = 64  # answers that may wait beside those under way
    threads: int | None = None  # that the engine computes with; default torch's


class Serving:
    """A model with what answers for it."""

    def __init__(self, model: LanguageModel, settings: Settings) -> None:
        self.name, self.model = settings.name, model
        self.created = int(time.time())
        self.engine = Engine(model, settings.limits)
        self.worker = Worker(self.engine, settings.most_waiting, settings.threads)
        self.asking = Asking(model, self.engine.context)
        self.spelling = Spelling(self.engine.tokenizer)
        self.metrics = Metrics(self.worker, self.name)

    def check_model(self, asked: str | None) -> None:
        """Refuse a request for another model."""
        if asked is not None and asked != self.name:
            raise HTTPException(404, f"the model {shown(asked)} is not served here; expected {self.name!r}.")

    def card(self) -> dict[str, Any]:
        """The model as /v1/models lists it."""
        return {"id": self.name, "object": "model", "created": self.created, "owned_by": "mixwell",
                "max_model_len": self.engine.context}

    async def events(self, reply: Reply, answers: Answers) -> AsyncIterator[Event]:
        """The events of a reply, counted; what is not over when nobody listens any more is cancelled."""
        try:
            async for event in answers:
                for _ in event.tokens:
                    self._count(reply)
                yield event
            self.metrics.whole.observe(time.monotonic() - reply.clock.asked)
            self.metrics.prompt_tokens.inc(reply.usage()["prompt_tokens"])
        finally:
            answers.cancel()

    def _count(self, reply: Reply) -> None:
        """One token more."""
        since = reply.clock.token()
        self.metrics.generated.inc()
        if since is None:
            self.metrics.first.observe(time.monotonic() - reply.clock.asked)
        else:
            self.metrics.between.observe(since)


def build(model: LanguageModel, settings: Settings, rules: Rules) -> Guard:
    """The application that serves a model, behind the rules."""
    serving = Serving(model, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        serving.worker.start()
        yield
        await serving.worker.stop()

    app = FastAPI(title="mixwell", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.serving = serving
    _add_routes(app)
    _add_errors(app)
    return Guard(app, rules)


def _add_routes(app: FastAPI) -> None:
    app.get("/health")(health)
    app.get("/metrics")(metrics)
    app.get("/v1/models")(models)
    app.get("/v1/models/{name:path}")(model_card)
    app.get("/v1/experts")(experts)
    app.post("/v1/chat/completions", response_model=None)(chat)
    app.post("/v1/completions", response_model=None)(complete)
    app.post("/tokenize")(tokenize)
    app.post("/detokenize")(detokenize)


def _serving(request: Request) -> Serving:
    return request.app.state.serving


async def health() -> dict[str, str]:
    """Whether the server answers."""
    return {"status": "ok"}


async def metrics(request: Request) -> Response:
    """Counts and times, in Prometheus' form."""
    return PlainTextResponse(_serving(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)


async def models(request: Request) -> dict[str, Any]:
    """The models served: one."""
    return {"object": "list", "data": [_serving(request).card()]}


async def model_card(request: Request, name: str) -> dict[str, Any]:
    """The model of that name."""
    serving = _serving(request)
    serving.check_model(name)
    return serving.card()


async def experts(request: Request) -> dict[str, Any]:
    """Tokens that each expert was given, by label and layer, and the engine's state in numbers."""
    engine = _serving(request).engine
    return {"loads": engine.loads.told(), "engine": engine.facts()}


async def tokenize(request: Request, body: TokenizeRequest) -> dict[str, Any]:
    """Ids of a text or of a conversation."""
    asking = _serving(request).asking
    if (body.prompt is None) == (body.messages is None):
        raise MixwellError("expected either prompt or messages.")
    if body.messages is not None:
        found = await asyncio.to_thread(asking.conversation, body.messages)
        ids = found.ids
    else:
        encode = asking.tokenizer.prompt if body.add_special_tokens else asking.tokenizer.encode
        ids = await asyncio.to_thread(encode, body.prompt or "")
    return {"tokens": ids, "count": len(ids), "max_model_len": asking.context}


async def detokenize(request: Request, body: DetokenizeRequest) -> dict[str, Any]:
    """The text of ids."""
    tokenizer = _serving(request).asking.tokenizer
    wrong = next((number for number in body.tokens if number >= tokenizer.vocab_size), None)
    if wrong is not None:
        raise MixwellError(f"tokens hold the id {wrong}; expected 0 to {tokenizer.vocab_size - 1}.")
    return {"prompt": tokenizer.decode(body.tokens)}


async def chat(request: Request, body: ChatRequest) -> Response:
    """An answer in a conversation."""
    serving = _serving(request)
    serving.check_model(body.model)
    asking = serving.asking
    prompt = await asyncio.to_thread(asking.conversation, body.messages, body.chat_template_kwargs)
    options = asking.chat_options(body, prompt)
    rows = asking.rows([prompt], options, body.n or 1)
    reply = ChatReply(serving.name, serving.spelling, [prompt], rows, False, _usage(body))
    return await _answered(request, serving, reply, rows, bool(body.stream))


async def complete(request: Request, body: CompletionRequest) -> Response:
    """Continuations of texts."""
    serving = _serving(request)
    serving.check_model(body.model)
    asking = serving.asking
    prompts: list[Prompt] = await asyncio.to_thread(asking.prompts, body.prompt)
    options = asking.completion_options(body)
    rows = asking.rows(prompts, options, body.n or 1)
    reply = CompletionReply(serving.name, serving.spelling, prompts, rows, bool(body.echo), _usage(body))
    return await _answered(request, serving, reply, rows, bool(body.stream))


def _usage(body: Sampling) -> bool:
    return bool(body.stream_options and body.stream_options.include_usage)


async def _answered(request: Request, serving: Serving, reply: Reply, rows: list[Row], streamed: bool) -> Response:
    answers = serving.worker.submit(rows)
    if streamed:
        lines = _lines(reply, serving, answers)
        return StreamingResponse(lines, media_type="text/event-stream", headers={"cache-control": "no-cache"})
    work = asyncio.create_task(_whole(reply, serving, answers))
    gone = asyncio.create_task(_leaving(request))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            return Response(status_code=499)  # nobody is there to read it
        return JSONResponse(work.result())
    finally:
        for task in (work, gone):
            task.cancel()
        answers.cancel()


async def _leaving(request: Request) -> None:
    """Return when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _whole(reply: Reply, serving: Serving, answers: Answers) -> dict[str, Any]:
    async for event in serving.events(reply, answers):
        if event.finish == "error":
            raise HTTPException(500, event.error)
        reply.add(event)
    return reply.whole()


async def _lines(reply: Reply, serving: Serving, answers: Answers) -> AsyncIterator[str]:
    """The lines of a stream of events, the last of which says that it is over."""
    try:
        for chunk in reply.beginning():
            yield _line(chunk)
        async for event in _with_pings(serving.events(reply, answers)):
            if event is None:
                yield ": ping\n\n"
                continue
            if event.finish == "error":
                yield _line(error_body(500, event.error))
                return
            for chunk in reply.chunks(event):
                yield _line(chunk)
            reply.add(event)
        for chunk in reply.ending():
            yield _line(chunk)
        yield "data: [DONE]\n\n"
    finally:
        answers.cancel()


async def _with_pings(events: AsyncIterator[Event]) -> AsyncIterator[Event | None]:
    """The events, and None where none came for long."""
    following = asyncio.ensure_future(anext(events, None))
    try:
        while True:
            done, _ = await asyncio.wait({following}, timeout=PING_S)
            if not done:
                yield None
                continue
            event = following.result()
            if event is None:
                return
            yield event
            following = asyncio.ensure_future(anext(events, None))
    finally:
        following.cancel()


def _line(value: dict[str, Any]) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n"


def _add_errors(app: FastAPI) -> None:
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(HTTPException)(_refused)
    app.exception_handler(MixwellError)(_wrong)
    app.exception_handler(Exception)(_broken)


async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    parts = [str(part) for part in first["loc"] if part != "body"]
    place = ".".join(parts)
    reason = on_one_line(first["msg"])
    named = place or "body"
    body = error_body(400, f"{named}: {reason}", place or None)
    return JSONResponse(body, 400)


async def _refused(request: Request, error: HTTPException) -> JSONResponse:
    body = error_body(error.status_code, str(error.detail))
    return JSONResponse(body, error.status_code, error.headers)


async def _wrong(request: Request, error: MixwellError) -> JSONResponse:
    if isinstance(error, Busy):
        return JSONResponse(error_body(429, str(error)), 429, {"retry-after": str(AGAIN_S)})
    return JSONResponse(error_body(400, str(error)), 400)


async def _broken(request: Request, error: Exception) -> JSONResponse:
    LOG.error("a request failed", exc_info=error)
    return JSONResponse(error_body(500, "the server failed at this request; its log says why."), 500)
