"""Power-scaling against closed forms: a Gaussian prior or likelihood to a power is Gaussian."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import SIGMAS, seeded

import pyrovae
from pyrovae import guides, models
from pyrovae.diagnostics.posterior.sensitivity import CONFLICT, WEAK, Distance

QUIET = {"progress": False, "device": "cpu"}
K = 20_000


def oracle():
    model = seeded(lambda: models.LinearGaussian(2, 5).double().requires_grad_(False))
    return model, guides.Exact(model)


def posterior(model, x, prior_power, likelihood_power):
    """Mean ``[N, 2]`` and covariance of p(z)^a p(x | z)^b."""
    data = likelihood_power * model.weight.T @ (model.weight / model.scale[:, None] ** 2)
    covariance = torch.linalg.inv(prior_power * torch.eye(2).double() + data)
    return likelihood_power * ((x - model.bias) / model.scale**2) @ model.weight @ covariance, covariance


def normal_distance(m, s, m2, s2):
    """The cumulative Jensen-Shannon distance of two normal distributions, by quadrature.

    It is divided by the area under both distribution functions, over the range of the draws: about 4.0 standard
    deviations either way for 20,000.
    """
    grid = np.linspace(m - 4.0 * s, m + 4.0 * s, 40_001)
    values = torch.from_numpy(grid)[:, None, None]
    weights = [torch.distributions.Normal(a, b).log_prob(values[:, :, 0]).softmax(0) for a, b in ((m, s), (m2, s2))]
    return float(Distance(values)(*weights))


def test_moments_and_distances_are_those_of_the_closed_form():
    """Means within 4 errors (24 comparisons); distances, whose range is that of the draws, within a tenth."""
    model, guide = oracle()
    x = pyrovae.sample(model, 3, seed=4, **QUIET)["x"]
    found = pyrovae.sensitivity(model, guide, x, num_particles=K, **QUIET)
    for c, powers in enumerate(((0.8, 1.25), (0.8, 1.25))):
        for a, power in enumerate(powers):
            mean, covariance = posterior(model, x, *((power, 1.0) if c == 0 else (1.0, power)))
            sd = covariance.diagonal().sqrt()
            assert bool(((found.means[c, a] - mean).abs() < SIGMAS * 1.3 * sd / math.sqrt(K)).all())
            assert bool(((found.sds[c, a] / sd - 1).abs() < SIGMAS * 1.3 / math.sqrt(2 * K)).all())
    mean, covariance = posterior(model, x, 1.0, 1.0)
    for component, slopes in enumerate((found.prior, found.likelihood)):
        for n in range(3):
            for d in range(2):
                expected = 0.0
                for power in (0.8, 1.25):
                    other, spread = posterior(model, x, *((power, 1.0) if component == 0 else (1.0, power)))
                    ends = [float(v) for v in (mean[n, d], covariance[d, d].sqrt(), other[n, d], spread[d, d].sqrt())]
                    expected += normal_distance(*ends) / abs(math.log2(power))
                assert float(slopes[n, d]) == pytest.approx(expected / 2, rel=0.1, abs=0.01)


def scalar(noise):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)).double(), 1.0))
            pyro.sample("x", dist.Normal(z, noise), obs=x)

    def guide(x):
        precision = 1 + 1 / noise**2
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / noise**2 / precision, precision**-0.5))

    return model, guide


def test_a_conflict_is_named_by_observation():
    """5% of the observations lie six standard deviations from where the prior would have them."""
    x = torch.randn(100, generator=torch.Generator("cpu").manual_seed(0)).double() * 0.5
    x[:5] = 6.0
    found = pyrovae.sensitivity(*scalar(0.7), x, num_particles=2000, **QUIET)
    named = (found.diagnosis == CONFLICT)[:, 0]
    assert named[:5].all()
    assert found.prior[:5].min() > 2 * found.prior[5:].median()
    table = found.table()
    assert table.index.names == ["datum", "latent"]
    assert table.loc[(0, "z[0]"), "diagnosis"] == CONFLICT
    assert found.reliable.all()


def test_an_observation_that_says_little_has_a_strong_prior():
    found = pyrovae.sensitivity(*scalar(30.0), torch.zeros(20).double(), num_particles=1000, **QUIET)
    assert (found.diagnosis == WEAK).all()
    assert "100% with a strong prior or weak likelihood" in str(found)
    strong = pyrovae.sensitivity(*scalar(0.01), torch.zeros(20).double(), num_particles=1000, **QUIET)
    assert (strong.diagnosis == "").all()


def test_batches_do_not_matter_and_bad_arguments_are_refused():
    x = torch.linspace(-2, 2, 9).double()
    one, other = (pyrovae.sensitivity(*scalar(0.7), x, batch_size=b, num_particles=300, **QUIET) for b in (2, 9))
    torch.testing.assert_close(one.prior, other.prior)
    for bad in ((1.25, 0.8), (0.8,), 0.8, (0.5, 1.0)):
        with pytest.raises(ValueError, match="alphas must be a power between 0 and 1 and one above 1"):
            pyrovae.sensitivity(*scalar(0.7), x, alphas=bad, **QUIET)


def test_the_distance_is_arvizs():
    """For equal weights on one side, as ArviZ takes them."""
    diagnostics = pytest.importorskip("arviz_stats.base.diagnostics", reason="ArviZ 1.x, which needs Python 3.12")
    source = np.random.default_rng(0)
    values, weights = source.normal(size=500), source.dirichlet(np.ones(500))
    cjs = next(c._cjs_dist for c in vars(diagnostics).values() if hasattr(c, "_cjs_dist"))
    theirs = max(cjs(values, weights), cjs(-values, weights))
    equal = torch.full((500, 1), 1 / 500, dtype=torch.float64)
    ours = Distance(torch.from_numpy(values)[:, None, None])(equal, torch.from_numpy(weights)[:, None])
    assert float(ours) == pytest.approx(theirs, abs=1e-6)


def test_a_conclusion_turns_where_its_probability_crosses_the_level():
    """P(z > 0 | x) under every power is a normal probability, here within 4 errors; the verdicts follow from it."""
    model, guide = oracle()
    x = pyrovae.sample(model, 200, seed=5, **QUIET)["x"]
    found = pyrovae.sensitivity(model, guide, x, num_particles=4000, **QUIET)
    chances = []
    for powers in ((1.0, 1.0), (0.8, 1.0), (1.25, 1.0), (1.0, 0.8), (1.0, 1.25)):
        mean, covariance = posterior(model, x, *powers)
        chances.append(torch.distributions.Normal(0.0, 1.0).cdf(mean / covariance.diagonal().sqrt()))
    got = torch.cat([found.probability[None], found.probabilities.flatten(0, 1)])
    expected = torch.stack(chances)
    error = (expected * (1 - expected) / 4000).sqrt() * 1.3 + 1e-3
    assert bool(((got - expected).abs() < (SIGMAS + 1) * error).all())  # 2,000 comparisons
    verdicts = (expected >= 0.95).int() - (expected <= 0.05).int()
    near = ((expected - 0.95).abs() < 0.02).any(0) | ((expected - 0.05).abs() < 0.02).any(0)
    turned = (verdicts != verdicts[0]).any(0)
    np.testing.assert_array_equal(found.turned[~near.numpy()], turned[~near].numpy())
    assert 0 < found.summary()["turned"] < 1
    assert found.conclusions().loc[(0, "z[1] > 0"), "turned"] == found.turned[0, 1]


def test_conclusions_of_ones_own():
    x = torch.linspace(-2, 2, 5).double()
    own = {"inside": lambda latents, x: latents["z"].abs() < 1}
    found = pyrovae.sensitivity(*scalar(0.7), x, conclusions=own, num_particles=500, **QUIET)
    assert found.events == ["inside"]
    assert found.probability.shape == (5, 1)
    with pytest.raises(ValueError, match="conclusion 'mean' must return True or False per row"):
        pyrovae.sensitivity(*scalar(0.7), x, conclusions={"mean": lambda latents, x: latents["z"]}, **QUIET)
    with pytest.raises(ValueError, match="level must be a probability above"):
        pyrovae.sensitivity(*scalar(0.7), x, level=0.3, **QUIET)


def test_arvizs_psense_of_the_groups_is_the_same():
    """For draws of the posterior itself, which have equal weights, as ArviZ takes them."""
    az = pytest.importorskip("arviz_stats", reason="ArviZ 1.x, which needs Python 3.12")
    model, guide = oracle()
    x = pyrovae.sample(model, 4, seed=4, **QUIET)["x"]
    found = pyrovae.sensitivity(model, guide, x, num_particles=800, **QUIET)
    groups = ("posterior", "log_prior", "log_likelihood")
    tree = pyrovae.to_arviz(model, guide, x, num_draws=800, groups=groups, **QUIET)
    for n in range(4):
        one = {"datum": n}
        theirs = az.psense_summary(
            tree, coords=one, prior_coords=one, likelihood_coords=one, alphas=(0.8, 1.25), round_to=12
        )
        np.testing.assert_allclose(theirs["prior"], found.prior[n], atol=1e-6)
        np.testing.assert_allclose(theirs["likelihood"], found.likelihood[n], atol=1e-6)


def test_log_densities_are_groups_of_their_own():
    model, guide = oracle()
    x = pyrovae.sample(model, 4, seed=4, **QUIET)["x"]
    groups = ("posterior", "log_prior", "log_likelihood")
    found = pyrovae.to_arviz(model, guide, x, num_draws=50, groups=groups, **QUIET)
    z = torch.from_numpy(found.posterior["z"].values[0])
    expected = dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
    np.testing.assert_allclose(found.log_prior["z"].values[0], expected, rtol=1e-6)
    assert found.log_prior["z"].dims == found.log_likelihood["x"].dims == ("chain", "draw", "datum")


def test_latents_that_hold_nothing_make_no_conflict():
    """One latent of 40 is used: the noise of the others' densities is in all weights, and in no diagnosis of it."""
    model = seeded(lambda: models.LinearGaussian(40, 5).double().requires_grad_(False))
    with torch.no_grad():
        model.weight.zero_()
        model.weight[:, 0] = 3.0
    x = pyrovae.sample(model, 100, seed=4, **QUIET)["x"]
    found = pyrovae.sensitivity(model, guides.Exact(model), x, **QUIET)
    first = found.diagnosis[:, 0] == CONFLICT
    alone = seeded(lambda: models.LinearGaussian(1, 5).double().requires_grad_(False))
    with torch.no_grad():
        alone.weight.copy_(model.weight[:, :1])
    expected = pyrovae.sensitivity(alone, guides.Exact(alone), x, **QUIET).diagnosis[:, 0] == CONFLICT
    assert abs(first.mean() - expected.mean()) < 0.1
    assert found.prior_noise.min() > 0.02
    more = pyrovae.sensitivity(model, guides.Exact(model), x[:10], num_particles=10_000, **QUIET)
    assert (more.diagnosis[:, 1:] == WEAK).mean() > 0.9  # a latent that holds nothing has the prior as its posterior


