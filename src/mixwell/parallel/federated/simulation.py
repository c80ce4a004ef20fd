"""Rounds of a federated method in one process: who is asked, who leaves, who lies, and the bytes both ways.

The same seed gives the same bits: what a client draws hangs on the seed, the round and its number alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator
from mixwell.mixing import check_least, check_not_negative, check_rate
from mixwell.parallel.federated.aggregation import TooFew
from mixwell.parallel.federated.attacks import ATTACKS, Attack
from mixwell.parallel.federated.clients import Client, Tensors, counted, size_bytes

Watch = Callable[["Turn", Tensors], None]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The world that a method runs in."""

    rounds: int = 10
    share: float = 1.0  # of the clients that are asked in a round, rounded up
    leave: float = 0.0  # chance that a client that was asked never answers
    liars: int = 0  # clients that lie: those with the highest numbers
    attack: Attack = "opposite"  # what they say, knowing what the others say
    factor: float = 1.0  # of the attack: see `attacks`
    seed: int = 0

    def __post_init__(self) -> None:
        check_least(self, rounds=0, liars=0)
        check_rate(self, "leave")
        check_not_negative(self, "factor")
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}; expected above 0 and at most 1")
        if self.attack not in ATTACKS:
            raise ValueError(f"attack is {self.attack!r}; expected one of {', '.join(ATTACKS)}")


@dataclass(frozen=True)
class Turn:
    """A round, counted from 0, and what is drawn in it."""

    number: int
    rounds: int
    seed: int

    def draws(self, *keys: int | str) -> torch.Generator:
        """A generator of its own for each set of keys."""
        return generator(self.seed, "round", self.number, *keys)


@dataclass(frozen=True, eq=False)
class Answer:
    """What a client sends back, and what it keeps."""

    tensors: Tensors
    weight: float  # in means: usually its rows
    memory: Tensors = field(default_factory=dict)
    down_bytes: int = 0  # that came to it while it worked, beside the message
    up_bytes: int = 0  # that it sent while it worked, beside the answer
    seconds: float = 0.0  # that it took, where the method knows


Answers = Mapping[int, Answer]  # by the client's number


class Federated(ABC):
    """A method: what is sent, what a client answers, what the answers are made into.

    The state is all that the server knows, tensors by name; a client's memory never leaves it.
    """

    by_peers: ClassVar[bool] = False  # whether answers go to all others who answer, and there is no server

    @abstractmethod
    def start(self, clients: Sequence[Client], generator: torch.Generator) -> Tensors:
        """The state before the first round."""

    def remembered(self, client: Client) -> Tensors:
        """What a client knows before it was first asked."""
        return {}

    def asked(self, state: Tensors, drawn: Sequence[Client], everyone: Sequence[Client], turn: Turn,
              ) -> Sequence[Client]:
        """Who is asked, where the world has drawn some."""
        return drawn

    def message(self, state: Tensors, client: Client, turn: Turn) -> Tensors:
        """What is sent to a client."""
        return state

    @abstractmethod
    def answer(self, client: Client, message: Tensors, memory: Tensors, turn: Turn) -> Answer:
        """What the client makes of it."""

    @abstractmethod
    def merged(self, state: Tensors, answers: Answers, turn: Turn) -> Tensors:
        """The state after a round with these answers, one at least."""

    def model(self, state: Tensors) -> Tensors:
        """The one model that the state comes to; raises `MixwellError` where the method keeps several."""
        name = type(self).__name__
        raise MixwellError(f"{name} leaves no single model; read its state.")

    def before(self, state: Tensors, client: Client, turn: Turn) -> Tensors:
        """What an answer would be where nothing was learnt, by name; zeros where it is not said."""
        return {}


@dataclass(frozen=True)
class Traffic:
    """What a round cost."""

    asked: tuple[int, ...]  # numbers of clients
    answered: tuple[int, ...]
    down_bytes: int  # to clients
    up_bytes: int  # from clients
    seconds: float  # of the slowest who answered, where the method knows
    counted: bool = True  # False where nobody answered, or too few to tell lies from the truth: nothing was learnt


@dataclass(frozen=True, eq=False)
class Outcome:
    """What is there after all rounds."""

    state: Tensors
    memories: Mapping[int, Tensors]  # of the clients that ever answered
    ledger: tuple[Traffic, ...]  # a round each

    @property
    def down_bytes(self) -> int:
        """To clients, in all rounds."""
        return sum(one.down_bytes for one in self.ledger)

    @property
    def up_bytes(self) -> int:
        """From clients, in all rounds."""
        return sum(one.up_bytes for one in self.ledger)

    @property
    def seconds(self) -> float:
        """Of all rounds, where the method knows."""
        return sum(one.seconds for one in self.ledger)


