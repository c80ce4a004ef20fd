"""Coupled mixture autoencoders: variational arms on augmented copies of the rows that must agree on a category.

**Equation:** arm a sees x_a, a copy of x that keeps its type, and infers q(c_a | x_a) = softmax(softmax(h_a) / tau), a
Gumbel-softmax sample c_a of it at temperature T, and q(s_a | c_a, x_a) = N(mu_a, diag sigma_a^2); it decodes
p(x_a | c_a, s_a) = N(xhat_a, I). Minimised over all arms, every term a mean over rows:
L = (A - 1) sum_a [ |x_a - xhat_a|^2 / 2 + beta KL(q(s_a) || N(0, I)) + KL(q(c_a) || uniform) ]
+ lambda sum_{a<b} d^2(q_a, q_b). Distance "scaled": d^2 = sum_k (log q_ak / v_ak - log q_bk / v_bk)^2 with v_ak the
standard deviation of q_ak over the batch; "aitchison": log q less its mean over k in place of log q / v; "euclidean":
q itself. After training, a category's agreement is the rows that two arms both put there over the larger of the numbers
that either puts there, averaged over pairs; the least agreed one is pruned while it is below a threshold.

**Shapes:** X (N, D); A arms, K categories, S state dimensions, P = A (A - 1) / 2 pairs; x_AND, log_prob_ANK, mean_ANS.

**Reference:** Marghi, Gala, Sumbul (2020), Mixture Representation Learning with Coupled Autoencoders,
arXiv:2007.09880; loss, temperatures and pruning as in the authors' released code.

**Differs:** the text of the paper was not at hand: its objective is from memory, checked against the released code. The
augmenter is given (a function, or Gaussian noise), not a trained VAE-GAN, and arms see its copies alone, not the rows
beside them. Gaussian decoders only (the code has counts too). Nets have two hidden layers, without norms and dropout.
The constant of the coupling prior is left out. A single arm keeps the KL of its category (the code drops it) and A - 1
becomes 1. Pruning takes the weights out and restarts Adam. Arms are read together, by the geometric mean of their q,
which is their centre in Aitchison's geometry.

**Fails when:** columns are not scaled to the decoder's unit variance; the augmentation changes a row's type; batches
are so small that v is noise; lambda is large against the reconstruction: the scaled distance starts at many thousand
nats, and categories that lose their rows while it falls stay empty.

**Cost:** O(A N H (D + H)) a pass, O(A^2 N K) for the coupling.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from mixwell.core.method import method
from mixwell.density._gaussian import Array
from mixwell.density._options import Configured
from mixwell.density._training import update
from mixwell.density.latent._coupling import Distance, Pass, Terms, category_agreement, loss_terms, relax

Augment = Callable[[Tensor, torch.Generator], Tensor]  # rows (N, D) to another copy of them
ROWS = 8192  # at a time where nothing is trained


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the coupled autoencoders; `ValueError` for one out of range."""

    n_components: int = 10  # K: categories to begin with
    n_arms: int = 2  # A: 1 is a mixture VAE
    state_dim: int = 2  # S: length of s
    hidden_dim: int = 100  # H: width of the two hidden layers of encoder and decoder
    distance: Distance = "scaled"  # d between two arms' categories
    coupling: float = 1.0  # lambda
    beta: float = 1.0  # weight of the state's divergence
    tau: float = 0.1  # of the categories' second softmax, in (0, 1]
    temperature: float = 1.0  # T of the Gumbel-softmax
    augment: float | Augment = 0.0  # standard deviation of added noise (0: the rows themselves), or a function
    steps: int = 2000  # of Adam
    batch_size: int = 256  # rows a step, drawn without replacement
    lr: float = 1e-3  # Adam's step
    min_agreement: float = 0.0  # prune categories below it, in [0, 1]; 0: none
    prune_steps: int = 500  # of Adam after each category that goes
    random_state: Any = None

    def __post_init__(self) -> None:
        least = {
            "n_components": 1,
            "n_arms": 1,
            "state_dim": 1,
            "hidden_dim": 1,
            "steps": 1,
            "batch_size": 2,
            "coupling": 0,
            "beta": 0,
            "prune_steps": 0,
        }
        for name, smallest in least.items():
            value = getattr(self, name)
            if value < smallest:
                raise ValueError(f"{name} is {value}; expected {smallest} or more")
        if self.distance not in ("scaled", "aitchison", "euclidean"):
            raise ValueError(f"distance is {self.distance!r}; expected 'scaled', 'aitchison' or 'euclidean'")
        if not 0 < self.tau <= 1 or self.temperature <= 0 or self.lr <= 0:
            raise ValueError(f"tau, temperature, lr are {self.tau}, {self.temperature}, {self.lr}; expected tau in "
                             "(0, 1], the others above 0")
        if not callable(self.augment) and self.augment < 0:
            raise ValueError(f"augment is {self.augment}; expected 0 or more, or a function of rows and a generator")
        alone = self.min_agreement > 0 and self.n_arms < 2
        if alone or not 0 <= self.min_agreement <= 1:
            raise ValueError(f"min_agreement is {self.min_agreement} with {self.n_arms} arms; expected [0, 1], and two "
                             "arms or more to prune by")


