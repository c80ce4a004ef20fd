import math

import numpy as np
import pytest
import torch

from mixwell.density.latent._atlas import (
    Flow,
    couple,
    draw_latent,
    latent_log_density,
    misfit,
    mixed,
    overlap_responsibilities,
    riemannian_gradient,
    spread_out,
)
from mixwell.density.latent.charts import ChartMixture, Config, Training, example

BRIEF = {"seed_steps": 2, "steps": 3, "smooth_steps": 1, "overlap_steps": 2, "batch_size": 16, "seed_points": 20,
         "candidates": 20}


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def made(dim=3, seed=0, **options):
    given = {"latent_dim": 2, "hidden_dim": 6, "layers": 2, "sigma_x": 0.2, "sigma_z": 0.1, **options}
    return ChartMixture(dim, Config(**given), draws(seed)).double()


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=draws(seed), dtype=torch.float64)


def circle(count=64, seed=2):
    angle = 2 * math.pi * torch.rand(count, generator=draws(seed), dtype=torch.float64)
    return torch.stack([angle.cos(), angle.sin()], 1)


def arcs():
    """Charts without a net: two straight strips, the one along x at y = 0.3 and the other at y = -0.3."""
    module = made(2, latent_dim=1, layers=1, sigma_x=0.05, sigma_z=0.05)
    with torch.no_grad():
        for p in module.flow.parameters():
            p.zero_()
        list(module.flow.nets[1].parameters())[5][:, 0, 1] = torch.tensor([0.3, -0.3])
    return module


@pytest.mark.parametrize("dim, layers", [(2, 5), (3, 2), (5, 1)])
def test_a_flow_comes_back_and_its_log_determinant_is_that_of_its_jacobian(dim, layers):
    flow = Flow(dim, layers, Config(hidden_dim=6), draws()).double()
    z = normal(2, 3, dim)
    x, log_det = flow(z)
    back, undone = flow(x, inverse=True)
    torch.testing.assert_close(back, z, rtol=0, atol=1e-10)
    torch.testing.assert_close(undone, -log_det, rtol=0, atol=1e-10)
    for k in range(2):
        for b in range(3):
            full = torch.autograd.functional.jacobian(lambda v, k=k, b=b: flow(v.expand(2, 1, dim))[0][k, 0], z[k, b])
            assert float(log_det[k, b].detach()) == pytest.approx(float(full.det().abs().log()), abs=1e-10)


def test_coupling_agrees_with_a_loop_and_has_its_gradient():
    x, raw = normal(3, 2), 9 * normal(3, 4, seed=2)
    y, log_det = couple(x, raw, 1.4)
    for b in range(3):
        scale = [1.4 * 2 / math.pi * math.atan(float(s) / 1.4) for s in raw[b, :2]]
        assert max(map(abs, scale)) < 1.4 and float(log_det[b]) == pytest.approx(sum(scale))
        wanted = [float(x[b, i]) * math.exp(scale[i]) + float(raw[b, 2 + i]) for i in (0, 1)]
        assert y[b].tolist() == pytest.approx(wanted)
    for inverse in (False, True):
        inputs = x.clone().requires_grad_(), raw.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda a, b, inverse=inverse: couple(a, b, 1.4, inverse), inputs)


@pytest.mark.parametrize("latent_layers, latent_dim, dim", [(3, 2, 3), (0, 2, 2), (3, 1, 4)])
def test_a_chart_after_its_inverse_is_the_identity_on_the_manifold(latent_layers, latent_dim, dim):
    module = made(dim, latent_dim=latent_dim, latent_layers=latent_layers)
    z = normal(2, 6, latent_dim)
    x = module.points(z)
    torch.testing.assert_close(module.coordinates(x), z, rtol=0, atol=1e-10)
    torch.testing.assert_close(module.points(module.coordinates(x)), x, rtol=0, atol=1e-10)
    assert bool(len(list(module.latent.parameters())) > 0) == (latent_dim > 1 and latent_layers > 0)


@pytest.mark.parametrize("options", [{}, {"ramp": 0.5}, {"edge": 0.4}, {"edge": 1.0}, {"decay": 5.0}, {"ramp": 1.0}])
def test_the_latent_density_integrates_to_one_and_draws_follow_it(options):
    config = Config(n_charts=1, **options)
    grid = torch.linspace(-9, 9, 200_001, dtype=torch.float64)[:, None]
    density = latent_log_density(grid, config).exp()
    assert float(density.sum()) * 18 / 200_000 == pytest.approx(1, abs=1e-4)
    drawn = draw_latent(40_000, config, draws(), torch.float64).flatten()
    points = torch.tensor([-1.02, -0.9, -0.4, 0.1, 0.85, 0.95, 1.01], dtype=torch.float64)
    wanted = (density.cumsum(0) * 18 / 200_000)[torch.searchsorted(grid[:, 0].contiguous(), points)]
    torch.testing.assert_close((drawn[:, None] < points).double().mean(0), wanted, rtol=0, atol=0.01)


