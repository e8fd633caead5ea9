"""The page about ArviZ, block by block; and the converter of any Pyro program."""

import logging
import re
from pathlib import Path

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import seeded

import pyrovae

PAGE = Path(__file__).parents[1] / "docs" / "arviz.md"
ARVIZ_1 = not az.__version__.startswith("0.")


@pytest.mark.own_state
@pytest.mark.skipif(not ARVIZ_1, reason="ArviZ 1.x, which needs Python 3.12")
@pytest.mark.filterwarnings("ignore")  # ArviZ's own, about k-hats and small samples
def test_every_block_of_the_page_runs():
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len(blocks) == 6
    names = {}
    logging.disable(logging.WARNING)
    try:
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), names)
    finally:
        logging.disable(logging.NOTSET)
    drawn = set(re.findall(r"az\.(plot_\w+|loo\w*|psense\w*|compare)\(", PAGE.read_text()))
    assert {"plot_ppc_pit", "plot_loo_pit", "plot_ppc_rootogram", "plot_khat", "loo_approximate_posterior"} <= drawn
    assert {"loo_subsample", "psense_summary", "plot_psense_dist", "plot_ecdf_pit"} <= drawn
    assert int((names["loo"].pareto_k > 0.7).sum()) < 8


def regression(x, y):
    slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.deterministic("twice", 2 * slope)
    with pyro.plate("row", len(x)):
        pyro.sample("y", dist.Normal(x @ slope, 0.5), obs=y)


def approximate(x, y):
    pyro.sample("slope", dist.Normal(torch.ones(2), 0.1).to_event(1))


def batch():
    source = torch.Generator("cpu").manual_seed(0)
    return torch.randn(6, 2, generator=source), torch.randn(6, generator=source)


@pytest.mark.filterwarnings("ignore:Estimated shape parameter")
def test_a_program_of_plain_pyro_becomes_an_arviz_object():
    x, y = batch()
    found = pyrovae.from_pyro_svi(
        model=regression, guide=approximate, model_args=(x, y), log_likelihood=True, prior=True,
        posterior_predictive=True, constant_data={"x": x}, dims={"slope": ["covariate"], "x": ["row", "covariate"]},
        coords={"covariate": ["a", "b"]}, index_origin=1, num_samples=40,
    )  # fmt: skip
    slope = found.posterior["slope"]
    assert slope.dims == ("chain", "draw", "covariate")
    assert list(slope["covariate"].values) == ["a", "b"]
    np.testing.assert_allclose(found.posterior["twice"].values, 2 * slope.values)
    assert found.log_likelihood["y"].dims == ("chain", "draw", "row")
    assert found.log_likelihood["row"].values.tolist() == [1, 2, 3, 4, 5, 6]
    expected = dist.Normal(torch.from_numpy(slope.values[0]) @ x.T, 0.5).log_prob(y)
    np.testing.assert_allclose(found.log_likelihood["y"].values[0], expected, rtol=1e-4)
    np.testing.assert_allclose(found.observed_data["y"].values, y)
    assert found.posterior_predictive["y"].shape == (1, 40, 6)
    assert found.prior["slope"].shape == (1, 40, 2)
    assert abs(float(found.prior["slope"].mean())) < 4 / 80**0.5
    assert found.constant_data["x"].dims == ("row", "covariate")
    assert np.isfinite(az.loo(found).elpd if ARVIZ_1 else az.loo(found).elpd_loo)


def test_an_svi_draws_of_ones_own_and_what_is_missing():
    x, y = batch()
    svi = pyro.infer.SVI(regression, approximate, pyro.optim.Adam({"lr": 0.1}), pyro.infer.Trace_ELBO())
    one, other = (pyrovae.from_pyro_svi(svi, model_args=(x, y), num_samples=5) for _ in range(2))
    np.testing.assert_array_equal(one.posterior["slope"], other.posterior["slope"])
    own = pyrovae.from_pyro_svi(
        svi, model_args=(x, y), num_samples=5, predictions={"y": torch.zeros(7, 3)}, pred_dims={"y": ["new"]}
    )
    assert own.predictions["y"].dims == ("chain", "draw", "new")
    prior = pyrovae.from_pyro_svi(model=regression, model_args=(x, y), prior=True, num_samples=5)
    assert prior.prior["slope"].shape == (1, 5, 2)
    with pytest.raises(ValueError, match="give an SVI or a model"):
        pyrovae.from_pyro_svi(svi, model=regression)
    with pytest.raises(ValueError, match="there is nothing to convert"):
        pyrovae.from_pyro_svi(model=regression, model_args=(x, y))
    pyro.clear_param_store()


