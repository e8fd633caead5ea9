"""Every likelihood and prior scores what it draws: densities by independent formulas, draws by their probabilities.

Draws are tested by Kolmogorov and Smirnov's statistic of their probability integral transforms, which a right
distribution fails with a probability of 1e-5 a case. A draw is a number of its precision: its transform is drawn from
the interval that the numbers next to it bound, and that of a discrete value from the interval of the value.
"""

import math

import mpmath
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from conftest import SIGMAS, seeded
from scipy import integrate, stats

from pyrovae import guides, likelihoods, nn, priors
from pyrovae.distributions import precise
from pyrovae.likelihoods.bernoulli import Continuous
from pyrovae.nn.network import raw_positive
from pyrovae.priors.sphere import PowerSpherical

pytestmark = pytest.mark.usefixtures("apart")
FAILURE = 1e-5
NUM = 20_000
DTYPES = {"single": torch.float32, "double": torch.float64}
dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def filled(likelihood, **values):
    """A likelihood whose positive parameters have these values."""
    with torch.no_grad():
        for name, value in values.items():
            getattr(likelihood, f"raw_{name}").fill_(raw_positive(value))
    return likelihood


def column(likelihood, features, dtype):
    """The distribution of one column, batch shape ``[1]``."""
    with torch.no_grad():
        return likelihood.to(dtype).columns(torch.tensor(features, dtype=dtype))


def number(tensor):
    return float(tensor.detach().double().reshape(-1)[0])


class CutExponential:
    """The continuous Bernoulli distribution as an exponential one on [0, 1], turned round where it rises."""

    def __init__(self, logit):
        self.rises, self.size = logit > 0, abs(logit)
        self.distance = stats.truncexpon(b=self.size, scale=1 / self.size) if self.size > 1e-6 else stats.uniform()

    def logpdf(self, x):
        return self.distance.logpdf(1 - x if self.rises else x)

    def cdf(self, x):
        return self.distance.sf(1 - x) if self.rises else self.distance.cdf(x)

    def ppf(self, u):
        return 1 - self.distance.isf(u) if self.rises else self.distance.ppf(u)

    def stats(self):
        mean, variance = self.distance.stats()
        return (1 - mean if self.rises else mean), variance


def normal(d):
    return stats.norm(number(d.loc), number(d.scale))


def log_normal(d):
    return stats.lognorm(s=number(d.base_dist.scale), scale=math.exp(number(d.base_dist.loc)))


def student(d):
    df = number(d.df)
    loc, scale = number(d.loc), number(d.scale)
    return stats.t(df, loc, scale) if df < 1e9 else stats.norm(loc, scale)


def beta(d):
    return stats.beta(number(d.concentration1), number(d.concentration0))


def poisson(d):
    return stats.poisson(number(d.rate))


def negative_binomial(d):
    return stats.nbinom(number(d.total_count), 1 / (1 + math.exp(number(d.logits))))


