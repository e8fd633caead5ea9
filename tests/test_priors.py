"""Every prior's draws and densities belong together, and it trains with any guide that can score."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import SIGMAS, bits, seeded
from pyro.infer import Trace_ELBO
from scipy import integrate, special
from scipy import stats as scipy_stats

from pyrovae import (
    ais,
    evaluate,
    fit,
    given,
    guides,
    likelihoods,
    load,
    log_weights,
    models,
    nn,
    prior_against_posterior,
    prior_predictive_check,
    priors,
)
from pyrovae.priors.sparse import scaled_exponential_integral
from pyrovae.priors.sphere import PowerSpherical

pytestmark = pytest.mark.usefixtures("apart")
Z, D = 3, 6

UNIVARIATE = {
    "Laplace": lambda: priors.Laplace(1),
    "StudentT": lambda: priors.StudentT(1, df=3.0, scale=0.7),
    "SpikeAndSlab": lambda: priors.SpikeAndSlab(1),
    "Horseshoe": lambda: priors.Horseshoe(1, scale=0.6),
}


@pytest.mark.parametrize("name", UNIVARIATE)
def test_densities_are_those_of_the_draws(name):
    """Kolmogorov and Smirnov's test of 20,000 draws against the integrated density: fails by chance once in 10,000."""
    prior = UNIVARIATE[name]().double()

    def density(v):
        return float(prior().log_prob(torch.tensor([v], dtype=torch.float64)).exp())

    with torch.no_grad():
        half, _ = integrate.quad(density, 0, np.inf, limit=300)
        assert half == pytest.approx(0.5, abs=1e-5)
        drawn = seeded(lambda: prior().sample((20_000,))).flatten().numpy()
        grid = np.concatenate([-np.geomspace(60, 1e-6, 800), np.geomspace(1e-6, 60, 800)])
        heights = prior().log_prob(torch.from_numpy(grid)[:, None]).exp().numpy()
        cdf = np.concatenate([[0], integrate.cumulative_trapezoid(heights, grid)])
        cdf += 0.5 * (1 - cdf[-1])  # the tails, alike on both sides
    inside = drawn[np.abs(drawn) < 60]
    test = scipy_stats.kstest(inside, lambda v: np.interp(v, grid, cdf))
    assert test.pvalue > 1e-4


def test_the_exponential_integral_is_scipys_and_has_its_gradient():
    u = torch.logspace(-8, 4, 400, dtype=torch.float64).requires_grad_()
    found = scaled_exponential_integral(u)
    expected = torch.from_numpy(special.exp1(u.detach().numpy()) * np.exp(u.detach().clamp(max=600).numpy()))
    low = u.detach() < 600
    torch.testing.assert_close(found[low], expected[low], rtol=1e-6, atol=0)
    (grad,) = torch.autograd.grad(found.sum(), u)
    torch.testing.assert_close(grad[low], (expected - 1 / u.detach())[low], rtol=2e-5, atol=1e-12)
    assert found.isfinite().all()


def test_the_densities_on_the_sphere_integrate_to_one_and_their_draws_have_the_stated_mean():
    """Importance sampling by the uniform distribution, and a mean; 7 comparisons at 4 standard errors: below 5e-4."""

    def run():
        uniform = priors.UniformSphere(3).double()()
        loc = torch.nn.functional.normalize(torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64), dim=-1)
        q = PowerSpherical(loc, torch.tensor(6.0, dtype=torch.float64))
        z = uniform.sample((200_000,))
        ratio = (q.log_prob(z) - uniform.log_prob(z)).exp()
        assert abs(float(ratio.mean()) - 1) < SIGMAS * float(ratio.std()) / len(z) ** 0.5
        assert float(uniform.log_prob(z[0])) == pytest.approx(-math.log(4 * math.pi))
        drawn = q.rsample((100_000,))
        assert q.support.check(drawn).all()
        for values, mean in ((drawn, q.mean), (z, uniform.mean)):
            assert ((values.mean(0) - mean).abs() < SIGMAS * values.std(0) / len(values) ** 0.5).all()

    seeded(run)


