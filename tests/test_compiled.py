"""Compiled steps and log weights are the eager ones, up to rounding; what cannot be compiled runs and says so."""

import itertools
import time
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import bits, make_oracle, make_vae
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.renyi_elbo import RenyiELBO
from pyro.nn import PyroModule, PyroSample
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyrovae import ais, evaluate, fit, guides, likelihoods, load, log_weights, models, nn, objectives, priors
from pyrovae.data import as_data
from pyrovae.importance import log_weights as weights
from pyrovae.mcmc import field
from pyrovae.programs import compilation as engine
from pyrovae.programs.compilation import Runner
from pyrovae.programs.pair import Pair
from pyrovae.programs.sites import sample_sites
from pyrovae.programs.state import State
from pyrovae.programs.tracing import compiled
from pyrovae.programs.work import Counted, Work
from pyrovae.training import compiling
from pyrovae.training.gradients import Gradients
from pyrovae.training.group import Group
from pyrovae.training.parameters import find_params
from pyrovae.training.problem import place, read_problem
from pyrovae.training.torch_stepper import TorchStepper

slow = pytest.mark.slow
LATENT = 3
DATA = bits(16)


def vae(guide=guides.MeanField, prior=None, likelihood=None, out=12, encoder=None, decoder=None):
    model = models.VAE(
        prior=prior or priors.StandardNormal(LATENT),
        decoder=decoder or nn.MLP(LATENT, out, hidden=(16,)),
        likelihood=likelihood or likelihoods.Bernoulli(),
    )
    return model, guide(encoder or nn.MLP(12, 16, hidden=(16,)), LATENT)


def oracle_pair(guide):
    model, _ = make_oracle(2, 12, 1)
    return model, guides.Exact(model) if guide is guides.Exact else guide(nn.MLP(12, 8), 2)


class Noisy(torch.nn.Module):
    """An encoder with batch statistics and dropout."""

    out_features = 16

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(12, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(), torch.nn.Dropout(0.2)
        )

    def forward(self, x):
        return self.layers(x)


def discrete(enumerate):
    """A binary latent: its gradient is the score function's, or it is summed out."""
    logits = torch.nn.Linear(12, 1)
    rates = torch.nn.Parameter(torch.randn(2, 12))

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rates = rates

        def forward(self, x):
            with pyro.plate("data", len(x)):
                c = pyro.sample("c", dist.Bernoulli(0.5 * x.new_ones(len(x))), infer=enumerate)
                pyro.sample("x", dist.Bernoulli(logits=self.rates[c.long()]).to_event(1), obs=x)

    def guide(x):
        pyro.module("logits", logits)
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Bernoulli(logits=logits(x).squeeze(-1)), infer=enumerate)

    return Model(), guide


def bare():
    def model(x):
        loc = pyro.param("loc", lambda: torch.linspace(-1, 1, 12))
        scale = pyro.param("scale", torch.ones(12), constraint=dist.constraints.positive)
        with pyro.plate("data", 100, subsample_size=len(x)), poutine.scale(scale=0.5):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(loc + z[..., None], scale).to_event(1), obs=x)

    def guide(x):
        w = pyro.param("w", lambda: 0.1 * torch.ones(12))
        with pyro.plate("data", 100, subsample_size=len(x)), poutine.scale(scale=0.5):
            pyro.sample("z", dist.Normal(x @ w, 0.5))

    return model, guide


class Bayesian(PyroModule):
    """A decoder whose weights are latent, one for all data."""

    def __init__(self):
        super().__init__()
        self.linear = PyroModule[torch.nn.Linear](3, 12)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([12, 3]).to_event(2))

    def forward(self, x):
        linear = self.linear
        weight = linear.weight
        with pyro.plate("data", 100, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z @ weight.mT + linear.bias).to_event(1), obs=x)


