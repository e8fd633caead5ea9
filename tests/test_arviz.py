import warnings

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from conftest import SIGMAS, bits, make_oracle, make_vae, seeded

from pyrovae import (
    compare,
    comparison,
    elpd,
    elpd_comparison,
    evaluate,
    globals_to_arviz,
    guides,
    hmc,
    nn,
    ranks_to_arviz,
    sbc,
    to_arviz,
)
from pyrovae.arviz.labels import ARVIZ_1
from pyrovae.arviz.netcdf import netcdf
from pyrovae.data import Data
from pyrovae.programs.isolation import importing

GROUPS = {
    "posterior", "posterior_predictive", "prior", "prior_predictive", "marginal_log_likelihood", "observed_data",
    "sample_stats",
}  # fmt: skip


def quietly(model, guide, data, **options):
    return to_arviz(model, guide, data, **{"num_draws": 70, "num_particles": 200, "progress": False, **options})


def group_names(inference):
    return {name.strip("/") for name in inference.groups} - {""} if ARVIZ_1 else set(inference.groups())


def test_groups_dims_and_coords():
    model, guide = make_vae()
    data = Data(bits(9), feature_names=[f"pixel {i}" for i in range(12)])
    inference = quietly(model, guide, data)
    assert isinstance(inference, xr.DataTree if ARVIZ_1 else az.InferenceData)
    assert group_names(inference) == GROUPS
    assert inference.posterior["z"].dims == ("chain", "draw", "datum", "z_dim")
    assert inference.posterior["z"].shape == (1, 70, 9, 3)
    assert inference.prior["z"].shape == (1, 70, 9, 3)
    for group in ("posterior_predictive", "prior_predictive"):
        assert inference[group]["x"].dims == ("chain", "draw", "datum", "x_dim")
        assert set(np.unique(inference[group]["x"])) == {0.0, 1.0}
    assert list(inference.observed_data["x"].coords["x_dim"].to_numpy()) == data.feature_names
    np.testing.assert_array_equal(inference.observed_data["x"], bits(9))
    assert inference.marginal_log_likelihood["x"].dims == ("datum",)
    stats = inference.sample_stats
    assert stats["log_weight"].dims == ("chain", "draw", "datum")
    for name in ("khat", "ess", "elbo", "log_evidence", "log_evidence_se"):
        assert stats[name].dims == ("datum",)
    result = evaluate(model, guide, data, num_particles=200, progress=False)
    np.testing.assert_allclose(inference.marginal_log_likelihood["x"], result.log_evidence)
    np.testing.assert_allclose(stats["khat"], result.khat)


def test_draws_follow_their_distributions():
    model, x = make_oracle(2, 4, 3)
    inference = quietly(model, guides.Exact(model), x, num_draws=4000)
    with torch.no_grad():
        posterior, evidence = model.posterior(x), model.evidence()
    count = 4000**0.5
    z = inference.posterior["z"][0].to_numpy()
    # 6 + 6 + 12 comparisons at SIGMAS + 1 = 5 standard errors: below 2e-5 together
    assert np.abs((z.mean(0) - posterior.loc.numpy()) / posterior.stddev.numpy() * count).max() < SIGMAS + 1
    prior = inference.prior["z"][0].to_numpy()
    assert np.abs(prior.mean(0) * count).max() < SIGMAS + 1
    replicated = inference.prior_predictive["x"][0].to_numpy()
    deviation = evidence.covariance_matrix.diagonal().sqrt().numpy()
    assert np.abs((replicated.mean(0) - model.bias.detach().numpy()) / deviation * count).max() < SIGMAS + 1
    # x_new given x has covariance W V W' + diag(s^2)
    spread = (model.weight @ posterior.covariance_matrix[0] @ model.weight.T).diagonal() + model.scale**2
    drawn = inference.posterior_predictive["x"][0].to_numpy().var(0)
    np.testing.assert_allclose(drawn, np.broadcast_to(spread.detach().numpy(), drawn.shape), rtol=5 * (2 / 4000) ** 0.5)
    weights = inference.sample_stats["log_weight"][0].to_numpy()
    np.testing.assert_allclose(weights, np.broadcast_to(model.log_evidence(x).detach(), weights.shape), atol=1e-9)