def test_a_hyperspherical_vae():
    model, guide = seeded(
        lambda: (
            models.VAE(prior=priors.UniformSphere(3), decoder=nn.MLP(3, D), likelihood=likelihoods.Bernoulli()),
            guides.Spherical(nn.MLP(D, 16), 3),
        )
    )
    fitted = fit(model, guide, bits(200, D), steps=300, lr=5e-3, progress=False)
    bound = fitted.history["bound"]
    assert bound.iloc[-20:].mean() > bound.iloc[:5].mean() + 0.2
    result = evaluate(model, guide, bits(5, D), num_particles=4000, progress=False)
    direct, error = by_prior(model, bits(5, D))
    assert ((result.log_evidence - direct).abs() < 5 * (result.log_evidence_se + error) + 1e-3).all()


def by_prior(model, x, num=40_000):
    """Log evidence by draws of the prior, and its standard error."""

    def run():
        with torch.no_grad():
            z = model.prior().sample((num,))
            density = model.likelihood(model.decoder(z)).log_prob(x[:, None])
            found = density.logsumexp(1) - math.log(num)
            return found, (density - found[:, None]).exp().std(1) / num**0.5

    return seeded(run)


LEARNED = {
    "MixtureOfGaussians": lambda: priors.MixtureOfGaussians(Z, num_components=4),
    "NormalizingFlow": lambda: priors.NormalizingFlow(Z, num_steps=2, hidden=(16,)),
    "StudentT": lambda: priors.StudentT(Z),
    "SpikeAndSlab": lambda: priors.SpikeAndSlab(Z),
    "Horseshoe": lambda: priors.Horseshoe(Z),
    "VampPrior": lambda: priors.VampPrior(Z, num_components=5),
    "VampPrior, data": lambda: priors.VampPrior(Z, num_components=5, learned=False),
    "GaussianProcess": lambda: priors.GaussianProcess(Z),
}


SERVED = [*((name, guides.MeanField) for name in LEARNED), ("VampPrior", guides.Flow), ("NormalizingFlow", guides.Flow)]


@pytest.mark.parametrize(("name", "family"), SERVED)
def test_a_prior_serves_training_judging_and_sampling(name, family, tmp_path):
    """Evidence by the guide and by the prior's own draws agree, where k-hat trusts it: 5 at 5 errors, below 3e-6."""
    x = bits(120, D)

    def make():
        prior = LEARNED[name]()
        model = models.VAE(prior=prior, decoder=nn.MLP(Z, D, hidden=(16,)), likelihood=likelihoods.Bernoulli())
        guide = family(nn.MLP(D, 16, hidden=(16,)), Z)
        if isinstance(prior, priors.VampPrior):
            prior.attach(guide, x)
        return model, guide

    model, guide = seeded(make)
    before = {n: p.detach().clone() for n, p in model.prior.named_parameters()}
    steps = 600 if name == "SpikeAndSlab" else 200  # whose spike is found late
    fitted = fit(model, guide, x, steps=steps, lr=1e-2, progress=False)
    assert all(not torch.equal(p, before[n]) for n, p in model.prior.named_parameters())
    bound = fitted.history["bound"]
    assert name == "Horseshoe" or bound.iloc[-20:].mean() > bound.iloc[:5].mean()
    result = evaluate(model, guide, x[:5], num_particles=4000, progress=False)
    direct, error = by_prior(model, x[:5])
    off = (result.log_evidence - direct).abs() > 5 * (result.log_evidence_se + error) + 1e-3
    # under a pole at zero and Cauchy's tails a Gaussian's weights vary without bound, more than 4,000 of them show
    assert (
        name == "Horseshoe" or not (off & result.reliable).any()
    )  # a Gaussian under tails of a power is not to be trusted
    assert name in ("StudentT", "SpikeAndSlab") or result.reliable.any()
    fitted.save(tmp_path)
    again = load(tmp_path)
    one, other = (log_weights(f.model, f.guide, x[:9], num_particles=3, progress=False) for f in (fitted, again))
    assert torch.equal(one, other)


