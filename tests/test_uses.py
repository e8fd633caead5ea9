"""Draws, decoded latents, reconstructions, ways through the latents, imputations."""

import itertools
import math

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import SIGMAS, seeded

import pyrovae
from pyrovae import guides, likelihoods, models, nn, priors
from pyrovae.data import Data, Table
from pyrovae.likelihoods.missing import PartlyObserved
from pyrovae.programs.isolation import importing

QUIET = {"progress": False, "device": "cpu"}


def oracle(latent=2, features=5):
    def made():
        model = models.LinearGaussian(latent, features).double()
        with torch.no_grad():
            model.bias.normal_()
        return model.requires_grad_(False)

    model = seeded(made)
    return model, guides.Exact(model)


def test_draws_are_those_of_the_model():
    """Moments of 20,000 draws, within 4 errors each: 20 comparisons."""
    model, _ = oracle()
    drawn = pyrovae.sample(model, 20_000, seed=1, **QUIET)
    assert drawn["z"].shape == (20_000, 2)
    x, evidence = drawn["x"], model.evidence()
    error = (evidence.variance / 20_000).sqrt()
    assert bool(((x.mean(0) - evidence.mean).abs() < SIGMAS * error).all())
    covariance, found = evidence.covariance_matrix, torch.cov(x.T)
    spread = ((covariance**2 + covariance.diagonal()[:, None] * covariance.diagonal()) / 20_000).sqrt()
    assert bool(((found - covariance).abs() < SIGMAS * spread).all())
    assert torch.equal(x, pyrovae.sample(model, 20_000, seed=1, **QUIET)["x"])
    assert not torch.equal(x[:5000], x[5000:10_000])
    assert not torch.equal(x[:10], pyrovae.sample(model, 10, seed=2, **QUIET)["x"])


def conditional():
    def made():
        prior = priors.ConditionalNormal(nn.MLP(3, 2 * 2))
        return models.ConditionalVAE(prior=prior, decoder=nn.MLP(2 + 3, 4), likelihood=likelihoods.Gaussian())

    return seeded(made)


def test_covariates_are_given_for_each_draw_or_for_all():
    model = conditional()
    one = torch.tensor([[0.0, 1.0, 0.0]])
    for_all, each = (pyrovae.sample(model, 6, c, **QUIET)["x"] for c in (one, one.expand(6, 3)))
    assert torch.equal(for_all, each)
    with pytest.raises(ValueError, match=r"covariates must have 6 rows, or one for all, got \[2, 3\]"):
        pyrovae.sample(model, 6, torch.zeros(2, 3), **QUIET)
    with pytest.raises(ValueError, match="needs covariates"):
        pyrovae.sample(model, 6, **QUIET)


def test_a_model_that_computes_with_its_data_asks_for_them():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z + 0.1 * x[:, 0], 1.0), obs=x[:, 0])

    with pytest.raises(ValueError, match=r"computes with its data at site 'x'.*pyrovae.simulate"):
        pyrovae.sample(model, 3, **QUIET)


def test_decoded_latents_are_means():
    model, _ = oracle()
    z = torch.randn(7, 2, generator=torch.Generator().manual_seed(0)).double()
    means = pyrovae.decode(model, {"z": z}, **QUIET)["x"]
    torch.testing.assert_close(means, z @ model.weight.T + model.bias)
    draws = pyrovae.decode(model, {"z": torch.stack([z, 2 * z, 0 * z])}, **QUIET)["x"]
    assert draws.shape == (3, 7, 5)
    torch.testing.assert_close(draws[0], means)
    torch.testing.assert_close(draws[1] - draws[0], draws[0] - draws[2])
    torch.testing.assert_close(draws[2][0], model.evidence().mean)
    whole = pyrovae.decode(model, {"z": z}, torch.zeros(7, 5).double(), **QUIET)["x"]  # a whole batch
    torch.testing.assert_close(whole, means)
    for latents, words in (
        ({"w": z}, "site 'w' is no latent of the model: it has z"),
        ({"z": z[:, :1]}, r"latent 'z' must be \[N, 2\] or \[S, N, 2\], got \[7, 1\]"),
        ({}, "latents must be values by site"),
    ):
        with pytest.raises(ValueError, match=words):
            pyrovae.decode(model, latents, **QUIET)


