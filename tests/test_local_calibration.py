"""Local tests of a guide, posterior SBC, recovery, and ArviZ's tests of uniformity."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import SIGMAS, seeded
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression

import pyrovae
from pyrovae import guides, models
from pyrovae.diagnostics.calibration.ranks import Ranks
from pyrovae.diagnostics.calibration.uniformity import piet_c, pot_c

QUIET = {"progress": False, "device": "cpu"}


class Scaled(torch.nn.Module):
    """The exact posterior, 0.7 times as wide where ``wrong(x)`` says so."""

    def __init__(self, model, wrong):
        super().__init__()
        self.model, self.wrong = model, wrong

    def forward(self, x):
        with pyro.plate("data", len(x)):
            exact = self.model.posterior(x)
            scale = torch.where(self.wrong(x), 0.7, 1.0).to(x.dtype)[:, None, None]
            pyro.sample("z", dist.MultivariateNormal(exact.loc, scale_tril=scale * exact.scale_tril))


def oracle():
    return seeded(lambda: models.LinearGaussian(2, 5).double().requires_grad_(False))


def test_a_wrong_scale_is_found_at_the_data_that_were_given_it():
    """0.7 of the scale where the first feature is above 0: 60 data away from that edge on either side."""
    model = oracle()
    x = pyrovae.sample(model, 400, seed=1, **QUIET)["x"]
    x = torch.cat([x[x[:, 0] > 0.3][:60], x[x[:, 0] < -0.3][:60]])
    found = pyrovae.lc2st(model, Scaled(model, lambda x: x[:, 0] > 0), x, num_simulations=6000, num_null=0, **QUIET)
    rejected = (found.pvalue <= 0.05).double()
    assert rejected[:60].mean() > 0.8
    assert rejected[60:].mean() < 0.2
    assert found.effect[:60].min() > found.effect[60:].median()
    assert found.overall < 0.01
    assert found.summary()["rejected_adjusted"] <= found.summary()["rejected"]
    assert list(found.table()) == ["pvalue", "adjusted", "effect", "ess", "statistic", "global_pvalue"]


def test_the_order_of_the_data_does_not_matter():
    """Rows sorted by a covariate c, z ~ N(0, 1), x ~ N(z + c, 1); 0.64 of the scale where c is below 0."""

    def model(x, c):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z + c, 1.0), obs=x)

    def guide(x, c):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x - c) / 2, torch.where(c < 0, 0.45, 0.5**0.5)))

    c, shares = torch.linspace(-3, 3, 500), []
    for seed in range(6):
        made = pyrovae.simulate(model, (torch.zeros(500), c), seed=seed, **QUIET)
        found = pyrovae.lc2st(model, guide, made.data, num_simulations=3000, num_null=0, seed=seed, **QUIET)
        rejected = (found.pvalue <= 0.05).double()
        shares.append([float(rejected[:225].mean()), float(rejected[275:].mean())])
    wrong, right = np.mean(shares, axis=0)  # rows of one seed share simulations: shares vary by 0.06 between seeds
    assert wrong > 0.8
    assert right < 0.15
    assert float(found.ess.max()) <= 900
    assert found.worst(3)["pvalue"].max() == found.pvalue.min()


def test_the_exact_posterior_passes_and_the_paper_s_test_agrees():
    model = oracle()
    x = pyrovae.sample(model, 20, seed=1, **QUIET)["x"]
    size = {"num_simulations": 1000, "num_null": 19}
    exact = pyrovae.lc2st(model, guides.Exact(model), x, **size, **QUIET)
    wrong = pyrovae.lc2st(model, Scaled(model, lambda x: x[:, 0] > -99), x, **size, **QUIET)
    assert exact.overall > 1e-3  # fails once in 1,000 seeds
    assert wrong.overall < 0.01
    assert (wrong.pvalue <= 0.05).double().mean() > 0.8
    assert (wrong.global_pvalue <= 0.05).double().mean() > 0.8
    assert "local tests of the guide at 20 observations" in str(wrong)


@pytest.mark.slow
def test_local_p_values_have_their_size():
    """400 repeats under the exact guide, one observation each, both tests: 3 to 7% of p-values are at most 5%.

    A share of 400 lies outside of 2.25% to 8% (no p-value is exactly 5%) with probability 1%.
    """
    model, low = oracle(), np.zeros(2)
    for seed in range(400):
        x = pyrovae.sample(model, 1, seed=seed, **QUIET)["x"]
        classifier = LogisticRegression()
        found = pyrovae.lc2st(
            model, guides.Exact(model), x, num_simulations=400, num_draws=50, num_null=19, num_permutations=199,
            classifier=classifier, seed=seed, **QUIET,
        )  # fmt: skip
        low += [float(found.pvalue) <= 0.05, float(found.global_pvalue) <= 0.05]
    print(f"rejected at 5%: {low / 400}")
    assert (low / 400 > 0.0225).all()
    assert (low / 400 < 0.08).all()


def test_places_of_ones_own_and_bad_ones():
    model = oracle()
    x = torch.zeros(3, 5).double()
    own = {"features": lambda x: x[:, :1], "num_simulations": 300, "num_null": 0}
    assert pyrovae.lc2st(model, guides.Exact(model), x, **own, **QUIET).pvalue.shape == (3,)
    with pytest.raises(ValueError, match=r"features must return numbers \[rows, F\], got \[32\]"):
        pyrovae.lc2st(model, guides.Exact(model), x, **{**own, "features": lambda x: x[:, 0]}, **QUIET)
    with pytest.raises(ValueError, match="classifier must be one of scikit-learn with predict_proba"):
        pyrovae.lc2st(model, guides.Exact(model), x, classifier=LinearRegression(), **QUIET)
    trees = RandomForestClassifier(20)
    forests = [pyrovae.lc2st(model, guides.Exact(model), x, classifier=trees, **own, **QUIET) for _ in range(2)]
    assert torch.equal(forests[0].pvalue, forests[1].pvalue)
    with pytest.raises(ValueError, match="num_simulations must be a whole number of at least 200"):
        pyrovae.lc2st(model, guides.Exact(model), x, num_simulations=10, **QUIET)


def regression(x, y):
    """y ~ N(x w, 1), w ~ N(0, 1): the exact posterior of w, mean and covariance."""
    precision = torch.eye(2).double() + x.T @ x
    covariance = torch.linalg.inv(precision)
    return covariance @ x.T @ y, covariance


class Drawn:
    """A Gaussian of w, exact or factorised (the best by KL(q || p))."""

    def __init__(self, data, factorised):
        y, x = data.batch(slice(0, len(data)))[:2]
        self.mean, covariance = regression(x, y[:, 0])
        if factorised:
            covariance = torch.diag(1 / torch.linalg.inv(covariance).diagonal())
        self.covariance = covariance

    def draw(self):
        return {"w": dist.MultivariateNormal(self.mean, self.covariance).sample()}


def linear(y, x):
    w = pyro.sample("w", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y[:, 0])


class Other:
    def __init__(self, data):
        pass

    def draw(self):
        return {"u": torch.zeros(2)}


@pytest.mark.parametrize("factorised", [False, True])
def test_posterior_sbc_passes_the_exact_posterior_and_not_a_factorised_one(factorised):
    """Two coefficients with a posterior correlation of -0.9; the exact one fails once in 1,000 seeds."""
    source = torch.Generator("cpu").manual_seed(0)
    basis = torch.linalg.qr(torch.randn(30, 2, generator=source).double()).Q
    x = basis @ torch.linalg.cholesky(torch.tensor([[29.0, 27.0], [27.0, 29.0]]).double()).T
    y = (x @ torch.tensor([0.5, -0.2]).double())[:, None] + torch.randn(30, 1, generator=source).double()
    _, covariance = regression(x, y[:, 0])
    assert float(covariance[0, 1] / covariance.diagonal().prod().sqrt()) == pytest.approx(-0.9)
    data = pyrovae.data.Data(pyrovae.data.Field(y, role="observed"), pyrovae.data.Field(x, role="covariate"))
    found = pyrovae.posterior_sbc(
        linear, Drawn(data, factorised), data, lambda both: Drawn(both, factorised), num_simulations=200,
        quantities={"sum": lambda draw: draw["w"].sum()}, **QUIET,
    )  # fmt: skip
    assert found.names == ("w[0]", "w[1]", "sum")
    smallest = float(found.table()["adjusted"].min())
    assert smallest < 1e-3 if factorised else smallest > 1e-3


def test_posterior_sbc_says_what_it_needs():
    y, x = torch.zeros(30, 1).double(), torch.zeros(30, 2).double()
    data = pyrovae.data.Data(pyrovae.data.Field(y, role="observed"), pyrovae.data.Field(x, role="covariate"))
    for refit, words in ((lambda both: None, r"refit must return a guide with draw\(\)"), (Other, "draws {'u': ")):
        with pytest.raises(ValueError, match=words):
            pyrovae.posterior_sbc(linear, Drawn(data, False), data, refit, num_simulations=2, **QUIET)
    with pytest.raises(ValueError, match=r"no global latents to draw: it needs draw\(\)"):
        pyrovae.posterior_sbc(linear, lambda y, x: None, torch.zeros(3, 1), lambda data: None, **QUIET)


def test_recovery_has_the_contraction_of_the_closed_form():
    """z-scores have mean 0 and sd 1, within 4 errors; contraction is 1 - posterior variance."""
    model = oracle()
    found = pyrovae.recovery(model, guides.Exact(model), torch.zeros(1, 5).double(), num_simulations=2000, **QUIET)
    table, variance = found.table(), torch.linalg.inv(model.precision()).diagonal()
    assert np.abs(table["zscore_mean"]).max() < SIGMAS / 2000**0.5
    assert np.abs(table["zscore_sd"] - 1).max() < SIGMAS / 4000**0.5 + 0.01
    np.testing.assert_allclose(table["contraction"], 1 - variance, atol=SIGMAS * float(variance.max()) * 0.04)
    np.testing.assert_allclose(table["correlation"], (1 - variance).sqrt(), atol=0.03)
    wrong = pyrovae.recovery(model, Scaled(model, lambda x: x[:, 0] > -99), torch.zeros(1, 5).double(), **QUIET)
    assert wrong.table()["zscore_sd"].min() > 1.2
    assert len(found.plot().axes) == 2


def test_tests_of_uniformity_have_their_size_and_see_what_the_band_sees():
    """2,000 sets of 100: sizes of 5% within 2 points; 4,000 sets would differ by 0.5."""
    source = np.random.default_rng(0)
    values = source.random((100, 2000))
    for test in (pot_c, piet_c):
        assert 0.02 < (test(values) <= 0.05).mean() < 0.075
    ranks = torch.from_numpy((source.beta([[1.0, 1.6, 1.0]], [[1.0, 1.6, 1.5]], size=(500, 3)) * 100).astype(int))
    table = Ranks(ranks, 99, ("right", "wide", "shifted")).table()
    for test in ("pvalue", "pot"):
        assert (table[test] < 0.01).tolist() == [False, True, True]
    assert table["piet"]["right"] > 0.01


def test_piet_sees_a_single_outlier():
    values = np.random.default_rng(1).random((200, 1))
    values[0] = 1e-9
    assert piet_c(values)[0] < 1e-4


def test_tests_of_uniformity_are_arvizs():
    base = pytest.importorskip("arviz_stats.base", reason="ArviZ 1.x, which needs Python 3.12")
    values = np.random.default_rng(0).random((300, 4)) ** 1.1
    for name, test in (("pot_c", pot_c), ("piet_c", piet_c)):
        theirs = [base.array_stats.uniformity_test(column, method=name)[0] for column in values.T]
        np.testing.assert_allclose(test(values), theirs, rtol=1e-9)
