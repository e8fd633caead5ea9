"""Estimates of the evidence are right within their stated errors, or say that they are not to be trusted."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import make_oracle, make_vae, near_guide, seeded

import pyrovae
from pyrovae import guides, models, nn, plots
from pyrovae.diagnostics.diagnostic import diagnostics
from pyrovae.diagnostics.evidence.ais import Annealing
from pyrovae.diagnostics.evidence.trust import agree, distance_below, effective
from pyrovae.diagnostics.tables import formatted
from pyrovae.priors.sparse import HorseshoeDistribution

# Of an estimate that is reliable, 5 of its own errors and the log of a mean's bias: a correct one fails with a
# probability below 1e-3 an observation by Student's t of 15 degrees, at about 100 data in all.
ERRORS, BIAS = 5.0, 0.15


def linear(latent, features, noise, size=6):
    """A linear-Gaussian model whose posterior has standard deviations of about ``noise`` times the prior's."""

    def made():
        model = models.LinearGaussian(latent, features).double().requires_grad_(False)
        model.weight.normal_()
        model.raw_scale.fill_(nn.raw_positive(noise))
        return model, model.evidence().sample((size,))

    model, x = seeded(made)
    return model, x, model.log_evidence(x)


def heavy(base, latent, features, noise, size=6):
    """Latents with heavy tails and orthogonal loadings, so that the evidence is a product of integrals over a line."""
    prior = base.expand((latent,)).to_event(1)

    def made():
        loading = torch.linalg.qr(torch.randn(features, latent, dtype=torch.float64))[0]
        loading = loading * torch.linspace(0.5, 2.0, latent, dtype=torch.float64)
        z = prior.sample((size,))
        return loading, z @ loading.T + noise * torch.randn(size, features, dtype=torch.float64)

    loading, x = seeded(made)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z @ loading.T, noise).to_event(1), obs=x)

    best = x @ loading / loading.square().sum(0)  # z of the highest likelihood, and its standard deviation
    scale = noise / loading.square().sum(0).sqrt()
    truth = dist.Normal(best @ loading.T, noise).log_prob(x).sum(1)
    tiny = 1e-12  # a grid that is fine both there and around 0, where the horseshoe is infinite
    for k in range(latent):
        low, high = (best[:, k] - 12 * scale[k], best[:, k] + 12 * scale[k])
        grid = torch.linspace(0, 1, 200_001, dtype=torch.float64)[:, None]
        t = torch.lerp((low / tiny).asinh(), (high / tiny).asinh(), grid)
        z, step = tiny * t.sinh(), (t[1] - t[0]).log()
        inside = base.log_prob(z) - 0.5 * ((z - best[:, k]) / scale[k]).square() + math.log(tiny) + t.cosh().log()
        truth = truth + inside.logsumexp(0) + step
    return model, x, truth


def mixture(latent, apart, size=6):
    """Two components of the prior; every observation belongs to one of them."""
    centres = apart * torch.tensor([[1.0], [-1.0]], dtype=torch.float64).expand(2, latent)
    prior = dist.MixtureOfDiagNormals(centres, torch.ones_like(centres), torch.zeros(2, dtype=torch.float64))

    def made():
        loading = torch.randn(4, latent, dtype=torch.float64)
        return loading, prior.sample((size,)) @ loading.T + torch.randn(size, 4, dtype=torch.float64)

    loading, x = seeded(made)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z @ loading.T, 1.0).to_event(1), obs=x)

    covariance = loading @ loading.T + torch.eye(4, dtype=torch.float64)
    parts = [dist.MultivariateNormal(loading @ centre, covariance).log_prob(x) for centre in centres]
    return model, x, torch.stack(parts).logsumexp(0) - math.log(2)


