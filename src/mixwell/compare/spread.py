"""The stages of many trials as tasks of a pool: each once, as soon as what it reads is there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass
from pathlib import Path

from mixwell.report.records import StageRecord
from mixwell.run import engine
from mixwell.run.engine import Observer, Planned
from mixwell.run.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A stage of a trial, as another process can be told."""

    planned: Planned
    recipe: Recipe
    todo: Sequence[Planned]  # all stages of the trial
    words: str  # what it is called where it goes wrong

    @property
    def folder(self) -> Path:
        """Where the stage ends."""
        return self.planned.folder

    def reads(self) -> set[Path]:
        """The folders that must be there first."""
        ids = set(self.planned.stage.inputs.values())
        if self.planned.evaluation_key:
            ids.add("tokens")
        own = {one.stage.id: one.folder for one in self.todo}
        return {own[id] for id in ids if id in own}


def make(piece: Piece) -> StageRecord:
    """Make the stage, wherever this runs."""
    silent = engine.Silent()
    return engine.finish(piece.planned, piece.recipe, piece.todo, silent)


def made(pieces: Sequence[Piece], pool: Executor, observer: Observer,
         ) -> Iterator[tuple[Piece, StageRecord | BaseException]]:
    """Each stage with its record or what went wrong, in the order in which they end; none is made on a failed one."""
    ahead = {piece.folder: piece for piece in reversed(pieces)}
    there: set[Path] = set()
    running: dict[Future[StageRecord], Piece] = {}
    while True:
        ready = [piece for piece in ahead.values() if not (piece.reads() - there)]
        for piece in reversed(ready):
            del ahead[piece.folder]
            running[pool.submit(make, piece)] = piece
            observer.started(piece.planned)
        if not running:
            return
        finished, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in finished:
            piece = running.pop(future)
            error = future.exception()
            if error is not None:
                yield piece, error
                continue
            record = future.result()
            there.add(piece.folder)
            observer.finished(piece.planned, record)
            yield piece, record
