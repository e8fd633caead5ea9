"""Objectives on models whose answers are known: values, gradients, scales, and what is refused."""

import math
import re

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import SIGMAS, bits, make_oracle, make_vae, seeded
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO

from pyrovae import fit, guides, likelihoods, load, models, nn, objectives, priors
from pyrovae.objectives.aggregate import mmd2
from pyrovae.objectives.objective import Objective
from pyrovae.training import storage

REPEATS = 40_000


pytestmark = pytest.mark.usefixtures("apart")


class Rows(torch.nn.Module):
    """z ~ N(0, 1), x ~ N(w z + b, s^2) in one dimension, with a bias b for every row, so that each has its gradient."""

    w, s = 1.5, 0.7

    def __init__(self, rows, num_data=None):
        super().__init__()
        self.b = torch.nn.Parameter(torch.full((rows, 1), 0.3, dtype=torch.float64))
        self.num_data = num_data

    def forward(self, x):
        size, repeats = self.num_data, len(x) // len(self.b)
        b = self.b.repeat_interleave(repeats, 0)
        with pyro.plate("data", size or len(x), subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.w * z + b, self.s).to_event(1), obs=x)

    def log_evidence(self, x):
        return dist.Normal(0.3, math.hypot(self.w, self.s)).log_prob(torch.tensor(x, dtype=torch.float64))

    def posterior(self, x):
        precision = 1 + (self.w / self.s) ** 2
        return self.w * (x - 0.3) / self.s**2 / precision, precision**-0.5


