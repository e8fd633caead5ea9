"""One contract test over every model, guide, prior, likelihood and network of the catalogues."""

import inspect
import itertools
import json

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from conftest import bits, make_oracle, seeded
from scipy import integrate
from torch.distributions import constraints

from pyrovae import evaluate, fit, guides, likelihoods, load, log_weights, models, nn, priors
from pyrovae.saving.configuration import NotConfigurable, build, configuration

D, Z, F = 6, 3, 16


PRIORS = {
    "StandardNormal": lambda: priors.StandardNormal(Z),
    "MixtureOfGaussians": lambda: priors.MixtureOfGaussians(Z, num_components=4),
    "Laplace": lambda: priors.Laplace(Z),
    "any Laplace": lambda: dist.Laplace(torch.zeros(Z), 1.0).to_event(1),
    "StudentT": lambda: dist.StudentT(4.0, torch.zeros(Z), 1.0).to_event(1),
    "scalars": lambda: dist.Normal(0.0, 1.0).expand([Z]).to_event(1),
    "flow": lambda: dist.TransformedDistribution(
        dist.Normal(torch.zeros(Z), 1.0).to_event(1), [dist.transforms.AffineTransform(torch.ones(Z), 2.0, event_dim=1)]
    ),
}
LIKELIHOODS = {
    "Bernoulli": (likelihoods.Bernoulli, lambda n: bits(n, D)),
    "ContinuousBernoulli": (likelihoods.ContinuousBernoulli, lambda n: bits(n, D) * 0.8 + 0.1),
    "Gaussian": (likelihoods.Gaussian, lambda n: bits(n, D) * 3 - 1),
    "Gaussian, a scale each": (lambda: likelihoods.Gaussian(num_scales=D), lambda n: bits(n, D) * 3 - 1),
}
GUIDES = {
    name: getattr(guides, name)
    for name in (
        "MeanField", "FullRank", "Flow", "LowRank", "Mixture", "Auxiliary", "Planar", "Radial", "Householder",
        "MaskedAutoregressive", "SplineCoupling", "SplineAutoregressive",
    )
}  # fmt: skip
COMMON = ("MeanField", "FullRank", "Flow")  # tried with every prior and likelihood, the others with one of each


def vae(prior="StandardNormal", likelihood="Bernoulli", guide="MeanField"):
    def make():
        model = models.VAE(
            prior=PRIORS[prior](), decoder=nn.MLP(Z, D, hidden=(F,)), likelihood=LIKELIHOODS[likelihood][0]()
        )
        return model, GUIDES[guide](nn.MLP(D, F, hidden=(F,)), Z)

    return seeded(make), LIKELIHOODS[likelihood][1]


COMBINATIONS = [
    *itertools.product(PRIORS, ["Bernoulli"], COMMON),
    *itertools.product(["StandardNormal"], list(LIKELIHOODS)[1:], COMMON),
    *itertools.product(["StandardNormal"], ["Bernoulli"], [name for name in GUIDES if name not in COMMON]),
]


