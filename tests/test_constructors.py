"""Every constructor and function of the catalogues refuses bad arguments in one sentence that names the argument."""

import inspect
import json
import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from pyrovae import guides, likelihoods, models, nn, objectives, priors
from pyrovae.saving.configuration import NotConfigurable, configuration

CATALOGUES = {
    "nn": nn,
    "priors": priors,
    "likelihoods": likelihoods,
    "guides": guides,
    "models": models,
    "objectives": objectives,
}


def encoder():
    return nn.MLP(6, 8, hidden=(4,))


def family():
    return guides.MeanField(encoder(), 3)


def linear_model():
    return models.LinearGaussian(3, 6)


def parts(latents=3):
    return {"decoder": nn.MLP(latents, 6, hidden=(4,)), "likelihood": likelihoods.Bernoulli()}


def model_parts(latents=3):
    return {"prior": priors.StandardNormal(3), **parts(latents)}


def layers():
    return models.HierarchicalVAE(transitions=[nn.MLP(3, 4, hidden=())], **model_parts(2))


def clusters():
    return models.GaussianMixtureVAE(num_clusters=2, latent_dim=3, **parts())


def not_at_random():
    return models.MissingNotAtRandom(**model_parts(), missingness=models.SelfMasking(6))


def discriminator():
    return nn.MLP(3, 1, hidden=(4,))


PICTURE, SEQUENCE = (1, 5, 4), (4, 2)
MADE_OF_CODES = {"latent_dim": 3}
ENCODED = {"encoder": encoder, "latent_dim": 3}


# Arguments with which everything in the catalogues can be made; functions of no argument are called for each case.
class HalfNormal:
    """As PreliZ's."""

    sigma = 1.0