def simulate(method: Federated, clients: Sequence[Client], setting: Setting, watch: Watch | None = None,
             after: Outcome | None = None) -> Outcome:
    """All rounds of a method; `watch` sees the state after each.

    after: what earlier rounds left, which these go on from, in numbers and ledger, too; clients' rows may have changed.
    Raises `MixwellError` where there are no clients, a client has no rows, or all of them lie; and `TooFew` where in no
    round enough answered for the method to tell lies from the truth.
    """
    _check(clients, setting)
    if after is None:
        draws = generator(setting.seed, "start")
        after = Outcome(method.start(clients, draws), {}, ())
    state, memories, ledger = after.state, dict(after.memories), list(after.ledger)
    few: TooFew | None = None
    first = len(ledger)
    last = first + setting.rounds
    for number in range(first, last):
        turn = Turn(number, last, setting.seed)
        drawn = _drawn(clients, setting, turn)
        asked = method.asked(state, drawn, clients, turn)
        messages = {own.number: method.message(state, own, turn) for own in asked}
        answers = _answers(method, asked, messages, memories, setting, turn)
        answers = _with_lies(method, state, clients, answers, setting, turn)
        state, error = _merged(method, state, answers, turn)
        few = error or few
        memories |= {own: answer.memory for own, answer in answers.items()}
        learnt = bool(answers) and error is None
        cost = _traffic(method, messages, answers, learnt)
        ledger.append(cost)
        if watch is not None:
            watch(turn, state)
    if few is not None and not any(one.counted for one in ledger):
        raise few
    return Outcome(state, memories, tuple(ledger))


def _check(clients: Sequence[Client], setting: Setting) -> None:
    count, liars = len(clients), setting.liars
    if count <= liars:
        raise MixwellError(f"{count} clients came, {liars} of them liars; expected an honest one.")
    for place, client in enumerate(clients):
        if client.number != place:
            raise MixwellError(f"client {client.number} came in place {place}; expected them in order, from 0.")
        if not len(client.rows):
            raise MixwellError(f"client {place} has no rows; leave it out.")


def _drawn(clients: Sequence[Client], setting: Setting, turn: Turn) -> list[Client]:
    """The clients that are asked, in their order."""
    count = counted(setting.share, len(clients))
    if count == len(clients):
        return list(clients)
    draws = turn.draws("asked")
    order = torch.randperm(len(clients), generator=draws)
    chosen = order[:count].sort().values
    return [clients[place] for place in chosen.tolist()]


def _answers(method: Federated, asked: Sequence[Client], messages: Mapping[int, Tensors],
             memories: Mapping[int, Tensors], setting: Setting, turn: Turn) -> dict[int, Answer]:
    """What those say who do not leave."""
    found = {}
    for client in asked:
        own = client.number
        coin = torch.rand((), generator=turn.draws("leaves", own))
        if float(coin) < setting.leave:
            continue
        memory = memories[own] if own in memories else method.remembered(client)
        found[own] = method.answer(client, messages[own], memory, turn)
    return found


def _with_lies(method: Federated, state: Tensors, clients: Sequence[Client], answers: dict[int, Answer],
               setting: Setting, turn: Turn) -> dict[int, Answer]:
    """The answers, those of liars replaced by what they say in their place."""
    first = len(clients) - setting.liars
    honest = [answer.tensors for own, answer in answers.items() if own < first]
    found = dict(answers)
    for own in answers:
        if own < first or not honest:
            continue
        before = method.before(state, clients[own], turn)
        draws = turn.draws("lies", own)
        lie = {name: _lie(tensor, name, honest, before, setting, draws)
               for name, tensor in answers[own].tensors.items()}
        found[own] = replace(answers[own], tensors=lie)
    return found


def _lie(own: Tensor, name: str, honest: Sequence[Tensors], before: Tensors, setting: Setting,
         draws: torch.Generator) -> Tensor:
    """What a liar says in place of a tensor; codes stay as they are."""
    heard = [tensors[name].flatten() for tensors in honest if name in tensors]
    if not own.is_floating_point() or not heard:
        return own
    zeros = torch.zeros_like(own)
    start = before.get(name, zeros)
    attack = ATTACKS[setting.attack]
    honest_HP = torch.stack(heard)
    said_P = attack(honest_HP, start.flatten(), setting.factor, draws)
    return said_P.view_as(own)


def _merged(method: Federated, state: Tensors, answers: Answers, turn: Turn) -> tuple[Tensors, TooFew | None]:
    """The next state; the old one where nobody answered, or too few."""
    if not answers:
        return state, None
    try:
        return method.merged(state, answers, turn), None
    except TooFew as error:
        return state, error


def _traffic(method: Federated, messages: Mapping[int, Tensors], answers: Answers, learnt: bool) -> Traffic:
    said = list(answers.values())
    down = sum(map(size_bytes, messages.values()))
    up = sum(size_bytes(answer.tensors) for answer in said)
    if method.by_peers:
        up *= max(len(said) - 1, 0)
        down = up
    down += sum(answer.down_bytes for answer in said)
    up += sum(answer.up_bytes for answer in said)
    times = [answer.seconds for answer in said]
    slowest = max(times, default=0.0)
    asked, answered = tuple(messages), tuple(answers)
    return Traffic(asked, answered, down, up, slowest, learnt)
