"""Every likelihood adds up to one, its moments are those of its draws, and missing values count for nothing."""

import math

import numpy as np
import pytest
import torch
from conftest import SIGMAS, make_vae, seeded
from scipy import integrate

from pyrovae import data, evaluate, fit, guides, likelihoods, models, nn, priors

GRADES = torch.arange(5.0)


def doubled(likelihood):
    """In float64, with parameters away from where they start."""
    made = seeded(lambda: likelihood()).double()
    with torch.no_grad():
        for i, p in enumerate(made.parameters()):
            p.add_(0.3 * (-1) ** i)
    return made


CONTINUOUS = {
    "Gaussian": (likelihoods.Gaussian, (-np.inf, np.inf)),
    "Gaussian, fixed": (lambda: likelihoods.Gaussian(fixed=0.3), (-np.inf, np.inf)),
    "HeteroscedasticGaussian": (likelihoods.HeteroscedasticGaussian, (-np.inf, np.inf)),
    "StudentT": (likelihoods.StudentT, (-np.inf, np.inf)),
    "LogNormal": (likelihoods.LogNormal, (0, np.inf)),
    "Beta": (likelihoods.Beta, (0, 1)),
    "ContinuousBernoulli": (likelihoods.ContinuousBernoulli, (0, 1)),
}
DISCRETE = {
    "Bernoulli": (likelihoods.Bernoulli, torch.arange(2.0)),
    "Poisson": (likelihoods.Poisson, torch.arange(60.0)),
    "NegativeBinomial": (likelihoods.NegativeBinomial, torch.arange(400.0)),
    "ZeroInflated Poisson": (lambda: likelihoods.ZeroInflated(likelihoods.Poisson()), torch.arange(60.0)),
    "ZeroInflated NegativeBinomial": (
        lambda: likelihoods.ZeroInflated(likelihoods.NegativeBinomial()), torch.arange(400.0)),
    "Categorical": (lambda: likelihoods.Categorical(5), GRADES),
    "Ordinal": (lambda: likelihoods.Ordinal(5), GRADES),
    "DiscretisedLogistic": (lambda: likelihoods.DiscretisedLogistic(levels=16), torch.arange(16.0) / 15),
    "DiscretisedLogistic, a mixture": (
        lambda: likelihoods.DiscretisedLogistic(levels=16, num_components=3), torch.arange(16.0) / 15),
}  # fmt: skip
ALL = {**CONTINUOUS, **DISCRETE}


