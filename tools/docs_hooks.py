"""Hooks of the site's builder: they add the generated pages to the hand-written ones of docs/."""

from __future__ import annotations

from typing import Any

from mkdocs.structure.files import File, Files

from docsite import book

CATALOGUE = book.read()


def on_files(files: Files, config: Any) -> Files:
    """Add a page for every method, family, room and command, and put the methods into the navigation."""
    for path, text in book.pages(CATALOGUE).items():
        files.append(File.generated(config, path, content=text))
    for item in config.nav:
        if isinstance(item, dict) and "Methods" in item:
            item["Methods"] = ["catalogue.md", *book.navigation(CATALOGUE)]
        elif isinstance(item, dict) and "Claims" in item:
            item["Claims"] = book.claims_navigation(CATALOGUE)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Fill the places that a hand-written page leaves open."""
    return book.filled(markdown, page.file.src_uri, CATALOGUE)
