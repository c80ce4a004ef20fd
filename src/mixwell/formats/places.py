"""Files of a folder that somebody handed in: what they are and where they lie, before they are read."""

from __future__ import annotations

import os
from pathlib import Path

from mixwell.core.errors import MixwellError
from mixwell.core.files import check_regular


def held(folder: Path, name: str) -> Path | None:
    """The path of a regular file in `folder`, or None where nothing stands under the name.

    A link that leaves the folder would carry any file of this machine along into what is written next; it raises
    `MixwellError`, and so does what is no regular file. The Hub's own cache is made of such links (from
    `snapshots/<revision>/` into the `blobs/` beside it), and they are followed.
    """
    path = folder / name
    try:
        if not os.path.lexists(path):
            return None
        found = path.stat()
    except OSError as error:
        raise MixwellError(f"{path} cannot be read: {error.strerror}.") from error
    check_regular(path, found)
    home, target = folder.resolve(), path.resolve()
    if not (target.is_relative_to(home) or _is_blob(home, target)):
        raise MixwellError(f"{path} is a link to {target}, outside the folder; put the file itself there.")
    return path


def _is_blob(home: Path, target: Path) -> bool:
    """Whether a link out of the folder is one of the Hub's cache."""
    blobs = home.parent.parent / "blobs"
    return home.parent.name == "snapshots" and target.parent == blobs
