"""JSON files that show whether they are as they were written: their last entry is a digest of all the others.

A digest tells damage, not malice: who edits a figure on purpose can write its digest as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixwell.core.errors import MixwellError
from mixwell.core.files import digest, read_json, write_text

SEAL = "digest"


def write(path: str | Path, content: Mapping[str, Any]) -> Path:
    """Write `content` and its digest as JSON, atomically. Not-a-number has no place in JSON and raises ValueError."""
    return write_text(path, text(content))


def text(content: Mapping[str, Any]) -> str:
    """What `write` writes."""
    plain = _text(content)
    seal = digest(plain.encode())
    return _text({**content, SEAL: seal})


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read(path: str | Path, remedy: str) -> dict[str, Any]:
    """The content of a file that `write` wrote.

    A file that is missing or no JSON raises `MixwellError`, and so does one that has no digest or is not as it was
    written; the message then ends in `remedy`.
    """
    path = Path(path)
    found = read_json(path)
    if not isinstance(found, dict) or SEAL not in found:
        came = "no digest" if isinstance(found, dict) else type(found).__name__
        raise MixwellError(f"{path} is damaged or another version's: it holds {came}, expected keys and values with "
                           f"their digest; {remedy}.")
    content = {name: value for name, value in found.items() if name != SEAL}
    if not _is_written(path, content):
        raise MixwellError(f"{path} is not as it was written: its digest is another; {remedy}.")
    return content


def _is_written(path: Path, content: Mapping[str, Any]) -> bool:
    """Whether the file's bytes are the ones that `write` makes of its content."""
    try:
        expected = text(content).encode()
    except (ValueError, RecursionError):  # not-a-number, half a surrogate
        return False
    return path.read_bytes() == expected
