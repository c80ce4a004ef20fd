"""The bases against brute force, and resampling where the rest of the mixture contains the component."""

import numpy as np
import pytest
import torch

from mixwell.density.robust.proportion import (
    Config,
    example,
    hull_distance,
    keep,
    kernel_proportion,
    mixture_proportion,
    roc_slope,
    to_simplex,
)


def samples(generator, rows, leak, kappa=0.3):
    """F, H and P(Y = H | x): G holds a share `leak` of H's own density beside one four away."""
    mine = torch.rand(rows, generator=generator) < kappa
    leaked = ~mine & (torch.rand(rows, generator=generator) < leak)
    far = torch.where(mine | leaked, 0.0, 4.0).double()
    x = torch.randn(rows, generator=generator, dtype=torch.float64) + far
    near, away = torch.exp(-0.5 * x**2), torch.exp(-0.5 * (x - 4) ** 2)
    rest = (1 - kappa) * (leak * near + (1 - leak) * away)
    posterior = kappa * near / (kappa * near + rest)
    return x[:, None], torch.randn(rows, 1, generator=generator, dtype=torch.float64), posterior


def test_roc_slope_agrees_with_a_loop(generator):
    f, h = (torch.randn(60, generator=generator).double().numpy() + s for s in (0.0, 1.0))
    best = 1.0
    for t in np.concatenate([f, h]):
        share_f, share_h = np.mean(f >= t), np.mean(h >= t)
        band = 0.3 * np.sqrt(np.log(60) / 60)
        if share_h > 2 * band:
            best = min(best, (share_f + band) / (share_h - band))
    assert abs(roc_slope(f, h, 0.3) - best) < 1e-12
    assert roc_slope(h, h, 0.0) == 1.0


def test_simplex_projection_is_the_nearest_point():
    rng = np.random.default_rng(0)
    v = rng.normal(size=5)
    nearest = to_simplex(v)
    assert nearest.min() >= 0 and abs(nearest.sum() - 1) < 1e-12
    others = rng.dirichlet(np.ones(5), 2000)
    assert ((others - v) ** 2).sum(1).min() >= ((nearest - v) ** 2).sum() - 1e-12


def test_hull_distance_is_zero_inside_and_the_gap_outside():
    points = np.array([[0.0, 0], [1, 0], [0, 1]])
    gram = points @ points.T
    inside, outside = np.array([0.2, 0.5, 0.3]), np.array([-1.0, 1.0, 1.0])  # (1, 1) lies sqrt(1/2) off the edge
    curvature = float(np.linalg.norm(gram, 2))
    assert hull_distance(gram, inside, curvature) < 1e-6
    assert abs(hull_distance(gram, outside, curvature, 400) - np.sqrt(0.5)) < 1e-4


@pytest.mark.parametrize("base, tolerance", [("roc", 0.08), ("kernel", 0.12)])
def test_bases_find_the_share_where_the_rest_does_not_hold_the_component(generator, base, tolerance):
    x, h, _ = samples(generator, 600, 0.0)
    assert abs(mixture_proportion(x, h, Config(base=base, max_rows=120), generator) - 0.3) < tolerance


@pytest.mark.parametrize("base", ["roc", "kernel"])
def test_resampling_removes_the_bias_of_a_reducible_rest(generator, base):
    x, h, posterior = samples(generator, 1200, 0.4)
    config = Config(base=base, max_rows=120)
    plain = mixture_proportion(x, h, config, generator)
    resampled = mixture_proportion(x, h, config, generator, alpha=posterior)
    assert plain > 0.45 and abs(resampled - 0.3) < 0.1


def test_keeping_everything_changes_nothing(generator):
    x, h, _ = samples(generator, 200, 0.0)
    config, seeds = Config(), [torch.Generator().manual_seed(s) for s in (1, 1)]
    torch.rand(200, generator=seeds[1], dtype=torch.float64)
    plain = mixture_proportion(x, h, config, seeds[1])
    assert mixture_proportion(x, h, config, seeds[0], alpha=torch.ones(200)) == plain
    kept, share = keep(torch.full((4000,), 0.25, dtype=torch.float64), generator)
    assert share == 0.25 and abs(float(kept.double().mean()) - 0.25) < 0.03


def test_options_move_what_they_say(generator):
    x, h, _ = samples(generator, 300, 0.0)
    scores = x[:, 0].neg().numpy(), h[:, 0].neg().numpy()
    assert roc_slope(*scores, 0.5) > roc_slope(*scores, 0.0)
    assert kernel_proportion(x[:60].numpy(), h[:60].numpy(), 1.1) <= 1 - 1 / 1.1


def test_refuses(generator):
    x, h = torch.zeros(20, 1), torch.zeros(20, 2)
    with pytest.raises(ValueError, match="expected rows of the same columns"):
        mixture_proportion(x, h, Config(), generator)
    with pytest.raises(ValueError, match="a number from 0 to 1 for each of 20 rows"):
        mixture_proportion(x, x, Config(), generator, alpha=torch.full((20,), 1.5))
    with pytest.raises(ValueError, match="0 rows of the mixture are kept"):
        mixture_proportion(x, x, Config(), generator, alpha=torch.zeros(20))
    with pytest.raises(ValueError, match="expected 'roc' or 'kernel'"):
        Config(base="kde")


def test_example_runs(generator):
    assert 0 <= mixture_proportion(**example(generator)) <= 1


def proportion(**options):
    """Of one component alone, where nothing but the bands and the range keep the proportion from 1."""
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(60, 1, generator=draws)
    return mixture_proportion(x, torch.randn(50, 1, generator=draws) + 3, Config(**options), draws)


def test_wider_bands_allow_more_of_the_component():
    narrow, wide = (proportion(base="roc", confidence=c) for c in (0.1, 0.5))
    assert narrow < wide <= 1


def test_the_kernel_estimate_ends_at_the_largest_lambda():
    inputs = example(torch.Generator().manual_seed(0))
    inputs["config"] = Config(base="kernel", max_lambda=1.2)
    assert mixture_proportion(**inputs) <= 1 - 1 / 1.2
    inputs = example(torch.Generator().manual_seed(0))
    inputs["config"] = Config(base="kernel")
    assert mixture_proportion(**inputs) > 1 - 1 / 1.2