class Gaussians(torch.nn.Module):
    """q(z) = N(m, s^2) with an m and a log s for every row."""

    def __init__(self, rows, loc, scale, num_data=None):
        super().__init__()
        self.params = torch.nn.Parameter(torch.tensor([[loc, math.log(scale)]], dtype=torch.float64).repeat(rows, 1))
        self.num_data = num_data

    def forward(self, x):
        params = self.params.repeat_interleave(len(x) // len(self.params), 0)
        with pyro.plate("data", self.num_data or len(x), subsample_size=len(x)):
            pyro.sample("z", dist.Normal(params[..., :1], params[..., 1:].exp()).to_event(1))


X, LOC, SCALE = 1.2, 0.2, 0.6


def pair(rows=REPEATS, num_data=None):
    return Rows(rows, num_data), Gaussians(rows, LOC, SCALE, num_data), torch.full((rows, 1), X, dtype=torch.float64)


def rowwise(objective, rows=REPEATS, seed=0):
    """Gradients of the objective of every row, for the model's and the guide's parameters: [rows, 1] and [rows, 2]."""
    model, guide, x = pair(rows)
    loss = seeded(lambda: objective.differentiable_loss(model, guide, x), seed)
    return [-g for g in torch.autograd.grad(loss, [model.b, guide.params])]


def mean_and_error(values):
    return values.mean(0), values.std(0) / math.sqrt(len(values))


def elbo_gradient():
    """Closed form, by autograd through E_q[log p(x, z)] + entropy."""
    b = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    m = torch.tensor(LOC, dtype=torch.float64, requires_grad=True)
    log_s = torch.tensor(math.log(SCALE), dtype=torch.float64, requires_grad=True)
    w, s, v = Rows.w, Rows.s, (2 * log_s).exp()
    value = -0.5 * (m**2 + v) - 0.5 * ((X - b - w * m) ** 2 + w**2 * v) / s**2 + log_s
    return [float(g) for g in torch.autograd.grad(value, [b, m, log_s])]


def quadrature(function, count=4001, width=12.0):
    """E_q[function(log w)] in one dimension, and the same of two independent draws."""
    z = torch.linspace(LOC - width * SCALE, LOC + width * SCALE, count, dtype=torch.float64)
    q = dist.Normal(LOC, SCALE)
    log_w = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(Rows.w * z + 0.3, Rows.s).log_prob(torch.tensor(X))
    log_w = log_w - q.log_prob(z)
    mass = q.log_prob(z).exp() * (z[1] - z[0])
    return function(log_w, mass)


def value(objective, rows=REPEATS, seed=0):
    """The objective per observation."""
    model, guide, x = pair(rows)
    return -seeded(lambda: objective.loss(model, guide, x), seed) / rows


# Values


def test_bounds_have_their_quadrature_values_and_their_order():
    """ELBO and IWAE(2) by quadrature; the order up to log p(x). Each at 4 of its own standard errors, below 6.3e-5."""
    elbo = quadrature(lambda log_w, mass: float((mass * log_w).sum()))
    two = quadrature(
        lambda log_w, mass: float(
            ((mass[:, None] * mass) * (torch.logaddexp(log_w[:, None], log_w) - math.log(2))).sum()
        )
    )
    model, guide, x = pair()
    found, errors = {}, {}
    for k in (1, 2, 5, 50):
        objective = objectives.IWAE(k)
        with torch.no_grad():
            known = objective._read(model, guide, (x,))
            drawn = seeded(lambda o=objective, known=known: o.draw(model, guide, (x,), known), k)
            bound = drawn.log_weights.logsumexp(0) - math.log(k)
        found[k], errors[k] = float(bound.mean()), float(bound.std()) / math.sqrt(REPEATS)
        assert value(objective, seed=k) == pytest.approx(found[k], abs=1e-9)
    assert abs(found[1] - elbo) < SIGMAS * errors[1]
    assert abs(found[2] - two) < SIGMAS * errors[2]
    truth = float(model.log_evidence(X))
    assert found[1] < found[2] < found[5] < found[50] < truth + SIGMAS * errors[50]


def test_renyi_objectives_have_their_quadrature_values_and_fall_with_alpha():
    """20,000 draws of one observation; the bias of order 1/K is below the error. Six comparisons at 4 errors: 4e-4."""
    draws, before = 20_000, math.inf
    for alpha in (-1.0, -0.5, 0.0, 0.5, 0.9, 2.0):
        power = 1 - alpha
        exact = quadrature(lambda lw, mass, p=power: float((mass.log() + p * lw).logsumexp(0)) / p)
        model, guide, x = pair(1)
        objective = objectives.Renyi(alpha, draws)
        found = -seeded(lambda o=objective, model=model, guide=guide, x=x: o.loss(model, guide, x))
        relative = quadrature(
            lambda lw, mass, p=power: float(
                ((mass.log() + 2 * p * lw).logsumexp(0) - 2 * (mass.log() + p * lw).logsumexp(0)).exp() - 1
            )
        )
        assert abs(found - exact) < SIGMAS * math.sqrt(relative / draws) / abs(power) + 2 * relative / draws
        assert exact < before + 1e-12
        before = exact
    assert objectives.Renyi(1.0, 7).loss(*pair(1)[:2], pair(1)[2]) != 0  # the ELBO, without dividing by nothing


def test_the_chi_objective_is_above_the_evidence():
    exact = quadrature(lambda lw, mass: float((mass.log() + 2 * lw).logsumexp(0)) / 2)
    model, guide, x = pair(1)
    found = seeded(lambda: objectives.Chi(2, 20_000).loss(model, guide, x))
    assert found == pytest.approx(exact, abs=0.05)
    assert exact > float(model.log_evidence(X))


@pytest.mark.parametrize(
    "make", [lambda: objectives.IWAE(5), lambda: objectives.CIWAE(5), lambda: objectives.PIWAE(2, num_bounds=3)]
)
def test_a_subsampled_plate_scales_the_finished_bound(make):
    rows, num_data = 2000, 100_000
    plain = seeded(lambda: make().loss(*pair(rows)[:2], pair(rows)[2]))
    model, guide, x = pair(rows, num_data)
    scaled = seeded(lambda: make().loss(model, guide, x))
    assert scaled == pytest.approx(plain * num_data / rows, rel=1e-9)
    # never above the evidence: one comparison at 4 standard errors, of about 0.5 nats a row
    assert -scaled / num_data < float(model.log_evidence(X)) + SIGMAS * 0.5 / math.sqrt(rows)
    model, guide, x = pair(50, 100)  # K times the batch is the size of the plate
    few = seeded(lambda: objectives.IWAE(2).loss(model, guide, x))
    assert few == pytest.approx(2 * seeded(lambda: objectives.IWAE(2).loss(*pair(50)[:2], pair(50)[2])), rel=1e-9)


def test_masks_act_per_datum():
    keep = torch.tensor([True, False] * 10)

    def model(x):
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=keep.repeat_interleave(len(x) // 20)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=keep.repeat_interleave(len(x) // 20)):
            pyro.sample("z", dist.Normal(0.5 * x, 0.7071068).to_event(1))

    x = torch.linspace(-2, 2, 20)[:, None]
    truth = dist.Normal(0.0, math.sqrt(2)).log_prob(x[keep, 0]).sum()
    assert seeded(lambda: objectives.IWAE(7).loss(model, guide, x)) == pytest.approx(-float(truth), abs=1e-4)


def masked(x, keep, shift=None, own=None):
    """z ~ N(0, I), x ~ N(z, I), q(z | x) = N(x / 2 + shift, 1/4 I), all of it masked; ``own`` masks single latents."""

    def of(loc, scale, own):
        return dist.Normal(loc, scale).expand(own.shape).mask(own).to_event(1)

    def model(x, keep, shift, own):
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=keep):
            z = pyro.sample("z", of(0.0, 1.0, own))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x, keep, shift, own):
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=keep):
            pyro.sample("z", of(x / 2 + shift, 0.5, own))

    shift = torch.zeros_like(x) if shift is None else shift
    return model, guide, x, keep, shift, torch.ones(x.shape, dtype=torch.bool) if own is None else own


def few(size, width=2):
    """Rows so few that torch draws their noise number by number, the same for the first of more rows."""
    return torch.linspace(-2, 2, size * width, dtype=torch.float64).reshape(size, width).sin()


AGGREGATE = {
    "BetaELBO": lambda n: objectives.BetaELBO(3.0),
    "CapacityELBO": lambda n: objectives.CapacityELBO(0.7),
    "FreeBits": lambda n: objectives.FreeBits(0.4),
    "FreeBits, by latent": lambda n: objectives.FreeBits(0.2, by_latent=True),
    "BetaTCVAE": lambda n: objectives.BetaTCVAE(5 * n, total_correlation=4.0, information=2.0),
    "DIPVAE": lambda n: objectives.DIPVAE(off_diagonal=3.0, diagonal=2.0),
}


@pytest.mark.parametrize("name", AGGREGATE)
def test_what_is_masked_counts_for_nothing(name):
    """The last two of six data masked: the loss, and its gradient for the guide, are those of the first four alone."""
    x, keep = few(6), torch.tensor([True] * 4 + [False] * 2)
    shift = torch.zeros(6, 2, dtype=torch.float64, requires_grad=True)

    def loss(rows, shift):
        pair = masked(x[:rows], keep[:rows], shift)
        return seeded(lambda: AGGREGATE[name](rows).differentiable_loss(*pair))

    whole, part = loss(6, shift), loss(4, shift[:4])
    assert whole.item() == pytest.approx(part.item(), rel=1e-9)
    grads = [torch.autograd.grad(value, shift)[0] for value in (whole, part)]
    torch.testing.assert_close(*grads)
    assert (grads[0][4:] == 0).all()


