"""Public calls of pyrovae on small data, with fixed seeds: ``same_numbers.py`` makes them and compares their numbers.

Only what ``pyrovae`` and its catalogues list is used, so that modules can move without a change here. A call makes all
that it needs, after torch's own seed is set, and returns what is to be compared: numbers, tensors and tables, nested.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

import pyrovae
from pyrovae import data, guides, likelihoods, models, nn, objectives, plots, priors

ROUNDING = 1e-6  # largest relative difference that is taken for rounding
COMPILED = 1e-4  # the same where kernels are compiled, which add up in another order on another processor
QUIET: dict[str, Any] = {"progress": False, "device": "cpu"}
EAGER: dict[str, Any] = {**QUIET, "compile": False}
LATENT, WIDTH, PIXELS = 3, 8, 64
Pair = tuple[Any, Any]


@dataclass(frozen=True)
class Call:
    """A call and what is compared of it.

    Attributes:
        act: makes the call and returns its numbers.
        what: is compared, in words.
        tolerance: largest relative difference at which it counts as the same.
    """

    act: Callable[[], Any]
    what: str
    tolerance: float = ROUNDING


CALLS: dict[str, Call] = {}


def call(what: str, tolerance: float = ROUNDING) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Enter a function among the calls, under its own name."""

    def register(act: Callable[[], Any]) -> Callable[[], Any]:
        CALLS[act.__name__] = Call(act, what, tolerance)
        return act

    return register


# Data and pairs


@cache
def pictures() -> data.Data:
    """Binarised digits of the training set."""
    return data.Digits(binarise=data.Static()).splits(seed=0).train


def digits(size: int = 32) -> data.Data:
    return pictures().subset(slice(0, size))


def bits(size: int = 32) -> Tensor:
    return digits(size).batch(slice(0, size))[0]


def encoder(more: int = 0) -> nn.MLP:
    return nn.MLP(PIXELS + more, WIDTH, hidden=(WIDTH,))


def decoder(columns: int = PIXELS, more: int = 0) -> nn.MLP:
    return nn.MLP(LATENT + more, columns, hidden=(WIDTH,))


def parts(**options: Any) -> dict[str, Any]:
    """Return what a model of pictures is made of."""
    usual = {"prior": priors.StandardNormal(LATENT), "decoder": decoder(), "likelihood": likelihoods.Bernoulli()}
    return {**usual, **options}


def vae(guide: Callable[..., Any] = guides.MeanField, **options: Any) -> Pair:
    """Return a VAE of pictures and a guide as they start."""
    return models.VAE(**parts(**options)), guide(encoder(), LATENT)


def linear(size: int = 24) -> tuple[Any, Any, Tensor]:
    """Return a linear-Gaussian model, a guide as it starts, and data drawn from the model."""
    model = models.LinearGaussian(2, 5, isotropic=False)
    with torch.no_grad():
        model.raw_scale.fill_(-0.5)
        model.bias.normal_()
        x = model.evidence().sample((size,))
    return model, guides.FullRank(nn.MLP(5, WIDTH, hidden=(WIDTH,)), 2), x


def layers(make: str = "Ladder") -> Pair:
    """Return a model of two latent layers and a guide of them."""
    transition = nn.MLP(2, 2 * LATENT, hidden=(WIDTH,))
    model = models.HierarchicalVAE(**parts(prior=priors.StandardNormal(2), transitions=[transition]))
    if make == "Ladder":
        return model, guides.Ladder([encoder(), nn.MLP(WIDTH, WIDTH, hidden=())], model)
    upper = guides.FullRank(nn.MLP(LATENT, WIDTH, hidden=()), 2)
    return model, guides.Hierarchical([guides.MeanField(encoder(), LATENT), upper])


def clusters() -> Pair:
    """Return a model of clusters and its guide."""
    made = {"decoder": decoder(), "likelihood": likelihoods.Bernoulli()}
    model = models.GaussianMixtureVAE(num_clusters=4, latent_dim=LATENT, **made)
    return model, guides.Clustered(guides.MeanField(encoder(), LATENT), model)