@pytest.mark.parametrize(("prior", "likelihood", "guide"), COMBINATIONS)
def test_the_contract_of_every_pair(prior, likelihood, guide, tmp_path):
    (model, made), data = vae(prior, likelihood, guide)
    x = data(80)
    weights = log_weights(model, made, x, num_particles=6, progress=False)
    assert weights.shape == (6, 80)
    assert weights.isfinite().all()
    before = {k: v.clone() for m in (model, made) for k, v in m.named_parameters()}
    fitted = fit(model, made, x, steps=120, batch_size=40, lr=1e-2, progress=False)
    h = fitted.history["bound"]
    assert h.iloc[-10:].mean() > h.iloc[:10].mean()
    for name, parameter in [*model.named_parameters(), *made.named_parameters()]:
        assert not torch.equal(parameter, before[name]), f"{name} was not trained"
    fitted.save(tmp_path)
    rebuilt = isinstance(model.prior, priors.Fixed)
    again = load(tmp_path, model=vae(prior, likelihood, guide)[0][0] if rebuilt else None)
    one, other = (log_weights(f.model, f.guide, x, num_particles=3, progress=False) for f in (fitted, again))
    torch.testing.assert_close(other, one, rtol=0, atol=0)


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize(
    ("prior", "support"),
    [
        (dist.Gamma(2.0, 1.0).expand([2]).to_event(1), constraints.independent(constraints.positive, 1)),
        (dist.Beta(2.0, 2.0).expand([2]).to_event(1), constraints.independent(constraints.unit_interval, 1)),
        (dist.Dirichlet(torch.ones(3)), constraints.simplex),
    ],
)
def test_constrained_latents(guide, prior, support, tmp_path):
    size = prior.event_shape[0]

    def make():
        model = models.VAE(prior=prior, decoder=nn.MLP(size, D, hidden=(F,)), likelihood=likelihoods.Bernoulli())
        return model, GUIDES[guide](nn.MLP(D, F, hidden=(F,)), size, support=support)

    model, made = seeded(make)
    fitted = fit(model, made, bits(60, D), steps=60, lr=1e-2, progress=False)
    assert fitted.history["bound"].iloc[-5:].mean() > fitted.history["bound"].iloc[:5].mean()
    with torch.random.fork_rng(), torch.no_grad():
        z = made.posterior(bits(7, D)).sample()
    assert support.check(z).all()
    result = evaluate(model, made, bits(7, D), num_particles=2000, progress=False)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        z = prior.sample((20_000,))
        density = model.likelihood(model.decoder(z)).log_prob(bits(7, D)[:, None])
        direct = density.logsumexp(1) - np.log(20_000)
        error = (density - direct[:, None]).exp().std(1) / 20_000**0.5
    # prior sampling and importance sampling agree: 7 comparisons at 5 standard errors, below 5e-6
    total = (error.square() + result.log_evidence_se.square()).sqrt()
    assert ((result.log_evidence - direct).abs() < 5 * total + 1e-3).all()


@pytest.mark.parametrize("guide", ["MeanField", "FullRank", "Flow"])
def test_a_guide_integrates_to_one_and_scores_values_from_elsewhere(guide):
    made = seeded(lambda: GUIDES[guide](nn.MLP(D, F, hidden=(F,)), 2)).double()
    with torch.no_grad():
        axis = torch.linspace(-9, 9, 400, dtype=torch.float64)
        grid = torch.cartesian_prod(axis, axis)
        density = made.posterior(bits(1, D).double().expand(len(grid), -1)).log_prob(grid).exp()
    assert float(density.sum() * (axis[1] - axis[0]) ** 2) == pytest.approx(1, abs=2e-3)


def test_flow_steps_invert_and_their_jacobian_is_autograds():
    made = seeded(lambda: guides.Flow(nn.MLP(D, F), 4, num_steps=3)).double()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for p in made.parameters():
            p.data.mul_(3.0)  # far from the start, as after a long run
        x, z = torch.rand(1, D).double(), torch.randn(1, 4).double() * 3
    q = made.posterior(x)
    out, total = z, 0.0
    for transform in q.transforms:
        after = transform(out)
        torch.testing.assert_close(transform.inv(after.clone()), out, atol=1e-8, rtol=1e-6)
        total = total + transform.log_abs_det_jacobian(out, after)
        out = after

    def run(z):
        for transform in q.transforms:
            z = transform(z)
        return z

    jacobian = torch.autograd.functional.jacobian(lambda v: run(v[None])[0], z[0])
    torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, total.squeeze().detach(), atol=1e-8, rtol=1e-6)


def test_a_flow_stays_finite_far_out():
    made = seeded(lambda: guides.Flow(nn.MLP(D, F), 8, num_steps=4))
    with torch.random.fork_rng(), torch.no_grad():
        q = made.posterior(torch.full((1000, D), 100.0))
        z = q.rsample()
        assert z.isfinite().all()
        assert q.log_prob(z).isfinite().all()


DENSITIES = {
    "Gaussian": (likelihoods.Gaussian(), 0.7, (-np.inf, np.inf)),
    "ContinuousBernoulli": (likelihoods.ContinuousBernoulli(), 1.7, (0, 1)),
    "ContinuousBernoulli near a half": (likelihoods.ContinuousBernoulli(), 1e-4, (0, 1)),
}


@pytest.mark.parametrize(("likelihood", "feature", "limits"), DENSITIES.values(), ids=DENSITIES)
def test_densities_integrate_to_one(likelihood, feature, limits):
    with torch.no_grad():
        density = likelihood.double()(torch.tensor([feature], dtype=torch.float64))
        total, _ = integrate.quad(lambda v: float(density.log_prob(torch.tensor([v]).double()).exp()), *limits)
        mean, _ = integrate.quad(lambda v: v * float(density.log_prob(torch.tensor([v]).double()).exp()), *limits)
    assert total == pytest.approx(1, abs=1e-5)
    assert float(density.mean) == pytest.approx(mean, abs=1e-4)


