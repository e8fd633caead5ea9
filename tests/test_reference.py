"""Reference posteriors and gaps: the oracle, quadrature of a nonlinear model, and what is declined."""

import math

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import SIGMAS, make_oracle, make_vae, seeded
from pyro.infer import SVI, Trace_ELBO

import pyrovae
from pyrovae import guides, likelihoods, models, nn, plots, priors


def mean_field(data_dim, latent_dim):
    return seeded(lambda: guides.MeanField(nn.MLP(data_dim, 16), latent_dim)).double()


# a nonlinear decoder, by quadrature


class Quadrature:
    """A VAE with two latents, and everything about it on a grid of them."""

    def __init__(self, size=8):
        self.model = seeded(
            lambda: models.VAE(prior=priors.StandardNormal(2), decoder=nn.MLP(2, 9, hidden=(16,)), likelihood=bits())
        ).double()
        with torch.no_grad():
            for parameter in self.model.decoder.parameters():
                parameter.mul_(2.5)  # bent posteriors
            self.x = seeded(
                lambda: self.model.likelihood(self.model.decoder(torch.randn(size, 2).double())).sample(), 1
            )
        side = torch.linspace(-6, 6, 601).double()
        self.grid = torch.cartesian_prod(side, side)
        self.area = math.log(12 / 600) * 2
        with torch.no_grad():
            self.log_joint = torch.cat([self.joint(part) for part in self.grid.split(20_000)])
        self.log_evidence = self.log_joint.logsumexp(0) + self.area
        self.posterior = (self.log_joint + self.area - self.log_evidence).exp()  # [grid, data]
        self.mean = self.posterior.T @ self.grid
        self.sd = (self.posterior.T @ self.grid.square() - self.mean.square()).sqrt()
        cross = self.posterior.T @ self.grid.prod(1) - self.mean.prod(1)
        self.correlation = cross / self.sd.prod(1)

    def joint(self, z):
        """log p(x, z), ``[len(z), data]``."""
        prior = self.model.prior().log_prob(z)
        return prior[:, None] + self.model.likelihood(self.model.decoder(z)[:, None]).log_prob(self.x)

    def best_mean_field(self):
        """ELBO of every observation's best factorised Gaussian, by Gauss-Hermite quadrature and gradient steps."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(24)
        nodes, weights = torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())
        unit, mass = torch.cartesian_prod(nodes, nodes), torch.cartesian_prod(weights, weights).prod(1)
        loc, log_scale = self.mean.clone().requires_grad_(), self.sd.log().requires_grad_()
        optimizer = torch.optim.Adam([loc, log_scale], lr=0.02)

        def bound():
            z = loc + log_scale.exp() * unit[:, None]
            prior = self.model.prior().log_prob(z)
            log_p = prior + self.model.likelihood(self.model.decoder(z)).log_prob(self.x)
            return mass @ log_p + (log_scale + 0.5 * math.log(2 * math.pi * math.e)).sum(1)

        for _ in range(800):
            optimizer.zero_grad()
            (-bound().sum()).backward()
            optimizer.step()
        return bound().detach()


def bits():
    return likelihoods.Bernoulli()


@pytest.fixture(scope="module")
def quadrature():
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        return Quadrature()


def test_annealing_agrees_with_quadrature(quadrature):
    q = quadrature
    guide = mean_field(9, 2)
    for start in (None, guide):
        found = pyrovae.ais(q.model, q.x, guide=start, num_chains=64, num_temperatures=300, progress=False)
        assert ((found.log_evidence - q.log_evidence).abs() < 5 * found.log_evidence_se + 1e-3).all()
    weighted = pyrovae.evaluate(q.model, guide, q.x, num_particles=20_000, progress=False)
    fine = weighted.khat < 0.5
    error = (weighted.log_evidence - q.log_evidence).abs()
    assert (error < 5 * weighted.log_evidence_se + 1e-3)[fine].all()


def test_chains_agree_with_quadrature(quadrature):
    q = quadrature
    found = pyrovae.hmc(
        q.model, mean_field(9, 2), q.x, num_chains=8, num_warmup=300, num_draws=300, num_steps=6, progress=False
    )
    draws = found.posterior["z"]
    ess = az.ess(draws)["z"].to_numpy() if hasattr(az.ess(draws), "data_vars") else az.ess(draws).to_numpy()
    error = np.abs(draws.mean(("chain", "draw")).to_numpy() - q.mean.numpy())
    assert (error < 5 * q.sd.numpy() / np.sqrt(ess)).all()
    assert draws.std(("chain", "draw")).to_numpy() == pytest.approx(q.sd.numpy(), rel=0.2)
    assert float(found.sample_stats["rhat"].max()) < 1.02
    correlation = [np.corrcoef(draws[:, :, i].to_numpy().reshape(-1, 2).T)[0, 1] for i in range(len(q.x))]
    assert np.abs(correlation - q.correlation.numpy()).max() < 0.12


def test_gaps_agree_with_quadrature(quadrature):
    q = quadrature
    best = q.best_mean_field()
    found = pyrovae.gaps(q.model, mean_field(9, 2), q.x, num_particles=2000, num_steps=400, progress=False)
    short = best - found.optimal_elbo  # what the fit by noisy gradients is short of
    assert (short > -SIGMAS * found.optimal.elbo_se).all()
    assert (short < SIGMAS * found.optimal.elbo_se + 0.02).all()
    assert ((found.log_evidence - q.log_evidence).abs() < SIGMAS * found.log_evidence_se + 0.05).all()
    assert (found.approximation > -SIGMAS * (found.log_evidence_se + found.optimal.elbo_se)).all()
    assert found.approximation.mean() > 0


# the oracle


@pytest.mark.parametrize(("dims", "dense"), [((2, 5), True), ((20, 40), True), ((20, 40), False)])
def test_chains_find_the_posterior_of_the_oracle(dims, dense):
    model, x = make_oracle(*dims, 12)
    options = {"num_warmup": 200, "num_draws": 200, "num_steps": 4, "dense": dense, "progress": False}
    found = pyrovae.hmc(model, mean_field(dims[1], dims[0]), x, **options)
    draws, exact = found.posterior["z"], model.posterior(x)
    sd = exact.variance.sqrt().detach().numpy()
    error = (draws.mean(("chain", "draw")).to_numpy() - exact.loc.detach().numpy()) / sd
    ess = az.ess(found.posterior)["z"].to_numpy()
    assert (np.abs(error) * np.sqrt(ess) < 5).all()  # at most 240 comparisons: below 2e-4
    squares = ((draws.to_numpy() - exact.loc.detach().numpy()) / sd) ** 2  # mean 1 where scales are right
    assert abs(squares.mean() - 1) < 5 * math.sqrt(2 / float(ess.sum()) * 2)
    assert draws.dims == ("chain", "draw", "datum", "z_dim")
    assert set(found.sample_stats.data_vars) >= {"lp", "diverging", "acceptance_rate", "rhat", "ess_bulk", "ess_tail"}
    assert not found.sample_stats["diverging"].any()


def test_gaps_are_the_oracles():
    for dims in ((2, 5), (20, 40)):
        model, x = make_oracle(*dims, 40)
        guide = mean_field(dims[1], dims[0])
        q = guide.posterior(x)
        elbo = model.elbo(x, q.mean, torch.diag_embed(q.variance)).detach()
        best = model.optimal_mean_field(x)
        optimal = model.elbo(x, best.mean, torch.diag_embed(best.variance)).detach()
        truth = model.log_evidence(x).detach()
        known = truth, torch.zeros_like(truth)
        found = pyrovae.gaps(model, guide, x, log_evidence=known, num_particles=2000, progress=False)
        summary = found.summary()
        short = (optimal - found.optimal_elbo).mean()
        assert -SIGMAS * summary["optimal_elbo_mc_se"] < short < SIGMAS * summary["optimal_elbo_mc_se"] + 0.02
        assert abs((found.elbo - elbo).mean()) < SIGMAS * summary["elbo_mc_se"]
        assert (found.approximation + found.amortization).allclose(truth - found.elbo)
        assert summary["amortization"] == pytest.approx(float((optimal - elbo).mean()), rel=0.05)


def test_an_exact_guide_has_no_gap():
    model, x = make_oracle(2, 5, 10)
    truth = model.log_evidence(x).detach()
    found = pyrovae.gaps(model, guides.Exact(model), x, log_evidence=(truth, truth * 0), progress=False)
    assert found.approximation.abs().max() < 0.05
    assert found.amortization.abs().max() < 0.05


@pytest.mark.parametrize("family", [guides.FullRank, guides.LowRank, guides.Mixture, guides.Flow, guides.Planar,
                                    guides.SplineCoupling, guides.Auxiliary])  # fmt: skip
def test_every_family_of_one_latent_has_gaps(family):
    model, x = make_oracle(2, 5, 10)
    guide = seeded(lambda: family(nn.MLP(5, 8), 2)).double()
    truth = model.log_evidence(x).detach()
    found = pyrovae.gaps(model, guide, x, log_evidence=(truth, truth * 0), num_steps=200, progress=False)
    assert (found.amortization > 0).all()
    assert (found.approximation > -SIGMAS * found.optimal.elbo_se - 1e-6).all()
    if family is guides.FullRank:  # which holds the posterior
        assert found.approximation.abs().max() < 0.05


def test_guides_beyond_amortisation_have_gaps():
    model, x = make_oracle(2, 5, 10)
    inner = mean_field(5, 2)
    truth = model.log_evidence(x).detach()
    known = {"log_evidence": (truth, truth * 0), "num_steps": 200, "progress": False}
    own = pyrovae.gaps(model, inner, x, **known)
    for guide in (guides.Local(inner, x), seeded(lambda: guides.SemiAmortized(inner, model)).double()):
        found = pyrovae.gaps(model, guide, x, **known)
        assert found.optimal_elbo.mean() == pytest.approx(float(own.optimal_elbo.mean()), abs=0.05)
        assert found.elbo.mean() > own.elbo.mean() - 0.05


def test_a_plain_guide_of_several_latents_has_gaps():
    def model(x):
        with pyro.plate("data", len(x)):
            scale = pyro.sample("scale", dist.Gamma(x.new_tensor(3.0), x.new_tensor(2.0)))
            with pyro.plate("views", 2):
                z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
                pyro.sample("x", dist.Normal(z, scale), obs=x.T)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("scale", dist.LogNormal(x.new_zeros(len(x)), x.new_ones(())))
            with pyro.plate("views", 2):
                pyro.sample("z", dist.Normal(0.1 * x.T, 1.0))

    x = seeded(lambda: torch.randn(12, 2, dtype=torch.float64))
    found = pyrovae.gaps(model, guide, x, num_steps=300, progress=False)
    assert found.amortization.mean() > 0.05
    assert found.approximation.mean() > -0.05

    exact = pyrovae.hmc(model, guide, x, num_warmup=100, num_draws=100, num_steps=4, progress=False)
    assert exact.posterior["z"].dims == ("chain", "draw", "datum", "views")
    assert exact.posterior["scale"].dims == ("chain", "draw", "datum")
    assert float(exact.posterior["scale"].min()) > 0


def test_what_has_no_gaps_is_declined_by_name():
    model = seeded(lambda: models.HierarchicalVAE(
        prior=priors.StandardNormal(2), transitions=[nn.MLP(2, 6)], decoder=nn.MLP(3, 12), likelihood=bits()
    ))  # fmt: skip
    guide = seeded(lambda: guides.Ladder([nn.MLP(12, 8), nn.MLP(8, 8)], model))
    with pytest.raises(ValueError, match="'z1' depends on another draw"):
        pyrovae.gaps(model, guide, torch.zeros(4, 12), progress=False)
    vae, own = make_vae()
    with pytest.raises(ValueError, match="a Draw, has no parameters"):
        pyrovae.gaps(vae, seeded(lambda: guides.DAIS(own, vae)), torch.zeros(4, 12), progress=False)
    clusters = seeded(lambda: models.GaussianMixtureVAE(
        latent_dim=2, num_clusters=3, decoder=nn.MLP(2, 12), likelihood=bits()
    ))  # fmt: skip
    clustered = seeded(lambda: guides.Clustered(guides.MeanField(nn.MLP(12, 8), 2), clusters))
    with pytest.raises(ValueError, match="is discrete"):
        pyrovae.gaps(clusters, clustered, torch.zeros(4, 12), progress=False)
    with pytest.raises(ValueError, match="is discrete, and cannot be moved"):
        pyrovae.hmc(clusters, clustered, torch.zeros(4, 12), progress=False)


# the guide beside the reference


def test_the_error_of_a_guide_is_what_it_was_made_to_be():
    model, x = make_oracle(3, 8, 10)

    def wrong(x):
        """Half the scale, off by one standard deviation, no correlations."""
        with pyro.plate("data", len(x)):
            exact = model.posterior(x)
            sd = exact.variance.sqrt()
            pyro.sample("z", dist.Normal(exact.loc + sd, 0.5 * sd).to_event(1))

    reference = pyrovae.hmc(model, mean_field(8, 3), x, num_warmup=200, num_draws=300, num_steps=4, progress=False)
    found = pyrovae.guide_error(model, wrong, x, reference, progress=False)
    assert found["mean"].to_numpy() == pytest.approx(1.0, abs=0.15)
    assert found["scale"].to_numpy() == pytest.approx(0.5, abs=0.06)
    covariance = model.precision().inverse().detach()
    sd = covariance.diagonal().sqrt()
    off = (covariance / torch.outer(sd, sd))[torch.triu_indices(3, 3, 1).unbind()]
    assert found["correlation"].mean() == pytest.approx(float(off.square().mean().sqrt()), abs=0.05)
    assert (found["accuracy"] > 0.85).all()

    right = pyrovae.guide_error(model, guides.Exact(model), x, reference, progress=False)
    assert right["mean"].max() < 0.15
    assert right["accuracy"].mean() == pytest.approx(0.5, abs=0.03)
    with pytest.raises(ValueError, match="there are 5 data"):
        pyrovae.guide_error(model, wrong, x[:5], reference, progress=False)


def test_corrected_draws_follow_the_posterior():
    model, x = make_oracle(2, 5, 10)

    def guide(x):
        with pyro.plate("data", len(x)):
            exact = model.posterior(x)
            pyro.sample("z", dist.MultivariateNormal(exact.loc + 0.3, scale_tril=1.5 * exact.scale_tril))

    options = {"num_draws": 4000, "num_particles": 100, "progress": False}
    plain, corrected = (pyrovae.to_arviz(model, guide, x, corrected=c, **options).posterior["z"] for c in (False, True))
    exact = model.posterior(x)
    sd = exact.variance.sqrt().detach().numpy()
    for draws, off in ((plain, True), (corrected, False)):
        error = (draws.mean(("chain", "draw")).to_numpy() - exact.loc.detach().numpy()) / sd
        scale = draws.std(("chain", "draw")).to_numpy() / sd
        assert (np.abs(error).mean() > 0.2) == off
        assert (abs(scale.mean() - 1) > 0.2) == off
    assert np.abs(error).max() < 0.15  # ess of about 1,700: six standard errors


def test_figures_of_gaps_and_of_the_worst():
    digits = pyrovae.data.Digits(binarise=pyrovae.data.Static()).splits(seed=0).test.subset(range(30))
    model, guide = make_vae(data_dim=64, latent_dim=2)
    found = pyrovae.gaps(model, guide, digits, num_steps=3, num_particles=20, progress=False)
    assert len(plots.gaps({"training": found, "held out": found}).axes) == 1
    evaluated = pyrovae.evaluate(model, guide, digits, num_particles=50, progress=False)
    assert len(plots.worst(evaluated, digits, 5).axes) == 5
    with pytest.raises(ValueError, match="not pictures"):
        plots.worst(evaluated, pyrovae.data.Data(torch.zeros(30, 64)))


def test_a_pair_of_plain_svi_is_sampled_with_its_parameters(apart):
    """Bare parameters of the caller's store are read."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(pyro.param("centre", torch.tensor(0.5)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("slope", torch.tensor(0.4)) * x, 0.8))

    x = torch.linspace(-1, 1, 5)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    svi.step(x)
    centre = float(pyro.param("centre").detach())
    found = pyrovae.ais(model, x, num_chains=64, num_temperatures=200, progress=False)
    truth = dist.Normal(centre, math.sqrt(2)).log_prob(x)
    assert not found.log_evidence.requires_grad
    assert ((found.log_evidence - truth).abs() < 5 * found.log_evidence_se + 1e-3).all()


