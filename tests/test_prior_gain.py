"""The evidence that a better prior would gain, against closed forms."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import seeded

import pyrovae
from pyrovae import guides, models, priors

QUIET = {"progress": False, "device": "cpu"}


def test_a_mean_and_a_scale_that_the_prior_does_not_have():
    """Latents N(1.5, 0.5^2) under a prior N(0, 1): the best prior's gain is known per observation."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1).expand([len(x)]))
            pyro.sample("x", dist.Normal(z[:, 0], 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.8 * x[:, None], 0.2**0.5).to_event(1))

    source = torch.Generator("cpu").manual_seed(0)
    x = 1.5 + 0.5 * torch.randn(500, generator=source) + 0.5 * torch.randn(500, generator=source)
    found = pyrovae.prior_gain(model, guide, x, **QUIET)
    best = dist.Normal(1.5, 0.5**0.5).log_prob(x) - dist.Normal(0.0, 1.25**0.5).log_prob(x)
    summary = found.summary()
    assert summary["gain"] == pytest.approx(float(best.mean()), abs=0.06)  # a fit to 400 observations loses 0.02 or so
    assert float((found.gain - best)[found.reliable].std()) < 0.3  # by fits to 400 observations, five of them
    assert summary["at_most"] > float(best.mean()) - 0.01  # no prior gains more, this one included
    assert summary["at_most"] < float(best.mean()) + 0.1
    assert "is worth looking for" in str(found)
    assert found.reliable.double().mean() > 0.95


def test_data_of_the_prior_gain_nothing():
    model = seeded(lambda: models.LinearGaussian(2, 5).requires_grad_(False))
    x = pyrovae.sample(model, 400, seed=1, **QUIET)["x"]
    found = pyrovae.prior_gain(model, guides.Exact(model), x, **QUIET)
    assert -0.15 < found.summary()["gain"] < 0.03
    assert "is hardly worth looking for" in str(found)
    assert list(found.table()) == ["gain", "gain_se", "khat", "reliable"]


def test_the_order_of_the_data_does_not_matter():
    """Six clusters on a circle, one after another: the gain is that of the same rows in random order."""
    source = torch.Generator("cpu").manual_seed(0)
    angles = torch.arange(6).repeat_interleave(50) * (torch.pi / 3)
    x = torch.stack([angles.cos(), angles.sin()], 1) * 1.6 + 0.4 * torch.randn(300, 2, generator=source)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1).expand([len(x)]))
            pyro.sample("x", dist.Normal(z, 0.3).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 1.09, 0.3 / 1.09**0.5).to_event(1))

    own = {"prior": lambda: priors.MixtureOfGaussians(2, num_components=8)}
    gains = [
        pyrovae.prior_gain(model, guide, x[order], **own, **QUIET).summary()["gain"]
        for order in (slice(None), torch.randperm(300, generator=source))
    ]
    centres = 1.6 * torch.stack([angles[::50].cos(), angles[::50].sin()], 1)
    truth = dist.Normal(centres, 0.4).to_event(1).log_prob(x[:, None]).logsumexp(1) - torch.tensor(6.0).log()
    best = float((truth - dist.Normal(0.0, 1.09**0.5).expand([2]).to_event(1).log_prob(x)).mean())
    assert gains[0] == pytest.approx(gains[1], abs=0.2)
    assert 0.5 * best < min(gains) < best + 0.05


def test_the_bound_holds_for_point_masses_at_the_data():
    """Five latents with little noise, 100 rows: narrow Gaussians at the rows themselves gain what is known."""
    noise, size, count = 0.3, 5, 100

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(size), 1.0).to_event(1).expand([len(x)]))
            pyro.sample("x", dist.Normal(z, noise).to_event(1), obs=x)

    def guide(x):
        precision = 1 + noise**-2
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / noise**2 / precision, precision**-0.5).to_event(1))

    x = (1 + noise**2) ** 0.5 * torch.randn(count, size, generator=torch.Generator("cpu").manual_seed(0))
    at_rows = dist.Normal(x, noise).to_event(1).log_prob(x[:, None]).logsumexp(1) - torch.tensor(count).log()
    gain = at_rows - dist.Normal(0.0, (1 + noise**2) ** 0.5).expand([size]).to_event(1).log_prob(x)
    own = {"prior": lambda: priors.MixtureOfGaussians(size, num_components=2), "steps": 30, "num_folds": 2}
    found = pyrovae.prior_gain(model, guide, x, **own, **QUIET)
    assert found.at_most > float(gain.mean()) - 0.02


def test_a_prior_of_ones_own_and_bad_ones():
    model = seeded(lambda: models.LinearGaussian(2, 5).requires_grad_(False))
    guide, x = guides.Exact(model), torch.randn(60, 5, generator=torch.Generator("cpu").manual_seed(0))
    own = {"prior": lambda: priors.MixtureOfGaussians(2, num_components=2), "steps": 30, "num_folds": 2}
    one, other = (pyrovae.prior_gain(model, guide, x, **own, **QUIET) for _ in range(2))
    assert torch.equal(one.gain, other.gain)
    assert one.family == "MixtureOfGaussians"
    with pytest.raises(ValueError, match="a StandardNormal, has no parameters to fit"):
        pyrovae.prior_gain(model, guide, x, prior=lambda: priors.StandardNormal(2), **QUIET)
    for bad, words in (
        (lambda: priors.MixtureOfGaussians(3), r"must have event shape \(2,\), got \(3,\)"),
        (
            lambda: priors.Parametric(2, "Gamma", {"concentration": 1.0, "rate": 1.0}),
            "gives some draws of the guide no",
        ),
        (seeded(lambda: priors.MixtureOfGaussians(2, num_components=2)), "prior must be a function that makes a prior"),
    ):
        with pytest.raises(ValueError, match=words):
            pyrovae.prior_gain(model, guide, x, prior=bad, **QUIET)
    with pytest.raises(ValueError, match="num_folds must leave 5 data or more per fold"):
        pyrovae.prior_gain(model, guide, x, num_folds=30, **QUIET)
    with pytest.raises(ValueError, match="at least 50 data are needed"):
        pyrovae.prior_gain(model, guide, x[:40], **QUIET)
