"""What codes hold: against quadrature, closed forms, and the invariances that metrics are published with."""

import itertools
import math

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import SIGMAS, seeded
from scipy import stats
from torch.distributions import biject_to, constraints

import pyrovae
from pyrovae import data, guides, likelihoods, models, nn, objectives, plots, priors
from pyrovae.app import comparison as strategies
from pyrovae.diagnostics.diagnostic import diagnostics
from pyrovae.diagnostics.latents.aggregate import _of_one_number
from pyrovae.distributions.marginals import marginals

QUIET = {"progress": False}


@pytest.fixture(scope="module")
def oracle():
    return seeded(lambda: models.LinearGaussian(2, 4)).requires_grad_(False).double()


def wrong(model):
    """A correlated Gaussian guide, off in mean and scale, so that no term is 0."""

    def guide(x):
        q = model.posterior(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(1.2 * q.loc + 0.3, scale_tril=0.8 * q.scale_tril))

    return guide


def quadrature(model, x, points=601, reach=7.0):
    """The terms of N data's aggregate posterior, by sums over a grid."""
    axis = torch.linspace(-reach, reach, points, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    cell = (axis[1] - axis[0]).item()
    q = model.posterior(x)
    each = dist.MultivariateNormal(1.2 * q.loc + 0.3, scale_tril=0.8 * q.scale_tril)
    log_each = each.log_prob(grid[:, None])  # [points, N]
    log_q = log_each.logsumexp(1) - math.log(len(x))
    log_p = dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1).log_prob(grid)
    density = log_q.exp() * cell**2
    table = density.reshape(points, points)
    singles = [table.sum(1) / cell, table.sum(0) / cell]  # q(z_d)
    log_single = torch.stack([s.clamp(min=1e-300).log() for s in singles])
    line = -0.5 * axis.square() - 0.5 * math.log(2 * math.pi)
    dimension_wise = sum(float((s * cell * (log_s - line)).sum()) for s, log_s in zip(singles, log_single, strict=True))
    both = log_single[0][:, None] + log_single[1][None]
    return {
        "rate": float((log_each.exp() * (log_each - log_p[:, None])).sum(0).mean() * cell**2),
        "mutual_information": float((log_each.exp() * (log_each - log_q[:, None])).sum(0).mean() * cell**2),
        "marginal_kl": float((density * (log_q - log_p)).sum()),
        "total_correlation": float((table * (log_q.reshape(points, points) - both)).sum()),
        "dimension_wise": dimension_wise,
        "prior_dependence": 0.0,
    }


def test_the_terms_of_the_rate_match_quadrature(oracle):
    x = seeded(lambda: oracle.evidence().sample((12,)))
    found = pyrovae.aggregate(oracle, wrong(oracle), x, num_draws=200, **QUIET)
    summary = found.summary()
    for name, expected in quadrature(oracle, x).items():
        assert abs(summary[name] - expected) < SIGMAS * found.mc_se[name] + 1e-6, name
    parts = ("mutual_information", "total_correlation", "dimension_wise", "prior_dependence")
    assert sum(summary[name] for name in parts) == pytest.approx(summary["rate"], abs=1e-9)
    assert summary["mutual_information"] + summary["marginal_kl"] == pytest.approx(summary["rate"], abs=1e-9)
    assert not found.estimated


def test_mutual_information_is_bounded_from_both_sides(oracle):
    x = seeded(lambda: oracle.evidence().sample((400,)))
    exact = 0.5 * float(torch.logdet(oracle.precision()))
    summary = pyrovae.aggregate(oracle, guides.Exact(oracle), x, num_draws=4, **QUIET).summary()
    assert summary["mutual_information"] < exact + SIGMAS * summary["mutual_information_se"]
    assert summary["mutual_information_upper"] > exact - SIGMAS * summary["mutual_information_upper_se"]
    assert summary["mutual_information"] < summary["mutual_information_upper"]
    assert abs(summary["marginal_kl"]) < SIGMAS * summary["marginal_kl_se"] + 0.02  # N is finite
    few = pyrovae.aggregate(oracle, guides.Exact(oracle), x[:5], num_draws=50, **QUIET).summary()
    assert few["mutual_information"] < math.log(5) < few["log_num_data"] + 1e-9
    distortion = -oracle.log_evidence(x).mean() - summary["rate"]  # of the exact posterior, -log p(x) = D + R
    assert summary["distortion"] == pytest.approx(float(distortion), abs=1e-6)


@pytest.mark.parametrize("precise", [False, True])
def test_the_upper_bound_of_information_is_one_where_codes_do_not_overlap(precise):
    latents, scale, size = 32, 0.1, 200
    dtype = torch.float64 if precise else torch.float32

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(latents), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, scale).to_event(1), obs=x)

    def guide(x):
        variance = 1 / (1 + scale**-2)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x * variance / scale**2, variance**0.5).to_event(1))

    x = seeded(lambda: torch.randn(size, latents, dtype=dtype) * math.sqrt(1 + scale**2))
    found = pyrovae.aggregate(model, guide, x, **QUIET).summary()
    exact = 0.5 * latents * math.log(1 + scale**-2)  # 73.8 nats, far beyond log N
    assert found["mutual_information"] == pytest.approx(math.log(size), abs=1e-3)
    assert found["mutual_information_upper"] > exact
    assert abs(found["rate"] - exact) < SIGMAS * found["rate_se"]