def copies(x_ND: Tensor, arms: int, augment: float | Augment, generator: torch.Generator) -> Tensor:
    """One augmented copy of the rows an arm: (A, N, D); `ValueError` where the function gives another shape."""
    if not callable(augment):
        x_AND = x_ND.expand(arms, -1, -1)
        if not augment:
            return x_AND
        noise_AND = _normal(x_AND, generator)
        return x_AND + augment * noise_AND
    made = [augment(x_ND, generator) for _ in range(arms)]
    shape = made[0].shape
    if shape != x_ND.shape:
        raise ValueError(f"augment gives shape {tuple(shape)}; expected {tuple(x_ND.shape)} as it was given")
    return torch.stack(made)


class ArmLinear(nn.Module):
    """A linear layer an arm: (A, N, I) to (A, N, O)."""

    def __init__(self, arms: int, inputs: int, outputs: int, dtype: torch.dtype, generator: torch.Generator) -> None:
        super().__init__()
        reach = inputs**-0.5
        weight_AIO = torch.rand(arms, inputs, outputs, dtype=dtype, generator=generator)
        bias_A1O = torch.rand(arms, 1, outputs, dtype=dtype, generator=generator)
        signed_AIO = 2 * weight_AIO - 1
        signed_A1O = 2 * bias_A1O - 1
        self.weight_AIO = nn.Parameter(signed_AIO * reach)
        self.bias_A1O = nn.Parameter(signed_A1O * reach)

    def forward(self, x_ANI: Tensor) -> Tensor:
        """Every arm's rows through its own weights."""
        return torch.baddbmm(self.bias_A1O, x_ANI, self.weight_AIO)