def layered(x):
    with pyro.plate("data", len(x)):
        top = pyro.sample("top", dist.Normal(torch.zeros(len(x)).double(), 1.0))
        z = pyro.sample("z", dist.Normal(2 * top, 1.0))
        pyro.sample("x", dist.Normal(3 * z + 1, 0.5), obs=x)


def test_latents_that_are_not_given_are_averaged_over():
    """E[x | top] = 6 top + 1, from 2,000 draws with standard deviation 3."""
    means = pyrovae.decode(layered, {"top": torch.tensor([0.0, 1.0]).double()}, num_draws=2000, **QUIET)["x"]
    assert bool(((means - torch.tensor([1.0, 7.0])).abs() < SIGMAS * 3 / 2000**0.5).all())
    torch.testing.assert_close(
        pyrovae.decode(layered, {"z": torch.tensor([0.0, 1.0])}, **QUIET)["x"], torch.tensor([1.0, 4.0]).double()
    )


def plated(x):
    """Three latents in a plate left of an empty dimension, and x_k near 10^k z_k."""
    rows = pyro.plate("data", len(x), dim=-1)
    with rows, pyro.plate("part", 3, dim=-3):
        z = pyro.sample("z", dist.Normal(torch.zeros(3, 1, len(x)).double(), 1.0))
    with rows:
        scale = torch.tensor([1.0, 10.0, 100.0]).double()
        cells = dist.Normal(z[:, 0].T * scale, 0.01 * scale)
        pyro.sample("x", PartlyObserved(cells).to_event(1), obs=x)


def plated_guide(x):
    scale = torch.tensor([1.0, 10.0, 100.0]).double()
    seen = ~x.isnan()
    mean, sd = torch.where(seen, x / scale, 0.0), torch.where(seen, 0.01, 1.0).double()
    with pyro.plate("data", len(x), dim=-1), pyro.plate("part", 3, dim=-3):
        pyro.sample("z", dist.Normal(mean.T[:, None], sd.T[:, None]))


def test_plates_left_of_the_data_plate_keep_their_rows():
    x = torch.tensor([[1.0, 20.0, 300.0], [2.0, 10.0, 100.0]]).double()
    found = pyrovae.posterior(plated, plated_guide, x, num_draws=400, **QUIET)
    means = pyrovae.decode(plated, found.draws, **QUIET)["x"].mean(0)
    torch.testing.assert_close(means, x, rtol=0.01, atol=0.01)
    holed = x.clone()
    holed[1, 1] = torch.nan
    cells = pyrovae.impute(plated, plated_guide, holed, num_imputations=400, **QUIET).values[:, 1, 1]
    assert abs(float(cells.mean())) < SIGMAS * 10 / 400**0.5
    assert 8 < float(cells.std()) < 12


def test_means_of_inflated_counts_and_of_shared_latents():
    def made():
        likelihood = likelihoods.ZeroInflated(likelihoods.Poisson())
        decoder = nn.MLP(2, likelihood.features(3))
        return models.VAE(prior=priors.StandardNormal(2), decoder=decoder, likelihood=likelihood)

    model = seeded(made)
    z = torch.zeros(1, 2)
    fn = model.likelihood(model.decoder(z))
    torch.testing.assert_close(pyrovae.decode(model, {"z": z}, **QUIET)["x"], fn.mean.detach())
    shared = seeded(
        lambda: models.BayesianVAE(
            prior=priors.StandardNormal(2), decoder=nn.MLP(2, 3), likelihood=likelihoods.Gaussian(), num_data=9
        )
    )
    for call in (lambda: pyrovae.sample(shared, 3, **QUIET), lambda: pyrovae.decode(shared, {"z": z}, **QUIET)):
        with pytest.raises(ValueError, match=r"is shared by all data.*pyrovae.given"):
            call()