def test_a_vamp_prior_is_the_mean_of_posteriors_and_says_what_it_lacks():
    guide = seeded(lambda: guides.FullRank(nn.MLP(D, 16), Z))
    prior, x = priors.VampPrior(Z, num_components=4, learned=False), bits(20, D)
    with pytest.raises(ValueError, match="no guide yet"):
        prior()
    with pytest.raises(ValueError, match="need data to start from"):
        prior.attach(guide)
    with pytest.raises(ValueError, match="4 pseudo-inputs need as many data"):
        prior.attach(guide, x[:3])
    with pytest.raises(ValueError, match="knows that of its own"):
        prior.attach(seeded(lambda: guides.Planar(nn.MLP(D, 16), Z)), x)
    with pytest.raises(ValueError, match="no method posterior"):
        prior.attach(torch.nn.Linear(2, 2), x)
    prior.attach(guide, x)
    z = torch.randn(7, Z)
    each = torch.stack([guide.posterior(x[[i]]).log_prob(z) for i in (0, 5, 10, 15)])
    torch.testing.assert_close(prior().log_prob(z), each.logsumexp(0) - math.log(4))
    assert prior().expand([7]).sample().shape == (7, Z)


def test_a_vamp_prior_on_top_of_a_ladder(tmp_path):
    x = bits(100, 12)

    def make():
        prior = priors.VampPrior(2, num_components=5)
        model = models.HierarchicalVAE(
            prior=prior, transitions=[nn.MLP(2, 6)], decoder=nn.MLP(3, 12), likelihood=likelihoods.Bernoulli()
        )
        guide = guides.Ladder([nn.MLP(12, 16), nn.MLP(16, 16)], model)
        prior.attach(guide, x)
        return model, guide

    model, guide = seeded(make)
    fitted = fit(model, guide, x, steps=200, lr=5e-3, progress=False)
    bound = fitted.history["bound"]
    assert bound.iloc[-20:].mean() > bound.iloc[:5].mean() + 0.2
    fitted.save(tmp_path)
    again = load(tmp_path)
    one, other = (log_weights(f.model, f.guide, x[:9], num_particles=3, progress=False) for f in (fitted, again))
    assert torch.equal(one, other)


def test_codes_given_those_before_them_add_up_to_one_and_learn_their_dependence():
    prior = seeded(lambda: priors.Autoregressive(3, 4, hidden=(32,)))
    every = torch.cartesian_prod(*[torch.arange(4.0)] * 3)
    with torch.no_grad():
        assert float(prior().log_prob(every).exp().sum()) == pytest.approx(1, abs=1e-5)
    chains = seeded(lambda: torch.randint(4, (400, 1)))
    data = ((chains + torch.arange(3)) % 4).float()  # each code is the one before it and one
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        loss = -prior().log_prob(data).mean()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < math.log(4) + 0.1
    drawn = seeded(lambda: prior().sample((200,)))
    follow = (drawn[:, 1:] - drawn[:, :-1]) % 4 == 1
    assert float(follow.float().mean()) > 0.95
    with pytest.raises(ValueError, match="support"):
        seeded(lambda: priors.Autoregressive(3, 4))().expand([1]).log_prob(torch.tensor([[0.0, 4.0, 1.0]]))


def test_hyperpriors_are_drawn_once_whatever_the_model():
    prior = priors.Hierarchical(
        lambda s: dist.Normal(torch.zeros(2), s).to_event(1), {"s": dist.HalfNormal(torch.ones(2)).to_event(1)}
    )
    parts = {"prior": prior, "likelihood": likelihoods.Bernoulli(), "num_data": 50}
    model = models.ConditionalVAE(**parts, decoder=nn.MLP(2 + 3, D))
    batch = bits(10, D), torch.zeros(10, 3)
    guide = guides.WithGlobals.of(guides.MeanField(nn.MLP(D + 3, 8), 2), model, *batch)
    assert guide.sites == (("prior.s", (2,), "positive"),)
    fit(model, guide, batch, epochs=2, progress=False)


