"""Comparisons: a reference, folds, main effects; and how fits ended."""

import functools

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import SIGMAS, bits, make_vae, seeded
from scipy import stats

import pyrovae
from pyrovae import data, guides, likelihoods, models, nn, objectives, plots, priors
from pyrovae.app.tabulation import _difference
from pyrovae.data import Data
from pyrovae.diagnostics.crossed import crossed_error, fold_error
from pyrovae.diagnostics.evidence.evaluate import Evaluation
from pyrovae.diagnostics.tables import formatted
from pyrovae.training.ending import ending


def an_evaluation(log_evidence, khat=0.1):
    values = torch.as_tensor(log_evidence, dtype=torch.float64)
    ones = torch.ones_like(values)
    return Evaluation(values - 0.5, 0.01 * ones, values, 0.01 * ones, khat * ones, 500 * ones, 1000)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_differences_are_to_the_reference():
    base = noise(50)
    runs = {"a": an_evaluation(base), "b": an_evaluation(base + 0.3), "c": an_evaluation(base - 0.2 + 0.1 * noise(50))}
    table = pyrovae.comparison(runs, reference="a")
    assert table.index[0] == "b"
    assert table.loc["a", ["difference", "difference_se"]].tolist() == [0, 0]
    assert table["difference"]["b"] == pytest.approx(0.3)
    assert pyrovae.comparison(runs)["difference"]["b"] == 0
    for named, words in ((table, "minus that of a"), (pyrovae.comparison(runs), "minus the best's")):
        assert words in plots.comparison(named).axes[1].get_xlabel()
        assert words in plots.pareto(named.assign(seconds=1.0)).axes[0].get_ylabel()
    with pytest.raises(ValueError, match="reference must be one of a, b, c, got 'd'"):
        pyrovae.comparison(runs, reference="d")


def test_main_effects_are_those_of_an_additive_table():
    base, guide, objective = noise(2, 40), {"g": -0.4, "h": 0.4}, {"o": 0.0, "p": 0.3, "q": -0.3}
    runs = {
        (g, o): [an_evaluation(row + a + b) for row in base] for g, a in guide.items() for o, b in objective.items()
    }
    table = pyrovae.main_effects(runs, ("guide", "objective"))
    assert table.loc[("guide", "h"), "effect"] == pytest.approx(0.4)
    assert table.loc[("objective", "q"), "effect"] == pytest.approx(-0.3)
    assert table["se"].max() < 1e-12
    del runs["g", "q"]
    with pytest.raises(ValueError, match="the combination g-q is missing"):
        pyrovae.main_effects(runs, ("guide", "objective"))
    with pytest.raises(ValueError, match="one level of each factor, guide, got"):
        pyrovae.main_effects(runs, ("guide",))


def test_the_error_over_folds_covers_means_of_correlated_folds():
    """Folds share an error, as fits to shared data do, of the correlation 1 / K that Nadeau and Bengio assume.

    The variance's estimate is then unbiased; 4,000 tables of 5 folds tell its mean to 1.2% (one sigma).
    """
    folds, tables = 5, 4000
    generator = torch.Generator().manual_seed(0)
    rho = 1 / folds
    common = torch.randn(tables, 1, generator=generator, dtype=torch.float64)
    own = torch.randn(tables, folds, generator=generator, dtype=torch.float64)
    means = rho**0.5 * common + (1 - rho) ** 0.5 * own
    estimates = torch.tensor([fold_error(row) ** 2 for row in means], dtype=torch.float64)
    true = rho + (1 - rho) / folds
    assert abs(float(estimates.mean()) / true - 1) < SIGMAS * float(estimates.std() / true) / tables**0.5


