"""The server as an ASGI application: OpenAI's endpoints over one model and its engine."""

from __future__ import annotations

import asyncio
import base64
import logging
import struct
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from mixwell import __version__
from mixwell.core.errors import MixwellError, on_one_line
from mixwell.lm.model import LanguageModel
from mixwell.serve.answers import ChatReply, CompletionReply, Reply
from mixwell.serve.asking import Prompt, check_text
from mixwell.serve.guard import Guard, Rules, error_body
from mixwell.serve.page import add_page
from mixwell.serve.request import Event, Options, Row
from mixwell.serve.resident import resident_bytes
from mixwell.serve.responses import ResponseReply, ResponseRequest, as_chat
from mixwell.serve.schemas import (
    MOST_TEXTS,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    Refusal,
    Sampling,
    TokenizeRequest,
)
from mixwell.serve.serving import House, Serving, Settings
from mixwell.serve.tools import Calls
from mixwell.serve.worker import FAULT, Answers, Busy

LOG = logging.getLogger("mixwell.serve")
AGAIN_S = 1  # seconds after which a client that found the queue full may ask again
NO_OBJECT = ("model_attributes_type", "missing")  # what the body's reader calls anything but an object
NEEDED = "the body is no JSON object; send one with the header Content-Type: application/json."
REFUSALS: dict[int | str, dict[str, Any]] = {kind: {"model": Refusal} for kind in ("4XX", "5XX")}
PING_S = 15.0  # silence after which a stream says that it is still there


def build(model: LanguageModel, settings: Settings, rules: Rules,
          beside: Sequence[tuple[LanguageModel, Settings]] = ()) -> Guard:
    """The application that serves a model, and others beside it, behind the rules."""
    pairs = [(model, settings), *beside]
    house = House([Serving(*pair) for pair in pairs])

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        house.start()
        yield
        await house.stop()

    app = FastAPI(title="mixwell", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
                  responses=REFUSALS)
    app.state.house = house
    _add_routes(app)
    _add_errors(app)
    return Guard(app, rules)


def _add_routes(app: FastAPI) -> None:
    add_page(app)
    app.get("/health")(health)
    app.get("/metrics", response_class=PlainTextResponse)(metrics)
    app.get("/v1/models")(models)
    app.get("/v1/models/{name:path}")(model_card)
    app.get("/v1/experts")(experts)
    app.post("/v1/chat/completions", response_model=None)(chat)
    app.post("/v1/responses", response_model=None)(respond)
    app.post("/v1/completions", response_model=None)(complete)
    app.post("/v1/embeddings", response_model=None)(embed)
    app.post("/tokenize")(tokenize)
    app.post("/detokenize")(detokenize)


def _house(request: Request) -> House:
    return request.app.state.house


async def health() -> dict[str, str]:
    """Whether the server answers."""
    return {"status": "ok"}