CONTINUOUS = {
    **{f"Gaussian at {loc:g}": (
        lambda: filled(likelihoods.Gaussian(), scale=0.02), [loc], normal) for loc in (0.0, -3e4)},
    **{f"HeteroscedasticGaussian, {raw:g}": (
        likelihoods.HeteroscedasticGaussian, [1.0, raw], normal) for raw in (-50.0, 0.0, 1e4)},
    **{f"StudentT of df {df:g}": (
        lambda df=df: likelihoods.StudentT(df=df), [2.0], student) for df in (0.5, 4.0, 99.0, 101.0, 1e6, 1e12)},
    **{f"LogNormal at {loc:g}": (
        lambda: filled(likelihoods.LogNormal(), scale=1.0), [loc], log_normal) for loc in (-78.0, 0.0, 78.0)},
    "LogNormal, wide": (lambda: filled(likelihoods.LogNormal(), scale=8.0), [0.0], log_normal),
    **{f"Beta of {c:g} at {feature:g}": (
        lambda c=c: filled(likelihoods.Beta(), concentration=c), [feature], beta)
        for c, feature in ((2.1, 0.0), (2.1, 5.0), (2.1, -5.0), (2.1, 30.0), (2.1, -30.0), (2.1, 80.0), (1e6, 3.0),
                           (1e-3, 0.0))},
    **{f"ContinuousBernoulli of {logit:g}": (
        likelihoods.ContinuousBernoulli, [logit], lambda d: CutExponential(number(d.logits)))
        for logit in (0.0, 1e-7, 0.05, -0.05, 0.2, 5.0, 16.0, -16.0, 37.0, 100.0, -100.0, 1e4, -1e4)},
}  # fmt: skip
COUNTS = {
    **{f"Poisson of {rate:g}": (likelihoods.Poisson, [rate], poisson) for rate in (-30.0, 0.0, 1e3, 1e7)},
    **{f"NegativeBinomial of {mean:g}, {r:g}": (
        lambda r=r: filled(likelihoods.NegativeBinomial(), dispersion=r), [mean], negative_binomial)
        for mean, r in ((-30.0, 1.0), (5.0, 0.01), (5.0, 1e6), (1e3, 1.0), (1e6, 0.1), (1e6, 1e6))},
}  # fmt: skip


def transforms(reference, drawn):
    """Probability integral transforms of draws, each from the interval between the numbers next to it."""
    number = np.finfo(drawn.dtype)
    below, above = (np.nextafter(drawn, side, dtype=drawn.dtype).astype(float) for side in (-np.inf, np.inf))
    low, high = reference.cdf(0.5 * (below + drawn)), reference.cdf(0.5 * (drawn + above))
    low = np.where(np.abs(drawn) <= number.tiny, reference.cdf(-float(number.tiny)), low)
    high = np.where(drawn == 1 - number.eps / 2, reference.cdf(1.0), high)
    return low + np.random.default_rng(0).random(len(drawn)) * (high - low)


def uniform(values):
    return stats.kstest(values, "uniform").pvalue > FAILURE


@dtypes
@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_columns_score_as_the_formula_says_and_draw_what_they_score(name, dtype):
    make, features, reference = CONTINUOUS[name]
    density = column(make(), features, dtype)
    exact = reference(density)
    drawn = seeded(lambda: density.sample((NUM,)))[:, 0]
    assert drawn.dtype == dtype
    assert density.support.check(drawn).all()
    assert uniform(transforms(exact, drawn.numpy()))
    found = density.log_prob(drawn[:500, None])[:, 0]
    assert found.dtype == dtype
    expected = torch.from_numpy(exact.logpdf(drawn[:500].double().numpy()))
    torch.testing.assert_close(found.double(), expected, **tolerance(dtype))
    mean, variance = (float(m) for m in exact.stats())
    if not name.startswith("ContinuousBernoulli") and "df 1e+12" not in name:
        assert number(density.entropy()) == pytest.approx(float(exact.entropy()), rel=2e-6, abs=1e-5)
    if torch.finfo(dtype).tiny < variance < torch.finfo(dtype).max:
        torch.testing.assert_close(number(density.mean), mean, **tolerance(dtype))
        torch.testing.assert_close(number(density.variance), variance, rtol=1e-5, atol=0)


def tolerance(dtype):
    """Of a density: the rounding of the result, of a few operations, and of the formula in double precision."""
    return {"rtol": 2e-6, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-8, "atol": 1e-7}


@dtypes
@pytest.mark.parametrize("name", COUNTS)
def test_counts_score_as_the_formula_says_and_draw_what_they_score(name, dtype):
    make, features, reference = COUNTS[name]
    density = column(make(), features, dtype)
    exact = reference(density)
    drawn = seeded(lambda: density.sample((NUM,)))[:, 0]
    counts = drawn.double().numpy()
    low, high = exact.cdf(counts - 1), exact.cdf(counts)
    assert uniform(low + np.random.default_rng(0).random(NUM) * (high - low))
    found = density.log_prob(drawn[:500, None])[:, 0]
    expected = torch.from_numpy(exact.logpmf(counts[:500]))
    torch.testing.assert_close(found.double(), expected, **tolerance(dtype))
    assert number(density.mean) == pytest.approx(exact.mean(), rel=1e-5)
    assert number(density.variance) == pytest.approx(exact.var(), rel=1e-4)
    mode = density.mode.double().numpy()
    assert (exact.logpmf(mode) >= np.maximum(exact.logpmf(mode - 1), exact.logpmf(mode + 1)) - 1e-6).all()


