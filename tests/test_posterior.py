"""Posterior draws from the cheapest method that passes its own diagnostics."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import SIGMAS

import pyrovae
from pyrovae.data import Data

KINDS = {"right": 0, "narrow": 1, "blind": 2}  # of guides: what each row of a batch says in its second tensor


def oracle():
    """A linear-Gaussian model with two latents, and a guide that is right, too narrow, or far off, row by row."""
    source = torch.Generator().manual_seed(0)
    loading = torch.randn(4, 2, generator=source, dtype=torch.float64)
    covariance = torch.linalg.inv(torch.eye(2).double() + loading.T @ loading)
    root = torch.linalg.cholesky(covariance)

    def model(x, kind):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ loading.T, 1.0).to_event(1), obs=x)

    def guide(x, kind):
        mean = x @ loading @ covariance
        blind, narrow = (kind == KINDS["blind"])[:, None], (kind == KINDS["narrow"])[:, None]
        scale = torch.where(narrow, 0.6, 1.0)[..., None] * root
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(mean + 9 * blind * root.diagonal(), scale_tril=scale))

    x = (torch.randn(200, 2, generator=source).double() @ loading.T) + torch.randn(200, 4, generator=source).double()
    kind = torch.zeros(200, dtype=torch.long)
    kind[20:30], kind[190:] = KINDS["narrow"], KINDS["blind"]
    return model, guide, (x, kind), x @ loading @ covariance, covariance


@pytest.fixture(scope="module")
def found():
    model, guide, batch, mean, covariance = oracle()
    return pyrovae.posterior(model, guide, batch, num_draws=400, device="cpu", progress=False), mean, covariance, batch


def test_every_rung_returns_draws_of_the_posterior(found):
    """Means, scales and correlations are exact within 4 errors: 1,000 comparisons, each failing with 6.3e-5."""
    posterior, mean, covariance, _ = found
    assert posterior.reliable.all()
    z = posterior.draws["z"]
    sd = covariance.diagonal().sqrt()
    n = posterior.ess[:, None]
    score = (z.mean(0) - mean) / (sd / n.sqrt())
    assert float(score.abs().max()) < SIGMAS + 1  # 400 of them; the weights' own tails widen the normal's
    spread = (z.std(0) / sd - 1) * (2 * n).sqrt()
    assert float(spread.abs().max()) < SIGMAS + 1
    centred = (z - z.mean(0)) / z.std(0)
    truth = float(covariance[0, 1] / sd.prod())
    correlation = ((centred[..., 0] * centred[..., 1]).mean(0).atanh() - math.atanh(truth)) * n[:, 0].sqrt()
    assert float(correlation.abs().max()) < SIGMAS + 1
    for rung in ("guide", "importance", "hmc"):
        chosen = torch.from_numpy(posterior.method == rung)
        squares = score[chosen].square()  # chi-squared, but for the weights' tails: 4 errors of its mean, and a fifth
        assert abs(float(squares.mean()) - 1) < SIGMAS * (2 / squares.numel()) ** 0.5 + 0.2, rung


def test_data_on_which_the_guide_fails_are_on_higher_rungs(found):
    posterior, _, _, (_, kind) = found
    methods = {name: set(posterior.method[kind == number]) for name, number in KINDS.items()}
    assert methods["right"] == {"guide"}
    assert "importance" in methods["narrow"]
    assert methods["blind"] == {"hmc"}


def test_the_table_the_sentence_and_arviz_say_which(found):
    posterior = found[0]
    table = posterior.table()
    count = table["method"].value_counts()["guide"]
    assert count >= 180
    assert table.loc[195, "rhat"] <= 1.01
    assert np.isnan(table.loc[0, "rhat"])
    assert f"{count} from the guide's own draws" in str(posterior)
    assert "all passed their diagnostics" in str(posterior)
    inference = posterior.to_arviz()
    assert inference.posterior["z"].dims == ("chain", "draw", "datum", "z_dim")
    assert inference.posterior["z"].shape == (1, 400, 200, 2)
    assert inference.posterior.coords["method"].values.tolist() == posterior.method.tolist()
    assert float(inference.sample_stats["khat"][0]) == float(posterior.khat[0])


def test_the_same_seed_gives_the_same_draws():
    model, guide, (x, kind), *_ = oracle()
    part = x[170:], kind[170:]
    one, same, other = (
        pyrovae.posterior(model, guide, part, num_draws=100, seed=s, device="cpu", progress=False) for s in (1, 1, 2)
    )
    assert torch.equal(one.draws["z"], same.draws["z"])
    assert not torch.equal(one.draws["z"], other.draws["z"])


def bent(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z[..., 0].square() + z[..., 1], 0.5), obs=x)


def bent_guide(x):
    with pyro.plate("data", len(x)):
        mean = torch.stack([torch.zeros_like(x), x / 3], -1)
        pyro.sample("z", dist.Normal(mean, torch.tensor([1.0, 0.8]).double()).to_event(1))


def test_a_bent_posterior_is_that_of_quadrature():
    x = torch.tensor([-1.0, 0.0, 1.0, 2.5, 4.0], dtype=torch.float64)
    posterior = pyrovae.posterior(bent, bent_guide, x, num_draws=2000, device="cpu", progress=False)
    assert posterior.reliable.all()
    grid = torch.linspace(-6, 6, 1201, dtype=torch.float64)
    a, b = torch.meshgrid(grid, grid, indexing="ij")
    for k, value in enumerate(x):
        log = -(a**2 + b**2) / 2 - 2 * (value - a**2 - b) ** 2
        w = (log - log.logsumexp((0, 1))).exp()
        z, n = posterior.draws["z"][:, k], float(posterior.ess[k])
        for f, draws in (
            (a, z[:, 0]),
            (b, z[:, 1]),
            (a**2, z[:, 0] ** 2),
            (b**2, z[:, 1] ** 2),
            (a * a * b, z[:, 0] ** 2 * z[:, 1]),
        ):
            truth = float((w * f).sum())
            error = float(((w * (f - truth) ** 2).sum() / n).sqrt())
            assert abs(float(draws.mean()) - truth) < (SIGMAS + 1) * error  # 25 comparisons


def two_modes(x):
    with pyro.plate("data", len(x)):
        centre = 12 * torch.ones(5).double()
        sides = dist.MixtureOfDiagNormals(
            torch.stack([centre, -centre]), torch.ones(2, 5).double(), torch.zeros(2).double()
        )
        z = pyro.sample("z", sides)
        pyro.sample("x", dist.Normal(z[..., 0].abs(), 1.0), obs=x)


def wide_guide(x):
    with pyro.plate("data", len(x)):
        side = torch.where(torch.arange(5) >= 0, 1.0, -1.0).double()
        z = dist.MixtureOfDiagNormals(
            torch.stack([14 * side, -14 * side]), 0.3 * torch.ones(2, 5).double(), torch.zeros(2).double()
        )
        pyro.sample("z", z.expand((len(x),)))


def test_what_no_rung_solves_is_marked():
    x = torch.tensor([12.0, 11.0], dtype=torch.float64)
    with pytest.warns(UserWarning, match="2 UNRELIABLE: no method passed its diagnostics"):
        posterior = pyrovae.posterior(
            two_modes, wide_guide, x, num_draws=200, num_warmup=60, device="cpu", progress=False
        )
    assert posterior.method.tolist() == ["unreliable"] * 2
    assert bool((posterior.rhat > 1.01).all())
    assert not posterior.reliable.any()


def counting(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Poisson(torch.tensor(1000.0).double()))
        pyro.sample("x", dist.Normal(z, 10.0), obs=x)


def poor_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Poisson(torch.tensor(850.0).double()).expand((len(x),)))


def test_latents_without_a_gradient_stay_unreliable_and_say_why():
    x = torch.tensor([1000.0, 1010.0], dtype=torch.float64)
    with pytest.warns(UserWarning, match=r"UNRELIABLE: no method passed its diagnostics \(no chains: "):
        posterior = pyrovae.posterior(counting, poor_guide, x, num_draws=100, device="cpu", progress=False)
    assert posterior.method.tolist() == ["unreliable"] * 2


def test_batch_sizes_do_not_change_draws_and_the_stated_number_of_draws_holds():
    """Errors of means over 300 data, whose weights have k-hat near 0.2: their mean square is 1 within 4 errors."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)).double(), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5 * 1.3))

    x = torch.randn(300, generator=torch.Generator().manual_seed(0)).double()
    for count in (50, 400):
        found = [
            pyrovae.posterior(model, guide, x, num_draws=count, batch_size=size, device="cpu", progress=False)
            for size in (32, 7)
        ]
        torch.testing.assert_close(found[0].draws["z"], found[1].draws["z"])
        scores = (found[0].draws["z"].mean(0) - x / 2) / (0.5 / found[0].ess).sqrt()
        assert abs(float(scores.square().mean()) - 1) < SIGMAS * (2 / 300) ** 0.5 + 0.1