WORKING = {
    "nn.MLP": {"in_shape": 6, "out_shape": 4, "hidden": (3,), "normalisation": torch.nn.LayerNorm, "dropout": 0.5},
    "nn.GatedMLP": {"in_shape": 6, "out_shape": 4},
    "nn.ConvEncoder": {"in_shape": PICTURE, "out_shape": 4, "channels": (2,)},
    "nn.ConvDecoder": {"in_shape": 4, "out_shape": PICTURE, "channels": (2,)},
    "nn.ResidualEncoder": {"in_shape": PICTURE, "out_shape": 4, "channels": (2,)},
    "nn.ResidualDecoder": {"in_shape": 4, "out_shape": PICTURE, "channels": (2,)},
    "nn.RecurrentEncoder": {"in_shape": SEQUENCE, "out_shape": 4},
    "nn.RecurrentDecoder": {"in_shape": 4, "out_shape": SEQUENCE},
    "nn.AttentionEncoder": {"in_shape": SEQUENCE, "out_shape": 4, "width": 8},
    "nn.AttentionDecoder": {"in_shape": 4, "out_shape": SEQUENCE, "width": 8},
    "nn.SideBySide": {"network": lambda: nn.MLP(12, 4, hidden=(3,))},
    "nn.Table": {"network": lambda: nn.MLP(7, 4, hidden=(3,)), "inputs": [("continuous", 1, False)] * 6},
    "nn.Observed": {"network": lambda: nn.MLP(12, 4, hidden=(3,))},
    "nn.image_shape": {"shape": PICTURE},
    "nn.size": {"shape": PICTURE},
    "nn.positive": {"raw": torch.zeros(2)},
    "nn.raw_positive": {"scale": 0.5},
    "priors.Autoregressive": {"num_codes": 2, "num_categories": 3, "hidden": (8,)},
    "priors.ConditionalNormal": {"network": encoder},
    "priors.Fixed": {"distribution": lambda: dist.Normal(torch.zeros(3), 1.0).to_event(1)},
    "priors.GaussianProcess": {"times": (0.0, 0.5, 2.0)},
    "priors.Hierarchical": {
        "family": lambda: lambda m: dist.Normal(m, 1.0).to_event(1),
        "hyperpriors": lambda: {"m": dist.Normal(torch.zeros(3), 1.0).to_event(1)},
    },
    "priors.Horseshoe": MADE_OF_CODES,
    "priors.Laplace": MADE_OF_CODES,
    "priors.MixtureOfGaussians": MADE_OF_CODES,
    "priors.NormalizingFlow": MADE_OF_CODES,
    "priors.Parametric": {
        **MADE_OF_CODES,
        "family": "Laplace",
        "hyperparameters": lambda: {"loc": 0.0, "scale": 1.0},
    },
    "priors.SpikeAndSlab": MADE_OF_CODES,
    "priors.StandardNormal": MADE_OF_CODES,
    "priors.StudentT": MADE_OF_CODES,
    "priors.UniformSphere": MADE_OF_CODES,
    "priors.VampPrior": {**MADE_OF_CODES, "shape": (6,)},
    "priors.from_preliz": {**MADE_OF_CODES, "distribution": lambda: HalfNormal()},
    "priors.as_prior": {"prior": lambda: priors.StandardNormal(3)},
    "likelihoods.Bernoulli": {},
    "likelihoods.ContinuousBernoulli": {},
    "likelihoods.Beta": {},
    "likelihoods.Categorical": {"num_categories": 3},
    "likelihoods.DiscretisedLogistic": {},
    "likelihoods.Gaussian": {},
    "likelihoods.HeteroscedasticGaussian": {},
    "likelihoods.LogNormal": {},
    "likelihoods.Missing": {"likelihood": lambda: likelihoods.Gaussian()},
    "likelihoods.Mixed": {"parts": lambda: [(likelihoods.Gaussian(), 2), (likelihoods.Poisson(), 1)]},
    "likelihoods.Multinomial": {"total_count": 5},
    "likelihoods.NegativeBinomial": {},
    "likelihoods.Ordinal": {"num_levels": 3},
    "likelihoods.Poisson": {},
    "likelihoods.StudentT": {},
    "likelihoods.ZeroInflated": {"likelihood": lambda: likelihoods.Poisson()},
    **{
        f"guides.{name}": ENCODED
        for name in ("Auxiliary", "Flow", "FullRank", "Guide", "Householder", "LowRank", "MaskedAutoregressive",
                     "MeanField", "Mixture", "Planar", "Radial", "Spherical", "SplineAutoregressive", "SplineCoupling")
    },
    "guides.Categorical": {"encoder": encoder, "num_categories": 3},
    "guides.ClassConditional": {
        "classifier": lambda: nn.MLP(4, 8, hidden=()), "latent": family, "num_classes": 2,
    },
    "guides.Clustered": {"latent": family, "model": clusters},
    "guides.DAIS": {"family": family, "model": linear_model},
    "guides.SemiAmortized": {"family": family, "model": linear_model},
    "guides.Exact": {"model": linear_model},
    "guides.Hierarchical": {"layers": lambda: [family(), guides.MeanField(nn.MLP(3, 4), 2)]},
    "guides.Ladder": {"networks": lambda: [encoder(), nn.MLP(8, 4)], "model": layers},
    "guides.Local": {"family": family, "data": torch.zeros(5, 6)},
    "guides.WithGlobals": {"local": family, "sites": (("w", (2,), "real"),), "num_data": 9},
    "guides.WithMissing": {"latent": family, "model": not_at_random},
    "models.MissingNotAtRandom": lambda: {**model_parts(), "missingness": models.SelfMasking(6)},
    "models.SelfMasking": {"num_columns": 6},
    "models.VAE": model_parts,
    "models.BayesianVAE": lambda: {**model_parts(), "num_data": 9},
    "models.ConditionalVAE": lambda: model_parts(5),
    "models.SemiSupervisedVAE": lambda: {**model_parts(5), "num_classes": 2},
    "models.HierarchicalVAE": lambda: {
        **model_parts(), "transitions": [nn.MLP(3, 4, hidden=())], "decoder": torch.nn.Sequential(nn.MLP(2, 6)),
    },
    "models.GaussianMixtureVAE": lambda: {"num_clusters": 2, "latent_dim": 3, **parts()},
    "models.LinearGaussian": {"latent_dim": 2, "data_dim": 6},
    "objectives.BetaTCVAE": {"num_data": 9},
    "objectives.CapacityELBO": {"capacity": 2.0},
    "objectives.FreeBits": {"free_nats": 0.5},
    "objectives.Renyi": {"alpha": 0.5},
    "objectives.VAEGAN": {"features": lambda: nn.MLP(6, 3, hidden=(4,)), "discriminator": discriminator},
    **{f"objectives.{name}": {"discriminator": discriminator}
       for name in ("AdversarialAutoencoder", "FactorVAE")},
    **{f"objectives.{name}": {}
       for name in ("BetaELBO", "CIWAE", "Chi", "DIPVAE", "IWAE", "MMD", "PIWAE", "SemiSupervisedELBO", "VIMCO",
                    "WakeSleep")},
    "objectives.constant": {"value": 0.5},
    "objectives.linear": {"steps": 4},
    "objectives.cyclical": {"period": 4},
    "objectives.sigmoid": {"middle": 4, "width": 2.0},
}  # fmt: skip
WITHOUT_ARGUMENTS = {"nn.Network", "priors.Prior", "likelihoods.Likelihood"}
OTHERS = {"nn.Shape", "objectives.Adversarial", "objectives.Objective", "priors.to_preliz"}  # types, other packages
SAYS = {"nn.image_shape", "nn.raw_positive", "nn.size"}  # functions whose ``name`` is what messages call the other

