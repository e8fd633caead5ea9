"""Log evidence by importance sampling, by annealing and by both: the oracle, and coverage of stated intervals."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import SIGMAS, make_oracle, make_vae, near_guide, seeded

import pyrovae
from pyrovae import guides, likelihoods, models, nn, priors

REPEATS = 200


def z_score(found, truth):
    """The mean error over data, in its own standard errors."""
    centre = sum(found.interval()) / 2  # less biased than the log of a mean
    return float((centre - truth).mean() / (found.log_evidence_se.square().sum().sqrt() / len(found)))


@pytest.mark.parametrize("dims", [(2, 5), (20, 40)])
@pytest.mark.parametrize("start", ["prior", "guide"])
def test_annealing_finds_the_evidence(dims, start):
    model, x = make_oracle(*dims, 40)
    guide = near_guide(model, 2.0) if start == "guide" else None
    found = pyrovae.ais(model, x, guide=guide, num_chains=16, num_temperatures=600, progress=False)
    assert abs(z_score(found, model.log_evidence(x).detach())) < SIGMAS
    assert found.log_evidence_se.mean() < 0.3
    assert 0.5 < found.acceptance.mean() < 0.8
    assert found.log_weights.shape == (16, 40)


@pytest.mark.parametrize("dims", [(2, 5), (20, 40)])
def test_stated_intervals_cover_the_evidence(dims):
    """Of 200 intervals of 95%, 180 to 198 cover: a correct method fails with probability 0.002 (binomial)."""
    model, x = make_oracle(*dims, 1)
    x = x.expand(REPEATS, -1)  # each row has random numbers of its own
    truth = model.log_evidence(x).detach()
    weighted = pyrovae.evaluate(model, near_guide(model), x, num_particles=1000, progress=False)
    annealed = pyrovae.ais(model, x, guide=near_guide(model, 1.5), num_temperatures=300, progress=False)
    for found in (weighted, annealed):
        low, high = found.interval()
        assert 0.9 * REPEATS <= int(((low <= truth) & (truth <= high)).sum()) <= 0.99 * REPEATS
        ratio = found.log_evidence.std() / found.log_evidence_se.mean()  # what repeats do beside what is stated
        assert 0.75 < ratio < 1.33  # sd of 200 repeats: relative error 0.05; 4 sds and the spread of the stated ones


@pytest.mark.parametrize("dims", [(2, 5), (20, 40)])
def test_chains_both_ways_bracket_the_evidence(dims):
    model, x = make_oracle(*dims, 40)
    found = pyrovae.bdmc(model, x, num_temperatures=500, progress=False)
    truth = model.log_evidence(found.data[0]).detach()
    below, above = truth - found.lower, found.upper - truth
    for gap, error in ((below, found.lower_se), (above, found.upper_se)):
        assert gap.mean() > -SIGMAS * gap.std() / math.sqrt(len(gap))
        assert abs(gap.mean()) < 0.2  # the sandwich is thin
        assert error.mean() < 0.5
    assert found.summary()["width"] == pytest.approx(float((above + below).mean()), abs=1e-9)
    assert not torch.equal(found.data[0], x)


def test_too_few_temperatures_make_a_wide_sandwich_that_brackets_all_the_same():
    model, x = make_oracle(20, 40, 100)
    found = pyrovae.bdmc(model, x, num_temperatures=20, num_chains=4, progress=False)
    truth = model.log_evidence(found.data[0]).detach()
    assert found.lower.mean() < truth.mean() < found.upper.mean()
    assert found.summary()["width"] > 0.5


def test_the_answer_for_a_datum_does_not_depend_on_its_batch():
    model, x = make_oracle(2, 5, 9)
    one = pyrovae.ais(model, x, num_temperatures=50, batch_size=2, progress=False)
    other = pyrovae.ais(model, x, num_temperatures=50, batch_size=9, progress=False)
    assert one.log_evidence.allclose(other.log_evidence, atol=1e-6)


def test_compiled_annealing_equals_eager():
    model, x = make_oracle(2, 5, 9)
    options = {"num_temperatures": 60, "progress": False}
    one, other = (pyrovae.ais(model, x, compile=mode, **options) for mode in (True, False))
    assert one.log_evidence.allclose(other.log_evidence, atol=1e-8)


def test_evidence_anneals_only_what_importance_sampling_cannot_estimate():
    model, x = make_oracle(2, 5, 40)

    def guide(x):
        """Far too narrow for every other observation."""
        with pyro.plate("data", len(x)):
            exact = model.posterior(x)
            narrow = torch.where(x[:, 0] > model.bias[0], 0.15, 1.1)[:, None, None]
            pyro.sample("z", dist.MultivariateNormal(exact.loc, scale_tril=narrow * exact.scale_tril))

    found = pyrovae.evidence(model, guide, x, num_temperatures=1000, anneal_from_guide=False, progress=False)
    bad = x[:, 0] > model.bias[0]
    assert found.annealed[bad].double().mean() > 0.8  # k = 1 - 0.15^2 = 0.98; k-hat of 1000 weights is noisy
    assert found.annealed[~bad].double().mean() < 0.1
    error = (found.log_evidence - model.log_evidence(x)).detach()
    assert (error.abs() < SIGMAS * found.log_evidence_se + 0.1)[found.annealed].all()
    assert found.summary()["annealed"] == pytest.approx(float(found.annealed.double().mean()))


def test_khat_flags_a_guide_of_a_third_of_the_scale():
    """A scale of s times the true one gives weights of tail index 1 - s^2 = 0.89."""
    model, x = make_oracle(2, 5, 200)
    found = pyrovae.evaluate(model, near_guide(model, 1 / 3), x, num_particles=5000, progress=False)
    assert found.khat.mean() == pytest.approx(1 - 1 / 9, abs=0.15)
    assert found.summary()["khat_over_limit"] > 0.8
    fine = pyrovae.evaluate(model, near_guide(model, 0.95), x, num_particles=5000, progress=False)
    assert fine.summary()["khat_over_limit"] < 0.05


def test_data_that_the_encoder_cannot_see_top_the_list_of_worst():
    model, x = make_oracle(3, 12, 400)
    blind = torch.zeros(400, dtype=torch.bool)
    blind[::20] = True
    shown = torch.where(blind[:, None], x.mean(0), x)  # what the encoder is given

    def guide(x, shown):
        with pyro.plate("data", len(x)):
            exact = model.posterior(shown)
            pyro.sample("z", dist.MultivariateNormal(exact.loc, scale_tril=1.1 * exact.scale_tril))

    def program(x, shown):
        return model(x)

    found = pyrovae.evaluate(program, guide, (x, shown), num_particles=2000, progress=False)
    listed = pyrovae.worst(found, int(blind.sum()))
    assert blind[list(listed.index)].double().mean() >= 0.8  # a mean observation is seen well though blind
    assert (listed["khat"].diff().dropna() <= 0).all()


# other pairs


def test_constrained_latents_are_annealed_in_unconstrained_coordinates():
    """Conjugate pairs: Beta-Bernoulli and Gamma-Poisson, whose evidence is known."""

    def model(x, y):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Beta(torch.ones(()), torch.tensor(2.0)))
            pyro.sample("x", dist.Binomial(10, rate), obs=x)
            level = pyro.sample("level", dist.Gamma(torch.tensor([2.0, 3.0]), 1.0).to_event(1))
            pyro.sample("y", dist.Poisson(level).to_event(1), obs=y)

    x = torch.tensor([0.0, 3.0, 10.0]).double()
    y = torch.tensor([[0.0, 1.0], [4.0, 2.0], [9.0, 0.0]]).double()
    total = torch.distributions.Binomial(10, torch.tensor(0.5).double())
    choose = total.log_prob(x) + 10 * math.log(2)
    beta = torch.lgamma(x + 1) + torch.lgamma(12 - x) - torch.lgamma(torch.tensor(13.0)) + math.log(2)
    shape = torch.tensor([2.0, 3.0])
    gamma = (torch.lgamma(shape + y) - torch.lgamma(shape) - torch.lgamma(y + 1) - (shape + y) * math.log(2)).sum(1)
    found = pyrovae.ais(model, (x, y), num_chains=64, num_temperatures=600, progress=False)
    assert ((found.log_evidence - (choose + beta + gamma)).abs() < 5 * found.log_evidence_se + 0.01).all()


def test_nested_plates_and_several_latents_are_annealed():
    def model(x):
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            with pyro.plate("views", 3):
                z = pyro.sample("z", dist.Normal(top, 1.0))
                pyro.sample("x", dist.Normal(z, 0.5), obs=x.T)

    x = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    covariance = torch.ones(3, 3) + 1.25 * torch.eye(3)
    truth = torch.distributions.MultivariateNormal(torch.zeros(3).double(), covariance.double()).log_prob(x)
    found = pyrovae.ais(model, x, num_chains=64, num_temperatures=600, progress=False)
    assert ((found.log_evidence - truth).abs() < 5 * found.log_evidence_se + 0.01).all()  # below 2e-5 an observation


def test_what_cannot_be_annealed_is_declined_by_name():
    def mixture(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(3)))
            pyro.sample("x", dist.Normal(y.double(), 1.0), obs=x)

    with pytest.raises(ValueError, match="latent site 'y' is discrete"):
        pyrovae.ais(mixture, torch.zeros(4), progress=False)
    sphere = seeded(
        lambda: models.VAE(prior=priors.UniformSphere(3), decoder=nn.MLP(3, 5), likelihood=likelihoods.Gaussian())
    )
    with pytest.raises(ValueError, match=r"'z' has support .* no unconstrained coordinates"):
        pyrovae.ais(sphere, torch.zeros(4, 5), progress=False)
    model, _ = make_vae()
    for family in (guides.Planar, guides.Auxiliary):
        guide = seeded(lambda family=family: family(nn.MLP(12, 8), 3))
        with pytest.raises(ValueError, match=r"cannot score a z that it did not draw .*guide=None"):
            pyrovae.ais(model, torch.zeros(4, 12), guide=guide, progress=False)
    with pytest.raises(ValueError, match="num_temperatures must be a whole number of at least 1"):
        pyrovae.ais(model, torch.zeros(4, 12), num_temperatures=0, progress=False)

    def own(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x - 1)

    with pytest.raises(ValueError, match=r"'x' is a function \(sub\) of tensor 0 of the batch"):
        pyrovae.bdmc(own, torch.zeros(4, 2), num_temperatures=5, progress=False)


def test_a_density_that_is_not_a_number_is_named_by_its_datum():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            loc = torch.where((x[:, :1] > 2) & (z[:, :1] > 0), math.nan, z)
            pyro.sample("x", dist.Normal(loc, 1.0, validate_args=False).to_event(1), obs=x)

    x = torch.zeros(5, 2)
    pyrovae.ais(model, x, num_temperatures=5, progress=False)
    x[3] = 3.0
    with pytest.raises(ValueError, match="weights of observation 3 are not finite"):
        pyrovae.ais(model, x, num_temperatures=5, progress=False)


def by_grid(log_joint, low, high):
    """Log of the integral of a density of one latent, by the trapezoidal rule."""
    grid = torch.linspace(low, high, 20_001).double()
    return (log_joint(grid[:, None]) + math.log(float(grid[1] - grid[0]))).logsumexp(0)


def test_coordinates_are_the_models_whatever_the_guide_says_of_its_support():
    """A stretched Beta says that its support is the real line; the model's is [0, 2]."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(x.new_zeros(()), 2.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            stretch = [torch.distributions.AffineTransform(0.0, 2.0)]
            unit = dist.Beta(x.new_full((len(x),), 1.5), 1.5)
            pyro.sample("z", dist.TransformedDistribution(unit, stretch))

    x = torch.tensor([0.0, 0.5, 1.0, 2.0]).double()
    truth = by_grid(lambda z: dist.Normal(z, 0.5).log_prob(x) - math.log(2), 0, 2)
    found = pyrovae.ais(model, x, guide=guide, num_chains=64, num_temperatures=300, progress=False)
    assert ((found.log_evidence - truth).abs() < 5 * found.log_evidence_se + 0.01).all()

    def outside(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_full((len(x),), 1.0), 0.4))

    with pytest.raises(ValueError, match=r"'z'.* support"):
        pyrovae.ais(model, x.expand(20, 4).flatten(), guide=outside, num_temperatures=5, progress=False)


def test_a_circle_is_declined():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.VonMises(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match="'z' has a circle for its support"):
        pyrovae.ais(model, torch.zeros(3), num_temperatures=5, progress=False)


def test_a_covariate_equal_to_the_data_stays():
    def model(shown, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(shown, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = 3 + torch.randn(50, generator=torch.Generator().manual_seed(0))
    found = pyrovae.bdmc(model, (x, x), num_temperatures=100, progress=False)
    assert torch.equal(found.data[0], x)
    assert not torch.equal(found.data[1], x)
    truth = dist.Normal(x, math.sqrt(2)).log_prob(found.data[1])
    assert found.lower.mean() == pytest.approx(float(truth.mean()), abs=0.1)


def test_networks_of_single_precision_take_data_of_double():
    weight = torch.ones(2, 3)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight, 1.0).to_event(1), obs=x)

    x = torch.zeros(4, 3).double()
    truth = torch.distributions.MultivariateNormal(torch.zeros(3), 2 * torch.ones(3, 3) + torch.eye(3)).log_prob(x[0])
    found = pyrovae.ais(model, x, num_temperatures=300, progress=False)
    assert found.log_evidence.mean() == pytest.approx(float(truth), abs=0.1)
