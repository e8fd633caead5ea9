"""Survey weights and frequencies: what a fit and an average are of."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import SIGMAS

import pyrovae
from pyrovae import guides, likelihoods, models, nn, priors
from pyrovae.common.weights import drawn_by_weight, most_drawn, weighted, weighted_errors
from pyrovae.data import Data, Table
from pyrovae.training.batches import Batches
from pyrovae.training.group import Group

RNG = np.random.default_rng(0)


def oracle(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = models.LinearGaussian(1, 3)
    return model, guides.Exact(model)


def test_values_of_a_weighted_mean_are_those_of_the_ratio_estimator():
    v, w = torch.from_numpy(RNG.normal(3, 2, (2, 50))), torch.from_numpy(RNG.gamma(1, size=50))
    mean = (w * v).sum(1) / w.sum()
    error = ((w * (v - mean[:, None])).square().sum(1) * 50 / 49).sqrt() / w.sum()
    found = weighted(v, w)
    torch.testing.assert_close(found.mean(1), mean)
    torch.testing.assert_close(found.std(1) / 50**0.5, error)
    torch.testing.assert_close(weighted(v[0] - v[1], w), found[0] - found[1])
    torch.testing.assert_close(weighted(v, 7 * w), found)
    torch.testing.assert_close(weighted(v, torch.full((50,), 2.0)), v)


def test_a_row_of_weight_zero_counts_for_nothing_even_where_it_is_not_finite():
    v, w = torch.tensor([1.0, -torch.inf, 3.0]), torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    assert float(weighted(v, w).mean()) == 2.0


def test_rows_are_drawn_as_often_as_their_weights_say():
    w = torch.from_numpy(RNG.gamma(0.5, size=40))
    w[-1] = 0
    expected, counts = 200 * w / w.sum(), []
    for seed in range(400):
        rows = drawn_by_weight(w, 200, torch.Generator().manual_seed(seed))
        assert len(rows) == 200
        counts.append(rows.bincount(minlength=40).double())
    counts = torch.stack(counts)
    assert bool(((counts - expected).abs() < 1).all())
    error = (expected % 1 * (1 - expected % 1) / 400).sqrt()  # 40 comparisons: fails with probability 40 x 6.3e-5
    assert bool(((counts.mean(0) - expected).abs() <= SIGMAS * error + 1e-9).all())


def test_an_epoch_holds_every_row_by_its_weight():
    w = torch.tensor([1.0, 2.0, 1.0, 0.0] * 10)
    batches = Batches(Data(torch.randn(40, 2, generator=torch.Generator().manual_seed(0)), weights=w), 16, 0, Group())
    first, second = batches.order(0), batches.order(1)
    assert torch.equal(first.bincount(minlength=40), w.long())
    assert not torch.equal(first, second)


def test_summaries_are_those_of_the_population():
    """A sample in which one of two groups is ten times as likely estimates the population's mean, with its error."""
    model, guide = oracle()
    source = torch.Generator().manual_seed(0)
    population = torch.cat([torch.randn(9000, 3, generator=source), 4 + torch.randn(3000, 3, generator=source)])
    truth = float(pyrovae.evaluate(model, guide, population, num_particles=1, progress=False).elbo.mean())
    chance = torch.where(torch.arange(12000) < 9000, 0.02, 0.2)
    scores = []
    for seed in range(60):
        taken = torch.rand(12000, generator=torch.Generator().manual_seed(seed)) < chance
        sample = Data(population[taken], weights=1 / chance[taken])
        summary = pyrovae.evaluate(model, guide, sample, num_particles=1, progress=False).summary()
        scores.append((summary["elbo"] - truth) / summary["elbo_se"])
    scores = torch.tensor(scores)
    assert abs(float(scores.mean())) < SIGMAS / 60**0.5  # fails with probability 6.3e-5
    assert 0.6 < float(scores.std()) < 1.4  # chi(59): either side fails with probability below 1e-4