def test_mmd_leaves_out_what_is_masked():
    one, other = seeded(lambda: torch.randn(2, 30, 3).double())
    some = torch.arange(30) % 3 > 0
    assert float(mmd2(one, other, some)) == pytest.approx(float(mmd2(one[some], other[some])), rel=1e-9)
    assert float(mmd2(one, other, torch.arange(30) < 1)) == 0
    x, keep = few(6), torch.tensor([True] * 4 + [False] * 2)
    away = torch.zeros(6, 2, dtype=torch.float64)
    losses = []
    for far in (0.0, 50.0):
        away[4:] = far
        losses.append(seeded(lambda: objectives.MMD(10.0, kl_weight=1.0).loss(*masked(x, keep, away))))
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)


def test_free_bits_of_masked_latents_are_their_closed_form():
    """KL_ij = (1/4 + m_ij^2 - 1) / 2 + log 2 where latent j of observation i counts; those alone pay the floor."""
    x = few(6)
    keep, own = torch.tensor([True] * 5 + [False]), torch.ones(6, 2, dtype=torch.bool)
    own[:3, 0] = False
    counts = own & keep[:, None]
    kl = torch.where(counts, ((x / 2).square() - 0.75) / 2 + math.log(2), 0.0)
    for free in (0.0, 0.35, 0.5):
        paid = torch.maximum(kl.sum(0), free * counts.sum(0)).sum()
        found = seeded(lambda f=free: objectives.FreeBits(f, by_latent=True).loss(*masked(x, keep, own=own)))
        base = seeded(lambda: objectives.BetaELBO(0.0).loss(*masked(x, keep, own=own)))
        assert found - base == pytest.approx(float(paid), rel=1e-6)


def test_latents_in_other_plates_are_latents_of_the_datum():
    def model(x):
        with pyro.plate("data", len(x)):
            with pyro.plate("groups", 3, dim=-2):
                z = pyro.sample("z", dist.Normal(torch.zeros(3, len(x)), 1.0))
            pyro.sample("x", dist.Normal(z.T, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)), pyro.plate("groups", 3, dim=-2):
            pyro.sample("z", dist.Normal(x.T / 2, 0.5))

    x = few(4, 3).float()
    kl = ((x / 2).square() - 0.75) / 2 + math.log(2)
    base = seeded(lambda: objectives.BetaELBO(0.0).loss(model, guide, x))
    found = seeded(lambda: objectives.FreeBits(0.4, by_latent=True).loss(model, guide, x))
    assert found - base == pytest.approx(float(kl.sum(0).clamp(min=4 * 0.4).sum()), rel=1e-5)


def test_masks_that_an_objective_has_no_meaning_for_are_refused():
    x, keep = few(6), torch.tensor([True] * 5 + [False])
    cells = torch.tensor([[True, False]]).expand(6, 2)
    for make in (lambda: objectives.BetaTCVAE(6), objectives.MMD, objectives.DIPVAE):
        with pytest.raises(ValueError, match="latent site 'z' has a mask that leaves out a part of a code"):
            make().loss(*masked(x, keep, own=cells))
    model, _, *batch = masked(x, keep)

    def other(x, *rest):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5).to_event(1))

    with pytest.raises(ValueError, match="masked otherwise in the model than in the guide"):
        objectives.FreeBits(0.1, by_latent=True).loss(model, other, *batch)
    with pytest.raises(ValueError, match="differs between model and guide"):
        objectives.DIPVAE().loss(model, other, *batch)
    for make in adversaries(2, 2).values():
        objective = make()
        objective.own.double()
        with pytest.raises(ValueError, match="site 'z' is masked, and the discriminator of"):
            objective.loss(*masked(x, keep))


# Gradients


@pytest.mark.parametrize(
    "make",
    [
        lambda: objectives.IWAE(1),
        lambda: objectives.IWAE(1, estimator="stl"),
        lambda: objectives.IWAE(1, estimator="dreg"),
        lambda: objectives.IWAE(1, num_bounds=4, estimator="dreg"),
        lambda: objectives.PIWAE(1, num_bounds=1),
        lambda: objectives.CIWAE(4, elbo_weight=1.0),
        lambda: objectives.Renyi(1.0, 3),
        objectives.BetaELBO,
        lambda: objectives.BetaELBO(analytic=False),
        lambda: objectives.FreeBits(0.0),
    ],
)
def test_gradients_of_the_elbo_are_the_closed_form(make):
    """Three comparisons at 4 standard errors, below 2e-4."""
    exact = elbo_gradient()
    for_model, for_guide = rowwise(make())
    found = torch.cat([for_model, for_guide], 1)
    mean, error = mean_and_error(found)
    assert ((mean - torch.tensor(exact)).abs() <= SIGMAS * error + 1e-9).all()