def grid(size):
    return torch.arange(size).double() / (size - 1)


def zero_inflated(gate, rate):
    return lambda: likelihoods.ZeroInflated(likelihoods.Poisson()), [gate, rate], torch.arange(40.0)


FINITE = {
    **{f"Bernoulli of {logit:g}": (likelihoods.Bernoulli, [logit], torch.arange(2.0)) for logit in (-40.0, 0.3, 5.0)},
    **{f"ZeroInflated, {gate:g} and {rate:g}": zero_inflated(gate, rate)
       for gate, rate in ((-1e6, 1.0), (-30.0, -30.0), (0.5, 2.0), (16.0, 5.0), (1e6, 3.0))},
    **{f"Categorical of {top:g}": (
        lambda: likelihoods.Categorical(4), [top, -top, 0.0, 1.0], torch.arange(4.0)) for top in (0.0, 5.0, 200.0)},
    **{f"Ordinal at {feature:g}": (
        lambda: likelihoods.Ordinal(6), [feature], torch.arange(6.0)) for feature in (-60.0, -3.0, 0.0, 60.0)},
    **{f"DiscretisedLogistic at {loc:g}, {scale:g}": (
        likelihoods.DiscretisedLogistic, [loc, scale], grid(256))
        for loc, scale in ((0.0, 0.0), (40.0, -40.0), (-40.0, 2.0), (0.01, -40.0), (1.0, -4.5), (0.0, 1e4))},
    "DiscretisedLogistic, a mixture": (
        lambda: likelihoods.DiscretisedLogistic(num_components=2), [-2.0, 3.0, -3.0, -5.0, 1.0, 0.0], grid(256)),
}  # fmt: skip


@dtypes
@pytest.mark.parametrize("name", FINITE)
def test_probabilities_of_all_values_are_those_of_draws_and_give_the_moments(name, dtype):
    make, features, values = FINITE[name]
    density, values = column(make(), features, dtype), values.to(dtype)
    found = density.log_prob(values[:, None])[:, 0]
    assert found.dtype == dtype
    probs = found.double().exp()
    assert float(probs.sum()) == pytest.approx(1, abs=1e-5 if dtype == torch.float32 else 1e-9)
    drawn = seeded(lambda: density.sample((NUM,)))[:, 0].to(dtype)
    place = (drawn[:, None] - values).abs().argmin(1)
    torch.testing.assert_close(values[place], drawn)
    above = (probs.cumsum(0) / probs.sum())[place].numpy()
    assert uniform(above - np.random.default_rng(0).random(NUM) * (probs / probs.sum())[place].numpy())
    if isinstance(density, dist.Bernoulli | dist.Categorical):
        entropy = -float(torch.special.xlogy(probs, probs).sum())
        assert number(density.entropy()) == pytest.approx(entropy, abs=2e-5 if dtype == torch.float32 else 1e-9)
        assert float(density.mode) == float(values[probs.argmax()])
        assert density.enumerate_support().flatten().tolist() == values.tolist()
    if "Categorical" in name:
        return
    mean = float((probs * values.double()).sum())
    variance = float((probs * (values.double() - mean).square()).sum())
    assert number(density.mean) == pytest.approx(mean, rel=1e-5, abs=1e-9)
    assert number(density.variance) == pytest.approx(variance, rel=2e-4, abs=1e-9)