def bayesian():
    model, encoder = Bayesian(), torch.nn.Linear(12, 6)
    loc = torch.nn.Parameter(torch.zeros(12, 3))

    class Guide(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.loc = encoder, loc

        def forward(self, x):
            pyro.sample("linear.weight", dist.Normal(self.loc, 0.1).to_event(2))
            with pyro.plate("data", 100, subsample_size=len(x)):
                mean, raw = self.encoder(x).chunk(2, -1)
                pyro.sample("z", dist.Normal(mean, raw.exp()).to_event(1))

    return model, Guide()


def refined(make):
    model, family = vae()
    return model, make(family, model)


def hierarchy(direction):
    model = models.HierarchicalVAE(
        prior=priors.StandardNormal(2),
        transitions=[nn.MLP(2, 2 * LATENT)],
        decoder=nn.MLP(LATENT, 12, hidden=(16,)),
        likelihood=likelihoods.Bernoulli(),
    )
    layers = [guides.MeanField(nn.MLP(12, 16), LATENT), guides.FullRank(nn.MLP(LATENT, 16), 2)]
    ladder = guides.Ladder([nn.MLP(12, 16), nn.MLP(16, 16)], model)
    return model, guides.Hierarchical(layers) if direction == "up" else ladder


def categories(how):
    relaxed = dist.RelaxedOneHotCategorical(torch.tensor(0.5).double(), logits=torch.zeros(LATENT).double())
    prior = relaxed if how == "relaxed" else dist.OneHotCategorical(logits=torch.zeros(LATENT).double())
    return vae(partial(guides.Categorical, how=how), prior=prior)


def local():
    model, family = vae()
    return model, guides.Local(family, torch.cat([DATA, 1 - DATA]).double())


CLASSES = torch.arange(16) % 3


def conditional():
    model = models.ConditionalVAE(
        prior=priors.ConditionalNormal(nn.MLP(3, 2 * LATENT)), decoder=nn.MLP(LATENT + 3, 12),
        likelihood=likelihoods.Bernoulli(),
    )  # fmt: skip
    return model, guides.MeanField(nn.MLP(12 + 3, 8), LATENT), torch.eye(3)[CLASSES].double()


def semi_supervised():
    model = models.SemiSupervisedVAE(
        prior=priors.StandardNormal(LATENT), decoder=nn.MLP(LATENT + 3, 12), likelihood=likelihoods.Bernoulli(),
        num_classes=3,
    )  # fmt: skip
    latent = guides.MeanField(nn.MLP(12 + 3, 8), LATENT)
    return model, guides.ClassConditional(nn.MLP(12, 8), latent, 3), torch.where(CLASSES == 2, -1, CLASSES)


def clustering():
    model = models.GaussianMixtureVAE(
        num_clusters=3, latent_dim=LATENT, decoder=nn.MLP(LATENT, 12), likelihood=likelihoods.Bernoulli()
    )
    return model, guides.Clustered(guides.MeanField(nn.MLP(12, 8), LATENT), model)


def with_globals():
    model = models.BayesianVAE(
        prior=priors.StandardNormal(LATENT),
        decoder=nn.MLP(LATENT, 12),
        likelihood=likelihoods.Bernoulli(),
        num_data=160,
    )
    return model, guides.WithGlobals.of(guides.MeanField(nn.MLP(12, 8), LATENT), model, DATA.double())


def vamp():
    model, guide = vae(prior=priors.VampPrior(LATENT, num_components=4))
    model.prior.attach(guide, DATA.double())
    return model, guide


def likely(likelihood):
    return vae(likelihood=likelihood, decoder=nn.MLP(LATENT, likelihood.features(12)))


def holes():
    model, _ = likely(likelihoods.Missing(likelihoods.Gaussian()))
    return model, guides.MeanField(nn.Observed(nn.MLP(24, 8)), LATENT)


LIKELIHOODS = {
    "HeteroscedasticGaussian": likelihoods.HeteroscedasticGaussian,
    "StudentT likelihood": likelihoods.StudentT,
    "Poisson": likelihoods.Poisson,
    "NegativeBinomial": likelihoods.NegativeBinomial,
    "ZeroInflated": lambda: likelihoods.ZeroInflated(likelihoods.Poisson()),
    "Multinomial": lambda: likelihoods.Multinomial(total_count=10),
    "Categorical likelihood": lambda: likelihoods.Categorical(2),
    "Ordinal": lambda: likelihoods.Ordinal(3),
    "DiscretisedLogistic": lambda: likelihoods.DiscretisedLogistic(levels=2, num_components=2),
    "Mixed": lambda: likelihoods.Mixed([(likelihoods.Gaussian(), 6), (likelihoods.Categorical(2), 6)]),
}
SHAPE = (1, 3, 4)
NETWORKS = {
    "gated": lambda: {"encoder": nn.GatedMLP(12, 8), "decoder": nn.GatedMLP(LATENT, 12)},
    "dropout": lambda: {"encoder": nn.MLP(12, 8, normalisation=torch.nn.LayerNorm, dropout=0.2)},
    "residual": lambda: {"encoder": nn.ResidualEncoder(SHAPE, 8), "decoder": nn.ResidualDecoder(LATENT, SHAPE)},
    "recurrent": lambda: {"encoder": nn.RecurrentEncoder((4, 3), 8), "decoder": nn.RecurrentDecoder(LATENT, (4, 3))},
    "attention": lambda: {"encoder": nn.AttentionEncoder((4, 3), 8), "decoder": nn.AttentionDecoder(LATENT, (4, 3))},
}
PRIORS = {
    "StudentT prior": lambda: priors.StudentT(LATENT),
    "SpikeAndSlab": lambda: priors.SpikeAndSlab(LATENT),
    "Horseshoe": lambda: priors.Horseshoe(LATENT),
    "NormalizingFlow": lambda: priors.NormalizingFlow(LATENT, num_steps=2),
    "GaussianProcess": lambda: priors.GaussianProcess(LATENT),
}
GUIDES = ("LowRank", "Mixture", "Auxiliary", "Planar", "Radial", "Householder")
GUIDES += ("MaskedAutoregressive", "SplineCoupling", "SplineAutoregressive")
OBJECTIVES = {
    "IWAE": lambda: objectives.IWAE(4),
    "IWAE, stl": lambda: objectives.IWAE(2, estimator="stl"),
    "PIWAE": lambda: objectives.PIWAE(2, num_bounds=2),
    "CIWAE": lambda: objectives.CIWAE(4),
    "Renyi of ours": lambda: objectives.Renyi(0.5, 4),
    "Chi": lambda: objectives.Chi(2, 4),
    "BetaELBO": lambda: objectives.BetaELBO(objectives.linear(5, start=0.5)),
    "CapacityELBO": lambda: objectives.CapacityELBO(1.0),
    "FreeBits": lambda: objectives.FreeBits(0.1, by_latent=True),
    "BetaTCVAE": lambda: objectives.BetaTCVAE(80),
    "MMD": lambda: objectives.MMD(10.0),
    "DIPVAE": lambda: objectives.DIPVAE(),
    "WakeSleep": lambda: objectives.WakeSleep(3, sleep=0.5),
    "AdversarialAutoencoder": lambda: objectives.AdversarialAutoencoder(nn.MLP(LATENT, 1)),
    "VAEGAN": lambda: objectives.VAEGAN(nn.MLP(12, 8), nn.MLP(8, 1)),
}

PAIRS = {
    "dreg": (vae, lambda: objectives.IWAE(4, estimator="dreg", num_bounds=2)),
    "FactorVAE": (vae, lambda: objectives.FactorVAE(nn.MLP(LATENT, 1))),
    "DAIS": (lambda: refined(partial(guides.DAIS, num_steps=2)), Trace_ELBO),
    "mean field": (vae, Trace_ELBO),
    "batch statistics": (lambda: vae(encoder=Noisy()), Trace_ELBO),
    "score function": (lambda: discrete({}), Trace_ELBO),
    "enumerated": (lambda: discrete({"enumerate": "parallel"}), TraceEnum_ELBO),
    "bare parameters": (bare, Trace_ELBO),
    "semi-supervised": (semi_supervised, objectives.SemiSupervisedELBO),
}
SLOW_PAIRS = {
    **{name: (partial(vae, getattr(guides, name)), Trace_ELBO) for name in GUIDES},
    **{name: (vae, objective) for name, objective in OBJECTIVES.items()},
    "SemiAmortized": (lambda: refined(partial(guides.SemiAmortized, num_steps=2)), Trace_ELBO),
    "Local": (local, Trace_ELBO),
    "bottom-up": (lambda: hierarchy("up"), Trace_ELBO),
    "ladder": (lambda: hierarchy("down"), lambda: objectives.BetaELBO(2.0)),
    "VIMCO": (lambda: categories("sampled"), lambda: objectives.VIMCO(3)),
    "categories summed out": (lambda: categories("enumerated"), lambda: TraceEnum_ELBO(max_plate_nesting=1)),
    "straight-through": (lambda: categories("straight-through"), Trace_ELBO),
    "Gumbel-softmax": (lambda: categories("relaxed"), lambda: objectives.IWAE(3)),
    "full rank": (lambda: vae(guides.FullRank), Trace_ELBO),
    "flow": (lambda: vae(guides.Flow), Trace_ELBO),
    "analytic": (vae, TraceMeanField_ELBO),
    "analytic, full rank": (lambda: vae(guides.FullRank), TraceMeanField_ELBO),
    "analytic, oracle": (lambda: oracle_pair(guides.MeanField), TraceMeanField_ELBO),
    "particles": (vae, lambda: Trace_ELBO(num_particles=3)),
    "vectorised": (vae, lambda: Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)),
    "Renyi": (vae, lambda: RenyiELBO(alpha=0.5, num_particles=3)),
    "graph": (vae, TraceGraph_ELBO),
    "mixture prior": (lambda: vae(prior=priors.MixtureOfGaussians(LATENT, num_components=4)), Trace_ELBO),
    "Laplace prior": (lambda: vae(prior=priors.Laplace(LATENT)), Trace_ELBO),
    "continuous Bernoulli": (lambda: vae(likelihood=likelihoods.ContinuousBernoulli()), Trace_ELBO),
    "Gaussian": (lambda: vae(likelihood=likelihoods.Gaussian()), Trace_ELBO),
    "convolutions": (
        lambda: vae(encoder=nn.ConvEncoder((1, 3, 4), 8), decoder=nn.ConvDecoder(LATENT, (1, 3, 4))),
        Trace_ELBO,
    ),
    "exact": (lambda: oracle_pair(guides.Exact), Trace_ELBO),
    "oracle": (lambda: oracle_pair(guides.MeanField), Trace_ELBO),
    "global latent": (bayesian, Trace_ELBO),
    **{name: (lambda make=make: vae(prior=make()), Trace_ELBO) for name, make in PRIORS.items()},
    **{name: (lambda make=make: likely(make()), Trace_ELBO) for name, make in LIKELIHOODS.items()},
    **{name: (lambda make=make: vae(**make()), Trace_ELBO) for name, make in NETWORKS.items()},
    "VampPrior": (vamp, Trace_ELBO),
    "missing values": (holes, Trace_ELBO),
    "conditional": (conditional, Trace_ELBO),
    "clusters": (clustering, lambda: TraceEnum_ELBO(max_plate_nesting=1)),
    "Bayesian decoder": (with_globals, Trace_ELBO),
}
CASES = [*PAIRS, *(pytest.param(name, marks=slow) for name in SLOW_PAIRS)]