@pytest.mark.parametrize("k", [2, 8])
def test_doubly_reparametrised_gradients_are_those_of_the_plain_bound(k):
    """Three comparisons of two independent means at 4 standard errors, below 2e-4; with less noise for the guide."""
    plain = torch.cat(rowwise(objectives.IWAE(k), seed=1), 1)
    for other in (
        objectives.IWAE(k, estimator="dreg"),
        objectives.IWAE(k // 2, num_bounds=2, estimator="dreg"),
    ):
        reference = (
            plain if other.num_bounds == 1 else torch.cat(rowwise(objectives.IWAE(k // 2, num_bounds=2), seed=1), 1)
        )
        found = torch.cat(rowwise(other, seed=2), 1)
        (a, error_a), (b, error_b) = mean_and_error(reference), mean_and_error(found)
        assert ((a - b).abs() < SIGMAS * torch.hypot(error_a, error_b)).all()
    double = torch.cat(rowwise(objectives.IWAE(8, estimator="dreg"), seed=2), 1)
    single = torch.cat(rowwise(objectives.IWAE(8), seed=1), 1)
    assert (double[:, 1:].std(0) < single[:, 1:].std(0)).all()


def test_partial_bounds_give_each_program_its_own_gradient():
    """The model's is IWAE(6)'s, the guide's that of three IWAE(2): three comparisons at 4 errors, below 2e-4."""
    (b, phi), (b6, _) = rowwise(objectives.PIWAE(2, num_bounds=3)), rowwise(objectives.IWAE(6), seed=1)
    _, phi2 = rowwise(objectives.IWAE(2, num_bounds=3), seed=2)
    for one, other in ((b, b6), (phi, phi2)):
        (mean, error), (expected, other_error) = mean_and_error(one), mean_and_error(other)
        assert ((mean - expected).abs() < SIGMAS * torch.hypot(error, other_error)).all()


def test_sticking_the_landing_has_no_noise_at_the_posterior_and_a_bias_for_more_particles():
    model, _, x = pair(100)
    loc, scale = model.posterior(X)
    guide = Gaussians(100, loc, scale)
    for objective in (objectives.IWAE(1, estimator="stl"), objectives.IWAE(5, estimator="dreg")):
        loss = objective.differentiable_loss(model, guide, x)
        (grad,) = torch.autograd.grad(loss, [guide.params])
        torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-9)
    plain, stl = (torch.cat(rowwise(objectives.IWAE(8, estimator=e), seed=1), 1)[:, 1:] for e in ("plain", "stl"))
    (a, error_a), (b, error_b) = mean_and_error(plain), mean_and_error(stl)
    assert ((a - b).abs() > SIGMAS * torch.hypot(error_a, error_b)).any()


def test_wake_phi_lowers_the_other_divergence():
    """At K = 2,000 its gradient is that of E_p(z|x)[log q(z)], a bias of order 1/K apart; two comparisons."""
    rows = 200
    _, found = rowwise(objectives.WakeSleep(2000), rows)
    model, _, _ = pair(1)
    mean, scale = model.posterior(X)
    away = ((mean - LOC) ** 2 + scale**2) / SCALE**2
    expected = torch.tensor([(mean - LOC) / SCALE**2, away - 1])
    found_mean, error = mean_and_error(found)
    assert ((found_mean - expected).abs() < SIGMAS * error + 0.01 * expected.abs()).all()


def test_sleep_phi_is_the_score_on_dreams():
    """For q(z) = N(m, s^2) whatever x: E_p(z)[d log q] in closed form; two comparisons at 4 errors, below 1.3e-4."""
    _, found = rowwise(objectives.WakeSleep(2, sleep=1.0))
    expected = torch.tensor([-LOC / SCALE**2, (1 + LOC**2) / SCALE**2 - 1], dtype=torch.float64)
    mean, error = mean_and_error(found)
    assert ((mean - expected).abs() < SIGMAS * error).all()


def test_chi_gradients_are_those_of_its_upper_bound():
    """Against the quadrature's own derivative at K = 2,000; two comparisons at 4 errors and 2% for the bias."""

    def upper(m, log_s):
        z = torch.linspace(-8, 8, 20_001, dtype=torch.float64)
        log_q = dist.Normal(m, log_s.exp()).log_prob(z)
        log_w = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(Rows.w * z + 0.3, Rows.s).log_prob(torch.tensor(X))
        return (log_q + 2 * (log_w - log_q)).logsumexp(0) / 2

    at = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (LOC, math.log(SCALE))]
    expected = torch.stack(torch.autograd.grad(-upper(*at), at))
    _, found = rowwise(objectives.Chi(2, 2000), 400)
    mean, error = mean_and_error(found)
    assert ((mean - expected).abs() < SIGMAS * error + 0.02 * expected.abs()).all()


class Coins(torch.nn.Module):
    def __init__(self, rows):
        super().__init__()
        self.rates = torch.nn.Parameter(torch.tensor([[-0.5, 1.0]], dtype=torch.float64).repeat(rows, 1))

    def forward(self, x):
        rates = self.rates.repeat_interleave(len(x) // len(self.rates), 0)
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(x.new_tensor(0.4)))
            picked = torch.where(c > 0, rates[:, 1], rates[:, 0])
            pyro.sample("x", dist.Bernoulli(logits=picked), obs=x)


class Guess(torch.nn.Module):
    def __init__(self, rows):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.full((rows,), 0.3, dtype=torch.float64))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Bernoulli(logits=self.logits.repeat_interleave(len(x) // len(self.logits))))


@pytest.mark.parametrize("k", [2, 3])
def test_vimco_is_unbiased_by_full_enumeration(k):
    """Three comparisons at 4 standard errors, below 2e-4."""
    rates = torch.tensor([-0.5, 1.0], dtype=torch.float64, requires_grad=True)
    logit = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    log_q = torch.nn.functional.logsigmoid(torch.stack([-logit, logit]))
    log_w = torch.log(torch.tensor([0.6, 0.4])) + torch.nn.functional.logsigmoid(rates) - log_q
    combos = torch.cartesian_prod(*[torch.arange(2)] * k)
    bound = (log_q[combos].sum(1).exp() * (log_w[combos].logsumexp(1) - math.log(k))).sum()
    expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(bound, [rates, logit])])
    model, guide, x = Coins(REPEATS), Guess(REPEATS), torch.ones(REPEATS, dtype=torch.float64)
    loss = seeded(lambda: objectives.VIMCO(k).differentiable_loss(model, guide, x))
    grads = [-g.reshape(REPEATS, -1) for g in torch.autograd.grad(loss, [model.rates, guide.logits])]
    mean, error = mean_and_error(torch.cat(grads, 1))
    assert ((mean - expected).abs() <= SIGMAS * error).all()


# Weighted bounds and aggregate regularisers


def test_weights_of_the_kl_act_on_model_and_guide_together():
    model, x = make_oracle(2, 5, 30)
    guide = seeded(lambda: guides.MeanField(nn.MLP(5, 8), 2)).double()

    def losses(objective):
        return seeded(lambda: objective.loss(model, guide, x))

    elbo, analytic = losses(objectives.BetaELBO(1.0, analytic=False)), losses(objectives.BetaELBO(1.0))
    assert elbo == pytest.approx(losses(Trace_ELBO()), rel=1e-9)
    assert analytic == pytest.approx(losses(TraceMeanField_ELBO()), rel=1e-9)
    reconstruction = losses(objectives.BetaELBO(0.0))
    kl = analytic - reconstruction
    assert losses(objectives.BetaELBO(4.0)) == pytest.approx(reconstruction + 4 * kl, rel=1e-6)
    assert losses(objectives.CapacityELBO(3.0, strength=10.0)) == pytest.approx(
        reconstruction + 10 * abs(kl - 30 * 3.0), rel=1e-5
    )
    assert losses(objectives.FreeBits(0.0)) == pytest.approx(analytic, rel=1e-6)
    assert losses(objectives.FreeBits(1e3)) == pytest.approx(reconstruction + 30 * 1e3, rel=1e-6)
    assert losses(objectives.FreeBits(1e3, by_latent=True)) == pytest.approx(reconstruction + 2 * 30 * 1e3, rel=1e-6)
    assert losses(objectives.FreeBits(0.0, by_latent=True)) == pytest.approx(analytic, rel=1e-6)
    assert losses(objectives.BetaTCVAE(30, total_correlation=1.0)) == pytest.approx(elbo, rel=1e-6)
    assert losses(objectives.MMD(0.0, kl_weight=1.0)) == pytest.approx(analytic, rel=1e-6)
    assert losses(objectives.DIPVAE(off_diagonal=0.0, diagonal=0.0)) == pytest.approx(analytic, rel=1e-6)


def test_schedules():
    assert [objectives.linear(10)(s) for s in (0, 5, 10, 99)] == [0, 0.5, 1, 1]
    wave = objectives.cyclical(10, cycles=2)
    assert [wave(s) for s in (0, 4, 5, 9, 10, 12, 20, 23)] == pytest.approx([0, 0.8, 1, 1, 0, 0.4, 1, 1])
    bend = objectives.sigmoid(100, width=10.0, end=2.0)
    assert bend(100) == pytest.approx(1)
    assert bend(120) == pytest.approx(2 / (1 + math.exp(-2)))
    assert objectives.constant(3.0)(17) == 3


def test_the_history_keeps_every_weight(tmp_path):
    x = bits(40)
    options = {"batch_size": 20, "progress": False, "compile": False, "checkpoint": tmp_path}
    objective = objectives.MMD(5.0, kl_weight=objectives.linear(3))
    h = fit(*make_vae(), x, steps=4, objective=objective, **options).history
    assert list(h.columns[-2:]) == ["mmd_weight", "kl_weight"]
    assert h["mmd_weight"].tolist() == [5.0] * 4
    np.testing.assert_allclose(h["kl_weight"], [0, 1 / 3, 2 / 3, 1])
    pd.testing.assert_frame_equal(load(tmp_path, *make_vae()).history, h)
    assert "kl_weight" not in fit(*make_vae(), x, steps=2, progress=False).history
    tensors, document = storage.read(tmp_path)  # as version 0.1.0 wrote them
    tensors["history"] = tensors["history"][:, :-2].contiguous()
    storage.write(tmp_path, tensors, {**document, "columns": document["columns"][:-2]})
    assert list(load(tmp_path, *make_vae()).history.columns) == list(h.columns[:-2])
    resumed = fit(*make_vae(), x, steps=6, objective=objective, resume=True, **options).history
    np.testing.assert_allclose(resumed["kl_weight"], [0, 1 / 3, 2 / 3, 1, 1, 1])
    assert resumed["loss"].notna().all()

    class Named(objectives.BetaELBO):
        def __init__(self):
            super().__init__()
            self.weigh(kl=2.0)

    named = fit(*make_vae(), x, steps=2, objective=Named(), progress=False).history
    assert list(named.columns[-2:]) == ["kl_weight", "kl (weight)"]
    assert named["kl (weight)"].tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    ("weight", "steps", "sentence"),
    [
        (
            objectives.linear(50),
            20,
            "kl_weight reaches 1 at step 50, but the fit has 20 steps, at the last of which it is",
        ),
        (objectives.linear(20), 20, "reaches 1 at step 20, .* it is 0.95"),
        (objectives.linear(10**7), 20, "reaches 1 at step 10000000"),
        (objectives.sigmoid(20, width=3.0), 25, "reaches 0.991 at step 34"),
        (objectives.cyclical(20, cycles=2), 24, "reaches 1 at step 30"),
        (lambda step: min(1.0, step / 70), 20, "reaches 1 at step 70"),
        (objectives.linear(19), 20, None),
        (objectives.linear(1000), 1000, None),
        (objectives.cyclical(10, cycles=2), 16, None),
        (objectives.sigmoid(10, width=1.0), 20, None),
        (objectives.constant(4.0), 20, None),
        (lambda step: min(1.0, step / 10), 20, None),
        (lambda step: math.cos(step), 20, None),
        (lambda step: [0.1 * k for k in range(20)][step], 20, None),
    ],
)
def test_a_warm_up_longer_than_the_fit_is_said(weight, steps, sentence):
    objective = objectives.BetaELBO(weight)
    if sentence is None:
        assert objective.unfinished(steps) == []
    else:
        (said,) = objective.unfinished(steps)
        assert re.search(sentence, said)


