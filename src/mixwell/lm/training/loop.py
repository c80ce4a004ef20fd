"""Training: a model, token data and a budget give a trained model, its metrics and the ledger of what it read.

A run that is killed at any moment goes on from its last saved state. With a budget of tokens or FLOPs on a CPU it
ends with the very bits of a run that was never interrupted; with a budget of seconds it cannot, since the number of
steps hangs on the clock, but the time used is kept.

Legend: B windows, T tokens of a window.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mixwell.core import registry
from mixwell.core.errors import MixwellError, TrainingError
from mixwell.core.interrupts import postponed
from mixwell.core.rng import generator
from mixwell.core.routing import Routing
from mixwell.kernels.probe import choices
from mixwell.lm.data import TokenData
from mixwell.lm.evaluate import evaluate
from mixwell.lm.network import IGNORED
from mixwell.lm.training import parts
from mixwell.lm.training import state as train_state
from mixwell.lm.training.config import TrainConfig
from mixwell.lm.training.documents import taken_apart
from mixwell.lm.training.freezing import Frozen, check_trains
from mixwell.lm.training.metrics import LOSSES, MetricsFile, Window, kept_lines, read_lines
from mixwell.lm.training.optimizer import MasterAdamW
from mixwell.lm.training.sampler import Sampler
from mixwell.parallel.team import Alone
from mixwell.precision.training import attached

METRICS = "metrics.jsonl"
FIT_TOKENS = 1_000_000  # of a domain: enough to count how often ids occur
STATE = "state"
ROUNDS_OTHERWISE = ("this machine computes its products through other libraries than when the state was saved, as its "
                    "measurements were made anew; the training goes on with the same numbers up to rounding only.")
NATS = "loss_nats"  # mean cross-entropy per target
GO_ON, SAVE, STOP = range(3)  # wishes, of which the largest of any process is done
LOG_STEPS, LOG_POINTS = 10, 50  # without `log_every`: a line at least so often, and at least so many where steps allow
Progress = Callable[[int, float, dict[str, Any]], None]


class DamagedState(MixwellError):
    """What a training would go on from is not as it was written."""


@dataclass(frozen=True, eq=False)
class TrainResult:
    """A finished run."""

    model: nn.Module  # the one handed in, trained in place, in evaluation mode
    metrics: list[dict[str, Any]]  # the lines of metrics.jsonl
    ledger: dict[str, int]  # domain -> tokens read
    tokens: int
    flops: float
    seconds: float  # of the steps, over all sittings


def train(model: nn.Module, data: TokenData, config: TrainConfig, folder: str | Path, *,
          weights: Mapping[str, float] | None = None, progress: Progress | None = None,
          device: str | torch.device = "cpu", team: Alone | None = None, until: float = 1.0) -> TrainResult:
    """Train `model` in place until the budget is used, going on from `folder` where a run was interrupted.

    model: a `LanguageModel`, or a module with its `loss`, `flops_per_token` and `cast`.
    folder: gets `metrics.jsonl`, a line each `log_every` steps, and the resumable state in `state/`.
    weights: share of the windows by domain; None takes each domain by its size.
    progress: called after every step with the steps done, the share of the budget used, and
    {loss_nats, lr, tokens_per_s, seconds_left}.
    team: the processes that train together, each of which calls this with the same arguments and a `folder` that all
    see; the first one writes. The numbers are those of one process up to rounding. Routers that choose among a batch,
    and capacities, see the tokens of their own process.
    until: share of the budget at which it stops and saves, for another call to go on from; one that is further stays.

    A loss or gradient that is not finite raises `TrainingError`, a damaged state `DamagedState`. Ctrl-C and SIGTERM
    finish the step and save; then the one raises `KeyboardInterrupt`, the other ends the program. A second one does not
    wait.
    """
    model_config = getattr(model, "config", None)
    vocab_size = getattr(model_config, "vocab_size", None)
    if vocab_size is not None and vocab_size < data.vocab_size:
        raise MixwellError(f"the data has {data.vocab_size} token ids, the model {vocab_size}; use the tokenizer that "
                           "the model was made for, or a model with a larger vocab_size.")
    check_trains(model)
    settled = config.for_device(device)
    run = _Run(model.to(device), data, settled, Path(folder), weights, torch.device(device), team or Alone())
    try:
        run.to(until, progress)
    finally:
        run.close()
    lines = read_lines(run.folder / METRICS) if run.team.leads else []
    ledger = run.sampler.ledger()
    return TrainResult(model.eval(), lines, ledger, run.tokens, run.flops, run.seconds)


def saved(folder: Path) -> tuple[dict[str, Any], Mapping[str, Tensor]] | None:
    """The state that a training in `folder` goes on from, None where it begins; `DamagedState` where a bit is wrong."""
    try:
        found = train_state.load(folder / STATE)
        if found is not None:
            values, _ = found
            kept_lines(folder / METRICS, values["metrics"])
    except MixwellError as error:
        raise DamagedState(f"{error} Remove {folder / STATE} to start afresh.") from error
    return found


class _Run:
    """Everything that moves during a run: model, optimizer, sampler, counters, files."""

    def __init__(self, model: nn.Module, data: TokenData, config: TrainConfig, folder: Path,
                 weights: Mapping[str, float] | None, device: torch.device, team: Alone) -> None:
        self.model, self.data, self.config, self.folder, self.device = model, data, config, folder, device
        self.team = team
        apart = config.documents == "apart"
        if apart and team.size > 1:
            raise MixwellError("documents: apart makes micro-batches of unlike numbers, which several processes cannot "
                               "share; train in one, or leave it out.")
        self.sampler = Sampler(data, weights, config.batch_size, config.seq_len, config.seed, rank=team.rank,
                               world_size=team.size, apart=apart)
        self.step, self.seconds, self.lr = 0, 0.0, 0.0
        self.window = Window()
        self.step_tokens = config.step_tokens
        forward = model.flops_per_token(config.seq_len)  # type: ignore[operator]
        self.flops_per_token = 3.0 * forward
        self.total_steps = self._total_steps()
        writer = _summary_writer() if config.tensorboard else None
        found = saved(folder)
        if found is not None:
            values, _ = found
            train_state.require_same(values["settings"], self._settings(), folder)
        if getattr(model, "needs_tokens", False):
            text = _train_tokens(data, self._tokens_to_read())
            model.fit_tokens(text, generator(config.seed, "fit_tokens"))  # type: ignore[operator]
        self.given, model = model, team.attach(model, config.settled_dtype)
        self.model = model
        self.frozen = Frozen(model, config.frozen)
        self.turns = getattr(model, "turns", None)  # of a model whose parts are trained in turn; see `adapters.turns`
        if self.turns is not None:
            if team.size > 1:
                raise MixwellError("the model's parts are trained in turn, which one process can do; "
                                   f"{team.size} came.")
            self.turns.open()
        self.checkpointing = getattr(model, "checkpointing", False)  # as it was before this run
        self.rounding = torch.Generator(device)  # of products in few bits that draw
        if config.arithmetic:
            _take_products(model, config.arithmetic, self.rounding)
        self.optimizer = MasterAdamW(model, dtype=config.settled_dtype, betas=config.betas, eps=config.eps,
                                     weight_decay=config.weight_decay)
        if found is not None:
            self._resume(*found)
        self.saved_step, self.saved_at = self.step, time.monotonic()
        kept = None if found is None else found[0]["metrics"]
        team.check_same("the step that is saved", self.step)  # and nobody writes before all have read
        self.metrics = MetricsFile(folder / METRICS, kept) if team.leads else None
        self.board = writer(str(folder / "tensorboard"), purge_step=self.step + 1) if writer and team.leads else None

    @property
    def tokens(self) -> int:
        return self.step * self.step_tokens

    @property
    def flops(self) -> float:
        return self.tokens * self.flops_per_token

    @property
    def fraction(self) -> float:
        """Share of the budget used; 1 when done."""
        if self.total_steps is not None:
            return self.step / self.total_steps
        assert self.config.seconds is not None
        return min(self.seconds / self.config.seconds, 1.0)

    def _total_steps(self) -> int | None:
        """Whole steps that the budget pays for; None where the clock decides."""
        tokens = self.config.token_budget(self.flops_per_token, self.sampler.epoch_tokens)
        if tokens is None:
            return None
        steps = int(tokens // self.step_tokens)
        if not steps:
            raise MixwellError(f"the budget pays for {tokens:.0f} tokens, and one step reads {self.step_tokens}; "
                               "raise it, or lower batch_size or seq_len.")
        return steps

    def _tokens_to_read(self) -> dict[str, int]:
        """Tokens of each domain that a router may learn from: no more than the run trains on, a million at most."""
        planned = math.inf if self.total_steps is None else self.total_steps * self.step_tokens
        found = dict.fromkeys(self.data.domains, 0)
        for domain, share in self.sampler.weights.items():
            if share:
                found[domain] = round(min(FIT_TOKENS, planned * share))
        return found

    def to(self, share: float, progress: Progress | None) -> None:
        self.model.train()
        self.model.checkpointing = self.config.checkpointing  # type: ignore[assignment]
        with postponed() as asked:
            while self.fraction < share:
                before = self.fraction
                info = self._one_step()
                self._report(before)
                if progress is not None:
                    try:
                        progress(self.step, self.fraction, info)
                    except KeyboardInterrupt:
                        asked.yes = True
                wish = self.team.most(self._wish(asked.yes))
                if wish >= SAVE:
                    self._save()
                if wish >= STOP:
                    asked.stop()
        if self.saved_step < self.step:
            self._save()
        self.team.release(self.given, self.model)

    def _one_step(self) -> dict[str, Any]:
        """One optimizer step; nothing of it is kept where its loss or gradient is not finite."""
        started = time.perf_counter()
        lr = self._learning_rate()
        if self.turns is not None:
            self.turns.begin(self.step)
        values, own = self._backward()
        seen = self.team.seen(own)
        for name, value in values.items():
            if not math.isfinite(value):
                raise TrainingError(f"step {self.step + 1}: {name} is {value}. {self._last_good()} Lower lr, lengthen "
                                    "warmup or lower grad_clip, and train in another folder.")
        self.optimizer.step(lr, values["grad_norm"], self.config.grad_clip)
        if hasattr(self.model, "after_step"):
            self.model.after_step(seen)  # type: ignore[operator]
        self.frozen.after_step()
        self.step += 1
        self.lr = lr
        took = self.team.most(time.perf_counter() - started)
        self.seconds += took
        self.window.add(values, _loads(seen), self.step_tokens, took)
        rate = self.step_tokens / took
        left = self.seconds / self.fraction - self.seconds
        return {"loss_nats": values["loss_nats"], "lr": lr, "tokens_per_s": rate, "seconds_left": left}

    def _learning_rate(self) -> float:
        """The schedule in the middle of the coming step, so that neither the first nor the last step is lost to 0."""
        if self.total_steps is not None:
            middle = self._middle() / self.total_steps
            return self.config.learning_rate(middle)
        assert self.config.seconds is not None
        half_a_step = 0.5 * self.seconds / max(self.step, 1)
        middle = (self.seconds + half_a_step) / self.config.seconds
        return self.config.learning_rate(middle)

    def _middle(self) -> float:
        """The middle of the coming step, in steps; of all turns of a cycle where parts are trained in turn."""
        cycle = 1 if self.turns is None else self.turns.length
        first = self.step - self.step % cycle
        whole = first + cycle
        end = min(whole, self.total_steps or whole)
        return (first + end) / 2

    def _backward(self) -> tuple[dict[str, float], list[list[Routing | None]]]:
        """Gradients of the next batch; its mean values by name, and the routings of each forward pass."""
        draws = generator(self.config.seed, "train", self.step, device=self.device)
        if self.config.arithmetic:
            own = generator(self.config.seed, "products", self.step)
            self.rounding.manual_seed(own.initial_seed())
        sums: dict[str, Tensor] = {}
        seen: list[list[Routing | None]] = []
        parts = list(self._micro_batches())
        shares = self.team.size * len(parts)
        for (tokens_BT, targets_BT, domains_B, *mask), share in zip(parts, _divisors(parts, self.team)):
            padded = {"mask_BT": mask[0]} if mask else {}
            loss = self.model.loss(tokens_BT, targets_BT, labels_B=domains_B, step=self.step, generator=draws,  # type: ignore[operator]
                                   **padded)
            nats = loss.nats / share
            total = nats if loss.aux is None else nats + loss.aux / shares
            total.backward()
            terms = _terms(loss)
            for name, value in terms.items():
                divisor = share if name == NATS else shares
                part = value.detach().float() / divisor
                sums[name] = sums.get(name, 0.0) + part
            seen.append(loss.routings)
        gathered = [value.float() for value in sums.values()]
        totals = self.team.total(torch.stack(gathered))
        norm = self.optimizer.grad_norm(self.team)
        values = torch.cat([totals, norm.view(1)]).tolist()  # one transfer for all of them
        return dict(zip([*sums, "grad_norm"], values)), seen

    def _micro_batches(self) -> Iterator[tuple[Tensor, ...]]:
        """(tokens, targets, domains) of the parts of the next batch; with a mask where documents are kept apart."""
        batch = self.sampler.batch()
        columns = [batch.tokens_BT, batch.targets_BT, batch.domains_B]
        if batch.documents_BT is not None:
            columns.append(batch.documents_BT)
        there = [column.to(self.device) for column in columns]
        parts = zip(*(column.chunk(self.config.accumulate) for column in there))
        if batch.documents_BT is None:
            return parts
        return chain.from_iterable(taken_apart(*part) for part in parts)

    def _log_due(self, before: float) -> bool:
        """Whether the step that began at the share `before` of the budget is one of those that are written down."""
        if self.config.log_every:
            return self.step % self.config.log_every == 0
        points = int(LOG_POINTS * self.fraction)
        crossed = points > int(LOG_POINTS * before)
        return crossed or self.window.steps >= LOG_STEPS

    def _report(self, before: float) -> None:
        """Write a line where one is due."""
        evaluates = _every(self.config.eval_every, self.step)
        last = self.fraction >= 1.0
        if not (evaluates or last or self._log_due(before)):
            return
        line: dict[str, Any] = {"step": self.step, "tokens": self.tokens, "flops": self.flops, "seconds": self.seconds,
                                "lr": self.lr}
        line |= self.window.line()
        self.window = Window()
        if evaluates:
            line["evaluation"] = self._evaluate()
        if self.metrics is not None:
            self.metrics.append(line)
        if self.board is not None:
            _to_board(self.board, line)

    def _evaluate(self) -> dict[str, Any]:
        config = self.config
        found = evaluate(self.model, self.data, max_tokens=config.eval_tokens, batch_size=config.batch_size,
                         seq_len=config.seq_len, step=self.step)
        self.model.train()
        return {"bits_per_byte": found.bits_per_byte, "mean": found.mean}

    def _wish(self, asked: bool) -> int:
        """What this process would do after a step."""
        if asked:
            return STOP
        return SAVE if self._save_due() else GO_ON

    def _save_due(self) -> bool:
        longest = self.config.save_every_s or math.inf
        waited = time.monotonic() - self.saved_at
        return _every(self.config.save_every, self.step) or waited >= longest

    def _save(self) -> None:
        """Put the state down: by the first process, or by all where they hold parts of it."""
        tensors = self.team.parts(self.optimizer.tensors())
        for name, buffer in self._buffers().items():
            tensors[f"buffer.{name}"] = buffer
        self.saved_step, self.saved_at = self.step, time.monotonic()
        if self.team.keeps_parts:
            parts.write_together(self.team, train_state.place_of(self.folder / STATE, self.step), tensors)
        if self.metrics is None:
            return
        lines = self.metrics.sync()
        values = {
            "seconds": self.seconds,
            "sampler": self.sampler.state_dict(),
            "window": self.window.state_dict(),
            "settings": self._settings(),
            "choices": self._choices(),
            "metrics": lines,
        }
        if self.team.keeps_parts:
            train_state.seal_parts(self.folder / STATE, self.step, values)
        else:
            train_state.save(self.folder / STATE, self.step, tensors, values)

    def _resume(self, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        if values.get("choices") not in (None, self._choices()):
            warnings.warn(ROUNDS_OTHERWISE, UserWarning, stacklevel=3)
        self.sampler.load_state_dict(values["sampler"])
        self.optimizer.load_tensors(self.team.own(tensors))
        for name, buffer in self._buffers().items():
            saved = tensors[f"buffer.{name}"]
            buffer.copy_(saved)
        self.step = values["step"]
        self.seconds = values["seconds"]
        self.window = Window(values["window"])

    def _buffers(self) -> dict[str, Tensor]:
        """What a model remembers beside its parameters (a router's bias, say), live."""
        named = self.model.named_parameters(remove_duplicate=False)
        parameters = {name for name, _ in named}
        state = self.model.state_dict()
        return {name: value for name, value in state.items() if name not in parameters}

    def _choices(self) -> str | None:
        """The libraries that products go through, by which they round; None where no CPU computes them."""
        return choices().digest() if self.device.type == "cpu" else None

    def _settings(self) -> dict[str, Any]:
        return {**self.config.settings(), "tokenizer": self.data.tokenizer_digest}

    def _last_good(self) -> str:
        if not self.saved_step:
            return "No state had been saved yet."
        return f"The last good state, step {self.saved_step}, is kept in {self.folder / STATE}."

    def close(self) -> None:
        self.optimizer.release()
        if self.config.arithmetic:
            attached.detach(self.model)
        if self.turns is not None:
            self.turns.close()
        self.frozen.release()
        self.model.checkpointing = self.checkpointing  # type: ignore[assignment]
        if self.metrics is not None:
            self.metrics.close()
        if self.board is not None:
            self.board.close()


def _take_products(model: nn.Module, arithmetic: str, draws: torch.Generator) -> None:
    """Let a method of `precision.training` take the products; one that learns is a layer's own matter."""
    entry = registry.find(arithmetic, attached.FAMILY)
    if entry.load().learns:
        raise MixwellError(f"{entry.name} has parameters of its own, which a model would be saved without; expected a "
                           "method without, such as float8 or bfloat16.")
    model.cast(torch.float32)  # type: ignore[operator]
    attached.attach(model, arithmetic, generator=draws)


def _divisors(parts: list[tuple[Tensor, ...]], team: Alone) -> list[float]:
    """What the mean over each micro-batch is divided by, so that their sum is the mean over the whole batch.

    Parts with fewer targets that count weigh less.
    """
    counts = [int((targets_BT != IGNORED).sum()) for _, targets_BT, *_ in parts]
    everywhere = team.total(torch.tensor(sum(counts)))
    whole = max(int(everywhere), 1)
    return [whole / max(count, 1) for count in counts]


def _every(period: int, step: int) -> bool:
    """Whether a period ends with the step; one of 0 never does."""
    return bool(period) and step % period == 0


def _terms(loss: Any) -> dict[str, Tensor]:
    """What is written down of a loss, by name."""
    auxiliary = {LOSSES + name: value for name, value in loss.losses.items()}
    named = {NATS: loss.nats, **auxiliary}
    if loss.aux is not None:
        named["aux"] = loss.aux
    return named


def _loads(seen: list[list[Routing | None]]) -> list[list[int] | None]:
    """The slots that each expert of each layer got over the forward passes of a step; None for layers without."""
    found: list[list[int] | None] = []
    for layer in zip(*seen):
        parts = [routing.load_E() for routing in layer if routing is not None]
        found.append(torch.stack(parts).sum(0).tolist() if parts else None)
    return found


def _train_tokens(data: TokenData, most: Mapping[str, int]) -> Tensor:
    """The first training tokens of each domain, at most so many, one after another."""
    streams = [data.tokens(domain, "train")[: most[domain]] for domain in data.domains]
    ids = np.concatenate(streams).astype(np.int64)
    return torch.from_numpy(ids)


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MixwellError("tensorboard: true needs the tensorboard package; pip install 'mixwell[tensorboard]', "
                           "or leave it out.") from error
    return SummaryWriter


def _to_board(board: Any, line: Mapping[str, Any]) -> None:
    scalars = {name: value for name, value in line.items() if isinstance(value, (int, float))}
    step = scalars.pop("step")
    del scalars["tokens"]
    for name, value in line["losses"].items():
        scalars[f"losses/{name}"] = value
    for layer, entropy in enumerate(line["load_entropy"]):
        if entropy is not None:
            scalars[f"load_entropy/layer_{layer}"] = entropy
    evaluation = line.get("evaluation", {"bits_per_byte": {}})
    for domain, bits in evaluation["bits_per_byte"].items():
        scalars[f"bits_per_byte/{domain}"] = bits
    for name, value in scalars.items():
        board.add_scalar(name, value, step)
