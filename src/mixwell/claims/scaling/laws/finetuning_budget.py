"""A tenth of the budget in supervised examples mends the cold start of preference tuning; small budgets go to examples.

Paper: Balancing the Budget: Understanding Trade-offs Between Supervised and Preference-Based Finetuning.
Tried: a network that writes a style and an answer, (a + b) div 6 of numbers below 30, after a base model that writes
other styles and b div 3; pairs hold the right answer and a wrong one, in the right style as often as not. Exact match
of a whole answer on 400 questions, budgets of 60, 600 and 4,000 at one price. Method: a tenth of 600 in examples, then
pairs. Baseline: pairs alone; rates of preference tuning tuned. Against it: a gain below 0.1, examples alone below half
and half at 60, or half and half below examples alone at 4,000.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison, Side
from mixwell.core.rng import generator, normal

BUDGETS = {"small": 60, "middle": 600, "large": 4000}
STYLES, ANSWERS, WIDTH, STEPS, BETA = 4, 10, 64, 120, 0.1


class Writer(nn.Module):
    """The probability of a style, and of an answer after it."""

    def __init__(self, draws: torch.Generator) -> None:
        super().__init__()
        self.into = nn.Parameter(normal((2, WIDTH), 1.0, draws))
        self.shift = nn.Parameter(normal((WIDTH,), 1.0, draws))
        self.style = nn.Parameter(normal((WIDTH, STYLES), 0.1, draws))
        self.answer = nn.Parameter(normal((STYLES, WIDTH, ANSWERS), 0.1, draws))

    def forward(self, asked: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithms of both: [N, styles] and [N, styles, answers]."""
        inner = asked @ self.into + self.shift
        hidden = torch.tanh(inner)
        styles = hidden @ self.style
        answers = torch.einsum("nh,sha->nsa", hidden, self.answer)
        return styles.log_softmax(-1), answers.log_softmax(-1)

    def log_share(self, asked: Tensor, told: Tensor) -> Tensor:
        """Of a style and an answer, [N, 2], their logarithm: [N]."""
        styles, answers = self(asked)
        row = torch.arange(len(asked))
        style, answer = told.unbind(1)
        return styles[row, style] + answers[row, style, answer]


def questions(count: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two numbers, scaled, and the right style and answer."""
    numbers = torch.randint(30, (count, 2), generator=draws)
    answer = numbers.sum(1) // 6
    style = torch.zeros_like(answer)
    told = torch.stack([style, answer], 1)
    return numbers / 15 - 1, told


def wrong(told: Tensor, draws: torch.Generator) -> Tensor:
    """Another answer, in the right style as often as not."""
    count = len(told)
    by = torch.randint(1, ANSWERS, (count,), generator=draws)
    answer = (told[:, 1] + by) % ANSWERS
    other = torch.randint(1, STYLES, (count,), generator=draws)
    kept = torch.randint(2, (count,), generator=draws)
    return torch.stack([kept * other, answer], 1)


def taught(writer: Writer, asked: Tensor, told: Tensor, draws: torch.Generator) -> None:
    """Supervised training on examples."""
    optimiser = torch.optim.Adam(writer.parameters(), lr=1e-2)
    for _ in range(STEPS):
        some = torch.randint(len(asked), (64,), generator=draws)
        loss = -writer.log_share(asked[some], told[some]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def preferred(writer: Writer, asked: Tensor, told: Tensor, lr: float, draws: torch.Generator) -> None:
    """Direct preference optimisation against the writer as it came."""
    before = copy.deepcopy(writer)
    losing = wrong(told, draws)
    optimiser = torch.optim.Adam(writer.parameters(), lr=lr)
    for _ in range(STEPS):
        some = torch.randint(len(asked), (64,), generator=draws)
        rows = asked[some], told[some], losing[some]
        with torch.no_grad():
            start = margin(before, *rows)
        gained = margin(writer, *rows) - start
        loss = -functional.logsigmoid(BETA * gained).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def margin(writer: Writer, asked: Tensor, winning: Tensor, losing: Tensor) -> Tensor:
    """By how much the better answer is likelier: [N]."""
    return writer.log_share(asked, winning) - writer.log_share(asked, losing)


def based(draws: torch.Generator) -> Writer:
    """A writer of other styles and other answers."""
    writer = Writer(draws)
    asked, _ = questions(2000, draws)
    style = torch.randint(1, STYLES, (2000,), generator=draws)
    second = 15 * asked[:, 1] + 15
    answer = second.round().long() // 3
    other = torch.stack([style, answer], 1)
    taught(writer, asked, other, draws)
    return writer


def matched(writer: Writer, draws: torch.Generator) -> float:
    """Share of 400 questions whose likeliest style and answer are right."""
    asked, told = questions(400, draws)
    with torch.no_grad():
        styles, answers = writer(asked)
    style = styles.argmax(1)
    row = torch.arange(400)
    answer = answers[row, style].argmax(1)
    whole = torch.stack([style, answer], 1) == told
    right = whole.all(1).double()
    return right.mean().item()


def measured(bench: Bench, seed: int, *, share: float, lr: float = 1e-3) -> dict[str, float]:
    """Exact match at every budget, with this share of it in examples."""
    found = {}
    for name, budget in BUDGETS.items():
        draws = generator(seed, "budget", name)
        writer = based(draws)
        asked, told = questions(budget, draws)
        examples = round(share * budget)
        if examples:
            taught(writer, asked[:examples], told[:examples], draws)
        if examples < budget:
            preferred(writer, asked[examples:], told[examples:], lr, draws)
        found[name] = matched(writer, draws)
    return found


GRID = {"lr": [3e-4, 1e-3, 3e-3, 1e-2]}
CLAIM = Claim(
    "A tenth in examples mends the cold start.", "exact match", quantity="middle", lower_is_better=False, at_least=0.1,
    provided=(Comparison(quantity="small", method="examples", baseline="half", lower_is_better=False),
              Comparison(quantity="large", method="half", baseline="examples", lower_is_better=False)),
    sides={"method": Side(measured, {"share": 0.1}, GRID), "baseline": Side(measured, {"share": 0.0}, GRID),
           "half": Side(measured, {"share": 0.5}, GRID), "examples": Side(measured, {"share": 1.0})})