def test_weights_are_carried_through_splits_devices_and_tables():
    w = RNG.gamma(1, size=30)
    frame = pd.DataFrame({"a": RNG.normal(size=30), "b": RNG.normal(size=30), "w": w})
    table = Table(frame, roles={"w": "weight"})
    train, _, test = table.splits(seed=0)
    np.testing.assert_array_equal(test.weights, w[test.index])
    again = Table.like(frame, train.on_own_scale().encoding)
    np.testing.assert_array_equal(again.weights, w)
    assert table.describe().loc["w", "role"] == "weight"
    assert table.unweighted().weights is None
    assert Data(torch.zeros(3, 1), weights=[1, 2, 3]).fingerprint() != Data(torch.zeros(3, 1)).fingerprint()
    with pytest.warns(UserWarning, match="lacks the weights 'w' that the pair was fitted with"):
        assert Table.like(frame.drop(columns="w"), table.encoding).weights is None


@torch.random.fork_rng()
def test_a_fit_to_weighted_rows_is_a_fit_to_the_population():
    """The mean of a linear-Gaussian model's data under weights is the weighted mean of the rows."""
    x = torch.cat([torch.zeros(150, 1) - 1, torch.zeros(50, 1) + 1]).double()
    x = x + 0.1 * torch.randn(200, 1, generator=torch.Generator().manual_seed(0)).double()
    w = torch.where(torch.arange(200) < 150, 1.0, 9.0)
    model = models.LinearGaussian(1, 1).double()
    guide = guides.FullRank(nn.MLP(1, 8), 1).double()
    fitted = pyrovae.fit(
        model, guide, Data(x, weights=w), epochs=150, lr=0.02, compile=False, validation_data=Data(x, weights=w),
        batch_size=50, seed=0, device="cpu", progress=False,
    )  # fmt: skip
    target = float((w.double() * x[:, 0]).sum() / w.sum())
    draws = pyrovae.simulate(model, x[:1], num_simulations=4000, seed=1, progress=False).data.tensors[0]
    assert abs(float(draws.mean()) - target) < 0.25  # the plain mean of the rows is -0.5
    bound = fitted.history["validation_bound"].iloc[-1]
    evaluation = pyrovae.evaluate(model, guide, Data(x, weights=w), num_particles=200, progress=False).summary()
    assert abs(bound - evaluation["elbo"]) < 0.2


def test_comparisons_are_weighted():
    x = torch.randn(80, 3, generator=torch.Generator().manual_seed(1))
    w = torch.from_numpy(RNG.gamma(1, size=80))
    pairs = {"one": oracle(), "two": oracle(1)}
    table = pyrovae.compare(pairs, Data(x, weights=w), num_particles=10, progress=False)
    for name, pair in pairs.items():
        values = pyrovae.evaluate(*pair, x, num_particles=10, progress=False).log_evidence
        assert table.loc[name, "log_evidence"] == pytest.approx(float((w * values).sum() / w.sum()))
    folds = Data(x, weights=w).folds(4)
    crossed = pyrovae.compare(
        {name: [pair] * 4 for name, pair in pairs.items()}, [fold.test for fold in folds], num_particles=10,
        progress=False,
    )  # fmt: skip
    assert crossed.loc["one", "log_evidence"] == pytest.approx(table.loc["one", "log_evidence"], abs=1e-6)


