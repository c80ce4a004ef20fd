"""How a run goes on, on the terminal: a bar with the time left, and a line for each stage that is there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from mixwell.core import measured
from mixwell.core.units import seconds as short_time
from mixwell.core.units import si as short_count

if TYPE_CHECKING:
    from mixwell.report.records import StageRecord
    from mixwell.run.engine import Planned
    from mixwell.run.sizing import Size

LONG_S = 600.0  # a run predicted to take longer is asked about in the same breath
LEAST_S = 0.2  # counted for a stage without a prediction, so that the bar moves


class Bar:
    """An observer of a run (`mixwell.run.engine.Observer`) that draws a bar; use as a context manager."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = Progress(TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(),
                            TextColumn("{task.fields[left]}"), console=console, transient=True)
        self.task = self.bar.add_task("get ready · load", total=1.0, left="")
        self.shares: dict[str, float] = {}  # stage -> predicted seconds of what is left to do
        self.done = 0.0
        self.start = time.perf_counter()
        self.name_width = 0
        self.size: Size | None = None
        self.said: set[str] = set()  # what was said of getting ready

    def __enter__(self) -> Bar:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def fitted(self, about: str, size: Size) -> None:
        """Say what is about to run, how long it takes and what will be learnt."""
        self.size = size
        for line in size_lines(about, size):
            self.console.print(line, highlight=False, soft_wrap=True)

    def preparing(self, words: str) -> None:
        """Say what is done before the first stage starts; where no bar can move (a log, a pipe), in lines.

        There the first step stays unsaid: it brings most mistakes to light, and they are to stand alone.
        """
        if self.said and words not in self.said and not self.console.is_terminal:
            self.console.print(f"get ready · {words}", highlight=False, markup=False, soft_wrap=True)
        self.said.add(words)
        self.bar.update(self.task, description=f"get ready · {words}")

    def planned(self, stages: Sequence[Planned]) -> None:
        """Fix the length of the bar: predicted seconds of all that is to be done."""
        self.shares = {p.stage.id: max(p.seconds, LEAST_S) for p in stages if not (p.cached and p.evaluated)}
        self.name_width = max(len(p.stage.id) for p in stages)
        total = sum(p.seconds for p in stages)
        if total > LONG_S and self.size is None:
            self.console.print(f"about {short_time(total)} on this machine; Ctrl-C stops it, the same command goes on, "
                               "and --minutes 5 fits it to five minutes", highlight=False)
        self.bar.update(self.task, total=sum(self.shares.values()) or 1.0)
        for text in repetitions(stages) if self.size is None else ():
            self.console.print(text, style="yellow", highlight=False, soft_wrap=True)
        tell_disturbed(self.console)
        self.start = time.perf_counter()

    def started(self, planned: Planned) -> None:
        """Name the stage on the bar; where it was there already, say why it is made again."""
        if planned.damage:
            self.console.print(f"{planned.stage.id} is made again: {planned.damage}", style="yellow", highlight=False,
                               markup=False, soft_wrap=True)
        self._show(planned.stage.id, self.done)

    def advanced(self, planned: Planned, share: float, words: str) -> None:
        """Move the bar within the stage: its own work first, then its evaluation."""
        name = planned.stage.id
        own = planned.predicted.seconds or 0.0
        reached = own * share if words != "evaluate" else own
        within = min(reached, self.shares.get(name, 0.0))
        self._show(f"{name} · {words}", self.done + within)

    def finished(self, planned: Planned, record: StageRecord) -> None:
        """Print the stage's line."""
        name = planned.stage.id
        self.done += self.shares.get(name, 0.0)
        self._show(name, self.done)
        took = "cached"
        if not (planned.cached and planned.evaluated):
            took = short_time(record.seconds + record.evaluation.get("seconds", 0.0))
        heading = name.ljust(self.name_width)
        self.console.print(f"{heading}  {took:>8}  {facts(record)}", highlight=False, soft_wrap=True)
        for text in record.result.get("notices") or ():
            indent = " " * self.name_width
            self.console.print(f"{indent}  {text}", style="yellow", highlight=False, soft_wrap=True)

    def _show(self, words: str, reached: float) -> None:
        left = self._left(reached)
        self.bar.update(self.task, description=words, completed=reached, left=left)

    def _left(self, reached: float) -> str:
        """Time left: what is predicted for the rest, corrected by how the predictions did so far."""
        total = sum(self.shares.values())
        if not reached or not total:
            return ""
        pace = (time.perf_counter() - self.start) / reached
        trust = min(1.0, reached / total * 4)  # early on the prediction knows better than the pace
        return f"{short_time((total - reached) * (trust * pace + 1 - trust))} left"


def size_lines(about: str, size: Size) -> list[str]:
    """How a run was fitted to the machine, in words."""
    from mixwell.run.recipe import side_name

    sides = {side_name(name): tokens for name, tokens in size.tokens.items()}
    trainings = ", ".join(f"{name} {short_count(tokens)}" for name, tokens in sides.items())
    lines = [about] if about else []
    asked = f" of the {short_time(60 * size.minutes)} asked for" if size.minutes else ""
    lines.append(f"about {short_time(size.seconds)}{asked}; tokens of each seed: {trainings} "
                 f"(the text {size.epochs:.1f} times at most)")
    if size.limit:
        lines.append(size.limit)
    return lines


def repetitions(stages: Sequence[Planned]) -> list[str]:
    """Sentences on the trainings that are going to read their text more than once."""
    sentences = []
    for planned in stages:
        epochs = planned.predicted.epochs or 0.0
        if epochs > 1.05:
            sentences.append(f"{planned.stage.id} plans to read its text about {epochs:.1f} times over")
    return sentences


def tell_disturbed(console: Console) -> None:
    """A line where the predictions stand on what was measured while other programs ran."""
    if measured.disturbed(own=True):
        console.print("other programs kept this machine busy while it was measured: the times predicted may be too "
                      "long; the next command measures again", style="yellow", highlight=False, soft_wrap=True)


def facts(record: StageRecord) -> str:
    """A stage in a few words: what it made and how good it is."""
    result, words = record.result, []
    if "domains" in result and "train_bytes" in next(iter(result["domains"].values()), {}):
        size = sum(d["train_bytes"] + d["held_bytes"] for d in result["domains"].values())
        words.append(f"{len(result['domains'])} domains, {short_count(size, 'B')} of text")
    if record.kind == "tokens":
        words.append(f"{short_count(sum(d['train_tokens'] for d in result['domains'].values()))} tokens to train on")
    if record.kind == "tokenizer":
        words.append(f"{result['vocab_size']} ids")
    if "parameters" in result:
        active = result["active_parameters"]
        extra = f", {short_count(active)} active" if active != result["parameters"] else ""
        words.append(f"{short_count(result['parameters'])} parameters{extra}")
    if record.kind == "train":
        words.append(f"{short_count(result['tokens'])} tokens, loss {result['final_loss']:.3f}")
    if "receipt" in result:
        receipt = result["receipt"]
        words.append(f"KL {receipt['kl_nats']:.2g} nats" + (", promise kept" if receipt["promises"] else ""))
    if record.held_out:
        words.append(f"{record.held_out['mean']:.3f} bits per byte")
    if "samples" in result:
        count = len(result["samples"])
        words.append(f"{count} sample{'' if count == 1 else 's'}")
    return " · ".join(words)
