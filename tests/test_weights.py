"""Survey weights and frequencies: what a fit and an average are of."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SIGMAS

import pyrovae
from pyrovae import guides, models, nn
from pyrovae.common.weights import drawn_by_weight, effective_size, weighted
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
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_other_questions_refuse_weights(name):
    model, guide = oracle()
    data = Data(torch.randn(60, 3, generator=torch.Generator().manual_seed(0)), weights=np.arange(60) + 1.0)
    with pytest.raises(ValueError, match=r"carry survey weights, which .* take"):
        QUESTIONS[name](model, guide, data)


def test_a_part_drawn_by_weight_stands_for_the_population():
    w = torch.from_numpy(RNG.gamma(0.5, size=500))
    data = Data(torch.arange(500.0)[:, None], weights=w)
    part = data.sampled(10_000, seed=3)
    assert part.weights is None
    assert len(part) == int(effective_size(w))
    mean = float((w * torch.arange(500)).sum() / w.sum())
    assert abs(float(part.tensors[0].mean()) - mean) < 60  # one part; a plain mean of a uniform sample has error 9


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([1.0, 2.0], r"one number per observation, \[3\], got \[2\]"),
        ([1.0, -2.0, 1.0], "finite numbers of at least 0, got -2 for observation 1"),
        ([1.0, float("nan"), 1.0], "got nan for observation 1"),
        ([0.0, 0.0, 0.0], "all weights are 0"),
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


@torch.random.fork_rng()
def test_a_whole_batch_of_weighted_rows_is_refused_where_something_may_belong_to_a_row():
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    model = models.LinearGaussian(1, 3)
    guide = guides.MeanField(nn.MLP(3, 16), 1)
    with pytest.raises(ValueError, match="give a batch_size below 16"):
        pyrovae.fit(model, guide, Data(x, weights=np.arange(16) + 1.0), epochs=1, device="cpu", progress=False)
