"""What the pages show: of a method, of a room or a family, of a room's claims, of the whole catalogue."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from markupsafe import Markup

from docsite import cards, maths, options, trials
from docsite.catalogue import Catalogue, claims_path, group_path, href, link, source_path
from docsite.rendering import render
from mixwell.claims import pages as tables
from mixwell.core.registry import Entry

WIDTH = 88  # of code that fits into a page
CATALOGUE = "catalogue.md"


def method_page(entry: Entry, catalogue: Catalogue) -> str:
    """A method's page as Markdown."""
    here = source_path(entry.name)
    card = cards.parse(entry.card_text(), entry.name)
    family = group_path(entry.family)
    neighbours = [other for other in catalogue.members(entry.family) if other != entry]

    def text(words: str) -> Markup:
        return maths.prose(words, lambda code: _linked(code, here, catalogue))

    return render(
        "method", title=entry.title, name=entry.name, description=card.summary.replace("`", ""), year=entry.year,
        tags=sorted(entry.tags), outcomes=catalogue.outcomes(entry.name), catalogue=href(here, CATALOGUE),
        summary=text(card.summary), more=text(card.more), equation=maths.equation(card.sections["Equation"]),
        sections={name: text(words) for name, words in card.sections.items()}, papers=entry.papers,
        claims=[trials.shown(name, claim) for name, claim in catalogue.evidence[entry.name].items()],
        family=entry.family, family_link=link(here, family), neighbours=_listed(neighbours, here, catalogue),
        path=f"src/mixwell/{entry.name.replace('.', '/')}.py", source=Markup(entry.path.read_text(encoding="utf-8")),
        **_use(entry, text))


def _linked(code: str, here: str, catalogue: Catalogue) -> Markup:
    """A code span; the name of a method leads to its page."""
    shown = maths.as_code(code)
    if code not in catalogue:
        return shown
    return Markup('<a href="{}">{}</a>').format(href(here, source_path(code)), shown)


def _use(entry: Entry, text: Callable[[str], Markup]) -> dict[str, Any]:
    """How a method is imported and called, what its docstring says beyond the card, and its options."""
    module, target = entry.module(), entry.load()
    parameters = inspect.signature(target).parameters
    names = {entry.object_name, "Config"} if "config" in parameters else {entry.object_name}
    found = options.of(module, target)
    return {"imports": ", ".join(sorted(names)), "call": Markup(_call(entry.object_name, target)),
            "said": [text(part) for part in _beyond_the_card(target)],
            "options": [{**vars(option), "meaning": text(option.meaning)} for option in found],
            "explained": any(option.meaning for option in found)}


def _beyond_the_card(target: Any) -> list[str]:
    """Paragraphs of an object's docstring, without the remark that the card says the rest."""
    paragraphs = (inspect.getdoc(target) or "").split("\n\n")
    return [part for part in paragraphs if part and "the module's card" not in part]


def _call(name: str, target: Any) -> str:
    """The signature as a call with names and defaults, one parameter a line where it is long."""
    given = list(map(_parameter, inspect.signature(target).parameters.values()))
    line = f"{name}({', '.join(given)})"
    if len(line) <= WIDTH:
        return line
    lines = [f"    {one}," for one in given]
    return "\n".join([f"{name}(", *lines, ")"])


def _parameter(parameter: inspect.Parameter) -> str:
    """`*rows`, `k=2`, `dim`."""
    plain = str(parameter.replace(annotation=parameter.empty))
    return plain.replace(" = ", "=")


def _listed(entries: list[Entry], here: str, catalogue: Catalogue) -> list[dict[str, Any]]:
    """Methods as tables show them."""
    return [{"title": entry.title, "href": href(here, source_path(entry.name)), "year": entry.year,
             "short": entry.name.rpartition(".")[2], "outcomes": catalogue.outcomes(entry.name)} for entry in entries]


def _opening(name: str) -> str:
    """What a room or a family says of itself."""
    docstring = importlib.import_module(f"mixwell.{name}").__doc__ or ""
    return " ".join(docstring.split())


def group_page(name: str, catalogue: Catalogue) -> str:
    """The page of a room or a family: what it is for, and its methods."""
    here, opening = group_path(name), _opening(name)
    room = name.split(".")[0]
    families = [{"name": family, "opening": maths.prose(_opening(family)),
                 "link": "" if family == name else link(here, group_path(family)),
                 "methods": _listed(catalogue.members(family), here, catalogue)} for family in catalogue.families(name)]
    return render("group", name=name, description=opening, opening=maths.prose(opening), families=families, room=room,
                  count=len(catalogue.below(name)), tally=trials.verdict(catalogue.claims(name)),
                  claims_link=link(here, claims_path(room)))


def claims_page(room: str, catalogue: Catalogue) -> str:
    """All claims of a room in one table."""
    here = claims_path(room)
    rows = [{"method": entry.name, "href": href(here, source_path(entry.name)), **_in_short(claim)}
            for entry in catalogue.below(room) for claim in catalogue.evidence[entry.name].values()]
    return render("claims", room=room, tally=trials.verdict(catalogue.claims(room)), claims=rows,
                  rule=maths.prose(tables.rule()))


def _in_short(claim: Any) -> dict[str, Any]:
    told = dict.fromkeys(trials.FACTS, "") | trials.facts(claim)
    return {"outcome": claim["outcome"], "words": maths.prose(claim["claim"]), "facts": told}


def rooms_table(here: str, catalogue: Catalogue) -> str:
    """The rooms with what they are for, how many methods they hold and how their claims came out."""
    rooms = [{"name": room, "href": href(here, group_path(room)), "opening": maths.prose(_opening(room)),
              "count": len(catalogue.below(room)), "tally": trials.verdict(catalogue.claims(room))}
             for room in catalogue.rooms()]
    return render("rooms", rooms=rooms)


def catalogue_page(catalogue: Catalogue) -> str:
    """Every method in one table; `assets/catalogue.js` narrows it by room, tag, outcome and words."""
    methods = [_row(entry, catalogue) for entry in catalogue.entries]
    choices = {"room": catalogue.rooms(), "tag": _every(methods, "tags"), "outcome": _every(methods, "outcomes")}
    return render("catalogue", methods=methods, choices=choices)


def _every(methods: list[dict[str, Any]], key: str) -> list[str]:
    return sorted({value for method in methods for value in method[key]})


def _row(entry: Entry, catalogue: Catalogue) -> dict[str, Any]:
    words = " ".join((entry.title, entry.name, *entry.papers))
    breakable = entry.name.replace(".", ".<wbr>").replace("_", "_<wbr>")
    return {"title": entry.title, "href": href(CATALOGUE, source_path(entry.name)), "room": entry.room,
            "year": entry.year, "tags": sorted(entry.tags), "outcomes": catalogue.outcomes(entry.name),
            "words": words.lower(), "breakable": Markup(breakable)}