def slow_elbo(module, k, x, noise):
    """One chart and one point; log determinants from Jacobians."""
    c, D, L = module.config, module.dim, module.config.latent_dim
    sigma_x, sigma_z, K = c.sigma_x, c.sigma_z, c.n_charts
    y = module.flow(x.expand(K, 1, D), inverse=True)[0][k, 0, :L] + sigma_z * noise
    back = module.flow(torch.cat([y, y.new_zeros(D - L)]).expand(K, 1, D))[0][k, 0]
    z = module.latent(y.expand(K, 1, L), inverse=True)[0][k, 0]
    jacobian = torch.autograd.functional.jacobian(
        lambda v: module.latent(v.expand(K, 1, L), inverse=True)[0][k, 0], y, create_graph=True)
    half = 1 - c.ramp + c.ramp * (1 + c.edge) / 2 + c.edge / c.decay
    total = jacobian.det().abs().log()
    for value in z:
        a = value.abs()
        if a < 1:
            height = a * 0 + 1 if a < 1 - c.ramp else c.edge + (1 - c.edge) * (1 - a) / c.ramp
        else:
            height = c.edge * torch.exp(-c.decay * (a - 1))
        total = total + torch.log(height / (2 * half))
    for i in range(D):
        total = total - (x[i] - back[i]) ** 2 / (2 * sigma_x**2) - 0.5 * math.log(2 * math.pi * sigma_x**2)
    return total + L / 2 * math.log(2 * math.pi * math.e * sigma_z**2)


@pytest.mark.parametrize("objective", ["likelihood", "weighted"])
def test_agrees_with_a_loop_forward_and_gradient(objective):
    module, x = made(objective=objective, decay=3.0, learn_weights=True), 0.7 * normal(4, 3)
    with torch.no_grad():
        module.logit_K.copy_(torch.tensor([0.3, -0.5]))
    noise = torch.randn(2, 4, 2, generator=draws(5), dtype=torch.float64)
    fast = module(x, draws(5))
    log_alpha, rows = module.logit_K - module.logit_K.exp().sum().log(), []
    for b in range(4):
        joint = torch.stack([log_alpha[k] + slow_elbo(module, k, x[b], noise[k, b]) for k in range(2)])
        beta = joint.exp() / joint.exp().sum()
        torch.testing.assert_close(fast.resp_BK[b], beta)
        rows.append((beta * (joint - beta.log())).sum() if objective == "likelihood" else (beta * joint).sum())
    torch.testing.assert_close(fast.log_density_B, torch.stack(rows))
    torch.testing.assert_close(fast.resp_BK.sum(1), torch.ones(4, dtype=torch.float64))
    parameters = list(module.parameters())
    one, two = (torch.autograd.grad(v.sum(), parameters, retain_graph=True) for v in
                (fast.log_density_B, torch.stack(rows)))
    torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-9)