def test_guides_without_marginals_are_estimated_by_moments(oracle):
    x = seeded(lambda: oracle.evidence().sample((300,)))

    def hidden(x):
        q = oracle.posterior(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", _Opaque(dist.MultivariateNormal(1.2 * q.loc + 0.3, scale_tril=0.8 * q.scale_tril)))

    known = pyrovae.aggregate(oracle, wrong(oracle), x, num_draws=4, **QUIET)
    found = pyrovae.aggregate(oracle, hidden, x, num_draws=4, **QUIET)
    assert found.estimated
    assert not known.estimated
    one, other = known.summary(), found.summary()
    for name in ("rate", "mutual_information"):
        assert other[name] == pytest.approx(one[name], abs=1e-6)
    assert other["total_correlation"] == pytest.approx(one["total_correlation"], abs=0.01)  # moments of 64 draws
    assert other["dimension_wise"] == pytest.approx(one["dimension_wise"], abs=0.01)


class _Opaque(dist.TorchDistribution):
    """A distribution of a family that nothing is known of."""

    arg_constraints = {}  # noqa: RUF012
    has_rsample = True

    def __init__(self, inner, support=constraints.real):
        self.inner, self.inside = inner, support
        super().__init__(inner.batch_shape, inner.event_shape, validate_args=False)

    @property
    def support(self):
        return constraints.independent(self.inside, 1)

    def expand(self, batch_shape, _instance=None):
        return self

    def rsample(self, sample_shape=()):
        return self.inner.rsample(sample_shape)

    def log_prob(self, value):
        return self.inner.log_prob(value)


def test_several_layers_and_plates_have_a_joint_decomposition():
    def model(x):
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            with pyro.plate("groups", 3, dim=-2):
                z = pyro.sample("z", dist.Normal(top.sum(-1), 1.0).expand([3, len(x)]))
            pyro.sample("x", dist.Normal(z.T, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Normal(x[:, :2] / 2, 0.5).to_event(1))
            with pyro.plate("groups", 3, dim=-2):
                pyro.sample("z", dist.Normal((top.sum(-1) + x.T) / 2, 0.7))

    x = seeded(lambda: torch.randn(9, 3))
    found = pyrovae.aggregate(model, guide, x, **QUIET)
    summary = found.summary()
    assert found.names == ("top[0]", "top[1]", "z[0]", "z[1]", "z[2]")
    assert summary["mutual_information"] + summary["marginal_kl"] == pytest.approx(summary["rate"], abs=1e-5)
    assert 0 < summary["mutual_information"] <= math.log(9) + 1e-6
    assert math.isnan(summary["dimension_wise"])  # the prior of z given the top has no marginals at hand
    used = pyrovae.usage(model, guide, x, **QUIET)
    assert list(used.latents.index) == list(found.names)
    assert list(used.layers.index) == ["top", "z"]


def test_what_has_no_one_prior_or_no_density_is_refused(oracle):
    x = torch.zeros(5, 4).double()
    planar = seeded(lambda: guides.Planar(nn.MLP(4, 8), 2)).double()
    with pytest.raises(ValueError, match="cannot score a z that it did not draw"):
        pyrovae.aggregate(oracle, planar, x, **QUIET)
    auxiliary = seeded(lambda: guides.Auxiliary(nn.MLP(4, 8), 2)).double()
    with pytest.raises(ValueError, match="its density is NaN"):
        pyrovae.aggregate(oracle, auxiliary, x, **QUIET)

    def marked(x):
        with pyro.plate("data", len(x)):
            pyro.sample("u", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", oracle.posterior(x))

    for question in (pyrovae.aggregate, pyrovae.usage):
        with pytest.raises(ValueError, match="of the guide is not in the model"):
            question(oracle, marked, x, **QUIET)
    with pytest.raises(ValueError, match="at least 2 data"):
        pyrovae.aggregate(oracle, guides.Exact(oracle), x[:1], **QUIET)

    def conditional(x, c):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(c, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x, c):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x + c) / 2, 1.0).to_event(1))

    with pytest.raises(ValueError, match="prior of the latents differs between data"):
        pyrovae.aggregate(conditional, guide, (torch.zeros(4, 2), torch.arange(8.0).reshape(4, 2)), **QUIET)
    within = torch.zeros(100, 2)
    within[40:60] = 3.0
    with pytest.raises(ValueError, match="prior of the latents differs between data"):
        pyrovae.aggregate(conditional, guide, (torch.zeros(100, 2), within), **QUIET)


@pytest.mark.parametrize("name", ["product", "dense", "low rank", "mixture", "positive", "scalar"])
def test_marginals_are_those_of_draws(name):
    half = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    rows = torch.tensor([[0.0, 1.0], [2.0, -1.0], [0.5, 0.5]])
    fn = {
        "product": lambda: dist.Laplace(rows, 1.0).to_event(1),
        "dense": lambda: dist.MultivariateNormal(rows, scale_tril=half.expand(3, 2, 2)),
        "low rank": lambda: dist.LowRankMultivariateNormal(rows, rows[..., None], torch.ones(3, 2)),
        "mixture": lambda: dist.MixtureSameFamily(
            dist.Categorical(torch.tensor([0.3, 0.7]).expand(3, 2)),
            dist.MultivariateNormal(torch.stack([rows, rows + 2], 1), scale_tril=half.expand(3, 2, 2, 2)),
        ),
        "positive": lambda: dist.TransformedDistribution(
            dist.Normal(rows, 0.5).to_event(1), [torch.distributions.transforms.ExpTransform()]
        ),
        "scalar": lambda: dist.Gamma(rows[:, 0] + 1, 1.0),
    }[name]()
    known = marginals(fn)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = fn.sample((20_000,))
    flat = draws.reshape(20_000, 3, -1)
    axis = torch.linspace(-12, 15, 20_001) if name not in {"positive", "scalar"} else torch.linspace(1e-4, 60, 60_001)
    for d in range(flat.shape[-1]):
        values = axis[:, None, None].expand(-1, 3, flat.shape[-1])
        density = known(values)[..., d].exp() * (axis[1] - axis[0])
        assert torch.allclose(density.sum(0), torch.ones(3), atol=2e-3)
        mean = (density * axis[:, None]).sum(0)
        error = flat[..., d].std(0) / math.sqrt(20_000)
        assert ((mean - flat[..., d].mean(0)).abs() < SIGMAS * error + 2e-3).all()