def features(likelihood, columns, rows=()):
    """Some features for so many columns."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*rows, likelihood.features(columns), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_densities_integrate_to_one(name):
    likelihood = doubled(CONTINUOUS[name][0])
    with torch.no_grad():
        density = likelihood(features(likelihood, 1))
        total, _ = integrate.quad(
            lambda v: float(density.log_prob(torch.tensor([v]).double()).exp()), *CONTINUOUS[name][1], limit=200
        )
    assert total == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("logit", [0.0, 0.05, -0.2, 17.0, -50.0, 200.0])
def test_a_continuous_bernoulli_is_normalised_however_large_its_logit(logit):
    density = likelihoods.ContinuousBernoulli()(torch.tensor([logit])).base_dist
    x = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    heights = (logit * x - math.log(math.expm1(logit) / logit) if logit else 0 * x).exp()  # e^(L x) over its integral
    found = density.log_prob(x.float()[:, None])[:, 0].double().exp()
    torch.testing.assert_close(found, heights, rtol=2e-4, atol=1e-5)
    assert float(density.mean) == pytest.approx(float((x * heights).mean()), abs=1e-3)


def test_a_grade_far_from_its_feature_is_as_unlikely_as_it_is_and_has_its_gradient():
    likelihood = likelihoods.Ordinal(5)
    feature = torch.tensor([-40.0], requires_grad=True)
    found = likelihood(feature).log_prob(torch.tensor([4.0]))
    (grad,) = torch.autograd.grad(found.sum(), feature)
    assert float(found.detach()) == pytest.approx(float(-40 - likelihood.cuts[-1].detach()), abs=1e-4)
    assert float(grad) == pytest.approx(1, abs=1e-5)


def test_a_negative_binomial_of_next_to_no_overdispersion_is_a_poisson():
    likelihood = likelihoods.NegativeBinomial()
    with torch.no_grad():
        likelihood.raw_dispersion.fill_(1e6)
        found = likelihood(torch.tensor([5.0])).log_prob(torch.tensor([4.0]))
        expected = likelihoods.Poisson()(torch.tensor([5.0])).log_prob(torch.tensor([4.0]))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", DISCRETE)
def test_probabilities_add_up_to_one(name):
    likelihood, values = doubled(DISCRETE[name][0]), DISCRETE[name][1].double()
    with torch.no_grad():
        density = likelihood(features(likelihood, 3, rows=(4,))).base_dist
        probs = torch.stack([density.log_prob(v.expand(4, 3)).exp() for v in values])
    torch.testing.assert_close(probs.sum(0), torch.ones(4, 3, dtype=torch.float64), rtol=0, atol=1e-6)
    if name != "Categorical":  # a category has no mean
        mean = (probs * values[:, None, None]).sum(0)
        torch.testing.assert_close(density.mean, mean, rtol=1e-4, atol=1e-4)


def test_counts_of_a_total_add_up_to_one():
    likelihood = likelihoods.Multinomial(total_count=4)
    with torch.no_grad():
        density = likelihood(features(likelihood, 3))
        sets = [(a, b, 4 - a - b) for a in range(5) for b in range(5 - a)]
        values = torch.tensor(sets, dtype=torch.float64)
        probs = density.log_prob(values).exp()
    assert float(probs.sum()) == pytest.approx(1, abs=1e-9)
    torch.testing.assert_close((probs[:, None] * values).sum(0), density.mean)
    with pytest.raises(ValueError, match="none of them can be missing"):
        likelihood(features(likelihood, 3), torch.ones(3))


@pytest.mark.parametrize("name", ALL)
def test_draws_have_the_stated_moments_and_lie_in_the_support(name):
    """The mean of 40,000 draws of three columns at 4 standard errors: below 2e-4 a likelihood."""
    likelihood, num = doubled(ALL[name][0]), 40_000

    def run():
        density = likelihood(features(likelihood, 3))
        drawn = density.sample((num,)).double()
        assert density.support.check(drawn).all()
        if name != "Categorical":
            error = drawn.std(0) / math.sqrt(num)
            assert ((drawn.mean(0) - density.mean).abs() < SIGMAS * error + 1e-9).all()

    with torch.no_grad():
        seeded(run)


@pytest.mark.parametrize("name", ALL)
def test_missing_values_count_for_nothing_and_carry_no_gradient(name):
    likelihood = doubled(ALL[name][0])

    def run():
        given = features(likelihood, 3, rows=(4,)).requires_grad_()
        density = likelihood(given)
        x = density.sample().double()
        mask = torch.rand(4, 3) < 0.5
        expected = (density.base_dist.log_prob(x) * mask).sum(-1)
        holes = torch.where(mask, x, torch.nan)
        for found in (likelihood(given, mask).log_prob(holes), likelihoods.Missing(likelihood)(given).log_prob(holes)):
            torch.testing.assert_close(found, expected)
            (grad,) = torch.autograd.grad(found.sum(), given, retain_graph=True)
            assert grad.isfinite().all()
        assert likelihoods.Missing(likelihood)(given).support.check(holes).all()

    seeded(run)


@pytest.mark.parametrize("name", ALL)
def test_values_outside_of_the_support_are_named(name):
    likelihood = seeded(lambda: ALL[name][0]())
    outside = torch.full((6, 3), -7.5)
    if name in ("Gaussian", "Gaussian, fixed", "HeteroscedasticGaussian", "StudentT"):
        outside[0, 0] = torch.inf
    model = seeded(
        lambda: models.VAE(
            prior=priors.StandardNormal(2), decoder=nn.MLP(2, likelihood.features(3)), likelihood=likelihood
        )
    )
    guide = seeded(lambda: guides.MeanField(nn.MLP(3, 8), 2))
    with pytest.raises(ValueError, match=r"outside|support|inf"):
        fit(model, guide, outside, epochs=1, progress=False)


def table(size):
    """Columns of four types that depend on one latent."""
    z = torch.randn(size)
    real = torch.stack([z, -z], dim=1) + 0.3 * torch.randn(size, 2)
    grade = (z > 0).float() + (z > 1).float()
    return torch.cat(
        [real, grade[:, None], torch.poisson((0.5 * z + 0.7).exp())[:, None], (z < 0).float()[:, None]], dim=1
    )


def mixed():
    return likelihoods.Mixed(
        [
            (likelihoods.Gaussian(num_scales=2), 2),
            (likelihoods.Ordinal(3), 1),
            (likelihoods.Poisson(), 1),
            (likelihoods.Categorical(2), 1),
        ]
    )


def table_pair(likelihood, inputs):
    def make():
        made = likelihood()
        model = models.VAE(
            prior=priors.StandardNormal(1), decoder=nn.MLP(1, made.features(5), hidden=(32,)), likelihood=made
        )
        return model, guides.MeanField(inputs(nn.MLP, hidden=(32,)), 1)

    return seeded(make)


def test_a_table_of_several_types():
    x = seeded(lambda: table(400))
    model, guide = table_pair(mixed, lambda mlp, **o: mlp(5, 16, **o))
    assert model.likelihood.features(5) == 6
    fitted = fit(model, guide, x, steps=400, lr=5e-3, progress=False)
    bound = fitted.history["bound"]
    assert bound.iloc[-20:].mean() > bound.iloc[:5].mean() + 1
    assert evaluate(model, guide, x[:20], num_particles=20, progress=False).elbo.isfinite().all()
    with pytest.raises(ValueError, match="5 columns together, the data have 4"):
        model.likelihood.features(4)
    with pytest.raises(ValueError, match="within the support"):
        fit(model, guide, torch.where(x == x[0, 0], x, x - 0.5), epochs=1, progress=False)


def test_a_table_with_holes_is_fitted_by_what_is_there():
    x = seeded(lambda: table(400))
    holes = seeded(lambda: torch.where(torch.rand(400, 5) < 0.3, torch.nan, x))
    holes[:, 0] = torch.where(holes.isnan().all(1), x[:, 0], holes[:, 0])
    model, guide = table_pair(lambda: likelihoods.Missing(mixed()), lambda mlp, **o: nn.Observed(mlp(10, 16, **o)))
    with pytest.raises(ValueError, match=r"nan at observation .* missing=True"):
        fit(model, guide, holes, epochs=1, progress=False)
    known = data.Data(holes, missing=True)
    fitted = fit(model, guide, known, steps=400, lr=5e-3, progress=False)
    bound = fitted.history["bound"]
    assert bound.iloc[-20:].mean() > bound.iloc[:5].mean() + 0.5
    result = evaluate(model, guide, known, num_particles=20, progress=False)
    assert result.elbo.isfinite().all()
    # the first column, where it is missing, is told by the others
    gone = holes[:, 0].isnan()
    with torch.no_grad():
        imputed = model.likelihood(model.decoder(guide.posterior(holes[gone]).mean)).mean[:, 0]
    assert float((imputed - x[gone, 0]).square().mean()) < 0.6 * float(x[:, 0].var())
    empty = holes.clone()
    empty[7] = torch.nan
    with pytest.raises(ValueError, match="observation 7 has no observed value"):
        data.Data(empty, missing=True)


def test_a_decoder_of_the_wrong_width_is_told_how_wide_it_has_to_be():
    with pytest.raises(ValueError, match="takes 2 features per column, got 7 in all"):
        likelihoods.HeteroscedasticGaussian()(torch.zeros(2, 7))


@pytest.mark.parametrize("width", [1, 5])
def test_a_decoder_of_the_wrong_width_is_not_stretched_over_the_columns(width):
    decoder, encoder = seeded(lambda: (nn.MLP(2, width, hidden=()), nn.MLP(6, 8, hidden=())))
    model = models.VAE(prior=priors.StandardNormal(2), decoder=decoder, likelihood=likelihoods.Bernoulli())
    guide = seeded(lambda: guides.MeanField(encoder, 2))
    with pytest.raises(ValueError, match=rf"has data of \(6,\) columns, but .* of \({width},\)"):
        fit(model, guide, torch.zeros(9, 6), epochs=1, progress=False)


def test_what_networks_cannot_take_is_hinted_at():
    model, guide = make_vae()
    with pytest.raises(ValueError, match=r"networks take floating numbers: x\.float\(\)"):
        fit(model, guide, torch.zeros(9, 12, dtype=torch.int64), epochs=1, progress=False)
    with pytest.raises(ValueError, match="missing values is"):
        fit(
            model,
            guide,
            data.Data(torch.tensor([[torch.nan] + [0.0] * 11] * 9), missing=True),
            epochs=1,
            progress=False,
        )
    with pytest.raises(ValueError, match="validation_data: the guide fails"):
        fit(model, guide, torch.zeros(9, 12), validation_data=torch.zeros(9, 11), epochs=1, progress=False)
    with pytest.raises(ValueError, match="latent_dim must be a whole number of at least 1, got 0"):
        guides.MeanField(guide.encoder, 0)