def test_a_gaussian_process_is_smooth_and_has_unit_variance():
    prior = priors.GaussianProcess([0.0, 1.0, 2.0, 8.0], num_codes=2, length=3.0)
    covariance = prior().covariance_matrix.detach()
    torch.testing.assert_close(covariance.diagonal(), torch.ones(8))
    assert float(covariance[0, 1]) > float(covariance[0, 2]) > float(covariance[0, 3])
    assert float(covariance[:4, 4:].abs().max()) == 0


def hyper_pair(size):
    """z_i ~ N(m, 1), m ~ N(0, 3^2), x_i ~ N(z_i, 1) in one dimension: m | x is Gaussian."""

    class Same(torch.nn.Module):
        out_features = 1

        def forward(self, x):
            return x

    prior = priors.Hierarchical(
        lambda m: dist.Normal(m, 1.0).to_event(1), {"m": dist.Normal(torch.zeros(1), 3.0).to_event(1)}
    )
    likelihood = likelihoods.Gaussian(fixed=1.0)
    model = models.VAE(prior=prior, decoder=Same(), likelihood=likelihood, num_data=size)
    return model, guides.WithGlobals.of(
        seeded(lambda: guides.MeanField(Same(), 1)), model, torch.zeros(2, 1), scale=0.3
    )


def test_hyperparameters_have_the_posterior_of_all_data_though_batches_are_small():
    """m | x ~ N(s^2 sum(x) / 2, s^2), 1 / s^2 = 1 / 9 + n / 2; batches of a tenth count for all."""
    size = 200
    x = 1.5 + 2**0.5 * seeded(lambda: torch.randn(size, 1))
    model, guide = hyper_pair(size)
    fit(model, guide, x, epochs=400, batch_size=20, lr=lambda step: 0.05 * 0.998**step, progress=False)
    variance = 1 / (1 / 9 + size / 2)
    found = guide.posterior("prior.m")
    assert float(found.mean.detach()) == pytest.approx(variance * float(x.sum()) / 2, abs=0.05)
    with pytest.raises(ValueError, match=r"'prior\.m' is outside the data plate"):
        evaluate(model, guide, x, progress=False)
    values = guide.median()
    result = evaluate(given(model, values), guide.local, x, num_particles=200, progress=False)
    expected = dist.Normal(values["prior.m"], 2**0.5).log_prob(x)[:, 0]
    assert ((result.log_evidence - expected).abs() < 5 * result.log_evidence_se + 1e-3).all()  # 200 at 5: below 1.2e-4


def test_a_batch_counts_for_all_data_in_the_gradient_of_a_hyperparameters_scale():
    """dELBO / ds = 1 / s - s (1 / 9 + N) for the deviation s of q(m), exactly; 4 standard errors, below 6.3e-5."""
    model, guide = hyper_pair(200)
    x, raw = seeded(lambda: torch.randn(20, 1)), guide.raw_scale["prior/m"]

    def gradients():
        loss = Trace_ELBO().differentiable_loss(model, guide, x)
        return torch.autograd.grad(-loss, [raw])[0]

    found = seeded(lambda: torch.stack([gradients() for _ in range(1500)])).flatten()
    s = guide.posterior("prior.m").stddev.detach()
    (slope,) = torch.autograd.grad(nn.positive(raw).sum(), [raw])
    expected = float(slope * (1 / s - s * (1 / 9 + 200)))
    assert abs(float(found.mean()) - expected) < SIGMAS * float(found.std()) / len(found) ** 0.5


def test_the_two_checks_of_a_prior():
    model = seeded(lambda: models.LinearGaussian(2, 5))
    guide = guides.Exact(model)
    x = seeded(lambda: model.evidence().sample((400,))).detach()
    statistics = {"mean": torch.mean, "sd": torch.std, "largest": torch.max}
    options = {"num_sets": 99, "progress": False}
    fair = prior_predictive_check(model, guide, x, statistics, **options)
    assert (fair["pvalue"] > 1e-3).all()  # the model that made the data: three p-values
    far = prior_predictive_check(model, guide, 3 * x, statistics, **options)
    assert far.loc["sd", "pvalue"] == pytest.approx(2 / 100)
    same = prior_against_posterior(model, guide, x, progress=False)
    assert list(same.index) == ["z[0]", "z[1]"]
    assert (same["pvalue"] > 1e-4).all()  # the exact posterior's aggregate is the prior
    moved = prior_against_posterior(model, guide, x + 4, progress=False)
    assert moved["pvalue"].min() < 1e-6
    with pytest.raises(ValueError, match="'log' is not a finite number"):
        prior_predictive_check(model, guide, x, {"log": lambda x: x.log().sum()}, **options)
    with pytest.raises(ValueError, match="statistics is empty"):
        prior_predictive_check(model, guide, x, {})
    with pytest.raises(ValueError, match="is not observed"):
        prior_predictive_check(model, guide, x, statistics, site="z")