def summed(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        y = pyro.sample("y", dist.Bernoulli(torch.tensor(0.5)), infer={"enumerate": "parallel"})
        cells = dist.Normal((10 * y - 5 + 0.1 * z)[..., None].expand(*(10 * y - 5 + 0.1 * z).shape, 2), 0.5)
        pyro.sample("x", PartlyObserved(cells).to_event(1), obs=x)


def summed_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))


def test_latents_that_are_summed_out():
    x = torch.tensor([[5.0, 4.8], [-5.0, -5.1]])
    means = pyrovae.reconstruct(summed, summed_guide, x, num_draws=50, **QUIET)["x"]
    assert means.shape == (2, 2)
    torch.testing.assert_close(means, x.sign() * 5, atol=0.5, rtol=0)
    x[0, 1] = torch.nan
    with pytest.raises(ValueError, match="latent site 'y' is summed out, so that cells cannot be drawn given it"):
        pyrovae.impute(summed, summed_guide, x, **QUIET)


def test_reconstructions_are_posterior_predictive_means_and_draws():
    model, guide = oracle()
    x = (
        model.evidence().sample((6,))
        if False
        else torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).double()
    )
    exact = pyrovae.decode(model, {"z": pyrovae.codes(model, guide, x, num_draws=4000, **QUIET)}, **QUIET)["x"]
    means = pyrovae.reconstruct(model, guide, x, num_draws=4000, **QUIET)["x"]
    torch.testing.assert_close(means, exact, atol=1e-9, rtol=1e-6)
    draws = pyrovae.reconstruct(model, guide, x, num_draws=4000, draws=True, **QUIET)["x"]
    assert draws.shape == (4000, 6, 5)
    assert bool(((draws.mean(0) - means).abs() < SIGMAS * draws.std(0) / 4000**0.5).all())
    with pytest.raises(ValueError, match="the draws would take"):
        pyrovae.reconstruct(model, guide, x, draws=True, max_bytes=100, **QUIET)


def test_ways_between_two_data():
    model, guide = oracle()
    one, other = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0)).double()
    way = pyrovae.interpolate(model, guide, one, other, num=5, **QUIET)
    assert way["x"].shape == (5, 4, 5)
    torch.testing.assert_close(way["z"][2], (way["z"][0] + way["z"][4]) / 2)
    torch.testing.assert_close(way["x"][1] - way["x"][0], way["x"][4] - way["x"][3])
    circle = pyrovae.interpolate(model, guide, one, other, num=5, path="spherical", **QUIET)["z"]
    lengths = circle.norm(dim=-1)
    torch.testing.assert_close(lengths[2], (lengths[0] + lengths[4]) / 2)
    torch.testing.assert_close(circle[[0, 4]], way["z"][[0, 4]])
    with pytest.raises(ValueError, match="path must be one of straight, spherical, prior"):
        pyrovae.interpolate(model, guide, one, other, path="curved", **QUIET)
    with pytest.raises(ValueError, match=r"no space that it starts in.*path=\"straight\""):
        pyrovae.interpolate(model, guide, one, other, path="prior", **QUIET)
    with pytest.raises(ValueError, match="a way leads from each observation to another: got 4 and 3 data"):
        pyrovae.interpolate(model, guide, one, other[:3], **QUIET)


def log_normal(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.LogNormal(torch.zeros(len(x)).double(), 1.0))
        pyro.sample("x", dist.Normal(z, 0.1), obs=x)


def narrow(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.LogNormal(x.log(), torch.tensor(1e-6).double()))


def test_a_way_through_the_priors_own_space():
    one, other = torch.tensor([1.0, 2.0]).double(), torch.tensor([4.0, 8.0]).double()
    way = pyrovae.interpolate(log_normal, narrow, one, other, num=3, path="prior", **QUIET)["z"]
    torch.testing.assert_close(way[1], (one * other).sqrt(), rtol=1e-4, atol=1e-4)