def test_families_that_mix_coordinates_have_no_marginals():
    flow = seeded(lambda: guides.Flow(nn.MLP(4, 8), 2)).posterior(torch.zeros(3, 4))
    assert marginals(flow) is None
    assert marginals(dist.OneHotCategorical(torch.ones(3, 2) / 2)) is None


def digits_vae(prior=None):
    model = models.VAE(
        prior=prior or priors.StandardNormal(4), decoder=nn.MLP(4, 64, hidden=(32,)), likelihood=likelihoods.Bernoulli()
    )
    return model, guides.MeanField(nn.MLP(64, 32, hidden=(32,)), 4)


@pytest.fixture(scope="module")
def splits():
    return data.Digits(binarise=data.Static()).splits(seed=0)


@pytest.mark.parametrize(
    "prior", [priors.StandardNormal, priors.Laplace]
)  # no Gaussian q has a rate of 0 with the latter
@pytest.mark.parametrize("beta", [1.0, 20.0])
def test_collapse_is_reported_where_it_is(splits, beta, prior):
    model, guide = seeded(lambda: digits_vae(prior(4)))
    fitted = pyrovae.fit(model, guide, splits.train, objective=objectives.BetaELBO(beta), epochs=40, **QUIET)
    found = pyrovae.usage(fitted.model, fitted.guide, splits.test, **QUIET)
    if beta == 1:
        assert not found.layers["collapsed"].any()
        assert found.layers.loc["z", "used"] >= 3
        assert found.layers.loc["z", "rate"] > 1
        return
    everything = ["z[0]", "z[1]", "z[2]", "z[3]"]
    assert found.layers.loc["z", "used"] == 0
    if prior is priors.StandardNormal:
        assert found.layers.loc["z", "collapsed"]
        assert found.collapsed == everything
        assert "no latent holds anything of the data" in str(found)
    else:  # min over s of KL(N(0, s^2) || Laplace(0, 1)) = 0.0484 nats, at s^2 = pi / 2
        assert (found.latents["rate"] > 0.048 - 2 * found.latents["rate_se"]).all()
        assert found.layers.loc["z", "state"] == "idle"
        assert not found.layers.loc["z", "collapsed"]
        assert (found.collapsed, found.named("idle")) == ([], everything)
        assert "idle: no latent moves with the data, though q is not the prior" in str(found)


def test_the_layer_that_collapsed_is_named(splits):
    def made():
        model = models.HierarchicalVAE(
            prior=priors.StandardNormal(2), transitions=[nn.MLP(2, 8)], decoder=nn.MLP(4, 64, hidden=(32,)),
            likelihood=likelihoods.Bernoulli(),
        )  # fmt: skip
        lower, upper = guides.MeanField(nn.MLP(64, 32, hidden=(32,)), 4), guides.MeanField(nn.MLP(4, 8), 2)
        with torch.no_grad():  # the top: q = p whatever is below; what is below does not heed it either
            upper.head.weight.zero_()
            upper.head.bias.zero_()  # location 0, scale 1
            lower.head.weight.mul_(5)  # heeds the data
            for parameter in model.transitions[0].parameters():
                parameter.zero_()
        return model, guides.Hierarchical([lower, upper])

    model, guide = seeded(made)
    found = pyrovae.usage(model, guide, splits.test, **QUIET)
    assert found.layers.loc["z2", "collapsed"]
    assert not found.layers.loc["z1", "collapsed"]
    assert found.collapsed[:2] == ["z2[0]", "z2[1]"]
    assert "z2: " in str(found)


def grouped(x):
    """z[0] tells two groups apart; z[1] is the prior."""
    with pyro.plate("data", len(x)):
        loc = torch.stack([4.0 * x[:, 0], 0 * x[:, 0]], dim=1)
        pyro.sample("z", dist.Normal(loc, x.new_tensor([0.1, 1.0])).to_event(1))