def test_the_draws_do_not_depend_on_the_batch_size():
    model, guide = make_vae()
    one, other = (quietly(model, guide, bits(9), batch_size=size) for size in (2, 9))
    for group in GROUPS - {"sample_stats", "marginal_log_likelihood"}:
        for name in one[group].data_vars:
            np.testing.assert_allclose(one[group][name], other[group][name], atol=1e-5)
    np.testing.assert_allclose(one.sample_stats["log_weight"], other.sample_stats["log_weight"], atol=1e-4)


def test_netcdf_round_trip(tmp_path):
    model, guide = make_vae()
    inference = quietly(model, guide, bits(5))
    with warnings.catch_warnings():  # xarray imports its backends when it writes, and they add filters
        inference.to_netcdf(str(tmp_path / "fit.nc"))
        again = az.from_netcdf(str(tmp_path / "fit.nc"))
    assert group_names(again) == GROUPS
    for group in GROUPS:
        assert set(again[group].data_vars) == set(inference[group].data_vars)
        for name in again[group].data_vars:
            np.testing.assert_array_equal(again[group][name], inference[group][name])
            assert again[group][name].dims == inference[group][name].dims


def test_several_sites_and_nested_plates():
    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            with pyro.plate("raters", 3, dim=-2):
                w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("y", dist.Normal(z + w.sum(-1), 1.0), obs=y.T)
            pyro.deterministic("twice", 2 * z)

    def guide(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))
            with pyro.plate("raters", 3, dim=-2):
                pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    generator = torch.Generator().manual_seed(0)
    data = torch.randn(6, generator=generator), torch.randn(6, 3, generator=generator)
    inference = quietly(model, guide, data)
    assert inference.posterior["w"].dims == ("chain", "draw", "datum", "raters", "w_dim")
    assert inference.posterior_predictive["y"].dims == ("chain", "draw", "datum", "raters")
    np.testing.assert_array_equal(inference.observed_data["y"], data[1])
    assert list(inference.marginal_log_likelihood.data_vars) == ["data"]
    given = quietly(model, guide, data, groups=("posterior", "log_likelihood"), corrected=True)
    z, w = (given.posterior[name][0].to_numpy() for name in ("z", "w"))
    normal = dist.Normal(0.0, 1.0)
    expected = normal.log_prob(data[0] - torch.from_numpy(z))
    np.testing.assert_allclose(given.log_likelihood["x"][0], expected, atol=1e-5)
    means = torch.from_numpy(z[..., None] + w.sum(-1))  # draws, data, raters
    np.testing.assert_allclose(given.log_likelihood["y"][0], normal.log_prob(data[1] - means).sum(-1), atol=1e-4)
    assert given.log_likelihood["y"].dims == ("chain", "draw", "datum")


def test_only_the_groups_that_were_asked_for_and_no_more_memory_than_allowed():
    model, guide = make_vae()
    inference = quietly(model, guide, bits(5), groups=("posterior",))
    assert group_names(inference) == {"posterior", "marginal_log_likelihood", "observed_data", "sample_stats"}
    with pytest.raises(ValueError, match=r"would take .* GiB, more than max_bytes=0.0 GiB: pass fewer data"):
        quietly(model, guide, bits(5), max_bytes=1000)
    # of every draw 3 latents twice, 12 bits twice, a log weight, 4 bytes each; of every observation 12 bits
    exactly = 5 * 4 * (70 * (2 * 3 + 2 * 12 + 1) + 12)
    quietly(model, guide, bits(5), max_bytes=exactly)
    with pytest.raises(ValueError, match="would take"):
        quietly(model, guide, bits(5), max_bytes=exactly - 1)
    with pytest.raises(ValueError, match=r"groups must be among posterior, .* got warmup"):
        quietly(model, guide, bits(5), groups=("warmup",))
    with pytest.raises(ValueError, match="num_draws must be a whole number of at least 1, got 0"):
        quietly(model, guide, bits(5), num_draws=0)


