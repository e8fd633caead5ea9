"""The data plate's indices are the numbers of the batch's data within the whole set."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch.distributions import constraints

import pyrovae
from pyrovae import evaluate, fit, log_weights, objectives
from pyrovae.diagnostics.evidence.gaps import gaps
from pyrovae.diagnostics.predictive.simulate import simulate

N = 20
X = torch.arange(float(N))
POSTERIOR_SD = (100 / 101) ** 0.5  # x = 0..19, z ~ N(0, 10^2), x ~ N(z, 1): z | x ~ N(100 x / 101, 100 / 101)
MEANS = 100 * X / 101
EVIDENCE = dist.Normal(0.0, 101**0.5).log_prob(X)


def sized(x):
    return pyro.plate("data", N, subsample_size=len(x))


def plain(x):
    return pyro.plate("data", len(x))


def make_model(plate):
    def model(x):
        with plate(x):
            z = pyro.sample("z", dist.Normal(0.0, 10.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return model


def make_guide(plate, start=None):
    """Return a guide with a free location for every row."""

    def guide(x):
        loc = pyro.param("loc", lambda: torch.zeros(N) if start is None else start.clone())
        with plate(x) as i:
            pyro.sample("z", dist.Normal(loc[i], POSTERIOR_SD))

    return guide


def rows_in_plate(x):
    """A guide whose parameters are declared inside the plate, which takes their rows itself."""
    with sized(x):
        loc = pyro.param("loc", lambda: MEANS.clone(), event_dim=0)
        scale = pyro.param("scale", lambda: torch.full((N,), POSTERIOR_SD), constraints.positive, event_dim=0)
        pyro.sample("z", dist.Normal(loc, scale))


def fitted_loc(fitted):
    return fitted.guide.store["params"]["loc"].detach()


@pytest.mark.parametrize("batch_size", [7, N])
@pytest.mark.parametrize("plate", [sized, plain])
@pytest.mark.parametrize("compile", [False, True])
def test_every_row_trains_its_own_parameter(plate, batch_size, compile):
    """With the exact scale, sticking the landing has no noise at the optimum: the fit comes to the closed form."""
    exact = objectives.IWAE(num_particles=1, estimator="stl")
    anneal = {"lr": lambda step: 0.99**step, "steps": 1200, "progress": False}
    fitted = fit(
        make_model(plate), make_guide(plate), X, objective=exact, batch_size=batch_size, compile=compile, **anneal
    )
    torch.testing.assert_close(fitted_loc(fitted), MEANS, rtol=0, atol=1e-2)
    found = evaluate(fitted.model, fitted.guide, X, num_particles=300, batch_size=3, progress=False)
    torch.testing.assert_close(found.log_evidence.float(), EVIDENCE, rtol=0, atol=1e-2)


@pytest.mark.parametrize("objective", [None, objectives.IWAE(num_particles=3), objectives.BetaELBO(num_particles=2)])
def test_particles_of_a_row_share_its_number(objective):
    """Each observation stands once per particle: with the wrong row's parameter the loss would be hundreds of nats."""
    fitted = fit(
        make_model(sized),
        make_guide(sized, MEANS),
        X,
        objective=objective,
        batch_size=7,
        lr=1e-9,
        steps=6,
        progress=False,
    )
    assert (fitted.history["bound"] > float(EVIDENCE.min()) - 0.5).all()


GUIDES = {"indexed": make_guide(sized, MEANS), "plain": make_guide(plain, MEANS), "rows in the plate": rows_in_plate}