@pytest.fixture(scope="module")
def shared_mean():
    """x_i = m + z_i + noise, m shared: a fit of q(m), and log p(x_i | the others) in closed form."""

    class Model(torch.nn.Module):
        num_data = 40

        def forward(self, x):
            centre = pyro.sample("centre", dist.Normal(x.new_zeros(()), 1.0))
            with pyro.plate("data", self.num_data, subsample_size=len(x)):
                z = pyro.sample("z", dist.Normal(centre, 0.6))
                pyro.sample("x", dist.Normal(z, 0.8), obs=x[:, 0])

    class Own(torch.nn.Module):
        def forward(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(0.64 * x.mean() + 0.36 * x[:, 0], 0.5))

    x = 1.5 + seeded(lambda: torch.randn(40, 1))
    model = Model()
    guide = guides.WithGlobals.of(Own(), model, x, scale=0.15)
    with torch.no_grad():
        guide.loc["centre"].copy_(x.sum() / 41)
        guide.raw_scale["centre"].copy_(nn.raw_positive(1.1 * 41**-0.5))  # a little too wide
    total = x.sum() - x[:, 0]
    truth = dist.Normal(total / 40, (1 + 1 / 40) ** 0.5).log_prob(x[:, 0])
    return model, guide, x, truth


def test_what_all_data_share_is_left_out_one_datum_at_a_time(shared_mean):
    model, guide, x, truth = shared_mean
    found = pyrovae.globals_to_arviz(model, guide, x, num_draws=500, num_particles=200, progress=False)
    log_p, log_q = (found.sample_stats[name] for name in ("log_p", "log_q"))
    exact = dist.Normal(x.sum() / 41, 41**-0.5)
    drawn = torch.as_tensor(found.posterior["centre"].to_numpy().copy())
    difference = log_p.to_numpy() - exact.log_prob(drawn).numpy()
    assert difference.std() < 0.25  # log p(x), up to the noise of 40 importance-weighted estimates
    assert log_q.to_numpy() == pytest.approx(guide.posterior("centre").log_prob(drawn).detach().numpy(), abs=1e-4)
    if hasattr(az, "loo_approximate_posterior"):
        loo = az.loo_approximate_posterior(found, log_p=log_p, log_q=log_q, pointwise=True)
        assert loo.elpd_i.to_numpy() == pytest.approx(truth.numpy(), abs=0.05)
        prior, likelihood = az.psense_summary(found, alphas=(0.8, 1.25)).loc["centre", ["prior", "likelihood"]]
        assert prior < 0.05 < likelihood  # one unit of information in the prior, 40 in the data
    assert found.log_prior["centre"].to_numpy()[0] == pytest.approx(dist.Normal(0.0, 1.0).log_prob(drawn[0]).numpy())
    with pytest.raises(ValueError, match="no global latents to draw"):
        pyrovae.globals_to_arviz(model, guides.Local, x, progress=False)


