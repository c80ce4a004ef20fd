"""Where a run stands that has not written its record: what goes on in its folder, and what is finished there."""

from __future__ import annotations

from pathlib import Path

from mixwell.core.errors import MixwellError
from mixwell.report import records
from mixwell.run import lock
from mixwell.run.paths import WORK, stage_folders


def unfinished(run: Path) -> str:
    """What there is of a run that has no run.json yet, in a line; "" where it has one, or is no run."""
    if (run / records.RUN).is_file() or not (run / "stages").is_dir():
        return ""
    there = finished(run)
    listed = f"{len(there)} stages are finished ({', '.join(there)})" if there else "no stage is finished"
    working = [_id(path) for path in _works(run)]
    more = f", {', '.join(working)} begun" if working else ""
    return f"{run} {_state(run)}; {listed}{more}"


def under_way(run: Path) -> str:
    """Who works in a run's folder now, in words; "" where nobody does."""
    return _state(run) if lock.held(run) else ""


def _state(run: Path) -> str:
    if not lock.held(run):
        return "was stopped before its report; the same command goes on"
    holder = lock.signed(run)
    if holder is None:
        return "is under way"
    return f"is under way (process {holder.process}, for {holder.age} now), its report comes last"


def finished(run: Path) -> list[str]:
    """Ids of the stages that are there, those first that were made first."""
    found = []
    for folder in stage_folders(run):
        path = folder / records.STAGE
        try:
            record = records.read_stage(folder)
        except (MixwellError, OSError):
            continue
        found.append((path.stat().st_mtime_ns, record.id))
    return [id for _, id in sorted(found)]


def _works(run: Path) -> list[Path]:
    place = run / "stages"
    return sorted(path for path in place.iterdir() if path.name.startswith(WORK))


def _id(work: Path) -> str:
    return work.name.removeprefix(WORK).rpartition("-")[0]
