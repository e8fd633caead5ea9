"""Priors from statements about data: stated quantiles come back within their Monte Carlo error."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import seeded
from scipy import stats

import pyrovae
from pyrovae import Probability, Quantiles, likelihoods, models, nn, priors

QUIET = {"progress": False, "device": "cpu"}


class Program(torch.nn.Module):
    """z ~ prior, x ~ outcome(z)."""

    def __init__(self, prior, outcome):
        super().__init__()
        self.prior, self.outcome = prior, outcome

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.outcome(z), obs=x)


def first(values):
    return values["x"][:, 0]


def normal(z):
    return dist.Normal(z, 5.0).to_event(1)


def test_a_gaussian_outcome():
    """Quantiles of N(170, 12^2) with noise of 5: a prior N(170, 119)."""
    model = Program(priors.Parametric(1, "Normal", {"loc": 0.0, "scale": 1.0}), normal)
    stated = Quantiles.like("height", first, stats.norm(170, 12))
    found = pyrovae.elicit(model, [stated], **QUIET)
    assert found.met
    assert float(found.hyperparameters["loc"]) == pytest.approx(170, abs=0.3)
    assert float(found.hyperparameters["scale"]) == pytest.approx(119**0.5, abs=0.4)
    table = found.table()
    assert list(table) == ["stated", "came_out", "se", "before", "below", "at_most", "met"]
    np.testing.assert_allclose(table["below"], [0.05, 0.25, 0.5, 0.75, 0.95], atol=0.02)
    assert (table["before"] < 20).all()
    assert len(found.plot().axes) == 1


def test_a_count():
    """x ~ Poisson(exp(z)) under z ~ N(1.2, 0.5^2), whose quantiles are stated: those numbers are found again."""

    def counts(z):
        return dist.Poisson(z.clamp(max=12.0).exp()).to_event(1)

    z = stats.norm(1.2, 0.5).ppf((np.arange(20_000) + 0.5) / 20_000)
    grid = np.arange(200)
    cdf = stats.poisson.cdf(grid[:, None], np.exp(z)).mean(1)
    quantiles = {p: float(grid[np.searchsorted(cdf, p)]) for p in (0.1, 0.5, 0.9)}
    model = Program(priors.Parametric(1, "Normal", {"loc": 0.0, "scale": 1.0}), counts)
    found = pyrovae.elicit(model, [Quantiles("visits", first, quantiles)], **QUIET)
    assert found.met
    assert (found.table()["stated"] == found.table()["came_out"]).all()
    assert float(found.hyperparameters["loc"]) == pytest.approx(1.2, abs=0.2)


def test_a_bernoulli_outcome_and_the_output_of_a_decoder():
    """P(x = 1 | z) = sigmoid(z): its quantiles and the probability of an event, under z ~ N(-1, 0.8^2)."""

    def answer(z):
        return dist.Bernoulli(logits=z).to_event(1)

    chance = {p: float(1 / (1 + np.exp(-stats.norm(-1, 0.8).ppf(p)))) for p in (0.05, 0.5, 0.95)}
    z = stats.norm(-1, 0.8).ppf((np.arange(20_000) + 0.5) / 20_000)
    model = Program(priors.Parametric(1, "Normal", {"loc": 0.0, "scale": 2.0}), answer)
    stated = [
        Quantiles("chance", first, chance, mean=True),
        Probability("a sale", lambda v: v["x"][:, 0] > 0.5, float((1 / (1 + np.exp(-z))).mean())),
    ]
    found = pyrovae.elicit(model, stated, **QUIET)
    assert found.met
    assert float(found.hyperparameters["loc"]) == pytest.approx(-1, abs=0.05)
    assert float(found.hyperparameters["scale"]) == pytest.approx(0.8, abs=0.05)
    assert len(found.plot().axes) == 2


def test_a_discrete_distribution_is_met_step_by_step():
    """Five questions, each answered yes with the same Beta(2, 3) probability: steps of 1, and of a fifth."""

    class Answers(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.prior = priors.Parametric(1, "Beta", {"concentration1": 1.0, "concentration0": 1.0})

        def forward(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", self.prior())
                pyro.sample("x", dist.Bernoulli(probs=z.expand(-1, 5).clamp(1e-6, 1 - 1e-6)).to_event(1), obs=x)

    target = stats.betabinom(5, 2, 3)
    for statistic, step in ((lambda v: v["x"].sum(1), 1.0), (lambda v: v["x"].mean(1), 0.2)):
        pairs = {(target.cdf(k - 1) + target.cdf(k)) / 2: k * step for k in (1, 2, 3)}
        found = pyrovae.elicit(Answers(), [Quantiles("answers", statistic, pairs)], steps=60, **QUIET)
        assert found.met
        assert float(found.hyperparameters["concentration1"]) == pytest.approx(2, abs=0.5)
        assert float(found.hyperparameters["concentration0"]) == pytest.approx(3, abs=0.7)
        assert (found.table()["at_most"] > found.table()["below"] + 0.1).all()
    like = Quantiles.like("answers", lambda v: v["x"].sum(1), target)
    assert like.quantiles == pytest.approx(
        {(target.cdf(v - 1) + target.cdf(v)) / 2: v for v in like.quantiles.values()}
    )


def test_the_end_of_a_discrete_statistic_can_be_stated():
    """The median of two answers is two: probabilities grow until it is, and not without a limit."""

    def answer(z):
        return dist.Bernoulli(logits=z.expand(-1, 2)).to_event(1)

    model = Program(priors.Parametric(1, "Normal", {"loc": -1.0, "scale": 1.0}), answer)
    found = pyrovae.elicit(model, [Quantiles("yes", lambda v: v["x"].sum(1), {0.5: 2.0})], **QUIET)
    assert found.met
    assert abs(float(found.hyperparameters["loc"])) < 10
    assert float(found.hyperparameters["scale"]) < 20


def test_a_flow_meets_quantiles_that_no_gaussian_has():
    model = Program(
        seeded(lambda: priors.MixtureOfGaussians(1, num_components=3)), lambda z: dist.Normal(z, 0.1).to_event(1)
    )
    skew = Quantiles("delay", first, {0.05: 0.1, 0.25: 0.3, 0.5: 0.7, 0.75: 1.6, 0.95: 4.5})
    found = pyrovae.elicit(model, [skew], steps=80, num_draws=8000, **QUIET)
    table = found.table()
    assert (table["came_out"] - table["stated"]).abs().max() < 0.1
    assert found.hyperparameters == {}


def test_statements_that_cannot_all_be_met_say_so():
    model = Program(priors.Parametric(1, "Normal", {"loc": 0.0, "scale": 1.0}), normal)
    found = pyrovae.elicit(model, [Quantiles("x", first, {0.05: 0.0, 0.5: 40.0, 0.95: 50.0})], **QUIET)
    assert not found.met
    assert "of 3 stated numbers met" in str(found)


def test_only_hyperparameters_change_and_a_seed_gives_the_same():
    def run():
        decoder = seeded(lambda: nn.MLP(2, 3, hidden=(4,)))
        model = models.VAE(
            prior=priors.Parametric(2, "Laplace", {"loc": 0.0, "scale": 1.0}, fixed=["loc"]), decoder=decoder,
            likelihood=likelihoods.Poisson(),
        )  # fmt: skip
        before = [p.detach().clone() for p in decoder.parameters()]
        statement = Quantiles("spread", lambda v: v["z"].abs().sum(1), {0.5: 3.0})
        found = pyrovae.elicit(model, [statement], seed=3, **QUIET)
        assert all(map(torch.equal, before, decoder.parameters()))
        return found.hyperparameters

    one, other = run(), run()
    assert one.keys() == {"loc", "scale"}
    assert float(one["scale"]) == float(other["scale"]) != 1.0
    assert float(one["loc"]) == 0.0


def test_bad_statements_and_models_are_refused():
    model = Program(priors.Parametric(1, "Normal", {"loc": 0.0, "scale": 1.0}), normal)
    with pytest.raises(ValueError, match="must ascend with their probabilities"):
        Quantiles("x", first, {0.1: 2.0, 0.9: 1.0})
    with pytest.raises(ValueError, match="must have ppf"):
        Quantiles.like("x", first, dist.Normal(0.0, 1.0))
    with pytest.raises(ValueError, match="statements must be a list of Quantiles and Probability"):
        pyrovae.elicit(model, [], **QUIET)
    with pytest.raises(ValueError, match=r"the statistic of 'x' must return \[4000\] numbers, got \[4000, 1\]"):
        pyrovae.elicit(model, [Quantiles("x", lambda v: v["x"], {0.5: 1.0})], **QUIET)
    with pytest.raises(ValueError, match="the event 'far' never happens in 4000 draws"):
        pyrovae.elicit(model, [Probability("far", lambda v: v["x"][:, 0] > 1e6, 0.5)], **QUIET)
    with pytest.raises(ValueError, match="there is nothing to fit"):
        pyrovae.elicit(Program(priors.StandardNormal(1), normal), [Quantiles("x", first, {0.5: 1.0})], **QUIET)
    with pytest.raises(ValueError, match="must say whether an event happens"):
        pyrovae.elicit(model, [Probability("x", first, 0.5)], **QUIET)
    with pytest.raises(ValueError, match="the statistic of 'x' asks for 'y': there are"):
        pyrovae.elicit(model, [Quantiles("x", lambda v: v["y"], {0.5: 1.0})], **QUIET)
    with pytest.raises(ValueError, match="parameters must be tensors with requires_grad"):
        pyrovae.elicit(model, [Quantiles("x", first, {0.5: 1.0})], parameters=[torch.ones(1)], **QUIET)
    scale = torch.nn.Parameter(torch.ones(()))
    loose = Program(priors.StandardNormal(1), lambda z: dist.Normal(z, scale.exp()).to_event(1))
    with pytest.raises(ValueError, match="a parameter changes the distribution of 'x' given the latents"):
        pyrovae.elicit(loose, [Quantiles("x", first, {0.5: 1.0})], parameters=[scale], **QUIET)


def test_families_and_their_hyperparameters():
    prior = priors.Parametric(3, dist.Gamma, {"concentration": 2.0, "rate": [1.0, 2.0, 3.0]}, fixed=["rate"])
    assert [name for name, _ in prior.named_parameters()] == ["raw.concentration"]
    torch.testing.assert_close(prior().mean, torch.tensor([2.0, 1.0, 2 / 3]))
    for family, values, words in (
        ("Gauss", {"loc": 0.0}, "family must be a distribution of Pyro"),
        ("Normal", {"loc": 0.0, "width": 1.0}, "Normal has no hyperparameter 'width' to fit"),
        ("Normal", {"loc": 0.0}, "Normal does not take"),
        ("Normal", {"loc": 0.0, "scale": -1.0}, "Normal does not take|must lie in"),
        ("Dirichlet", {"concentration": [1.0, 1.0]}, "no hyperparameter 'concentration'|not a distribution of one"),
        ("Pareto", {"scale": 1.0, "alpha": 3.0}, "the support of Pareto depends on its hyperparameters"),
        ("Uniform", {"low": 0.0, "high": 3.0}, "the support of Uniform depends on its hyperparameters"),
        ("Normal", {}, "hyperparameters must be values by name"),
    ):
        with pytest.raises(ValueError, match=words):
            priors.Parametric(2, family, values)


class Gamma:
    """As PreliZ's distribution: parameters by PreliZ's names."""

    def __init__(self, alpha=None, beta=None):
        self.alpha, self.beta = alpha, beta

    def ppf(self, q):
        return stats.gamma(self.alpha, scale=1 / self.beta).ppf(q)


def test_distributions_of_preliz():
    prior = priors.from_preliz(Gamma(2.0, 0.5), 3)
    assert prior.family == "Gamma"
    torch.testing.assert_close(prior().mean, torch.full((3,), 4.0))
    with pytest.raises(ValueError, match="the Gamma has no value of 'alpha'"):
        priors.from_preliz(Gamma(), 3)
    with pytest.raises(ValueError, match="distribution must be one of PreliZ"):
        priors.from_preliz(3, 3)
    stated = Quantiles.like("wait", first, Gamma(2.0, 0.5), (0.1, 0.5, 0.9))
    assert stated.quantiles[0.5] == pytest.approx(stats.gamma(2, scale=2).ppf(0.5))
    with pytest.raises(ValueError, match="StandardNormal has no counterpart in PreliZ"):
        priors.to_preliz(priors.StandardNormal(2))


@pytest.mark.own_state  # PreliZ changes matplotlib's parameters where it is imported
@pytest.mark.filterwarnings("ignore:PyMC not installed")
def test_priors_go_to_preliz_and_back():
    pz = pytest.importorskip("preliz", reason="PreliZ, which is not among the requirements")
    for prior in (
        priors.Parametric(2, "StudentT", {"df": 5.0, "loc": 1.0, "scale": 2.0}),
        priors.Parametric(2, "Weibull", {"concentration": 1.5, "scale": 2.0}),
        priors.Parametric(2, "Gamma", {"concentration": 1.5, "rate": 2.0}),
    ):
        theirs = priors.to_preliz(prior)
        back = priors.from_preliz(theirs, 2)
        for name, value in prior.values().items():
            torch.testing.assert_close(back.values()[name], value)
        draws = prior.forward().sample((100_000,)).double()
        assert theirs.cdf(float(draws.median())) == pytest.approx(0.5, abs=0.01)
    several = priors.to_preliz(priors.Parametric(2, "Normal", {"loc": [0.0, 1.0], "scale": 1.0}))
    assert [one.mu for one in several] == [0.0, 1.0]
    fitted = pz.Normal()
    pz.maxent(fitted, 150, 190, 0.9, plot=False)
    assert Quantiles.like("height", first, fitted).quantiles[0.5] == pytest.approx(170, abs=0.5)