@pytest.mark.parametrize("name", GUIDES)
def test_every_question_asks_about_the_right_rows(name):
    model = make_model(plain if name == "plain" else sized)
    options = {"progress": False}
    with pyro.get_param_store().scope():
        guide = GUIDES[name]
        weights = log_weights(model, guide, X, num_particles=300, **options)  # 6,000 rows, more than the set has
        torch.testing.assert_close(weights, EVIDENCE.expand(300, N), rtol=0, atol=1e-3)
        torch.testing.assert_close(log_weights(model, guide, X, num_particles=300, batch_size=1, **options), weights)
        codes = pyrovae.codes(model, guide, X, num_draws=400, **options)[:, 0]
        assert ((codes - MEANS).abs() < 6 * POSTERIOR_SD / 20).all()  # below 1e-7
        annealed = pyrovae.ais(model, X, guide=guide, num_temperatures=20, num_chains=4, **options)
        torch.testing.assert_close(annealed.log_evidence.float(), EVIDENCE, rtol=0, atol=1e-3)
        chains = pyrovae.hmc(model, guide, X, num_warmup=50, num_draws=100, num_chains=2, **options)
        means = torch.as_tensor(chains.posterior["z"].mean(("chain", "draw")).values)
        assert ((means - MEANS).abs() < 1.0).all()
        calibration = pyrovae.sbc(model, guide, torch.zeros(N), num_simulations=N, num_draws=9, **options)
        assert calibration.ranks.shape == (N, 1)
        found = gaps(
            model,
            guide,
            pyrovae.data.Data(X).numbered().subset(range(5)),
            num_steps=5,
            num_particles=20,
            log_evidence=(EVIDENCE[:5], torch.zeros(5)),
            **options,
        )
        assert found.elbo.shape == (5,)


