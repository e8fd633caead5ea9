"""New data around given ones, and draws given latents."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import SIGMAS, seeded

import pyrovae
from pyrovae import data, guides, likelihoods, models, nn, priors

QUIET = {"progress": False, "device": "cpu"}


def oracle():
    model = seeded(lambda: models.LinearGaussian(2, 5).double().requires_grad_(False))
    return model, guides.Exact(model)


def test_new_data_are_those_of_the_posterior_predictive():
    """x' | x ~ N(W m + b, W S W' + noise): mean and variance of 8,000 draws for one of 3 data, 10 comparisons."""
    model, guide = oracle()
    x, count = pyrovae.sample(model, 3, seed=5, **QUIET)["x"], 8000
    new = pyrovae.augment(model, guide, x, count, seed=2, **QUIET)
    assert new["x"].shape == (3 * count, 5)
    assert list(new.index[::count]) == [0, 1, 2]
    own, posterior = new["x"][count : 2 * count], model.posterior(x[1:2])
    weight = model.weight
    mean = posterior.loc[0] @ weight.T + model.bias
    covariance = posterior.covariance_matrix.reshape(-1, 2, 2)[0]
    variance = (weight @ covariance @ weight.T).diagonal() + model.scale**2
    assert bool(((own.mean(0) - mean).abs() < SIGMAS * (variance / count).sqrt()).all())
    assert bool(((own.var(0) - variance).abs() < SIGMAS * variance * (2 / count) ** 0.5).all())
    means = pyrovae.augment(model, guide, x, 4, draws=False, seed=2, **QUIET)
    assert float((means["x"][:4] - means["x"][0]).abs().max()) > 0  # of different latents


def line():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1000.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.01).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 0.01).to_event(1))

    return model, guide


def test_points_between_stay_within_their_class():
    x = torch.tensor([0.0, 1.0, 2.0, 100.0, 101.0])[:, None]
    labels = torch.tensor([0, 0, 0, 4, 4])
    new = pyrovae.augment(*line(), data.Data(x, labels=labels), 200, method="between", **QUIET)
    assert torch.equal(new.labels, labels.repeat_interleave(200))
    low, high = new["x"][new.labels == 0], new["x"][new.labels == 4]
    assert -0.1 < float(low.min()) < 0.2
    assert 1.8 < float(low.max()) < 2.1
    assert 99.9 < float(high.min()) < float(high.max()) < 101.1
    # uniform between each of 3 and one of the 2 others: E|x' - x| is half of the mean distance, 2/3 * 1/2 ... by row
    first = new["x"][:200, 0]
    assert abs(float(first.mean()) - 0.75) < SIGMAS * float(first.std()) / 200**0.5


def test_classes_become_equally_large():
    x, labels = torch.arange(30.0)[:, None], np.array(["rare"] * 3 + ["common"] * 27)
    new = pyrovae.augment(*line(), x, per_class=50, labels=labels, **QUIET)
    assert {name: int((new.labels == name).sum()) for name in ("rare", "common")} == {"rare": 50, "common": 50}
    assert set(new.index[new.labels == "rare"]) == {0, 1, 2}
    assert float((new["x"][:, 0] - torch.tensor(new.index.astype(float))).abs().max()) < 0.1
    assert torch.equal(new["x"], pyrovae.augment(*line(), x, per_class=50, labels=labels, **QUIET)["x"])


def test_labels_come_back_as_they_were_given():
    x = torch.arange(6.0)[:, None]
    numbers, names = torch.tensor([1.0, 2, 2, 1, 5, 5]), pd.Categorical(list("aabbcc"))
    for labels in (numbers, [True] * 6, ["b", "a", "a", "b", "c", "c"], names):
        new = pyrovae.augment(*line(), x, 2, labels=labels, **QUIET)
        assert list(np.asarray(new.labels)) == list(np.repeat(np.asarray(labels), 2))
    unknown = data.Data(x, labels=torch.tensor([0, 0, 1, 1, -1, -1]))
    new = pyrovae.augment(*line(), unknown, per_class=3, **QUIET)
    assert new.labels.tolist() == [0] * 3 + [1] * 3
    assert pyrovae.augment(*line(), unknown, **QUIET).labels.tolist() == unknown.labels.tolist()
    with pytest.raises(ValueError, match='"between" takes a label for every observation, and 2 lack one'):
        pyrovae.augment(*line(), unknown, method="between", **QUIET)


def summed(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        y = pyro.sample("y", dist.Bernoulli(torch.tensor(0.5)), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(100 * y + z, 0.5), obs=x)


def summed_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))


def test_a_latent_that_is_summed_out_is_not_drawn_from_its_prior():
    with pytest.raises(ValueError, match="latent site 'y' is summed out, so that data cannot be drawn given it"):
        pyrovae.augment(summed, summed_guide, torch.zeros(4), **QUIET)


def test_nothing_is_between_two_points_of_a_sphere():
    def make():
        model = models.VAE(prior=priors.UniformSphere(3), decoder=nn.MLP(3, 5), likelihood=likelihoods.Gaussian())
        return model, guides.Spherical(nn.MLP(5, 8), 3)

    with pytest.raises(ValueError, match=r"no values between two: it is of support UnitSphere\(\)"):
        pyrovae.augment(*seeded(make), torch.zeros(4, 5), method="between", **QUIET)


def test_what_augmentation_cannot_do_is_refused():
    x = torch.zeros(4, 1)
    with pytest.raises(ValueError, match="would take"):
        pyrovae.augment(*line(), x, 1000, max_bytes=100, **QUIET)
    for bad, sentence in (
        ({"method": "mixup"}, "method must be one of posterior, between"),
        ({"per_class": 3}, "per_class takes labels, and the data have none"),
        ({"per_class": 3, "num": 2, "labels": [0, 0, 1, 1]}, "give num, new observations for each one, or per_class"),
        ({"labels": [0, 1]}, r"labels must be one per observation, \[4\], got \[2\]"),
        ({"method": "between", "labels": [0, 0, 0, 1]}, "label 1 has one"),
    ):
        with pytest.raises(ValueError, match=sentence):
            pyrovae.augment(*line(), x, **{**bad, **QUIET})


def test_draws_given_latents_have_these_latents():
    """x | z ~ N(W z + b, noise): the mean of 5,000 draws, 5 comparisons; a single row stands for all draws."""
    model, _ = oracle()
    z = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    drawn = pyrovae.sample(model, 5000, latents={"z": z}, **QUIET)
    assert torch.equal(drawn["z"], z.expand(5000, 2))
    mean, x = (z @ model.weight.T + model.bias)[0], drawn["x"]
    assert bool(((x.mean(0) - mean).abs() < SIGMAS * x.std(0) / 5000**0.5).all())
    assert drawn.observed == ("x",)
    with pytest.raises(ValueError, match="latent 'z' must have 7 rows, or one for all draws, got"):
        pyrovae.sample(model, 7, latents={"z": z.expand(3, 2)}, **QUIET)
    with pytest.raises(ValueError, match="site 'w' is no latent of the model: it has z"):
        pyrovae.sample(model, 7, latents={"w": z}, **QUIET)