def test_fit_warns_of_a_warm_up_longer_than_itself():
    objective = objectives.BetaELBO(objectives.linear(50))
    with pytest.warns(UserWarning, match="kl_weight reaches 1 at step 50, but the fit has 2 steps"):
        fit(*make_vae(), bits(20), steps=2, objective=objective, progress=False)


@pytest.mark.parametrize("compile", [False, True])
def test_a_weight_over_training_time_is_followed_step_by_step(compile):
    seen = []

    def weight(step):
        seen.append(step)
        return 0.1 if step < 60 else 7.0

    model, guide = make_vae()
    x = bits(64)
    objective = objectives.BetaELBO(weight)
    fitted = fit(model, guide, x, steps=120, batch_size=32, objective=objective, compile=compile, progress=False)
    h = fitted.history
    assert not fitted.compiled if compile else True
    expected = -h["reconstruction"] + torch.tensor([0.1 if s < 60 else 7.0 for s in h["step"]]).numpy() * h["kl"]
    # the loss has the KL in closed form, the history the draws' own: their means agree
    assert abs((h["loss"] - expected)[:60].mean()) < 0.1
    assert abs((h["loss"] - expected)[60:].mean()) < 1.0
    with pyro.get_param_store().scope(), torch.random.fork_rng():
        counted = objectives.BetaELBO(objectives.linear(10))
        svi = SVI(*make_vae(), pyro.optim.Adam({"lr": 1e-3}), counted)
        for _ in range(6):
            svi.step(x)
        assert float(counted.weight("kl_weight")) == pytest.approx(0.5)
        svi.evaluate_loss(x)
        assert float(counted.weight("kl_weight")) == pytest.approx(0.5)