def test_covariates_of_the_whole_set_are_taken_at_the_right_rows():
    covariate = torch.linspace(-3, 3, N)

    def model(x):
        with sized(x) as i:
            z = pyro.sample("z", dist.Normal(covariate[i], 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with sized(x) as i:
            pyro.sample("z", dist.Normal((x + covariate[i]) / 2, 0.5**0.5))

    found = log_weights(model, guide, X, num_particles=50, batch_size=6, progress=False)
    expected = dist.Normal(covariate, 2**0.5).log_prob(X)
    torch.testing.assert_close(found, expected.expand(50, N), rtol=0, atol=1e-4)
    drawn = simulate(model, X, num_simulations=N, progress=False).latents["z"]
    assert ((drawn - covariate).abs() < 6).all()  # below 1e-7


def test_automatic_guides_with_plates():
    model = make_model(sized)
    guide = AutoNormal(model, create_plates=sized)
    for batch_size in (7, N):
        fit(model, guide, X, batch_size=batch_size, lr=0.05, steps=800, progress=False)
    with torch.no_grad():
        assert ((guide.locs.z - MEANS).abs() < 0.5).all()
    found = evaluate(model, guide, X, num_particles=2000, progress=False)
    assert ((found.log_evidence - EVIDENCE).abs() < 0.2).all()


TAKE = {
    "x[i]": lambda x, i: x[i],
    "index_select": lambda x, i: x.index_select(0, i),
    "gather": lambda x, i: x.gather(0, i),
    "take_along_dim": lambda x, i: torch.take_along_dim(x, i, 0),
    "embedding": lambda x, i: torch.nn.functional.embedding(i, x[:, None])[:, 0],
}


@pytest.mark.parametrize("take", TAKE.values(), ids=TAKE)
@pytest.mark.parametrize("where", ["model", "guide", "both"])
def test_rows_of_the_batch_by_the_indices_of_a_plain_plate(where, take):
    """Positions, where a program takes rows of its batch: the other's indices stay numbers of the set."""
    covariate = torch.linspace(-3, 3, N)

    def model(x, c):
        with plain(x) as i:
            z = pyro.sample("z", dist.Normal(take(c, i) if where != "guide" else covariate[i], 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=take(x, i) if where != "guide" else x)

    def guide(x, c):
        with plain(x) as i:
            own = take(c, i) if where != "model" else covariate[i]
            pyro.sample("z", dist.Normal((x + own) / 2, 0.5**0.5))

    expected = dist.Normal(covariate, 2**0.5).log_prob(X)
    for batch_size in (6, N):
        found = log_weights(model, guide, (X, covariate), num_particles=50, batch_size=batch_size, progress=False)
        torch.testing.assert_close(found, expected.expand(50, N), rtol=0, atol=1e-4)


def test_rows_of_the_batch_by_the_indices_of_a_sized_plate_are_refused():
    def model(x):
        with sized(x) as i:
            z = pyro.sample("z", dist.Normal(0.0, 10.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[i])

    with pytest.raises(ValueError, match=r"write x instead of x\[i\]"):
        evaluate(model, make_guide(sized), X, progress=False)


def test_a_subset_that_a_question_takes_keeps_its_numbers():
    data = pyrovae.data.as_data(X).numbered().subset(torch.tensor([3, 17]))
    assert data.batch(slice(0, 2))[1].tolist() == [3, 17]
    assert pyrovae.data.as_data(X).subset([3, 17]).numbered().batch(slice(0, 2))[1].tolist() == [0, 1]


def test_a_further_plate_keeps_its_own_indices():
    seen = []

    def model(x):
        with plain(x), pyro.plate("groups", 3, dim=-2) as j:
            seen.append(j.tolist())
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.expand(3, -1))

    def guide(x):
        with plain(x), pyro.plate("groups", 3, dim=-2):
            pyro.sample("z", dist.Normal(x.expand(3, -1) / 2, 1.0))

    log_weights(model, guide, X[:6], num_particles=2, batch_size=3, progress=False)
    assert all(j == [0, 1, 2] for j in seen)


def test_a_parameter_for_every_position_of_a_batch_is_refused():
    model = make_model(plain)
    with pytest.raises(
        (ValueError, pyrovae.training.FitError), match="has 7 rows in the plate 'data', and there are 21"
    ):
        fit(model, AutoNormal(model), torch.arange(21.0), batch_size=7, steps=3, progress=False)
    guide = AutoNormal(model)  # of the whole set it has one for every observation
    fit(model, guide, X, batch_size=N, lr=0.05, steps=1500, progress=False)
    with torch.no_grad():
        assert ((guide.locs.z - MEANS).abs() < 0.7).all()


SOME = torch.tensor([5, 17, 11])


@pytest.mark.parametrize("ask", ["evaluate", "ais", "evidence", "simulate", "pit", "fit"])
def test_some_of_the_data_whose_numbers_are_not_known_are_refused(ask):
    """A subset is numbered from 0, and would meet the parameters and covariates of other rows."""
    covariate = torch.linspace(-3, 3, N)

    def model(x):
        with sized(x) as i:
            z = pyro.sample("z", dist.Normal(covariate[i], 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        shift = pyro.param("shift", lambda: torch.zeros(()))
        with sized(x) as i:
            pyro.sample("z", dist.Normal((x + covariate[i]) / 2 + shift, 0.5**0.5))

    expected = dist.Normal(covariate, 2**0.5).log_prob(X)[SOME]
    calls = {
        "evaluate": lambda x: evaluate(model, guide, x, num_particles=5, progress=False).log_evidence,
        "ais": lambda x: pyrovae.ais(model, x, guide=guide, num_temperatures=10, progress=False).log_evidence,
        "evidence": lambda x: pyrovae.evidence(model, guide, x, num_particles=30, progress=False).log_evidence,
        "simulate": lambda x: simulate(model, x, num_simulations=3, progress=False),
        "pit": lambda x: pyrovae.pit(model, x, num_draws=9, progress=False),
        "fit": lambda x: fit(model, guide, X, steps=1, validation_data=x, progress=False),
    }
    for unknown in (X[SOME], torch.cat([X, X[:6]])):
        with pytest.raises(ValueError, match=r"it is not known which of them|indices number the data that were given"):
            calls[ask](unknown)
    found = calls[ask](pyrovae.data.Data(X).numbered().subset(SOME))
    if isinstance(found, torch.Tensor):
        torch.testing.assert_close(found.float(), expected, rtol=0, atol=1e-3)


def test_a_plate_of_other_data_is_fine_where_nothing_belongs_to_a_row():
    def guide(x):
        with sized(x):
            pyro.sample("z", dist.Normal(100 * x / 101, POSTERIOR_SD))

    found = evaluate(make_model(sized), guide, X[SOME], num_particles=5, progress=False)
    torch.testing.assert_close(found.log_evidence.float(), EVIDENCE[SOME], rtol=0, atol=1e-3)