BAD = (0, -1, 2.5, math.nan, math.inf, "3", True, [3], None, np.float64("nan"))
KINDS = {"float": (2.5,), "bool": (True,), "str": ("3",)}  # which of these an argument takes, by its annotation
TAKES = {  # and by its name, where that is another matter
    **dict.fromkeys(("hidden", "channels", "times", "shape"), ([3],)),
    **dict.fromkeys(
        ("kl_weight", "mmd_weight", "information", "total_correlation", "dimensionwise", "off_diagonal", "diagonal",
         "strength", "capacity", "free_nats", "classification_weight"),
        (0, 2.5),
    ),
    **dict.fromkeys(("alpha", "value", "start", "end"), (0, -1, 2.5)),
    **dict.fromkeys(("elbo_weight", "sleep", "dropout", "num_blocks", "middle"), (0,)),
    **dict.fromkeys(("slab_weight", "noise", "rise", "image_shape.shape", "how", "estimator"), ()),
}  # fmt: skip


def working(path):
    """Arguments with which a member of a catalogue can be made."""
    arguments = WORKING[path]
    arguments = arguments() if callable(arguments) else arguments
    return {name: value() if inspect.isfunction(value) else value for name, value in arguments.items()}


def member(path):
    catalogue, name = path.split(".")
    return getattr(CATALOGUES[catalogue], name)


