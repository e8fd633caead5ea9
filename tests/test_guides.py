"""Every guide's density is a density, its gradients are those of its draws, and its promises hold on the oracle."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import SIGMAS, bits, make_oracle, make_vae, seeded
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from test_objectives import OBJECTIVES, adversaries
from torch.distributions import constraints

from pyrovae import data, evaluate, fit, guides, likelihoods, load, log_weights, models, nn, objectives, priors
from pyrovae.guides.refinement import log_joint
from pyrovae.nn.spline import spline
from pyrovae.programs.noise import DatumNoise

FLOWS = {
    "Flow": guides.Flow,
    "MaskedAutoregressive": guides.MaskedAutoregressive,
    "SplineCoupling": guides.SplineCoupling,
    "SplineAutoregressive": guides.SplineAutoregressive,
    "Planar": guides.Planar,
    "Radial": guides.Radial,
    "Householder": guides.Householder,
}
ONE_WAY = ("Planar", "Radial")
DENSITIES = {
    "LowRank": guides.LowRank,
    "Mixture": guides.Mixture,
    **{name: flow for name, flow in FLOWS.items() if name not in ONE_WAY},
}


FACTORISED = ("MeanField", "Local", "SemiAmortized")
DRAWING = ("Planar", "Radial", "Auxiliary", "DAIS")
MOMENTS = ("MeanField", "FullRank", "LowRank", "Local", "SemiAmortized")


pytestmark = pytest.mark.usefixtures("apart")


def bent(guide):
    """A guide away from where it starts, so that its steps do something; splines soon get slopes that no grid sees."""
    size = 0.05 if isinstance(guide, guides.SplineCoupling) else 0.15
    with torch.no_grad():
        for p in guide.parameters():
            p.add_(size * torch.randn_like(p))
    return guide


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("dim", [2, 3])
def test_a_flows_log_density_is_that_of_its_base_less_the_jacobian_by_autograd(name, dim):
    def run():
        guide = bent(FLOWS[name](nn.MLP(4, 16), dim, hidden=(16,))).double()
        q = guide.posterior(torch.randn(1, 4, dtype=torch.float64))
        for _ in range(5):
            base = q.base_dist.sample()

            def push(u):
                for transform in q.transforms:
                    u = transform(u)
                return u

            jacobian = torch.autograd.functional.jacobian(push, base)[0, :, 0]
            expected = q.base_dist.log_prob(base) - jacobian.slogdet()[1]
            torch.testing.assert_close(q.log_prob(push(base)), expected.reshape(1), rtol=0, atol=1e-7)

    seeded(run)


@pytest.mark.parametrize("name", DENSITIES)
def test_a_density_scores_its_own_draws_and_values_from_elsewhere_alike_and_integrates_to_one(name):
    def run():
        guide = bent(DENSITIES[name](nn.MLP(4, 16), 2)).double()
        x = torch.randn(1, 4, dtype=torch.float64)
        with torch.no_grad():
            q = guide.posterior(x)
            z = q.sample()
            torch.testing.assert_close(guide.posterior(x).log_prob(z.clone()), q.log_prob(z), rtol=0, atol=1e-6)
            grid = torch.linspace(-12, 12, 601, dtype=torch.float64)
            points = torch.stack(torch.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
            total = guide.posterior(x.expand(len(points), 4)).log_prob(points).exp().sum() * 0.04**2
        assert float(total) == pytest.approx(1, abs=2e-3)

    seeded(run)


@pytest.mark.parametrize("name", ONE_WAY)
def test_what_cannot_be_scored_says_so_before_work_starts(name):
    model = seeded(lambda: models.LinearGaussian(2, 5))
    guide = seeded(lambda: FLOWS[name](nn.MLP(5, 8), 2))
    for objective in (objectives.WakeSleep(), objectives.IWAE(estimator="dreg")):
        with pytest.raises(ValueError, match="knows that of its own draws alone"):
            fit(model, guide, torch.randn(20, 5), objective=objective, epochs=1, progress=False)


def test_splines_are_monotonic_invertible_and_the_identity_where_they_start():
    def run():
        raw = 3 * torch.randn(400, 3, 3 * 8 - 1, dtype=torch.float64)
        x = 7 * (torch.rand(400, 3, dtype=torch.float64) - 0.5)
        x.requires_grad_()
        y, log_slope = spline(x, raw, 3.0)
        (slope,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(slope.log(), log_slope, rtol=0, atol=1e-8)
        back, minus = spline(y.detach(), raw, 3.0, inverse=True)
        torch.testing.assert_close(back, x.detach(), rtol=0, atol=1e-6)
        torch.testing.assert_close(minus, -log_slope.detach(), rtol=0, atol=1e-5)
        same, flat = spline(x, torch.zeros_like(raw), 3.0)
        torch.testing.assert_close(same, x, rtol=0, atol=1e-12)
        torch.testing.assert_close(flat, torch.zeros_like(flat), rtol=0, atol=1e-4)
        ends = torch.tensor([-3.0, 3.0], dtype=torch.float64).expand(400, 3, 2).reshape(400, 6)
        fixed, _ = spline(ends, raw.repeat_interleave(2, dim=1), 3.0)
        torch.testing.assert_close(fixed, ends, rtol=0, atol=1e-9)

    seeded(run)


def test_a_mixtures_draws_have_an_unbiased_gradient_for_its_weights():
    """E[f(z)] for f = z_1 + z_2^2 has a closed form; six comparisons at 4 standard errors, below 4e-4."""

    def run():
        num = 100_000
        guide = guides.Mixture(nn.MLP(1, 4), 2, num_components=2).double()
        one = torch.randn(1, 2 * 5, dtype=torch.float64)
        params = one.expand(num, 10).clone().requires_grad_()
        z = guide.family(params).rsample()
        (found,) = torch.autograd.grad((z[:, 0] + z[:, 1].square()).sum(), params)
        exact = one[0].clone().requires_grad_()
        logits, locs, raw = exact.split((2, 4, 4))
        locs, scales = locs.view(2, 2), nn.positive(raw).view(2, 2)
        mean = (logits.softmax(0) * (locs[:, 0] + locs[:, 1] ** 2 + scales[:, 1] ** 2)).sum()
        (expected,) = torch.autograd.grad(mean, exact)
        error = found.std(0) / math.sqrt(num)
        assert ((found.mean(0) - expected).abs() <= SIGMAS * error + 1e-9).all()

    seeded(run)


def linear():
    """An encoder as good as any here: the posterior's mean is linear in x."""
    return nn.MLP(5, 8, hidden=())