def test_mmd_is_zero_in_the_mean_between_like_samples():
    """One comparison at 4 standard errors, below 6.3e-5."""

    def run():
        same = torch.stack([mmd2(torch.randn(20, 2), torch.randn(20, 2)) for _ in range(500)])
        other = torch.stack([mmd2(torch.randn(20, 2) + 1, torch.randn(20, 2)) for _ in range(100)])
        return same, other

    same, other = seeded(run)
    assert abs(float(same.mean())) < SIGMAS * float(same.std()) / math.sqrt(500)
    assert float(other.mean()) > 20 * float(same.std()) / math.sqrt(500)


def test_dip_vae_penalises_the_aggregate_covariance():
    model, x = make_oracle(2, 5, 30)
    guide = guides.Exact(model)
    base = seeded(lambda: objectives.DIPVAE(off_diagonal=0.0, diagonal=0.0).loss(model, guide, x))
    with torch.no_grad():
        q = model.posterior(x)
    centred = q.loc - q.loc.mean(0)
    first = centred.T @ centred / 30
    for variances in (False, True):
        c = first + (q.covariance_matrix[0] if variances else 0)
        off = float(2 * c[0, 1] ** 2)
        away = float(((c.diagonal() - 1) ** 2).sum())
        objective = objectives.DIPVAE(off_diagonal=3.0, diagonal=5.0, variances=variances)
        found = seeded(lambda o=objective: o.loss(model, guide, x))
        assert found == pytest.approx(base + 30 * (3 * off + 5 * away), rel=1e-6)


def test_factor_vaes_discriminator_finds_the_total_correlation():
    """Of two correlated Gaussians, -log(1 - r^2) / 2 nats, to a fifth of it."""
    rho = 0.8

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(0 * z, 1.0).to_event(1), obs=x)

    def guide(x):
        tril = torch.tensor([[1.0, 0.0], [rho, math.sqrt(1 - rho**2)]])
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(torch.zeros(len(x), 2), scale_tril=tril))

    def run():
        net = nn.MLP(2, 1, hidden=(32, 32))
        objective = objectives.FactorVAE(net, optimizer=lambda params: torch.optim.Adam(params, lr=3e-3))
        x = torch.zeros(1000, 2)
        for _ in range(600):
            loss = objective.differentiable_loss(model, guide, x)
            grads = torch.autograd.grad(loss, list(net.parameters()))
            for p, g in zip(net.parameters(), grads, strict=True):
                p.grad = g
            objective.optimizer.step()
        with torch.no_grad():
            z = torch.randn(20_000, 2) @ torch.tensor([[1.0, rho], [0.0, math.sqrt(1 - rho**2)]])
            return float(net(z).mean())

    assert seeded(run) == pytest.approx(-0.5 * math.log(1 - rho**2), rel=0.2)


