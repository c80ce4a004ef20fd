"""Mixtral: experts specialise by the token and its syntax, not by the domain of the text.

Paper: Mixtral of Experts.
Tried: the bench's language model, top-2 of eight experts; mutual information of expert and token id on held-out text,
less what shuffled ids give, mean over layers, against the same of expert and domain. Against it: an information with
the token that is no larger.
"""

from __future__ import annotations

import statistics
from dataclasses import replace

import torch

from mixwell.claims.bench import Bench
from mixwell.claims.language import TOKENS, Seen, probe
from mixwell.core import registry
from mixwell.core.evidence import Evidence, weigh
from mixwell.core.rng import generator


def information(seen: Seen, by: str, seed: int) -> float:
    """Mutual information of expert and group, nats, less that with the groups shuffled."""
    entry = registry.find("experts.analysis.specialisation")
    config, name = entry.module().Config(by=by), "labels_T" if by == "domain" else "token_ids_T"
    keys = getattr(seen.context, name)
    shuffled = keys[torch.randperm(len(keys), generator=generator(seed, "shuffle"))]
    real, chance = (entry.load()(seen.mixed.routing, config, replace(seen.context, **{name: k}))["information_nats"]
                    for k in (keys, shuffled))
    return real - chance


def claim(bench: Bench) -> Evidence:
    """Information with the token against information with the domain."""
    found = {seed: probe(bench, bench.train(bench.arch(), seed, tokens=TOKENS).model) for seed in bench.seeds}
    token, domain = ([statistics.fmean(information(seen, by, seed) for seen in run) for seed, run in found.items()]
                     for by in ("token", "domain"))
    return weigh("Experts specialise by token rather than by domain.",
                 "mutual information with the expert beyond chance, nats: token id against domain", token, domain,
                 lower_is_better=False)
