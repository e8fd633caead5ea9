"""Both directions: pairs written for plain Pyro run here, and ours run under plain Pyro."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import bits, make_oracle, make_vae
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.distributions import constraints

from pyrovae import evaluate, fit, guides, load, log_weights
from pyrovae.data import as_data
from pyrovae.programs.pair import Pair
from pyrovae.programs.state import State
from pyrovae.programs.streams import stream_seed
from pyrovae.training.gradients import Gradients
from pyrovae.training.parameters import find_params

PIXELS, LATENTS = 12, 3


class TutorialVAE(nn.Module):
    """As Pyro's VAE tutorial writes it: bound methods that register their networks."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(PIXELS, 16), nn.Softplus(), nn.Linear(16, 2 * LATENTS))
        self.decoder = nn.Sequential(nn.Linear(LATENTS, 16), nn.Softplus(), nn.Linear(16, PIXELS))

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            loc = torch.zeros(x.shape[0], LATENTS, dtype=x.dtype, device=x.device)
            z = pyro.sample("latent", dist.Normal(loc, torch.ones_like(loc)).to_event(1))
            probs = torch.sigmoid(self.decoder(z))
            pyro.sample("obs", dist.Bernoulli(probs, validate_args=False).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, raw = self.encoder(x).chunk(2, -1)
            pyro.sample("latent", dist.Normal(loc, raw.exp()).to_event(1))


def tutorial():
    vae = TutorialVAE()
    return vae.model, vae.guide


def functions():
    encoder = nn.Sequential(nn.Linear(PIXELS, 16), nn.ReLU(), nn.Linear(16, 2 * LATENTS))
    decoder = nn.Sequential(nn.Linear(LATENTS, 16), nn.ReLU(), nn.Linear(16, PIXELS))

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Laplace(torch.zeros(LATENTS), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, raw = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    return model, guide


def bare():
    def model(x):
        weight = pyro.param("weight", torch.randn(LATENTS, PIXELS) / 2)
        bias = pyro.param("bias", torch.zeros(PIXELS))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENTS), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z @ weight + bias).to_event(1), obs=x)

    def guide(x):
        weight = pyro.param("guide_weight", torch.zeros(PIXELS, LATENTS))
        scale = pyro.param("scale", torch.full((LATENTS,), 0.7), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x - 0.5) @ weight, scale).to_event(1))

    return model, guide


class ModuleModel(PyroModule):
    def __init__(self):
        super().__init__()
        self.net = PyroModule[nn.Linear](LATENTS, PIXELS)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENTS), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.net(z)).to_event(1), obs=x)


class ModuleGuide(PyroModule):
    def __init__(self):
        super().__init__()
        self.loc = PyroModule[nn.Linear](PIXELS, LATENTS)
        self.scale = PyroParam(torch.full((LATENTS,), 0.7), constraint=constraints.positive)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc(x), self.scale).to_event(1))


def pyro_modules():
    return ModuleModel(), ModuleGuide()