def noisy(x):
    """z ~ N(0, I), x ~ N(z, I): data of any kind can be asked about."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("ordered", [True, False])
def test_what_is_held_does_not_depend_on_the_order_of_the_data(ordered):
    """Two groups of 1,000, well apart: log 2 nats, of 500 at random within 4 of its own errors of what is balanced."""
    side = torch.ones(2000)
    side[:1000] = -1
    x = torch.stack([side, 0 * side], dim=1)
    x = x if ordered else x[seeded(lambda: torch.randperm(2000))]
    found = pyrovae.usage(noisy, grouped, x, num_draws=4, **QUIET)
    row = found.latents.loc["z[0]"]
    # the split of 500 is a binomial's: their entropy falls short of log 2 by (p - 1/2)^2 * 2, 1 / 1000 on average
    assert abs(row["information"] - math.log(2)) < SIGMAS**2 * 2 / (4 * 500) + SIGMAS * row["information_se"]
    assert (row["state"], found.latents.loc["z[1]", "state"]) == ("used", "collapsed")
    assert "1 of 2 latents in use, collapsed: z[1]" in str(found)
    assert found.layers.loc["z", "active_units"] == 1
    asked = pyrovae.Fitted(noisy, grouped, data.Data(x), 2000, device="cpu", progress=False)
    parts = diagnostics()["latents"].ask(asked).aggregate
    assert parts.mutual_information.mean() == pytest.approx(math.log(2), abs=SIGMAS**2 * 2 / (4 * 1000))


def test_a_comparison_evaluates_on_data_of_all_groups():
    """200 data sorted by group: of 40 at random, both are there but with a probability of 1e-12."""
    labels = torch.arange(200) // 100
    model, guide = seeded(lambda: (models.LinearGaussian(2, 3), guides.MeanField(nn.MLP(3, 8), 2)))
    x = seeded(lambda: torch.randn(200, 3)) + 4 * labels[:, None]
    fitted = pyrovae.fit(model, guide, x, steps=2, **QUIET)
    test = data.Data(x, labels=labels)
    options = {"num_particles": 5, "seed": 0, "device": None, **QUIET}
    answers = strategies.examine({"a": [fitted]}, test, sizes={"latents": 40, "codes": 40}, **options).answers
    assert answers.notes == []
    (held,), (coded,) = answers.found["latents"]["a"], answers.found["codes"]["a"]
    assert set(coded.classes) == {0, 1}
    assert len(coded.values) == len(coded.classes) == len(held.aggregate) == 40
    expected = pyrovae.codes(model, guide, test.numbered().sampled(40, 0), **QUIET)
    assert torch.equal(coded.values, expected)
    distinct = pyrovae.label_scores(coded.values, np.asarray(coded.classes)).loc["probe_accuracy", "value"]
    assert distinct == coded.scores.loc["probe_accuracy", "value"]


def test_errors_of_usage_are_those_of_repeats(oracle):
    """Over 60 sets of 100 data: the spread of 60 is known to 9%."""
    tables = []
    for seed in range(60):
        x = seeded(lambda: oracle.evidence().sample((100,)), seed)
        tables.append(pyrovae.usage(oracle, guides.Exact(oracle), x, num_draws=8, seed=seed, **QUIET).latents)
    for name in ("rate", "information", "activity"):
        spread = np.std([t[name] for t in tables], axis=0, ddof=1)
        stated = np.mean([t[f"{name}_se"] for t in tables], axis=0)
        assert (np.abs(np.log(stated / spread)) < 0.5).all(), name


def test_a_latent_that_follows_its_prior_or_cannot_be_classified_is_said_to():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x, 1.0).to_event(1))  # x as a covariate of itself
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0).to_event(1))

    x = seeded(lambda: torch.randn(300, 2))
    found = pyrovae.usage(model, guide, x, **QUIET)
    assert found.named("follows") == ["z[0]", "z[1]"]
    assert found.layers.loc["z", "state"] == "follows"
    assert found.layers.loc["z", "information"] > 0.3
    assert "follows its prior" in str(found)

    def little(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.15 * x, 1.0).to_event(1))

    some = pyrovae.usage(noisy, little, x[:20], num_draws=2, **QUIET)  # about 0.011 nats, known to 0.005
    assert some.layers.loc["z", "state"] == "unclear"
    assert "cannot be told from so few data or draws" in str(some)
    assert not some.layers.loc["z", "collapsed"]


def test_burdas_units_are_counted_by_the_variance_of_codes():
    """A code of variance 0.04 in a prior of sd 0.2: all of the share, and active; of variance 0.0016, not active."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, x.new_tensor([0.2, 0.04])).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x * x.new_tensor([0.2, 0.04]), 0.001).to_event(1))

    x = seeded(lambda: torch.randn(400, 2))
    found = pyrovae.usage(model, guide, x, **QUIET)
    np.testing.assert_allclose(found.latents["code_variance"], x.var(0) * torch.tensor([0.04, 0.0016]), rtol=0.01)
    assert (found.latents["activity"] > 0.99).all()
    assert found.layers.loc["z", "active_units"] == 1
    assert found.layers.loc["z", "used"] == 2


def test_guides_with_randomness_of_their_own_are_refused_or_not_asked_for_information(oracle):
    x = seeded(lambda: oracle.evidence().sample((60,)))
    family = seeded(lambda: guides.MeanField(nn.MLP(4, 8), 2)).double()
    guide = guides.SemiAmortized(family, oracle, num_steps=2).double()
    with pytest.raises(ValueError, match=r"the guide draws numbers of its own before it samples.*guide\.family"):
        pyrovae.aggregate(oracle, guide, x, **QUIET)
    found = pyrovae.usage(oracle, guide, x, **QUIET)
    assert found.latents["information"].isna().all()
    assert found.latents["activity"].notna().all()
    assert math.isnan(found.layers.loc["z", "information"])
    assert pyrovae.aggregate(oracle, family, x, **QUIET).summary()["mutual_information"] < math.log(60)