def bayesian(size: int = 16) -> tuple[Any, Any, Tensor]:
    """Return a model with an uncertain decoder, its guide, and data."""
    x = bits(size)
    model = models.BayesianVAE(**parts(decoder=nn.MLP(LATENT, PIXELS, hidden=())), num_data=size)
    return model, guides.WithGlobals.of(guides.MeanField(encoder(), LATENT), model, x), x


def bare() -> Pair:
    """Return two functions whose parameters are bare ones."""

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", lambda: torch.linspace(-1, 1, 5))
        scale = pyro.param("scale", torch.ones(5), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(loc + z[..., None], scale).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        weight = pyro.param("weight", lambda: 0.1 * torch.ones(5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ weight, 0.5))

    return model, guide


# Fits


def fitted(model: Any, guide: Any, x: Any, **options: Any) -> pyrovae.Fit:
    return pyrovae.fit(model, guide, x, **{"steps": 4, "batch_size": 12, "lr": 1e-2, **EAGER, **options})


def told(found: pyrovae.Fit) -> tuple[Any, ...]:
    """Return the losses of a fit, the last row of its history, and its modules' parameters in one row."""
    modules = [module for module in (found.model, found.guide) if isinstance(module, torch.nn.Module)]
    values = [value.detach().double().flatten() for module in modules for value in module.parameters()]
    last = found.history[["bound", "reconstruction", "kl", "grad_norm", "lr", "validation_bound"]].tail(1)
    return found.history["loss"].tolist(), last, torch.cat(values) if values else []


def losses(pairs: dict[str, Callable[[], tuple[Any, ...]]]) -> list[list[float]]:
    """Return the losses of two steps of each of several fits: of ``(model, guide, data)`` or with an objective."""
    found = []
    for make in pairs.values():
        torch.manual_seed(0)
        model, guide, x, *objective = make()
        options = {"objective": objective[0]} if objective else {}
        found.append(fitted(model, guide, x, steps=2, batch_size=16, **options).history["loss"].tolist())
    return found


@call("history and parameters: MeanField, validation data, patience")
def fit_mean_field() -> Any:
    options = {"validation_data": pictures().subset(slice(32, 48)), "patience": 2}
    return told(fitted(*vae(), digits(), steps=None, epochs=3, **options))


@call("history and parameters: Flow, IWAE, a schedule of the learning rate, clipped gradients")
def fit_flow() -> Any:
    options = {"objective": objectives.IWAE(3), "lr": lambda step: 0.01 / (1 + step), "clip_norm": 5.0}
    return told(fitted(*vae(partial(guides.Flow, hidden=(WIDTH,), context_dim=4)), digits(), **options))


@call("history and parameters: Clustered, a class summed out by TraceEnum_ELBO")
def fit_clusters() -> Any:
    return told(fitted(*clusters(), digits(), objective=objectives.TraceEnum_ELBO(max_plate_nesting=1)))


@call("history and parameters: two latent layers, Ladder and Hierarchical, free bits")
def fit_layers() -> Any:
    options = {"objective": objectives.FreeBits(0.1)}
    return [told(fitted(*layers(make), digits(), **options)) for make in ("Ladder", "Hierarchical")]


@call("history and parameters: SemiSupervisedVAE with a third of the labels")
def fit_semi_supervised() -> Any:
    x, classes = bits(), torch.arange(32) % 3
    model = models.SemiSupervisedVAE(**parts(decoder=decoder(more=3)), num_classes=3)
    guide = guides.ClassConditional(encoder(), guides.MeanField(encoder(more=3), LATENT), 3)
    known = torch.where(torch.arange(32) % 9 < 3, classes, -1)
    return told(fitted(model, guide, (x, known), objective=objectives.SemiSupervisedELBO()))


@call("history and parameters: ConditionalVAE with a prior given its covariates")
def fit_conditional() -> Any:
    prior = priors.ConditionalNormal(nn.MLP(3, 2 * LATENT, hidden=()))
    model = models.ConditionalVAE(**parts(prior=prior, decoder=decoder(more=3)))
    covariates = torch.eye(3)[torch.arange(32) % 3]
    return told(fitted(model, guides.MeanField(encoder(more=3), LATENT), (bits(), covariates)))


@call("history and parameters: BayesianVAE, WithGlobals")
def fit_bayesian() -> Any:
    return told(fitted(*bayesian()))


@call("history and parameters: values missing, Missing and Observed")
def fit_missing() -> Any:
    holes = torch.rand(32, 6) < 0.3
    holes[:, 0] = False  # no observation may be missing as a whole
    holed = data.Data(torch.randn(32, 6).masked_fill(holes, torch.nan), missing=True)
    likelihood = likelihoods.Missing(likelihoods.Gaussian())
    guide = guides.MeanField(nn.Observed(nn.MLP(12, WIDTH, hidden=(WIDTH,))), LATENT)
    return told(fitted(models.VAE(**parts(decoder=decoder(6), likelihood=likelihood)), guide, holed))


@call("history and log weights: bare parameters of two functions")
def fit_bare() -> Any:
    x = linear()[2]
    found = fitted(*bare(), x)
    return told(found), pyrovae.log_weights(found.model, found.guide, x, num_particles=3, **EAGER)


@call("history and parameters: Local, SemiAmortized, DAIS")
def fit_refined() -> Any:
    makers = [
        lambda guide, model: guides.Local(guide, bits()),
        lambda guide, model: guides.SemiAmortized(guide, model, num_steps=2),
        lambda guide, model: guides.DAIS(guide, model, num_steps=2),
    ]
    found = []
    for make in makers:
        torch.manual_seed(0)
        model, guide = vae()
        found.append(told(fitted(model, make(guide, model), bits())))
    return found


@call("history and parameters: double precision, bfloat16, bits drawn anew, an optimizer of Pyro")
def fit_options() -> Any:
    grey = data.Digits(binarise=data.Dynamic()).splits(seed=0).train.subset(slice(0, 32))
    adam = pyro.optim.ClippedAdam({"lr": 0.01, "clip_norm": 1.0})
    chosen = [{"precision": "float64"}, {"precision": "bfloat16"}, {}, {"optimizer": adam, "lr": 1e-3}]
    found = []
    for options, x in zip(chosen, (digits(), digits(), grey, digits()), strict=True):
        torch.manual_seed(0)
        found.append(told(fitted(*vae(), x, **options)))
    return found


@call("whether it was compiled, and losses: a compiled step", COMPILED)
def fit_compiled() -> Any:
    found = fitted(*vae(), digits(), compile=True, batch_size=16)
    return found.compile, found.history["loss"].tolist()


@call("history and parameters: a checkpoint of three steps, resumed to six")
def fit_resumed() -> Any:
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for options in ({"steps": 3}, {"steps": 6, "resume": True}):
            torch.manual_seed(0)
            found.append(told(fitted(*vae(), digits(), checkpoint=folder, **options)))
    return found


@call("history, parameters and log weights of a fit that was saved and loaded")
def save_and_load() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        fitted(*layers(), digits()).save(folder)
        found = pyrovae.load(folder)
    return told(found), pyrovae.log_weights(found.model, found.guide, digits(8), num_particles=3, **EAGER)


@call("losses: every objective of the catalogue")
def every_objective() -> Any:
    critic = partial(nn.MLP, LATENT, 1, hidden=(WIDTH,))
    made = {
        "Trace_ELBO": objectives.Trace_ELBO, "TraceMeanField_ELBO": objectives.TraceMeanField_ELBO,
        "IWAE, stl": lambda: objectives.IWAE(3, estimator="stl"), "PIWAE": lambda: objectives.PIWAE(2, num_bounds=2),
        "IWAE, dreg": lambda: objectives.IWAE(3, estimator="dreg"), "CIWAE": lambda: objectives.CIWAE(3),
        "Renyi": lambda: objectives.Renyi(0.5, 3), "Chi": lambda: objectives.Chi(2, 3),
        "BetaELBO": lambda: objectives.BetaELBO(objectives.linear(5, start=0.5)),
        "BetaELBO, cyclical": lambda: objectives.BetaELBO(objectives.cyclical(4), analytic=False),
        "CapacityELBO": lambda: objectives.CapacityELBO(objectives.sigmoid(2, width=1.0)),
        "FreeBits": lambda: objectives.FreeBits(objectives.constant(0.1), by_latent=True),
        "BetaTCVAE": lambda: objectives.BetaTCVAE(32), "DIPVAE": objectives.DIPVAE,
        "MMD": lambda: objectives.MMD(10.0, kl_weight=0.1), "WakeSleep": lambda: objectives.WakeSleep(3, sleep=0.5),
        "FactorVAE": lambda: objectives.FactorVAE(critic()),
        "AdversarialAutoencoder": lambda: objectives.AdversarialAutoencoder(critic()),
        "VAEGAN": lambda: objectives.VAEGAN(encoder(), nn.MLP(WIDTH, 1, hidden=(WIDTH,))),
    }  # fmt: skip
    return losses({name: lambda make=make: (*vae(), digits(), make()) for name, make in made.items()})


@call("losses: every guide of one latent that is not in a fit above")
def every_guide() -> Any:
    small = {"hidden": (WIDTH,), "context_dim": 4}
    made: dict[str, dict[str, Any]] = {
        "FullRank": {}, "LowRank": {"rank": 1}, "Mixture": {"num_components": 2}, "Auxiliary": small, "Planar": small,
        "Radial": small, "Householder": small, "MaskedAutoregressive": small, "SplineCoupling": small,
        "SplineAutoregressive": small,
    }  # fmt: skip
    return losses({
        name: lambda name=name, options=options: (*vae(partial(getattr(guides, name), **options)), digits())
        for name, options in made.items()
    })  # fmt: skip


@call("losses: categorical latents summed out, sampled, relaxed and straight through; draws of a prior of codes")
def discrete_latents() -> Any:
    one = dist.OneHotCategorical(logits=torch.zeros(LATENT))
    soft = dist.RelaxedOneHotCategorical(torch.tensor(0.5), logits=torch.zeros(LATENT))

    def pair(how: str, prior: Any = one) -> tuple[Any, ...]:
        return *vae(partial(guides.Categorical, how=how), prior=prior), digits()

    found = losses({
        "enumerated": lambda: (*pair("enumerated"), objectives.TraceEnum_ELBO(max_plate_nesting=1)),
        "sampled": lambda: (*pair("sampled"), objectives.VIMCO(3)),
        "relaxed": lambda: pair("relaxed", soft),
        "straight through": lambda: pair("straight-through"),
    })  # fmt: skip
    codes = priors.Autoregressive(LATENT, 4, hidden=(WIDTH,))()
    drawn = codes.sample((20,))
    return found, drawn, codes.log_prob(drawn)


@call("losses: every prior of the catalogue that is not in a fit above")
def every_prior() -> Any:
    own: dict[str, dict[str, Any]] = {
        "GaussianProcess": {}, "Horseshoe": {}, "Laplace": {}, "MixtureOfGaussians": {"num_components": 3},
        "NormalizingFlow": {"num_steps": 1, "hidden": (WIDTH,)}, "SpikeAndSlab": {}, "StudentT": {},
    }  # fmt: skip
    simple = {
        name: lambda name=name, options=options: (*vae(prior=getattr(priors, name)(LATENT, **options)), digits())
        for name, options in own.items()
    }
    gamma = dist.Gamma(2.0, torch.ones(LATENT)).to_event(1)
    positive = partial(guides.MeanField, support="positive")
    return losses({
        **simple,
        "a distribution": lambda: (*vae(positive, prior=gamma), digits()),
        "UniformSphere": lambda: (*vae(guides.Spherical, prior=priors.UniformSphere(LATENT)), digits()),
        "VampPrior": vamp,
        "Hierarchical": shared,
    })  # fmt: skip


def vamp() -> tuple[Any, ...]:
    model, guide = vae(prior=priors.VampPrior(LATENT, num_components=4))
    model.prior.attach(guide, bits())
    return model, guide, digits()


def shared() -> tuple[Any, ...]:
    """Return a pair with a prior whose scale is a latent that all data share."""
    scale = dist.LogNormal(torch.zeros(LATENT), 1.0).to_event(1)
    prior = priors.Hierarchical(lambda scale: dist.Normal(0.0, scale).to_event(1), {"scale": scale})
    model = models.VAE(**parts(prior=prior), num_data=32)
    return model, guides.WithGlobals.of(guides.MeanField(encoder(), LATENT), model, bits()), digits()


@call("losses, and data drawn: every likelihood of the catalogue")
def every_likelihood() -> Any:
    x = bits()[:, 18:24]  # columns that vary
    mixed = [(likelihoods.Gaussian(), 2), (likelihoods.Categorical(2), 4)]
    made = {
        "Beta": (likelihoods.Beta, 0.8 * x + 0.1), "Categorical": (lambda: likelihoods.Categorical(2), x),
        "ContinuousBernoulli": (likelihoods.ContinuousBernoulli, x), "Gaussian": (likelihoods.Gaussian, x),
        "DiscretisedLogistic": (lambda: likelihoods.DiscretisedLogistic(levels=2, num_components=2), x),
        "HeteroscedasticGaussian": (likelihoods.HeteroscedasticGaussian, x),
        "LogNormal": (likelihoods.LogNormal, x + 1), "Mixed": (lambda: likelihoods.Mixed(mixed), x),
        "Multinomial": (lambda: likelihoods.Multinomial(total_count=6), torch.cat([x[:, :3], 1 - x[:, :3]], 1) * 2),
        "NegativeBinomial": (likelihoods.NegativeBinomial, x), "Ordinal": (lambda: likelihoods.Ordinal(2), x),
        "Poisson": (likelihoods.Poisson, x), "StudentT": (likelihoods.StudentT, x),
        "ZeroInflated": (lambda: likelihoods.ZeroInflated(likelihoods.Poisson()), x),
    }  # fmt: skip

    def pair(make: Callable[[], Any], rows: Tensor) -> tuple[Any, ...]:
        likelihood = make()
        model = models.VAE(**parts(likelihood=likelihood, decoder=decoder(likelihood.features(6))))
        return model, guides.MeanField(nn.MLP(6, WIDTH, hidden=(WIDTH,)), LATENT), rows

    drawn = []
    for likelihood, rows in made.values():
        torch.manual_seed(0)
        simulated = pyrovae.simulate(pair(likelihood, rows)[0], rows, num_simulations=20, **QUIET)
        drawn.append(simulated.data.batch(slice(0, 20))[0])
    return losses({name: partial(pair, *chosen) for name, chosen in made.items()}), drawn


@call("losses: every network of the catalogue")
def every_network() -> Any:
    shape, steps = (1, 8, 8), (8, 8)
    few, slim = {"channels": (4,)}, {"width": WIDTH, "num_heads": 2, "num_layers": 1}
    made: dict[str, tuple[Any, Any]] = {
        "gated": (lambda: nn.GatedMLP(shape, WIDTH, hidden=(WIDTH,)), lambda: nn.GatedMLP(LATENT, shape, hidden=(4,))),
        "normalised": (lambda: nn.MLP(PIXELS, WIDTH, normalisation=torch.nn.LayerNorm, dropout=0.2), decoder),
        "Conv": (lambda: nn.ConvEncoder(shape, WIDTH, **few), lambda: nn.ConvDecoder(LATENT, shape, **few)),
        "Residual": (lambda: nn.ResidualEncoder(shape, WIDTH, **few), lambda: nn.ResidualDecoder(LATENT, shape, **few)),
        "Recurrent": (lambda: nn.RecurrentEncoder(steps, WIDTH), lambda: nn.RecurrentDecoder(LATENT, steps)),
        "Attention": (
            lambda: nn.AttentionEncoder(steps, WIDTH, **slim), lambda: nn.AttentionDecoder(LATENT, steps, **slim)),
    }  # fmt: skip

    def pair(code: Any, decode: Any) -> tuple[Any, ...]:
        return models.VAE(**parts(decoder=decode())), guides.MeanField(code(), LATENT), digits()

    return losses({name: partial(pair, *chosen) for name, chosen in made.items()})


# Data


@call("batches, splits and moments of a table, an array, sprites, digits and a stream")
def data_sets() -> Any:
    table = pd.DataFrame({"a": np.arange(12) / 7, "b": np.arange(12) % 5, "kind": ["one", "two"] * 6})
    with tempfile.TemporaryDirectory() as folder:
        csv, rows = Path(folder) / "table.csv", Path(folder) / "rows.npy"
        table.to_csv(csv, index=False)
        np.save(rows, np.arange(24.0).reshape(8, 3))
        sets = [data.CSV(csv, label="kind", standardise=True), data.Array(rows)]
        found = [[part.batch(slice(0, 3)) for part in one.splits(seed=1)] for one in sets]
    sprites = data.Sprites(size=8, scales=2, orientations=2, positions=3)
    stream = data.Stream(TensorDataset(torch.rand(10, 3), torch.arange(10)), fields=(0,))
    dynamic = data.Digits(binarise=data.Dynamic())
    return found, sets[0].labels, sprites.factors, [one.batch(torch.arange(5, 9)) for one in (sprites, stream, dynamic)]


# Evidence


@call("log weights, of a VAE, of clusters, of two plain functions and of an exact posterior")
def log_weights() -> Any:
    model, _, x = linear()
    asked = [(*vae(), digits()), (*clusters(), digits()), (*bare(), x), (model, guides.Exact(model), x)]
    return [pyrovae.log_weights(*one, num_particles=5, batch_size=10, **EAGER) for one in asked]


@call("all estimates of a observation, their summary and interval")
def evaluate() -> Any:
    found = pyrovae.evaluate(*vae(), digits(), num_particles=100, **EAGER)
    estimates = [getattr(found, name) for name in ("elbo", "elbo_se", "log_evidence", "log_evidence_se", "khat", "ess")]
    return estimates, found.summary(), found.interval(), found.reliable


@call("ELBO and log evidence, compiled", COMPILED)
def evaluate_compiled() -> Any:
    found = pyrovae.evaluate(*vae(), digits(), num_particles=50, **{**EAGER, "compile": True})
    return found.elbo, found.log_evidence


@call("k-hat, its limit, the draws that it needs, and the least reliable data")
def reliability() -> Any:
    found = pyrovae.evaluate(*layers(), digits(), num_particles=60, **EAGER)
    tail = torch.empty(400, 3).exponential_(2.0)
    limits = [pyrovae.khat_limit(size) for size in (1, 100, 5000)]
    return pyrovae.pareto_khat(tail), limits, pyrovae.draws_needed(found.khat), pyrovae.worst(found, 5)


@call("estimates and their summary: importance sampling, and annealing where that fails")
def evidence() -> Any:
    options = {"num_particles": 40, "num_chains": 8, "num_temperatures": 60, "tolerance": 0.4, **QUIET}
    asked = [linear(8), (*layers("Hierarchical"), digits(6))]
    found = [pyrovae.evidence(*one, **options) for one in asked]
    return [(one.log_evidence, one.log_evidence_se, one.annealed, one.reliable, one.summary()) for one in found]


@call("estimates, chains and summary: from the prior and from the guide, temperatures chosen or given")
def ais() -> Any:
    model, guide, x = linear(3)
    few = {"num_chains": 6, **EAGER}
    found = [
        pyrovae.ais(model, x, num_temperatures="auto", max_temperatures=500, **few),
        pyrovae.ais(model, x, guide=guide, num_temperatures=60, num_steps=2, **few),
    ]
    return [(one.log_evidence, one.log_evidence_se, one.acceptance, one.log_weights, one.summary()) for one in found]


@call("bounds from below and above, and their summary")
def bdmc() -> Any:
    model, guide, x = linear(4)
    found = pyrovae.bdmc(model, x, guide=guide, num_chains=6, num_temperatures=60, **EAGER)
    return found.lower, found.lower_se, found.upper, found.upper_se, found.summary()


@call("both gaps, and their summary, with the evidence given or annealed")
def gaps() -> Any:
    model, guide, x = linear(3)
    few = {"num_particles": 30, "num_steps": 15, **QUIET}
    exact = model.log_evidence(x).detach().double()
    known = pyrovae.gaps(model, guide, x, log_evidence=(exact, 0 * exact), **few)
    found = [known, pyrovae.gaps(*vae(partial(guides.Flow, hidden=(WIDTH,))), digits(3), **few)]
    return [(one.approximation, one.amortization, one.refuted, one.summary()) for one in found]


@call("log weights given draws of what all data share")
def given() -> Any:
    model, guide, x = bayesian()
    return pyrovae.log_weights(pyrovae.given(model, guide.draw()), guide.local, x, num_particles=3, **EAGER)


# The model and the guide beside data


@call("latents and data that a model draws")
def simulate() -> Any:
    found = pyrovae.simulate(vae()[0], digits(), num_simulations=50, **QUIET)
    return found.latents, found.data.batch(slice(0, len(found)))[:1], found.seen[:1]


@call("ranks, their p-values, coverage and summary")
def sbc() -> Any:
    quantities = {"square": lambda latents, x: latents["z"].square().sum(-1)}
    found = pyrovae.sbc(*linear(), num_simulations=40, num_draws=19, quantities=quantities, **QUIET)
    return found.everything.values, found.table(), found.coverage(), found.summary()


@call("ranks of features, and their p-values")
def pit() -> Any:
    model, _, x = linear(40)
    found = pyrovae.pit(model, x, num_draws=19, **QUIET)
    return found.values, found.table(), found.pvalue


@call("tables of statistics of replicated sets, of the posterior and of the prior")
def predictive_checks() -> Any:
    statistics = {"mean": torch.mean, "spread": torch.std}
    checks = (pyrovae.posterior_predictive_check, pyrovae.prior_predictive_check)
    return [check(*vae(), digits(), statistics, num_sets=20, **QUIET) for check in checks]


@call("scores of a model's draws")
def sample_quality() -> Any:
    return pyrovae.sample_quality(vae()[0], digits(60), neighbours=3, **QUIET)


# Latents


@call("rates of two layers")
def rates() -> Any:
    return pyrovae.rates(*layers("Hierarchical"), digits(), num_particles=8, **QUIET)


@call("both tables: latents and layers")
def usage() -> Any:
    found = [pyrovae.usage(*pair, digits(), num_draws=8, **QUIET) for pair in (vae(), layers())]
    return [(one.latents, one.layers) for one in found]


@call("what the rate is made of, of a Gaussian guide and of a flow")
def aggregate() -> Any:
    flow = partial(guides.Flow, hidden=(WIDTH,), context_dim=4)
    found = [pyrovae.aggregate(*vae(guide), digits(), **QUIET) for guide in (guides.MeanField, flow)]
    return [(one.rate, one.dimension_wise, one.summary()) for one in found]


@call("means of the guide, and their scores against labels")
def codes() -> Any:
    x = digits(160)
    found = pyrovae.codes(*vae(), x, num_draws=20, **QUIET)
    return found, pyrovae.label_scores(found, x.labels, num_resamples=10)


@call("tests of the codes against the prior, together and by coordinate")
def prior_tests() -> Any:
    found = pyrovae.prior_test(*vae(), digits(), num_permutations=99, **QUIET)
    numbers = found.distance, found.pvalue, found.accuracy, found.kl, found.kl_se
    return numbers, pyrovae.prior_against_posterior(*vae(), digits(), **QUIET)


@call("seven metrics, of a code that is a mixture of the factors")
def disentanglement() -> Any:
    factors = data.Sprites(size=8, scales=2, orientations=2, positions=3).factors.double()
    mixed = factors @ torch.randn(5, 4, dtype=torch.float64)
    return pyrovae.disentanglement(mixed, factors.long(), categorical=[0], num_permutations=1)


# Strategies, ArviZ, figures


def evaluated(guide: Callable[..., Any] = guides.MeanField) -> pyrovae.Evaluation:
    return pyrovae.evaluate(*vae(guide), digits(), num_particles=50, **EAGER)


@call("tables of two strategies of two seeds: evidence, gaps, latents, calibration; a table of evaluations")
def compare() -> Any:
    pairs = {name: [vae(guide) for _ in range(2)] for name, guide in (("a", guides.MeanField), ("b", guides.FullRank))}
    everything = {"with_gaps": True, "with_latents": True, "with_calibration": True}
    found = pyrovae.compare(pairs, digits(4), num_particles=50, **everything, **EAGER)
    return found, pyrovae.comparison({"a": evaluated(), "b": evaluated(guides.FullRank)})


@call("held-out evidence in ArviZ's form, and its comparison")
def elpd() -> Any:
    found = pyrovae.elpd(evaluated())
    total = found.elpd if hasattr(found, "elpd") else found["elpd_loo"]  # of ArviZ 1.x, and of 0.x
    table = pyrovae.elpd_comparison({"a": evaluated(), "b": evaluated(guides.FullRank)})
    return total, found.se, found.pareto_k.values, table


def groups(found: Any, *names: str) -> list[Any]:
    """Return every variable of some groups of an ArviZ object."""
    return [found[name][variable].values for name in names for variable in found[name].data_vars]


@call("every group of an ArviZ object, draws corrected by their weights")
def to_arviz() -> Any:
    names = ("posterior", "posterior_predictive", "prior", "prior_predictive", "log_likelihood")
    options = {"num_draws": 20, "num_particles": 40, "corrected": True, "groups": names, **QUIET}
    found = pyrovae.to_arviz(*vae(), digits(12), **options)
    return groups(found, *names, "sample_stats", "observed_data", "marginal_log_likelihood")


@call("draws of what all data share, and the likelihood given each")
def globals_to_arviz() -> Any:
    found = pyrovae.globals_to_arviz(*bayesian(), num_draws=3, num_particles=8, **QUIET)
    return groups(found, "posterior", "log_likelihood", "sample_stats")


def ranks() -> pyrovae.Ranks:
    return pyrovae.Ranks(torch.randint(10, (30, 2)), 9, ("z[0]", "z[1]"))


@call("probability integral transforms as an ArviZ object")
def ranks_to_arviz() -> Any:
    return groups(pyrovae.ranks_to_arviz(ranks()), "prior_sbc")


@call("chains and their diagnostics, and the guide beside them")
def hmc() -> Any:
    model, guide, x = linear(4)
    options = {"num_chains": 2, "num_warmup": 30, "num_draws": 30, "num_steps": 4, **EAGER}
    found = pyrovae.hmc(model, guide, x, **options)
    error = pyrovae.guide_error(model, guide, x, found, num_draws=60, **QUIET)
    return groups(found, "posterior", "sample_stats"), error


def lines(figures: list[Any]) -> list[np.ndarray]:
    """Return the points of the first lines and scatters of every axis."""
    axes = [axis for figure in figures for axis in figure.axes]
    drawn = [line.get_xydata() for axis in axes for line in islice(axis.get_lines(), 2)]
    return [*drawn, *(points.get_offsets() for axis in axes for points in islice(axis.collections, 1))]


@call("points of figures of strategies and calibration")
def figures_of_strategies() -> Any:
    evaluations = {"a": evaluated(), "b": evaluated(guides.FullRank)}
    table = pyrovae.comparison(evaluations, {"a": 1.0, "b": 2.0})
    scores = pd.DataFrame({"value": [0.5, 0.7], "se": [0.1, 0.2]}, index=["mig", "sap"])
    tested = pyrovae.sbc(*linear(), num_simulations=20, num_draws=9, **QUIET)
    return lines([
        plots.training({"a": fitted(*vae(), digits()).history}), plots.comparison(table), plots.pareto(table),
        plots.reliability(evaluations), plots.scores(scores), plots.ranks(ranks()), tested.plot(),
    ])  # fmt: skip


@call("points of figures of latents and pictures")
def figures_of_latents() -> Any:
    model, guide = vae()
    used = pyrovae.usage(model, guide, digits(), num_draws=8, **QUIET)
    rate = pyrovae.aggregate(model, guide, digits(), **QUIET)
    found = pyrovae.codes(model, guide, digits(), **QUIET)
    pictured = plots.pictures({"data": bits(3)}, (1, 8, 8))
    shown = [image.get_array() for axis in pictured.axes for image in axis.get_images()]
    drawn = [plots.usage(used), plots.aggregate(rate), plots.codes(found, digits().labels)]
    return lines(drawn), shown, len(plots.worst(evaluated(), digits(), 3).axes)
