"""The page at `/`: a conversation in a browser, and the experts that wrote each token."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files

from fastapi import FastAPI
from fastapi.responses import Response

FILES = {"/": ("index.html", "text/html"), "/page.js": ("page.js", "text/javascript")}
POLICY = "; ".join(("default-src 'none'", "script-src 'self'", "style-src 'unsafe-inline'", "connect-src 'self'",
                    "img-src data:", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"))
HEADERS = {"content-security-policy": POLICY, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer",
           "cache-control": "no-cache"}


def add_page(app: FastAPI) -> None:
    """Answer with the page's files. They hold nothing of the models, so that they need no key."""
    for path, (name, kind) in FILES.items():
        content = files(__name__).joinpath(name).read_bytes()
        app.get(path, include_in_schema=False)(_answering(Response(content, media_type=kind, headers=HEADERS)))


def _answering(response: Response) -> Callable[[], Awaitable[Response]]:
    async def answer() -> Response:
        return response

    return answer
