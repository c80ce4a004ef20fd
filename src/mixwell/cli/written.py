"""Files that a command writes beside what it prints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console


def check_writable(*paths: Path | None) -> None:
    """Raise `MixwellError` for what cannot be written, before the work and not after it."""
    from mixwell.report.targets import check_file

    for path in paths:
        if path is not None:
            check_file(path)


def written(console: Console, path: Path, content: Mapping[str, Any] | str) -> None:
    """Write text as it is and data as JSON, and say where."""
    from mixwell.core import files

    if isinstance(content, str):
        files.write_text(path, content)
    else:
        files.write_json(path, content)
    console.print(f"written: {path}", soft_wrap=True)