class Arms(nn.Module):
    """The encoders and decoders of all arms, side by side."""

    def __init__(self, dim: int, config: Config, generator: torch.Generator, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.n_components = K = config.n_components
        S, H = config.state_dim, config.hidden_dim

        def linear(inputs: int, outputs: int) -> ArmLinear:
            return ArmLinear(config.n_arms, inputs, outputs, dtype, generator)

        self.encoder = nn.Sequential(
            linear(dim, H),
            nn.ReLU(),
            linear(H, H),
            nn.ReLU(),
        )
        self.category = linear(H, K)
        self.state = linear(H + K, 2 * S)
        self.read = linear(K + S, H)
        self.decoder = nn.Sequential(
            nn.ReLU(),
            linear(H, H),
            nn.ReLU(),
            linear(H, dim),
        )

    def infer(self, x_AND: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden features (A, N, H) and log q(c | x) (A, N, K)."""
        h_ANH = self.encoder(x_AND)
        logits_ANK = self.category(h_ANH)
        bounded_ANK = logits_ANK.softmax(-1)
        sharpened_ANK = bounded_ANK / self.config.tau
        return h_ANH, sharpened_ANK.log_softmax(-1)

    def states(self, h_ANH: Tensor, c_ANK: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance (A, N, S) of q(s | c, x); variances are below one."""
        inputs = torch.cat([h_ANH, c_ANK], -1)
        mean_ANS, raw_ANS = self.state(inputs).chunk(2, -1)
        return mean_ANS, nn.functional.logsigmoid(raw_ANS)

    def forward(self, x_AND: Tensor, gumbel_ANK: Tensor, normal_ANS: Tensor) -> Pass:
        """Categories, states and decoded rows for given standard noise."""
        h_ANH, log_prob_ANK = self.infer(x_AND)
        c_ANK = relax(log_prob_ANK, gumbel_ANK, self.config.temperature)
        mean_ANS, log_variance_ANS = self.states(h_ANH, c_ANK)
        log_scale_ANS = 0.5 * log_variance_ANS
        scale_ANS = log_scale_ANS.exp()
        s_ANS = mean_ANS + scale_ANS * normal_ANS
        latent_ANV = torch.cat([c_ANK, s_ANS], -1)
        read_ANH = self.read(latent_ANV)
        decoded_AND = self.decoder(read_ANH)
        return Pass(log_prob_ANK, mean_ANS, log_variance_ANS, decoded_AND)

    def without(self, k: int) -> Arms:
        """The same arms with category k taken out of every net."""
        other = deepcopy(self)
        other.n_components = self.n_components - 1
        kept = [j for j in range(self.n_components) if j != k]
        H = self.config.hidden_dim
        with_hidden = [*range(H), *(H + j for j in kept)]
        states = range(self.n_components, self.n_components + self.config.state_dim)
        with torch.no_grad():
            other.category.weight_AIO = nn.Parameter(self.category.weight_AIO[..., kept])
            other.category.bias_A1O = nn.Parameter(self.category.bias_A1O[..., kept])
            other.state.weight_AIO = nn.Parameter(self.state.weight_AIO[:, with_hidden])
            other.read.weight_AIO = nn.Parameter(self.read.weight_AIO[:, [*kept, *states]])
        return other


@method(
    title="Coupled mixture autoencoders",
    paper="Mixture Representation Learning with Coupled Autoencoders",
    year=2020,
    tags={"estimator", "responsibilities", "sklearn"},
)
class CoupledAutoencoders(Configured, config=Config):
    """Categories and states of rows by arms that agree; see the module's card and `Config`.

    Fitted: `arms_`, `n_components_` (categories left), `labels_` (N,), `agreement_` (share of rows on which two arms
    agree, mean over pairs; 1 for one arm), `category_agreement_` (K,), `history_` (name -> (steps,) of the loss and its
    terms summed over arms or pairs, in nats a row).
    """

    def fit(self, X: Any, y: Any = None) -> CoupledAutoencoders:
        """Fit rows X (N, D), two or more, with columns on the scale of the decoder's unit variance; returns self.

        `ValueError` for options out of range, or a function `augment` that gives another shape.
        """
        config = self._config()
        X = validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_samples=2)
        seed = check_random_state(config.random_state).randint(2**31 - 1)
        draws = torch.Generator().manual_seed(int(seed))
        x_ND = torch.tensor(X)
        self.arms_ = Arms(X.shape[1], config, draws, x_ND.dtype)
        losses = self._train(x_ND, config.steps, draws)
        self._compare(x_ND)
        while self.n_components_ > 1 and self.category_agreement_.min() < config.min_agreement:
            worst = int(self.category_agreement_.argmin())
            self.arms_ = self.arms_.without(worst)
            losses += self._train(x_ND, config.prune_steps, draws)
            self._compare(x_ND)
        names = ("loss", "reconstruction", "state", "category", "coupling")
        self.history_ = dict(zip(names, torch.stack(losses, 1).numpy()))
        self.labels_ = self.predict(X)
        return self

    def _train(self, x_ND: Tensor, steps: int, draws: torch.Generator) -> list[Tensor]:
        """Steps of Adam; the loss and its terms (5,) of each."""
        config = self.arms_.config
        optimizer = torch.optim.Adam(self.arms_.parameters(), lr=config.lr)
        losses = []
        for _ in range(steps):
            order_N = torch.randperm(len(x_ND), generator=draws)
            rows_B = order_N[: config.batch_size]
            terms = self._terms(x_ND[rows_B], draws)
            loss = terms.total(config.coupling, config.beta)
            update(optimizer, loss)
            parts = (terms.reconstruction_A, terms.state_A, terms.category_A, terms.coupling_P)
            sums = [part.sum() for part in parts]
            row_5 = torch.stack([loss, *sums])
            losses.append(row_5.detach())
        return losses

    def _terms(self, batch_BD: Tensor, draws: torch.Generator) -> Terms:
        """The parts of the loss on rows, with fresh copies and noise."""
        arms = self.arms_
        config = arms.config
        x_ABD = copies(batch_BD, config.n_arms, config.augment, draws)
        A, B, _ = x_ABD.shape
        exponential_ABK = x_ABD.new_empty(A, B, arms.n_components)
        exponential_ABK.exponential_(generator=draws)
        gumbel_ABK = -exponential_ABK.log()
        empty_ABS = x_ABD.new_empty(A, B, config.state_dim)
        normal_ABS = _normal(empty_ABS, draws)
        seen = arms(x_ABD, gumbel_ABK, normal_ABS)
        return loss_terms(x_ABD, seen, config.distance)

    def _compare(self, x_ND: Tensor) -> None:
        """Agreement of the arms on the rows themselves."""
        K = self.arms_.n_components
        labels_AN = self._log_prob(x_ND).argmax(-1)
        alone = (labels_AN[0], labels_AN[0])
        pairs = list(combinations(labels_AN, 2)) or [alone]
        shares = [(a == b).double().mean() for a, b in pairs]
        agreements = [category_agreement(a, b, K) for a, b in pairs]
        self.n_components_ = K
        self.agreement_ = float(torch.stack(shares).mean())
        self.category_agreement_ = torch.stack(agreements).mean(0).numpy()

    @torch.no_grad()
    def _log_prob(self, x_ND: Tensor) -> Tensor:
        """Every arm's log q(c | x) (A, N, K)."""
        found = []
        for rows_MD in x_ND.split(ROWS):
            rows_AMD = rows_MD.expand(self.arms_.config.n_arms, -1, -1)
            _, log_prob_AMK = self.arms_.infer(rows_AMD)
            found.append(log_prob_AMK)
        return torch.cat(found, 1)

    def _rows(self, X: Any) -> Tensor:
        check_is_fitted(self, "arms_")
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return torch.tensor(X, dtype=self.arms_.category.weight_AIO.dtype)

    def predict_proba(self, X: Any) -> Array:
        """The arms' consensus (N, K): the normalised geometric mean of their q(c | x); an error before `fit`."""
        log_prob_ANK = self._log_prob(self._rows(X))
        consensus_NK = log_prob_ANK.mean(0).softmax(-1)
        return np.asarray(consensus_NK.numpy())

    def predict(self, X: Any) -> Array:
        """The consensus' most probable category (N,), from 0 to `n_components_` - 1; an error before `fit`."""
        prob_NK = self.predict_proba(X)
        return np.asarray(prob_NK.argmax(1))

    @torch.no_grad()
    def states(self, X: Any) -> Array:
        """Every arm's mean state (A, N, S) of the rows, given the consensus' category; an error before `fit`."""
        x_ND = self._rows(X)
        x_AND = x_ND.expand(self.arms_.config.n_arms, -1, -1)
        h_ANH, log_prob_ANK = self.arms_.infer(x_AND)
        consensus_NK = log_prob_ANK.mean(0)
        label_N = consensus_NK.argmax(-1)
        hot_NK = nn.functional.one_hot(label_N, self.n_components_)
        c_ANK = hot_NK.to(h_ANH).expand_as(log_prob_ANK)
        mean_ANS, _ = self.arms_.states(h_ANH, c_ANK)
        return np.asarray(mean_ANS.numpy())


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, dtype=like.dtype, generator=generator)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two groups in the plane and two arms."""
    noise_ND = torch.randn(40, 2, generator=generator, dtype=torch.float64)
    group_N = torch.arange(40) % 2
    x_ND = noise_ND + 6.0 * group_N[:, None]
    estimator = CoupledAutoencoders(
        n_components=2,
        hidden_dim=8,
        steps=5,
        batch_size=20,
        augment=0.1,
        random_state=0,
    )
    return {"estimator": estimator, "X": x_ND.numpy()}