REFINED = {
    "Auxiliary": lambda model: guides.Auxiliary(linear(), 2),
    "SemiAmortized": lambda model: guides.SemiAmortized(guides.MeanField(linear(), 2), model),
    "DAIS": lambda model: guides.DAIS(guides.MeanField(linear(), 2), model),
}


def widened(guide):
    """The guide with a wider q(z | a, x), and a reverse network narrower than q(a | x), where it has them."""
    if isinstance(guide, guides.Auxiliary):
        with torch.no_grad():
            for network, step in ((guide.forwards, 0.5), (guide.backwards, -0.5)):
                network.layers[-1].bias[network.out_features // 2 :] += step
    return guide


def fitted_wide(name, model, x):
    """The guide fitted a little, and then made wider than the posterior."""
    guide = seeded(lambda: REFINED[name](model.requires_grad_(False)))
    options = {"steps": 200, "lr": 1e-2, "precision": "float64", "compile": False, "progress": False}
    guide = widened(fit(model, guide, x, **options).guide)
    if name != "Auxiliary":
        with torch.no_grad():
            guide.family.head.bias[guide.family.free_dim :] += 0.5
    return guide


@pytest.mark.parametrize("name", REFINED)
def test_a_guide_with_randomness_of_its_own_weighs_so_that_the_evidence_is_unbiased(name):
    """The mean weight is p(x); 12 data at 4 standard errors, below 8e-4, and the bound below it.

    The guide is fitted a little, and then made wider than the posterior, since the weights of one far off, or with
    lighter tails, vary more than a sample of them shows.
    """
    model, x = make_oracle(2, 5, 12)
    guide = fitted_wide(name, model, x)
    weights = log_weights(model, guide, x, num_particles=4000, progress=False)
    truth = model.log_evidence(x).detach()
    ratio = (weights - truth).exp()
    error = ratio.std(0) / math.sqrt(len(ratio))
    assert ((ratio.mean(0) - 1).abs() < SIGMAS * error + 1e-9).all()
    assert (weights.mean(0) < truth + SIGMAS * weights.std(0) / math.sqrt(len(weights))).all()


def entangled():
    """An oracle whose latents the data can hardly tell apart, so that a factorised guide loses half a nat."""
    model, _ = make_oracle(2, 5, 1)
    with torch.no_grad():
        model.weight[:, 1] = model.weight[:, 0] + 0.5 * model.weight[:, 1]
        x = seeded(lambda: model.evidence().sample((200,)))
    return model.requires_grad_(False), x


@pytest.mark.parametrize("name", ["DAIS", "Auxiliary"])
def test_dynamics_and_auxiliary_variables_get_past_the_best_factorised_gaussian(name):
    model, x = entangled()
    best = model.optimal_mean_field(x).base_dist
    top = float(model.elbo(x, best.loc, best.scale.square().expand(200, 2).diag_embed()).mean())
    truth = float(model.log_evidence(x).mean())
    guide = seeded(lambda: REFINED[name](model))
    fitted = fit(
        model, guide, x, steps=600, batch_size=100, lr=lambda step: 2e-2 * 0.995**step, precision="float64",
        compile=False, progress=False,
    )  # fmt: skip
    weights = log_weights(model, fitted.guide, x, num_particles=500, progress=False)
    error = float(weights.mean(1).std()) / 500**0.5
    assert top + 0.2 < float(weights.mean()) < truth + SIGMAS * error


def test_local_parameters_reach_the_best_member_of_the_family():
    model, x = make_oracle(2, 5, 30)
    for p in model.parameters():
        p.requires_grad_(False)
    guide = seeded(lambda: guides.Local(guides.MeanField(nn.MLP(5, 4), 2).double(), x))
    best = model.optimal_mean_field(x)
    fitted = fit(
        model, guide, x, steps=1500, batch_size=30, precision="float64", progress=False,
        objective=objectives.IWAE(1, estimator="stl"), lr=lambda step: 0.05 * 0.997**step,
    )  # fmt: skip
    q = fitted.guide.posterior(x)
    torch.testing.assert_close(q.base_dist.loc, best.base_dist.loc, rtol=0, atol=0.05)
    torch.testing.assert_close(q.base_dist.scale, best.base_dist.scale.expand(30, 2), rtol=0.1, atol=0)


def test_local_parameters_belong_to_the_data_that_were_given(tmp_path):
    x = bits(40)
    x = x[[i for i in range(40) if not any(bool((x[i] == x[j]).all()) for j in range(i))]]
    model = seeded(
        lambda: models.VAE(
            prior=priors.StandardNormal(2), decoder=nn.MLP(2, 12, hidden=(8,)), likelihood=likelihoods.Bernoulli()
        )
    )
    guide = seeded(lambda: guides.Local(guides.FullRank(nn.MLP(12, 8), 2), x))
    assert torch.equal(guide.params(x[:4]), guide.family.params(x[:4]))
    fitted = fit(model, guide, x, epochs=3, progress=False)
    fitted.save(tmp_path)
    again = load(tmp_path)
    one, other = (log_weights(f.model, f.guide, x, num_particles=2, progress=False) for f in (fitted, again))
    assert torch.equal(one, other)
    with pytest.raises(ValueError, match="are not among the"):
        fit(model, guide, 1 - x, epochs=1, progress=False)
    with pytest.raises(ValueError, match="guide with an encoder"):
        guides.Local(guides.Exact(models.LinearGaussian(2, 5)), x)


def test_gradient_steps_better_a_bad_encoder_and_are_differentiated_through():
    model, x = make_oracle(2, 5, 100)
    family = seeded(lambda: guides.FullRank(nn.MLP(5, 8), 2)).double()
    elbos = [evaluate(model, family, x, num_particles=200, progress=False).elbo]
    for steps in (1, 5, 20):
        guide = guides.SemiAmortized(family, model, num_steps=steps, step_length=0.3).double()
        elbos.append(evaluate(model, guide, x, num_particles=200, progress=False).elbo)
    assert all(float(a.mean()) < float(b.mean()) for a, b in itertools.pairwise(elbos))
    guide = guides.SemiAmortized(family, model).double()
    loss = seeded(lambda: Trace_ELBO().differentiable_loss(model, guide, x))
    direct, *_ = torch.autograd.grad(loss, [guide.raw_lengths])
    assert float(direct.abs().min()) > 0


def hierarchy():
    model = models.HierarchicalVAE(
        prior=priors.StandardNormal(2),
        transitions=[nn.MLP(2, 6, hidden=(16,)), nn.MLP(3, 8, hidden=(16,))],
        decoder=nn.MLP(4, 12, hidden=(16,)),
        likelihood=likelihoods.Bernoulli(),
    )
    layers = [guides.MeanField(nn.MLP(12, 16), 4), guides.Flow(nn.MLP(4, 16), 3), guides.FullRank(nn.MLP(3, 8), 2)]
    return model, guides.Hierarchical(layers), guides.Ladder([nn.MLP(12, 16), nn.MLP(16, 16), nn.MLP(16, 8)], model)


REFUSED = {"BetaTCVAE": "takes one latent site", "DIPVAE": "takes one latent site"}
REFUSED_BOTTOM_UP = {**REFUSED, "FreeBits": "does not factorise"}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("direction", [1, 2])
def test_layers_fit_by_every_objective_or_it_says_why_not(direction, objective, tmp_path):
    made = seeded(hierarchy)
    model, guide, x = made[0], made[direction], bits(24)
    makers = {**OBJECTIVES, **adversaries(size=9)}

    def run():
        options = {"steps": 30, "batch_size": 12, "lr": 1e-2, "objective": seeded(makers[objective])}
        return fit(model, guide, x, **options, progress=False)

    refused = (REFUSED_BOTTOM_UP if direction == 1 else REFUSED).get(objective)
    if refused is not None:
        with pytest.raises(ValueError, match=refused):
            run()
        return
    fitted = run()
    unlike = {"AdversarialAutoencoder": "reconstruction", "CapacityELBO": "reconstruction"}
    better = {**unlike, "FactorVAE": None, "VAEGAN": None}.get(objective, "bound")  # a discriminator may win at first
    if better is not None:
        assert fitted.history[better].iloc[-5:].mean() > fitted.history[better].iloc[:3].mean()
    fitted.save(tmp_path)
    again = load(tmp_path)
    one, other = (log_weights(f.model, f.guide, x[:5], num_particles=3, progress=False) for f in (fitted, again))
    assert one.isfinite().all()
    assert torch.equal(one, other)


@pytest.mark.parametrize("direction", [1, 2])
def test_guides_of_several_layers(direction, tmp_path):
    made = seeded(hierarchy)
    model, guide, x = made[0], made[direction], bits(200)
    fitted = fit(model, guide, x, steps=300, lr=5e-3, progress=False, objective=objectives.BetaELBO())
    bound = fitted.history["bound"]
    assert bound.iloc[-20:].mean() > bound.iloc[:5].mean() + 0.5
    fitted.save(tmp_path)
    again = load(tmp_path)
    one, other = (log_weights(f.model, f.guide, x[:50], num_particles=3, progress=False) for f in (fitted, again))
    assert torch.equal(one, other)
    assert log_weights(model, guide, x[:7], num_particles=5, progress=False).isfinite().all()


def test_the_ladder_weighs_by_precision():
    model, _, ladder = seeded(hierarchy)
    with torch.no_grad():
        for head in ladder.heads[:-1]:  # the data say nothing: a precision next to zero
            head.weight.zero_()
            head.bias[: len(head.bias) // 2] = 3.0
            head.bias[len(head.bias) // 2 :] = 1e4
        with pyro.poutine.trace() as tracer:
            z = ladder(bits(5))
        found = tracer.trace.nodes["z2"]["fn"]
        expected = model.conditional(2, z[2:])
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.variance, expected.variance, rtol=1e-4, atol=1e-6)


class Codes(torch.nn.Module):
    """A categorical latent, or its relaxation."""

    def __init__(self, prior):
        super().__init__()
        self.inner = models.VAE(prior=prior, decoder=nn.MLP(3, 12, hidden=()), likelihood=likelihoods.Bernoulli())

    def forward(self, x):
        return self.inner(x)

    def exact(self, x):
        rows = self.inner.likelihood(self.inner.decoder(torch.eye(3).to(x)))
        return (rows.log_prob(x[:, None]) - math.log(3)).logsumexp(1).detach()


@pytest.mark.parametrize(
    ("how", "objective"),
    [
        ("enumerated", TraceEnum_ELBO(max_plate_nesting=1)),
        ("sampled", objectives.VIMCO(5)),
        ("sampled", objectives.WakeSleep(5, sleep=0.5)),
        ("straight-through", Trace_ELBO()),
        ("relaxed", objectives.IWAE(5)),
    ],
)
def test_categories_are_found_in_every_way(how, objective):
    relaxed = dist.RelaxedOneHotCategorical(torch.tensor(0.5), logits=torch.zeros(3))
    prior = relaxed if how == "relaxed" else dist.OneHotCategorical(logits=torch.zeros(3))
    model, x = seeded(lambda: Codes(prior)), bits(300)
    guide = seeded(lambda: guides.Categorical(nn.MLP(12, 16), 3, how=how))
    start = float(model.exact(x).mean())
    fitted = fit(model, guide, x, steps=600, lr=1e-2, objective=objective, progress=False)
    assert float(model.exact(x).mean()) > start + 1.0
    if how != "relaxed":
        result = evaluate(fitted.model, fitted.guide, x, num_particles=400, progress=False)
        gap, error = model.exact(x) - result.elbo, float(result.elbo_se.square().sum().sqrt()) / len(x)
        assert -SIGMAS * error - 1e-4 < float(gap.mean()) < 0.5  # the bound is one: below 6.3e-5


def test_a_guide_conditional_on_covariates():
    decoder, head = nn.MLP(2 + 3, 12, hidden=(16,)), nn.MLP(12 + 3, 16)

    def model(x, c):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z, c)).to_event(1), obs=x)

    for family in (guides.MeanField, guides.SplineCoupling, guides.Mixture):
        guide = family(head, 2)
        x, c = bits(60), torch.eye(3)[torch.arange(60) % 3]
        fitted = fit(model, guide, (x, c), epochs=3, batch_size=20, progress=False)
        assert log_weights(fitted.model, fitted.guide, (x, c), num_particles=4, progress=False).shape == (4, 60)


