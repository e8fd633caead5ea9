"""Data that the model makes, and data that it does not make."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import seeded

import pyrovae
from pyrovae import guides, models
from pyrovae.diagnostics.predictive.misspecification import discrepancy

QUIET = {"progress": False, "device": "cpu"}


def oracle():
    model = seeded(lambda: models.LinearGaussian(2, 5).double().requires_grad_(False))
    return model, guides.Exact(model)


def test_the_discrepancy_has_its_size_and_its_expectation():
    """1,000 pairs of equal samples: 5% of p-values are at most 0.05, within 4 standard deviations; the mean is 0."""
    source, pvalues, values = np.random.default_rng(0), [], []
    for _ in range(1000):
        value, pvalue = discrepancy(*source.normal(size=(2, 30, 3)), 99, source)
        pvalues.append(pvalue)
        values.append(value)
    assert 0.022 < np.mean(np.array(pvalues) <= 0.05) < 0.078
    assert abs(np.mean(values)) < 4 * np.std(values) / 1000**0.5
    shifted = source.normal(size=(2, 60, 3)) + np.array([0, 0.8]).reshape(2, 1, 1)
    assert discrepancy(*shifted, 999, source)[1] == pytest.approx(0.001)


def test_data_of_the_model_pass():
    """The smallest of 4 adjusted p-values is below 0.001 in one seed of 1,000."""
    model, guide = oracle()
    x = pyrovae.sample(model, 300, seed=1, **QUIET)["x"]
    found = pyrovae.misspecification(model, guide, x, **QUIET)
    assert found.tests["adjusted"].min() > 1e-3
    assert ("are not told from those that the model makes" in str(found)) is not found.rejected
    pvalues = found.observations["pvalue"]
    assert abs(pvalues.mean() - 0.5) < 4 * (1 / 12 / 300 * 2) ** 0.5
    assert (found.observations["adjusted"] <= 0.05).mean() < 0.02


def test_a_feature_that_the_model_does_not_make_is_named():
    model, guide = oracle()
    x = pyrovae.sample(model, 300, seed=1, **QUIET)["x"]
    x[:, 3] = 2 * x[:, 3] + 1
    found = pyrovae.misspecification(model, guide, x, **QUIET)
    assert found.rejected
    assert found.features["adjusted"].idxmin() == "x[3]"
    assert (found.tests["adjusted"] <= 0.01).all()
    assert "the model does NOT make such data" in str(found)
    assert "x[3]" in str(found)


def test_odd_observations_are_named():
    model, guide = oracle()
    x = pyrovae.sample(model, 300, seed=1, **QUIET)["x"]
    x[:6, 2] += 12.0
    found = pyrovae.misspecification(model, guide, x, **QUIET)
    assert sorted(found.worst(6).index) == list(range(6))
    assert set(found.worst(6)["feature"]) == {"x[2]"}
    assert (found.observations["adjusted"][:6] <= 0.05).all()
    assert "observations that it does not make (6): 0, 1, 2, 3, 4, ..." in str(found)
    assert found.observations["reliable"].all()


def test_summaries_and_covariates_and_bad_arguments():
    model, guide = oracle()
    x = pyrovae.sample(model, 60, seed=1, **QUIET)["x"]
    found = pyrovae.misspecification(model, guide, x, summaries=lambda x: x.norm(dim=1, keepdim=True), **QUIET)
    assert list(found.tests.index) == ["latents", "summaries", "marginals", "evidence"]
    with pytest.raises(ValueError, match=r"summaries must return finite numbers \[rows, F\], got \[32\]"):
        pyrovae.misspecification(model, guide, x, summaries=lambda x: x[:, 0], **QUIET)
    with pytest.raises(ValueError, match="at least 20 data are needed"):
        pyrovae.misspecification(model, guide, x[:10], **QUIET)
    assert torch.equal(x, pyrovae.sample(model, 60, seed=1, **QUIET)["x"])


def test_one_odd_row_of_many_is_named():
    model, guide = oracle()
    x = pyrovae.sample(model, 800, seed=1, **QUIET)["x"]
    x[3] = 50.0
    found = pyrovae.misspecification(model, guide, x, num_particles=50, num_permutations=19, **QUIET)
    assert found.observations["adjusted"][3] <= 0.051
    assert found.worst(1).index[0] == 3


def test_data_that_share_the_seed_are_not_the_simulations():
    model, guide = oracle()
    data = pyrovae.simulate(model, torch.zeros(1, 5).double(), num_simulations=100, **QUIET).data
    found = pyrovae.misspecification(model, guide, data, **QUIET)
    assert abs(found.tests.loc["latents", "statistic"]) > 1e-9


def test_rows_with_few_observed_cells_are_compared_with_their_like():
    """Ten columns, of which half of the rows have one: in it an outlier, among rows whose evidence is higher anyway."""

    class Gaussians(torch.nn.Module):
        def forward(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1).expand([len(x)]))
                seen = ~x.isnan()
                cells = dist.Normal(z.expand(-1, 10), 0.5).mask(seen).to_event(1)
                pyro.sample("x", cells, obs=x.nan_to_num())

    class Exact(torch.nn.Module):
        def forward(self, x):
            seen = (~x.isnan()).sum(1, keepdim=True)
            precision = 1 + seen / 0.25
            with pyro.plate("data", len(x)):
                loc = x.nan_to_num().sum(1, keepdim=True) / 0.25 / precision
                pyro.sample("z", dist.Normal(loc, precision**-0.5).to_event(1))

    source = torch.Generator("cpu").manual_seed(0)
    x = torch.randn(200, 1, generator=source) + 0.5 * torch.randn(200, 10, generator=source)
    x[:100, 1:] = torch.nan
    x[0, 0] = 6.5
    data = pyrovae.data.Data(pyrovae.data.Field(x, missing=True))
    found = pyrovae.misspecification(Gaussians(), Exact(), data, num_particles=50, num_permutations=19, **QUIET)
    assert found.observations["pvalue"][0] < 0.01
    assert set(found.observations["feature"][:100]) == {"x[0]"}
    halves = [(found.observations["pvalue"][rows] <= 0.1).mean() for rows in (slice(1, 100), slice(100, 200))]
    assert max(halves) < 0.25
    assert min(halves) > 0.01
