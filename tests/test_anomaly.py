"""Anomalies: scores, conformal p-values, the false discovery rate, and features."""

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import SIGMAS, seeded
from scipy import stats

import pyrovae
from pyrovae import guides, likelihoods, models, nn, priors
from pyrovae.data import Data

QUIET = {"progress": False, "device": "cpu", "num_particles": 50}


pytestmark = pytest.mark.filterwarnings("ignore:with .* reference data no fewer than")


def oracle():
    def made():
        model = models.LinearGaussian(2, 5).double()
        return model.requires_grad_(False)

    model = seeded(made)
    return model, guides.Exact(model)


def normal(model, count, seed):
    chol = torch.linalg.cholesky(model.evidence().covariance_matrix)
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed)).double() @ chol.T + model.bias


def test_scores_are_those_of_the_model():
    model, guide = oracle()
    x, reference = normal(model, 30, 0), normal(model, 200, 1)
    found = pyrovae.anomaly(model, guide, x, reference, **QUIET)
    np.testing.assert_allclose(found["score"], -model.log_evidence(x), rtol=1e-6)
    against = -model.log_evidence(reference)
    expected = [(1 + int((against >= s).sum())) / 201 for s in -model.log_evidence(x)]
    np.testing.assert_allclose(found["pvalue"], expected)
    typical = pyrovae.anomaly(model, guide, x, reference, score="typicality", **QUIET)
    centre = float(model.log_evidence(reference).mean())
    np.testing.assert_allclose(typical["score"], (model.log_evidence(x) - centre).abs(), rtol=1e-6)
    with pytest.raises(ValueError, match="score must be one of evidence, typicality, reconstruction"):
        pyrovae.anomaly(model, guide, x, reference, score="entropy", **QUIET)


def test_pvalues_of_normal_data_are_uniform():
    """Kolmogorov-Smirnov at 1e-4 for each of three scores; p-values of 400 data share their 999 reference data."""
    model, guide = oracle()
    x, reference = normal(model, 400, 2), normal(model, 999, 3)
    for score in ("evidence", "typicality", "reconstruction"):
        found = pyrovae.anomaly(model, guide, x, reference, score=score, **{**QUIET, "num_particles": 20})
        assert stats.kstest(found["pvalue"], "uniform").pvalue > 1e-4, score


def test_features_are_judged_given_the_others():
    """-log p(x_d | x_others) against the Gaussian conditional, and the odd feature is named."""
    model, guide = oracle()
    x, reference = normal(model, 40, 4), normal(model, 300, 5)
    x[:10, 3] += 15 * (torch.arange(10) % 2 * 2 - 1)
    named = Data(x, feature_names=list("abcde"))
    found = pyrovae.anomaly(model, guide, named, reference, **{**QUIET, "num_particles": 1000})
    assert (found["feature"][:10] == "d").all()
    assert found["feature_pvalue"][:10].max() < 0.05
    assert found["rejected"][:10].all()
    covariance, rest = model.evidence().covariance_matrix, [0, 1, 2, 4]
    gain = torch.linalg.solve(covariance[rest][:, rest], covariance[rest, 3])
    mean = model.bias[3] + (x[:, rest] - model.bias[rest]) @ gain
    sd = (covariance[3, 3] - covariance[3, rest] @ gain).sqrt()
    from pyrovae.uses.anomalies import _measured

    options = {"batch_size": 32, "seed": 0, "device": "cpu", "progress": False}
    odd = _measured(model, guide, Data(x), 1000, options).odd[:, 3]
    exact = -torch.distributions.Normal(mean, sd).log_prob(x[:, 3])
    torch.testing.assert_close(odd, exact, atol=0.25, rtol=0.1)
    assert float(exact[:10].min()) > 20  # where the guide's own particles are far from what the others say