@pytest.mark.parametrize("family", [guides.LowRank, guides.Mixture, guides.Planar, guides.SplineAutoregressive])
def test_every_guide_runs_under_plain_svi(family):
    model = seeded(lambda: models.LinearGaussian(2, 5))
    guide = seeded(lambda: family(nn.MLP(5, 8), 2))
    with pyro.get_param_store().scope(), torch.random.fork_rng():
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
        losses = [svi.step(torch.ones(20, 5)) for _ in range(100)]
    assert sum(losses[-10:]) < sum(losses[:10])


DIGITS, *_ = data.Digits(binarise=data.Static()).batch(slice(None))
PARTNERS = {
    **{name: (lambda model, x, name=name: getattr(guides, name)(nn.MLP(64, 16, hidden=(32,)), 3)) for name in (
        "MeanField", "FullRank", "LowRank", "Mixture", "Auxiliary", *FLOWS)},
    "Local": lambda model, x: guides.Local(guides.MeanField(nn.MLP(64, 16, hidden=(32,)), 3), x),
    "SemiAmortized": lambda model, x: guides.SemiAmortized(guides.MeanField(nn.MLP(64, 16), 3), model, num_steps=2),
    "DAIS": lambda model, x: guides.DAIS(guides.MeanField(nn.MLP(64, 16), 3), model, num_steps=2),
}  # fmt: skip


