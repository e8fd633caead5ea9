"""Another prior by reweighting, against closed forms."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import SIGMAS, seeded

import pyrovae
from pyrovae import guides, models, priors

QUIET = {"progress": False, "device": "cpu"}


def oracle():
    model = seeded(lambda: models.LinearGaussian(2, 5).double().requires_grad_(False))
    return model, guides.Exact(model)


def under(model, x, scale):
    """Log evidence ``[N]``, posterior mean ``[N, 2]`` and covariance under z ~ N(0, scale^2 I)."""
    noise = torch.diag(model.scale**2)
    evidence = dist.MultivariateNormal(model.bias, scale**2 * model.weight @ model.weight.T + noise).log_prob(x)
    precision = torch.eye(2).double() / scale**2 + model.weight.T @ (model.weight / model.scale[:, None] ** 2)
    covariance = torch.linalg.inv(precision)
    return evidence, ((x - model.bias) / model.scale**2) @ model.weight @ covariance, covariance


@pytest.mark.parametrize("scale", [0.6, 1.2])
def test_another_gaussian_prior_has_the_evidence_and_the_posterior_of_the_closed_form(scale):
    """Each of 40 observations, four numbers of each, within 4 errors; those of moments are of 4,000 weighted draws."""
    model, guide = oracle()
    x = pyrovae.sample(model, 40, seed=4, **QUIET)["x"]
    prior = dist.Normal(torch.zeros(2).double(), scale).to_event(1)
    found = pyrovae.reprior(model, guide, x, prior, num_particles=4000, **QUIET)
    evidence, mean, covariance = under(model, x, scale)
    sd = covariance.diagonal().sqrt()
    good = found.reliable
    assert good.double().mean() > 0.9
    assert bool(((found.log_evidence - evidence).abs() < SIGMAS * found.log_evidence_se + 1e-3)[good].all())
    difference = evidence - model.log_evidence(x)
    assert bool(((found.difference - difference).abs() < SIGMAS * found.difference_se + 1e-3)[good].all())
    assert bool((((found.mean - mean) / sd).abs()[good] < SIGMAS * 2.0 / math.sqrt(4000)).all())
    assert bool(((found.sd / sd - 1).abs()[good] < SIGMAS * 2.0 / math.sqrt(8000) + 0.02).all())
    summary = found.summary()
    assert summary["log_bayes_factor"] == pytest.approx(
        float(difference.sum()), abs=SIGMAS * summary["log_bayes_factor_mc_se"] + 0.05
    )


def test_the_own_prior_changes_nothing():
    model, guide = oracle()
    x = torch.randn(5, 5, generator=torch.Generator("cpu").manual_seed(0)).double()
    found = pyrovae.reprior(model, guide, x, priors.StandardNormal(2), num_particles=100, **QUIET)
    assert float(found.difference.abs().max()) < 1e-6
    assert float(found.difference_se.max()) < 1e-6
    torch.testing.assert_close(found.mean, found.own_mean)
    assert "+0.000 nats per observation" in str(found)


def test_a_prior_that_the_draws_do_not_reach_needs_a_fit():
    model, guide = oracle()
    x = torch.zeros(4, 5).double()
    far = dist.Normal(torch.full((2,), 9.0).double(), 0.1).to_event(1)
    found = pyrovae.reprior(model, guide, x, far, **QUIET)
    assert not found.reliable.any()
    assert "NOT RELIABLE for 4" in str(found)
    assert "fit a model with that prior" in str(found)


def test_a_narrower_support_has_weight_zero_outside():
    """z ~ N(0, 1) and x ~ N(z, 1) under a half-normal prior: p(x) = 2 N(x; 0, 2) Phi(x / sqrt 2)."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)).double(), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    x = torch.tensor([0.0, 1.0, 2.0]).double()
    found = pyrovae.reprior(model, guide, x, dist.HalfNormal(torch.ones(()).double()), num_particles=20_000, **QUIET)
    expected = dist.Normal(0.0, 2**0.5).log_prob(x) + (2 * dist.Normal(0.0, 1.0).cdf(x / 2**0.5)).log()
    assert bool(((found.log_evidence - expected).abs() < SIGMAS * found.log_evidence_se).all())


