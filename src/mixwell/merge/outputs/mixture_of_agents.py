"""Mixture of agents: several answers to a question, and one more call that reads all of them and writes the last.

**Equation:** Self-MoA: N answers of the best model at a temperature, y = aggregate(question, answers). Mixed-MoA: one
    answer of each of N models. Sequential: a window of W answers; what is aggregated takes reserved places beside the
    next ones. Analysis: score = a quality + b diversity + c by least squares, both standardised, diversity the Vendi
    score exp(-sum l log l), l eigenvalues of K / N.
**Shapes:** answers are text; similarities K [N, N].
**Reference:** Li, Lin, Xia and Jin 2025 (2502.00674), sections 3 and 4.
**Differs:** the words that ask for the aggregate are ours.
**Fails when:** the temperature is 0: it is one answer N times. "Best" must be chosen on other data.
**Cost:** N + 1 calls; sequential: N and one a window.
"""

from __future__ import annotations

import itertools
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.core.method import method

Ask = Callable[[str, float], str]  # (prompt, temperature) -> an answer
LARGEST = 2**24  # bytes of a reply that is read
INSTRUCTION = ("Below are a question and several answers to it, of which some may be wrong. Judge them, and write one "
               "answer that is better than each: right, complete and clear. Write the answer alone.")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of a mixture of agents."""

    samples: int = 6  # N, of each agent where there is one, else in all
    temperature: float = 0.7  # of the answers; the aggregate is written at 0
    window: int | None = None  # W: how many answers one call reads; None = all at once
    reserved: int = 1  # places of a window for what was aggregated before

    def __post_init__(self) -> None:
        if self.samples < 1 or self.temperature < 0:
            raise ValueError(f"samples is {self.samples}, temperature {self.temperature}; expected 1 or more, and 0 or "
                             "more")
        if self.window is None:
            return
        if not 1 <= self.reserved < self.window:
            raise ValueError(f"reserved is {self.reserved} of a window of {self.window}; expected 1 or more, and fewer "
                             "than the window has places")


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A model behind an OpenAI-compatible address, called as `Ask`."""

    url: str  # such as http://127.0.0.1:8000/v1
    model: str
    key: str | None = None
    timeout_s: float = 120.0

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise MixwellError(f"url is {self.url!r}; expected http:// or https://.")

    def __call__(self, prompt: str, temperature: float) -> str:
        """The answer to one message. An address that does not answer, or not so, raises `MixwellError`."""
        body = {"model": self.model, "temperature": temperature, "messages": [{"role": "user", "content": prompt}]}
        headers = {"Content-Type": "application/json"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(f"{self.url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as reply:
                found = json.loads(reply.read(LARGEST))
            return str(found["choices"][0]["message"]["content"])
        except urllib.error.HTTPError as error:
            raise MixwellError(f"{self.url} refused ({error.code} {error.reason}); check the model's name and the "
                               "key.") from error
        except OSError as error:
            raise MixwellError(f"{self.url} does not answer ({error}); is a server running there?") from error
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise MixwellError(f"{self.url} answered with no choices[0].message.content; expected an OpenAI-compatible "
                               "server.") from error


def prompt_for(question: str, answers: Sequence[str]) -> str:
    """What the aggregator reads."""
    numbered = enumerate(answers, start=1)
    listed = [f"Answer {number}:\n{answer}" for number, answer in numbered]
    parts = [INSTRUCTION, f"Question:\n{question}", *listed]
    return "\n\n".join(parts)


def proposals(question: str, agents: Sequence[Ask], config: Config) -> list[str]:
    """N answers: all of one agent, or one after the other of several."""
    turns = itertools.cycle(agents)
    chosen = itertools.islice(turns, config.samples)
    return [agent(question, config.temperature) for agent in chosen]


@method(title="Mixture of agents, Self-MoA",
        paper="Rethinking Mixture-of-Agents: Is Mixing Different Large Language Models Beneficial?", year=2025)
def mixture_of_agents(question: str, agents: Sequence[Ask], aggregator: Ask, config: Config) -> str:
    """The aggregator's answer to what the agents say; one agent makes it Self-MoA.

    Several agents answer in turn; fewer samples than agents raise `MixwellError`.
    """
    if not agents or config.samples < len(agents):
        raise MixwellError(f"{len(agents)} agents and {config.samples} samples; expected one agent or more, and a "
                           "sample of each.")
    answers = proposals(question, agents, config)
    if config.window is None:
        return aggregator(prompt_for(question, answers), 0.0)
    return _sequential(question, answers, aggregator, config.window, config.reserved)


def _sequential(question: str, answers: Sequence[str], aggregator: Ask, window: int, reserved: int) -> str:
    """Aggregates over a window that slides, the last ones kept in it."""
    fresh = window - reserved
    best: list[str] = []
    seen, start = list(answers[:window]), window
    while True:
        prompt = prompt_for(question, seen)
        best.append(aggregator(prompt, 0.0))
        new = answers[start : start + fresh]
        if not new:
            return best[-1]
        seen = [*best[-reserved:], *new]
        start += fresh


def vendi_score(similarities_NN: Tensor) -> float:
    """How many different answers there are in effect, 1 to N; similarities with ones on the diagonal."""
    count = len(similarities_NN)
    kernel = similarities_NN.double() / count
    values = torch.linalg.eigvalsh(kernel)
    shares = values.clamp(min=0)
    entropy = -torch.xlogy(shares, shares).sum()
    return float(entropy.exp())


def quality_and_diversity(scores: Tensor, quality: Tensor, diversity: Tensor) -> tuple[float, float]:
    """(a, b): how much the score of a mixture rises with its proposals' quality and with their diversity."""
    columns = [_standard(quality), _standard(diversity)]
    ones = torch.ones_like(columns[0])
    design = torch.stack([*columns, ones], dim=1)
    targets = scores.double().unsqueeze(1)
    found = torch.linalg.lstsq(design, targets)
    a, b, _ = found.solution.flatten().tolist()
    return a, b


def _standard(values: Tensor) -> Tensor:
    wide = values.double()
    centred = wide - wide.mean()
    return centred / wide.std()


def example(generator: torch.Generator) -> dict[str, Any]:
    """An agent that repeats the question, and an aggregator that counts what it reads."""
    return {"question": "How many?", "agents": [lambda prompt, temperature: prompt],
            "aggregator": lambda prompt, temperature: str(prompt.count("Answer ")), "config": Config(samples=3)}
