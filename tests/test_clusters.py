"""Clusters, neighbours and projections of codes, with the spread of each posterior."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import SIGMAS, seeded
from scipy import stats

import pyrovae
from pyrovae import guides, models, plots

QUIET = {"progress": False, "device": "cpu"}
SD = 0.8  # of the posterior below


def line():
    """One latent on the line that x shows with noise, exactly guided: z | x ~ N(x, SD) under a flat prior."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1000.0).to_event(1))
            pyro.sample("x", dist.Normal(z, SD).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, SD).to_event(1))

    return model, guide


def two_groups(middle=0.5):
    left, right = torch.linspace(-4.2, -3.8, 60), torch.linspace(3.8, 4.2, 60)
    return torch.cat([left, right, torch.tensor([middle])])[:, None]


def test_membership_is_the_posterior_probability_of_a_side():
    """The border of two equal groups is 0 with error sd / sqrt(120): P(right) = Phi(0.5 / sd); 1,000 draws."""
    result = pyrovae.cluster(*line(), two_groups(), 2, num_draws=1000, **QUIET)
    right = result.labels[70]
    border = SD / np.sqrt(120)
    truth = stats.norm.cdf(0.5 / np.hypot(SD, border))
    error = np.sqrt(truth * (1 - truth) / 1000)
    assert abs(result.probability[120, right] - truth) < SIGMAS * error
    assert (result.probability[:120].max(1) > 0.999).all()
    assert set(result.labels[:60]) == {1 - right}
    assert result.stability.min() > 0.9
    assert result.agreement([0] * 60 + [1] * 61)["ari"] > 0.95


@pytest.mark.parametrize(("method", "number"), [("kmeans", 2), ("mixture", 2), ("hdbscan", None)])
def test_every_method_finds_two_groups(method, number):
    x = torch.cat([two_groups()[:60] * 5, two_groups()[60:120] * 5])
    result = pyrovae.cluster(*line(), x, number, method=method, **QUIET)
    table, summary = result.table(), result.summary()
    assert len(np.unique(result.labels[result.labels >= 0])) == 2
    assert list(table.columns) == ["cluster", "probability", "next", "next_probability"]
    assert (table["next"] != table["cluster"]).all()
    assert result.sizes()["size"].sum() + summary["noise"] == 120
    assert "2 clusters of 120 observations" in str(result)
    assert (table["probability"] + table["next_probability"] <= 1 + 1e-12).all()


def test_clusters_that_the_posteriors_blur_dissolve():
    """All means on a line without gaps, and posteriors as wide as it: no cluster is found again."""
    result = pyrovae.cluster(*line(), torch.linspace(-1, 1, 80)[:, None], 8, **QUIET)
    assert result.stability.mean() < 0.3
    assert "DISSOLVE" in str(result)


def test_a_cluster_is_matched_whatever_its_number():
    """k-means numbers clusters at random; a stable partition has probabilities of 1 for all that."""
    x = torch.cat([torch.full((20, 1), 100.0 * k) for k in range(6)])
    result = pyrovae.cluster(*line(), x, 6, **QUIET)
    assert result.probability.max(1).min() == 1
    np.testing.assert_allclose(result.jaccard, 1)


def test_one_group_has_no_stability():
    one = pyrovae.cluster(*line(), two_groups(), 1, **QUIET)
    assert np.isnan(one.summary()["stability"])
    x = torch.arange(80.0)[:, None] ** 3
    noise = pyrovae.cluster(*line(), x, method="hdbscan", min_cluster_size=79, **QUIET)
    assert np.isnan(noise.summary()["stability"])
    assert noise.table()["cluster"].nunique() == 1