def refusal(guide, objective):
    """What says that the two have no meaning together; None where they have."""
    if guide in DRAWING and objective in ("IWAE, stl", "IWAE, dreg", "VIMCO", "Chi", "WakeSleep"):
        return "knows that of its own draws alone"
    if guide == "Local" and objective == "WakeSleep":
        return "are not among the"
    if objective == "BetaTCVAE" and guide not in FACTORISED:
        return "independent given x"
    if objective == "FreeBits" and guide not in FACTORISED:
        return "does not factorise"
    if objective == "DIPVAE" and guide not in MOMENTS:
        return "mean and covariance"
    return None


@pytest.mark.parametrize("objective", [*OBJECTIVES, "Trace_ELBO", "TraceMeanField_ELBO"])
@pytest.mark.parametrize("name", PARTNERS)
def test_every_pair_of_guide_and_objective_fits_or_says_why_not(name, objective, tmp_path):
    """On digits: gradients everywhere, a better bound, weights per observation, the same after saving and loading."""
    x = DIGITS[:48]
    made = {**OBJECTIVES, **adversaries(data=64), "Trace_ELBO": Trace_ELBO, "TraceMeanField_ELBO": TraceMeanField_ELBO}[
        objective
    ]
    model, _ = make_vae(data_dim=64)
    guide = seeded(lambda: PARTNERS[name](model, x))
    before = {n: p.detach().clone() for m in (model, guide) for n, p in m.named_parameters() if p.requires_grad}

    def run():
        return fit(model, guide, x, steps=20, batch_size=24, lr=1e-2, objective=seeded(made), progress=False)

    reason = refusal(name, objective)
    if reason is not None:
        with pytest.raises(ValueError, match=reason):
            run()
        return
    fitted = run()
    assert fitted.history[["loss", "bound", "reconstruction", "kl"]].notna().all(axis=None)
    # the adversarial ones leave the KL to a discriminator, or compare features that change as it learns
    better = {"AdversarialAutoencoder": "reconstruction", "VAEGAN": None}.get(objective, "bound")
    if better is not None:
        assert fitted.history[better].iloc[-5:].mean() > fitted.history[better].iloc[:3].mean()
    for module in (model, guide):
        for n, p in module.named_parameters():
            assert not p.requires_grad or not torch.equal(p, before[n]) or n in still(name, objective), n
    weights = log_weights(fitted.model, fitted.guide, x[:5], num_particles=3, progress=False)
    assert weights.shape == (3, 5)
    assert weights.isfinite().all()
    fitted.save(tmp_path)
    again = load(tmp_path)
    assert torch.equal(log_weights(again.model, again.guide, x[:5], num_particles=3, progress=False), weights)