def test_a_prior_moves_with_its_module():
    prior = priors.Fixed(PRIORS["flow"]())
    moved = prior.double()().sample
    with torch.random.fork_rng():
        assert moved().dtype == torch.float64


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: models.VAE(prior=dist.Laplace(torch.zeros(3), 1.0), decoder=nn.MLP(3, D), likelihood=None),
         r"the prior has batch shape \(3,\): declare the latent's dimensions as events with .to_event\(1\)"),
        (lambda: models.VAE(prior="normal", decoder=nn.MLP(3, D), likelihood=None), "a prior is a distribution"),
        (lambda: guides.MeanField(torch.nn.Sequential(torch.nn.Linear(2, 2)), 2), "does not say how many features"),
        (lambda: guides.Exact(torch.nn.Linear(2, 2)), "has no method posterior"),
        (lambda: nn.RecurrentEncoder((1, 8, 8), 8), r"needs a shape \(steps, features\), got \(1, 8, 8\)"),
        (lambda: nn.AttentionEncoder((5, 2), 8, width=10), "width must be a multiple of num_heads, got 10 and 4"),
        (lambda: priors.SpikeAndSlab(2, slab_weight=1.0), "slab_weight must be between 0 and 1, got 1.0"),
        (lambda: likelihoods.Gaussian(fixed=0.0), "fixed must be a finite number above 0, got 0.0"),
        (lambda: likelihoods.Mixed([]), "parts is empty"),
        (lambda: guides.Clustered(guides.MeanField(nn.MLP(2, 2), 2), vae()[0][0]), "has no method cluster_logits"),
        (lambda: guides.WithGlobals(nn.MLP(2, 2), [], num_data=3), "there are no global latents"),
        (lambda: nn.ConvEncoder(64, 8), r"needs a shape \(channels, rows, columns\), got 64"),
    ],
)  # fmt: skip
def test_bad_parts_are_refused(make, message):
    with torch.random.fork_rng(), pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 13), (2, 1, 1)])
@pytest.mark.parametrize("channels", [(4,), (4, 8)])
def test_residual_convolutions_take_any_size(shape, channels):
    def run():
        encoder, decoder = (
            nn.ResidualEncoder(shape, 5, channels=channels),
            nn.ResidualDecoder(5, shape, channels=channels),
        )
        assert decoder(encoder(torch.randn(2, 3, nn.size(shape)))).shape == (2, 3, nn.size(shape))

    seeded(run)


@pytest.mark.parametrize("kind", ["Recurrent", "Attention"])
def test_networks_of_sequences_see_the_order_of_the_steps(kind):
    def run():
        encoder, decoder = getattr(nn, f"{kind}Encoder")((6, 2), 5), getattr(nn, f"{kind}Decoder")(5, (6, 2))
        x = torch.randn(2, 3, 12)
        assert decoder(encoder(x)).shape == (2, 3, 12)
        turned = x.unflatten(-1, (6, 2)).flip(-2).flatten(-2)
        assert float((encoder(x) - encoder(turned)).detach().abs().max()) > 1e-3
        steps = decoder(torch.randn(1, 5)).unflatten(-1, (6, 2))
        assert float((steps[0, 0] - steps[0, 3]).detach().abs().max()) > 1e-3
        one = encoder(x[:1, :1])
        torch.testing.assert_close(encoder(x)[:1, :1], one, atol=1e-5, rtol=1e-4)
        assert nn.RecurrentEncoder(7, 2)(torch.randn(4, 7)).shape == (4, 2)

    seeded(run)


def test_nothing_normalises_the_last_layer():
    network = seeded(lambda: nn.MLP(4, 3, normalisation=torch.nn.LayerNorm, dropout=0.5))
    kinds = [type(layer).__name__ for layer in network.layers]
    assert kinds == ["Linear", "LayerNorm", "ReLU", "Dropout"] * 2 + ["Linear"]


def test_tensors_are_taken_side_by_side_whatever_their_leading_dimensions():
    found = seeded(lambda: nn.MLP(3 + 2, 4))(torch.zeros(5, 3), torch.zeros(7, 1, 2))
    assert found.shape == (7, 5, 4)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28), (1, 5, 13), (2, 1, 1), (1, 9, 7)])
