"""Mixtral: experts specialise by the token and its syntax, not by the domain of the text.

Paper: Mixtral of Experts.
Tried: the bench's language model, top-2 of eight experts; mutual information of expert and token id on held-out text,
less what shuffled ids give, mean over layers, against the same of expert and domain. Against it: an information with
the token that is no larger.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from mixwell.claims._methods import call
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.language import Seen, from_trunk, mean_over, probe
from mixwell.core.rng import generator
from mixwell.core.routing import Context, Routing


def information(seen: Seen, by: str, seed: int) -> float:
    """Mutual information of expert and group, nats, less that with the groups shuffled."""
    name = "labels_T" if by == "domain" else "token_ids_T"
    keys = getattr(seen.context, name)
    order = torch.randperm(len(keys), generator=generator(seed, "shuffle"))
    shuffled = replace(seen.context, **{name: keys[order]})
    routing = seen.mixed.routing
    return nats(routing, by, seen.context) - nats(routing, by, shuffled)


def nats(routing: Routing, by: str, context: Context) -> float:
    """Mutual information of expert and group."""
    found = call("experts.analysis.specialisation", routing, context=context, by=by)
    return found["information_nats"]


CLAIM = Claim("Experts specialise by token rather than by domain.",
              "mutual information with the expert beyond chance, nats: token id against domain", lower_is_better=False)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Information with the token against information with the domain, means over layers."""
    trained = from_trunk(bench, seed)
    seen = probe(bench, trained.model)
    found = {}
    for side, by in (("method", "token"), ("baseline", "domain")):
        nats_of = partial(information, by=by, seed=seed)
        found[side] = mean_over(seen, nats_of)
    return found