async def metrics(request: Request) -> Response:
    """Counts and times, in Prometheus' form."""
    return PlainTextResponse(_house(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)


async def models(request: Request) -> dict[str, Any]:
    """The models served."""
    cards = [serving.card() for serving in _house(request).servings.values()]
    return {"object": "list", "data": cards}


async def model_card(request: Request, name: str) -> dict[str, Any]:
    """The model of that name."""
    return _house(request).find(name).card()


async def experts(request: Request, model: str | None = None) -> dict[str, Any]:
    """Tokens that each expert was given, by label and layer, the engine's state in numbers, and memory."""
    serving = _house(request).find(model)
    engine = serving.engine
    memory = {"weights_bytes": serving.weights_bytes, "resident_bytes": resident_bytes()}
    return {"loads": engine.loads.told(), "engine": engine.facts(), "memory": memory}


async def tokenize(request: Request, body: TokenizeRequest) -> dict[str, Any]:
    """Ids of a text or of a conversation."""
    asking = _house(request).find(body.model).asking
    if (body.prompt is None) == (body.messages is None):
        raise MixwellError("expected either prompt or messages.")
    if body.messages is not None:
        found = await asyncio.to_thread(asking.conversation, body.messages)
        ids = found.ids
    else:
        check_text(body.prompt)
        encode = asking.tokenizer.prompt if body.add_special_tokens else asking.tokenizer.encode
        ids = await asyncio.to_thread(encode, body.prompt or "")
    return {"tokens": ids, "count": len(ids), "max_model_len": asking.context}


async def detokenize(request: Request, body: DetokenizeRequest) -> dict[str, Any]:
    """The text of ids."""
    tokenizer = _house(request).find(body.model).asking.tokenizer
    wrong = next((number for number in body.tokens if number >= tokenizer.vocab_size), None)
    if wrong is not None:
        raise MixwellError(f"tokens hold the id {wrong}; expected 0 to {tokenizer.vocab_size - 1}.")
    return {"prompt": tokenizer.decode(body.tokens)}


async def chat(request: Request, body: ChatRequest) -> Response:
    """An answer in a conversation."""
    serving = _house(request).find(body.model)
    prompt, rows, calls = await _asked(serving, body)
    reply = ChatReply(serving.name, serving.spelling, [prompt], rows, _usage(body), calls)
    return await _answered(request, serving, reply, rows, bool(body.stream))


async def respond(request: Request, body: ResponseRequest) -> Response:
    """An answer in a conversation, as a response."""
    serving = _house(request).find(body.model)
    prompt, rows, calls = await _asked(serving, as_chat(body))
    reply = ResponseReply(serving.name, serving.spelling, prompt, rows[0], calls, body)
    return await _answered(request, serving, reply, rows, bool(body.stream))


async def _asked(serving: Serving, body: ChatRequest) -> tuple[Prompt, list[Row], list[Calls]]:
    """The prompt of a conversation, the rows that answer it, and what tells calls of tools from text in each."""
    asking = serving.asking
    tools = asking.callable(body)
    prompt = await asyncio.to_thread(asking.conversation, body.messages, body.chat_template_kwargs, tools)
    drawn = await asyncio.to_thread(asking.chat_options, body, prompt)  # a form of the answer is worked out
    options = replace(drawn, adapter=serving.adapter)
    rows = await asyncio.to_thread(asking.rows, [prompt], options, body.n or 1)
    names = [tool.function.name for tool in tools]
    return prompt, rows, [Calls(asking.tool_form, names) for _ in rows if names]


async def complete(request: Request, body: CompletionRequest) -> Response:
    """Continuations of texts."""
    serving = _house(request).find(body.model)
    asking = serving.asking
    prompts: list[Prompt] = await asyncio.to_thread(asking.prompts, body.prompt)
    drawn = await asyncio.to_thread(asking.completion_options, body)
    options = replace(drawn, adapter=serving.adapter)
    rows = await asyncio.to_thread(asking.rows, prompts, options, body.n or 1)
    reply = CompletionReply(serving.name, serving.spelling, prompts, rows, bool(body.echo), _usage(body))
    return await _answered(request, serving, reply, rows, bool(body.stream))


async def embed(request: Request, body: EmbeddingRequest) -> Response:
    """Vectors of texts, of length 1."""
    serving = _house(request).find(body.model)
    width = serving.model.config.dim
    if body.dimensions not in (None, width):
        raise MixwellError(f"dimensions is {body.dimensions}; the vectors of this model have {width}, leave it out.")
    prompts = await asyncio.to_thread(serving.asking.prompts, body.input, MOST_TEXTS)
    options = Options(max_tokens=0, pooling=body.pooling, adapter=serving.adapter)
    rows = await asyncio.to_thread(serving.asking.rows, prompts, options, 1)
    return await _while_there(request, _embedded(serving, rows, body.encoding_format == "base64"))


async def _embedded(serving: Serving, rows: list[Row], packed: bool) -> dict[str, Any]:
    vectors = await serving.vectors(rows)
    numbered = enumerate(vectors)
    data = [{"object": "embedding", "index": place, "embedding": _packed(vector) if packed else vector}
            for place, vector in numbered]
    read = sum(len(row.prompt) for row in rows)
    usage = {"prompt_tokens": read, "total_tokens": read}
    return {"object": "list", "data": data, "model": serving.name, "usage": usage}


def _packed(vector: Sequence[float]) -> str:
    """Little-endian float32 numbers in base64, as OpenAI's client asks for them."""
    data = struct.pack(f"<{len(vector)}f", *vector)
    return base64.b64encode(data).decode()


def _usage(body: Sampling) -> bool:
    return bool(body.stream_options and body.stream_options.include_usage)


async def _answered(request: Request, serving: Serving, reply: Reply, rows: list[Row], streamed: bool) -> Response:
    answers = serving.worker.submit(rows)
    if streamed:
        lines = _lines(reply, serving, answers)
        return StreamingResponse(lines, media_type="text/event-stream", headers={"cache-control": "no-cache"})
    try:
        return await _while_there(request, _whole(reply, serving, answers))
    finally:
        answers.cancel()


async def _while_there(request: Request, making: Coroutine[Any, Any, dict[str, Any]]) -> Response:
    """What is being made, unless the client leaves before."""
    work = asyncio.create_task(making)
    gone = asyncio.create_task(_leaving(request))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            return Response(status_code=499)  # nobody is there to read it
        return JSONResponse(work.result())
    finally:
        for task in (work, gone):
            task.cancel()


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
            yield reply.line(chunk)
        async for event in _with_pings(serving.events(reply, answers)):
            if event is None:
                yield ": ping\n\n"
                continue
            if event.finish == "error":
                yield reply.line(reply.failure(event.error))
                return
            for chunk in reply.chunks(event):
                yield reply.line(chunk)
            reply.add(event)
        for chunk in reply.ending():
            yield reply.line(chunk)
        yield reply.ended()
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


def _add_errors(app: FastAPI) -> None:
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(HTTPException)(_refused)
    app.exception_handler(MixwellError)(_wrong)
    app.exception_handler(Exception)(_broken)


async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    whole = first["loc"] == ("body",)
    if whole and first["type"] in NO_OBJECT:
        body = error_body(400, NEEDED)
        return JSONResponse(body, 400)
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
    return JSONResponse(error_body(500, FAULT), 500)