@pytest.mark.parametrize("channels", [(), (4,), (4, 8), (4, 8, 4)])
def test_convolutions_take_any_size(shape, channels):
    def run():
        encoder, decoder = (
            nn.ConvEncoder(shape, 5, channels=channels),
            nn.ConvDecoder(5, shape, channels=channels[::-1]),
        )
        size = nn.size(shape)
        features = encoder(torch.randn(2, 3, size))
        assert features.shape == (2, 3, 5)
        out = decoder(features)
        assert out.shape == (2, 3, size)
        one = decoder(encoder(torch.ones(1, size)))
        many = decoder(encoder(torch.ones(4, size)))
        torch.testing.assert_close(one.expand(4, -1), many, atol=1e-5, rtol=1e-4)

    seeded(run)


def test_positive_is_one_at_zero_and_never_overflows_or_vanishes():
    raw = torch.tensor([0.0, -1e4, 1e30])
    scale = nn.positive(raw)
    assert float(scale[0]) == pytest.approx(1, abs=2e-5)
    assert float(scale[1]) > 0
    assert scale.isfinite().all()


# Configuration: a constructor's arguments are its attributes.


def hierarchy():
    return models.HierarchicalVAE(
        prior=priors.StandardNormal(2),
        transitions=[nn.MLP(2, 6)],
        decoder=nn.MLP(3, 4),
        likelihood=likelihoods.Bernoulli(),
    )


def clusters():
    return models.GaussianMixtureVAE(
        num_clusters=3, latent_dim=2, decoder=nn.MLP(2, 4), likelihood=likelihoods.Bernoulli()
    )


def not_at_random():
    return models.MissingNotAtRandom(
        prior=priors.StandardNormal(2), decoder=nn.MLP(2, 4), likelihood=likelihoods.Gaussian(),
        missingness=models.SelfMasking(4),
    )  # fmt: skip


