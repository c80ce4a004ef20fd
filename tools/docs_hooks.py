"""Hooks of the site's builder: they add the generated pages to the hand-written ones of docs/."""

from __future__ import annotations

from typing import Any

from mkdocs.structure.files import File, Files

from docsite import book

CATALOGUE = book.read()


def on_files(files: Files, config: Any) -> Files:
    """Add a page for every method, family, room and command, and their parts of the navigation."""
    for path, text in book.made(CATALOGUE).items():
        files.append(File.generated(config, path, content=text))
    made = book.navigation(CATALOGUE)
    for part in config.nav:
        part.update({title: made[title] for title in part if title in made})
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Fill the places that a hand-written page leaves open."""
    return book.filled(markdown, page.file.src_uri, CATALOGUE)