def test_a_wider_support_is_refused_and_no_draws_inside_are_told():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.HalfNormal(torch.ones(len(x)).double()))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.HalfNormal(torch.full_like(x, 0.5**0.5)))

    x = torch.zeros(2).double()
    with pytest.raises(ValueError, match="the prior has draws outside of the support of 'z' in the model"):
        pyrovae.reprior(model, guide, x, dist.Normal(torch.zeros(()).double(), 1.0), **QUIET)
    far = pyrovae.reprior(*oracle(), torch.zeros(2, 5).double(), dist.Uniform(torch.full((2,), 50.0), 51.0).to_event(1))
    assert not far.reliable.any()
    assert bool((far.log_evidence == -math.inf).all())


def test_weights_of_few_values_are_bounded():
    """A Bernoulli latent under another probability: two weights only, which no Pareto tail fits."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.full((len(x),), 0.5).double()))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        odds = dist.Normal(1.0, 1.0).log_prob(x) - dist.Normal(0.0, 1.0).log_prob(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=odds))

    x = torch.tensor([0.5, 1.0]).double()
    found = pyrovae.reprior(model, guide, x, dist.Bernoulli(torch.tensor(0.9).double()), num_particles=4000, **QUIET)
    parts = torch.stack([dist.Normal(k, 1.0).log_prob(x).exp() for k in (0.0, 1.0)])
    expected = (torch.tensor([0.1, 0.9]).double() @ parts).log() - (0.5 * parts.sum(0)).log()
    assert found.reliable.all()
    assert bool(((found.difference - expected).abs() < SIGMAS * found.difference_se).all())
    assert "posterior means" not in str(found)


def test_sites_shapes_and_kinds_are_checked():
    model, guide = oracle()
    x = torch.zeros(4, 5).double()
    with pytest.raises(ValueError, match=r"event shape \(2,\), as 'z' has in the model, got \(\) and \(3,\)"):
        pyrovae.reprior(model, guide, x, priors.StandardNormal(3), **QUIET)
    with pytest.raises(ValueError, match="site 'u' is not a latent"):
        pyrovae.reprior(model, guide, x, priors.StandardNormal(2), site="u", **QUIET)
    with pytest.raises(ValueError, match="must both be discrete, or both be continuous"):
        pyrovae.reprior(model, guide, x, dist.Poisson(torch.ones(2)).to_event(1), **QUIET)


def test_one_site_of_several():
    """z1 ~ N(z2, 1), z2 ~ N(0, 1), x ~ N(z1, 1); another prior of z2 is that of a model with another scale."""

    def two(scale):
        def model(x):
            with pyro.plate("data", len(x)):
                z2 = pyro.sample("z2", dist.Normal(torch.zeros(len(x)).double(), scale))
                z1 = pyro.sample("z1", dist.Normal(z2, 1.0))
                pyro.sample("x", dist.Normal(z1, 1.0), obs=x)

        return model

    def guide(x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(2 * x / 3, (2 / 3) ** 0.5))
            pyro.sample("z2", dist.Normal(z1 / 2, 0.5**0.5))

    x = torch.tensor([0.0, 1.0, 2.0]).double()
    found = pyrovae.reprior(two(1.0), guide, x, dist.Normal(torch.zeros(()).double(), 0.5), site="z2", **QUIET)
    direct = pyrovae.evaluate(two(0.5), guide, x, **QUIET)
    torch.testing.assert_close(found.log_evidence, direct.log_evidence, atol=1e-6, rtol=0)
    assert found.latents == ["z2"]
    with pytest.raises(ValueError, match="say whose prior to replace, site='z2'"):
        pyrovae.reprior(two(1.0), guide, x, dist.Normal(0.0, 0.5), **QUIET)


def test_a_prior_with_parameters_in_single_precision():
    model, guide = oracle()
    mixture = seeded(lambda: priors.MixtureOfGaussians(2, num_components=3))
    found = pyrovae.reprior(model, guide, torch.zeros(4, 5).double(), mixture, **QUIET)
    assert next(mixture.parameters()).dtype == torch.float32  # as it was
    assert bool(found.log_evidence.isfinite().all())
