"""The commands that compute: `run`, `apply`, `report`, `verify`."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from mixwell.cli import completion
from mixwell.cli.download import DOWNLOAD
from mixwell.cli.errors import FAILED, STOPPED, one_line, tell
from mixwell.cli.merged import are_adapters, show_merged
from mixwell.core.errors import MixwellError

if TYPE_CHECKING:
    from mixwell.run.engine import Planned

RECIPE = typer.Argument(help="Recipe file (YAML). Left out: the default recipe. Entries such as `train.lr=1e-3` or "
                             "`stages.dense.train.tokens=1M` change one key of it.", metavar="[RECIPE] [KEY=VALUE]...")


@one_line
def run(words: Annotated[list[str] | None, RECIPE] = None,
        out: Annotated[Path | None, typer.Option(help="Folder of the run.  [default: runs/NAME of the recipe]")] = None,
        from_stage: Annotated[str | None, typer.Option("--from", metavar="STAGE",
                                                       help="Do this stage and those after it again.")] = None,
        minutes: Annotated[float | None, typer.Option(help="What the whole run may take on this machine: the token "
                                                           "budgets of its trainings are scaled to it.  "
                                                           "[default: as the recipe says]")] = None,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would run and its cost.")] = False,
        processes: Annotated[int, typer.Option(min=1, help="Train with so many processes of this machine; for several "
                                               "machines see torchrun.")] = 1,
        download: Annotated[bool, DOWNLOAD] = False) -> None:
    """Run a recipe: text to tokens to model to mixture of experts, and a report.

    What is there already is taken; a run that was stopped goes on when the same command is given again.

    **Examples**

    `mixwell run` · the default recipe, on the standard library's own text

    `mixwell run my.yaml train.lr=1e-3` · a recipe of your own, one key changed

    `mixwell run my.yaml --dry-run` · stages, tokens, FLOPs, memory and time, without running

    `mixwell run my.yaml --from moe` · do the stage `moe` and those after it again

    `mixwell run my.yaml --processes 4 parallel.expert=2` · train with four processes
    """
    path, overrides = split_words(words or [])
    if processes > 1 and "RANK" not in os.environ and not dry_run:
        start_all(processes)
        return
    if minutes is not None:
        overrides.append(f"minutes={minutes}")
    if os.environ.get("RANK", "0") != "0":
        if not dry_run:
            help_with()
        return
    from mixwell.cli.progress import Bar

    console = Console()
    with Bar(console) as bar:  # it moves at once; the libraries that compute take seconds to load
        from mixwell.parallel.launch import crew
        from mixwell.report.headline import answer_lines
        from mixwell.run import engine, recipe

        chosen = recipe.read(path, overrides)
        if dry_run:
            planned = engine.plan(chosen, out, from_stage=from_stage, progress=bar.preparing)
        else:
            with crew(chosen.parallel) as helpers:
                made = engine.run(chosen, out, from_stage=from_stage, observer=bar, crew=helpers)
    if dry_run:
        show_plan(console, planned)
        return
    lines = [*answer_lines(made.parent), f"report: {made}"]
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def start_all(processes: int) -> None:
    """Begin the same command in so many processes, and end as they do."""
    from mixwell.parallel.start import start

    try:
        failed = start(processes, sys.argv[1:])
    except KeyboardInterrupt as stop:  # the first process has said so
        raise typer.Exit(STOPPED) from stop
    if failed:
        raise typer.Exit(failed)


def help_with() -> None:
    """Train beside the first process, for as long as it asks for it; it reads the recipe, does the rest and says so."""
    from mixwell.parallel.launch import crew
    from mixwell.run.stages.train import follow

    try:
        with crew(None) as found:
            if found is not None:
                follow(found)
    except KeyboardInterrupt as stop:  # the first process, or one that failed, says why
        raise typer.Exit(STOPPED) from stop


def split_words(words: list[str]) -> tuple[Path | None, list[str]]:
    """A recipe's path, if one is among the words, and the overrides. Raises `MixwellError` for two recipes."""
    paths = [word for word in words if "=" not in word]
    if len(paths) > 1:
        raise MixwellError(f"{' and '.join(paths)}: expected one recipe; changes are written key=value.")
    return Path(paths[0]) if paths else None, [word for word in words if "=" in word]