def test_a_gap_is_seen_where_the_best_member_knows_one_of_two_modes():
    """x near z squared: the best Gaussian takes one mode and loses log 2."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z.square(), 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.sqrt(), 0.3))

    x = torch.tensor([4.0, 5.0]).double()
    found = pyrovae.gaps(model, guide, x, num_steps=200, progress=False)
    assert found.approximation.numpy() == pytest.approx(math.log(2), abs=0.2)
    assert found.optimal.reliable.any()  # which says nothing of it


def test_gaps_keep_masks():
    """Of a masked observation nothing is known and nothing is lost."""
    kept = torch.tensor([True, False, True, False])

    def model(x, mask):
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=mask):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, mask):
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=mask):
            pyro.sample("z", dist.Normal(0.3 * x, 0.9))

    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    found = pyrovae.gaps(model, guide, (x, kept), num_steps=100, num_particles=4000, progress=False)
    truth = torch.where(kept, dist.Normal(0.0, math.sqrt(2)).log_prob(x), 0.0)
    assert found.optimal_elbo.numpy() == pytest.approx(truth.numpy(), abs=0.02)
    assert (found.elbo[~kept] == 0).all()
    assert found.log_evidence[~kept].numpy() == pytest.approx(0.0, abs=1e-6)


def test_a_family_with_a_further_latent_is_not_taken_for_one_of_one():
    class Two(guides.MeanField):
        def forward(self, x):
            pyro.module("guide", self)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", self.posterior(x))
                pyro.sample("w", dist.Normal(z.sum(-1), 1.0))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            w = pyro.sample("w", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z.sum(-1) + w, 1.0), obs=x[:, 0])

    guide = seeded(lambda: Two(nn.MLP(1, 8), 2))
    with pytest.raises(ValueError, match="'w' depends on another draw"):
        pyrovae.gaps(model, guide, torch.zeros(4, 1), num_steps=2, progress=False)


def test_a_chain_that_starts_where_the_density_is_zero_leaves():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            hard = dist.Uniform(-1.0, torch.where(z > 0, 0.0, -0.5), validate_args=False)  # 0 where z < 0
            pyro.sample("hard", hard, obs=torch.full_like(x, -0.25))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))

    x = torch.tensor([1.5, 2.0, 3.0])  # chains mix slowly at the cut itself, which has no gradient
    found = pyrovae.hmc(model, guide, x, num_warmup=200, num_draws=400, progress=False)
    assert float(found.sample_stats["rhat"].max()) < 1.05
    assert float(found.posterior["z"].min()) > 0
    half = dist.Normal(0.0, 1.0)
    loc, scale = x / 2, math.sqrt(0.5)
    truth = loc + scale * (half.log_prob(loc / scale).exp() / half.cdf(loc / scale))
    assert found.posterior["z"].mean(("chain", "draw")).to_numpy() == pytest.approx(truth.numpy(), abs=0.1)


def test_one_chain_or_very_many():
    model, x = make_oracle(2, 5, 3)
    options = {"num_warmup": 20, "num_draws": 10, "progress": False}
    for chains in (1, 210):
        found = pyrovae.hmc(model, mean_field(5, 2), x, num_chains=chains, **options)
        assert found.posterior["z"].shape == (chains, 10, 3, 2)
        assert bool(np.isfinite(found.sample_stats["rhat"].to_numpy()).all())
    with pytest.raises(ValueError, match="made with other data"):
        pyrovae.guide_error(model, mean_field(5, 2), x.flip(0), found, progress=False)


def test_draws_of_a_subsampled_plate_go_to_arviz():
    def model(x):
        with pyro.plate("data", 1000, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 1000, subsample_size=len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.7))

    found = pyrovae.to_arviz(model, guide, torch.zeros(50), num_draws=40, num_particles=40, progress=False)
    assert found.prior_predictive["x"].shape == (1, 40, 50)


def test_a_comparison_with_gaps_has_those_of_each_pair():
    model, x = make_oracle(2, 5, 20)
    pairs = {"exact": (model, guides.Exact(model)), "mean field": (model, mean_field(5, 2))}
    table = pyrovae.compare(pairs, x, num_particles=1000, with_gaps=True, progress=False)
    own = pyrovae.gaps(*pairs["mean field"], x, num_particles=1000, progress=False).summary()
    for key in ("approximation", "approximation_se", "amortization", "amortization_se"):
        assert table.loc["mean field", key] == pytest.approx(own[key], abs=1e-6)
    assert table.loc["mean field", "amortization"] > table.loc["exact", "amortization"] + 1
    plain = pyrovae.compare(pairs, x, num_particles=100, progress=False)
    assert "approximation" not in plain