def test_survey_weights_and_likelihoods_of_zero():
    x = torch.cat([torch.full((10,), 6.0), torch.zeros(10)]).double()
    weights = torch.cat([torch.full((10,), 1e-3), torch.ones(10)])
    data = pyrovae.data.Data(x[:, None], weights=weights)

    def as_column(program):
        return lambda x: program(x[:, 0])

    pair = [as_column(program) for program in scalar(0.7)]
    assert pyrovae.sensitivity(*pair, data, num_particles=500, **QUIET).summary()["conflict"] < 0.01

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)).double(), 1.0))
            pyro.sample("x", dist.Uniform(z - 1, z + 1, validate_args=False), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    found = pyrovae.sensitivity(model, guide, torch.zeros(3).double(), num_particles=500, **QUIET)
    assert bool(found.likelihood.isfinite().all())
    assert bool(found.probabilities.isfinite().all())
    for bad in ({}, {"a": 3}):
        with pytest.raises(ValueError, match="conclusions must be functions by name"):
            pyrovae.sensitivity(*scalar(0.7), x, conclusions=bad, **QUIET)
    with pytest.raises(ValueError, match=r"the conclusion 'a' asks for 'u': the latents are \['z'\]"):
        pyrovae.sensitivity(*scalar(0.7), x, conclusions={"a": lambda latents, x: latents["u"] > 0}, **QUIET)