def test_folds_are_compared_on_what_no_fit_saw():
    x = bits(60)
    folds = Data(x).folds(3)
    fits = {}
    for name in ("a", "b"):
        pairs = [make_vae() for _ in folds]
        fits[name] = [
            pyrovae.fit(*pair, fold.train, epochs=1, compile=False, progress=False)
            for pair, fold in zip(pairs, folds, strict=True)
        ]
    tests = [fold.test for fold in folds]
    table = pyrovae.compare(fits, tests, num_particles=5, progress=False)
    assert table["folds"].tolist() == [3, 3]
    options = {"num_particles": 5, "progress": False}
    values = [
        pyrovae.evaluate(f.model, f.guide, part, **options).log_evidence
        for f, part in zip(fits["a"], tests, strict=True)
    ]
    assert table["log_evidence"]["a"] == pytest.approx(float(torch.cat(values).mean()))
    assert table["log_evidence_se"]["a"] == pytest.approx(fold_error(torch.stack([v.mean() for v in values]), 0.1))
    with pytest.raises(ValueError, match="one fit per fold: got 3 fits for 2 folds"):
        pyrovae.compare(fits, tests[:2], **options)
    with pytest.raises(ValueError, match="a cross-validation compares evidence alone"):
        pyrovae.compare(fits, tests, ask="latents", **options)


def test_unreliable_rows_are_marked_where_they_are_printed():
    runs = {"good": an_evaluation(noise(30)), "bad": an_evaluation(noise(30, seed=1), khat=0.9)}
    assert sorted(formatted(pyrovae.comparison(runs)).index) == ["bad (unreliable)", "good"]


# how fits ended


def a_history(bounds):
    return pd.DataFrame({"step": range(len(bounds)), "validation_bound": bounds})


EPOCHS = np.arange(80)


@pytest.mark.parametrize(
    ("bounds", "status"),
    [
        (-100 + 0.5 * EPOCHS + 0.1 * noise(80), "still improving"),
        (-100 - 60 * np.exp(-EPOCHS / 5) + 0.1 * noise(80), "converged"),
        (-100 + 0.1 * noise(80), "converged"),
        (-100 - 0.5 * EPOCHS, "falling"),
        (-100 - 60 * np.exp(-EPOCHS / 40), "still improving"),
        (np.full(80, -3.0), "converged"),
        (-10 + 2.0 * noise(80), "undecided"),
        (-35 + 5 * (1 - np.exp(-EPOCHS[:60] / 60)) ** 2 + 0.02 * np.cumsum(noise(60)), "still improving"),
        ([-100.0, -90.0, -80.0], "limit of steps"),
        ([], "limit of steps"),
    ],
)
def test_endings_by_the_validation_curve(bounds, status):
    found = ending(a_history(bounds), "finished")
    assert found.status == status
    assert str(found).startswith(status)


@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_flat_curves_are_seldom_said_to_rise(correlation):
    """Of 2,000 flat curves, 2.5% are to be said to rise, and somewhat more where the correlation is estimated.

    Up to 4% is allowed for, and beside that 4 standard errors of 0.44%: a failure probability below 4e-5.
    """
    rng, rises = np.random.default_rng(1), 0
    for _ in range(2000):
        steps, curve = rng.normal(size=80), np.zeros(80)
        for k in range(1, 80):
            curve[k] = correlation * curve[k - 1] + steps[k]
        rises += ending(a_history(curve - 100), "finished").status == "still improving"
    assert rises / 2000 < 0.04 + SIGMAS * (0.04 * 0.96 / 2000) ** 0.5


@pytest.mark.parametrize("stopped", ["patience", "diverged", "SIGTERM"])
def test_other_endings_are_what_stopped_the_fit(stopped):
    history = a_history(EPOCHS - 100.0)
    history["step"] = 10 * (history["step"] + 1) - 1
    assert str(ending(history, stopped)) == f"{stopped}, best after epoch 80"


def test_patience_that_ran_out_early_is_told():
    """With few rows an epoch is a step or two, and a bound that falls at first ends the fit before it rises."""
    said = str(ending(a_history([-3.0, -2.0, *(-2.5 * np.ones(20))]), "patience"))
    assert said.startswith("patience, best after epoch 2, which is step 2: so early a bound may fall before it rises")


