"""A learner whose loss on each domain falls by a power of what it saw of it; one may be beyond learning."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mixwell.data.rule import Batch, Online

DOMAINS, NOISE, TOKENS, STEPS = 5, 4, 64, 400


@dataclass(frozen=True)
class World:
    """Floors, heights and slopes of the domains' losses; the last domain is noise."""

    floor_D: np.ndarray
    height_D: np.ndarray
    slope_D: np.ndarray

    def losses(self, seen_D: np.ndarray) -> np.ndarray:
        """After so many tokens of each: [D]."""
        scaled_D = 1 + seen_D / 200
        return self.floor_D + self.height_D * scaled_D**-self.slope_D


def world(rng: np.random.Generator, noise: bool = True) -> World:
    """Domains of unlike heights and slopes."""
    floor_D = rng.uniform(0.5, 1.5, DOMAINS)
    height_D = rng.uniform(1.0, 4.0, DOMAINS)
    slope_D = rng.uniform(0.2, 0.8, DOMAINS)
    if noise:
        floor_D[NOISE], height_D[NOISE] = 6.0, 0.0
    return World(floor_D, height_D, slope_D)


def trained(here: World, online: Online, reference_D: np.ndarray, rng: np.random.Generator,
            even: bool = False) -> np.ndarray:
    """Tokens seen of each domain, drawn by the rule's weights or evenly: [D]."""
    seen_D = np.zeros(DOMAINS)
    for _ in range(STEPS):
        share_D = np.full(DOMAINS, 1 / DOMAINS) if even else online.weights_D
        domain_T = rng.choice(DOMAINS, TOKENS, p=share_D)
        noise_T = rng.normal(0, 0.2, TOKENS)
        loss_D = here.losses(seen_D)
        loss_T = np.maximum(loss_D[domain_T] + noise_T, 0)
        online.update(Batch(domain_T, loss_T, reference_D[domain_T]))
        seen_D += np.bincount(domain_T, minlength=DOMAINS)
    return seen_D
