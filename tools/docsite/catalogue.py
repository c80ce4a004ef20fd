"""The catalogue page: every method in one table that is narrowed by room, tag, outcome and words."""

from __future__ import annotations

import html
from collections.abc import Iterable

from docsite.pages import Catalogue, badges, href, source_path
from mixwell.core.registry import Entry

HERE = "catalogue.md"


def page(catalogue: Catalogue) -> str:
    """The page as Markdown; `assets/catalogue.js` does the narrowing."""
    tags = sorted({tag for entry in catalogue.entries for tag in entry.tags})
    outcomes = sorted({outcome for entry in catalogue.entries for outcome in catalogue.outcomes(entry.name)})
    choices = (_choice("room", catalogue.rooms()) + _choice("tag", tags) + _choice("outcome", outcomes))
    rows = "".join(_row(entry, catalogue) for entry in catalogue.entries)
    return (f"---\ntitle: Catalogue\nhide: [toc]\n---\n\n# Catalogue\n\n"
            f"The {len(catalogue.entries)} methods. `mixwell list` prints the same, and `mixwell show NAME` a card.\n\n"
            f'<div id="narrowed"><form class="choices"><label>words <input type="search" name="words" '
            f'placeholder="title, name or paper"></label>{choices}<output></output></form>\n'
            f'<div class="scroll"><table class="listing"><thead><tr><th>method</th><th>name</th><th>year</th>'
            f"<th>claims</th><th>tags</th></tr></thead><tbody>{rows}</tbody></table></div></div>\n")


def _choice(name: str, values: Iterable[str]) -> str:
    options = "".join(f'<option value="{value}">{value}</option>' for value in values)
    return f'<label>{name} <select name="{name}"><option value="">all</option>{options}</select></label>'


def _row(entry: Entry, catalogue: Catalogue) -> str:
    outcomes, tags = catalogue.outcomes(entry.name), sorted(entry.tags)
    words = html.escape(" ".join((entry.title, entry.name, *entry.papers)).lower(), quote=True)
    return (f'<tr data-room="{entry.room}" data-tag="{"|".join(tags)}" data-outcome="{"|".join(outcomes)}" '
            f'data-words="{words}"><td><a href="{href(HERE, source_path(entry.name))}">{html.escape(entry.title)}</a>'
            f"</td><td><code>{_breakable(entry.name)}</code></td><td>{entry.year}</td><td>{badges(outcomes)}</td>"
            f'<td class="tags">{", ".join(tags)}</td></tr>')


def _breakable(name: str) -> str:
    return name.replace(".", ".<wbr>").replace("_", "_<wbr>")