def test_a_comparison_says_how_its_fits_ended():
    x = bits(40)
    fits = [
        pyrovae.fit(*make_vae(), x, epochs=epochs, validation_data=x, compile=False, progress=False)
        for epochs in (2, 20)
    ]
    assert fits[0].ending.status == "limit of steps"
    table = pyrovae.compare({"a": fits, "b": fits}, x, num_particles=3, progress=False)
    assert table["ended"]["a"] in (
        "limit of steps x 1, still improving x 1",
        "limit of steps x 1, converged x 1",
        "limit of steps x 1, undecided x 1",
    )


def test_a_warm_up_that_patience_cut_short_is_told():
    x = bits(40)
    objective = objectives.BetaELBO(kl_weight=objectives.linear(4000))
    with pytest.warns(UserWarning, match=r"kl_weight reaches 1 at step 4000, but the best validation bound was after"):
        fit = pyrovae.fit(
            *make_vae(), x, objective=objective, epochs=4500, patience=2, lr=0.05, validation_data=bits(9, seed=3),
            compile=False, progress=False,
        )  # fmt: skip
    assert fit.stopped == "patience"
    assert fit.history["kl_weight"].iloc[-1] < 1


@torch.random.fork_rng()
def gaussian_pair():
    model = models.VAE(prior=priors.StandardNormal(2), decoder=nn.MLP(2, 3), likelihood=likelihoods.Gaussian())
    return model, guides.MeanField(nn.MLP(3, 8), 2)


def test_fits_of_other_folds_are_refused():
    frame = pd.DataFrame(noise(60, 3), columns=["a", "b", "c"])
    folds = data.Table(frame).folds(3)
    fits = [
        pyrovae.fit(*gaussian_pair(), fold.train, steps=1, compile=False, progress=False)
        for fold in folds
    ]  # fmt: skip
    tests = [fold.test for fold in folds]
    assert "ended" in pyrovae.compare({"a": fits}, tests, num_particles=3, progress=False)
    with pytest.raises(ValueError, match="fit 0 of 'a' was not made on the training part of fold 0"):
        pyrovae.compare({"a": fits[::-1]}, tests, num_particles=3, progress=False)


def test_the_probability_of_being_worse_is_that_of_the_paired_difference():
    base, other = noise(400), noise(400, seed=1)
    runs = {"a": an_evaluation(base), "b": an_evaluation(base - 0.03 + 0.5 * other)}
    table = pyrovae.comparison(runs, reference="a")
    row = table.loc["b"]
    assert row["p_worse"] == pytest.approx(stats.norm.sf(row["difference"] / row["difference_se"]))
    assert row["diagnosis"] == ("" if abs(row["difference"]) * 400 >= 4 else "difference under 4 elpd")
    assert np.isnan(table.loc["a", "p_worse"])
    few = pyrovae.comparison({name: an_evaluation(e.log_evidence[:60]) for name, e in runs.items()})
    assert set(few["diagnosis"]) == {"", "few data"}
    close = pyrovae.comparison({"a": an_evaluation(base), "b": an_evaluation(base - 0.009)})
    assert close.loc["b", ["p_worse", "diagnosis"]].tolist() == [1.0, "difference under 4 elpd"]


def test_the_probability_of_being_worse_has_its_size():
    """Two strategies that are equal: it is below 0.05 in 5% of 1,000 data sets, within 4 standard deviations."""
    low = 0
    for seed in range(1000):
        difference = torch.from_numpy(np.diff(noise(2, 200, seed=seed), axis=0))
        low += _difference(False, difference, crossed_error(difference), np.inf)["p_worse"] < 0.05
    assert 0.022 < low / 1000 < 0.078


def test_stacking_weights_are_arvizs():
    base = noise(300)
    runs = {name: an_evaluation(base + 0.4 * noise(300, seed=k) - 0.05 * k) for k, name in enumerate("abc")}
    ours, theirs = pyrovae.comparison(runs), pyrovae.elpd_comparison(runs)
    assert ours["weight"].to_numpy() == pytest.approx(theirs["weight"].reindex(ours.index).to_numpy(), abs=2e-3)
    assert ours["weight"].sum() == pytest.approx(1)


