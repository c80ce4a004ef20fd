"""The pages that are not written by hand, by their paths, and what hand-written pages leave open."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from docsite import commands, evidence, pages
from docsite.catalogue import Catalogue, claims_path, group_path, source_path
from mixwell.core import registry

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "src" / "mixwell" / "run" / "recipes"
COPIED = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "LOG.md": "log.md"}
OPEN = re.compile(r"<!-- (rooms|figures|recipes|examples) -->")
LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")


def read() -> Catalogue:
    """The methods of this checkout with their evidence."""
    entries = registry.entries()
    claims = evidence.read(ROOT / "docs" / "evidence")
    names = [entry.name for entry in entries]
    return Catalogue(entries, evidence.by_method(claims, names))


def made(catalogue: Catalogue) -> dict[str, str]:
    """Path below the site's sources -> Markdown."""
    methods = {source_path(entry.name): pages.method_page(entry, catalogue) for entry in catalogue.entries}
    groups = {group_path(name): pages.group_page(name, catalogue) for name in catalogue.groups()}
    claims = {claims_path(room): pages.claims_page(room, catalogue) for room in catalogue.rooms()}
    copies = {path: moved(_text(ROOT / name)) for name, path in COPIED.items()}
    single = {pages.CATALOGUE: pages.catalogue_page(catalogue), "cli.md": commands.page()}
    return methods | groups | claims | copies | single


def filled(text: str, path: str, catalogue: Catalogue) -> str:
    """A hand-written page with what the checkout knows in the places left open: `<!-- rooms -->` and the like."""
    makers: dict[str, Callable[[], str]] = {
        "rooms": lambda: pages.rooms_table(path, catalogue), "figures": _figures, "recipes": _recipes,
        "examples": _examples}
    return OPEN.sub(lambda found: makers[found[1]](), text)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip()


def _figures() -> str:
    """What was measured, as the README has it."""
    found = re.search(r"<!-- figures -->(.*)<!-- /figures -->", _text(ROOT / "README.md"), re.DOTALL)
    if found is None:
        raise ValueError("README.md has no figures between its marks")
    return moved(found[1].strip())


def _recipes() -> str:
    files = sorted(RECIPES.glob("*.yaml"))
    return "\n\n".join(f"## {path.stem}\n\n```yaml\n{_text(path)}\n```" for path in files)


def _examples() -> str:
    files = sorted((ROOT / "examples").glob("*.py"))
    return "\n\n".join(map(_example, files))


def _example(path: Path) -> str:
    title = path.stem.replace("_", " ")
    command = f"`python examples/{path.name}`"
    return f"## {title}\n\n{command}\n\n```python\n{_text(path)}\n```"


def moved(text: str) -> str:
    """Links of a file in the checkout's root as links between pages; those to files without a page become names."""
    return LINK.sub(lambda found: _link(found[1], found[2]), text)


def _link(words: str, target: str) -> str:
    room = re.fullmatch(r"docs/evidence/(\w+)\.md", target)
    if target.startswith(("http", "#")):
        path = target
    elif target in COPIED:
        path = COPIED[target]
    elif room:
        path = claims_path(room[1])
    elif target.startswith("docs/") and (ROOT / target).is_file():
        path = target.removeprefix("docs/")
    else:
        return f"{words} (`{target}`)"
    return f"[{words}]({path})"


def navigation(catalogue: Catalogue) -> dict[str, list[Any]]:
    """The parts of the site's navigation that are made: the methods by room and family, the claims by room."""
    rooms = [{room: _below(room, catalogue)} for room in catalogue.rooms()]
    claims: list[Any] = [claims_path(room) for room in catalogue.rooms()]
    return {"Methods": [pages.CATALOGUE, *rooms], "Claims": claims}


def _below(room: str, catalogue: Catalogue) -> list[Any]:
    items: list[Any] = [group_path(room)]
    for family in catalogue.families(room):
        methods: list[Any] = [{entry.title: source_path(entry.name)} for entry in catalogue.members(family)]
        title = family.rpartition(".")[2]
        items += methods if family == room else [{title: [group_path(family), *methods]}]
    return items