QUESTIONS = {
    "ais": lambda m, g, d: pyrovae.ais(m, d, guide=g, num_chains=2, num_temperatures=3, progress=False),
    "gaps": lambda m, g, d: pyrovae.gaps(m, g, d, num_steps=2, progress=False),
    "evidence": lambda m, g, d: pyrovae.evidence(m, g, d, num_particles=10, progress=False),
    "bdmc": lambda m, g, d: pyrovae.bdmc(m, d, guide=g, num_chains=2, num_temperatures=3, progress=False),
    "sbc": lambda m, g, d: pyrovae.sbc(m, g, d, num_simulations=20, num_draws=5, progress=False),
    "usage": lambda m, g, d: pyrovae.usage(m, g, d, progress=False),
    "rates": lambda m, g, d: pyrovae.rates(m, g, d, progress=False),
    "aggregate": lambda m, g, d: pyrovae.aggregate(m, g, d, progress=False),
    "posterior check": lambda m, g, d: pyrovae.posterior_predictive_check(
        m, g, d, {"mean": torch.mean}, progress=False
    ),
    "prior check": lambda m, g, d: pyrovae.prior_predictive_check(m, g, d, {"mean": torch.mean}, progress=False),
    "pit": lambda m, g, d: pyrovae.pit(m, d, progress=False),
    "elpd": lambda m, g, d: pyrovae.elpd(pyrovae.evaluate(m, g, d, num_particles=10, progress=False)),
    "sample_quality": lambda m, g, d: pyrovae.sample_quality(m, d, progress=False),
    "simulate": lambda m, g, d: pyrovae.simulate(m, d, progress=False),
    "reprior": lambda m, g, d: pyrovae.reprior(m, g, d, pyrovae.priors.StandardNormal(1), progress=False),
    "lc2st": lambda m, g, d: pyrovae.lc2st(m, g, d, num_simulations=200, progress=False),
    "recovery": lambda m, g, d: pyrovae.recovery(m, g, d, progress=False),
    "misspecification": lambda m, g, d: pyrovae.misspecification(m, g, d, progress=False),
    "prior_gain": lambda m, g, d: pyrovae.prior_gain(m, g, d, progress=False),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_other_questions_refuse_weights(name):
    model, guide = oracle()
    data = Data(torch.randn(60, 3, generator=torch.Generator().manual_seed(0)), weights=np.arange(60) + 1.0)
    with pytest.raises(ValueError, match=r"carry survey weights, which .* take"):
        QUESTIONS[name](model, guide, data)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([1.0, 2.0], r"one number per observation, \[3\], got \[2\]"),
        ([1.0, -2.0, 1.0], "finite numbers of at least 0, got -2 for observation 1"),
        ([1.0, float("nan"), 1.0], "got nan for observation 1"),
    ],
)
def test_bad_weights_are_refused(weights, words):
    with pytest.raises(ValueError, match=words):
        Data(torch.zeros(3, 1), weights=weights)


def test_a_frequency_repeats_its_row():
    frame = pd.DataFrame({"a": [0.5, 1.5, 2.5, 0.1], "n": [2, 0, 1, 3]}, index=["p", "q", "r", "s"])
    table = Table(frame, roles={"n": "frequency"})
    assert table.index.tolist() == ["p/1", "p/2", "r/1", "s/1", "s/2", "s/3"]
    assert table.to_frame()["a"].tolist() == [0.5, 0.5, 2.5, 0.1, 0.1, 0.1]
    long = Table(frame.loc[frame.index.repeat(frame["n"])].reset_index(drop=True)[["a"]])
    assert torch.equal(torch.cat(table.batch(slice(0, 6))), torch.cat(long.batch(slice(0, 6))))
    later = Table.like(frame.drop(columns="n"), table.encoding)
    assert later.index.tolist() == ["p", "q", "r", "s"]
    assert len(table.encoded_as(later.encoding)) == 6
    for cells, words in (([0.5, 1, 1, 1], "a whole number, and holds 0.5 in row 'p'"), ([1, -1, 1, 1], "holds -1")):
        with pytest.raises(ValueError, match=words):
            Table(frame.assign(n=cells), roles={"n": "frequency"})
    with pytest.raises(ValueError, match="has the role of a weight, a number of at least 0, and holds nan in row 'q'"):
        Table(frame.assign(n=[1, np.nan, 1, 1]), roles={"n": "weight"})