def expected_elbo(module, x):
    """Over the encoder's noise, by Gauss-Hermite quadrature, for one latent coordinate."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(15)
    K, B = module.config.n_charts, len(x)
    noisy = [module.elbo(x.expand(K, B, 2), torch.full((K, B, 1), float(n), dtype=torch.float64))[0] for n in nodes]
    return sum(v * float(w) for v, w in zip(noisy, weights / weights.sum()))


def test_the_bound_is_below_the_density_and_the_density_integrates_to_one():
    """Of a curved chart and a straight one, against the latent integral on a grid."""
    module = made(2, latent_dim=1, sigma_x=0.15, sigma_z=0.12)
    z = torch.linspace(-1.3, 1.3, 300, dtype=torch.float64)[:, None].expand(2, -1, 1)
    with torch.no_grad():
        centre = module.points(z)
        low, high = centre.amin((0, 1)) - 0.8, centre.amax((0, 1)) + 0.8
        axes = [torch.linspace(float(a), float(b), 40, dtype=torch.float64) for a, b in zip(low, high)]
        x, cell = torch.cartesian_prod(*axes), float(((high - low) / 39).prod())
        kernel = torch.exp(-torch.cdist(x, centre) ** 2 / (2 * 0.15**2)) / (2 * math.pi * 0.15**2)
        density = (kernel * latent_log_density(z, module.config).exp()[:, None]).sum(-1).mean(0) * 2.6 / 299
        bounds = expected_elbo(module, x).logsumexp(0) - math.log(2)
    assert float(density.sum()) * cell == pytest.approx(1, abs=0.01)
    gap = (density.log() - bounds)[density > 1e-3]
    assert float(gap.min()) > 0 and float(gap.median()) < 2


def test_the_bound_of_a_straight_chart_is_its_density():
    """With sigma_x = sigma_z, a flat latent density and no net the encoder is the posterior."""
    module, x = arcs(), torch.tensor([[0.1, 0.2], [-0.2, 0.35]], dtype=torch.float64)
    bound = expected_elbo(module, x).T
    half = 1 - 0.2 + 0.2 * 1.05 / 2 + 0.05 / 100
    for k, height in enumerate((0.3, -0.3)):
        off = (x[:, 1] - height) ** 2 / (2 * 0.05**2) + 0.5 * math.log(2 * math.pi * 0.05**2)
        torch.testing.assert_close(bound[:, k].detach(), -math.log(2 * half) - off, rtol=0, atol=1e-4)


def test_one_chart_is_one_vae():
    one, x = made(n_charts=1), normal(5, 3)
    found = one(x, draws(3))
    torch.testing.assert_close(found.log_density_B, found.elbo_BK[:, 0])
    torch.testing.assert_close(found.resp_BK, torch.ones(5, 1, dtype=torch.float64))
    two = made(n_charts=2)
    two.load_state_dict({name: value.expand(2, *value.shape[1:]) for name, value in one.state_dict().items()})
    torch.testing.assert_close(two(x).log_density_B, one(x).log_density_B)
    torch.testing.assert_close(overlap_responsibilities(normal(1, 4), normal(1, 4)), torch.ones(1, 4).double())


def test_overlap_gives_a_shrunken_charts_points_to_its_neighbour():
    joint, change = normal(3, 5), -normal(3, 5, seed=2).abs()
    found = overlap_responsibilities(joint, change)
    for b in range(5):
        best = torch.zeros(3, dtype=torch.float64)
        for shrunk in range(3):
            own = torch.stack([joint[k, b] + (change[k, b] if k == shrunk else 0) for k in range(3)])
            best = torch.maximum(best, own.exp() / own.exp().sum())
        torch.testing.assert_close(found[:, b], best / best.sum())
    shared = overlap_responsibilities(torch.tensor([[0.0], [-30.0]]), torch.tensor([[-60.0], [0.0]]))
    torch.testing.assert_close(shared, torch.full((2, 1), 0.5))


def test_the_riemannian_gradient_is_the_dumb_formula():
    jacobian, gradient = normal(2, 3, 4, 2), normal(2, 3, 4, seed=2)
    found = riemannian_gradient(jacobian, gradient)
    for k in range(2):
        for b in range(3):
            j, g = jacobian[k, b].numpy(), gradient[k, b].numpy()
            np.testing.assert_allclose(found[k, b], np.linalg.inv(j.T @ j) @ j.T @ g, rtol=1e-9)
    assert torch.autograd.gradcheck(riemannian_gradient, (jacobian.requires_grad_(), gradient.requires_grad_()))


def test_jacobians_are_autograds():
    module, z = made(), normal(2, 3, 2)
    found = module.jacobian(z)
    for k in range(2):
        for b in range(3):
            wanted = torch.autograd.functional.jacobian(
                lambda v, k=k: module.points(v.expand(2, 1, 2))[k, 0], z[k, b])
            torch.testing.assert_close(found[k, b], wanted)


@pytest.mark.parametrize("hop", ["mean", "best"])
@pytest.mark.parametrize("retraction", ["project", "chart"])
def test_one_small_step_is_the_formula(hop, retraction):
    module, y = made(2, latent_dim=1, sigma_x=0.6), normal(3, 2)
    points, values = module.descend(misfit(lambda x: x, y), normal(3, 2, seed=7), steps=1, step_size=0.05,
                                    hop=hop, retraction=retraction)
    for b in range(3):
        x = points[0, b]
        beta = module(x[None]).resp_BK[0]
        share = torch.nn.functional.one_hot(beta.argmax(), 2) if hop == "best" else beta
        new, mass = 0, 0
        for k in range(2):
            z = module.coordinates(x.expand(2, 1, 2))[k, 0]
            j = torch.autograd.functional.jacobian(lambda v, k=k: module.points(v.expand(2, 1, 1))[k, 0], z)
            way = torch.linalg.inv(j.T @ j) @ j.T @ (module.points(z.expand(2, 1, 1))[k, 0] - y[b])
            to = z - 0.05 * way
            if retraction == "project":
                to = module.coordinates((x - 0.05 * j @ way).expand(2, 1, 2))[k, 0]
            if abs(to) <= max(1, abs(z)):
                new, mass = new + share[k] * module.points(to.expand(2, 1, 1))[k, 0], mass + share[k]
        new = new / mass
        torch.testing.assert_close(points[1, b], new.detach())
        assert float(values[1, b]) == pytest.approx(float((new - y[b]).detach().square().sum()) / 2)


@pytest.mark.parametrize("hop", ["mean", "best"])
@pytest.mark.parametrize("retraction", ["project", "chart"])
def test_the_objective_never_rises(hop, retraction):
    module, operator = made(), normal(2, 3)
    y, start = normal(6, 2, seed=3), normal(6, 3, seed=4)
    _, values = module.descend(misfit(lambda x: x @ operator.T, y), start, steps=8, hop=hop, retraction=retraction)
    assert float(values.diff(dim=0).max()) <= 0 and bool((values[-1] < values[0]).all())


def test_projection_of_a_point_is_the_nearest_of_the_chart():
    module = arcs()
    points, values = module.project(torch.tensor([[0.4, 0.5], [-0.3, -0.2]], dtype=torch.float64), step_size=0.5)
    torch.testing.assert_close(points[-1], torch.tensor([[0.4, 0.3], [-0.3, -0.3]], dtype=torch.float64))
    torch.testing.assert_close(values[-1], torch.tensor([0.02, 0.005], dtype=torch.float64))


def test_descent_hops_from_a_chart_to_the_next():
    """Two charts of one line: the first covers x in (-1, 1), the second x in (0.5, 2.5); the goal is in the second."""
    module = arcs()
    with torch.no_grad():
        bias = list(module.flow.nets[1].parameters())[5]
        bias.zero_()
        list(module.flow.nets[0].parameters())[5][:, 0, 1] = torch.tensor([0.0, 1.5])
    for hop in ("mean", "best"):
        points, values = module.descend(misfit(lambda x: x[:, :1], torch.tensor([[2.0]])), normal(1, 2) * 0, hop=hop,
                                        step_size=0.5, steps=30)
        chart = module(points[:, 0]).resp_BK.argmax(1)
        assert chart[0] == 0 and chart[-1] == 1 and float(values[-1]) < 1e-12


def test_descent_stops_at_the_end_of_the_last_chart():
    """Where a chart ends the manifold does; a start beyond the end may still come back."""
    goal = misfit(lambda x: x[:, :1], torch.tensor([[3.0], [0.5]]))
    points, _ = arcs().descend(goal, torch.tensor([[0.0, 0.3], [1.5, 0.3]], dtype=torch.float64), steps=40,
                               step_size=0.3)
    torch.testing.assert_close(points[-1, :, 0], torch.tensor([1.0, 0.5], dtype=torch.float64), rtol=0, atol=1e-4)
    assert float(points[:, 0, 0].max()) <= 1


def test_a_singular_chart_takes_no_step():
    assert not bool(riemannian_gradient(torch.zeros(1, 1, 2, 1), torch.ones(1, 1, 2)).isfinite().any())
    share = torch.tensor([[1.0], [0.0]])
    torch.testing.assert_close(mixed(share, torch.tensor([[[3.0]], [[math.nan]]])), torch.tensor([[3.0]]))


def test_centres_lie_far_apart():
    x = torch.tensor([[0.0, 0], [0.1, 0], [5, 0], [5.2, 0], [0, 7]])
    assert sorted(spread_out(x, 3).tolist()) in ([0, 2, 4], [0, 3, 4], [1, 2, 4], [1, 3, 4])
    assert spread_out(x, 5).tolist() == [0, 1, 2, 3, 4] and len(spread_out(x, 1)) == 1
    # of the pair 0, 1 the second is nearer to what remains
    assert sorted(spread_out(torch.tensor([[0.0], [1.0], [2.5]]), 2).tolist()) == [0, 2]


def test_the_lipschitz_term_is_the_jacobians_norm_for_small_noise():
    module = made(2, latent_dim=1, sigma_z=1e-4)
    found = module.roughness(4, draws(3))
    again = draws(3)
    z = draw_latent(4, module.config, again, torch.float64)
    noise = torch.randn(2, 4, 1, generator=again, dtype=torch.float64)
    moves = [1e-4 * module.jacobian(z)[k, b] @ noise[k, b] for k in (0, 1) for b in range(4)]
    assert float(found.detach()) == pytest.approx(sum(float(v @ v) for v in moves) / 0.2**2, rel=1e-3)


def test_fitting_raises_the_bound_and_charts_share_a_circle():
    module = made(2, latent_dim=1, hidden_dim=12, sigma_z=0.2).float()
    x = circle(200).float()
    losses = module.fit(x, draws(), Training(**{**BRIEF, "seed_steps": 15, "steps": 15, "lr": 1e-2, "seed_lr": 1e-2}))
    assert losses.shape == (15,) and float(losses[-5:].mean()) < 0.8 * float(losses[:5].mean())
    owner = module(x).resp_BK.argmax(1)
    assert 20 < int(owner.sum()) < 180
    assert float(module.logit_K.exp().sum()) == pytest.approx(1, abs=1e-5)


def fitted(**training):
    module = made(2, latent_dim=1, layers=1, decay=4.0)
    module.fit(circle(), draws(4), Training(**training))
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("change", [{}, {"seed_steps": 0}, {"seed_points": 5}, {"candidates": 2}, {"seed_lr": 0.1},
                                    {"steps": 1}, {"smooth_steps": 0}, {"lipschitz": 9.0}, {"overlap_steps": 0},
                                    {"overlap_scale": 3.0}, {"batch_size": 8}, {"lr": 0.1}, {"clip": 0.01}])
def test_each_training_option_counts_and_the_same_generator_gives_the_same_bits(change):
    assert torch.equal(fitted(**BRIEF), fitted(**{**BRIEF, **change})) == (not change)


def test_weights_are_learned_by_likelihood_only_when_asked():
    for learn in (False, True):
        module = made(2, latent_dim=1, learn_weights=learn)
        module.fit(circle(), draws(), Training(**{**BRIEF, "overlap_steps": 0}))
        assert bool(module.logit_K.detach().any()) == learn


def test_samples_come_from_the_charts_by_weight():
    module = arcs()
    with torch.no_grad():
        module.logit_K.copy_(torch.tensor([0.8, 0.2]).log())
    drawn = module.sample(2000, draws())
    torch.testing.assert_close(drawn[:, 1].abs(), torch.full((2000,), 0.3, dtype=torch.float64))
    assert float((drawn[:, 1] > 0).double().mean()) == pytest.approx(0.8, abs=0.03)
    torch.testing.assert_close(drawn, module.sample(2000, draws()), rtol=0, atol=0)


def test_float32_agrees_with_float64_and_inputs_stay():
    module, x = made(), normal(5, 3)
    kept, start = x.clone(), normal(5, 3, seed=2)
    double = module(x).elbo_BK, module.project(start, steps=3)[0]
    module.float()
    torch.testing.assert_close(module(x.float()).elbo_BK.double(), double[0], rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(module.project(start.float(), steps=3)[0].double(), double[1], rtol=1e-3, atol=1e-3)
    assert torch.equal(x, kept) and torch.equal(start, normal(5, 3, seed=2))
    assert all(p.grad is None for p in module.parameters())


def test_refuses():
    module = made()
    with pytest.raises(ValueError, match=r"x has shape \(5, 2\); expected \(points, 3\)"):
        module(normal(5, 2))
    with pytest.raises(ValueError, match="x has 1 rows; expected one or more for each of 2 charts"):
        module.fit(normal(1, 3), draws())
    with pytest.raises(ValueError, match="dim is 1 with latent_dim 2"):
        made(1)
    with pytest.raises(ValueError, match="expected project or chart, mean or best, and above 0"):
        module.project(normal(2, 3), hop="first")
    for name in ("n_charts", "latent_dim", "layers", "hidden_dim", "clamp", "sigma_x", "sigma_z", "ramp", "decay"):
        with pytest.raises(ValueError, match=f"{name} is 0; expected above 0"):
            Config(**{name: 0})
    with pytest.raises(ValueError, match="latent_layers is -1; expected 0 or more"):
        Config(latent_layers=-1)
    with pytest.raises(ValueError, match="objective is 'other'; expected likelihood or weighted"):
        Config(objective="other")
    for wrong in ({"ramp": 1.5}, {"edge": 2.0}):
        with pytest.raises(ValueError, match=r"ramp, edge are .*; expected at most 1"):
            Config(**wrong)
    with pytest.raises(ValueError, match="lr is 0; expected above 0"):
        Training(lr=0)


def test_example_runs():
    given = example(draws())
    found = given["module"](given["x_BD"], given["generator"])
    assert found.resp_BK.shape == (10, 2) and bool(found.log_density_B.isfinite().all())
