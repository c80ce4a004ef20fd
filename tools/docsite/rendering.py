"""The pages' templates. What is no `Markup` is escaped; a name that a template lacks is an error."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jinja2

FOLDER = Path(__file__).parent / "templates"


@functools.cache
def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(FOLDER)
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True)


def render(template: str, **context: Any) -> str:
    """A page as Markdown."""
    page = _environment().get_template(f"{template}.jinja").render(**context)
    return page.strip() + "\n"
