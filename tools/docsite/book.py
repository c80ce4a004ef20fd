"""The pages that are not written by hand, by their paths; with them the places that hand-written pages leave open."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docsite import catalogue as catalogue_page
from docsite import commands, evidence
from docsite.pages import Catalogue, claims_page, claims_path, group_page, method_page, rooms_table, source_path
from mixwell.core import registry

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "src" / "mixwell" / "run" / "recipes"
COPIED = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md", "log.md": "LOG.md"}


def read() -> Catalogue:
    """The methods of this checkout with their evidence."""
    entries = registry.entries()
    claims = evidence.read(ROOT / "docs" / "evidence")
    return Catalogue(entries, evidence.by_method(claims, [entry.name for entry in entries]))


def pages(catalogue: Catalogue) -> dict[str, str]:
    """Path below the site's sources -> Markdown."""
    groups = [*catalogue.rooms(), *(f for room in catalogue.rooms() for f in catalogue.families(room) if f != room)]
    made = {source_path(entry.name): method_page(entry, catalogue) for entry in catalogue.entries}
    made |= {source_path(name, index=True): group_page(name, catalogue) for name in groups}
    made |= {path: _moved((ROOT / name).read_text(encoding="utf-8")) for path, name in COPIED.items()}
    made |= {claims_path(room): claims_page(room, catalogue) for room in catalogue.rooms()}
    return made | {"catalogue.md": catalogue_page.page(catalogue), "cli.md": commands.page()}


def filled(text: str, path: str, catalogue: Catalogue) -> str:
    """A hand-written page with what the checkout knows in the places left open: `<!-- rooms -->` and the like."""
    makers = {"rooms": lambda: rooms_table(path, catalogue), "figures": _figures, "recipes": _recipes,
              "examples": _examples}
    return re.sub(r"<!-- (rooms|figures|recipes|examples) -->", lambda found: makers[found[1]](), text)


def _figures() -> str:
    """What was measured, as the README has it."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- figures -->(.*)<!-- /figures -->", readme, re.DOTALL)
    if found is None:
        raise ValueError("README.md has no figures between its marks")
    return _moved(found[1].strip())


def _recipes() -> str:
    parts = [f"## {path.stem}\n\n```yaml\n{path.read_text(encoding='utf-8').strip()}\n```"
             for path in sorted(RECIPES.glob("*.yaml"))]
    return "\n\n".join(parts)


def _examples() -> str:
    return "\n\n".join(_example(path) for path in sorted((ROOT / "examples").glob("*.py")))


def _example(path: Path) -> str:
    text = path.read_text(encoding="utf-8").strip()
    return f"## {path.stem.replace('_', ' ')}\n\n`python examples/{path.name}`\n\n```python\n{text}\n```"


def _moved(text: str) -> str:
    """Links of a file in the checkout's root as links between pages; those to other files become their names."""

    def one(found: re.Match[str]) -> str:
        words, target = found[1], found[2]
        copies = {name: path for path, name in COPIED.items()}
        if target in copies:
            return f"[{words}]({copies[target]})"
        if evidence_of := re.fullmatch(r"docs/evidence/(\w+)\.md", target):
            return f"[{words}]({claims_path(evidence_of[1])})"
        if target.startswith("docs/") and (ROOT / target).is_file():
            return f"[{words}]({target.removeprefix('docs/')})"
        return found[0] if target.startswith(("http", "#")) else f"{words} (`{target}`)"

    return re.sub(r"\[([^\]]+)\]\(([^)\s]+)\)", one, text)


def claims_navigation(catalogue: Catalogue) -> list[str]:
    """The rooms' pages of claims."""
    return [claims_path(room) for room in catalogue.rooms()]


def navigation(catalogue: Catalogue) -> list[dict[str, Any]]:
    """The methods' part of the site's navigation: rooms, families, methods."""
    return [{room: _below(room, catalogue)} for room in catalogue.rooms()]


def _below(room: str, catalogue: Catalogue) -> list[Any]:
    items: list[Any] = [source_path(room, index=True)]
    for family in catalogue.families(room):
        methods = [{entry.title: source_path(entry.name)} for entry in catalogue.members(family)]
        if family == room:
            items += methods
        else:
            items.append({family.rpartition(".")[2]: [source_path(family, index=True), *methods]})
    return items