def still(guide, objective):
    """Parameters that an objective gives no gradient: those of a density that it does not use, and the like."""
    if guide == "Auxiliary" and objective in ("AdversarialAutoencoder", "MMD"):
        return [f"backwards.layers.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")]
    return []


# Latents with a support of their own

SCALE = 0.7  # of the latents on the unconstrained scale, below that of the guides where they start
SUPPORTED = {
    **{name: (lambda model, dim, name=name, **o: getattr(guides, name)(nn.MLP(4, 16), dim, **o)) for name in (
        "MeanField", "FullRank", "LowRank", "Mixture", "Auxiliary", *FLOWS)},
    "Local": lambda model, dim, **o: guides.Local(guides.MeanField(nn.MLP(4, 16), dim, **o), NEAR),
    "SemiAmortized": lambda model, dim, **o: guides.SemiAmortized(guides.MeanField(nn.MLP(4, 16), dim, **o), model),
    "DAIS": lambda model, dim, **o: guides.DAIS(guides.MeanField(nn.MLP(4, 16), dim, **o), model, step_size=0.03),
}  # fmt: skip
SUPPORTS = {
    "positive": "positive",
    "unit_interval": "unit_interval",
    "simplex": "simplex",
    "positive numbers": constraints.positive,
    "vectors of the unit interval": constraints.independent(constraints.unit_interval, 1),
    "an interval": constraints.interval(-1.0, 2.0),
}
NEAR = torch.tensor([[0.3, 0.1, -0.2, 0.5], [1.0, 0.0, 0.2, -0.4], [-0.6, 0.8, 0.1, 0.0]])