def test_the_aggregate_of_masked_latents_is_refused():
    def masked(program):
        return lambda x: pyro.poutine.mask(program, mask=x[:, 0] > 0)(x)

    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="latent site 'z' is masked for some data"):
        pyrovae.aggregate(masked(noisy), masked(grouped), x, **QUIET)
    pyrovae.aggregate(masked(noisy), masked(grouped), x.abs(), **QUIET)


@pytest.mark.parametrize("support", ["positive", "unit_interval", "simplex"])
def test_moments_of_constrained_latents_are_taken_where_they_are_free(support):
    """T(N(m, s)) coordinate by coordinate, hidden from the marginals: as exact as moments of 64 draws are."""
    simplex = support == "simplex"
    transform = biject_to(getattr(constraints, "unit_interval" if simplex else support))
    prior = dist.Beta(torch.ones(2), 1.0) if support != "positive" else dist.LogNormal(torch.zeros(2), 1.0)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior.to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def made(hide):
        def guide(x):
            inner = dist.TransformedDistribution(dist.Normal(1.5 * x, 1.2).to_event(1), [transform])
            with pyro.plate("data", len(x)):
                pyro.sample("z", _Opaque(inner, getattr(constraints, support)) if hide else inner)

        return guide

    x = seeded(lambda: torch.randn(200, 2))
    if simplex:  # its coordinates lie in the unit interval; that they add up to one is nothing that marginals know
        found = _of_one_number(constraints.simplex)
        assert found(torch.tensor(0.0)) == 0.5
        return
    known, found = (pyrovae.aggregate(model, made(hide), x, num_draws=4, **QUIET) for hide in (False, True))
    assert (known.estimated, found.estimated) == (False, True)
    one, other = known.summary(), found.summary()
    assert one["dimension_wise"] > 0.03
    assert other["dimension_wise"] == pytest.approx(one["dimension_wise"], abs=0.02)  # moments of 64 draws
    assert other["total_correlation"] == pytest.approx(one["total_correlation"], abs=0.02)


def test_flows_on_the_positive_half_line_have_no_negative_divergence():
    prior = dist.Exponential(torch.ones(2)).to_event(1)
    model = seeded(lambda: models.VAE(prior=prior, decoder=nn.MLP(2, 6), likelihood=likelihoods.Gaussian()))
    guide, x = seeded(lambda: (guides.Flow(nn.MLP(6, 8), 2, support="positive"), torch.randn(200, 6)))
    found = pyrovae.aggregate(model, guide, x, num_draws=40, **QUIET)
    assert found.estimated
    with torch.no_grad():  # next to q(z_d | x) = q(z_d), log-normal: E[log q(u_d) - u_d + z_d], by its moments
        u = torch.cat([seeded(lambda k=k: guide.posterior(x).sample(), k) for k in range(100)]).log()
    entropy = u.std(0).log() + 0.5 * math.log(2 * math.pi * math.e)
    expected = float((-entropy - u.mean(0) + u.exp().mean(0)).sum())
    assert found.summary()["dimension_wise"] == pytest.approx(expected, abs=SIGMAS * found.mc_se["dimension_wise"])
    assert expected > 0.2


def dependent(x):
    """Standard normal marginals; what depends on x is their correlation alone."""
    side = torch.where(x[:, 0] > 0, 0.9, -0.9)
    rows = torch.stack([torch.ones_like(side), torch.zeros_like(side), side, (1 - side**2).sqrt()], dim=1)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.MultivariateNormal(x.new_zeros(2), scale_tril=rows.reshape(-1, 2, 2)))


def scaled(x):
    """A constant mean; what depends on x is the scale alone, of a family that nothing is known of."""
    with pyro.plate("data", len(x)):
        inner = dist.Normal(x.new_zeros(len(x), 2), torch.where(x[:, :1] > 0, 0.05, 2.0).expand(-1, 2)).to_event(1)
        pyro.sample("z", _Opaque(inner))


@pytest.mark.parametrize("guide", [dependent, scaled])
def test_layers_that_speak_otherwise_than_by_means_have_not_collapsed(guide):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    x = seeded(lambda: torch.randn(300, 2))
    found = pyrovae.usage(model, guide, x, **QUIET)
    assert found.layers.loc["z", "rate"] > 0.3
    assert not found.layers.loc["z", "collapsed"]
    assert found.layers.loc["z", "used"] == 0  # no latent by itself
    if guide is dependent:
        expected = pyrovae.aggregate(model, guide, x, **QUIET).summary()["mutual_information"]
        assert found.layers.loc["z", "information"] == pytest.approx(expected, abs=0.1)


def test_rates_of_latents_are_their_divergences(oracle):
    x = seeded(lambda: oracle.evidence().sample((200,)))
    guide = guides.Exact(oracle)
    found = pyrovae.usage(oracle, guide, x, num_draws=400, **QUIET)
    q = oracle.posterior(x)
    marginal = dist.Normal(q.mean, q.variance.sqrt())
    expected = torch.distributions.kl_divergence(marginal, dist.Normal(torch.zeros(2).double(), 1.0)).mean(0)
    np.testing.assert_allclose(found.latents["rate"], expected, atol=0.02)  # Monte Carlo: 0.003
    activity = q.mean.var(0) / (q.mean.var(0) + q.variance.mean(0))
    np.testing.assert_allclose(found.latents["activity"], activity, atol=0.02)
    few = pyrovae.usage(oracle, guide, x, num_draws=2, **QUIET)
    np.testing.assert_allclose(few.latents["activity"], activity, atol=0.15)  # no bias by few draws


