"""Simulation-based calibration, coverage, symmetry, marginals: what is right passes, what is wrong is found."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import FAILURE_PROBABILITY, SIGMAS, seeded
from scipy import stats

import pyrovae
from pyrovae import data, guides, likelihoods, models, nn, plots, priors
from pyrovae.diagnostics.calibration.ranks import Ranks, _beyond, holm

X = torch.zeros(1, 5)
QUIET = {"progress": False}


def calibrated(found, level=0.01):
    """Whether nothing speaks against uniform ranks: fails for uniform ones with a probability of about ``level``."""
    table = found.table()
    even = table[["bias", "spread"]] - [0, 1]
    errors = table[["bias_se", "spread_se"]].to_numpy()
    return bool((table["adjusted"] > level).all() and (even.abs() < SIGMAS * errors).all().all())


class Off:
    """The exact posterior, its scale multiplied and its mean shifted."""

    def __init__(self, model, scale=1.0, shift=0.0):
        self.model, self.scale, self.shift = model, scale, shift

    def __call__(self, x):
        q = self.model.posterior(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(q.loc + self.shift, scale_tril=q.scale_tril * self.scale))


def prior_alone(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


@pytest.fixture(scope="module")
def oracle():
    return seeded(lambda: models.LinearGaussian(2, 5)).requires_grad_(False)


def test_the_exact_posterior_is_calibrated(oracle):
    found = pyrovae.sbc(oracle, guides.Exact(oracle), X, **QUIET)
    assert found.ranks.shape == (1000, 2)
    assert found.ranks.min() >= 0
    assert found.ranks.max() <= found.num_draws == 99
    assert (found.pvalue > 0.01).all()  # fails by chance with probability 0.02
    assert calibrated(found)
    assert not (found.table()["symmetry_adjusted"] < 0.001).any()
    assert (
        found.table().loc["log p(x, z)", "symmetry"] != found.table().loc["log p(x, z)", "symmetry"]
    )  # of latents alone
    for level, row in found.coverage().iterrows():
        error = math.sqrt(level * (1 - level) / 1000)
        for kind in ("density", "distance", "central"):
            assert abs(row[kind] - level) < SIGMAS * error


def test_a_scale_too_small_by_a_third_is_rejected(oracle):
    found = pyrovae.sbc(oracle, Off(oracle, scale=0.7), X, **QUIET)
    assert (found.pvalue < 0.001).all()
    assert (found.table().loc[["z[0]", "z[1]"], "spread"] > 1.2).all()
    covered = found.coverage()
    assert (covered[["density", "distance", "central"]].lt(covered["low"], axis=0)).all().all()  # they agree
    # by theory: the exact posterior's mass within 0.7 times its region of level c
    radius = stats.chi2.ppf(0.9, 2)
    expected = stats.chi2.cdf(radius * 0.7**2, 2)
    error = math.sqrt(expected * (1 - expected) / 1000)
    assert abs(covered.loc[0.9, "density"] - expected) < SIGMAS * error + 0.01  # 99 draws make the region


def test_a_guide_off_centre_is_not_symmetric(oracle):
    found = pyrovae.sbc(oracle, Off(oracle, shift=0.3), X, **QUIET).table()
    assert (found.loc[["z[0]", "z[1]"], "symmetry_adjusted"] < 0.001).all()
    assert (found.loc[["z[0]", "z[1]"], "bias"] < 0).all()  # the truth lies below the draws
    wide = pyrovae.sbc(oracle, Off(oracle, scale=1.6), X, **QUIET).table()
    assert (wide.loc[["z[0]", "z[1]"], "symmetry"] > FAILURE_PROBABILITY).all()  # too wide, but centred
    assert (wide.loc[["z[0]", "z[1]"], "spread"] < 0.9).all()


def test_what_ignores_the_data_is_found_by_quantities_that_do_not(oracle):
    found = pyrovae.sbc(oracle, prior_alone, X, **QUIET)
    assert (found.pvalue > FAILURE_PROBABILITY).all()  # the known blindness of ranks of latents
    assert found.joint.pvalue < 0.001
    assert found.distance.pvalue < 0.001


@pytest.mark.parametrize(("size", "num_draws"), [(20, 99), (200, 9), (1000, 99), (300, 1000)])
def test_pvalues_have_their_size(size, num_draws):
    """Of 3,000 sets of uniform ranks, which draws that are the posterior's make."""
    generator = torch.Generator().manual_seed(0)
    ranks = Ranks(
        torch.randint(num_draws + 1, (size, 3000), generator=generator), num_draws, tuple(map(str, range(3000)))
    )
    for level in (0.05, 0.2):
        error = SIGMAS * math.sqrt(level * (1 - level) / 3000)
        share = float((ranks.pvalue <= level).double().mean())
        assert level * 0.6 - error < share < level + error  # discrete, so that it may be somewhat smaller
    some = ranks.select(ranks.names[:500])
    assert (some.symmetry <= 0.05).double().mean() < 0.05 + SIGMAS * math.sqrt(0.05 * 0.95 / 500)