def parameters(path):
    found = inspect.signature(member(path)).parameters.values()
    found = [p for p in found if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return found[:1] if path in SAYS else found


def make(path, **changed):
    with torch.random.fork_rng():
        return member(path)(**{**working(path), **changed})


def takes(path, parameter):
    """Those of the bad values that are good ones of this argument."""
    name, given = parameter.name, WORKING[path].get(parameter.name) if isinstance(WORKING[path], dict) else None
    kind = next((k for k in KINDS if str(parameter.annotation).replace("<class '", "").startswith(k)), None)
    values = TAKES.get(f"{path.split('.')[1]}.{name}", TAKES.get(name, KINDS.get(kind, ())))
    if name in ("in_shape", "out_shape") and not isinstance(given, tuple):
        values = ([3],)
    return (*values, None) if parameter.default is None else values


def cases():
    for path in WORKING:
        for parameter in parameters(path):
            good = takes(path, parameter)
            for value in BAD:
                if not any(type(value) is type(v) and value == v for v in good):
                    yield pytest.param(path, parameter.name, value, id=f"{path}-{parameter.name}-{value!r}")


CASES = list(cases())


def test_the_cases_cover_the_catalogues():
    names = {f"{name}.{member}" for name, catalogue in CATALOGUES.items() for member in catalogue.__all__}
    ours = {path for path in names if not getattr(member(path), "__module__", "").startswith("pyro.")}
    assert ours == set(WORKING) | WITHOUT_ARGUMENTS | OTHERS
    assert len(CASES) > 400


@pytest.mark.parametrize(("path", "argument", "value"), CASES)
def test_a_bad_argument_is_refused_in_one_sentence(path, argument, value):
    with pytest.raises(ValueError, match=argument) as error:
        make(path, **{argument: value})
    assert "\n" not in str(error.value)


ARGUMENTS = [pytest.param(path, p, id=f"{path}-{p.name}") for path in WORKING for p in parameters(path)]


@pytest.mark.parametrize(("path", "parameter"), ARGUMENTS)
def test_good_values_and_numpys_numbers_are_taken(path, parameter):
    for value in takes(path, parameter):
        make(path, **{parameter.name: value})
    with torch.random.fork_rng():
        given = working(path).get(parameter.name, parameter.default)
    made = make(path, **{parameter.name: of_numpy(given)})
    if path.startswith("objectives") or not isinstance(made, torch.nn.Module):
        return
    try:
        described = configuration(made)
    except NotConfigurable:
        return
    json.dumps(described)


def of_numpy(value):
    """The same value of NumPy's types."""
    if isinstance(value, bool):
        return np.bool_(value)
    if isinstance(value, int):
        return np.int64(value)
    if isinstance(value, float):
        return np.float64(value)
    return tuple(map(of_numpy, value)) if isinstance(value, tuple) else value


def modules():
    for path in WORKING:
        with torch.random.fork_rng():
            arguments = working(path)
        for name, value in arguments.items():
            if isinstance(value, torch.nn.Module | torch.distributions.Distribution):
                yield pytest.param(path, name, type(value), id=f"{path}-{name}")


@pytest.mark.parametrize(("path", "argument", "cls"), list(modules()))
def test_a_class_in_the_place_of_an_object_is_refused(path, argument, cls):
    with pytest.raises(ValueError, match=rf"{argument}.* got the class {cls.__name__}: write {cls.__name__}\(...\)$"):
        make(path, **{argument: cls})


@pytest.mark.parametrize("path", [p for p in WORKING if "activation" in inspect.signature(member(p)).parameters])
def test_an_instance_in_the_place_of_a_class_is_refused(path):
    with pytest.raises(ValueError, match=r"activation .*got an instance of Tanh: write Tanh without brackets"):
        make(path, activation=torch.nn.Tanh())
    for other in (torch.nn.Linear, torch.relu, "relu", None):
        with pytest.raises(ValueError, match=r"activation must be a class of layers, such as torch\.nn\.ReLU"):
            make(path, activation=other)


@pytest.mark.parametrize(
    ("argument", "make_it"),
    [
        ("hidden", lambda hidden: nn.MLP(3, 2, hidden=hidden)),
        ("hidden", lambda hidden: guides.Flow(encoder(), 3, hidden=hidden)),
        ("channels", lambda channels: nn.ConvEncoder(PICTURE, 3, channels=channels)),
        ("in_shape", lambda shape: nn.MLP(shape, 2)),
        ("in_shape", lambda shape: nn.ConvEncoder(shape, 2)),
        ("out_shape", lambda shape: nn.AttentionDecoder(3, shape)),
    ],
)
@pytest.mark.parametrize("value", [(0,), (3, -1), (2.5,), (True,), ("3",), (math.nan, 3), (None,), "33", {3: 4}])
def test_every_number_of_a_tuple_is_looked_at(argument, make_it, value):
    with torch.random.fork_rng(), pytest.raises(ValueError, match=argument):
        make_it(value)


def test_a_number_in_the_place_of_a_tuple_says_what_to_give():
    with pytest.raises(ValueError, match=r"^hidden must .*, got 5: give a tuple, such as \(128, 128\)$"):
        nn.MLP(3, 2, hidden=5)


def vae(prior, decoder, likelihood=None):
    return models.VAE(prior=prior, decoder=decoder, likelihood=likelihood or likelihoods.Bernoulli())


NORMAL = dist.Normal(torch.zeros(4), 1.0).to_event(1)
BITS = {"likelihood": likelihoods.Bernoulli()}


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: vae(priors.StandardNormal(4), nn.MLP(3, 6)), "decoder expects 3 columns, got 4"),
        (lambda: vae(NORMAL, nn.ConvDecoder(3, PICTURE)), "decoder expects 3 columns, got 4"),
        (lambda: vae(NORMAL, torch.nn.Linear(3, 6)), "decoder expects 3 columns, got 4"),
        (lambda: vae(priors.StandardNormal(3), nn.MLP(3, 5), likelihoods.HeteroscedasticGaussian()),
         "takes 2 features per column, got 5"),
        (lambda: vae(priors.StandardNormal(3), nn.MLP(3, 5), likelihoods.Gaussian(num_scales=4)),
         "num_scales of the likelihood Gaussian expects 4 columns, got 5"),
        (lambda: vae(priors.StandardNormal(3), nn.MLP(3, 5), likelihoods.Mixed([(likelihoods.Poisson(), 4)])),
         "expects 4 columns of the decoder, got 5"),
        (lambda: models.BayesianVAE(prior=NORMAL, decoder=nn.MLP(3, 6), num_data=9, **BITS),
         "expects 3 columns, got 4"),
        (lambda: models.ConditionalVAE(prior=NORMAL, decoder=nn.MLP(4, 6), **BITS), "expects 4 columns, got 4 latents"),
        (lambda: models.SemiSupervisedVAE(prior=NORMAL, decoder=nn.MLP(4, 6), num_classes=2, **BITS),
         "expects 4 columns, got 6"),
        (lambda: models.GaussianMixtureVAE(num_clusters=2, latent_dim=4, decoder=nn.MLP(3, 6), **BITS),
         "expects 3 columns, got 4"),
        (lambda: models.HierarchicalVAE(prior=NORMAL, transitions=[nn.MLP(3, 4)], decoder=nn.MLP(2, 6), **BITS),
         r"transitions\[0\] expects 3 columns, got 4"),
        (lambda: models.HierarchicalVAE(
            prior=NORMAL, transitions=[nn.MLP(4, 4)], decoder=nn.MLP(2, 6), skip=True, **BITS),
         "decoder expects 2 columns, got 6"),
        (lambda: guides.Hierarchical([family(), family()]), r"layers\[1\] expects 6 columns, got 3"),
        (lambda: guides.Ladder([encoder(), encoder()], layers()), r"networks\[1\] expects 6 columns, got 8"),
        (lambda: guides.ClassConditional(encoder(), family(), 2), "the encoder of latent expects 6 columns, got 8"),
        (lambda: guides.Clustered(guides.MeanField(encoder(), 2), clusters()), "as the model, 3, got 2"),
        (lambda: guides.Local(family(), torch.zeros(5, 4)), "the encoder of family expects 6 columns, got 4"),
        (lambda: likelihoods.ZeroInflated(likelihoods.Gaussian()), "likelihood must be one of counts"),
        (lambda: likelihoods.ZeroInflated(likelihoods.Multinomial(total_count=3)), "likelihood must be one of counts"),
        (lambda: guides.MeanField(encoder(), 1, support="simplex"), "leaves nothing free of latent_dim 1"),
        (lambda: guides.MeanField(encoder(), 3, support="boolean"), "torch has no map"),
        (lambda: guides.SplineCoupling(encoder(), 3, num_bins=1000), "num_bins must be below 1000"),
        (lambda: nn.raw_positive(1e-5), "scale must be above 1e-05"),
        (lambda: nn.MLP(3, 2, dropout=1.0), "dropout must be below 1"),
        (lambda: objectives.FactorVAE(torch.nn.Identity()), "discriminator must have parameters"),
        (lambda: objectives.FactorVAE(discriminator(), optimizer=lambda: None), "from parameters alone"),
        (lambda: objectives.FactorVAE(discriminator(), optimizer=lambda params: None), "must make a torch.optim"),
        (lambda: guides.WithGlobals(family(), [("w", (), "simplex")], num_data=3), "'w' in sites has no Gaussian"),
        (lambda: guides.WithGlobals(family(), [("w", (), "boolean")], num_data=3), "'w' in sites has no Gaussian"),
        (lambda: priors.Hierarchical(dist.Normal, {"two words": NORMAL}), "got the name 'two words'"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused(make_it, message):
    with torch.random.fork_rng(), pytest.raises(ValueError, match=message) as error:
        make_it()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("decoder", [torch.nn.Sequential(torch.nn.Linear(3, 6)), torch.nn.Identity()])
@pytest.mark.parametrize("prior", [NORMAL, priors.StandardNormal(2), priors.Autoregressive(2, 2)])
def test_nothing_is_said_of_parts_that_do_not_say(decoder, prior):
    assert vae(prior, decoder, likelihoods.Gaussian(num_scales=2)).decoder is decoder
