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
    assert float((found.gain - best).std()) < 0.2
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


def test_a_prior_of_ones_own_and_bad_ones():
    model = seeded(lambda: models.LinearGaussian(2, 5).requires_grad_(False))
    guide, x = guides.Exact(model), torch.randn(60, 5, generator=torch.Generator("cpu").manual_seed(0))
    own = {"prior": lambda: priors.MixtureOfGaussians(2, num_components=2), "steps": 30, "num_folds": 2}
    one, other = (pyrovae.prior_gain(model, guide, x, **own, **QUIET) for _ in range(2))
    assert torch.equal(one.gain, other.gain)
    assert one.family == "MixtureOfGaussians"
    with pytest.raises(ValueError, match="a StandardNormal, has no parameters to fit"):
        pyrovae.prior_gain(model, guide, x, prior=lambda: priors.StandardNormal(2), **QUIET)
    with pytest.raises(ValueError, match="at least 50 data are needed"):
        pyrovae.prior_gain(model, guide, x[:40], **QUIET)