def catalogue_instances():
    return {
        "VAE": lambda: vae()[0][0],
        "LinearGaussian": lambda: models.LinearGaussian(2, 5, isotropic=False),
        "MeanField": lambda: guides.MeanField(nn.MLP(4, 8), 2, latent="w", support=constraints.simplex),
        "FullRank": lambda: guides.FullRank(nn.ConvEncoder((1, 4, 4), 8), 2),
        "Flow": lambda: guides.Flow(nn.MLP(4, 8), 2, num_steps=5, hidden=(7,)),
        "LowRank": lambda: guides.LowRank(nn.MLP(4, 8), 3, rank=1),
        "Mixture": lambda: guides.Mixture(nn.MLP(4, 8), 2, num_components=3),
        "Auxiliary": lambda: guides.Auxiliary(nn.MLP(4, 8), 2, auxiliary_dim=3, hidden=(5,)),
        "Categorical": lambda: guides.Categorical(nn.MLP(4, 8), 3, how="relaxed", temperature=0.3),
        "Planar": lambda: guides.Planar(nn.MLP(4, 8), 2, num_steps=3),
        "Radial": lambda: guides.Radial(nn.MLP(4, 8), 2, context_dim=4),
        "Householder": lambda: guides.Householder(nn.MLP(4, 8), 2, hidden=(6,)),
        "MaskedAutoregressive": lambda: guides.MaskedAutoregressive(nn.MLP(4, 8), 2, num_steps=1),
        "SplineCoupling": lambda: guides.SplineCoupling(nn.MLP(4, 8), 2, num_bins=5, bound=3.0),
        "SplineAutoregressive": lambda: guides.SplineAutoregressive(nn.MLP(4, 8), 2, num_bins=4),
        "Local": lambda: guides.Local(guides.MeanField(nn.MLP(4, 8), 2), torch.randn(7, 4)),
        "SemiAmortized": lambda: guides.SemiAmortized(
            guides.MeanField(nn.MLP(4, 8), 2), models.LinearGaussian(2, 4), num_steps=2, step_length=0.1
        ),
        "DAIS": lambda: guides.DAIS(guides.Flow(nn.MLP(4, 8), 2), models.LinearGaussian(2, 4), num_steps=2),
        "HierarchicalVAE": hierarchy,
        "Hierarchical": lambda: guides.Hierarchical(
            [guides.MeanField(nn.MLP(4, 8), 3), guides.FullRank(nn.MLP(3, 8), 2)], latents=("a", "b")
        ),
        "Ladder": lambda: guides.Ladder([nn.MLP(4, 8), nn.MLP(8, 6)], hierarchy()),
        "MixtureOfGaussians": lambda: priors.MixtureOfGaussians(2, num_components=3),
        "StandardNormal": lambda: priors.StandardNormal(4),
        "Laplace": lambda: priors.Laplace(4, scale=2.0),
        "Parametric": lambda: priors.Parametric(4, "StudentT", {"df": 4.0, "loc": 0.0, "scale": 1.0}, fixed=["df"]),
        "ConvDecoder": lambda: nn.ConvDecoder(3, (1, 7, 9), channels=(4,), activation=torch.nn.Tanh),
        "ConvEncoder": lambda: nn.ConvEncoder((1, 7, 9), 3),
        "MLP": lambda: nn.MLP((1, 2, 3), 4, hidden=(), activation=torch.nn.SiLU),
        "Bernoulli": likelihoods.Bernoulli,
        "ContinuousBernoulli": likelihoods.ContinuousBernoulli,
        "Gaussian": lambda: likelihoods.Gaussian(num_scales=3),
        "HeteroscedasticGaussian": lambda: likelihoods.HeteroscedasticGaussian(least_scale=0.1),
        "StudentT": lambda: likelihoods.StudentT(df=3.0, num_scales=2),
        "LogNormal": lambda: likelihoods.LogNormal(num_scales=2),
        "Beta": lambda: likelihoods.Beta(num_concentrations=2),
        "Poisson": likelihoods.Poisson,
        "NegativeBinomial": lambda: likelihoods.NegativeBinomial(num_dispersions=4),
        "ZeroInflated": lambda: likelihoods.ZeroInflated(likelihoods.NegativeBinomial()),
        "Multinomial": lambda: likelihoods.Multinomial(total_count=7),
        "Categorical likelihood": lambda: likelihoods.Categorical(4),
        "Ordinal": lambda: likelihoods.Ordinal(4),
        "DiscretisedLogistic": lambda: likelihoods.DiscretisedLogistic(levels=16, num_components=2),
        "Mixed": lambda: likelihoods.Mixed(
            [(likelihoods.Gaussian(), 2), (likelihoods.Missing(likelihoods.Poisson()), 1)]
        ),
        "Missing": lambda: likelihoods.Missing(likelihoods.Gaussian()),
        "GatedMLP": lambda: nn.GatedMLP(3, 4, hidden=(5,)),
        "nn Table": lambda: nn.Table(
            nn.MLP(5, 4, hidden=(8,)), [("continuous", 1, True), ("categorical", 2, False), ("count", 1, False)]
        ),
        "SideBySide": lambda: nn.SideBySide(nn.GatedMLP(5, 4, hidden=(8,))),
        "Observed": lambda: nn.Observed(nn.MLP(6, 4, normalisation=torch.nn.LayerNorm, dropout=0.1)),
        "ResidualEncoder": lambda: nn.ResidualEncoder((1, 7, 9), 3, channels=(4,), num_blocks=1),
        "ResidualDecoder": lambda: nn.ResidualDecoder(3, (1, 7, 9), channels=(4,), activation=torch.nn.ReLU),
        "RecurrentEncoder": lambda: nn.RecurrentEncoder((5, 2), 3, width=8),
        "RecurrentDecoder": lambda: nn.RecurrentDecoder(3, (5, 2), width=8),
        "AttentionEncoder": lambda: nn.AttentionEncoder((5, 2), 3, width=8, num_heads=2, num_layers=1),
        "AttentionDecoder": lambda: nn.AttentionDecoder(3, (5, 2), width=8, num_heads=2),
        "prior StudentT": lambda: priors.StudentT(3, df=5.0),
        "SpikeAndSlab": lambda: priors.SpikeAndSlab(3, slab_weight=0.3),
        "Horseshoe": lambda: priors.Horseshoe(3, scale=0.2),
        "NormalizingFlow": lambda: priors.NormalizingFlow(3, num_steps=1, hidden=(8,), num_bins=4),
        "ConditionalNormal": lambda: priors.ConditionalNormal(nn.MLP(2, 6)),
        "UniformSphere": lambda: priors.UniformSphere(3),
        "Spherical": lambda: guides.Spherical(nn.MLP(4, 8), 3),
        "Autoregressive": lambda: priors.Autoregressive(3, 4, hidden=(16,)),
        "GaussianProcess": lambda: priors.GaussianProcess([0.0, 1.5], num_codes=2),
        "VampPrior": lambda: priors.VampPrior(2, num_components=3, shape=(4,)),
        "ConditionalVAE": lambda: models.ConditionalVAE(
            prior=priors.StandardNormal(2), decoder=nn.MLP(5, 4), likelihood=likelihoods.Bernoulli()
        ),
        "SemiSupervisedVAE": lambda: models.SemiSupervisedVAE(
            prior=priors.StandardNormal(2), decoder=nn.MLP(5, 4), likelihood=likelihoods.Bernoulli(), num_classes=3
        ),
        "GaussianMixtureVAE": clusters,
        "MissingNotAtRandom": not_at_random,
        "SelfMasking": lambda: models.SelfMasking(4),
        "WithMissing": lambda: guides.WithMissing(guides.MeanField(nn.Observed(nn.MLP(8, 8)), 2), not_at_random()),
        "BayesianVAE": lambda: models.BayesianVAE(
            prior=priors.StandardNormal(2), decoder=nn.MLP(2, 4), likelihood=likelihoods.Bernoulli(), num_data=10
        ),
        "ClassConditional": lambda: guides.ClassConditional(nn.MLP(4, 8), guides.MeanField(nn.MLP(7, 8), 2), 3),
        "Clustered": lambda: guides.Clustered(guides.MeanField(nn.MLP(4, 8), 2), clusters()),
        "WithGlobals": lambda: guides.WithGlobals(
            guides.MeanField(nn.MLP(4, 8), 2), [("a.b", (2, 3), "real"), ("c", (), "positive")], num_data=9
        ),
    }