def test_pvalues_beyond_the_repeats_are_small_enough_for_many_quantities():
    ranks = Ranks(torch.zeros(1000, 3072, dtype=torch.long), 99, tuple(map(str, range(3072))))
    assert (ranks.table()["adjusted"] < 1e-6).all()


def test_sets_of_simulations_are_calibrated_however_few(oracle):
    """Twenty data at a time: mean ranks over 60 sets, of every quantity, at 4 standard errors."""
    sets = [
        pyrovae.sbc(oracle, guides.Exact(oracle), X, num_simulations=20, num_draws=9, seed=seed, **QUIET).everything
        for seed in range(60)
    ]
    means = torch.stack([one.pit.mean(0) for one in sets])
    assert ((means.mean(0) - 0.5).abs() < SIGMAS * means.std(0) / math.sqrt(60)).all()
    pvalues = torch.stack([one.pvalue for one in sets])
    assert ((pvalues <= 0.1).double().mean(0) < 0.1 + SIGMAS * math.sqrt(0.1 * 0.9 / 60)).all()


def test_bands_hold_the_whole_curve_as_often_as_they_say():
    generator = torch.Generator().manual_seed(0)
    ranks = Ranks(torch.randint(20, (300, 400), generator=generator), 19, tuple(map(str, range(400))))
    points, low, high = ranks.band(0.9)
    curves = ranks.ecdf()[1]
    inside = ((curves >= low) & (curves <= high)).all(1).sum()
    assert stats.binomtest(int(inside), 400, 0.9).pvalue > FAILURE_PROBABILITY
    outside = (ranks.pvalue <= 0.1).numpy()  # the band and the p-value are one test
    assert np.array_equal(outside, ~((curves >= low) & (curves <= high)).all(1))
    assert len(points) == 19


def test_the_walk_of_fair_coins_has_its_known_distribution():
    steps = torch.randint(2, (40_000, 11), generator=torch.Generator().manual_seed(0)) * 2 - 1
    reached = steps.cumsum(1).abs().max(1).values
    for most in (1, 3, 5, 8, 11):
        share = (reached >= most).double().mean()
        expected = _beyond(most, 11)
        assert abs(share - expected) < SIGMAS * math.sqrt(max(expected * (1 - expected), 1e-9) / 40_000) + 1e-12
    assert _beyond(0, 5) == 1
    assert _beyond(6, 5) == 0


def test_holm():
    assert holm(torch.tensor([0.01, 0.04, 0.03])).tolist() == pytest.approx([0.03, 0.06, 0.06])


def test_ties_of_a_discrete_latent_are_broken_evenly():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(z[:, None].expand(-1, 2), 1.0).to_event(1), obs=x)

    def guide(x):
        odds = math.log(0.3 / 0.7) + (x - 0.5).sum(1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=odds))

    found = pyrovae.sbc(model, guide, torch.zeros(1, 2), num_simulations=500, **QUIET)
    assert found.latents.names == ("z",)
    assert calibrated(found)
    wrong = pyrovae.sbc(model, lambda x: guide(x + 0.5), torch.zeros(1, 2), num_simulations=500, **QUIET)
    assert (wrong.table()["adjusted"] < 0.01).any()