def test_the_errors_of_stacking_weights_are_those_over_data_sets():
    """A mixture of 0.7 N(0, 1) and 0.3 N(3, 1): weights within 4 errors, and errors within a third of their truth."""
    weights, errors = [], []
    for seed in range(60):
        source = np.random.default_rng(seed)
        x = source.normal(size=500) + 3 * (source.random(500) < 0.3)
        logs = {name: torch.from_numpy(stats.norm.logpdf(x, loc))[None] for name, loc in (("a", 0), ("b", 3))}
        table = pyrovae.stacking(logs)
        weights.append(table.loc["a", "weight"])
        errors.append(table.loc["a", "weight_se"])
    sd = np.std(weights, ddof=1)
    assert abs(np.mean(weights) - 0.7) < SIGMAS * sd / 60**0.5
    assert 2 / 3 < np.mean(errors) / sd < 1.5
    assert pyrovae.stacking({"a": logs["a"]}).loc["a"].tolist() == [1, 0]


def test_bayes_factors_are_those_of_the_closed_form():
    """Linear-Gaussian models with other noise; within 4 Monte Carlo errors."""
    x = torch.randn(30, 3, generator=torch.Generator("cpu").manual_seed(0))
    found, truth = {}, {}
    for name, raw in (("a", 0.0), ("b", 0.7)):
        model = seeded(lambda: models.LinearGaussian(1, 3).requires_grad_(False))
        with torch.no_grad():
            model.raw_scale.fill_(raw)
        guide = Wide(model)
        found[name] = pyrovae.evaluate(model, guide, x, num_particles=300, progress=False, device="cpu")
        truth[name] = float(model.log_evidence(x).sum())
    table = pyrovae.bayes_factors(found, reference="a")
    row = table.loc["b"]
    assert row["mc_se"] > 0
    assert abs(row["log_bayes_factor"] - (truth["b"] - truth["a"])) < SIGMAS * row["mc_se"]
    assert row["evidence"] in {"very strong, against", "very strong, for"}
    assert table.loc["a", ["log_bayes_factor", "evidence"]].tolist() == [0, ""]
    with pytest.raises(ValueError, match="two or more models on the same data"):
        pyrovae.bayes_factors({"a": found["a"]})


class Wide(torch.nn.Module):
    """The exact posterior, 1.3 times as wide."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        with pyro.plate("data", len(x)):
            exact = self.model.posterior(x)
            pyro.sample("z", dist.Normal(exact.loc, 1.3 * exact.variance.sqrt()).to_event(1))


def test_criticism_is_asked_of_every_strategy(monkeypatch):
    from pyrovae.diagnostics.questions import prior_gain as question

    quick = functools.partial(pyrovae.prior_gain, steps=2, num_folds=2, num_particles=50)
    monkeypatch.setattr(question, "prior_gain", quick)
    x = bits(80, 12, seed=1).float()
    fits = {name: pyrovae.fit(*make_vae(), x, steps=5, seed=0, progress=False, device="cpu") for name in "ab"}
    ask = dict.fromkeys(["sensitivity", "prior_gain", "lc2st", "misspecification"], 60)
    table = pyrovae.compare(fits, x, num_particles=50, ask=ask, progress=False, device="cpu")
    columns = {"prior_conflict", "prior_turned", "prior_gain", "lc2st_rejected", "misspecification_pvalue"}
    assert columns <= set(table.columns)
    assert table[sorted(columns)].notna().all(axis=None)


def test_errors_of_stacking_weights_know_of_seeds():
    """Two strategies that are best in turn, by the seed: the error of a weight is about that of a coin's share."""
    base = noise(200)
    runs = {name: [an_evaluation(base + sign * s) for s in (1, -1)] for name, sign in (("a", 1.0), ("b", -1.0))}
    assert pyrovae.comparison(runs)["weight_se"].min() > 0.2