def adversaries(size=3, data=12):
    return {
        "FactorVAE": lambda: objectives.FactorVAE(nn.MLP(size, 1, hidden=(16,))),
        "AdversarialAutoencoder": lambda: objectives.AdversarialAutoencoder(
            nn.MLP(size, 1, hidden=(16,)), optimizer=lambda params: torch.optim.Adam(params, lr=1e-3)
        ),
        "VAEGAN": lambda: objectives.VAEGAN(nn.MLP(data, 8, hidden=(16,)), nn.MLP(8, 1, hidden=())),
    }


OBJECTIVES = {
    "IWAE": lambda: objectives.IWAE(4),
    "IWAE, stl": lambda: objectives.IWAE(1, estimator="stl"),
    "IWAE, dreg": lambda: objectives.IWAE(4, estimator="dreg", num_bounds=2),
    "PIWAE": lambda: objectives.PIWAE(2, num_bounds=2),
    "CIWAE": lambda: objectives.CIWAE(4),
    "VIMCO": lambda: objectives.VIMCO(4),
    "Renyi": lambda: objectives.Renyi(0.5, 4),
    "Chi": lambda: objectives.Chi(2, 4),
    "WakeSleep": lambda: objectives.WakeSleep(4, sleep=0.3),
    "BetaELBO": lambda: objectives.BetaELBO(objectives.linear(15)),
    "CapacityELBO": lambda: objectives.CapacityELBO(objectives.linear(15, end=3.0)),
    "FreeBits": lambda: objectives.FreeBits(0.1, by_latent=True),
    "BetaTCVAE": lambda: objectives.BetaTCVAE(80),
    "MMD": lambda: objectives.MMD(10.0),
    "DIPVAE": lambda: objectives.DIPVAE(),
    **adversaries(),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_fits_in_fit_and_in_svi_alike(name, tmp_path):
    """The same seed gives plain SVI the losses that fit writes down; the reconstruction gets better."""
    x = bits(40)
    fitted = fit(*make_vae(), x, steps=150, batch_size=40, lr=1e-2, objective=seeded(OBJECTIVES[name]), progress=False)
    gained, kl = fitted.history["reconstruction"], fitted.history["kl"]
    if name == "CapacityELBO":
        assert kl.iloc[-10:].mean() == pytest.approx(3, abs=0.5)
    elif name == "VAEGAN":  # the features of a discriminator are compared, not the data
        assert fitted.history["loss"].notna().all()
    else:
        assert gained.iloc[-10:].mean() > gained.iloc[:10].mean() + 0.3
    objective = seeded(OBJECTIVES[name])
    trained = [p.detach().clone() for p in objective.own.parameters()]
    with pyro.get_param_store().scope(), torch.random.fork_rng():
        torch.manual_seed(0)
        model, guide = make_vae()
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), objective)
        before = {n: p.detach().clone() for m in (model, guide) for n, p in m.named_parameters()}
        losses = [svi.step(x) / 40 for _ in range(30)]
        for module in (model, guide):
            for n, p in module.named_parameters():
                assert not torch.equal(p, before[n]), f"{n} was not trained"
    assert losses[0] == pytest.approx(fitted.history["loss"].iloc[0], rel=0.2)
    assert all(not torch.equal(p, old) for p, old in zip(objective.own.parameters(), trained, strict=True))


@pytest.mark.parametrize("name", ["FactorVAE", "BetaELBO"])
def test_what_an_objective_holds_is_resumed(name, tmp_path):
    x = bits(40)
    options = {"batch_size": 20, "lr": 1e-2, "progress": False, "compile": False}
    whole = fit(*make_vae(), x, steps=40, objective=seeded(OBJECTIVES[name]), **options)
    fit(*make_vae(), x, steps=20, objective=seeded(OBJECTIVES[name]), checkpoint=tmp_path, **options)
    other = seeded(OBJECTIVES[name], 1)
    resumed = fit(*make_vae(), x, steps=40, objective=other, checkpoint=tmp_path, resume=True, **options)
    assert resumed.history["loss"].tolist() == whole.history["loss"].tolist()


# Refusals


def coins():
    rates = torch.nn.Linear(1, 12)

    def guide(x):
        logit = pyro.param("logit", torch.tensor(0.3))
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Bernoulli(logits=logit.expand(len(x))))

    def model(x):
        pyro.module("rates", rates)
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(0.5 * torch.ones(len(x))))
            pyro.sample("x", dist.Bernoulli(logits=rates(c[:, None])).to_event(1), obs=x)

    return guide, model