def show_plan(console: Console, stages: list[Planned]) -> None:
    """A table of what would run."""
    from rich.table import Table

    from mixwell.cli.progress import repetitions, tell_disturbed
    from mixwell.core.units import seconds, si

    table = Table(box=None, pad_edge=False)
    for name in ("stage", "method", "state"):
        table.add_column(name)
    for name in ("tokens", "FLOP", "memory", "time"):
        table.add_column(name, justify="right")
    for p in stages:
        row = [si(p.predicted.tokens), si(p.predicted.flops), si(p.predicted.peak_bytes, "B")]
        table.add_row(p.stage.id, p.stage.method, state_of(p), *row, seconds(p.seconds) if p.seconds else "–")
    console.print(table)
    for p in stages:
        if p.damage:
            console.print(f"{p.stage.id}: {p.damage}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    total = sum(p.seconds for p in stages)
    console.print(f"together: {seconds(total)}{most_memory(stages)}" if total else "nothing to do", highlight=False)
    tell_disturbed(console)
    for text in repetitions(stages):
        console.print(text, style="yellow", highlight=False, soft_wrap=True)


def most_memory(stages: list[Planned]) -> str:
    """The largest memory of a stage, in words; nothing where one that computes with a model was not measured."""
    computing = [p for p in stages if p.predicted.flops and not p.cached]
    if any(p.predicted.peak_bytes is None for p in computing):
        return ""
    from mixwell.core.units import si

    peak = max((p.predicted.peak_bytes or 0.0 for p in stages), default=0.0)
    return f", {si(peak, 'B')} of memory at most"


def state_of(planned: Planned) -> str:
    """What is going to be done about a stage, in a word or two."""
    if planned.damage:
        return "again"
    if planned.cached:
        return "cached" if planned.evaluated else "evaluate"
    return "go on" if planned.begun else "run"


@one_line
def apply(method: Annotated[str, typer.Argument(help="Name of the method, such as convert.upcycle.",
                                                 autocompletion=completion.applied)],
          options: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...",
                                                              help="Options of the method.")] = None,
          source: Annotated[list[Path], typer.Option("--in", help="Model folder, a stage's folder, or a run's "
                                                     "stage such as runs/mine:moe; once a model for a merge."
                                                     )] = ...,  # type: ignore[assignment]
          base: Annotated[Path | None, typer.Option(help="Of a merge: the model that the others were tuned from.")
                          ] = None,
          adapter: Annotated[str | None, typer.Option(help="Of adapters.*: folder of an adapter (mixwell's or PEFT's), "
                                                           "or the stage that made it.")] = None,
          target: Annotated[Path | None, typer.Option("--out", help="Folder to write; for an analysis a JSON file.  "
                                                                    "[default of an analysis: print it]")] = None,
          text: Annotated[Path | None, typer.Option("--text", "--data", help="Text (a file, a folder) to measure on.  "
                                                    "[default: random tokens for a receipt, held-out text of the "
                                                    "standard library for an analysis]")] = None,
          seed: Annotated[int, typer.Option(help="Seed of methods that draw.")] = 0,
          download: Annotated[bool, DOWNLOAD] = False) -> None:
    """Apply one method to a model folder, weigh it before and after, and write the result.

    An analysis (`experts.analysis`) reads a mixture of experts and gives JSON instead.

    **Examples**

    `mixwell apply convert.upcycle --in dense --out moe num_experts=8 router.k=2`

    `mixwell apply precision.int8 --in moe --out moe-int8 --text notes.txt`

    `mixwell apply merge.ties --in code --in notes --base base --out merged density=0.5`

    `mixwell apply merge.ties --in lora-code --in lora-notes --out lora-both density=0.5 rank=16` · PEFT adapters

    `mixwell apply adapters.lora --in base --adapter runs/mine:tuned --out merged --text notes.txt`

    `mixwell apply adapters.lora --in base --adapter theirs --out ours layout=own packing=expert_first`

    `mixwell apply experts.analysis.load --in runs/standard-library:moe-trained --data notes.txt`
    """
    from mixwell.run.recipe import override

    if base is not None and not method.startswith("merge."):
        raise MixwellError(f"{method} takes no --base, which goes with a merge.")
    if adapter is not None and not method.startswith("adapters."):
        raise MixwellError(f"{method} takes no --adapter, which goes with adapters.*.")
    values: dict[str, Any] = {}
    for option in options or []:
        override(values, option)
    if method.startswith("experts.analysis."):
        show_analysis(method, _only(source, method), target, text, values)
        return
    if target is None:
        raise MixwellError(f"{method} writes a model; name a folder for it with --out.")
    if method.startswith("merge.") and are_adapters(source):
        show_merged(method, source, base, values, target, seed)
        return
    console = Console()
    from mixwell.cli.adapted import show_adapted, show_receipt

    if method.startswith("merge."):
        from mixwell.run.apply import merge

        merged = merge(method, source, options=values, base=base, out=target, text=text, seed=seed)
        for name, receipt in merged.lineage[-1]["receipts"].items():
            console.print(f"against {name}", style="bold", highlight=False, soft_wrap=True)
            show_receipt(console, receipt)
        for name, bits in merged.lineage[-1].get("bits_per_byte", {}).items():
            console.print(f"{name}: {bits:.4f} bits per byte", highlight=False, soft_wrap=True)
    elif method.startswith("adapters."):
        show_adapted(console, method, _only(source, method), adapter, values, target, text, seed)
    else:
        from mixwell.run.apply import convert

        done = convert(method, _only(source, method), options=values, out=target, text=text, seed=seed)
        show_receipt(console, done.lineage[-1]["receipt"])
    if text is None:
        console.print("measured on random tokens: the losses say how alike the two are, not how good; to know that, "
                      "give --text", style="yellow", highlight=False, soft_wrap=True)
    console.print(f"written: {target}", highlight=False, soft_wrap=True)