def test_sizes_are_looked_at_before_any_work():
    model, guide = make_vae()
    rows = []

    def watched(x):
        rows.append(len(x))
        return model(x)

    for call in (lambda: quietly(watched, guide, bits(40), num_particles=50, max_bytes=10),
                 lambda: hmc(watched, guide, bits(40), max_bytes=10, progress=False)):  # fmt: skip
        rows.clear()
        with pytest.raises(ValueError, match="more than max_bytes"):
            call()
        assert max(rows) <= 32 * 2  # what reading the pair takes: a batch, doubled at most


def named(site="z", observed="x", plate=None):
    """A pair whose site or plate is called so."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample(site, dist.Normal(torch.zeros(2), 1.0).to_event(1))
            if plate is None:
                return pyro.sample(observed, dist.Normal(z, 1.0).to_event(1), obs=x)
            with pyro.plate(plate, 2, dim=-2):
                return pyro.sample(observed, dist.Normal(z.T, 1.0), obs=x.T)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample(site, dist.Normal(x / 2, 0.7).to_event(1))

    return model, guide, torch.zeros(6, 2)


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ({"site": "draw"}, "site 'draw' has the name of a dimension"),
        ({"site": "chain"}, "site 'chain' has"),
        ({"site": "datum"}, "site 'datum' has"),
        ({"observed": "datum"}, "site 'datum' has"),
        ({"observed": "z_dim"}, "site 'z_dim' has"),
        ({"plate": "draw"}, "plate 'draw' has"),
        ({"plate": "z_dim"}, "plate 'z_dim' has"),
    ],
)
def test_names_of_dimensions_are_refused_by_name(names, sentence):
    model, guide, x = named(**names)
    with pytest.raises(ValueError, match=sentence):
        quietly(model, guide, x)
    if "plate" not in names or names["plate"] != "z_dim":
        ranked = sbc(model, guide, x, num_simulations=5, num_draws=9, progress=False) if "site" in names else None
        if ranked is not None:
            with pytest.raises(ValueError, match=sentence):
                ranks_to_arviz(ranked.latents)
    if "plate" in names:
        return
    with pytest.raises(ValueError, match=sentence):
        hmc(model, guide, x, num_chains=1, num_warmup=20, num_draws=8, progress=False)


def test_names_of_global_latents_are_refused_by_name():
    def model(x):
        w = pyro.sample("draw", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 30, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + w, 1.0).to_event(1), obs=x)

    local = seeded(lambda: guides.MeanField(nn.MLP(2, 8), 2))
    guide = guides.WithGlobals(local, [("draw", (), "real")], num_data=30)
    with pytest.raises(ValueError, match="site 'draw' has the name of a dimension"):
        globals_to_arviz(model, guide, torch.zeros(30, 2), num_draws=2, num_particles=2, progress=False)


@pytest.mark.filterwarnings("ignore")  # arviz and pandas warn of their own futures
def test_leave_one_out_is_not_offered_what_would_mislead_it():
    """A fit that is right: no group that az.loo takes; ``elpd`` has every k-hat at its best."""
    model, x = make_oracle(2, 5, 30)
    inference = quietly(model, guides.Exact(model), x)
    with pytest.raises((TypeError, KeyError, ValueError, AttributeError)):
        az.loo(inference)
    assert bool((elpd(evaluate(model, guides.Exact(model), x, num_particles=50, progress=False)).pareto_k < 0.5).all())
    conditional = quietly(model, guides.Exact(model), x, groups=("posterior", "log_likelihood"))
    z = torch.from_numpy(conditional.posterior["z"][0].to_numpy())
    with torch.no_grad():
        expected = dist.Normal(z @ model.weight.T + model.bias, model.scale).to_event(1).log_prob(x)
    np.testing.assert_allclose(conditional.log_likelihood["x"][0], expected)
    az.loo(conditional)


@pytest.mark.filterwarnings("ignore")  # arviz and pandas warn of their own futures
def test_arvizs_comparison_agrees_with_ours():
    model, x = make_oracle(2, 5, 200)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        other, _ = make_oracle(2, 5, 1, seed=9)
        pairs = {"right": (model, guides.Exact(model)), "wrong": (other, guides.Exact(other))}
    evaluations = {n: evaluate(*p, x, num_particles=50, progress=False) for n, p in pairs.items()}
    ours = comparison(evaluations)
    options = {"round_to": "none"} if ARVIZ_1 else {}
    theirs = az.compare({name: elpd(e) for name, e in evaluations.items()}, **options)
    assert list(theirs.index) == list(ours.index)
    size = len(x)
    column = "elpd" if ARVIZ_1 else "elpd_loo"
    np.testing.assert_allclose(theirs[column] / size, ours["log_evidence"])
    np.testing.assert_allclose(abs(theirs["elpd_diff"]) / size, abs(ours["difference"]), atol=1e-12)
    np.testing.assert_allclose(theirs["dse"] / size, ours["difference_se"] * (1 - 1 / size) ** 0.5)
    table = compare(pairs, x, num_particles=50, progress=False)
    np.testing.assert_allclose(table["log_evidence"], ours["log_evidence"])


@pytest.mark.filterwarnings("ignore")
def test_elpd_reads_as_arvizs_own():
    model, x = make_oracle(2, 5, 20)
    with torch.random.fork_rng():
        guide = guides.MeanField(nn.MLP(5, 8), 2).double()
    result = elpd(evaluate(model, guide, x, num_particles=100, progress=False))
    assert "elpd_loo" in str(result)
    assert result["n_data_points"] == 20
    assert result["good_k"] == 0.5  # of 100 particles


@pytest.mark.filterwarnings("ignore")
def test_arvizs_comparison_from_evaluations():
    model, x = make_oracle(2, 5, 60)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        other, _ = make_oracle(2, 5, 1, seed=9)
    pairs = {"wrong": (other, guides.Exact(other)), "right": (model, guides.Exact(model))}
    evaluations = {n: evaluate(*p, x, num_particles=20, progress=False) for n, p in pairs.items()}
    table = elpd_comparison(evaluations)
    assert list(table.index) == ["right", "wrong"]
    np.testing.assert_allclose(table["weight"].sum(), 1, atol=1e-6)
    assert table.loc["right", "weight"] > 0.9


@pytest.mark.filterwarnings("ignore")
def test_ranks_are_what_arvizs_plot_of_transforms_takes():
    model, x = make_oracle(2, 5, 1)
    found = sbc(model, guides.Exact(model), x, num_simulations=50, progress=False)
    inference = ranks_to_arviz(found.everything)
    values = inference["prior_sbc"]["z"]
    assert values.dims == ("chain", "draw", "z_dim")
    np.testing.assert_allclose(values[0], found.latents.pit)
    assert 0 < float(values.min()) < float(values.max()) < 1
    if ARVIZ_1:
        az.plot_ecdf_pit(inference, var_names=["z"], backend="none")


@pytest.mark.parametrize("num_draws", [4, 24, 60])
def test_corrected_draws_where_there_is_no_tail_to_smooth(num_draws):
    """Of the exact posterior all weights are equal, and few draws have no tail: they are drawn again as they are."""
    model, x = make_oracle(2, 5, 6)
    exact = quietly(model, guides.Exact(model), x, num_draws=num_draws, num_particles=5, corrected=True)
    assert exact["posterior"]["z"].shape == (1, num_draws, 6, 2)
    assert all(len(np.unique(exact["posterior"]["z"].values[0, :, i, 0])) == num_draws for i in range(6))


def test_a_file_made_in_memory_is_the_one_that_arviz_reads(tmp_path):
    model, guide = make_vae()
    inference = to_arviz(model, guide, bits(9), num_draws=5, num_particles=9, progress=False)
    content = netcdf(inference)
    (tmp_path / "posterior.nc").write_bytes(content)
    with importing():  # as it reads, it imports
        found = az.from_netcdf(str(tmp_path / "posterior.nc"))
    groups = list(inference.children) if ARVIZ_1 else inference.groups()
    assert sorted(found.children if ARVIZ_1 else found.groups()) == sorted(groups)
    for group in groups:
        one, other = (tree[group].to_dataset() if ARVIZ_1 else tree[group] for tree in (inference, found))
        xr.testing.assert_identical(one, other)
    assert found.attrs == inference.attrs