def test_discrete_latents_are_one_latent_each():
    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.OneHotCategorical(torch.ones(3) / 3))
            c = pyro.sample("c", dist.Categorical(torch.ones(2) / 2))
            pyro.sample("x", dist.Normal(k.sum(-1) + c, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.OneHotCategorical(torch.tensor([0.9, 0.05, 0.05]).expand(len(x), 3)))
            pyro.sample("c", dist.Categorical(torch.ones(len(x), 2)))

    x = torch.zeros(6)
    found = pyrovae.usage(model, guide, x, num_draws=200, **QUIET).latents
    assert list(found.index) == ["k", "c"]
    assert found["activity"].isna().all()
    assert not found.loc["k", "collapsed"]
    assert found.loc["c", "collapsed"]
    assert pyrovae.codes(model, guide, x, **QUIET).shape == (6, 4)
    assert math.isnan(pyrovae.aggregate(model, guide, x, **QUIET).summary()["total_correlation"])


def test_codes_are_posterior_means(oracle):
    x = seeded(lambda: oracle.evidence().sample((40,)))
    found = pyrovae.codes(oracle, guides.Exact(oracle), x, num_draws=300, **QUIET)
    q = oracle.posterior(x)
    error = q.variance.sqrt() / math.sqrt(300)
    assert ((found - q.mean).abs() < 5 * error).all()  # 80 comparisons: 5e-5
    with pytest.raises(ValueError, match="is not a latent"):
        pyrovae.codes(oracle, guides.Exact(oracle), x, site="y", **QUIET)


def test_the_aggregate_posterior_is_told_from_the_prior(oracle):
    x = seeded(lambda: oracle.evidence().sample((300,)))

    def made(seed):
        return seeded(lambda: oracle.evidence().sample((24,)), 100 + seed)

    same = pyrovae.prior_test(oracle, guides.Exact(oracle), x, num_permutations=199, **QUIET)
    assert same.pvalue > 0.005
    assert abs(same.accuracy - 0.5) < SIGMAS * 0.5 / math.sqrt(600)
    assert same.kl < 0.1
    other = pyrovae.prior_test(oracle, wrong(oracle), x, num_permutations=199, max_data=200, **QUIET)
    assert other.pvalue == pytest.approx(1 / 200)
    exact = pyrovae.aggregate(oracle, wrong(oracle), x, **QUIET).summary()["marginal_kl"]
    assert abs(other.kl - exact) < SIGMAS * other.kl_se  # the classifier falls a little short of it
    assert abs(same.distance) < 0.1
    sizes = [
        pyrovae.prior_test(oracle, guides.Exact(oracle), made(seed), num_permutations=99, seed=seed, **QUIET).pvalue
        for seed in range(60)
    ]
    share = np.mean(np.array(sizes) <= 0.1)
    assert share < 0.1 + SIGMAS * math.sqrt(0.1 * 0.9 / 60)
    assert abs(np.mean(sizes) - 0.5) < SIGMAS * math.sqrt(1 / 12 / 60)
    table = pyrovae.prior_against_posterior(oracle, wrong(oracle), x, **QUIET)
    assert (table["pvalue"] < 0.01).any()
    with pytest.raises(ValueError, match="at least 20 data"):
        pyrovae.prior_test(oracle, guides.Exact(oracle), x[:5], **QUIET)


@pytest.mark.parametrize("size", [20, 60])
def test_few_codes_far_from_the_prior_are_told_apart(size):
    """Ten standard deviations; and none, over 20 seeds: the mean accuracy at 4 errors of 2 size * 20 guesses."""

    def apart(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_full((2,), 10.0), 1.0).to_event(1))

    def same(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))

    options = {"num_permutations": 99, **QUIET}
    found = pyrovae.prior_test(noisy, apart, torch.zeros(size, 2), **options)
    assert found.accuracy == 1
    assert found.kl > 3
    assert found.pvalue == pytest.approx(0.01)
    nothing = [pyrovae.prior_test(noisy, same, torch.zeros(size, 2), seed=seed, **options) for seed in range(20)]
    accuracy = np.mean([one.accuracy for one in nothing])
    assert abs(accuracy - 0.5) < SIGMAS * 0.5 / math.sqrt(40 * size) + 0.03  # what is left out of a fold tilts it
    kls = np.array([one.kl for one in nothing])
    assert kls.mean() < SIGMAS * kls.std(ddof=1) / math.sqrt(20)


GRID = np.array(list(itertools.product(range(3), range(4), range(5)))).repeat(8, axis=0)
METRICS = ["mig", "sap", "dci_disentanglement", "dci_completeness", "dci_informativeness", "factor_vae", "modularity"]


def test_a_perfect_code_scores_1_whatever_its_order_and_scale():
    code = (GRID * np.array([1.0, -2.0, 0.1]))[:, [2, 0, 1]]
    found = pyrovae.disentanglement(code, GRID, categorical=[0])
    assert list(found.index) == METRICS
    np.testing.assert_allclose(found["value"], 1, atol=1e-6)
    np.testing.assert_allclose(found["adjusted"], 1, atol=1e-6)


def test_noise_scores_near_0_above_chance():
    noise = np.random.default_rng(0).normal(size=(len(GRID), 6))
    found = pyrovae.disentanglement(noise, GRID, num_permutations=10)
    limit = stats.t.isf(0.0005, 9) * math.sqrt(1 + 1 / 10)  # exchangeable with its shuffles: fails by chance in 0.7%
    assert ((found["value"] - found["chance"]).abs() < limit * found["chance_sd"]).all()
    assert (found.loc[["mig", "sap", "dci_disentanglement", "dci_completeness"], "value"] < 0.05).all()