def to_support(support):
    """The map of unconstrained vectors, written out."""
    if support == "simplex":
        return dist.transforms.StickBreakingTransform()
    named = {"positive": dist.transforms.ExpTransform(), "unit_interval": dist.transforms.SigmoidTransform()}
    inner = getattr(support, "base_constraint", support)
    if inner is constraints.positive:
        return named["positive"]
    if inner is constraints.unit_interval:
        return named["unit_interval"]
    affine = dist.transforms.AffineTransform(-1.0, 3.0)
    return named.get(support, dist.transforms.ComposeTransform([named["unit_interval"], affine]))


def constrained(support, dim):
    """x ~ N(b z, 1) of a latent z = T(u), u ~ N(0, 0.7^2 I): the model, and the size of u."""
    transform = to_support(support)
    free = dim - 1 if support == "simplex" else dim
    prior = dist.TransformedDistribution(dist.Normal(torch.zeros(free), SCALE).to_event(1), [transform])
    slopes = torch.linspace(-1.0, 1.5, 4 * dim).view(dim, 4)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z @ slopes.to(z), 1.0).to_event(1), obs=x)

    def evidence(x):
        """By quadrature over u."""
        line = torch.linspace(-6, 6, 481, dtype=torch.float64)
        u = torch.cartesian_prod(*[line] * free).reshape(-1, free)
        log_prior = dist.Normal(0.0, SCALE).log_prob(u).sum(-1) + free * math.log(float(line[1] - line[0]))
        likelihood = dist.Normal(transform(u) @ slopes.double(), 1.0).to_event(1).log_prob(x.double()[:, None])
        return (log_prior + likelihood).logsumexp(-1)

    return model, evidence, transform