@pytest.fixture
def gradients(request):
    """The loss and gradient of a pair in float64, and a batch."""
    make, objective = {**PAIRS, **SLOW_PAIRS}[request.param]
    x = DATA.double()
    with torch.random.fork_rng(), pyro.get_param_store().scope(), poutine.block():
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            model, guide, *covariates = make()
            pair, batch = Pair(model, guide), (x, *covariates)
            for module in pair.modules.values():
                module.double()
            layout, _, _ = pair.read(batch)
            params, bare_params = find_params(pair, as_data(batch), layout)
            constraints = pyro.get_param_store().get_state()["constraints"]
            elbo = objective()
            own = [elbo.own.double()] if isinstance(elbo, objectives.Objective) else []
            modules = [*pair.modules.values(), *own]
            state = State(modules, bare_params, {name: constraints[name] for name in bare_params})
            elbo.loss(pair.model, pair.guide, *batch)  # guesses its plate nesting
            with pyro.validation_enabled(False):
                yield Gradients(pair, layout, elbo, params, state), (*batch, torch.arange(len(x)))
        finally:
            torch.set_default_dtype(before)


@pytest.mark.parametrize("gradients", CASES, indirect=True)
def test_loss_and_gradients_are_those_of_the_eager_step(gradients, monkeypatch):
    monkeypatch.setenv("CI", "true")  # under which Inductor is stricter
    step, (x, *covariates) = gradients
    function = compiled(step.pure, [*step.state.copies(), x, *covariates])
    buffers = [t for t in step.state.leaves if not t.requires_grad]
    for other in (x, 1 - x):
        before = [t.detach().clone() for t in step.state.leaves]
        torch.manual_seed(3)
        expected = step.measure((other, *covariates))
        after = [t.clone() for t in buffers]
        with torch.no_grad():
            for t, value in zip(step.state.leaves, before, strict=True):
                t.copy_(value)
            torch.manual_seed(3)
            found = function(*step.state.values, other, *covariates)
        assert [f is None for f in found] == [e is None for e in expected]
        for f, e in zip(found, expected, strict=True):
            if e is not None:
                torch.testing.assert_close(f, e, rtol=1e-10, atol=1e-10, equal_nan=True)
        for f, e in zip(buffers, after, strict=True):
            torch.testing.assert_close(f, e, rtol=1e-10, atol=1e-10)