def test_zero_inflated_counts_of_a_large_rate_have_their_variance():
    """In the difference of the second moment and the squared mean it would be lost."""
    density = column(likelihoods.ZeroInflated(likelihoods.Poisson()), [-15.0, 1e6], torch.float32)
    share = 1 / (1 + math.exp(15))
    assert number(density.variance) == pytest.approx((1 - share) * (1e6 + share * 1e12), rel=1e-5)


@dtypes
def test_compositions_score_as_the_formula_says_and_draw_what_they_score(dtype):
    """A thousand columns and a total of ten million; draws column by column: 1,000 at 7 deviations, below 1e-6."""
    logits = seeded(lambda: 3 * torch.randn(1000, dtype=torch.float64)).to(dtype)
    density = likelihoods.Multinomial(total_count=10_000_000)(logits)
    rng, probs = np.random.default_rng(0), logits.double().softmax(-1).numpy()
    counts = rng.multinomial(10_000_000, probs).astype(float)
    expected = stats.multinomial(10_000_000, probs / probs.sum()).logpmf(counts)
    found = density.log_prob(torch.from_numpy(counts).to(dtype))
    assert found.dtype == dtype
    assert number(found) == pytest.approx(float(expected), abs=2e-3 if dtype == torch.float32 else 1e-5)
    drawn = seeded(lambda: likelihoods.Multinomial(total_count=100_000)(logits).sample((20,))).double()
    assert bool((drawn.sum(-1) == 100_000).all())
    off = (drawn.sum(0).numpy() - 2e6 * probs) / np.sqrt(2e6 * probs + 1)
    assert np.abs(off).max() < 7


PRECISE = {
    "Poisson": (lambda t: precise.Poisson(t(1e7)), 1e7),
    "NegativeBinomial": (lambda t: precise.NegativeBinomial(t(1e7), logits=t(0.25)), 12_840_000.0),
    "StudentT of df 1e6": (lambda t: precise.StudentT(t(1e6), t(0.0), t(1.0)), 1.5),
    "StudentT of df 1e14": (lambda t: precise.StudentT(t(1e14), t(0.0), t(1.0)), 1.5),
    "StudentT of df 100": (lambda t: precise.StudentT(t(100.0), t(0.0), t(1.0)), -3.5),
    "StudentT of df 0.1": (lambda t: precise.StudentT(t(0.1), t(0.0), t(1.0)), 1e10),
    "Beta": (lambda t: precise.Beta(t(2e6), t(5e6)), 0.28571),
    "Beta near an end": (lambda t: precise.Beta(t(2.0), t(1e-13)), 1 - 2.0**-20),
}


def exact_log_prob(name, parameters, x):
    """The log density in 60 digits."""
    p, x = [mpmath.mpf(q) for q in parameters], mpmath.mpf(x)
    gamma = mpmath.loggamma
    if name.startswith("Poisson"):
        return x * mpmath.log(p[0]) - p[0] - gamma(x + 1)
    if name.startswith("Negative"):
        orders = gamma(p[0] + x) - gamma(p[0]) - gamma(x + 1)
        return orders - p[0] * mpmath.log1p(mpmath.exp(p[1])) - x * mpmath.log1p(mpmath.exp(-p[1]))
    if name.startswith("Student"):
        constant = gamma((p[0] + 1) / 2) - gamma(p[0] / 2) - mpmath.log(mpmath.pi * p[0]) / 2
        return constant - (p[0] + 1) / 2 * mpmath.log1p(x**2 / p[0])
    constant = gamma(p[0] + p[1]) - gamma(p[0]) - gamma(p[1])
    return constant + (p[0] - 1) * mpmath.log(x) + (p[1] - 1) * mpmath.log1p(-x)