def test_scores_do_not_change_under_permutation_scaling_and_mirroring():
    generator = np.random.default_rng(1)
    code = GRID @ generator.normal(size=(3, 4)) + generator.normal(size=(len(GRID), 4))
    one = pyrovae.disentanglement(code, GRID, num_permutations=0)["value"]
    other = pyrovae.disentanglement((code * [2.0, -0.5, 30.0, 1.0])[:, [3, 1, 0, 2]], GRID, num_permutations=0)["value"]
    forests = [name for name in METRICS if name.startswith("dci")]
    np.testing.assert_allclose(one.drop(forests), other.drop(forests), atol=0.02)  # a mirrored bin shares an edge
    np.testing.assert_allclose(one[forests], other[forests], atol=0.05)  # trees break ties at random
    assert (one[["mig", "dci_disentanglement"]] < 0.6).all()  # a rotation is not disentangled


def test_perfect_codes_of_many_levels_and_uneven_steps():
    grid = np.array(list(itertools.product(range(3), range(32), range(0, 40, 3))))
    grid[:, 0] = np.array([0, 1, 10])[grid[:, 0]]
    found = pyrovae.disentanglement(-2.0 * grid, grid, num_permutations=0)["value"]
    np.testing.assert_allclose(found[["mig", "sap", "factor_vae", "modularity"]], 1, atol=1e-6)


def test_a_factor_held_twice_is_not_complete_and_a_latent_of_two_not_modular():
    twice = np.column_stack([GRID, GRID])
    found = pyrovae.disentanglement(twice, GRID, num_permutations=0)["value"]
    assert found["mig"] == pytest.approx(0, abs=1e-9)
    assert found["sap"] == pytest.approx(0, abs=1e-9)
    assert found["dci_completeness"] < 0.8
    assert found["dci_disentanglement"] == pytest.approx(1, abs=0.01)
    assert found["modularity"] == pytest.approx(1)
    mixed = np.column_stack([GRID[:, 0] * 5 + GRID[:, 2], GRID[:, 1]])
    assert pyrovae.disentanglement(mixed, GRID, num_permutations=0)["value"]["modularity"] < 0.9


@pytest.mark.parametrize(
    ("codes", "factors", "sentence"),
    [
        (np.zeros((5, 2)), np.zeros((4, 2)), r"codes \[N, D\] and factors \[N, F\]"),
        (np.full((4, 2), np.nan), GRID[:4], "not finite"),
        (np.zeros((4, 2)), GRID[:4] + 0.5, "whole numbers"),
        (np.zeros((4, 2)), np.zeros((4, 2)), "one level only"),
    ],
)
def test_bad_codes_and_factors(codes, factors, sentence):
    with pytest.raises(ValueError, match=sentence):
        pyrovae.disentanglement(codes, factors)


def test_labels_are_found_in_codes_that_hold_them():
    labels = np.repeat(["a", "b", "c"], 60)
    generator = np.random.default_rng(0)
    apart = np.repeat(np.eye(3), 60, axis=0) * 10 + generator.normal(size=(180, 3))
    found = pyrovae.label_scores(apart, labels, num_resamples=20)["value"]
    np.testing.assert_allclose(found.drop("majority"), 1, atol=0.02)
    assert found["majority"] == pytest.approx(1 / 3)
    noise = pyrovae.label_scores(generator.normal(size=(180, 3)), labels, num_resamples=20)
    assert abs(noise.loc["cluster_ari", "value"]) < 0.05
    assert abs(noise.loc["probe_accuracy", "value"] - 1 / 3) < SIGMAS * noise.loc["probe_accuracy", "se"]
    assert noise.loc["probe_accuracy", "se"] == pytest.approx(math.sqrt(2 / 9 / 180), rel=0.5)
    with pytest.raises(ValueError, match="at least 2 labels"):
        pyrovae.label_scores(apart, np.arange(180))


def test_sprites_are_all_different_and_their_factors_follow_them():
    sprites = data.Sprites(size=16, scales=2, orientations=3, positions=4)
    x = sprites.batch(slice(0, len(sprites)))[0]
    assert len(torch.unique(x, dim=0)) == len(sprites) == 3 * 2 * 3 * 4 * 4
    assert x.min() == 0
    assert x.max() == 1
    pictures = x.reshape(-1, 16, 16)
    weight = pictures / pictures.sum((1, 2), keepdim=True)
    axis = torch.arange(16.0)
    places = {"x": (weight.sum(1) * axis).sum(1), "y": (weight.sum(2) * axis).sum(1)}
    for name, place in places.items():  # the centre of mass follows the position
        level = sprites.factors[:, sprites.factor_names.index(name)]
        means = torch.stack([place[level == k].mean() for k in range(4)])
        assert (means.diff() > 2).all()
    sizes = torch.stack([pictures[sprites.factors[:, 1] == k].sum((1, 2)).mean() for k in range(2)])
    assert sizes[1] > 1.5 * sizes[0]
    train, _, test = sprites.splits(seed=0)
    row = test.batch(slice(0, 1))[0]
    same = (x == row).all(1).nonzero()[0, 0]
    assert torch.equal(test.factors[0], sprites.factors[same])
    assert len(train.factors) == len(train)
    with pytest.raises(ValueError, match="shapes must be some of"):
        data.Sprites(shapes=["star"])
    with pytest.raises(ValueError, match="factors must be"):
        data.Data(torch.zeros(3, 2), factors=torch.zeros(2, 1))