def test_survey_weights_and_posteriors_of_other_data_are_refused():
    x = two_groups()
    with pytest.raises(ValueError, match="carry survey weights"):
        pyrovae.cluster(*line(), pyrovae.data.Data(x, weights=torch.arange(121) + 1.0), 2, **QUIET)
    names = [f"a{k}" for k in range(121)]
    posterior = pyrovae.posterior(*line(), pyrovae.data.Data(x, row_names=names), num_draws=20, **QUIET)
    other = pyrovae.data.Data(x.flip(0), row_names=names[::-1])
    with pytest.raises(ValueError, match="posterior is of other observations than the data"):
        pyrovae.cluster(*line(), other, 2, posterior=posterior, num_draws=10, **QUIET)


def oracle():
    model = seeded(lambda: models.LinearGaussian(2, 5).double().requires_grad_(False))
    return model, guides.Exact(model)


def test_neighbours_are_by_the_expected_distance():
    """E|z - z'|^2 = |m - m'|^2 + 2 tr S: each of 4 distances within 4 errors; the nearest are those of the means."""
    model, guide = oracle()
    x = pyrovae.sample(model, 40, seed=1, **QUIET)["x"]
    posterior = model.posterior(x)
    trace = float(posterior.covariance_matrix.diagonal(dim1=-2, dim2=-1).sum(-1).flatten()[0])
    draws = 4000
    found = pyrovae.neighbours(model, guide, x, num=4, num_draws=draws, **QUIET)
    distances = (torch.cdist(posterior.loc, posterior.loc) ** 2 + 2 * trace).numpy()
    for name in (0, 17):
        mine = found.loc[name]
        assert name not in set(mine["neighbour"])
        for row in mine.itertuples():
            truth = distances[name, row.neighbour]
            error = np.sqrt((4 * trace**2 + 8 * trace * (truth - 2 * trace)) / draws)
            assert abs(row.distance**2 - truth) < SIGMAS * error + 1e-6
        others = np.delete(distances[name], name)
        assert mine["distance"].iloc[0] ** 2 < np.sort(others)[0] + 0.2
    assert bool(found["share"].between(0, 1).all())


def test_neighbours_of_new_data_may_be_the_same_data():
    model, guide = line()
    x = torch.arange(10.0)[:, None] * 50
    found = pyrovae.neighbours(model, guide, x, x[3:5] + 0.1, num=2, **QUIET)
    assert list(found["neighbour"].xs(1, level="rank")) == [3, 4]
    assert (found["share"].xs(1, level="rank") == 1).all()


def test_a_projection_holds_the_posterior_covariance():
    """With two latents the plane is a rotation: the mean trace and determinant are those of the posterior."""
    model, guide = oracle()
    x = pyrovae.sample(model, 200, seed=1, **QUIET)["x"]
    draws = 400
    result = pyrovae.project(model, guide, x, num_draws=draws, **QUIET)
    truth = model.posterior(x).covariance_matrix
    truth = truth.reshape(-1, 2, 2)[0].numpy()
    error = np.sqrt(2 * np.trace(truth @ truth) / (draws * len(x)))
    assert abs(np.trace(result.covariance.mean(0)) - np.trace(truth)) < SIGMAS * error
    table = result.table()
    np.testing.assert_allclose(table["x_sd"] ** 2, result.covariance[:, 0, 0])
    assert abs(result.explained.sum() - 1) < 1e-9
    assert np.all(np.abs(table["correlation"]) <= 1)


def cloud(count):
    return torch.randn(count, 5, generator=torch.Generator("cpu").manual_seed(0), dtype=torch.float64)


def test_tsne_places_draws_between_their_neighbours():
    x = torch.cat([two_groups()[:60] * 5, two_groups()[60:120] * 5])
    result = pyrovae.project(*(line()), torch.cat([x, x + 1]), num_draws=10, **QUIET)
    assert result.method == "pca"  # a single latent is a line
    model, guide = oracle()
    result = pyrovae.project(model, guide, cloud(60) * 3, method="tsne", num_draws=10, **QUIET)
    inside = result.draws[..., 0]
    assert inside.min() >= result.points[:, 0].min()
    assert inside.max() <= result.points[:, 0].max()


def test_umap_is_an_extra(monkeypatch):
    pytest.importorskip("umap")
    import sys

    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ImportError, match="umap-learn"):
        pyrovae.project(*line(), two_groups(), method="umap", **QUIET)


