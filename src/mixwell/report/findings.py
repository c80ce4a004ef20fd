"""Pages of what a command found: a lead, the points to know first, sections of tables and charts, the machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import torch

from mixwell.core import machine
from mixwell.report import page as pages

Row = tuple[str, list[tuple[str, str]]]  # of a table: its name, and texts with what stands small below them


def page(template: str, titles: Mapping[str, str], sections: Mapping[str, Any], *, title: str, lead: str,
         points: Sequence[str], more: str = "") -> str:
    """The page as HTML, written now on this machine; more: what stands beside date and machine, below the title."""
    computer = machine.describe(torch.get_num_threads())
    now = datetime.now(UTC).isoformat()
    parts = {**sections, "machine": pages.machine(computer, {}, "", now, {})}
    toc = [(name, words) for name, words in titles.items() if parts[name]]
    facts = pages.facts(computer, now, more=more)
    return pages.render(template, title=title, facts=facts, lead=lead, points=points, toc=toc, titles=titles, **parts)