def test_dsprites_are_read_as_they_are_published(tmp_path):
    generator = np.random.default_rng(0)
    classes = generator.integers(3, size=(50, 6))
    classes[:, 0] = 0
    pictures = generator.integers(2, size=(50, 64, 64)).astype(np.uint8)
    file = tmp_path / "dsprites.npz"
    np.savez_compressed(file, imgs=pictures, latents_classes=classes, metadata=np.array({"a": 1}, dtype=object))
    found = data.DSprites(path=str(file))
    assert found.image_shape == (1, 64, 64)
    assert torch.equal(found.factors, torch.from_numpy(classes[:, 1:]))
    assert found.batch(slice(0, 2))[0].dtype == torch.float32
    some = data.DSprites(path=str(file), num_data=7, seed=1)
    assert len(some) == len(some.factors) == 7
    with pytest.raises(ValueError, match="num_data is 60"):
        data.DSprites(path=str(file), num_data=60)
    with pytest.raises(ValueError, match="there is no file"):
        data.DSprites(path=str(tmp_path / "other.npz"))
    np.savez(tmp_path / "wrong.npz", imgs=pictures)
    with pytest.raises(ValueError, match="does not hold imgs and latents_classes"):
        data.DSprites(path=str(tmp_path / "wrong.npz"))


def test_draws_of_the_right_model_are_as_good_as_data(oracle):
    x = pyrovae.simulate(oracle, torch.zeros(1, 4), num_simulations=600, **QUIET).data
    table = pyrovae.sample_quality(oracle, x, **QUIET)  # the seed that x was made with: its draws are others
    for score in ("precision", "recall", "density", "coverage", "frechet"):
        row = table.loc[score]
        assert abs(row["model"] - row["data"]) < SIGMAS * math.hypot(row["model_se"], row["data_se"]), score
    assert abs(table.loc["density", "data"] - 1) < SIGMAS * table.loc["density", "data_se"]
    other = seeded(lambda: models.LinearGaussian(2, 4)).requires_grad_(False).double()
    with torch.no_grad():
        other.bias += 3.0
    wrong_model = pyrovae.sample_quality(other, x, **QUIET)
    assert wrong_model.loc["precision", "model"] < 0.9 * table.loc["precision", "model"]
    assert wrong_model.loc["coverage", "model"] < 0.9 * table.loc["coverage", "model"]
    assert wrong_model.loc["frechet", "model"] > 20
    assert wrong_model.loc["frechet", "model"] == pytest.approx(36, rel=0.3)  # 4 means 3 apart, and covariances
    with pytest.raises(ValueError, match="at least 20 data"):
        pyrovae.sample_quality(oracle, x.subset(slice(0, 10)), **QUIET)
    with pytest.raises(ValueError, match="features must be finite numbers"):
        pyrovae.sample_quality(oracle, x, features=lambda x: x[:, 0], **QUIET)


def test_errors_of_quality_are_those_of_repeats(oracle):
    tables = []
    for seed in range(40):
        x = pyrovae.simulate(oracle, torch.zeros(1, 4), num_simulations=200, seed=seed, **QUIET).data
        tables.append(pyrovae.sample_quality(oracle, x, seed=seed, **QUIET))
    for score in ("precision", "recall", "density", "coverage", "frechet"):
        spread = np.std([t.loc[score, "model"] for t in tables], ddof=1)
        stated = np.mean([t.loc[score, "model_se"] for t in tables])
        assert 0.6 < stated / spread < 1.8, score  # the spread of 40 is known to 11%
    assert abs(np.mean([t.loc["density", "model"] - t.loc["density", "data"] for t in tables])) < 0.05


def test_features_of_ones_own(splits):
    model, _ = seeded(digits_vae)
    table = pyrovae.sample_quality(model, splits.test, features=lambda x: x.reshape(-1, 8, 8).mean(1), **QUIET)
    assert table.loc["coverage", "model"] < table.loc["coverage", "data"]  # an untrained model


def test_figures_of_the_latent_space(splits):
    model, guide = seeded(digits_vae)
    some = splits.test.subset(range(60))
    options = {"a": (model, guide), "b": (model, seeded(lambda: guides.Flow(nn.MLP(64, 8), 4)))}
    used = {name: pyrovae.usage(*pair, some, **QUIET) for name, pair in options.items()}
    figure = plots.usage(used)
    assert figure.axes[0].get_ylabel().startswith("rate")
    parts = {name: pyrovae.aggregate(*pair, some, **QUIET) for name, pair in options.items()}
    assert plots.aggregate(parts).axes[0].get_xlabel() == "nats per observation"
    codes = {name: pyrovae.codes(*pair, some, **QUIET) for name, pair in options.items()}
    drawn = plots.codes(codes, some.labels)
    assert [axis.get_title() for axis in drawn.axes] == ["a", "b"]
    assert plots.codes({"a": codes["a"][:, :1]}).axes[0].get_title() == "a"
    named = plots.codes(codes, pd.Categorical.from_codes([-1, 0, 1] * 20, ["fox", "wolf"]))
    assert [text.get_text() for text in named.legends[0].get_texts()] == ["unknown", "fox", "wolf"]
    assert len(plots.codes({"a": codes["a"]}, range(60)).legends) == 0