def test_data_unlike_the_reference_are_marked():
    """P-values of data like the reference are uniform: Kolmogorov-Smirnov at 1e-4."""
    from scipy import stats

    model, guide, (x, kind), *_ = oracle()
    zero = torch.zeros_like(kind)
    odd = torch.cat([x[100:], x[:3] + 8])
    posterior = pyrovae.posterior(
        model, guide, (odd, torch.zeros(103, dtype=torch.long)), reference=(x[:100], zero[:100]), num_draws=100,
        device="cpu", progress=False,
    )  # fmt: skip
    assert posterior.unusual[100:].all()
    assert posterior.table()["unusual"].sum() == int(posterior.unusual.sum()) <= 8
    assert stats.kstest(posterior.pvalue[:100].numpy(), "uniform").pvalue > 1e-4
    assert "unlike the reference data" in str(posterior)
    with pytest.raises(ValueError, match=r"20 reference data cannot give a p-value of 0\.01: give at least 100"):
        pyrovae.posterior(model, guide, (x, kind), reference=(x[:20], zero[:20]), progress=False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_draws": 2}, "num_draws must be a whole number of at least 8"),
        ({"num_chains": 1}, "num_chains must be a whole number of at least 2"),
        ({"level": 0.0}, "level"),
        ({"max_bytes": 1000}, "the draws would take"),
    ],
)
def test_bad_arguments_are_refused(arguments, words):
    model, guide, batch, *_ = oracle()
    with pytest.raises(ValueError, match=words):
        pyrovae.posterior(model, guide, batch, **{"progress": False, "device": "cpu", **arguments})


def test_rows_keep_their_names_and_weights_do_not_matter():
    model, guide, (x, kind), *_ = oracle()
    data = Data(x[:6], kind[:6], row_names=list("abcdef"), weights=[1, 2, 3, 1, 1, 1])
    posterior = pyrovae.posterior(model, guide, data, num_draws=20, device="cpu", progress=False)
    assert posterior.table().index.tolist() == list("abcdef")
    assert posterior.to_arviz().posterior["datum"].values.tolist() == list("abcdef")