def square():
    """x near z squared: two modes."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z.square(), 0.5), obs=x)

    x = torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)
    z = torch.linspace(-8, 8, 100_001, dtype=torch.float64)[:, None]
    inside = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z.square(), 0.5).log_prob(x)
    return model, x, inside.logsumexp(0) + math.log(16 / 100_000)


CAUCHY = dist.Cauchy(torch.zeros((), dtype=torch.float64), 1.0)
HORSESHOE = HorseshoeDistribution(torch.tensor(0.5, dtype=torch.float64))
LAPLACE = dist.Laplace(torch.zeros((), dtype=torch.float64), 1.0)
HARD = {
    "sd of a tenth": lambda: linear(3, 10, 0.3),
    "sd of a hundredth": lambda: linear(3, 10, 0.03),
    "20 latents": lambda: linear(20, 30, 0.6),
    "50 latents": lambda: linear(50, 80, 1.0),
    "Cauchy": lambda: heavy(CAUCHY, 1, 6, 1.0),
    "Cauchy, 4": lambda: heavy(CAUCHY, 4, 6, 1.0),
    "horseshoe": lambda: heavy(HORSESHOE, 1, 6, 1.0, 4),
    "Laplace": lambda: heavy(LAPLACE, 4, 6, 0.1),
    "mixture": lambda: mixture(2, 8.0),
    "two modes": square,
}
SLOW = {
    "horseshoe, 2": lambda: heavy(HORSESHOE, 2, 6, 0.3),
    "horseshoe, 6": lambda: heavy(HORSESHOE, 6, 8, 0.1),
    "Cauchy, 6": lambda: heavy(CAUCHY, 6, 8, 0.1),
    "mixture, 10": lambda: mixture(10, 8.0),
    "sd of a thousandth": lambda: linear(3, 10, 0.003),
    "50 strong latents": lambda: linear(50, 80, 0.3),
}


def right_or_marked(found, truth):
    error = (found.log_evidence - truth).abs()
    return (error < ERRORS * found.log_evidence_se + BIAS) | ~found.reliable


@pytest.mark.parametrize("case", HARD)
@pytest.mark.parametrize("temperatures", [20, 200])
def test_hard_evidence_is_right_or_marked(case, temperatures):
    model, x, truth = HARD[case]()
    found = pyrovae.ais(model, x, num_temperatures=temperatures, compile=False, progress=False)
    assert right_or_marked(found, truth).all()
    assert (found.num_temperatures == temperatures).all()


MARKED = ("50 latents", "Cauchy, 4")  # 4,000 temperatures from the prior are too few for many of their data


@pytest.mark.slow
@pytest.mark.parametrize("case", [*HARD, *SLOW])
@pytest.mark.parametrize("seed", range(3))
def test_hard_evidence_with_chosen_temperatures(case, seed):
    model, x, truth = {**HARD, **SLOW}[case]()
    found = pyrovae.ais(model, x, seed=seed, compile=False, progress=False)
    assert right_or_marked(found, truth).all()
    if case in HARD and case not in MARKED:
        assert found.reliable.double().mean() >= 0.6


def two_modes(family, far):
    """A prior and a likelihood with equal heavy tails: far out both keep a mode of their own, with half of the mass."""
    x = torch.tensor(far)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", family(torch.zeros(len(x))))
            pyro.sample("x", family(z), obs=x)

    grid = torch.linspace(-2000, 2000, 1_000_001, dtype=torch.float64)
    joint = family(torch.zeros(())).log_prob(grid) + torch.stack([family(grid).log_prob(one) for one in x.double()])
    return model, x, joint.logsumexp(1) + math.log(float(grid[1] - grid[0]))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", [lambda z: dist.StudentT(2.0, z, 1.0), lambda z: dist.Cauchy(z, 1.0)])
def test_a_mode_that_no_chain_has_met_is_found_from_the_side_of_the_data(family, seed):
    model, x, truth = two_modes(family, [0.0, 2.0, 30.0, 40.0, 50.0])
    found = pyrovae.ais(model, x, num_temperatures=500, seed=seed, compile=False, progress=False)
    assert right_or_marked(found, truth).all()
    assert bool(found.reliable[:2].all())


@pytest.mark.parametrize("dims", [(2, 5), (20, 40)])
def test_easy_evidence_is_reliable(dims):
    model, x = make_oracle(*dims, 20)
    found = pyrovae.ais(model, x, progress=False)
    assert found.reliable.double().mean() >= 0.9
    assert right_or_marked(found, model.log_evidence(x).detach()).all()
    assert (found.num_temperatures >= 500).all()
    assert found.summary()["unreliable"] == pytest.approx(1 - float(found.reliable.double().mean()))


def test_temperatures_are_doubled_where_chains_do_not_follow():
    model, x, truth = linear(10, 20, 0.1, 4)
    found = pyrovae.ais(model, x, max_temperatures=1000, compile=False, progress=False)
    assert right_or_marked(found, truth).all()
    assert found.num_temperatures.max() > 500
    parts = pyrovae.ais(model, x, max_temperatures=1000, batch_size=3, compile=False, progress=False)
    assert parts.log_evidence.allclose(found.log_evidence, atol=1e-6)
    assert torch.equal(parts.num_temperatures, found.num_temperatures)


def test_far_too_few_temperatures_are_never_believed():
    """One weight dominates: the delta method states an error of at most 1 nat for one of hundreds."""
    model, x, truth = linear(3, 10, 0.003)
    found = pyrovae.ais(model, x, num_temperatures=2, compile=False, progress=False)
    assert (found.log_evidence < truth - 50).all()
    assert not found.reliable.any()
    assert (found.log_evidence_se > 5).all()
    assert "NOT RELIABLE for 6 of 6 data" in str(found)
    few = pyrovae.ais(model, x, num_chains=4, num_temperatures=20, compile=False, progress=False)
    assert not few.reliable.any()


def test_what_the_start_bounds_refutes_an_estimate():
    """Weights of chains that stay where they are: equal, and far below the ELBO of the draws they came from."""
    ones = torch.ones(3, dtype=torch.float64)
    elbo, error = -10 * ones, 0.1 * ones
    estimate = torch.tensor([-9.9, -10.3, -12.0], dtype=torch.float64)
    below = distance_below(estimate, 0.1 * ones, [(elbo, error)])
    assert below.tolist() == pytest.approx([0, 0, 2])
    assert distance_below(estimate, 0.1 * ones, [(elbo, math.nan * ones)]).tolist() == [0, 0, 0]
    assert agree(estimate - elbo, error, error).tolist() == [True, True, False]
    weights = torch.log(torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]))
    assert effective(weights).tolist() == [2, 1, 0]


# with a guide


def test_evidence_below_an_elbo_is_no_gap():
    model, x, truth = linear(2, 5, 0.5)
    wrong = truth - torch.tensor([0.0, 3.0, 0.0, 4.0, 0.0, 5.0])
    error = torch.full_like(truth, 0.01)
    options = {"num_steps": 5, "num_particles": 500, "progress": False}
    found = pyrovae.gaps(model, guides.Exact(model), x, log_evidence=(wrong, error), **options)
    assert found.refuted.tolist() == [False, True] * 3
    assert torch.equal(found.reliable, ~found.refuted)
    assert found.approximation.isnan().tolist() == found.refuted.tolist()
    assert (found.log_evidence_se[found.refuted] > 2.9).all()  # which covers what refutes it
    summary = found.summary()
    assert summary["refuted"] == summary["unreliable"] == 0.5
    assert summary["approximation"] == pytest.approx(float((truth - found.optimal_elbo)[~found.refuted].mean()))
    assert summary["log_evidence"] == pytest.approx(float(truth[~found.refuted].mean()))
    assert "3 data lies below their ELBO" in str(found)
    table = diagnostics()["gaps"].table({"exact": found})
    assert formatted(table).loc["exact (unreliable)", ["reliable", "unreliable", "refuted"]].tolist() == [
        "NO",
        "50.0%",
        "50.0%",
    ]
    columns = diagnostics()["gaps"].columns([found, found])
    assert (columns["gaps_reliable"], columns["gaps_unreliable"], columns["gaps_refuted"]) == (False, 0.5, 0.5)
    assert columns["approximation"] == pytest.approx(summary["approximation"])
    figure = plots.gaps({"exact": found})
    assert "unreliable" in figure.axes[0].get_yticklabels()[0].get_text()
    fine = pyrovae.gaps(model, guides.Exact(model), x, log_evidence=(truth, error), **options)
    assert fine.reliable.all()
    assert "reliable for all" in str(fine)
    assert "unreliable" not in plots.gaps({"exact": fine}).axes[0].get_yticklabels()[0].get_text()


def test_what_annealing_says_of_itself_is_kept_by_gaps():
    model, x, _ = linear(3, 10, 0.003)
    poor = pyrovae.ais(model, x, num_temperatures=2, compile=False, progress=False)
    assert isinstance(poor, Annealing)
    found = pyrovae.gaps(
        model, near_guide(model, 1.3), x, log_evidence=poor, num_steps=2, num_particles=100, progress=False
    )
    assert found.refuted.all()
    assert math.isnan(found.summary()["approximation"])


def test_where_the_prior_fails_evidence_comes_from_the_guide():
    """Six latents under Cauchy's prior, all of them far out in its tail: no chain finds its way from there."""
    model, x, truth = heavy(CAUCHY, 6, 8, 0.1)
    alone = pyrovae.ais(model, x, num_temperatures=100, compile=False, progress=False)
    assert right_or_marked(alone, truth).all()
    assert not alone.reliable.all()
    loading = seeded(lambda: torch.linalg.qr(torch.randn(8, 6, dtype=torch.float64))[0])
    loading = loading * torch.linspace(0.5, 2.0, 6, dtype=torch.float64)

    def guide(x):
        best, scale = x @ loading / loading.square().sum(0), 0.1 / loading.square().sum(0).sqrt()
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(best, 0.4 * scale).to_event(1))  # too narrow for importance weights

    options = {"num_temperatures": 100, "tolerance": 1e-9, "progress": False}
    for from_guide in (True, False):
        found = pyrovae.evidence(model, guide, x, anneal_from_guide=from_guide, **options)
        assert found.annealed.all()
        assert right_or_marked(found, truth).all()
        assert found.reliable.double().mean() > 0.5
        assert found.summary()["unreliable"] == pytest.approx(1 - float(found.reliable.double().mean()))
        assert "data" in str(found)


def test_a_guide_that_cannot_score_leaves_gaps_to_the_prior():
    model, _ = make_vae()
    planar = seeded(lambda: guides.Planar(nn.MLP(12, 8), 3))
    x = torch.zeros(3, 12)
    found = pyrovae.gaps(model, planar, x, num_steps=5, num_particles=50, progress=False)
    assert found.log_evidence.isfinite().all()
