"""One page a method, one a room, one a family: the card, the options, the evidence and the neighbours."""

from __future__ import annotations

import html
import importlib
import inspect
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from docsite import cards, maths, options
from docsite.evidence import Claim
from docsite.trials import effect, section, verdict
from mixwell.core.registry import Entry

FOLDER = "methods"  # of the site
UNTRIED = "not tried"


@dataclass(frozen=True)
class Catalogue:
    """The methods with what is known of each."""

    entries: tuple[Entry, ...]
    evidence: Mapping[str, Mapping[str, Claim]]  # method -> its claims by name

    def __contains__(self, name: object) -> bool:
        return name in self.evidence

    def outcomes(self, name: str) -> list[str]:
        """The different outcomes of a method's claims, as written there."""
        found = [claim["outcome"] for claim in self.evidence[name].values()]
        return list(dict.fromkeys(found)) or [UNTRIED]

    def below(self, prefix: str) -> list[Entry]:
        """The methods of a room or a family, those of its families too."""
        return [entry for entry in self.entries if entry.name.startswith(f"{prefix}.")]

    def members(self, family: str) -> list[Entry]:
        """The methods that stand directly in a room or a family."""
        return [entry for entry in self.entries if entry.family == family]

    def families(self, room: str) -> list[str]:
        """The families of a room, itself where methods stand in it directly."""
        return list(dict.fromkeys(entry.family for entry in sorted(self.below(room), key=lambda e: e.family)))

    def rooms(self) -> list[str]:
        """The rooms that hold methods."""
        return sorted({entry.room for entry in self.entries})


def source_path(name: str, index: bool = False) -> str:
    """Where a method's page lies in the site's sources; a room's or a family's with `index`."""
    parts = name.split(".")
    return posixpath.join(FOLDER, *parts, "index.md") if index else posixpath.join(FOLDER, *parts) + ".md"


def link(origin: str, target: str) -> str:
    """The link from one page to another, both as source paths."""
    return posixpath.relpath(target, posixpath.dirname(origin))


def href(origin: str, target: str) -> str:
    """The same for links in HTML, which are not rewritten by the site's builder."""
    return link(origin, target).removesuffix(".md") + ".html"


def badges(outcomes: Sequence[str]) -> str:
    """Outcomes as coloured words."""
    return " ".join(f'<span class="outcome {_class(o)}">{o}</span>' for o in outcomes)


def _class(outcome: str) -> str:
    return outcome.replace(" ", "-")


def method_page(entry: Entry, catalogue: Catalogue) -> str:
    """A method's page as Markdown."""
    here = source_path(entry.name)
    card = cards.parse(entry.card_text(), entry.name)
    module, target = entry.module(), entry.load()

    def text(words: str) -> str:
        return maths.prose(words, lambda code: _linked(code, here, catalogue))

    parts = [f"# {entry.title}", _header(entry, here, catalogue), f'<p class="summary">{text(card.summary)}</p>',
             *([f"<p>{text(card.more)}</p>"] if card.more else []),
             "## Equation", f'<div class="equation">{maths.equation(card.sections["Equation"])}</div>',
             "## Shapes", f'<p>{text(card.sections["Shapes"])}</p>',
             "## Use", _use(entry, module, target, text),
             "## Options", _options(options.of(module, target), text)]
    for name in ("Reference", "Differs", "Fails when", "Cost"):
        parts += [f"## {name}", f"<p>{text(card.sections[name])}</p>"]
    parts += ["## Papers", _papers(entry), "## Evidence", section(catalogue.evidence[entry.name]),
              "## Neighbours", _neighbours(entry, here, catalogue), "## Source", _source(entry)]
    return _front(entry.title, card.summary) + "\n\n".join(parts) + "\n"