@pytest.mark.parametrize("batch_size", [1, 32])
def test_ties_survive_the_rounding_of_batches(batch_size):
    """An exact posterior over four classes, whose densities a network computes."""
    network = seeded(lambda: nn.MLP(4, 30, hidden=(64, 64)))

    def densities(x):
        return dist.Normal(network(torch.eye(4))[:, None], 1.0).to_event(1).log_prob(x)  # [4, N], of equal classes

    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.OneHotCategorical(torch.ones(4) / 4))
            pyro.sample("x", dist.Normal(network(k), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.OneHotCategorical(logits=densities(x).T))

    options = {"num_simulations": 600, "num_draws": 39, "batch_size": batch_size, **QUIET}
    assert calibrated(pyrovae.sbc(model, guide, torch.zeros(1, 30), **options))


def test_quantities_of_ones_own(oracle):
    norm = {
        "norm": lambda latents, x: latents["z"].norm(dim=1),
        "shift": lambda latents, x: latents["z"][:, 0] - x[:, 0],
    }
    found = pyrovae.sbc(oracle, Off(oracle, scale=0.5), X, num_simulations=200, quantities=norm, **QUIET)
    assert found.quantities.names == ("norm", "shift")
    assert "norm" in found.table().index
    with pytest.raises(ValueError, match="must return one number per row"):
        pyrovae.sbc(oracle, guides.Exact(oracle), X, quantities={"all": lambda latents, x: latents["z"]}, **QUIET)
    with pytest.raises(ValueError, match="'log' is NaN"):
        pyrovae.sbc(oracle, guides.Exact(oracle), X, quantities={"log": lambda z, x: z["z"][:, 0].log()}, **QUIET)
    with pytest.raises(ValueError, match="cannot be called 'z"):
        pyrovae.sbc(oracle, guides.Exact(oracle), X, quantities={"z[0]": lambda latents, x: x[:, 0]}, **QUIET)


def test_guides_that_cannot_score_have_no_density_regions(oracle):
    planar = seeded(lambda: guides.Planar(nn.MLP(5, 8), 2))
    found = pyrovae.sbc(oracle, planar, X, num_simulations=50, num_draws=9, **QUIET)
    assert found.density is None
    assert found.coverage()["density"].isna().all()
    assert 0 <= found.summary()["coverage_90"] <= 1
    assert found.plot().axes[1].get_xlabel()


def test_several_latents_covariates_plates_and_missing_values():
    def model(x, c):
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Normal(c, 1.0))
            with pyro.plate("groups", 3, dim=-2):
                z = pyro.sample("z", dist.Normal(top, 1.0).expand([3, len(x)]))
            pyro.sample("x", likelihoods.Missing(likelihoods.Gaussian(fixed=1.0))(z.T), obs=x)

    def guide(x, c):  # the top given x, then each group's given both: as Gaussian conditioning has it
        seen = ~x.isnan()
        precision = 1 + seen.sum(1) / 2
        mean = (c + (x.nan_to_num() / 2 * seen).sum(1)) / precision
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Normal(mean, precision.rsqrt()))
            known = seen.T
            loc = torch.where(known, (top + x.T.nan_to_num()) / 2, top)
            with pyro.plate("groups", 3, dim=-2):
                pyro.sample("z", dist.Normal(loc, torch.where(known, 0.5**0.5, 1.0)))

    x = torch.zeros(4, 3)
    x[0, 1] = x[2, 0] = torch.nan
    template = data.Data(x, torch.arange(4.0), missing=True)
    found = pyrovae.sbc(model, guide, template, num_simulations=400, **QUIET)
    assert found.latents.names == ("top", "z[0]", "z[1]", "z[2]")
    assert calibrated(found)
    blind = pyrovae.sbc(model, lambda x, c: guide(torch.zeros_like(x), c), template, num_simulations=400, **QUIET)
    assert not calibrated(blind)  # takes what is missing for an observed 0


def test_an_answer_does_not_depend_on_the_batch(oracle):
    one, other = (
        pyrovae.sbc(oracle, guides.Exact(oracle), X, num_simulations=60, batch_size=size, **QUIET) for size in (7, 32)
    )
    assert torch.equal(one.everything.values, other.everything.values)