def quick(model, guide, x, **options):
    return fit(model, guide, x, **{"progress": False, "batch_size": 16, **options})


def test_a_whole_compiled_fit_ends_where_the_eager_one_does_and_compiles_a_ragged_batch_once(monkeypatch):
    """Their noise is the same, so that rounding alone is between them: far less than a Monte Carlo error."""
    calls = []
    monkeypatch.setattr(compiling, "compiled", lambda *a: calls.append(1) or compiled(*a))
    options = {"epochs": 30, "validation_data": bits(50, seed=1), "lr": lambda s: 0.01 / (1 + s)}
    eager, fast = (quick(*make_vae(), bits(40), compile=c, **options) for c in (False, True))
    assert len(calls) == 2  # batches of 16 and of 8, over 30 epochs
    one, other = (f.history["validation_bound"].iloc[-1] for f in (eager, fast))
    monte_carlo = evaluate(*make_vae(), bits(50, seed=1), num_particles=10, progress=False).summary()["elbo_mc_se"]
    assert abs(one - other) < min(1e-3, monte_carlo)


def uncompiled(function, inputs):
    """What compiling gives, without the time that it takes."""
    needs = [t.requires_grad for t in inputs]
    return lambda *tensors: function(*(t.clone().requires_grad_(n) for t, n in zip(tensors, needs, strict=True)))