def _front(title: str, description: str) -> str:
    return f"---\ntitle: {_quoted(title)}\ndescription: {_quoted(description.replace('`', ''))}\n---\n\n"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _header(entry: Entry, here: str, catalogue: Catalogue) -> str:
    """Name, year, outcomes and tags; the tags lead to the catalogue."""
    path = href(here, "catalogue.md")
    tags = " ".join(f'<a class="tag" href="{path}?tag={tag}">{tag}</a>' for tag in sorted(entry.tags))
    return (f'<div class="header"><code>{entry.name}</code> <span class="year">{entry.year}</span> '
            f"{badges(catalogue.outcomes(entry.name))}<div>{tags}</div></div>")


def _linked(code: str, here: str, catalogue: Catalogue) -> str:
    """A code span; the name of a method leads to its page."""
    if code not in catalogue:
        return maths.as_code(code)
    return f'<a href="{href(here, source_path(code))}">{maths.as_code(code)}</a>'


def _use(entry: Entry, module: Any, target: Any, text: Any) -> str:
    """How it is imported and called, and what its docstring says beyond the card."""
    has_config = hasattr(module, "Config") and "config" in inspect.signature(target).parameters
    names = ", ".join(sorted({entry.object_name, *(["Config"] if has_config else [])}))
    code = f"from mixwell.{entry.name} import {names}\n\n{_call(entry.object_name, target)}"
    said = inspect.getdoc(target) or ""
    paragraphs = [f"<p>{text(part)}</p>" for part in said.split("\n\n") if part and "the module's card" not in part]
    return "\n\n".join([f"```python\n{code}\n```", *paragraphs])


def _call(name: str, target: Any) -> str:
    """The signature as a call with names and defaults, one parameter a line where it is long."""
    given = [_parameter(p) for p in inspect.signature(target).parameters.values()]
    line = f"{name}({', '.join(given)})"
    return line if len(line) <= 88 else f"{name}(\n" + "".join(f"    {one},\n" for one in given) + ")"


def _parameter(parameter: inspect.Parameter) -> str:
    many = parameter.kind is parameter.VAR_POSITIONAL
    stars = "*" if many else "**" if parameter.kind is parameter.VAR_KEYWORD else ""
    default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
    return f"{stars}{parameter.name}{default}"


def _options(found: list[options.Option], text: Any) -> str:
    if not found:
        return "It has none."
    columns = {"option": [_code(o.name) for o in found], "type": [_code(o.kind) for o in found],
               "default": [_code(o.default) or "required" for o in found],
               "meaning": [text(o.meaning) for o in found]}
    told = {title: cells for title, cells in columns.items() if any(cells)}  # an estimator's docstring says more
    head = "".join(f"<th>{title}</th>" for title in told)
    rows = ("".join(f"<td>{cell}</td>" for cell in row) for row in zip(*told.values()))
    return _table(head, "".join(f"<tr>{row}</tr>" for row in rows), "options")


def _code(text: str) -> str:
    return maths.as_code(text) if text else ""


def _table(head: str, rows: str, kind: str) -> str:
    return (f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead>'
            f"<tbody>{rows}</tbody></table></div>")


def _papers(entry: Entry) -> str:
    if not entry.papers:
        return "Textbook matter."
    return "<ul>" + "".join(f"<li>{html.escape(paper)}</li>" for paper in entry.papers) + "</ul>"


def _neighbours(entry: Entry, here: str, catalogue: Catalogue) -> str:
    """The other methods of the family, which share its contract."""
    others = [other for other in catalogue.members(entry.family) if other.name != entry.name]
    family = f"[{entry.family}]({link(here, source_path(entry.family, index=True))})"
    if not others:
        return f"It stands alone in {family}."
    return f"Of {family}, under the same contract:\n\n{listing(others, here, catalogue)}"


def listing(entries: Sequence[Entry], here: str, catalogue: Catalogue) -> str:
    """Methods as a table: title, name, year, outcomes."""
    head = "<th>method</th><th>name</th><th>year</th><th>claims</th>"
    rows = "".join(f'<tr><td><a href="{href(here, source_path(e.name))}">{html.escape(e.title)}</a></td>'
                   f"<td><code>{e.name.rpartition('.')[2]}</code></td><td>{e.year}</td>"
                   f"<td>{badges(catalogue.outcomes(e.name))}</td></tr>" for e in entries)
    return _table(head, rows, "listing")