def two_hills(x):
    """A mixture of two narrow Gaussians at -5 and 5 in the first coordinate, with a second one that follows."""
    with pyro.plate("data", len(x)):
        parts = dist.Normal(torch.tensor([[-5.0, 1.0], [5.0, -1.0]]).double(), 0.5).to_event(1)
        weights = dist.Categorical(torch.tensor([0.5, 0.5]).double())
        z = pyro.sample("z", dist.MixtureSameFamily(weights, parts))
        pyro.sample("x", dist.Normal(z, 1e-3).to_event(1), obs=x)


def at_x(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x, torch.tensor(1e-6).double()).to_event(1))


def test_a_way_through_a_mixture_stays_where_it_has_mass():
    """Between the hills, where the straight way passes through no mass, the way through normal scores jumps."""
    one, other = torch.tensor([[-5.0, 1.0]]).double(), torch.tensor([[5.0, -1.0]]).double()
    way = pyrovae.interpolate(two_hills, at_x, one, other, num=10, path="prior", **QUIET)["z"][:, 0]
    torch.testing.assert_close(way[[0, 9]], torch.cat([one, other]), atol=1e-4, rtol=0)
    assert bool((way[:, 0].abs() > 3).all())
    assert bool((way[1:, 0] > way[:-1, 0]).all())
    assert bool(((way[:, 1] - 1 * -way[:, 0].sign()).abs() < 1).all())  # the second coordinate follows the first
    straight = pyrovae.interpolate(two_hills, at_x, one, other, num=10, **QUIET)["z"][:, 0]
    assert bool((straight[:, 0].abs() < 1).any())


def test_traversals_move_one_latent():
    model, guide = oracle()
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).double()
    along = pyrovae.traverse(model, guide, x, 1, [-1.0, 0.0, 2.0], **QUIET)
    assert along["x"].shape == (3, 3, 5)
    assert bool((along["z"][..., 1] == torch.tensor([[-1.0], [0.0], [2.0]])).all())
    torch.testing.assert_close(along["z"][0, :, 0], along["z"][2, :, 0])
    for latent in (2, ("z", 5), "z", ("w", 0), True):
        with pytest.raises(ValueError, match="latent"):
            pyrovae.traverse(model, guide, x, latent, [0.0], **QUIET)


def test_an_attribute_is_a_difference_of_codes():
    model, guide = oracle()
    source = torch.Generator().manual_seed(0)
    z = torch.randn(400, 2, generator=source).double()
    labels = torch.arange(400) % 2
    z[:, 0] += 3 * labels
    x = pyrovae.decode(model, {"z": z}, **QUIET)["x"]
    found = pyrovae.attribute(model, guide, Data(x, labels=labels), **QUIET)
    direct = pyrovae.codes(model, guide, x, num_draws=100, **QUIET)
    difference = direct[labels == 1].mean(0) - direct[labels == 0].mean(0)
    np.testing.assert_allclose(found["estimate"], difference, atol=1e-5)
    assert found.index.tolist() == ["z[0]", "z[1]"]
    assert found.loc["z[0]", "estimate"] > 5 * found.loc["z[0]", "se"]
    with pytest.raises(ValueError, match="the data have no labels"):
        pyrovae.attribute(model, guide, x, **QUIET)


def test_covariates_are_exchanged():
    model = conditional()
    guide = seeded(lambda: guides.MeanField(nn.MLP(4 + 3, 8), 2))
    one, other = (
        (torch.randn(3, 4, generator=torch.Generator().manual_seed(k)), torch.eye(3).roll(k, 0)) for k in (0, 1)
    )
    mixed = pyrovae.exchange(model, guide, one, other, **QUIET)
    own = pyrovae.decode(model, {"z": mixed["z"]}, other[1], **QUIET)
    torch.testing.assert_close(mixed["x"], own["x"])
    with pytest.raises(ValueError, match="site 'w' is no latent"):
        pyrovae.exchange(model, guide, one, other, sites=["w"], **QUIET)


