"""What stands before the server: who may ask, how large a request may be and how long it may take to arrive."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What requests are held to."""

    api_key: str | None = None  # what `Authorization: Bearer` must say
    local_names: bool = False  # whether the Host must be a name of this machine: no web page may act as one of ours
    body_bytes: int = 8 << 20  # of a request at most
    body_s: float = 30.0  # seconds in which it must have arrived
    open_paths: frozenset[str] = frozenset({"/health", "/", "/page.js"})  # need no key


def error_body(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's words."""
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    usual = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kinds.get(status, usual), "param": param, "code": status}}


class Guard:
    """An application behind the rules."""

    def __init__(self, app: App, rules: Rules) -> None:
        self.app, self.rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what breaks a rule; hand on what does not."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refused = self._refused(scope)
        if refused is not None:
            await _answer(send, *refused)
            return
        bounded = _Bounded(receive, self.rules)
        await self.app(scope, bounded, send)

    def _refused(self, scope: Scope) -> tuple[int, str] | None:
        """Status and reason where the request's head breaks a rule."""
        headers = {name.lower(): value for name, value in scope["headers"]}
        if self.rules.local_names and _host(headers.get(b"host", b"")) not in LOOPBACK:
            return 403, "this server answers to names of its own machine only; start it with an --api-key for others."
        if not self._has_key(scope, headers):
            return 401, "the key is missing or wrong; expected the header `Authorization: Bearer KEY`."
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            return 400, "the Content-Length is no number."
        if len(length) > 18 or int(length) > self.rules.body_bytes:
            return 413, f"the request is larger than {self.rules.body_bytes} bytes."
        return None

    def _has_key(self, scope: Scope, headers: dict[bytes, bytes]) -> bool:
        key = self.rules.api_key
        if key is None or scope["path"] in self.rules.open_paths:
            return True
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        same = hmac.compare_digest(given.strip(), key.encode())  # in a time that tells nothing of how much was right
        return same and kind.lower() == b"bearer"


class _Bounded:
    """What arrives of a request, up to a size and within a time."""

    def __init__(self, receive: Receive, rules: Rules) -> None:
        self.receive, self.rules = receive, rules
        self.size, self.complete = 0, False
        self.until = asyncio.get_running_loop().time() + rules.body_s

    async def __call__(self) -> Message:
        if self.complete:  # what comes now is the client's leaving
            return await self.receive()
        try:
            async with asyncio.timeout_at(self.until):
                message = await self.receive()
        except TimeoutError:
            raise HTTPException(408, f"the request did not arrive within {self.rules.body_s:g} s.") from None
        self.size += len(message.get("body", b""))
        if self.size > self.rules.body_bytes:
            raise HTTPException(413, f"the request is larger than {self.rules.body_bytes} bytes.")
        self.complete = not message.get("more_body", False)
        return message


def _host(header: bytes) -> str:
    """The name in a Host header, without the port."""
    text = header.decode("latin-1").strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]


async def _answer(send: Send, status: int, message: str) -> None:
    body = json.dumps(error_body(status, message)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status == 413:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
