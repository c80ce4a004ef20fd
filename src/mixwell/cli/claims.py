"""`mixwell claims`: the papers' claims, tried on this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from mixwell.cli.errors import FAILED, one_line, tell
from mixwell.cli.pools import RAY, pool_of
from mixwell.report.targets import check_file

if TYPE_CHECKING:
    from mixwell.claims.evidence import Entry
    from mixwell.claims.record import Task
    from mixwell.claims.running import Effort
    from mixwell.claims.work import Done

STYLES = {"held": "green", "contradicted": "red", "undecided": "yellow", "not testable here": "blue",
          "to be run": "dim"}
EVIDENCE = Path("docs") / "evidence"
README = Path("README.md")


@one_line
def claims(names: Annotated[list[str] | None, typer.Argument(
               help="Rooms, families, methods, such as experts or experts.routers.hash.  [default: all]")] = None,
           save: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the evidence.")] = EVIDENCE,
           minutes: Annotated[float | None, typer.Option(help="Start nothing more after so long.", min=0)] = None,
           jobs: Annotated[int | None, typer.Option(help="Seeds at a time.  [default: one a core]", min=1)] = None,
           ray: Annotated[str | None, RAY] = None,
           only_list: Annotated[bool, typer.Option("--list", help="Only list the claims and how they stand.")] = False,
           only_write: Annotated[bool, typer.Option(
               "--write", help="Only write the tables of DIR and of README.md from the evidence.")] = False) -> None:
    """Try papers' claims on paired seeds: held, contradicted, undecided, or not testable here.

    A claim is tried on 8 seeds and on more, 32 at most, until an interval decides it; on both sides settings are chosen
    before, on a seed of their own. What was tried is kept in DIR/NAME.json seed by seed: the same command goes on where
    it stopped, and tries anew what an older source was tried with.

    **Examples**

    `mixwell claims experts --minutes 30` · a room, for half an hour

    `mixwell claims experts.routers.hash --jobs 4` · one claim, four seeds at a time
    """
    from mixwell import claims as files
    from mixwell.claims import evidence, pages, running
    from mixwell.core import machine

    console = Console(highlight=False)
    if only_write:
        for path in pages.write(save, README):
            console.print(f"written: {path}", markup=False, soft_wrap=True)
        _tell_stale(console, evidence.stale(evidence.read(save)))
        return
    chosen = running.efforts(files.chosen(names or []), save)
    if only_list:
        _listed(console, chosen, evidence.stale(evidence.read(save)))
        return
    check_file(save / "x.json")
    started = time.monotonic()
    until = float("inf") if minutes is None else started + 60 * minutes
    with pool_of(ray, console) as pool:
        workers = jobs or (machine.physical_cores() if pool is None else pool.size)
        with Seen(console, chosen, workers) as seen:
            running.run(chosen, save, jobs=workers, until=until, report=seen, pool=pool)
    _ended(console, chosen, time.monotonic() - started, save)


def _listed(console: Console, chosen: list[Effort], stale: Mapping[str, Entry]) -> None:
    width = max(len(one.name) for one in chosen)
    old = {one.name: stale[one.name] for one in chosen if one.name in stale}
    for one in chosen:
        seeds = one.record.seeds
        counted = f"{seeds} seeds" if seeds else ""
        if one.name in old:
            counted = f"{old[one.name]['outcome']} with an older source"
        line = f"{one.name:<{width}}  {one.record.judged['outcome']:<17}  {counted}"
        console.print(line.rstrip(), markup=False, soft_wrap=True)
    _tell_stale(console, old)


def _tell_stale(console: Console, stale: Mapping[str, Entry]) -> None:
    """That the evidence on disk, and tables of it, tell what an older source came to."""
    from mixwell.core import units

    if stale:
        counted = units.counted(len(stale), "outcome is", "outcomes are")
        console.print(f"{counted} of an older source and will be tried anew: {', '.join(stale)}", markup=False,
                      soft_wrap=True)


def _ended(console: Console, chosen: list[Effort], took: float, save: Path) -> None:
    """How it stands, how long it took, and an error where claims broke."""
    from mixwell.claims import pages
    from mixwell.core import units

    standing = [one.record.judged["outcome"] for one in chosen if not one.broken]
    console.print(f"{pages.tally(standing)} Took {units.seconds(took)}. Kept in {save}; `mixwell claims --write` makes "
                  "the tables.", markup=False, soft_wrap=True)
    open_still = [one.name for one in chosen if not one.done]
    if open_still:
        console.print(f"{len(open_still)} of {len(chosen)} are not finished; the same command goes on.", soft_wrap=True)
    broken = [one.name for one in chosen if one.broken]
    if broken:
        tell(f"error: {len(broken)} of {len(chosen)} claims broke: {', '.join(broken)}", FAILED)


class Seen:
    """What the terminal shows while claims are tried: a bar with the time left, and a line for each that is done."""

    def __init__(self, console: Console, chosen: list[Effort], jobs: int) -> None:
        self.console, self.chosen, self.jobs = console, chosen, jobs
        self.width = max(len(one.name) for one in chosen)
        self.slow: set[str] = set()
        self.bar = Progress(TextColumn("claims"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[about]}"),
                            console=console, transient=True)
        self.task = self.bar.add_task("claims", total=len(chosen), about="")

    def __enter__(self) -> Seen:
        for one in self.chosen:
            if one.done:
                self._say(one)
        self._move("")
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def __call__(self, effort: Effort, task: Task, done: Done) -> None:
        """Hear of a task that ended."""
        from mixwell.claims.running import BUDGET_S
        from mixwell.core import units

        if not task.side and done.seconds > BUDGET_S and effort.name not in self.slow:
            self.slow.add(effort.name)
            note = f"a seed took {units.seconds(done.seconds)}; its budget is {units.seconds(BUDGET_S)}"
            self.console.print(f"{effort.name:<{self.width}}  {note}", markup=False, soft_wrap=True)
        if effort.done:
            self._say(effort)
        what = f"a setting of the {task.side}" if task.side else f"seed {task.seed}"
        self._move(f"{effort.name}, {what}")

    def _move(self, last: str) -> None:
        done = sum(one.done for one in self.chosen)
        about = " · ".join(part for part in (last, self._left()) if part)
        self.bar.update(self.task, completed=done, about=about)

    def _left(self) -> str:
        from mixwell.claims.rule import LOOKS
        from mixwell.claims.running import seconds_left
        from mixwell.core import units

        least = seconds_left(self.chosen, self.jobs)
        most = seconds_left(self.chosen, self.jobs, looks=LOOKS[-1])
        if least is None or most is None:
            return ""
        return f"{units.seconds(least)} to {units.seconds(most)} left"

    def _say(self, effort: Effort) -> None:
        if effort.broken:
            self.console.print(f"{effort.name:<{self.width}}  [red]broken[/red]", end="  ", soft_wrap=True)
            self.console.print(effort.broken, markup=False, soft_wrap=True)
            return
        show(self.console, effort.name, effort.entry(), self.width)


def show(console: Console, name: str, found: dict[str, Any], width: int) -> None:
    """One outcome: a line with the gain, one with the claim, one with the note where there is one."""
    from mixwell.claims import pages
    from mixwell.core import units

    style = STYLES[found["outcome"]]
    seeds = f"{found['seeds']} seeds" if found["seeds"] else ""
    facts = (pages.gain(found), found["metric"], seeds, units.seconds(found.get("seconds")))
    measured = " · ".join(fact for fact in facts if fact)
    console.print(f"{name:<{width}}  [{style}]{found['outcome']:<17}[/{style}]", end="  ", soft_wrap=True)
    console.print(measured, markup=False, soft_wrap=True)
    for text in (found["claim"], found["note"]):
        if text:
            console.print(f"{'':<{width}}  {text}", markup=False, style="dim", soft_wrap=True)