def without_time(fitted):
    return fitted.history.drop(columns="seconds")


@pytest.fixture
def free(monkeypatch):
    """Compiling costs nothing, neither by the rule nor in fact."""
    monkeypatch.setattr(engine, "COMPILE_SECONDS", 0.0)
    for module in (compiling, weights, field):
        monkeypatch.setattr(module, "compiled", uncompiled)


def test_work_is_counted():
    x, w, b = torch.ones(5, 3), torch.ones(3, 2), torch.ones(2)
    with Counted() as counted:
        found = (x @ w + b).relu()
    assert counted.work == Work(operations=3, numbers=30)
    assert found.equal(torch.full((5, 2), 4.0))
    assert counted.work.times(4, rows=10) == Work(operations=12, numbers=1200)


def decided(work, calls, functions=1, device="cpu"):
    choice = Runner("auto", "a call", False)
    choice.decide(work, calls, torch.device(device), functions)
    return choice.chosen


def test_much_work_is_compiled_and_little_is_not():
    step = Work(342, 6.7e6)  # of a VAE of 400 hidden units on 256 pictures of MNIST
    assert not decided(step, 200)
    assert decided(step, 20_000)
    assert decided(step, 20_000, device="cuda")
    least = next(calls for calls in range(0, 20_000, 100) if decided(step, calls))
    assert not decided(step, least, functions=2)  # a last batch of another size is one more to compile
    assert decided(step, 2 * least, functions=2)


def test_auto_says_what_it_did_and_why(capsys, free, monkeypatch):
    fast = quick(*make_vae(), bits(40), epochs=3, compile="auto", progress=True)
    assert "left, each" in fast.compiled
    assert "compiled, since that pays" in fast.compiled
    assert fast.compile
    assert fast.compiled in capsys.readouterr().out
    monkeypatch.setattr(engine, "COMPILE_SECONDS", 20.0)
    eager = quick(*make_vae(), bits(40), epochs=3, compile="auto")
    assert "s: eager, since compiling does not pay" in eager.compiled
    assert not eager.compile


@pytest.mark.parametrize("chosen", [False, True])
def test_auto_ends_where_the_same_decision_does(chosen, request):
    if chosen:
        request.getfixturevalue("free")
    options = {"epochs": 5, "validation_data": bits(10, seed=1), "batch_size": 16}
    auto, told = (quick(*make_vae(), bits(40), compile=c, **options) for c in ("auto", chosen))
    assert auto.compile is told.compile is chosen
    assert without_time(auto).equals(without_time(told))
    for p, q in zip(auto.guide.parameters(), told.guide.parameters(), strict=True):
        assert p.equal(q)


