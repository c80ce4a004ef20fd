"""What latent classes depend on, and what they bring about: each gives log probabilities and has an M step.

N rows, Q covariates, P = Q + 1 with an intercept, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax

from mixwell.density._gaussian import Array
from mixwell.density.mixtures.em.assigned import Emission
from mixwell.density.mixtures.em.loop import Params

NEWTON_STEPS = 100
HALVINGS = 30
RISE = 1e-12  # least gain that a Newton step promises, as a share of the weight of all rows


@dataclass
class Outcomes:
    """What classes bring about."""

    emission: Emission

    @property
    def n_rows(self) -> int:
        """N."""
        return self.emission.rows.n_rows

    def settle(self, target_NK: Array) -> Params:
        """The likeliest parameters where rows belong to classes as given."""
        return self.emission.settle(target_NK)

    def maximise(self, params: Params, target_NK: Array) -> Params:
        """One M step."""
        return self.emission.maximise(params, target_NK)

    def log_part(self, params: Params, log_weights_K: Array) -> Array:
        """Log prior and log density (N, K)."""
        return log_weights_K + self.emission.log_densities(params)

    def penalty(self, params: Params) -> float:
        """Taken from the log likelihood."""
        return 0.0


@dataclass
class Covariates:
    """What classes depend on, by a multinomial logistic regression."""

    z_NP: Array  # with a column of ones before the others
    ridge: float  # on squared slopes, in nats

    @property
    def n_rows(self) -> int:
        """N."""
        return len(self.z_NP)

    def settle(self, target_NK: Array) -> Array:
        """Coefficients (K, P) that are likeliest where rows belong to classes as given."""
        shape = target_NK.shape[1], self.z_NP.shape[1]
        return self.maximise(np.zeros(shape), target_NK)

    def maximise(self, coef_KP: Array, target_NK: Array) -> Array:
        """Likeliest coefficients by Newton steps, halved until they ascend; rows of the target may sum to any weight.

        Coefficients of the classes sum to zero, as those of the start do.
        """
        value = self._objective(coef_KP, target_NK)
        for _ in range(NEWTON_STEPS):
            step_KP, promised = self._newton_step(coef_KP, target_NK)
            if promised <= RISE * target_NK.sum():
                break
            for halving in range(HALVINGS):
                tried_KP = coef_KP + 0.5**halving * step_KP
                new = self._objective(tried_KP, target_NK)
                if new > value:
                    break
            else:
                break
            coef_KP, value = tried_KP, new
        return coef_KP

    def _objective(self, coef_KP: Array, target_NK: Array) -> float:
        log_NK = self.log_part(coef_KP, None)
        likelihood = (target_NK * log_NK).sum()
        return float(likelihood - self.penalty(coef_KP))

    def _newton_step(self, coef_KP: Array, target_NK: Array) -> tuple[Array, float]:
        """Step (K, P), and the gain that its slope promises."""
        K, P = coef_KP.shape
        share_NK = np.exp(self.log_part(coef_KP, None))
        mass_N1 = target_NK.sum(1, keepdims=True)
        gradient_KP = (target_NK - mass_N1 * share_NK).T @ self.z_NP
        gradient_KP -= self.ridge * self._slopes() * coef_KP
        curvature = np.zeros((K, P, K, P))
        for a in range(K):
            for b in range(K):
                spread_N = share_NK[:, a] * ((a == b) - share_NK[:, b])
                weighted_NP = self.z_NP * (spread_N * mass_N1[:, 0])[:, None]
                curvature[a, :, b] = weighted_NP.T @ self.z_NP
            curvature[a, :, a] += self.ridge * np.diag(self._slopes())
        flat = curvature.reshape(K * P, K * P)
        solved = np.linalg.pinv(flat, hermitian=True) @ gradient_KP.ravel()  # all classes may move together: singular
        step_KP = solved.reshape(K, P)
        return step_KP, float((gradient_KP * step_KP).sum())

    def _slopes(self) -> Array:
        """One for every slope (P,), none for the intercept."""
        slopes_P = np.ones(self.z_NP.shape[1])
        slopes_P[0] = 0.0
        return slopes_P

    def log_part(self, coef_KP: Array, log_weights_K: Array | None) -> Array:
        """Log prior (N, K), whatever the sizes of the classes."""
        return log_softmax(self.z_NP @ coef_KP.T, axis=1)

    def penalty(self, coef_KP: Array) -> float:
        """Taken from the log likelihood, in nats."""
        squares_P = (coef_KP**2).sum(0)
        return float(0.5 * self.ridge * (squares_P @ self._slopes()))