@pytest.mark.parametrize("name", catalogue_instances())
def test_every_module_is_rebuilt_from_its_configuration(name):
    def run():
        module = catalogue_instances()[name]()
        described = json.loads(json.dumps(configuration(module)))
        again = build(described)
        assert type(again) is type(module)
        assert configuration(again) == configuration(module)
        again.load_state_dict(module.state_dict())

    seeded(run)


def test_the_contract_covers_every_catalogue():
    covered = {name.removeprefix("nn ") for name in catalogue_instances()} | {
        "Exact",
        "Fixed",
    }  # Hierarchical: guides have one, the prior has a function
    bases = {"Guide", "Prior", "Likelihood", "Network"}
    for catalogue in (models, guides, priors, likelihoods, nn):
        classes = {n for n in catalogue.__all__ if inspect.isclass(getattr(catalogue, n))}
        assert classes - bases <= covered


def test_a_value_that_no_configuration_describes_is_named():
    model = models.VAE(
        prior=dist.Laplace(torch.zeros(2), 1.0).to_event(1),
        decoder=torch.nn.Identity(),
        likelihood=likelihoods.Bernoulli(),
    )
    with pytest.raises(NotConfigurable, match=r"the model.prior.distribution is a pyro"):
        configuration(model, "the model")


@pytest.mark.parametrize(
    "described",
    [
        {"class": "torch.nn.Linear", "arguments": {"in_features": 1, "out_features": 1}},
        {"class": "pyrovae.app.commands.main", "arguments": {}},
        {"class": "pyrovae.nowhere.Thing", "arguments": {}},
        {"type": "Sequential.forward"},
        {"constraint": "biject_to"},
        {"constraint": "__doc__"},
    ],
)
def test_only_known_classes_are_built(described):
    with pytest.raises(ValueError, match=r"only modules of pyrovae|no module class|has no|no constraint"):
        build(described)


# The oracle's own closed forms


def test_the_oracles_closed_forms_agree_with_each_other():
    model, x = make_oracle(3, 6, 10)
    with torch.no_grad():
        posterior = model.posterior(x)
        z = torch.randn(10, 3, generator=torch.Generator().manual_seed(0)).double()
        joint = dist.Normal(0.0, 1.0).expand([3]).to_event(1).log_prob(z)
        joint = joint + dist.Normal(z @ model.weight.T + model.bias, model.scale).to_event(1).log_prob(x)
        torch.testing.assert_close(joint - posterior.log_prob(z), model.log_evidence(x))
        torch.testing.assert_close(
            model.elbo(x, posterior.loc, posterior.covariance_matrix), model.log_evidence(x), rtol=0, atol=1e-9
        )
        best = model.optimal_mean_field(x).base_dist
        top = model.elbo(x, best.loc, best.scale.square().expand(10, 3).diag_embed())
        for factor in (0.9, 1.1):
            worse = model.elbo(x, best.loc, (factor * best.scale).square().expand(10, 3).diag_embed())
            assert (worse < top).all()
        assert (model.elbo(x, best.loc + 0.05, best.scale.square().expand(10, 3).diag_embed()) < top).all()