def row_order(slope, rows):
    """A program whose covariate is in the data's order, in a closure."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(slope * rows + z, 1.0), obs=x)

    return model


def no_encoder(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("m", torch.zeros(())).expand(len(x)), 1.0))


def test_weighted_rows_are_never_in_one_batch_so_that_programs_of_the_whole_set_are_refused():
    rows = torch.linspace(-1, 1, 16)
    x = Data(2 * rows, weights=np.arange(16) + 1.0)
    with pytest.raises(ValueError, match="8"):
        pyrovae.fit(row_order(1.0, rows), no_encoder, x, epochs=1, device="cpu", progress=False)
    assert Batches(x, 128, 0, Group()).batch_size == 8


def test_a_table_with_a_pattern_is_drawn_from_evenly():
    w = torch.ones(1000, dtype=torch.float64)
    shares = [
        float((drawn_by_weight(w, 500, torch.Generator().manual_seed(seed)) % 2).double().mean()) for seed in range(50)
    ]
    assert abs(np.mean(shares) - 0.5) < SIGMAS * 0.0158 / 50**0.5  # sd of a sample of 500 of 1,000
    assert 0.3 < np.std(shares) / 0.0158 < 2


def test_errors_of_a_part_drawn_by_weight_are_those_of_a_plain_sample():
    """Scores of its mean have a standard deviation of 1, within 4 of its errors at 300 repeats."""
    scores = []
    source = np.random.default_rng(5)
    for seed in range(300):
        y = source.normal(size=400)
        chance = 1 / (1 + np.exp(-y)) * 0.9 + 0.1
        sampled = source.random(400) < chance
        part = Data(y[sampled][:, None], weights=1 / chance[sampled]).sampled(10_000, seed=seed).tensors[0]
        scores.append(float(part.mean() / (part.std() / len(part) ** 0.5)))
        assert len(part.unique()) == len(part)
    assert 0.83 < np.std(scores) < 1.17
    assert abs(np.mean(scores)) < SIGMAS * 1.1 / 300**0.5 + 0.1  # the ratio's bias


@torch.random.fork_rng()
@pytest.mark.filterwarnings("ignore:the validation data have weights and the training data have none")
def test_validation_bounds_are_weighted_also_where_latents_are_shared():
    x = torch.cat([torch.zeros(180, 1), 5 + torch.zeros(20, 1)]) + 0.1 * torch.randn(200, 1)
    w = torch.where(torch.arange(200) < 180, 0.01, 100.0)
    bounds = []
    for weights in (w, None):
        torch.manual_seed(0)
        decoder, likelihood = nn.MLP(1, 1, hidden=(4,)), likelihoods.Gaussian(fixed=1.0)
        prior = priors.StandardNormal(1)
        model = models.BayesianVAE(prior=prior, decoder=decoder, likelihood=likelihood, num_data=200)
        guide = guides.WithGlobals.of(guides.MeanField(nn.MLP(1, 8), 1), model, x[:3])
        fitted = pyrovae.fit(
            model, guide, x, validation_data=Data(x, weights=weights), epochs=1, lr=1e-9, batch_size=50, device="cpu",
            compile=False, progress=False,
        )  # fmt: skip
        bounds.append(fitted.history["validation_bound"].iloc[-1])
    assert bounds[0] < bounds[1] - 3  # the data near 5 lie far from where the model starts


def test_weights_on_one_side_alone_are_told():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    model, guide = oracle()
    weighted_rows = Data(x, weights=np.arange(40) + 1.0)
    with pytest.warns(UserWarning, match="the training data have weights and the validation data have none"):
        pyrovae.fit(model, guide, weighted_rows, validation_data=x, epochs=1, device="cpu", progress=False)


def test_weights_that_are_all_zero_are_refused_where_they_would_count():
    x = Data(torch.randn(12, 3, generator=torch.Generator().manual_seed(0)), weights=[1.0] * 4 + [0.0] * 8)
    model, guide = oracle()
    nothing = x.subset(slice(4, 12))
    for act in (lambda: nothing.sampled(3), lambda: pyrovae.fit(*oracle(), nothing, epochs=1, progress=False)):
        with pytest.raises(ValueError, match="are 0, so that there is nothing to fit or to average"):
            act()
    assert bool(pyrovae.evaluate(model, guide, nothing, num_particles=5, progress=False).elbo.isfinite().all())


def test_neither_large_weights_nor_errors_at_weight_zero_are_lost():
    v = torch.tensor([1.0, 2.0, 3.0])
    huge = torch.tensor([1e307, 1e307, 2e307], dtype=torch.float64)
    assert float(weighted(v, huge).mean()) == pytest.approx(2.25)
    nan = torch.tensor([torch.nan, 1.0, 1.0], dtype=torch.float64)
    assert bool(weighted_errors(nan, torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)).isfinite().all())
    assert most_drawn(torch.full((49,), 1 / 3, dtype=torch.float64)) == 49