# imputation


def incomplete(rows, share=0.3, features=5, seed=0):
    """Data of a linear-Gaussian model with cells missing at random, and the exact distribution of these."""
    model, _ = oracle(features=features)
    source = torch.Generator().manual_seed(seed)
    chol = torch.linalg.cholesky(model.evidence().covariance_matrix)
    whole = model.evidence().mean + torch.randn(rows, features, generator=source).double() @ chol.T
    holes = torch.rand(rows, features, generator=source) < share
    holes[holes.all(1), 0] = False
    return model, whole, whole.masked_fill(holes, torch.nan), holes


class Filled(torch.nn.Module):
    """A linear-Gaussian model whose missing cells do not count, and its exact guide."""

    def __init__(self, oracle):
        super().__init__()
        self.loading, self.noise, self.centre = oracle.weight, oracle.scale**2, oracle.bias

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            base = dist.Normal(self.centre + z @ self.loading.T, self.noise.sqrt())
            pyro.sample("x", PartlyObserved(base).to_event(1), obs=x)

    def guide(self, x):
        seen = (~x.isnan()).double()
        precision = torch.eye(2).double() + torch.einsum("nd,dk,dl->nkl", seen / self.noise, self.loading, self.loading)
        scaled = torch.where(x.isnan(), 0.0, (x - self.centre) / self.noise) @ self.loading
        with pyro.plate("data", len(x)):
            mean = torch.linalg.solve(precision, scaled[..., None])[..., 0]
            pyro.sample("z", dist.MultivariateNormal(mean, precision_matrix=precision))


def test_imputations_are_draws_of_the_exact_conditional():
    """Mean, variance and coverage of cells against the Gaussian conditional: 4 errors of 600 cells' means."""
    model, whole, x, holes = incomplete(200)
    pair = Filled(model)
    found = pyrovae.impute(pair, pair.guide, x, num_imputations=200, **QUIET)
    assert len(found) == 200
    assert torch.equal(found.values[:, ~holes], whole[~holes].expand(200, -1))
    assert torch.equal(found.missing, holes)
    mean, covariance = model.evidence().mean, model.evidence().covariance_matrix
    scores, ratios = [], []
    for row in range(200):
        a, b = holes[row].nonzero().flatten(), (~holes[row]).nonzero().flatten()
        if not len(a):
            continue
        gain = covariance[a][:, b] @ torch.linalg.inv(covariance[b][:, b])
        exact = mean[a] + gain @ (whole[row, b] - mean[b])
        variance = (covariance[a][:, a] - gain @ covariance[b][:, a]).diagonal()
        draws = found.values[:, row, a]
        scores.append((draws.mean(0) - exact) / (variance / 200).sqrt())
        ratios.append(draws.var(0) / variance)
    scores, ratios = torch.cat(scores), torch.cat(ratios)
    assert abs(float(scores.mean())) < SIGMAS / len(scores) ** 0.5 * 1.5  # cells of a row are correlated
    assert 0.8 < float(scores.square().mean()) < 1.25
    assert abs(float(ratios.mean()) - 1) < SIGMAS * (2 / 200 / len(ratios)) ** 0.5 * 2
    low, high = found.interval(0.9)
    inside = ((whole >= low) & (whole <= high))[holes].double().mean()
    assert abs(float(inside) - 0.9) < SIGMAS * (0.9 * 0.1 / int(holes.sum())) ** 0.5 * 1.5


def test_intervals_hold_the_share_that_they_state():
    """90% intervals over 20,000 missing cells; 0.02 is more than 6 errors of cells that are correlated within a row."""
    model, whole, x, holes = incomplete(13_500)
    pair = Filled(model)
    found = pyrovae.impute(pair, pair.guide, x, num_imputations=19, **QUIET)
    low, high = found.interval(0.9)
    inside = ((whole >= low) & (whole <= high))[holes].double()
    print(f"{float(inside.mean()):.3f} of {len(inside)} cells are inside of their 90% intervals")
    assert len(inside) > 20_000
    assert 0.88 < float(inside.mean()) < 0.92