def test_combinations_without_a_meaning_are_refused_in_a_sentence():
    model, guide = make_vae()
    x = bits(20)

    def quick(objective, guide=guide, model=model):
        return fit(model, guide, x, steps=1, objective=objective, progress=False)

    with pytest.raises(ValueError, match="independent given x, such as MeanField"):
        quick(objectives.BetaTCVAE(20), make_vae(guides.FullRank)[1])
    with pytest.raises(ValueError, match="does not factorise in both programs"):
        quick(objectives.FreeBits(0.1, by_latent=True), make_vae(guides.Flow)[1])
    with pytest.raises(ValueError, match="mean and covariance of q"):
        quick(objectives.DIPVAE(), make_vae(guides.Flow)[1])
    with pytest.raises(ValueError, match="must take 3 numbers and give one logit"):
        quick(objectives.FactorVAE(nn.MLP(5, 1)))
    with pytest.raises(ValueError, match="'c' is not reparametrised, so IWAE has no gradient"):
        quick(objectives.IWAE(2), *coins())
    with pytest.raises(ValueError, match="carries a scale besides that of the data plate"):
        quick(objectives.IWAE(2), pyro.poutine.scale(guide, scale=0.5), pyro.poutine.scale(model, scale=0.5))
    with pytest.raises(ValueError, match="'z' is scaled differently in the two programs"):
        quick(objectives.IWAE(2), model=pyro.poutine.scale(model, scale=0.5))
    for make, message in (
        (lambda: objectives.IWAE(0), "at least 1"),
        (lambda: objectives.IWAE(2, estimator="best"), "must be one of 'plain', 'stl', 'dreg', got 'best'"),
        (lambda: objectives.VIMCO(1), "at least 2"),
        (lambda: objectives.Renyi(math.inf), "finite"),
        (lambda: objectives.BetaELBO("big"), "number or a function of the step"),
        (lambda: objectives.BetaELBO(math.nan), "finite number, got nan at step 0"),
        (lambda: objectives.CIWAE(3, elbo_weight=2.0), "between 0 and 1"),
        (lambda: objectives.WakeSleep(3, sleep=-1), "between 0 and 1"),
        (lambda: objectives.FactorVAE(lambda z: z), "torch.nn.Module"),
        (lambda: objectives.cyclical(10, rise=0.0), "share of the period"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_a_global_latent_is_refused_by_name():
    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(w * z, 1.0), obs=x)

    def guide(x):
        scale = pyro.param("scale", torch.tensor(0.5))
        pyro.sample("w", dist.Normal(scale, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    with pytest.raises(ValueError, match="'w' is outside the data plate"):
        fit(model, guide, torch.randn(10), steps=1, objective=objectives.IWAE(2), progress=False)


def test_a_users_own_objective_in_a_few_lines():
    class Median(Objective):
        def total(self, model, guide, batch, known):
            return self.draw(model, guide, batch, known).log_weights.median(0).values.sum()

    fitted = fit(*make_vae(), bits(40), steps=50, objective=Median(5), progress=False)
    assert fitted.history["loss"].notna().all()


def test_prior_of_any_kind_for_samples_alone():
    """A prior without a usable density: the adversarial autoencoder and MMD ask for draws alone."""
    prior = priors.MixtureOfGaussians(3, num_components=4)
    model = seeded(
        lambda: models.VAE(prior=prior, decoder=nn.MLP(3, 12, hidden=(16,)), likelihood=likelihoods.Bernoulli())
    )
    guide = make_vae()[1]
    for objective in (objectives.MMD(), adversaries()["AdversarialAutoencoder"]()):
        fitted = fit(model, guide, bits(40), steps=20, objective=objective, progress=False)
        assert fitted.history["loss"].notna().all()


def test_a_guides_own_correlations_count_in_the_covariance_of_the_aggregate_posterior():
    """q(z | x) = N(0, [[1, .9], [.9, 1]]) for every x: 100 * 2 * 0.81 = 162 an observation, exactly."""

    def correlated(x):
        with pyro.plate("data", len(x)):
            covariance = torch.tensor([[1.0, 0.9], [0.9, 1.0]]).expand(len(x), 2, 2)
            pyro.sample("z", dist.MultivariateNormal(x.new_zeros(len(x), 2), covariance))

    model, x = seeded(lambda: models.LinearGaussian(2, 5)), torch.randn(30, 5)
    losses = [
        seeded(lambda w=w: objectives.DIPVAE(off_diagonal=w, diagonal=0.0).loss(model, correlated, x))
        for w in (0.0, 100.0)
    ]
    assert (losses[1] - losses[0]) / 30 == pytest.approx(162, rel=1e-4)


def test_renyi_bounds_near_one_are_next_to_the_elbo():
    model, guide, x = pair(400)
    values = [
        seeded(lambda a=a: objectives.Renyi(a, 5).loss(model.float(), guide.float(), x.float())) / 400
        for a in (1.0, 1 - 2e-6, 1 - 1e-4)
    ]
    assert values[1] == pytest.approx(values[0], abs=1e-4)
    assert values[2] == pytest.approx(values[0], abs=1e-3)


def test_dreams_have_the_holes_of_the_data():
    """A classifier whose labels are all missing learns from dreams, which are unlabelled too."""
    model = models.SemiSupervisedVAE(
        prior=priors.StandardNormal(2), decoder=nn.MLP(2 + 3, 6), num_classes=3,
        likelihood=likelihoods.Missing(likelihoods.Gaussian()),
    )  # fmt: skip
    latent = guides.MeanField(nn.Observed(nn.MLP(12 + 3, 8)), 2)
    guide = guides.ClassConditional(nn.Observed(nn.MLP(12, 8)), latent, 3)
    x, labels = torch.randn(40, 6), torch.full((40,), -1)
    x[:, ::2] = torch.nan
    seen = []
    guide.classifier.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0].isnan().float().mean()))
    loss = objectives.WakeSleep(2, sleep=1.0).differentiable_loss(model, guide, x, labels)
    (grad,) = torch.autograd.grad(loss, [guide.head.weight])
    assert float(grad.abs().max()) > 0
    assert all(float(share) == 0.5 for share in seen)
