"""PEFTDebias: a module that learnt from swapped texts and stays frozen makes a tuned model less unfair.

Paper: PEFTDebias : Capturing debiasing information using PEFTs.
Tried: a decoder trained on strings of six letters followed by one of two words that goes with their sum nine times in
ten; LoRA of rank 4 trained on strings with the words swapped beside; then the model tuned to say behind string and word
whether the sum is high, where the word agrees nine times in ten, with the module frozen in place against without one.
Distance between the groups' shares of high sums that are told, on strings where the word says nothing. Beside: a module
of random numbers. Against it: a distance that is no smaller, or an accuracy that is two points lower or more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixwell.adapters import lora
from mixwell.adapters.attached import attach
from mixwell.adapters.protocols.debias import Config, debias, turn
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side, no_worse
from mixwell.claims.strings import COLON, LETTERS, WORDS, Rows, fitted, model
from mixwell.core.rng import generator
from mixwell.lm.model import LanguageModel

LENGTH, AGREES = 6, 0.9
GROUPS, HIGH = WORDS, WORDS + 2  # first of the two words, of the two answers
PAIR = ((GROUPS, GROUPS + 1),)


def strings(count: int, agrees: float, draws: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """(letters [B, 6], whether their sum is high [B], the group's word [B])."""
    x = torch.randint(LETTERS, (count, LENGTH), generator=draws)
    mean = x.float().mean(1)
    high = (mean > (LETTERS - 1) / 2).long()
    drawn = torch.rand(count, generator=draws)
    same = drawn < agrees
    group = torch.where(same, high, 1 - high)
    return x, high, GROUPS + group


def texts(seed: int, name: str, steps: int) -> list[Rows]:
    """Strings with their group's word, from which the word is learned."""
    draws = generator(seed, name)
    found = []
    for _ in range(steps):
        x, _, group = strings(32, AGREES, draws)
        tokens = torch.cat((x, group[:, None]), 1)
        found.append(Rows(tokens, LENGTH, group))
    return found


def labelled(seed: int, name: str, count: int, agrees: float) -> Rows:
    """Strings, word, colon, and what is said of the sum."""
    x, high, group = strings(count, agrees, generator(seed, name))
    colon = torch.full((count,), COLON)
    answer = HIGH + high
    behind = torch.stack((group, colon, answer), 1)
    tokens = torch.cat((x, behind), 1)
    return Rows(tokens, LENGTH + 2, group - GROUPS)


def tuned(bench: Bench, seed: int, *, lr: float, module: str = "none") -> dict[str, float]:
    """Distance of the groups and accuracy behind both phases."""
    network: LanguageModel = fitted(model(seed, num_layers=1), texts(seed, "texts", 80), 1e-2)
    if module != "none":
        there = attach(lora.LoRA, network, None, lora.Config(rank=4, alpha=8.0), generator(seed, "adapter"))
        if module == "random":
            for adapter in there.adapters.values():
                adapter.B.data.normal_(0, 0.1, generator=generator(seed, "random"))
        else:
            fitted(network, swapped(seed), 3e-3)
        turn(there, norms=True)
    task = labelled(seed, "task", 2048, AGREES)
    draws = generator(seed, "batches")
    chosen = [torch.randint(2048, (32,), generator=draws) for _ in range(100)]
    fitted(network, (task.of(rows) for rows in chosen), lr)
    return fairness(network, labelled(seed, "test", 1024, 0.5))


def swapped(seed: int) -> list[Rows]:
    """Strings with the word of either group behind them."""
    found = []
    for rows in texts(seed, "upstream", 40):
        tokens = debias(rows.tokens, Config(pairs=PAIR))
        found.append(Rows(tokens, LENGTH, tokens[:, -1]))
    return found


@torch.no_grad()
def fairness(network: LanguageModel, rows: Rows) -> dict[str, float]:
    """Distance of the groups' shares of high sums told, and accuracy."""
    read = rows.tokens[:, :-1]
    found = network.eval()(read)
    last = found.logits_BTV[:, -1]
    two = last[:, HIGH : HIGH + 2]
    told = two.argmax(1)
    truth = rows.tokens[:, -1] - HIGH
    shares = []
    for group in (0, 1):
        inside = rows.tasks == group
        own = told[inside & (truth == 1)]
        shares.append(own.float().mean())
    first, second = shares
    right = (told == truth).float()
    distance = (first - second).abs()
    return {"distance": float(distance), "accuracy": float(right.mean())}


RATES = {"lr": (1e-3, 3e-3, 1e-2)}
CLAIM = Claim("A frozen module of swapped texts makes a tuned model fairer.", "distance of shares, or accuracy",
              quantity="distance", tuned_by="accuracy",
              provided=(no_worse("accuracy", 0.02, relative=False, lower_is_better=False),),
              sides={"method": Side(tuned, {"module": "swapped"}, RATES), "baseline": Side(tuned, {}, RATES),
                     "random": Side(tuned, {"module": "random"}, RATES)})
