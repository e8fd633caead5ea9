"""What Pyro's masks leave out is missing: of data, of what is simulated for them, of every comparison."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import pyrovae
from pyrovae import guides, likelihoods, models, nn, pit, posterior_predictive_check, prior_predictive_check, priors
from pyrovae.diagnostics.predictive.sample_quality import sample_quality
from pyrovae.diagnostics.predictive.simulate import simulate

N, D = 120, 3
QUIET = {"progress": False}


def cells(x, m):
    """z ~ N(0, 1), x_d ~ N(z, 1), the cells of m alone."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(x)]))
        pyro.sample("x", dist.Normal(z[:, None], 1.0).expand([len(x), D]).mask(m).to_event(1), obs=x)


def handler(x, m):
    """The same with columns as a plate, and a handler around it."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(x)]))
        with pyro.plate("columns", D, dim=-2), poutine.mask(mask=m.T):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)


def rows(x, m):
    """Whole rows, by the mask of a distribution of vectors."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(x)]))
        fn = dist.Normal(z[:, None], 1.0).expand([len(x), D]).to_event(1)
        pyro.sample("x", fn.mask(m[:, 0]), obs=x)


def exact(x, m):
    with pyro.plate("data", len(x)):
        precision = 1 + m.sum(-1)
        pyro.sample("z", dist.Normal(torch.where(m, x, 0.0).sum(-1) / precision, precision**-0.5))


MODELS = {"cells": cells, "handler": handler, "rows": rows}