class Unregistered(nn.Module):
    """A module that is passed and registers nothing."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.net = kind, nn.Linear(LATENTS if kind == "model" else PIXELS, PIXELS if kind == "model" else 6)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            if self.kind == "guide":
                loc, raw = self.net(x).chunk(2, -1)
                return pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENTS), 1.0).to_event(1))
            return pyro.sample("x", dist.Bernoulli(logits=self.net(z)).to_event(1), obs=x)


def unregistered():
    return Unregistered("model"), Unregistered("guide")


PAIRS = {f.__name__: f for f in (tutorial, functions, bare, pyro_modules, unregistered)}


def made(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PAIRS[name]()


@pytest.mark.parametrize("name", PAIRS)
def test_plain_pairs_fit_evaluate_save_and_load(name, tmp_path):
    model, guide = made(name)
    x = bits(100)
    fitted = fit(model, guide, x, steps=150, batch_size=50, lr=1e-2, progress=False)
    first, last = fitted.history["bound"].iloc[:10].mean(), fitted.history["bound"].iloc[-10:].mean()
    assert last > first + 0.3
    result = evaluate(fitted.model, fitted.guide, x, num_particles=50, progress=False)
    assert float(result.elbo.mean()) == pytest.approx(last, abs=0.7)
    fitted.save(tmp_path / "fit")
    again = load(tmp_path / "fit", *made(name))
    weights, loaded = (log_weights(f.model, f.guide, x, num_particles=3, progress=False) for f in (fitted, again))
    torch.testing.assert_close(loaded, weights, rtol=0, atol=0)


@pytest.mark.parametrize("name", PAIRS)
def test_two_pairs_with_the_same_names_train_independently(name):
    x = bits(60)
    one, two = made(name), made(name)
    options = {"steps": 20, "compile": False, "progress": False, "seed": 1}
    alone = fit(*made(name), x, **options)
    fitted = fit(*one, x, **options)
    before = evaluate(fitted.model, fitted.guide, x, num_particles=5, progress=False).elbo
    other = fit(*two, 1 - x, steps=40, progress=False, seed=2)
    after = evaluate(fitted.model, fitted.guide, x, num_particles=5, progress=False).elbo
    assert torch.equal(before, after)
    assert fitted.history["loss"].tolist() == alone.history["loss"].tolist()
    assert other.history["loss"].iloc[-1] != fitted.history["loss"].iloc[-1]


OBJECTIVES = {
    "Trace_ELBO": lambda: Trace_ELBO(),
    "particles": lambda: Trace_ELBO(num_particles=3),
    "vectorised": lambda: Trace_ELBO(num_particles=3, vectorize_particles=True),
    "mean field": lambda: TraceMeanField_ELBO(),
    "graph": lambda: TraceGraph_ELBO(),
    "Renyi": lambda: RenyiELBO(alpha=0.0, num_particles=3),
}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", ["tutorial", "functions", "bare", "pyro_modules"])
def test_gradients_equal_those_of_pyro(name, objective):
    x, elbo = bits(40), OBJECTIVES[objective]()
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        pair = Pair(*made(name))
        layout, _, _ = pair.read((x,))
        params, bare = find_params(pair, as_data(x), layout)
        elbo.loss(pair.model, pair.guide, x)  # guesses its plate nesting, with noise of its own
        torch.manual_seed(7)
        loss = elbo.loss_and_grads(pair.model, pair.guide, x)
        expected = {key: p.grad.clone() for key, p in params.items()}
        constraints = pyro.get_param_store().get_state()["constraints"]
        state = State(pair.modules.values(), bare, {name: constraints[name] for name in bare})
        torch.manual_seed(7)
        row, *found = Gradients(pair, layout, elbo, params, state).measure((x, torch.arange(40)))
    assert float(row[0]) * 40 == pytest.approx(loss, rel=1e-6)
    for key, grad in zip(params, found, strict=True):
        torch.testing.assert_close(grad, expected[key], rtol=1e-5, atol=1e-6)  # sums in another order


@pytest.mark.own_state
def test_a_fit_of_one_step_is_a_step_of_svi():
    x = bits(40)
    one, other = made("tutorial"), made("tutorial")
    torch.manual_seed(stream_seed("fit", 5))
    svi = SVI(*one, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    loss = svi.step(x) / 40  # a batch of the whole set is in its order
    fitted = fit(*other, x, steps=1, seed=5, progress=False)
    assert fitted.history["loss"][0] == pytest.approx(loss, rel=1e-6)
    for expected, p in zip(one[0].__self__.parameters(), other[0].__self__.parameters(), strict=True):
        torch.testing.assert_close(p, expected, rtol=0, atol=1e-7)


@pytest.mark.own_state
@pytest.mark.parametrize("guide", [guides.MeanField, guides.FullRank, guides.Flow])
@pytest.mark.parametrize("objective", [Trace_ELBO, TraceMeanField_ELBO])
def test_our_pairs_run_under_plain_svi(guide, objective):
    torch.manual_seed(0)
    model, made_guide = make_vae(guide)
    x = bits(100)
    if guide is guides.Flow and objective is TraceMeanField_ELBO:
        pytest.skip("a flow has no KL in closed form; Pyro then samples it, with a warning")
    svi = SVI(model, made_guide, pyro.optim.Adam({"lr": 1e-2}), objective())
    losses = [svi.step(x) / 100 for _ in range(150)]
    assert sum(losses[-10:]) / 10 < sum(losses[:10]) / 10 - 0.3
    changed = {key for key, p in pyro.get_param_store().named_parameters()}
    assert {"model$$$decoder.layers.0.weight", "guide$$$encoder.layers.0.weight"} <= changed


@pytest.mark.own_state
def test_the_exact_guide_and_its_model_run_under_plain_svi():
    torch.manual_seed(0)
    model, x = make_oracle(2, 5, 40)
    svi = SVI(model, guides.Exact(model), pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    before = -float(model.log_evidence(x).sum().detach())
    assert svi.evaluate_loss(x) == pytest.approx(before, abs=1e-8)
    for _ in range(50):
        svi.step(x)
    assert -float(model.log_evidence(x).sum().detach()) < before


@pytest.mark.own_state
@pytest.mark.parametrize("name", ["tutorial", "functions", "bare", "pyro_modules"])
def test_a_pair_fitted_by_plain_svi_is_evaluated_as_it_was_fitted(name):
    torch.manual_seed(0)
    model, guide = PAIRS[name]()
    x = bits(100)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    for _ in range(150):
        svi.step(x)
    store = {key: value.detach().clone() for key, value in pyro.get_param_store().named_parameters()}
    loss = sum(svi.evaluate_loss(x) for _ in range(50)) / 50 / 100
    result = evaluate(model, guide, x, num_particles=50, progress=False)
    assert float(result.elbo.mean()) == pytest.approx(-loss, abs=0.15)
    after = dict(pyro.get_param_store().named_parameters())
    assert set(after) == set(store)
    assert all(torch.equal(after[key], value) for key, value in store.items())


@pytest.mark.own_state
def test_a_pyro_optimizer_lets_svi_take_the_steps():
    torch.manual_seed(0)
    x = bits(40)
    model, guide = make_vae()
    torch.manual_seed(stream_seed("fit", 0))
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 1e-2}), Trace_ELBO())
    expected = svi.step(x) / 40
    pyro.clear_param_store()
    model, guide = make_vae()
    fitted = fit(
        model, guide, x, steps=80, batch_size=40, optimizer=pyro.optim.ClippedAdam({"lr": 1e-2}), progress=False
    )
    assert fitted.history["loss"].iloc[0] == pytest.approx(expected, rel=1e-6)
    assert fitted.history["bound"].iloc[-5:].mean() > fitted.history["bound"].iloc[0] + 0.3
    assert len(pyro.get_param_store()) == 0


@pytest.mark.own_state
def test_a_stored_value_of_the_same_name_does_not_reach_a_module():
    model, guide = made("pyro_modules")
    x = bits(20)
    before = evaluate(model, guide, x, num_particles=5, progress=False).elbo
    pyro.param("scale", torch.full((LATENTS,), 9.0), constraint=constraints.positive)
    after = evaluate(model, guide, x, num_particles=5, progress=False).elbo
    assert torch.equal(before, after)
    assert float(guide.scale.detach().max()) < 1