@one_line
def merge(config: Annotated[Path, typer.Argument(help="Merge file (YAML) as mergekit reads them.")],
          target: Annotated[Path, typer.Option("--out", help="Folder to write.")] = ...,  # type: ignore[assignment]
          seed: Annotated[int, typer.Option(help="Seed of methods that draw.")] = 0,
          download: Annotated[bool, DOWNLOAD] = False) -> None:
    """Merge models as a file of mergekit's says.

    One tensor at a time is held in memory, and a killed merge leaves nothing behind.

    **Examples**

    `mixwell merge ties.yaml --out merged`
    """
    gc.disable()  # imports leave nothing behind; to look for it takes a seventh of their time
    from mixwell.run.mergekit import merge_file

    gc.enable()
    merge_file(config, target, seed)
    Console().print(f"written: {target}", highlight=False, soft_wrap=True)


def _only(sources: list[Path], method: str) -> Path:
    if len(sources) > 1:
        raise MixwellError(f"{method} takes one model; {len(sources)} came with --in.")
    return sources[0]


def show_analysis(method: str, source: Path, target: Path | None, text: Path | None, values: dict[str, Any]) -> None:
    """Run an analysis; print its JSON, or write it to the file `target`."""
    import json

    from mixwell.core.files import write_json
    from mixwell.report.targets import check_file
    from mixwell.run.analyse import analyse

    if target is not None:
        check_file(target)
    found = analyse(method, source, text=text, **values)
    if target is None:
        print(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False))
        return
    write_json(target, found)
    Console().print(f"written: {target}", highlight=False, soft_wrap=True)


@one_line
def report(folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a run.")],
           out: Annotated[Path | None, typer.Option(help="File to write.  [default: RUN_DIR/report.html]")] = None,
           ) -> None:
    """Write the report of a finished run, comparison or evaluation anew.

    **Example**

    `mixwell report runs/standard-library`
    """
    from mixwell.compare import existing_page, measured
    from mixwell.compare import report as compare_report
    from mixwell.report import page
    from mixwell.report.targets import check_file
    from mixwell.run import status

    builders = {"compare.json": compare_report.build, measured.RECORD: existing_page.build}
    found = [build for name, build in builders.items() if (folder / name).is_file()]
    waiting = "" if found else status.unfinished(folder)
    if waiting:
        raise MixwellError(f"{waiting}.")
    target = out or folder / "report.html"
    check_file(target)
    build = found[0] if found else page.build
    made = build(folder, target)
    console = Console(highlight=False)
    console.print(f"report: {made}", soft_wrap=True)
    if now := status.under_way(folder):
        console.print(f"{folder} {now}: this report is of what was finished before", style="yellow", soft_wrap=True)


@one_line(stopped="stopped; nothing was changed")
def verify(run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of a run or of a comparison, or the name of "
                                              "a run below `runs`.")]) -> None:
    """Read every file that a run wrote and hold it against the digest that was taken then.

    A run looks at sizes and times alone and reads what these show to have changed; a disk that loses a bit changes
    neither. A stage in which something is wrong is made again by the next run.

    **Example**

    `mixwell verify runs/standard-library`
    """
    from mixwell.core.units import counted, si
    from mixwell.run.paths import find_run
    from mixwell.run.verify import verify as look

    folder, console = find_run(run), Console(highlight=False)
    with reading(console) as progress:
        found = look(folder, progress)
    for problem in found.problems:
        console.print(problem, style="yellow", markup=False, soft_wrap=True)
    size = f"{counted(found.stages, 'stage')}, {counted(found.files, 'file')}, {si(found.bytes, 'B')}"
    if found.problems:
        wrong = counted(len(found.problems), "thing is", "things are")
        tell(f"{folder}: {size} read, {wrong} not as written; run the recipe again, and what is damaged is made again",
             FAILED)
    console.print(f"{folder}: {size} read, all as they were written", soft_wrap=True)


@contextmanager
def reading(console: Console) -> Iterator[Callable[[float, str], None]]:
    """A bar over what is read; gives what moves it."""
    from rich.progress import Progress

    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("read", total=1.0)
        yield lambda share, words: bar.update(task, completed=share, description=words)