def two(component):
    """A mixture of two components, as a user writes it: a latent of one number."""
    return priors.Fixed(dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), component).expand([1]).to_event(1))


def vamp(**options):
    guide = options.pop("family", guides.MeanField)(nn.MLP(1, 8), 1, **options)
    prior = priors.VampPrior(1, num_components=3)
    prior.attach(guide, torch.linspace(-1, 1, 9)[:, None])
    return prior


MIXTURES = {
    "MixtureOfGaussians": (lambda: priors.MixtureOfGaussians(1, num_components=3), (-9, 9)),
    "SpikeAndSlab": (lambda: priors.SpikeAndSlab(1, spike_scale=0.2), (-9, 9)),
    "VampPrior": (vamp, (-9, 9)),
    "VampPrior of mixtures": (lambda: vamp(family=guides.Mixture), (-15, 15)),
    "VampPrior of positive latents": (lambda: vamp(support="positive"), (1e-6, 90)),
    "normal components": (lambda: two(dist.Normal(torch.tensor([-1.0, 1.5]), 0.5)), (-9, 9)),
    "gamma components": (lambda: two(dist.Gamma(torch.tensor([2.0, 9.0]), 3.0)), (0, 20)),
    "uniform components": (lambda: two(dist.Uniform(torch.zeros(2), 2.0)), (0, 2)),
}


class Shifted(torch.nn.Module):
    """x ~ N(z, 1)."""

    def __init__(self, prior):
        super().__init__()
        self.prior = prior

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_is_annealed_in_the_coordinates_of_its_components(name):
    """Against quadrature: three data at 4 standard errors, below 2e-4 a prior."""
    make, (low, high) = MIXTURES[name]
    model = Shifted(seeded(make))
    x = torch.tensor([[-0.5], [0.4], [1.5]])
    found = ais(model, x, num_chains=100, num_temperatures=50, progress=False)
    z = torch.linspace(low, high, 20_001)[1:-1, None]
    with torch.no_grad():
        joint = model.prior().expand([len(z)]).log_prob(z)[:, None] + dist.Normal(z, 1.0).log_prob(x[:, 0])
    expected = (joint.double().logsumexp(0) + math.log(float(z[1] - z[0]))).double()
    assert ((found.log_evidence - expected).abs() < SIGMAS * found.log_evidence_se + 1e-3).all()


def test_a_mixture_of_unlike_supports_has_no_coordinates():
    prior = two(dist.Uniform(torch.zeros(2), torch.tensor([1.0, 2.0])))
    with pytest.raises(ValueError, match="components of a mixture have different supports"):
        ais(Shifted(prior), torch.zeros(2, 1), progress=False)


@pytest.mark.parametrize("data", [torch.float32, torch.float64, torch.uint8])
@pytest.mark.parametrize("guide", [torch.float32, torch.float64])
def test_pseudo_inputs_have_the_guides_dtype(data, guide):
    encoder = guides.MeanField(seeded(lambda: nn.MLP(2, 4)), 2).to(guide)
    prior = priors.VampPrior(2, num_components=3)
    x = torch.arange(12).view(6, 2).to(data) / (1 if data == torch.uint8 else 7)
    prior.attach(encoder, x)
    assert prior.inputs.dtype == guide
    torch.testing.assert_close(prior.inputs.detach(), x[::2].to(guide), rtol=0, atol=0)
    assert prior().sample().dtype == guide