def test_a_feature_that_few_reference_data_have_can_be_named():
    """Beyond all reference values, p-values differ by the numbers of these alone; nats decide."""
    from pyrovae.uses.anomalies import _conformal, _oddest

    reference = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)).double()
    reference[:30, 0] = torch.nan
    odd = torch.tensor([[90.0, 4.0], [0.0, 4.0], [torch.nan, 0.0]]).double()
    pvalues = torch.stack([_conformal(odd[:, k], reference[:, k]) for k in range(2)], 1)
    assert pvalues[0, 0] > pvalues[0, 1]
    assert _oddest(pvalues, odd, reference).tolist() == [0, 1, 1]
    reference[:, 0] = torch.nan  # no reference at all
    pvalues = torch.stack([_conformal(odd[:, k], reference[:, k]) for k in range(2)], 1)
    assert _oddest(pvalues, odd, reference).tolist() == [1, 1, 1]
    few = torch.randn(50, 2, generator=torch.Generator().manual_seed(1)).double()
    few[3:, 0] = torch.nan
    middle = torch.tensor([[float(few[:3, 0].max()) + 1, 1.5]]).double()
    pvalues = torch.stack([_conformal(middle[:, k], few[:, k]) for k in range(2)], 1)
    assert pvalues[0, 1] < 0.25
    assert _oddest(pvalues, middle, few).tolist() == [1]


def test_missing_cells_are_no_oddity():
    def made():
        likelihood = likelihoods.Missing(likelihoods.Gaussian())
        model = models.VAE(prior=priors.StandardNormal(2), decoder=nn.MLP(2, 5), likelihood=likelihood)
        return model, guides.MeanField(nn.Observed(nn.MLP(10, 8)), 2)

    model, guide = seeded(made)
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    x[:20, 1] = torch.nan
    found = pyrovae.anomaly(model, guide, Data(x[:20], missing=True), Data(x[20:], missing=True), **QUIET)
    assert not (found["feature"] == "x[1]").any()
    assert found["pvalue"].between(0, 1).all()


def test_rows_keep_their_names_and_codes_without_features_have_none():
    model, guide = oracle()
    rows = Data(normal(model, 3, 0), row_names=["a", "b", "c"])
    assert pyrovae.anomaly(model, guide, rows, normal(model, 50, 1), **QUIET).index.tolist() == ["a", "b", "c"]


def test_a_share_that_is_exactly_the_rate_is_rejected_and_impossible_features_are_named():
    from pyrovae.uses.anomalies import _benjamini_hochberg

    for rate in (0.01, 0.02, 0.04, 0.1):
        assert _benjamini_hochberg(torch.full((5,), rate, dtype=torch.float64), rate).all()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            edge = z[:, None].expand(-1, 2)
            pyro.sample("x", dist.Uniform(edge - 3, edge + 3, validate_args=False).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    reference = 0.1 * torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    found = pyrovae.anomaly(model, guide, torch.tensor([[0.0, 0.0], [0.0, 4.2]]), reference, **QUIET)
    assert found["feature"].tolist()[1] == "x[1]"
    assert found["feature_pvalue"].between(0, 1).all()


def test_the_false_discovery_rate_holds():
    """200 repeats of 90 normal and 10 odd data at a rate of 0.2: the mean share is at most 0.2 but for 4 errors."""
    model, _ = oracle()
    shares, power = [], []
    for seed in range(200):
        x = torch.cat([normal(model, 90, 10 + seed), normal(model, 10, 5000 + seed) + 6])
        reference = normal(model, 500, 9000 + seed)
        against, ours = -model.log_evidence(reference), -model.log_evidence(x)
        from pyrovae.uses.anomalies import _benjamini_hochberg, _conformal

        rejected = _benjamini_hochberg(_conformal(ours, against), 0.2)
        shares.append(float(rejected[:90].sum()) / max(1, int(rejected.sum())))
        power.append(float(rejected[90:].double().mean()))
    assert np.mean(shares) < 0.2 * 0.9 + SIGMAS * np.std(shares) / 200**0.5
    assert np.mean(power) > 0.5


def test_what_too_few_reference_data_cannot_reject_is_said():
    """With n reference data the smallest p-value is 1 / (n + 1), and k of N are rejected at p <= rate k / N."""
    model, guide = oracle()
    x = normal(model, 30, 0)
    x[0] += 50
    with pytest.warns(UserWarning, match=r"no fewer than 4 of 30 .* to reject a single one, give 299 reference data"):
        found = pyrovae.anomaly(model, guide, x, normal(model, 80, 1), **QUIET)
    assert not found["rejected"].any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pyrovae.anomaly(model, guide, x, normal(model, 299, 1), **QUIET)["rejected"].iloc[0]