@dtypes
@pytest.mark.parametrize("name", PRECISE)
def test_what_cancels_is_right_to_rounding_and_so_is_its_gradient(name, dtype):
    make, x = PRECISE[name]
    leaves = []

    def leaf(value):
        leaves.append(torch.tensor(value, dtype=dtype, requires_grad=True))
        return leaves[-1]

    value = torch.tensor(x, dtype=dtype)
    found = make(leaf).log_prob(value)
    gradients = torch.autograd.grad(found, leaves)
    assert found.dtype == dtype
    at = [float(p.detach()) for p in leaves]
    close = {"rel": 2e-7 if dtype == torch.float32 else 1e-8, "abs": 1e-8}
    with mpmath.workdps(60):
        assert number(found) == pytest.approx(float(exact_log_prob(name, at, float(value))), **close)
        for i in range(1 if name.startswith("Student") else len(at)):  # loc and scale of the others are plain
            slope = mpmath.diff(lambda p, i=i: exact_log_prob(name, [*at[:i], p, *at[i + 1 :]], float(value)), at[i])
            assert number(gradients[i]) == pytest.approx(float(slope), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("df", [0.5, 3.0, 99.0, 101.0, 1e5])
def test_the_entropy_of_students_t_is_scipys(df):
    found = precise.StudentT(torch.tensor(df), torch.tensor(1.0), torch.tensor(2.0)).entropy()
    assert found.dtype == torch.float32
    assert number(found) == pytest.approx(float(stats.t(df, 1, 2).entropy()), rel=1e-6)


@pytest.mark.parametrize("ratio", [1.0, 1e3, 1e4])
def test_a_low_rank_gaussian_is_right_however_large_its_factors(ratio):
    """Root mean square error over 200 draws of a Gaussian in 20 dimensions, of that in double from the same numbers."""

    def run():
        factor, diagonal = ratio * torch.randn(200, 20, 2), torch.rand(200, 20) + 0.5
        density = precise.LowRankMultivariateNormal(torch.zeros(200, 20), factor, diagonal)
        z = density.sample()
        covariance = factor.double() @ factor.double().mT + diagonal.double().diag_embed()
        expected = dist.MultivariateNormal(torch.zeros(20).double(), covariance)
        error = (density.log_prob(z) - expected.log_prob(z.double())).square().mean().sqrt()
        assert float(error) < 1e-4
        torch.testing.assert_close(density.entropy(), expected.entropy().float(), rtol=1e-6, atol=0)
        many = density.expand((3, 200))
        torch.testing.assert_close(many.log_prob(z)[2], density.log_prob(z))

    seeded(run)


EXTREMES = [0.0, 1e-9, -9e-5, 1.1e-4, 1e-3, -0.0999, 0.1001, 2.0, -10.0, 17.0, 50.0, -100.0, 1e3]


@dtypes
@pytest.mark.parametrize("logit", EXTREMES)
def test_a_continuous_bernoullis_functions_are_right_in_sixty_digits(logit, dtype):
    logits = torch.tensor(logit, dtype=dtype)
    density, size = Continuous(logits=logits), mpmath.mpf(float(logits))
    close = {"rel": 2e-7, "abs": 1e-38} if dtype == torch.float32 else {"rel": 1e-11, "abs": 1e-100}
    with mpmath.workdps(1000):
        whole = mpmath.expm1(size) / size if size else mpmath.mpf(1)
        mean = 1 / (1 - mpmath.exp(-size)) - 1 / size if size else mpmath.mpf(1) / 2
        variance = 1 / size**2 - 1 / (2 * mpmath.sinh(size / 2)) ** 2 if size else mpmath.mpf(1) / 12
        assert number(density.mean) == pytest.approx(float(mean), **close)
        assert number(density.variance) == pytest.approx(float(variance), **close)
        assert number(density.entropy()) == pytest.approx(float(mpmath.log(whole) - size * mean), rel=1e-6, abs=1e-7)
        for x in (0.0, 1e-6, 0.37, 0.9, 1.0):
            at = torch.tensor(x, dtype=dtype)
            exact = mpmath.mpf(float(at))
            log_prob = size * exact - mpmath.log(whole)
            below = mpmath.expm1(size * exact) / mpmath.expm1(size) if size else exact
            quantile = mpmath.log1p(exact * mpmath.expm1(size)) / size if size else exact
            assert number(density.log_prob(at)) == pytest.approx(float(log_prob), rel=1e-6, abs=2e-7)
            assert number(density.cdf(at)) == pytest.approx(float(below), **close)
            assert number(density.icdf(at)) == pytest.approx(float(quantile), rel=2e-7, abs=1e-11)


@pytest.mark.parametrize("logit", [*EXTREMES, -1e4])
@pytest.mark.parametrize("function", ["mean", "variance", "entropy", "log_prob", "cdf", "icdf", "rsample"])
def test_a_continuous_bernoullis_gradients_are_finite_and_those_of_differences(logit, function):
    def value(logits):
        density = Continuous(logits=logits)
        found = getattr(density, function)
        arguments = {"log_prob": [torch.tensor(0.3)], "cdf": [torch.tensor(0.3)], "icdf": [torch.tensor(0.7)]}
        if function == "rsample":
            return seeded(found)
        return found(*arguments.get(function, [])) if callable(found) else found

    at = torch.tensor(logit, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(value(at), at)
    step = 1e-3 * max(1.0, abs(logit) / 100)
    with torch.no_grad():
        expected = (value(at + step) - value(at - step)) / (2 * step)
    torch.testing.assert_close(slope, expected, rtol=1e-5, atol=1e-7)
    single = torch.tensor(logit, requires_grad=True)
    assert torch.autograd.grad(value(single), single)[0].isfinite()


# Priors, and the guides that a VampPrior averages


def apart(prior):
    """A mixture whose components lie apart, and are of unlike widths."""
    with torch.no_grad():
        prior.loc.copy_(torch.tensor([[-30.0], [0.0], [2.0]]).expand(prior.loc.shape))
        prior.raw_scale.copy_(torch.tensor([[-4.0], [-8.0], [2.0]]).expand(prior.loc.shape))
    return prior


def averaged(family, dim, **options):
    """The posteriors of a bent guide at three data."""
    prior, guide = priors.VampPrior(dim, num_components=3), bent(family(nn.MLP(3, 8), dim, **options))
    prior.attach(guide, torch.randn(20, 3))
    return torch.nn.ModuleList([prior, guide]), prior


def bent(module, size=0.1):
    with torch.no_grad():
        for p in module.parameters():
            p.add_(size * torch.randn_like(p))
    return module


LINE = {
    "StandardNormal": (lambda: priors.StandardNormal(1), [0.0], 1.0),
    "Laplace": (lambda: priors.Laplace(1, scale=3.0), [0.0], 1.0),
    "StudentT": (lambda: priors.StudentT(1, df=1.5, scale=0.01), [0.0], 0.01),
    "SpikeAndSlab": (lambda: priors.SpikeAndSlab(1, spike_scale=1e-4, slab_scale=20.0), [0.0], 0.1),
    **{f"Horseshoe of {scale:g}": (
        lambda scale=scale: priors.Horseshoe(1, scale=scale), [0.0], scale) for scale in (1e-3, 1.0, 1e3)},
    "MixtureOfGaussians": (
        lambda: apart(priors.MixtureOfGaussians(1, num_components=3)), [-30.0, 0.0, 2.0], 1.0),
    "Hierarchical": (
        lambda: priors.Hierarchical(
            lambda s: dist.Normal(torch.zeros_like(s), s).to_event(1), {"s": dist.Delta(torch.ones(1)).to_event(1)}
        ), [0.0], 1.0),
}  # fmt: skip


@dtypes
@pytest.mark.parametrize("name", LINE)
def test_a_prior_of_a_number_draws_what_it_scores_and_integrates_to_one(name, dtype):
    make, centres, scale = LINE[name]
    prior = make()
    drawn = seeded(lambda: prior.to(dtype)().sample((NUM,)))[:, 0].detach()
    assert drawn.dtype == dtype
    found = prior.to(dtype)().log_prob(drawn[:, None])
    density = prior.double()()
    torch.testing.assert_close(found.double(), density.log_prob(drawn[:, None].double()), **tolerance(dtype))
    away = scale * np.geomspace(1e-9, 1e9, 40_000)
    points = np.unique(np.concatenate([centre + sign * away for centre in centres for sign in (-1, 1)]))
    heights = density.log_prob(torch.from_numpy(points)[:, None]).exp().detach().numpy()
    below = integrate.cumulative_trapezoid(heights, points, initial=0.0)
    assert below[-1] == pytest.approx(1, abs=1e-4)
    assert uniform(np.interp(drawn.double().numpy(), points, below))


def conditional():
    prior = bent(priors.ConditionalNormal(nn.MLP(2, 4, hidden=(8,))))
    return prior, lambda: prior(torch.ones(2).to(next(prior.parameters())))


def own(prior):
    return prior, prior


PLANE = {
    "MixtureOfGaussians": lambda: own(bent(priors.MixtureOfGaussians(2, num_components=3), 0.5)),
    "NormalizingFlow": lambda: own(bent(priors.NormalizingFlow(2, hidden=(16,)))),
    "GaussianProcess": lambda: own(priors.GaussianProcess(2, length=5.0)),
    "SpikeAndSlab": lambda: own(priors.SpikeAndSlab(2, spike_scale=0.3)),
    "ConditionalNormal": conditional,
    **{f"VampPrior of {family.__name__}": lambda family=family, options=options: averaged(family, 2, **options)
       for family, options in (
           (guides.MeanField, {}), (guides.FullRank, {}), (guides.LowRank, {}), (guides.Mixture, {}),
           (guides.Flow, {"hidden": (8,)}), (guides.SplineCoupling, {"hidden": (8,)}))},
}  # fmt: skip
SIDE = torch.linspace(-12, 12, 481, dtype=torch.float64)


@dtypes
@pytest.mark.parametrize("name", PLANE)
def test_a_prior_of_two_numbers_draws_what_it_scores_and_has_its_moments(name, dtype):
    """By the marginals of a grid's densities, each in its own precision; two comparisons a case."""
    module, make = seeded(PLANE[name])
    with torch.no_grad():
        module.to(dtype)
        drawn = seeded(lambda: make().expand([NUM]).sample())
        points = torch.cartesian_prod(SIDE, SIDE)
        found = make().expand([NUM]).log_prob(drawn.clone())
        module.double()
        heights = torch.cat([make().expand([len(p)]).log_prob(p).exp() for p in points.split(20_000)])
        expected = make().expand([NUM]).log_prob(drawn.double())
    assert drawn.dtype == dtype
    error = (found.double() - expected).square().mean().sqrt()  # steep splines magnify the rounding of single draws
    assert float(error) < (1e-3 if dtype == torch.float32 else 1e-8)
    heights = heights.unflatten(0, (len(SIDE), len(SIDE))).numpy()
    side = SIDE.numpy()
    for d in range(2):
        marginal = np.trapezoid(heights, side, axis=1 - d)
        below = integrate.cumulative_trapezoid(marginal, side, initial=0.0)
        assert below[-1] == pytest.approx(1, abs=2e-3)
        assert uniform(np.interp(drawn[:, d].double().numpy(), side, below))
        try:
            mean, variance = make().mean[d], make().variance[d]
        except NotImplementedError:  # a flow's have no closed form
            continue
        assert number(mean) == pytest.approx(np.trapezoid(side * marginal, side), abs=2e-3)
        assert number(variance) == pytest.approx(np.trapezoid((side - number(mean)) ** 2 * marginal, side), rel=5e-3)


@dtypes
@pytest.mark.parametrize("size", [2, 3, 20])
@pytest.mark.parametrize("concentration", [1e-4, 1.0, 300.0, 1e7])
def test_a_power_spherical_draws_what_it_scores(concentration, size, dtype):
    """Heights have a beta distribution, whatever the pole; mean and variance by 20 coordinates at 4 standard errors."""

    def run():
        loc = torch.nn.functional.normalize(torch.randn(size, dtype=torch.float64), dim=-1)
        density = PowerSpherical(loc.to(dtype), torch.tensor(concentration, dtype=dtype))
        z = density.sample((NUM,))
        assert z.dtype == dtype
        exact, pole = (torch.nn.functional.normalize(v.double(), dim=-1) for v in (z, density.loc))
        half = 0.5 * (size - 1)
        depth = 0.25 * (exact - pole).square().sum(-1).numpy()
        assert uniform(stats.beta(half, half + concentration).cdf(np.clip(depth, 0, 1)))
        area = math.log(2) + 0.5 * size * math.log(math.pi) - math.lgamma(0.5 * size)
        expected = concentration * np.log1p(-np.minimum(depth, 0.999)) + _log_ratio(half, concentration) - area
        close = {"rtol": 1e-5, "atol": 2e-3} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-6}
        near = torch.from_numpy(depth < 0.999)
        torch.testing.assert_close(density.log_prob(z)[near].double(), torch.from_numpy(expected)[near], **close)
        error = z.double().std(0) / NUM**0.5
        assert ((z.double().mean(0) - density.mean.double()).abs() < SIGMAS * error + 1e-6).all()
        spread = (z.double() - density.mean.double()).square()
        error = spread.std(0) / NUM**0.5
        assert ((spread.mean(0) - density.variance.double()).abs() < SIGMAS * error + 1e-12).all()

    seeded(run)


def _log_ratio(half, concentration):
    """Log of the normaliser beside the sphere's area: 1 / E[((1 + h) / 2)^k] of the uniform distribution's height h."""
    return float(mpmath.log(mpmath.beta(half, half)) - mpmath.log(mpmath.beta(half + mpmath.mpf(concentration), half)))


def test_a_power_spherical_next_to_the_first_axis_points_there():
    """A reflection between vectors that differ by rounding alone turns a draw by any angle."""
    loc = torch.tensor([[1 - 2.0**-24, 1e-9, 0.0], [1.0, 1e-6, 0.0], [1.0, 0.0, 0.0], [-1.0, 1e-7, 0.0]])
    density = PowerSpherical(loc, torch.full((4,), 1e6))
    z = seeded(lambda: density.sample((1000,)))
    assert float((z - loc).norm(dim=-1).max()) < 0.02  # standard deviation 0.0014 along each of two directions


def test_a_power_spherical_has_a_gradient_near_and_far():
    loc = torch.tensor([0.6, 0.8], requires_grad=True)
    concentration = torch.tensor(1e4, requires_grad=True)
    for z in (loc.detach(), -loc.detach(), torch.tensor([0.8, -0.6])):
        found = PowerSpherical(loc, concentration).log_prob(z)
        for gradient in torch.autograd.grad(found, [loc, concentration]):
            assert gradient.isfinite().all()


def test_codes_are_drawn_as_they_are_scored():
    """Pearson's statistic of 20,000 draws in 27 cells."""
    prior = seeded(lambda: bent(priors.Autoregressive(3, 3, hidden=(16,)), 0.3))
    every = torch.cartesian_prod(*[torch.arange(3.0)] * 3)
    with torch.no_grad():
        probs = prior().log_prob(every).double().exp().numpy()
        drawn = seeded(lambda: prior().sample((NUM,)))
    place = (drawn * torch.tensor([9.0, 3.0, 1.0])).sum(-1).long()
    counts = np.bincount(place.numpy(), minlength=27)
    assert probs.min() * NUM > 5
    assert stats.chisquare(counts, probs / probs.sum() * NUM).pvalue > FAILURE


@pytest.mark.parametrize(
    ("kind", "value"),
    [(precise.Poisson, 2.0), (precise.NegativeBinomial, 2.0), (precise.Beta, 0.3), (precise.StudentT, -0.3)],
)
def test_what_is_computed_in_double_keeps_its_class_for_more_data(kind, value):
    density = kind(*(torch.full((3,), 0.5) for _ in kind.parameters))
    many = density.expand((2, 3))
    assert type(many) is kind
    torch.testing.assert_close(many.log_prob(torch.full((2, 3), value))[1], density.log_prob(torch.full((3,), value)))