def test_rubins_rules():
    """Against the formulas by hand, and statsmodels' results as they are."""
    model, _, x, _ = incomplete(150)
    pair = Filled(model)
    found = pyrovae.impute(pair, pair.guide, x, num_imputations=8, **QUIET)
    pooled = found.pool(lambda one: (one[:, 0].mean(), one[:, 0].var() / len(one)))
    estimates = found.values[:, :, 0].mean(1)
    within, between = (found.values[:, :, 0].var(1) / 150).mean(), estimates.var()
    total = within + (1 + 1 / 8) * between
    assert pooled.loc[0, "estimate"] == pytest.approx(float(estimates.mean()))
    assert pooled.loc[0, "se"] == pytest.approx(float(total.sqrt()))
    assert pooled.loc[0, "df"] == pytest.approx(7 / float((1.125 * between / total) ** 2))
    with importing():
        import statsmodels.api as sm

    fitted = found.pool(lambda one: sm.OLS(one[:, 0].numpy(), sm.add_constant(one[:, 1:].numpy())).fit())
    assert fitted.shape == (5, 6)
    assert bool((fitted["df"] < 145).all())
    assert bool((fitted["low"] < fitted["estimate"]).all())
    turns = itertools.cycle([["a", "b"], ["b", "a"]])  # in another order for every copy

    def by_name(one):
        order = next(turns)
        return pd.Series({"a": 1.0, "b": 100.0})[order], pd.Series({"a": 0.1, "b": 0.2})[order]

    assert found.pool(by_name)["estimate"].to_dict() == {"a": 1.0, "b": 100.0}
    with pytest.raises(ValueError, match="level must be"):
        found.pool(by_name, 95)
    with pytest.raises(ValueError, match="at least 2 imputations"):
        pyrovae.impute(pair, pair.guide, x, num_imputations=1, **QUIET).pool(by_name)
    with pytest.raises(
        ValueError, match=r"must return \(estimate, variance\), or a fitted model of statsmodels, got float"
    ):
        found.pool(lambda one: float(one.mean()))


def test_intervals_need_enough_imputations():
    model, _, x, _ = incomplete(20)
    pair = Filled(model)
    found = pyrovae.impute(pair, pair.guide, x, num_imputations=10, **QUIET)
    with pytest.raises(ValueError, match=r"an interval of 0\.9 takes at least 19 imputations, got 10"):
        found.interval(0.9)
    assert "10 imputations of" in str(found)
    with pytest.raises(ValueError, match="there is nothing to impute: no cell is missing"):
        pyrovae.impute(pair, pair.guide, torch.nan_to_num(x), **QUIET)


def mixed_table(rows=120):
    source = np.random.default_rng(0)
    factor = source.normal(size=rows)
    frame = pd.DataFrame(
        {
            "height": 170 + 8 * factor + source.normal(size=rows), "visits": source.poisson(np.exp(0.3 * factor)),
            "city": source.choice(["Lima", "Oslo", "Delhi"], rows), "grade": source.integers(1, 5, rows),
        },
        index=[f"p{k}" for k in range(rows)],
    )  # fmt: skip
    return frame.mask(source.random(frame.shape) < 0.1)