def test_a_learned_guide_and_its_figure():
    model = seeded(
        lambda: models.VAE(
            prior=priors.StandardNormal(12), decoder=nn.MLP(12, 6), likelihood=likelihoods.Gaussian(fixed=0.5)
        )
    )
    guide = seeded(lambda: guides.MeanField(nn.MLP(6, 16), 12))
    found = pyrovae.sbc(model, guide, torch.zeros(1, 6), num_simulations=100, **QUIET)
    figure = found.plot()
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    named = legend[1:-1]
    assert all(text.endswith("(outside)") for text in named)  # of more than ten, those that leave the band
    assert legend[-1] == f"{15 - len(named)} more"


def test_marginals_of_the_right_and_the_wrong_model(oracle):
    made = pyrovae.simulate(oracle, X, num_simulations=500, **QUIET)
    assert made.latents["z"].shape == (500, 2)
    right = pyrovae.pit(oracle, made.data, seed=1, **QUIET)
    assert right.names == tuple(f"x[{d}]" for d in range(5))
    assert calibrated(right)
    wider = data.Data(2 * made.data.tensors[0], feature_names=list("abcde"))
    wrong = pyrovae.pit(oracle, wider, seed=1, **QUIET)
    assert wrong.names == tuple("abcde")
    assert (wrong.table()["adjusted"] < 0.001).all()
    assert (wrong.table()["spread"] > 1).all()
    assert plots.ranks(wrong).axes[0].get_ylabel()


def test_marginals_leave_missing_values_out():
    model = models.VAE(
        prior=priors.StandardNormal(1),
        decoder=seeded(lambda: nn.MLP(1, 4)),
        likelihood=likelihoods.Missing(likelihoods.Gaussian(fixed=1.0)),
    )
    made = pyrovae.simulate(model, torch.zeros(1, 4), num_simulations=400, **QUIET)
    x = made.data.tensors[0].clone()
    x[::2, 0] = torch.nan
    found = pyrovae.pit(model, data.Data(x, missing=True), seed=1, **QUIET)
    assert calibrated(found)
    full = found.select(["x[1]", "x[2]", "x[3]"])
    assert calibrated(full)


def test_a_posterior_predictive_check_finds_what_the_model_cannot_make(oracle):
    x = seeded(lambda: oracle.evidence().sample((100,)))
    statistics = {"sd": lambda x: x.std(), "largest": lambda x: x.max()}
    right = pyrovae.posterior_predictive_check(oracle, guides.Exact(oracle), x, statistics, **QUIET)
    assert (right["pvalue"] > 0.02).all()  # they crowd around one half
    x[0] += 20.0
    x[1] -= 20.0
    wrong = pyrovae.posterior_predictive_check(oracle, guides.Exact(oracle), x, statistics, **QUIET)
    assert (wrong["pvalue"] < 0.02).any()
    with pytest.raises(ValueError, match="must be a dict of functions"):
        pyrovae.posterior_predictive_check(oracle, guides.Exact(oracle), x, torch.std, **QUIET)
    with pytest.raises(ValueError, match="'rows' must return one number of a set"):
        pyrovae.posterior_predictive_check(oracle, guides.Exact(oracle), x, {"rows": lambda x: x.sum(1)}, **QUIET)
    with pytest.raises(ValueError, match="not observed"):
        pyrovae.posterior_predictive_check(oracle, guides.Exact(oracle), x, statistics, site="y", **QUIET)


@pytest.mark.parametrize("bad", [{"num_simulations": 1}, {"num_draws": 1}, {"batch_size": 0}])
def test_bad_numbers(oracle, bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must be a whole number"):
        pyrovae.sbc(oracle, guides.Exact(oracle), X, **bad)


def test_grey_levels_tie_however_they_were_rounded():
    levels = torch.arange(256).repeat(2)[:, None]
    model = seeded(
        lambda: models.VAE(
            prior=priors.StandardNormal(1), decoder=nn.MLP(1, 2), likelihood=likelihoods.DiscretisedLogistic()
        )
    )
    one, other = (
        pyrovae.pit(model, x, num_draws=99, progress=False).values for x in (levels / 255, levels * (1 / 255))
    )
    assert bool((levels / 255 != levels * (1 / 255)).any())
    assert torch.equal(one, other)
