"""Where a model lies that a user names: a model folder, a stage's folder, or `RUN:STAGE` such as `runs/mine:moe`.

RUN is the folder of a run, or the bare name of one below `runs`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mixwell.core.errors import MixwellError, suggest
from mixwell.lm.folder import BESIDE, is_adapter
from mixwell.lm.gguf.header import is_gguf
from mixwell.lm.hub import cache_folder, hub_model, is_model_id
from mixwell.report.records import RUN, STAGE, listed_stages, read_stage

if TYPE_CHECKING:
    import torch

    from mixwell.lm.model import LanguageModel

RUNS = Path("runs")  # where runs lie unless told otherwise
WORK = ".work-"  # how the folder begins in which a stage that is not finished keeps what it needs to go on


def load(path: str | Path, dtype: torch.dtype | str = "auto", *,
         adapter: str | Path | None = None) -> LanguageModel:
    """The language model in a model folder, in a stage's folder, of a run's stage (`runs/mine:moe`), in a GGUF file, or
    of an id such as Qwen/Qwen3-0.6B whose model lies in the local Hugging Face cache.

    `mixwell.lm.model.load` says what is read and what `dtype` may be. A name that leads to no model raises
    `MixwellError` with the nearest one. adapter: one to put beside it, see `find_adapter`.
    """
    from mixwell.lm import model

    found = model.load(find_model(path), dtype)
    if adapter is not None:
        from mixwell.lm.adapted import put

        put(find_adapter(adapter), found)
    return found


def find_model(name: str | Path) -> Path:
    """The model folder or GGUF file that `name` means; what leads to none raises `MixwellError` with the nearest."""
    path = Path(name).expanduser()
    if not path.exists() and ":" in path.name:
        run, _, stage = str(path).rpartition(":")
        return stage_model(find_stage(find_run(run), stage))
    if (path / STAGE).is_file():
        return stage_model(path)
    if path.is_dir() and _is_run(path):
        known = _listed(f"{path}:{id}" for id in models(path))
        raise MixwellError(f"{path} is a run; name one of its stages: {known}.")
    if is_gguf(path):
        return path
    if not path.is_dir():
        cached = hub_model(str(name))
        if cached is not None:
            return cached
        near = suggest(path.name, _names(path.parent))
        elsewhere = ""
        if is_model_id(str(name)):
            elsewhere = f" No such model lies in {cache_folder()} either; --download fetches it."
        raise MixwellError(f"{path} is not a folder.{near} Expected a model folder, a GGUF file, a stage's folder, or "
                           f"a run's stage such as {RUNS}/NAME:STAGE.{elsewhere}")
    return path


def find_adapter(name: str | Path) -> Path:
    """The folder of an adapter that `name` means: one of mixwell's or PEFT's form, a stage's folder, or `RUN:STAGE`."""
    path = Path(name).expanduser()
    if not path.exists() and ":" in path.name:
        run, _, stage = str(path).rpartition(":")
        path = find_stage(find_run(run), stage)
    inside = path / BESIDE
    found = inside if inside.is_dir() else path
    if not found.is_dir():
        raise MixwellError(f"{path} is not a folder.{suggest(path.name, _names(path.parent))} Expected an adapter's "
                           f"folder, or a run's stage that adapts, such as {RUNS}/NAME:STAGE.")
    if not is_adapter(found):
        raise MixwellError(f"{found} holds no adapter; expected adapter.json (mixwell) or adapter_config.json (PEFT).")
    return found


def find_run(name: str | Path) -> Path:
    """The folder of a run, given by its path or by its name below `runs`. Raises `MixwellError` where there is none."""
    given = Path(name).expanduser()
    for path in (given, RUNS / given):
        if path.is_dir() and _is_run(path):
            return path
    known = [p.name for p in _folders(RUNS) if _is_run(p)]
    near = suggest(given.name, [*known, *_names(given.parent)])
    listed = f" Runs here: {', '.join(sorted(known))}." if known else ""
    raise MixwellError(f"{given} is no folder of a run.{near}{listed}")


def find_stage(run: Path, id: str) -> Path:
    """The folder of the stage `id` of a run: the one that its record names, else the only one there.

    Raises `MixwellError` where there is none, or more than one.
    """
    found = stages(run)
    if id not in found:
        raise MixwellError(f"{run} has no stage {id!r}.{suggest(id, found)} Stages with a model: "
                           f"{_listed(models(run))}.")
    if len(found[id]) > 1:
        raise MixwellError(f"{run} has {len(found[id])} stages {id!r}; name the folder of one: "
                           f"{_listed(map(str, found[id]))}.")
    return found[id][0]


def stages(run: Path) -> dict[str, list[Path]]:
    """Stage id -> the folders of that id, in the order of the run; one alone where the run's record names it."""
    recorded = {id: [folder] for id, folder in _recorded(run)}
    found: dict[str, list[Path]] = {}
    for folder in stage_folders(run):
        if (folder / STAGE).is_file():
            found.setdefault(folder.name.rpartition("-")[0], []).append(folder)
    return recorded | {id: folders for id, folders in found.items() if id not in recorded}


def models(run: Path) -> list[str]:
    """Ids of the stages of a run that made a model."""
    found = stages(run)
    return [id for id, folders in found.items() if any(map(_holds_model, folders))]


def _holds_model(stage: Path) -> bool:
    return _model_of(stage).exists()


def stage_model(folder: Path) -> Path:
    """The model folder of a finished stage; a loaded model stays where it was. A stage without one raises."""
    model = _model_of(folder)
    if not model.exists():
        raise MixwellError(f"{folder} holds no model; expected a stage that made one.")
    return model


def _model_of(stage: Path) -> Path:
    """Where the model of a stage lies; in its own folder where it is no stage that makes one."""
    return read_stage(stage).model_folder or stage / "model"


def _is_run(path: Path) -> bool:
    return (path / RUN).is_file() or (path / "stages").is_dir()


def _recorded(run: Path) -> Iterable[tuple[str, Path]]:
    """(id, folder) of the stages that the run's record names and that are there."""
    if not (run / RUN).is_file():
        return
    for entry in listed_stages(run):
        folder = run / entry.folder
        if (folder / STAGE).is_file():
            yield entry.id, Path(os.path.normpath(folder))


def stage_folders(run: Path) -> list[Path]:
    """Folders of the stages of a run, those left out that are not finished."""
    return _folders(run / "stages")


def work_folder(stage: Path) -> Path:
    """Where the stage of the folder `stage` works until it is finished."""
    return stage.with_name(WORK + stage.name)


def _folders(parent: Path) -> list[Path]:
    if not parent.is_dir():
        return []
    return sorted(p for p in parent.iterdir() if p.is_dir() and not p.name.startswith("."))


def _names(parent: Path) -> list[str]:
    return [p.name for p in _folders(parent)]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