@pytest.mark.parametrize("support", ["positive", "unit_interval", "simplex", SUPPORTS["an interval"]])
@pytest.mark.parametrize("name", SUPPORTED)
@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.filterwarnings("ignore:ConditionalAutoRegressiveNN input_dim = 1")
def test_the_evidence_of_constrained_latents_is_that_of_quadrature(name, support, dim):
    """The mean weight is p(x); three data together and the first alone, at 4 standard errors: below 3e-4 a case."""
    dim = dim + 1 if support == "simplex" else dim
    model, evidence, _ = constrained(support, dim)
    guide = widened(seeded(lambda: SUPPORTED[name](model, dim, support=support)))
    for x in (NEAR, NEAR[:1]):
        weights = log_weights(model, guide, x, num_particles=2000, progress=False)
        ratio = (weights - evidence(x)).exp()
        assert ((ratio.mean(0) - 1).abs() < SIGMAS * ratio.std(0) / len(ratio) ** 0.5 + 1e-5).all()


@pytest.mark.parametrize("support", SUPPORTS.values(), ids=SUPPORTS)
@pytest.mark.parametrize("name", [name for name in SUPPORTED if name != "DAIS"])
def test_the_density_of_a_constrained_draw_is_that_of_the_free_one_less_the_jacobian(name, support):
    """The guide without a support draws the free vector from the same noise; the Jacobian's determinant by autograd."""

    def run():
        model, _, transform = constrained(support, 3)
        free_dim = 2 if support == "simplex" else 3
        guide = SUPPORTED[name](model, 3, support=support)
        family = guide.family if isinstance(guide, guides.Local | guides.SemiAmortized) else guide
        with torch.no_grad():
            params = guide.params(NEAR)
        z = seeded(lambda: family.member(params))
        z, log_q = seeded(lambda: z.rsample()) if name != "Auxiliary" else z.rsample(), z
        found = log_q.log_prob(z)
        assert found.shape == (3,)
        free = seeded(lambda: family.family(params))
        u = seeded(lambda: free.rsample()) if name != "Auxiliary" else free.rsample()
        torch.testing.assert_close(transform(u), z)
        jacobians = torch.stack(
            [torch.autograd.functional.jacobian(lambda v: transform(v)[:free_dim], row) for row in u]
        )
        torch.testing.assert_close(found, free.log_prob(u) - jacobians.slogdet().logabsdet, rtol=1e-4, atol=1e-4)

    seeded(run)


@pytest.mark.parametrize("support", ["positive", "unit_interval", "simplex"])
def test_the_gradient_steps_of_a_datum_do_not_depend_on_its_batch(support):
    model, _, _ = constrained(support, 3)
    family = seeded(lambda: guides.MeanField(nn.MLP(4, 16), 3, support=support))
    guide = guides.SemiAmortized(family, model, num_steps=2, step_length=0.01)  # too short to be cut to length 1

    def steps(rows):
        with DatumNoise("test", 0, rows, torch.device("cpu")), torch.no_grad():
            return guide.params(NEAR[rows]) - family.params(NEAR[rows])

    together = steps([0, 1, 2])
    for i in range(3):
        torch.testing.assert_close(steps([i]), together[i : i + 1], rtol=1e-4, atol=1e-7)
    free = family.family(family.params(NEAR)).sample()
    assert log_joint(model, family, (NEAR,), free).shape == (3,)


def test_a_support_that_is_none_of_a_vector_is_refused():
    with pytest.raises(ValueError, match="or the name of one, got 'positiv'"):
        guides.MeanField(nn.MLP(4, 16), 2, support="positiv")
    with pytest.raises(ValueError, match="a support of arrays of 2 axes"):
        guides.MeanField(nn.MLP(4, 16), 2, support=constraints.lower_cholesky)


@pytest.mark.parametrize("name", ["MeanField", "Auxiliary", "DAIS"])
def test_a_guide_on_a_part_of_the_models_support_is_refused(name):
    model, _ = make_vae(data_dim=4, latent_dim=2)
    guide = seeded(lambda: SUPPORTED[name](model, 2, support="positive"))
    with pytest.raises(ValueError, match=r"has support Real\(\) in the model but"):
        log_weights(model, guide, bits(3, 4), num_particles=2, progress=False)