@pytest.mark.parametrize("chosen", [False, True])
def test_auto_evaluates_as_the_same_decision_does(chosen, request):
    if chosen:
        request.getfixturevalue("free")
    pair, x = make_vae(), bits(20)
    asked = {
        "log weights": lambda c: log_weights(*pair, x, num_particles=5, batch_size=8, compile=c, progress=False),
        "annealing": lambda c: (
            ais(pair[0], x, num_temperatures=5, num_chains=2, compile=c, progress=False).log_evidence
        ),
    }
    for name, ask in asked.items():
        assert ask("auto").equal(ask(chosen)), name


CLOCKS = {"standing still": lambda: 0.0, "racing": itertools.count(0.0, 1000.0).__next__}


@pytest.mark.parametrize("clock", CLOCKS)
def test_no_clock_decides(clock, monkeypatch):
    """Whatever else the machine has to do: the same work is decided in the same way, to the same result."""
    options = {"epochs": 30, "compile": "auto"}
    right = quick(*make_vae(), bits(40), **options)
    pair, x = (right.model, right.guide), bits(200)
    eager = log_weights(*pair, x, num_particles=9, batch_size=4, compile=False, progress=False)
    for name in ("perf_counter", "monotonic", "process_time", "time"):
        monkeypatch.setattr(time, name, CLOCKS[clock])
    under = quick(*make_vae(), bits(40), **options)
    assert under.compiled == right.compiled
    assert without_time(under).equals(without_time(right))
    assert log_weights(*pair, x, num_particles=9, batch_size=4, progress=False).equal(eager)  # 50 chunks


def test_a_fit_resumes_with_what_auto_chose(tmp_path, free, monkeypatch):
    options = {"batch_size": 40, "compile": "auto", "checkpoint": tmp_path}
    first = quick(*make_vae(), bits(40), steps=30, **options)
    assert first.compile
    monkeypatch.setattr(engine, "COMPILE_SECONDS", 1e9)
    resumed = quick(*make_vae(), bits(40), steps=60, resume=True, **options)
    assert resumed.compile
    assert resumed.compiled.startswith(first.compiled)  # and nothing is decided twice
    assert resumed.compiled.count("since that pays") == 1
    assert load(tmp_path).compile


def branching():
    model, guide = make_vae()
    return (lambda x: model(x if x.sum() > 3 else 1 - x)), guide


def counting():
    model, guide = make_vae()
    calls = [0]

    def counted(x):
        calls[0] += 1
        return model(x)

    return counted, guide


def leaving():
    """Computes with numpy, which no graph sees."""

    def weighed(program):
        def outside(x):
            with poutine.scale(scale=float(x.detach().numpy().mean())):
                return program(x)

        return outside

    model, guide = make_vae()
    return weighed(model), weighed(guide)


UNTRACEABLE = {
    "branching": (branching, "branches on the value of a tensor"),
    "counting": (counting, "changes the Python value 'model.calls.0'"),
    "leaving": (leaving, "differ from those run eagerly|cannot be traced"),
}


@pytest.mark.parametrize("name", UNTRACEABLE)
def test_what_cannot_be_compiled_runs_eagerly_and_says_why(name):
    make, why = UNTRACEABLE[name]
    eager = quick(*make(), bits(40), steps=6, compile=False)
    with pytest.warns(UserWarning, match=f"compile=True, but the step runs eagerly: .*({why})"):
        tried = quick(*make(), bits(40), steps=6, compile=True)
    assert "runs eagerly" in tried.compiled
    torch.testing.assert_close(
        torch.tensor(tried.history["loss"].to_numpy()),
        torch.tensor(eager.history["loss"].to_numpy()),
        rtol=1e-6,
        atol=0,
    )


def test_two_ways_are_compared_without_rounding_convolutions():
    before, seen = torch.backends.cudnn.allow_tf32, []
    runner = Runner(True, "the call", progress=False)
    agrees = lambda function: seen.append(torch.backends.cudnn.allow_tf32) or True  # noqa: E731
    assert runner.function("key", lambda: abs, agrees) is abs
    assert seen == [False]
    assert torch.backends.cudnn.allow_tf32 == before