def test_draws_of_a_posterior_are_taken():
    """A guide that is twice too wide: draws that are weighted have the right spread."""
    model, _ = line()

    def wide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 2 * SD).to_event(1))

    x = two_groups()
    posterior = pyrovae.posterior(model, wide, x, num_draws=400, **QUIET)
    raw = pyrovae.project(model, wide, x, num_draws=400, **QUIET).table()["x_sd"].mean()
    trusted = pyrovae.project(model, wide, x, num_draws=400, posterior=posterior, **QUIET).table()["x_sd"].mean()
    assert abs(raw - 2 * SD) < 0.05
    assert abs(trusted - SD) < 0.05
    result = pyrovae.cluster(model, wide, x, 2, posterior=posterior, num_draws=50, **QUIET)
    assert len(result.stability) == 50
    with pytest.raises(ValueError, match="posterior is of 121 observations, but the data hold 120"):
        pyrovae.cluster(model, wide, x[:120], 2, posterior=posterior, **QUIET)


def collapsed():
    """Two latents, of which the second is the prior for all data."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), torch.tensor([1000.0, 1.0])).to_event(1))
            pyro.sample("x", dist.Normal(z[:, :1], SD).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            loc = torch.cat([x, torch.zeros_like(x)], 1)
            pyro.sample("z", dist.Normal(loc, torch.tensor([SD, 1.0])).to_event(1))

    return model, guide


def test_latents_that_hold_nothing_are_left_out():
    result = pyrovae.cluster(*collapsed(), two_groups(), 2, **QUIET)
    assert result.latents == ["z[0]"]
    with pytest.raises(ValueError, match="no latent holds anything of the data"):
        pyrovae.cluster(*line(), torch.zeros(50, 1), 2, **QUIET)


def test_bad_arguments_get_one_sentence():
    pair, x = line(), two_groups()
    for bad, sentence in (
        ({"method": "ward"}, "method must be one of kmeans, mixture, hdbscan"),
        ({"method": "hdbscan", "num_clusters": 3}, '"hdbscan" finds the number of clusters by itself'),
        ({"num_clusters": None}, "say how many clusters"),
        ({"num_clusters": 3, "min_cluster_size": 4}, 'min_cluster_size belongs to "hdbscan"'),
        ({"num_clusters": 500}, "121 observations cannot be in 500 clusters"),
        ({"num_clusters": 2, "site": "w"}, "site 'w' is not a latent"),
    ):
        with pytest.raises(ValueError, match=sentence):
            pyrovae.cluster(*pair, x, **{**bad, **QUIET})
    with pytest.raises(ValueError, match="10 observations do not have 10 neighbours each"):
        pyrovae.neighbours(*pair, x[:10], num=10, **QUIET)
    with pytest.raises(ValueError, match="at least 4 observations"):
        pyrovae.project(*pair, x[:3], **QUIET)


def discrete():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(3) / 3))
            pyro.sample("x", dist.Normal(z[:, None].float(), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(torch.ones(len(x), 3) / 3))

    return model, guide


def test_discrete_latents_have_no_distances():
    with pytest.raises(ValueError, match="latent site 'z' is discrete, so that its values have no distances"):
        pyrovae.cluster(*discrete(), torch.zeros(30, 1), 2, **QUIET)


def test_the_map_shows_every_class():
    projection = pyrovae.project(*oracle(), cloud(40), num_draws=20, **QUIET)
    classes = pd.Categorical.from_codes([0, 1, -1, 0] * 10, ["cats", "dogs"])
    figure = plots.latent_map(projection, classes)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["unknown", "cats", "dogs"]
    assert "first principal component (" in figure.axes[0].get_xlabel()
    assert len(plots.latent_map(projection, ellipses=7).axes[0].collections[0].get_offsets()) == 7
    with pytest.raises(ValueError, match=r"labels must be one per observation, \[40\], got 3"):
        plots.latent_map(projection, [0, 1, 2])