@torch.random.fork_rng()
@pytest.mark.filterwarnings("ignore:posterior of")
def test_tables_come_back_as_tables():
    torch.manual_seed(0)
    frame = mixed_table()
    table = Table(frame, types={"visits": "count"})
    likelihood = table.likelihood()
    model = models.VAE(
        prior=priors.StandardNormal(2), decoder=nn.MLP(2, likelihood.features(table.shape)), likelihood=likelihood
    )
    guide = guides.MeanField(nn.Table(lambda width: nn.MLP(width, 16), table.inputs), 2)
    fit = pyrovae.fit(model, guide, table, epochs=3, compile=False, **QUIET)
    drawn = pyrovae.sample(fit.model, 9, **QUIET).to_frame()
    assert drawn.columns.tolist() == frame.columns.tolist()
    assert set(drawn["city"]) <= {"Lima", "Oslo", "Delhi"}
    assert 100 < drawn["height"].mean() < 240
    again = pyrovae.reconstruct(fit.model, fit.guide, frame, num_draws=10, **QUIET).to_frame()
    assert again.index.tolist() == frame.index.tolist()
    assert not again["city"].isna().any()
    several = pyrovae.reconstruct(fit.model, fit.guide, frame, num_draws=3, draws=True, **QUIET).to_frame()
    assert several.shape == (3 * 120, 4)
    found = pyrovae.impute(fit.model, fit.guide, frame, num_imputations=4, **QUIET)
    assert len(found.tables) == 4
    for one in found.tables:
        assert not one.isna().any().any()
        seen = frame.notna()
        pd.testing.assert_frame_equal(one.where(seen), frame.where(seen), check_dtype=False)
    assert one.index.tolist() == frame.index.tolist()
    with pytest.raises(ValueError, match="was not fitted to a table"):
        pyrovae.sample(oracle()[0], 3, **QUIET).to_frame()


def fitted_by_likelihood(x, features=5, latent=2):
    """A linear-Gaussian model at the maximum of the observed cells' likelihood, which is a Gaussian's."""
    model = seeded(lambda: models.LinearGaussian(latent, features, isotropic=False).double())
    seen = ~x.isnan()
    zeros = torch.where(seen, x, 0.0)
    both = seen[:, :, None] & seen[:, None, :]

    def loss():
        optimizer.zero_grad()
        evidence = model.evidence()
        covariance = torch.where(both, evidence.covariance_matrix, torch.diag_embed((~seen).double()))
        centred = torch.where(seen, zeros - model.bias, 0.0)
        density = dist.MultivariateNormal(torch.zeros(features).double(), covariance).log_prob(centred)
        value = -density.sum()
        value.backward()
        return value

    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, line_search_fn="strong_wolfe")
    optimizer.step(loss)
    return model.requires_grad_(False)


# cells that are not missing at random


def self_masking(columns=2, slope=-2.0):
    def made():
        decoder = torch.nn.Linear(1, columns)
        model = models.MissingNotAtRandom(
            prior=priors.StandardNormal(1), decoder=decoder, likelihood=likelihoods.Gaussian(num_scales=columns),
            missingness=models.SelfMasking(columns),
        )  # fmt: skip
        with torch.no_grad():
            model.missingness.slope.fill_(slope)
            model.missingness.intercept.fill_(0.5)
        guide = guides.FullRank(nn.Observed(nn.MLP(2 * columns, 16)), 1)
        return model.double(), guides.WithMissing(guide, model).double()

    return seeded(made)


def test_the_evidence_of_self_masked_data_is_that_of_quadrature():
    model, guide = self_masking()
    x = torch.tensor([[0.5, float("nan")], [float("nan"), -1.0], [0.3, 0.2]]).double()
    found = pyrovae.evaluate(model, guide, Data(x, missing=True), num_particles=20_000, seed=1, **QUIET)
    z = torch.linspace(-7, 7, 801).double()
    cells = torch.linspace(-12, 12, 1201).double()
    mean, scale = model.decoder(z[:, None]).detach(), model.likelihood.scale.detach()
    exact = []
    for row in x:
        log = dist.Normal(0.0, 1.0).log_prob(z)
        for d in range(2):
            if row[d].isnan():
                inside = dist.Normal(mean[:, d, None], scale[d]).log_prob(cells)
                unseen = -torch.nn.functional.softplus(
                    model.missingness.intercept[d] + model.missingness.slope[d] * cells
                )
                log = log + (inside + unseen).logsumexp(1) + math.log(24 / 1200)
            else:
                log = log + dist.Normal(mean[:, d], scale[d]).log_prob(row[d])
                logit = model.missingness.intercept[d] + model.missingness.slope[d] * row[d]
                log = log + torch.nn.functional.logsigmoid(logit)
        exact.append(log.logsumexp(0) + math.log(14 / 800))
    assert bool(found.reliable.all())
    error = (found.log_evidence - torch.stack(exact)).abs()
    assert bool((error < SIGMAS * found.log_evidence_se + 1e-3).all())