def test_an_objective_that_freezes_its_draws_when_traced_is_found_out():
    """TraceGraph_ELBO follows samples that are not reparametrised with tensors of a class of its own."""
    with torch.random.fork_rng(), pytest.warns(UserWarning, match="step runs eagerly"):
        quick(*discrete({}), bits(40), steps=3, objective=TraceGraph_ELBO(), compile=True)


def test_an_optimizer_of_pyro_runs_eagerly():
    with pytest.warns(UserWarning, match=r"Pyro's optimizers take their steps in pyro\.infer\.SVI"):
        quick(*make_vae(), bits(40), steps=3, optimizer=pyro.optim.Adam({"lr": 1e-3}), compile=True)


def test_compile_is_checked():
    for call in (quick, evaluate, log_weights):
        options = {"num_particles": 3} if call is log_weights else {}
        with pytest.raises(ValueError, match='compile must be True, False or "auto", got 1'):
            call(*make_vae(), bits(5), compile=1, **options)


# bfloat16


def test_bfloat16_is_of_the_networks_alone():
    seen = {}
    model, guide = make_vae()

    def watched(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", model.prior())
            features = model.decoder(z)
            seen["features"], seen["weight"] = features, model.decoder.layers[0].weight
            pyro.module("decoder", model.decoder)
            pyro.sample("x", model.likelihood(features), obs=x)

    fitted = quick(watched, guide, bits(40), steps=20, precision="bfloat16", compile=False)
    assert seen["features"].dtype == seen["weight"].dtype == torch.float32
    assert fitted.history["bound"].notna().all()
    x = bits(200)
    runs = {}
    for precision in ("float32", "bfloat16"):
        made = make_vae()
        placed = place(*made, as_data(x), None, device="cpu", precision=precision)
        with pyro.get_param_store().scope(), torch.random.fork_rng(), pyro.validation_enabled(False):
            read = read_problem(placed, None, 200, in_parts=False)
            torch.manual_seed(0)
            step = Gradients(read.pair, read.layout, read.objective, read.params, read.state, read.bfloat16)
            runs[precision] = float(step.measure((x, torch.arange(len(x))))[0][1])
    difference = abs(runs["bfloat16"] - runs["float32"])
    assert 0 < difference < 0.02  # 8 bits: rounding of 0.4% in logits of order 1, averaged over 200 x 12


# Steps without a look at the loss, as on CUDA


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_a_step_that_nobody_looks_at_changes_nothing_once_it_is_not_finite():
    fits = {}
    for looks in (True, False):
        placed = place(*make_vae(), as_data(bits(40)), None, device="cpu", precision="float32")
        with pyro.get_param_store().scope(), torch.random.fork_rng(), pyro.validation_enabled(False):
            read = read_problem(placed, None, 40, in_parts=False)
            optimizer = torch.optim.Adam(read.params.values(), lr=0.01)
            step = Gradients(read.pair, read.layout, read.objective, read.params, read.state)
            compiler = compiling.Compiler(False, read.pair, lambda: (0, 1), False)
            stepper = TorchStepper(step, compiler, optimizer, 5.0, Group(), False)
            stepper.on_host = looks
            torch.manual_seed(0)
            for _ in range(5):
                stepper.step((bits(40), torch.arange(40)))
            fits[looks] = [p.detach().clone() for p in read.params.values()]
            assert bool(stepper.healthy)
            stepper.step((bits(40) * float("nan"), torch.arange(40)))
            assert not bool(stepper.healthy)
            stepper.step((bits(40) * float("nan"), torch.arange(40)))
            for p, q in zip(read.params.values(), fits[looks], strict=True):
                assert p.equal(q)
    for p, q in zip(fits[True], fits[False], strict=True):
        assert p.equal(q)


# Log weights


@pytest.mark.parametrize(
    "guide", [guides.MeanField, *(pytest.param(g, marks=slow) for g in (guides.FullRank, guides.Flow))]
)
def test_compiled_log_weights_are_the_eager_ones(guide):
    """In chunks of particles that do not divide their number, and with a last batch that is shorter."""
    model, made = make_vae(guide)
    model.double(), made.double()
    options = {"num_particles": 513, "batch_size": 16, "progress": False}
    eager, fast = (log_weights(model, made, bits(40), compile=c, **options) for c in (False, True))
    torch.testing.assert_close(fast, eager, rtol=0, atol=1e-10)
    other = log_weights(model, made, bits(40), compile=True, **{**options, "batch_size": 40})
    torch.testing.assert_close(other, eager, rtol=0, atol=1e-10)


def test_a_guide_runs_once_a_datum_where_it_broadcasts(monkeypatch):
    model, guide = make_vae()
    rows = []
    run = guide.forward
    monkeypatch.setattr(guide, "forward", lambda x: rows.append(len(x)) or run(x))
    options = {"num_particles": 300, "batch_size": 20, "compile": False, "progress": False}
    once = log_weights(model, guide, bits(40), **options)
    assert rows.count(3000) == 1  # one chunk is scored both ways
    assert set(rows) == {32, 20, 3000}  # 32: the pair is read once
    monkeypatch.setattr(weights, "broadcasts", lambda *_: False)
    torch.testing.assert_close(log_weights(model, guide, bits(40), **options), once, rtol=1e-5, atol=1e-5)


def test_a_guide_that_would_be_wrong_with_particles_outside_runs_as_it_was_written():
    """It reads the first latent's column by position from the left."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = torch.nn.Linear(12, 6)

    def two(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            b = pyro.sample("b", dist.Normal(a[:, 0], 1.0))
            pyro.sample("x", dist.Bernoulli(logits=b[:, None] + x.new_zeros(12)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            h = encoder(x)
            a = pyro.sample("a", dist.Normal(h[:, :2], h[:, 2:4].exp()).to_event(1))
            pyro.sample("b", dist.Normal(h[:, 4] + a[:, 0], h[:, 5].exp()))

    x = bits(6)
    whole = log_weights(two, guide, x, num_particles=300, batch_size=2, progress=False)
    with torch.no_grad(), torch.random.fork_rng(), pyro.get_param_store().scope():
        torch.manual_seed(0)
        rows = x.repeat_interleave(4000, 0)
        trace = poutine.trace(guide).get_trace(rows)
        model_trace = poutine.trace(poutine.replay(two, trace=trace)).get_trace(rows)
        total = sum(s["fn"].log_prob(s["value"]) for _, s in sample_sites(model_trace))
        total = (total - sum(s["fn"].log_prob(s["value"]) for _, s in sample_sites(trace))).view(6, 4000)
    error = (whole.var(0) / 300 + total.var(1) / 4000).sqrt()
    assert bool(((whole.mean(0) - total.mean(1)).abs() < 5 * error).all())  # 6 comparisons: below 4e-6


def test_draws_from_a_distribution_that_is_computed_are_not_compiled():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = torch.nn.Linear(12, 2)

    def model(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(x.new_ones(len(x)), 1.0))
            pyro.sample("x", dist.Poisson(rate[:, None].expand(-1, 12)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            a, b = encoder(x).exp().unbind(-1)
            pyro.sample("rate", dist.Gamma(a, b))

    with pytest.warns(UserWarning, match="draws from a distribution that is computed"):
        tried = log_weights(model, guide, bits(40), num_particles=4, compile=True, progress=False)
    assert tried.equal(log_weights(model, guide, bits(40), num_particles=4, compile=False, progress=False))


def test_a_set_smaller_than_a_batch_is_compiled_too(monkeypatch):
    calls = []
    monkeypatch.setattr(weights, "compiled", lambda function, inputs: calls.append(1) or function)
    log_weights(*make_vae(), bits(5), num_particles=4, compile=True, progress=False)
    assert calls


class LargestTensor(TorchDispatchMode):
    """Notes the memory of the largest tensor that any operation returns: `.bytes`."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, torch.Tensor):
                self.bytes = max(self.bytes, result.untyped_storage().nbytes())
        return results


def test_no_tensor_of_an_evaluation_grows_with_the_number_of_particles_but_the_weights():
    """A batch's weights, [K, 32], take 5 MB; the activations of 20,000 particles at once would take 40 MB a layer."""
    with LargestTensor() as few:
        evaluate(*make_vae(), bits(64), num_particles=500, compile=False, progress=False)
    with LargestTensor() as many:
        evaluate(*make_vae(), bits(64), num_particles=20_000, compile=False, progress=False)
    assert few.bytes <= many.bytes <= max(few.bytes, 8 * 64 * 20_000)
