"""`mixwell plan`: how a training would lie over many processes, before there are any."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from mixwell.cli.errors import one_line
from mixwell.cli.runs import RECIPE, split_words
from mixwell.cli.written import check_writable
from mixwell.core.errors import MixwellError

if TYPE_CHECKING:
    from mixwell.parallel.cluster import Cluster
    from mixwell.parallel.search import Tried
    from mixwell.run.workload import Step

SHOWN = 8  # layouts
WIDE = 120  # columns where no terminal says
MEETING = "--rdzv_backend c10d --rdzv_endpoint HOST:29500"  # where the nodes' processes find each other


@one_line(stopped="stopped; nothing was changed")
def plan(words: Annotated[list[str] | None, RECIPE] = None,
         cluster: Annotated[Path | None, typer.Option(metavar="FILE", help="YAML that describes the cluster: devices, "
                                                      "their rates and memory, links.")] = None,
         measure: Annotated[int | None, typer.Option(metavar="N", help="Measure this machine as a cluster of N "
                                                     "processes at work together, and plan for it.")] = None,
         save: Annotated[Path | None, typer.Option(metavar="FILE", help="With --measure: write the cluster there.")
                         ] = None,
         stage: Annotated[str | None, typer.Option(help="The training that is planned.  [default: the last]")] = None,
         ) -> None:
    """Predict a training's step over a cluster: seconds, memory of a process, bytes sent; and choose a layout.

    Layouts are searched over data, experts, tensors, sequences, stages of a pipeline and shards. `mixwell run` trains
    over data and experts; the others are predicted alone.

    **Examples**

    `mixwell plan my.yaml --cluster cluster.yaml` · a cluster that a file describes

    `mixwell plan my.yaml --measure 4 --save here.yaml` · this machine as four processes
    """
    path, overrides = split_words(words or [])
    if (cluster is None) == (measure is None):
        raise MixwellError("give one of --cluster FILE and --measure N.")
    if save is not None and measure is None:
        raise MixwellError("--save writes what --measure found; give --measure N with it.")
    check_writable(save)
    from mixwell.parallel.search import reason, search
    from mixwell.run import recipe

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    described, step = described_and_step(console, recipe.read(path, overrides), cluster, measure, stage)
    if save is not None:
        from mixwell.run import clusters

        clusters.write(save, described)
        console.print(f"written: {save}", soft_wrap=True)
    tried = search(step.work, described)
    show(console, tried)
    console.print(reason(tried, described), markup=False, soft_wrap=True)
    named = [] if path is None else [str(path)]
    console.print(how_to_train(tried, described, [*named, *overrides]), markup=False, soft_wrap=True)


def described_and_step(console: Console, chosen: object, file: Path | None, processes: int | None,
                       stage: str | None) -> tuple[Cluster, Step]:
    """The cluster, read or measured, and the step that is planned for it."""
    from mixwell.run import clusters
    from mixwell.run.recipe import Recipe
    from mixwell.run.workload import step_of

    assert isinstance(chosen, Recipe)
    if file is not None:
        found = clusters.read(file)
        return found, step_of(chosen, stage, found.processes)
    assert processes is not None
    from mixwell.run.measuring import check_number, measure

    check_number(processes)
    step = step_of(chosen, stage, processes)
    with console.status(f"measure this machine with {processes} processes"):
        return measure(processes, step), step


def show(console: Console, tried: list[Tried]) -> None:
    """A table of the first layouts."""
    from rich.table import Table

    from mixwell.core.units import seconds, si

    table = Table(box=None, pad_edge=False)
    table.add_column("layout", no_wrap=True)
    for name in ("a step", "computing", "sending", "waiting", "memory", "sent"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in tried[:SHOWN]:
        found = one.found
        memory = si(found.memory_bytes, "B") + ("" if one.fits else ", too much")
        times = (found.seconds, found.computing_s, found.sending_s, found.idle_s)
        table.add_row(one.spread.words(), *map(seconds, times), memory, si(found.sent, "B"))
    console.print(table)
    left = len(tried) - SHOWN
    if left > 0:
        console.print(f"and {left} more")


def how_to_train(tried: list[Tried], described: Cluster, words: list[str]) -> str:
    """The command for the best layout in which the recipe of these words trains."""
    from mixwell.core.units import seconds
    from mixwell.parallel.search import trainable

    best = trainable(tried)
    if best is None:
        return "mixwell run trains over data, experts and shards, and no such layout fits."
    spread = best.spread
    key = "parallel.shard=true" if spread.sharded else f"parallel.expert={spread.expert}"
    told = shlex.join([*words, key])
    nodes = f"--nnodes {described.nodes} {MEETING} " if described.nodes > 1 else ""
    command = f"torchrun {nodes}--nproc_per_node {described.devices} -m mixwell run {told}"
    return f"to train so ({spread.words()}, {seconds(best.found.seconds)} a step): {command}"
