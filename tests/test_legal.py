"""Programs that Pyro takes, and that say more than a density per observation: right answers, or one true sentence."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch.distributions import constraints

import pyrovae
from pyrovae import evaluate, fit, given, log_weights, objectives
from pyrovae.diagnostics.latents.rates import rates
from pyrovae.diagnostics.predictive.simulate import simulate

N = 50
QUIET = {"progress": False}
X = 1.5 * torch.randn(N, generator=torch.Generator().manual_seed(0))
LOG_P = dist.Normal(0.0, math.sqrt(2.0)).log_prob(X)  # of z ~ N(0, 1), x ~ N(z, 1)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def shift():
    """A parameter, for fits to have one; 0 is its best value."""
    return pyro.param("shift", lambda: torch.zeros(()))


def posterior(x):
    return dist.Normal(x / 2 + shift(), 0.5**0.5)


def exact(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", posterior(x))


def first_loss(p, q, objective=None, x=X):
    """The loss per observation of all data, at the first step; that of the exact posterior has no noise."""
    with pyro.get_param_store().scope():
        fitted = fit(p, q, x, objective=objective, steps=1, batch_size=len(x), lr=1e-9, **QUIET)
    return float(fitted.history["loss"][0])


def all_right(p, q, expected=LOG_P, x=X, tolerance=1e-4):
    """Log weights under the exact posterior are the evidence, with one particle and with many."""
    with pyro.get_param_store().scope():
        for particles in (1, 7):
            found = log_weights(p, q, x, num_particles=particles, batch_size=9, **QUIET)
            torch.testing.assert_close(found, expected.to(found).expand(particles, -1), rtol=0, atol=tolerance)


# Factors and what a guide observes


def factor_outside(x):
    pyro.factor("penalty", torch.tensor(-3.0))
    model(x)


def factor_inside(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("penalty", -0.1 * x.square())
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def factor_in_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", posterior(x))
        pyro.factor("penalty", -0.1 * x.square(), has_rsample=False)


def observing(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", posterior(x))
        pyro.sample("seen", dist.Normal(0.0, 1.0), obs=x, infer={"is_auxiliary": True})


SQUARES = float(X.square().mean())
SEEN = float(dist.Normal(0.0, 1.0).log_prob(X).mean())
BESIDE = {  # what the loss holds beside the bound
    "factor outside the plate": (factor_outside, exact, 3.0 / N),
    "factor inside the plate": (factor_inside, exact, 0.1 * SQUARES),
    "factor in the guide": (model, factor_in_guide, -0.1 * SQUARES),
    "a site that the guide observes": (model, observing, SEEN),
}


@pytest.mark.parametrize(
    "objective", [Trace_ELBO, lambda: objectives.IWAE(num_particles=4), lambda: objectives.BetaELBO(analytic=False)]
)
@pytest.mark.parametrize("name", BESIDE)
def test_what_programs_have_beside_their_densities_counts_in_training_alone(name, objective):
    p, q, beside = BESIDE[name]
    made = objective()
    if made.num_particles > 1 and "outside" in name:  # refused, see below
        made = objectives.IWAE(num_particles=1)
    assert first_loss(p, q, made) == pytest.approx(-float(LOG_P.mean()) + beside, rel=1e-4)
    if "factor" in name:
        with pytest.warns(UserWarning, match="pyro.factor 'penalty' counts in training"):
            all_right(p, q)
    else:
        all_right(p, q)


def test_a_factor_outside_the_plate_is_refused_where_data_stand_several_times():
    """Whether it is of the data, and so counts as often as they do, nobody knows."""
    with pytest.raises(
        (ValueError, pyrovae.training.FitError), match="'penalty' of the model is outside the data plate"
    ):
        first_loss(factor_outside, exact, objectives.IWAE(num_particles=4))


def test_the_bound_of_a_fit_holds_no_factor():
    fitted = fit(factor_inside, exact, X, steps=1, batch_size=N, lr=1e-9, **QUIET)
    assert fitted.history["bound"][0] == pytest.approx(float(LOG_P.mean()), rel=1e-4)


def test_a_model_that_observes_factors_alone_is_refused():
    def p(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("x", dist.Normal(z, 1.0).log_prob(x))

    with pytest.raises(ValueError, match=r"the model observes nothing.*a pyro.factor is no density"):
        evaluate(p, exact, X, **QUIET)


# Plates


@pytest.mark.parametrize("where", ["model", "guide", "both"])
def test_a_plate_without_a_size(where):
    def p(x):
        with pyro.plate("data") if where != "guide" else pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def q(x):
        with pyro.plate("data") if where != "model" else pyro.plate("data", len(x)):
            pyro.sample("z", posterior(x))

    all_right(p, q)
    assert first_loss(p, q) == pytest.approx(-float(LOG_P.mean()), rel=1e-4)
    assert pyrovae.codes(p, q, X, num_draws=3, **QUIET).shape == (N, 1)


def test_latents_beside_an_inner_plate_keep_their_shape():
    x = torch.randn(N, 3, generator=torch.Generator().manual_seed(1))
    shapes = set()

    def p(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            shapes.add((tuple(z.shape), len(x)))
            both = torch.cat([z, z], dim=1)  # as decoders with covariates do
            with pyro.plate("columns", 3, dim=-2):
                pyro.sample("x", dist.Normal(both[:, 0], 1.0), obs=x.T)

    def q(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.sum(1, keepdim=True) / 4, 0.5).to_event(1))

    covariance = torch.eye(3) + 1.0
    all_right(p, q, dist.MultivariateNormal(torch.zeros(3), covariance).log_prob(x), x)
    assert all(shape == (rows, 1) for shape, rows in shapes)


def test_a_scale_for_every_datum_weighs_training_alone():
    weights = torch.linspace(0.5, 2.0, N)

    def scaled(program):
        def run(x):
            with pyro.plate("data", len(x)) as i, poutine.scale(scale=weights[i]):
                return program(x)

        return run

    def p(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def q(x):
        pyro.sample("z", posterior(x))

    all_right(scaled(p), scaled(q))
    expected = -float((weights * LOG_P).mean())
    assert first_loss(scaled(p), scaled(q)) == pytest.approx(expected, rel=1e-4)


# No latents


def test_a_pair_without_latents_has_its_likelihood():
    def p(x):
        loc = pyro.param("loc", lambda: torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def q(x):
        pass

    expected = dist.Normal(0.0, 1.0).log_prob(X)
    all_right(p, q, expected)
    found = evaluate(p, q, X, num_particles=20, **QUIET)
    torch.testing.assert_close(found.log_evidence.float(), expected)
    fitted = fit(p, q, X, steps=400, batch_size=N, lr=0.05, **QUIET)
    assert float(fitted.model.store["params"]["loc"].detach()) == pytest.approx(float(X.mean()), abs=1e-3)
    assert fitted.history["kl"].iloc[-1] == 0


# Supports


class Plain(dist.TorchDistribution):
    """A standard normal distribution that does not say its support."""

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, loc, scale):
        self.normal = dist.Normal(loc, scale)
        super().__init__(self.normal.batch_shape, validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return Plain(self.normal.loc.expand(batch_shape), self.normal.scale.expand(batch_shape))

    has_rsample = True

    def rsample(self, sample_shape=()):
        return self.normal.rsample(torch.Size(sample_shape))

    def log_prob(self, value):
        return self.normal.log_prob(value)


def test_distributions_that_do_not_say_their_support():
    def p(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", Plain(torch.zeros(len(x)), 1.0))
            pyro.sample("x", Plain(z, 1.0), obs=x)

    def q(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", Plain(x / 2 + shift(), 0.5**0.5))

    all_right(p, q)
    assert first_loss(p, q) == pytest.approx(-float(LOG_P.mean()), rel=1e-4)
    assert pyrovae.sbc(p, q, X, num_simulations=20, num_draws=9, **QUIET).ranks.shape == (20, 1)
    with pytest.raises(ValueError, match="does not say its support"):
        pyrovae.ais(p, X, **QUIET)


def test_a_support_that_depends_on_the_batch():
    x = torch.cat([torch.tensor([[2.0, 3.0]]).repeat(40, 1), torch.tensor([[10.0, 10.0]]).repeat(10, 1)])

    def p(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Multinomial(int(x.sum(-1).max()), torch.ones(2)), obs=x)

    def q(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    few, many = (math.comb(n, k) * 0.5**n for n, k in ((5, 2), (20, 10)))
    found = log_weights(p, q, x, num_particles=2, batch_size=10, **QUIET)
    torch.testing.assert_close(found[0].exp(), torch.tensor([few] * 40 + [many] * 10))
    with pytest.raises(ValueError, match="observation 49"):
        log_weights(p, q, x - 20 * (torch.arange(50) == 49)[:, None], num_particles=1, batch_size=10, **QUIET)


# Discrete latents that the guide leaves out

MEANS, SHARES = torch.tensor([-2.0, 0.5, 3.0]), torch.tensor([0.2, 0.5, 0.3])
MARK = {"infer": {"enumerate": "parallel"}}


def mixture(x):
    loc = MEANS + shift()
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(SHARES), **MARK)
        pyro.sample("x", dist.Normal(loc[k], 1.0), obs=x)


def nothing(x):
    pass


def test_a_mixture_is_summed_out_exactly():
    expected = (SHARES.log() + dist.Normal(MEANS, 1.0).log_prob(X[:, None])).logsumexp(1)
    all_right(mixture, nothing, expected)
    for compile in (False, True):
        found = evaluate(mixture, nothing, X, num_particles=3, compile=compile, **QUIET)
        torch.testing.assert_close(found.log_evidence.float(), expected)


def test_draws_of_what_is_summed_out_follow_its_posterior():
    x = torch.tensor([-2.0, 0.5, 3.0, 1.5])
    logits = SHARES.log() + dist.Normal(MEANS, 1.0).log_prob(x[:, None])
    posterior = logits.softmax(1)
    draws = 4000
    found = pyrovae.to_arviz(mixture, nothing, x, num_draws=draws, num_particles=2, **QUIET)
    k = torch.as_tensor(found["posterior"]["k"].values)[0]  # [S, 4]
    share = torch.stack([(k == c).double().mean(0) for c in range(3)], dim=1)
    error = (posterior * (1 - posterior) / draws).sqrt()
    assert ((share - posterior).abs() < 5 * error + 1e-6).all()  # 12 shares: below 1e-5
    again = torch.as_tensor(found["posterior_predictive"]["x"].values)[0]
    expected = posterior @ MEANS
    spread = (posterior @ (MEANS.square() + 1) - expected.square()).sqrt()
    assert ((again.mean(0) - expected).abs() < 5 * spread / draws**0.5).all()


def test_a_latent_that_depends_on_what_is_summed_out():
    """k ~ shares, z ~ N(m_k, 1), x ~ N(z, 1): z | x is a mixture, which the guide samples exactly."""

    def p(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(SHARES), **MARK)
            z = pyro.sample("z", dist.Normal(MEANS[k], 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def q(x):
        logits = SHARES.log() + dist.Normal(MEANS, 2**0.5).log_prob(x[:, None])
        parts = dist.Normal((x[:, None] + MEANS) / 2, 0.5**0.5)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(logits=logits), parts))

    expected = (SHARES.log() + dist.Normal(MEANS, 2**0.5).log_prob(X[:, None])).logsumexp(1)
    all_right(p, q, expected)
    annealed = pyrovae.ais(p, X[:8], num_temperatures=200, **QUIET)
    assert ((annealed.log_evidence - expected[:8]).abs() < 5 * annealed.log_evidence_se + 0.02).all()
    with pytest.raises(ValueError, match="'k' is summed out"):
        rates(p, q, X, **QUIET)
    assert set(simulate(p, X, **QUIET).latents) == {"z"}


def test_a_hidden_markov_model_is_summed_out_by_message_passing():
    start, step = torch.tensor([0.6, 0.4]), torch.tensor([[0.8, 0.2], [0.3, 0.7]])
    loc, length = torch.tensor([-1.0, 1.5]), 5
    x = torch.randn(N, length, generator=torch.Generator().manual_seed(2))

    def p(x):
        with pyro.plate("data", len(x)):
            state = None
            for t in pyro.markov(range(length)):
                probs = start if state is None else step[state]
                state = pyro.sample(f"s_{t}", dist.Categorical(probs), **MARK)
                pyro.sample(f"x_{t}", dist.Normal(loc[state], 1.0), obs=x[:, t])

    alpha = start.log() + dist.Normal(loc, 1.0).log_prob(x[:, :1])
    for t in range(1, length):
        alpha = (alpha[:, :, None] + step.log()).logsumexp(1) + dist.Normal(loc, 1.0).log_prob(x[:, t : t + 1])
    all_right(p, nothing, alpha.logsumexp(1), x)
    found = pyrovae.to_arviz(p, nothing, x, num_draws=3, num_particles=2, **QUIET)
    assert set(found["posterior"].data_vars) == {f"s_{t}" for t in range(length)}


def test_an_objective_that_does_not_enumerate_is_refused():
    with pytest.raises(ValueError, match=r"use objective=TraceEnum_ELBO\(\)"):
        fit(mixture, nothing, X, objective=objectives.IWAE(), steps=1, **QUIET)
    expected = -float((SHARES.log() + dist.Normal(MEANS, 1.0).log_prob(X[:, None])).logsumexp(1).mean())
    assert first_loss(mixture, nothing, TraceEnum_ELBO()) == pytest.approx(expected, rel=1e-4)


# Latents that are given, and deterministic values


def test_topics_that_are_given():
    """LDA of documents of eight words and two topics: log p(words) by quadrature over the share of the first."""
    topics = torch.tensor([[0.5, 0.3, 0.1, 0.1], [0.1, 0.1, 0.3, 0.5]])
    words = torch.randint(4, (N, 8), generator=torch.Generator().manual_seed(0))

    def p(words):
        with pyro.plate("topics", 2):
            pyro.sample("topic_weights", dist.Gamma(1.0, 1.0))
            topic_words = pyro.sample("topic_words", dist.Dirichlet(torch.ones(4)))
        with pyro.plate("documents", len(words)):
            shares = pyro.sample("shares", dist.Dirichlet(torch.ones(2)))
            with pyro.plate("places", 8, dim=-2):
                topic = pyro.sample("word_topics", dist.Categorical(shares), **MARK)
                pyro.sample("words", dist.Categorical(topic_words[topic]), obs=words.T)

    def q(words):
        with pyro.plate("documents", len(words)):
            pyro.sample("shares", dist.Dirichlet(torch.ones(len(words), 2) * (1.5 + shift())))

    values = {"topic_weights": torch.ones(2), "topic_words": topics}
    u = (torch.arange(2000) + 0.5) / 2000
    each = (u[:, None, None] * topics[0, words] + (1 - u[:, None, None]) * topics[1, words]).log().sum(-1)
    expected = each.logsumexp(0) - math.log(2000)
    found = evaluate(given(p, values), q, words, num_particles=4000, **QUIET)
    assert ((found.log_evidence - expected).abs() < 5 * found.log_evidence_se).all()  # 50 documents: below 1e-4
    assert math.isfinite(first_loss(given(p, values), q, TraceEnum_ELBO(), words))


def test_deterministic_values_are_not_drawn():
    def p(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            loc = pyro.deterministic("loc", z)
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    all_right(p, exact)
    found = pyrovae.to_arviz(p, exact, X, num_draws=5, num_particles=2, **QUIET)
    assert found["posterior_predictive"]["x"].shape == (1, 5, N)
    assert pyrovae.sbc(p, exact, X, num_simulations=10, num_draws=9, **QUIET).ranks.shape == (10, 1)


def test_positive_latents_with_their_support():
    assert constraints.positive.check(simulate(lambda x: positive(x), X, **QUIET).latents["z"]).all()


def positive(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Gamma(torch.ones(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def without(x):
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


@pytest.mark.parametrize("ask", ["hmc", "gaps", "usage", "codes", "aggregate", "rates", "sbc"])
def test_questions_about_latents_that_there_are_not(ask):
    given = (without, nothing, X)
    with pytest.raises(ValueError, match="no latents that"):
        getattr(pyrovae, ask)(*given, **QUIET)


def test_the_evidence_of_a_model_without_latents_is_its_likelihood():
    expected = dist.Normal(0.0, 1.0).log_prob(X)
    for found in (pyrovae.ais(without, X, **QUIET), pyrovae.evidence(without, nothing, X, **QUIET)):
        torch.testing.assert_close(found.log_evidence.float(), expected)
        assert bool(found.reliable.all())


def test_gaps_where_a_discrete_latent_is_summed_out():
    """The latent that is summed out says nothing of x, so that every draw of the exact posterior has weight p(x)."""

    def p(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(SHARES), **MARK)
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z + 0 * MEANS[k], 1.0), obs=x)

    found = pyrovae.gaps(p, exact, X[:5], num_steps=2, log_evidence=(LOG_P[:5], torch.zeros(5)), **QUIET)
    torch.testing.assert_close(found.elbo.float(), LOG_P[:5], rtol=0, atol=1e-4)


@pytest.mark.parametrize("way", ["handler", "distribution"])
def test_masked_latents_that_are_summed_out_keep_their_probabilities(way):
    """A chain of three states whose middle step is missing: by brute force over all of its paths."""
    start, step, loc = torch.tensor([0.9, 0.1]), torch.tensor([[0.9, 0.1], [0.1, 0.9]]), torch.tensor([-1.0, 1.0])
    x = torch.tensor([[-2.0, 0.0, 2.0], [2.0, 0.0, 2.0], [0.0, 0.0, 2.0]])
    m = torch.tensor([[True, False, True]] * 3)

    def masked(fn, kept):
        return fn.mask(kept) if way == "distribution" else fn

    def p(x, m):
        with pyro.plate("data", len(x)):
            state = None
            for t in pyro.markov(range(3)):
                with poutine.mask(mask=m[:, t] if way == "handler" else True):
                    probs = start if state is None else step[state]
                    state = pyro.sample(f"s{t}", masked(dist.Categorical(probs), m[:, t]), **MARK)
                    pyro.sample(f"x{t}", masked(dist.Normal(loc[state], 1.0), m[:, t]), obs=x[:, t])

    def q(x, m):
        pass

    paths = torch.cartesian_prod(*[torch.arange(2)] * 3)
    each = start[paths[:, 0]].log() + step[paths[:, 0], paths[:, 1]].log() + step[paths[:, 1], paths[:, 2]].log()
    seen = dist.Normal(loc[paths], 1.0).log_prob(x[:, None])[..., [0, 2]].sum(-1)
    joint = each + seen  # [3, 8]
    found = log_weights(p, q, (x, m), num_particles=2, **QUIET)
    torch.testing.assert_close(found[0], joint.logsumexp(1))
    draws = 4000
    posterior = pyrovae.to_arviz(p, q, (x, m), num_draws=draws, num_particles=2, **QUIET)["posterior"]
    for t in range(3):
        share = torch.as_tensor(posterior[f"s{t}"].values)[0].double().mean(0)
        truth = (joint.softmax(1) * paths[:, t]).sum(1)
        error = (truth * (1 - truth) / draws).sqrt()
        assert ((share - truth).abs() < 5 * error).all()  # 9 shares: below 1e-5