def made(filler, *, whole_rows=False):
    """Data of the model, a filler where they are masked."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(N, 1, generator=generator)
    x = z + torch.randn(N, D, generator=generator)
    m = torch.rand(N, 1 if whole_rows else D, generator=generator).expand(N, D) < 0.7
    return torch.where(m, x, torch.as_tensor(filler, dtype=x.dtype)), m.contiguous()


def data(name, filler):
    return made(filler, whole_rows=name == "rows")


def same_whatever_the_filler(name, question):
    return [question(MODELS[name], data(name, filler)) for filler in (0.0, 1000.0)]


IN_BATCH = [name for name in MODELS if name != "handler"]  # whose observation is a tensor of the batch as it is


@pytest.mark.parametrize("name", MODELS)
def test_evidence_ranks_and_checks_do_not_depend_on_the_filler(name):
    one, other = same_whatever_the_filler(name, lambda model, d: pit(model, d, num_draws=49, **QUIET))
    assert torch.equal(one.values, other.values)
    assert bool((one.pvalue > 1e-6).all())  # data of the model: below 1e-5 for some of three columns
    one, other = same_whatever_the_filler(
        name, lambda model, d: pyrovae.evaluate(model, exact, d, num_particles=20, **QUIET).log_evidence
    )
    torch.testing.assert_close(one, other)
    statistics = {"mean": torch.nanmean, "largest": lambda x: x.nan_to_num(-torch.inf).max()}
    for check in (prior_predictive_check, posterior_predictive_check):
        one, other = same_whatever_the_filler(
            name, lambda model, d, check=check: check(model, exact, d, statistics, num_sets=50, **QUIET)
        )
        assert one.equals(other)
        x, m = data(name, 1000.0)
        assert one.loc["mean", "observed"] == pytest.approx(float(x[m].mean()), rel=1e-5)
        assert one.loc["mean", "pvalue"] > 0.01


@pytest.mark.parametrize("name", IN_BATCH)
def test_what_is_masked_is_masked_of_simulated_data(name):
    one, other = same_whatever_the_filler(name, lambda model, d: simulate(model, d, **QUIET))
    _, m = data(name, 1000.0)
    assert bool((other.data.batch(slice(0, N))[0][~m] == 1000).all())
    assert bool((other.data.batch(slice(0, N))[0][m].abs() < 20).all())
    assert torch.equal(other.seen[0].isnan(), ~m)
    assert torch.equal(one.latents["z"], other.latents["z"])


@pytest.mark.parametrize("name", IN_BATCH)
def test_calibration_and_quality_do_not_depend_on_the_filler(name):
    one, other = same_whatever_the_filler(
        name, lambda model, d: pyrovae.sbc(model, exact, d, num_simulations=60, num_draws=19, **QUIET)
    )
    assert torch.equal(one.everything.values, other.everything.values)
    one, other = same_whatever_the_filler(name, lambda model, d: sample_quality(model, d, seed=1, **QUIET))
    assert np.allclose(one.to_numpy(), other.to_numpy())


@pytest.mark.parametrize("name", MODELS)
def test_arviz_gets_nan_where_data_are_masked(name):
    x, m = data(name, 1000.0)
    found = pyrovae.to_arviz(MODELS[name], exact, (x, m), num_draws=3, num_particles=5, **QUIET)
    seen = torch.as_tensor(np.asarray(found["observed_data"]["x"]))
    assert torch.equal(seen.isnan(), ~m)
    assert torch.equal(seen[m], x[m])


def test_masked_counts_become_floating_numbers():
    def model(x, m):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(2.0, 1.0).expand([len(x)]))
            pyro.sample("x", dist.Poisson(z).mask(m), obs=x)

    x = torch.tensor([1.0, 2.0, 900.0, 0.0]).repeat(10)
    m = x < 100
    found = pit(model, (x, m), num_draws=99, **QUIET)
    assert bool((found.values[~m] > 0).any())
    assert bool((found.values[~m] < 99).any())  # anywhere, rather than above all draws


LENGTHS = torch.arange(1, 5).repeat(5)
STEPS = torch.arange(4)


def sequence(x, lengths):
    """z_t ~ N(0, 1), x_t ~ N(z_t, 1) for t < length: what is beyond is padding."""
    within = STEPS < lengths[:, None]
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 4), 1.0).mask(within).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).mask(within).to_event(1), obs=x)


def padded(x, lengths):
    within = STEPS < lengths[:, None]
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.7).mask(within).to_event(1))


def test_masked_latents_keep_the_guides_draws():
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    found = pyrovae.hmc(sequence, padded, (x, LENGTHS), num_warmup=100, num_draws=250, num_chains=4, **QUIET)
    draws = torch.as_tensor(found["posterior"]["z"].values).flatten(0, 1)  # [S, 20, 4]
    within = STEPS < LENGTHS[:, None]
    mean, sd = draws.mean(0), draws.std(0)
    assert ((mean - x / 2).abs() < 0.2).all()  # of the guide and of the posterior alike; 1,000 draws, sd 0.7
    assert ((sd[~within] - 0.7).abs() < 0.1).all()
    assert ((sd[within] - 0.5**0.5).abs() < 0.1).all()
    assert float(found["sample_stats"]["rhat"].max()) < 1.1
    assert torch.equal(torch.as_tensor(found["observed_data"]["x"].values).isnan(), ~within)


@pytest.mark.parametrize("ask", ["usage", "prior_test", "prior_against_posterior", "aggregate"])
def test_questions_about_codes_refuse_masked_latents(ask):
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="latent site 'z' is masked for some data"):
        getattr(pyrovae, ask)(sequence, padded, (x, LENGTHS), **QUIET)


# Labels


def make_labelled():
    model = models.SemiSupervisedVAE(
        prior=priors.StandardNormal(2),
        decoder=nn.MLP(2 + 3, 5),
        likelihood=likelihoods.Gaussian(fixed=1.0),
        num_classes=3,
    )
    guide = guides.ClassConditional(nn.MLP(5, 8), guides.MeanField(nn.MLP(5 + 3, 8), 2), 3)
    return model.requires_grad_(False), guide.requires_grad_(False)


def test_labels_that_are_missing_are_missing_of_simulated_data():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, guide = make_labelled()
        with torch.no_grad():  # a classifier that always says class 0
            guide.head.weight.zero_()
            guide.head.bias.copy_(torch.tensor([8.0, 0.0, 0.0]))
    labels = torch.full((60,), -1)
    labels[:20] = torch.arange(20) % 3
    made = simulate(model, (torch.zeros(60, 5), labels), num_simulations=120, **QUIET)
    drawn = made.data.batch(slice(0, 120))[1]
    assert torch.equal(drawn == -1, (labels == -1).repeat(2))
    unlabelled = (torch.zeros(60, 5), torch.full((60,), -1))
    found = pyrovae.sbc(model, guide, unlabelled, num_simulations=200, num_draws=19, **QUIET)
    assert float(found.table()["adjusted"].min()) < 1e-3  # two thirds of the classes are never found