def _source(entry: Entry) -> str:
    """The file itself, folded."""
    path = f"src/mixwell/{entry.name.replace('.', '/')}.py"
    lines = entry.path.read_text(encoding="utf-8").splitlines()
    body = "\n".join(f"    {line}".rstrip() for line in lines)
    return f'??? abstract "{path}"\n\n    ```python\n{body}\n    ```'


def group_page(name: str, catalogue: Catalogue) -> str:
    """The page of a room or a family: what it is for, and its methods."""
    here = source_path(name, index=True)
    docstring = importlib.import_module(f"mixwell.{name}").__doc__ or ""
    opening = f'<p class="summary">{maths.prose(docstring)}</p>'
    below, entry_room = catalogue.below(name), name.split(".")[0]
    counts = f"{len(below)} method{'' if len(below) == 1 else 's'}. {_tally(below, catalogue)}"
    parts = [f"# {name}", opening, f"{counts} [All claims of {entry_room}]({link(here, claims_path(entry_room))})."]
    for family in catalogue.families(name):
        members = catalogue.members(family)
        if family != name:
            parts.append(f"## [{family}]({link(here, source_path(family, index=True))})")
            parts.append(f"<p>{maths.prose(importlib.import_module(f'mixwell.{family}').__doc__ or '')}</p>")
        parts.append(listing(members, here, catalogue))
    return _front(name, " ".join(docstring.split())) + "\n\n".join(parts) + "\n"


def claims_path(room: str) -> str:
    """Where the page of a room's claims lies in the site's sources."""
    return f"claims/{room}.md"


def claims_page(room: str, catalogue: Catalogue) -> str:
    """All claims of a room in one table."""
    here, below = claims_path(room), catalogue.below(room)
    head = "<th>outcome</th><th>claim</th><th>effect</th><th>seeds</th>"
    rows = "".join(f"<tr><td>{badges([claim['outcome']])}</td>"
                   f"<td>{maths.prose(claim['claim'])}<br>{_of(entry, here)}</td>"
                   f"<td>{effect(claim)}<br>{maths.prose(claim.get('metric') or '')}</td>"
                   f"<td>{claim.get('seeds') or ''}</td></tr>"
                   for entry in below for claim in catalogue.evidence[entry.name].values())
    opening = (f"{_tally(below, catalogue)} The effect is the method minus the baseline, positive where it favours the "
               f"method, with its standard deviation over seeds. `mixwell claims {room}` repeats them.")
    return (_front(f"Claims: {room}", f"The papers' claims tried in the room {room}")
            + f"# Claims: {room}\n\n{opening}\n\n{_table(head, rows, 'claims')}\n")


def _of(entry: Entry, here: str) -> str:
    return f'<a href="{href(here, source_path(entry.name))}"><code>{entry.name}</code></a>'


def _tally(entries: Sequence[Entry], catalogue: Catalogue) -> str:
    return verdict([claim for entry in entries for claim in catalogue.evidence[entry.name].values()])


def rooms_table(here: str, catalogue: Catalogue) -> str:
    """The rooms with what they are for, how many methods they hold and how their claims came out."""
    head = "<th>room</th><th>what it holds</th><th>methods</th><th>claims</th>"
    rows = []
    for room in catalogue.rooms():
        docstring = importlib.import_module(f"mixwell.{room}").__doc__ or ""
        below = catalogue.below(room)
        path = href(here, source_path(room, index=True))
        rows.append(f'<tr><td><a href="{path}"><code>{room}</code></a></td><td>{maths.prose(docstring)}</td>'
                    f"<td>{len(below)}</td><td>{_tally(below, catalogue)}</td></tr>")
    return _table(head, "".join(rows), "listing")
