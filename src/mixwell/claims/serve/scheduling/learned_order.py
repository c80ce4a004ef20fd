"""A learnt order: with more requests than places, answers come in half the time.

Paper: Efficient LLM Scheduling by Learning to Rank.
Tried: in simulated time, 16 places and requests that come 1.3 times as fast as they can be answered, answers of 60
tokens in the median with a spread of the log of 1.2; sixteen features of which a sum tells the log of the length
with so much noise that an order by it has Kendall's tau of about 0.55, as the paper's. Learnt from 600 other
requests; mean seconds a token of an answer, counted from the request's arrival. Against first come, first served.
Beside: the order by a least-squares fit of the log of the length, and the true order. Against it: less than half of the
time saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import torch
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.core.rng import generator
from mixwell.serve.scheduling.learned_order import Config, LearnedOrder
from mixwell.serve.scheduling.ranked import Ranked
from mixwell.serve.scheduling.simulate import Device, Job, Network, Policy, simulate
from mixwell.serve.scheduling.stall_free import Config as StepConfig
from mixwell.serve.scheduling.stall_free import StallFree

DEVICE = Device(flops=3e14, bandwidth=2e12)
NETWORK = Network(weight_bytes=14e9, token_flops=14e9, position_bytes=524288.0)
STEPS = StepConfig(budget=512, rows=16)
TRAINED, SERVED, FEATURES, NOISE = 600, 300, 16, 1.0
PROMPT = 20  # tokens


def requests(seed: int) -> tuple[Tensor, Tensor]:
    """(features [N, F], lengths [N]) of all requests."""
    draws = generator(seed, "lengths")
    logs_N = 1.2 * torch.randn(TRAINED + SERVED, generator=draws)
    noise_N = torch.randn(len(logs_N), generator=draws)
    told_N = logs_N + NOISE * noise_N
    drawn_F = torch.randn(FEATURES, generator=draws)
    direction_F = torch.nn.functional.normalize(drawn_F, dim=0)
    others_NF = 2 * torch.randn(len(logs_N), FEATURES, generator=draws)
    along_N = others_NF @ direction_F
    moved_N = told_N - along_N
    tokens_N = 60 * logs_N.exp()
    lengths_N = tokens_N.round().clamp(1, 2000)
    return others_NF + moved_N.outer(direction_F), lengths_N.long()


def seconds_a_token(seed: int, lengths: Sequence[int], policy: Policy, scores: Sequence[float]) -> float:
    """Mean over requests of their time from arrival to the last token, a token of the answer."""
    draws = generator(seed, "arrivals")
    step_s = NETWORK.weight_bytes / DEVICE.bandwidth
    rate = 1.3 * STEPS.rows / (step_s * fmean(lengths))
    gaps = torch.empty(len(lengths), dtype=torch.float64).exponential_(rate, generator=draws)
    arrivals = gaps.cumsum(0).tolist()
    jobs = [Job(arrival, PROMPT, length, score) for arrival, length, score in zip(arrivals, lengths, scores)]
    simulate(jobs, policy, DEVICE, NETWORK)
    times = [(job.told[-1] - job.arrival) / job.answer for job in jobs]
    return fmean(times)


def regression(features_NF: Tensor, lengths_N: Tensor, asked_NF: Tensor) -> Tensor:
    """Minus the log of the lengths, as least squares foretell it."""
    middle_F, target_N = features_NF.mean(0), -lengths_N.log()
    away_N1 = (target_N - target_N.mean()).unsqueeze(1)
    fitted_F1 = torch.linalg.lstsq(features_NF - middle_F, away_N1).solution
    foretold_N1 = (asked_NF - middle_F) @ fitted_F1
    return foretold_N1.squeeze(1)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Seconds a token of each order."""
    features_NF, lengths_N = requests(seed)
    draws = generator(seed, "ranker")
    known, asked = features_NF[:TRAINED], features_NF[TRAINED:]
    config = Config(epochs=15, lr=1e-2, longest=2000)
    ranker = LearnedOrder(FEATURES, config, draws).fit(known, lengths_N[:TRAINED], draws)
    with torch.no_grad():
        learnt = ranker(asked)
    lengths = lengths_N[TRAINED:].tolist()
    orders = {"method": learnt, "least squares": regression(known, lengths_N[:TRAINED].float(), asked),
              "true order": -lengths_N[TRAINED:].float()}
    found = {name: seconds_a_token(seed, lengths, Ranked(STEPS), scores.tolist()) for name, scores in orders.items()}
    first = seconds_a_token(seed, lengths, StallFree(STEPS), [0.0] * len(lengths))
    return {**found, "baseline": first}


CLAIM = Claim("A learnt order halves the time to an answer where requests queue.", "seconds a token, from arrival",
              at_least=0.5, relative=True)