def test_elpd_has_the_effective_number_of_parameters_and_sample_sizes():
    values = torch.randn(30, generator=torch.Generator("cpu").manual_seed(0)).double()
    ones = torch.ones_like(values)
    test, training = (
        pyrovae.Evaluation(v, 0 * ones, v, 0 * ones, 0.1 * ones, 50 * ones, 100) for v in (values, values + 0.2)
    )
    found = pyrovae.elpd(test, training)
    assert float(found.p if ARVIZ_1 else found.p_loo) == pytest.approx(0.2 * 30)
    assert float(found.n_eff_i.mean()) == 50
    assert str(found)


def test_one_observation_for_psense():
    model = seeded(lambda: pyrovae.models.LinearGaussian(2, 5).requires_grad_(False))
    guide, groups = pyrovae.guides.Exact(model), ("posterior", "log_prior", "log_likelihood")
    options = {"num_draws": 30, "progress": False, "device": "cpu"}
    found = pyrovae.to_arviz(model, guide, torch.zeros(4, 5), groups=groups, **options)
    one = pyrovae.for_psense(found, 3)
    assert list(one.posterior.data_vars) == ["z[0]", "z[1]", "log likelihood"]
    np.testing.assert_array_equal(one.posterior["z[1]"], found.posterior["z"].sel(datum=3)[..., 1])
    np.testing.assert_allclose(one.log_prior["log_prior"], found.log_prior["z"].sel(datum=3))
    for datum, words in ((99, "there is no observation 99"), (None, "the latents are those of single observations")):
        with pytest.raises(ValueError, match=words):
            pyrovae.for_psense(found, datum)
    with pytest.raises(ValueError, match="the object has no group 'log_prior'"):
        pyrovae.for_psense(pyrovae.to_arviz(model, guide, torch.zeros(4, 5), **options), 3)


def test_counts_are_integers():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Poisson(z.exp()), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.log1p(), 0.5))

    found = pyrovae.to_arviz(model, guide, torch.arange(5.0), num_draws=3, progress=False, device="cpu")
    for group in ("observed_data", "posterior_predictive", "prior_predictive"):
        assert getattr(found, group)["x"].dtype.kind == "i"
    assert found.observed_data["x"].values.tolist() == [0, 1, 2, 3, 4]


def test_masks_subsamples_and_what_the_guide_leaves_out():
    x = torch.tensor([0.5, 900.0])

    def masked(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(x)), pyro.poutine.mask(mask=torch.tensor([True, False])):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x):
        pyro.sample("mean", dist.Normal(0.0, 0.1))

    found = pyrovae.from_pyro_svi(model=masked, guide=guide, model_args=(x,), log_likelihood=True, num_samples=5)
    assert (found.log_likelihood["x"].values[..., 1] == 0).all()

    def subsampled(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(x), subsample_size=1) as i:
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x[i])

    def mixed(x):
        pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(x)):
            which = pyro.sample("which", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(which, 1.0), obs=x)

    for model, words in (
        (subsampled, "the plate 'row' draws 1 of 2 rows anew"),
        (mixed, "the guide has no site 'which'"),
    ):
        with pytest.raises(ValueError, match=words):
            pyrovae.from_pyro_svi(model=model, guide=guide, model_args=(x,), num_samples=3)
    with pytest.raises(ValueError, match="do not take model_args"):
        pyrovae.from_pyro_svi(model=masked, guide=guide, num_samples=3)


def test_modules_are_in_eval_mode_and_left_as_they_were():
    norm = torch.nn.BatchNorm1d(1)

    def model(x):
        pyro.module("norm", norm)
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(mean + norm(x[:, None])[:, 0], 1.0).to_event(1), obs=x)

    with pytest.warns(UserWarning, match="'x' is in no plate"):
        pyrovae.from_pyro_svi(
            model=model, guide=lambda x: pyro.sample("mean", dist.Normal(0.0, 1.0)), model_args=(torch.arange(4.0),),
            num_samples=3, log_likelihood=True,
        )  # fmt: skip
    assert float(norm.running_mean) == 0
    assert norm.training
    pyro.clear_param_store()
