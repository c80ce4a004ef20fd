"""Models of the Hugging Face hub by their ids: from the local cache, or downloaded into it where that was allowed."""

from __future__ import annotations

import os
import re
from contextvars import ContextVar
from pathlib import Path

from mixwell.core.errors import MixwellError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")  # what a model folder is read from
_allowed: ContextVar[bool] = ContextVar("downloads", default=False)


def allow_downloads(allowed: bool = True) -> None:
    """Let `hub_model` download what the cache lacks, from now on."""
    _allowed.set(allowed)


def is_model_id(name: str) -> bool:
    """Whether `name` looks like OWNER/NAME, and no folder OWNER lies here."""
    owner, _, _ = name.partition("/")
    return bool(_ID.fullmatch(name)) and not Path(owner).exists()


def hub_model(name: str) -> Path | None:
    """The folder of a model in the local cache, None where it is not there.

    Where downloads are allowed it is fetched; what hinders that raises `MixwellError`.
    """
    if not is_model_id(name):
        return None
    found = _snapshot(name)
    if found is None and _allowed.get():
        return _download(name)
    return found


def cache_folder() -> Path:
    """Where the cache lies: HF_HUB_CACHE, else `hub` below HF_HOME, else below ~/.cache/huggingface."""
    given = os.environ.get("HF_HUB_CACHE")
    if given:
        return Path(given).expanduser()
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    return Path(home).expanduser() / "hub"


def _snapshot(name: str) -> Path | None:
    """The folder of the revision that the cache calls main, or of the only one there."""
    repository = cache_folder() / f"models--{name.replace('/', '--')}"
    main, snapshots = repository / "refs" / "main", repository / "snapshots"
    if main.is_file():
        revisions = [main.read_text().strip()]
    else:
        revisions = [path.name for path in snapshots.glob("*")]
    if len(revisions) != 1:
        return None
    folder = snapshots / revisions[0]
    return folder if (folder / "config.json").exists() else None


def _download(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MixwellError("--download needs the package huggingface-hub; install mixwell[hub].") from error
    try:
        return Path(snapshot_download(name, allow_patterns=list(_FILES)))
    except Exception as error:  # the library raises many kinds: no such model, no network, no permission
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise MixwellError(f"{name} could not be downloaded: {first}") from error