@torch.random.fork_rng()
@pytest.mark.filterwarnings("ignore:posterior of")
def test_the_bias_of_self_masking_falls_by_more_than_half():
    """Large values of the first column hide themselves: its mean over completed data, at random and not at random."""
    source = torch.Generator().manual_seed(0)
    factor = torch.randn(1500, 1, generator=source)
    whole = factor @ torch.tensor([[1.0, 1.0, -1.0]]) + 0.5 * torch.randn(1500, 3, generator=source)
    x = whole.clone()
    x[torch.rand(1500, generator=source) < torch.sigmoid(3 * whole[:, 0]), 0] = torch.nan
    biases = {}
    for name in ("at random", "not at random"):
        torch.manual_seed(0)
        decoder, likelihood = torch.nn.Linear(1, 3), likelihoods.Gaussian(num_scales=3)
        encoder = guides.MeanField(nn.Observed(nn.MLP(6, 16)), 1)
        if name == "at random":
            prior = priors.StandardNormal(1)
            model = models.VAE(prior=prior, decoder=decoder, likelihood=likelihoods.Missing(likelihood))
            guide = encoder
        else:
            model = models.MissingNotAtRandom(
                prior=priors.StandardNormal(1),
                decoder=decoder,
                likelihood=likelihood,
                missingness=models.SelfMasking(3),
            )
            guide = guides.WithMissing(encoder, model)
        objective = pyrovae.objectives.IWAE(num_particles=10)
        options = {"objective": objective, "epochs": 60, "lr": 0.01, "compile": False, **QUIET}
        fit = pyrovae.fit(model, guide, Data(x, missing=True), **options)
        found = pyrovae.impute(fit.model, fit.guide, x, num_imputations=5, **QUIET)
        assert torch.equal(found.values[:, ~x.isnan()], x[~x.isnan()].expand(5, -1))
        biases[name] = float(found.values[:, :, 0].mean() - whole[:, 0].mean())
    print(biases)  # docs/uses.md
    assert abs(biases["not at random"]) < 0.5 * abs(biases["at random"]), biases


@pytest.mark.slow
def test_pooled_coefficients_cover_their_truth():
    """300 repeats of 200 rows, ten models fitted to bootstrap samples of each: a standard error of 1.3%."""
    with importing():
        import statsmodels.api as sm

    model, *_ = incomplete(2)
    covariance = model.evidence().covariance_matrix
    truth = float(torch.linalg.solve(covariance[1:, 1:], covariance[1:, 0])[0])
    inside, estimates, errors = 0, [], []
    for seed in range(300):
        _, _, x, _ = incomplete(200, seed=seed)
        parts = []
        for k in range(10):
            rows = torch.randint(200, (200,), generator=torch.Generator().manual_seed(1000 * seed + k))
            pair = Filled(fitted_by_likelihood(x[rows]))
            parts.append(pyrovae.impute(pair, pair.guide, x, num_imputations=2, seed=k, **QUIET))
        found = pyrovae.Imputations.joined(parts)
        pooled = found.pool(lambda one: sm.OLS(one[:, 0].numpy(), sm.add_constant(one[:, 1:].numpy())).fit()).iloc[1]
        inside += pooled["low"] <= truth <= pooled["high"]
        estimates.append(pooled["estimate"])
        errors.append(pooled["se"])
    print(f"coverage {inside / 300:.3f}, sd {np.std(estimates):.4f}, mean se {np.mean(errors):.4f}")
    assert abs(inside / 300 - 0.95) < SIGMAS * math.sqrt(0.95 * 0.05 / 300)
