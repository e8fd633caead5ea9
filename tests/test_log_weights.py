import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import bits, make_oracle, make_vae
from pyro import poutine

from pyrovae import guides, log_weights, nn


def quietly(model, guide, data, **options):
    return log_weights(model, guide, data, progress=False, **options)


@pytest.mark.parametrize("latent_dim", [1, 2, 20])
def test_exact_guide_gives_the_evidence_in_every_log_weight(latent_dim):
    model, x = make_oracle(latent_dim, 25, 30)
    weights = quietly(model, guides.Exact(model), x, num_particles=70)
    assert weights.shape == (70, 30)
    assert weights.dtype == torch.float64
    torch.testing.assert_close(weights, model.log_evidence(x).detach().expand(70, 30), rtol=0, atol=1e-10)


@pytest.mark.parametrize("guide", [guides.MeanField, guides.FullRank, guides.Flow])
def test_a_datum_has_the_same_weights_in_any_batch(guide):
    model, made = make_vae(guide)
    model.double(), made.double()
    x = bits(23)
    whole = quietly(model, made, x, num_particles=100, batch_size=23)
    for batch_size in (1, 7):
        weights = quietly(model, made, x, num_particles=100, batch_size=batch_size)
        torch.testing.assert_close(weights, whole, rtol=0, atol=1e-12)
    subset = quietly(model, made, x[:5], num_particles=100)
    torch.testing.assert_close(subset, whole[:, :5], rtol=0, atol=1e-12)


def test_seeds_differ_and_repeat():
    model, guide = make_vae()
    x = bits(4)
    one, again, other = (quietly(model, guide, x, num_particles=8, seed=s) for s in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_weights_are_the_densities_written_out():
    model, guide = make_vae()
    x = bits(6)
    weights = quietly(model, guide, x, num_particles=5)
    with torch.no_grad(), torch.random.fork_rng():
        q = guide.posterior(x)
        z = q.sample((4000,))
        by_hand = model.prior().log_prob(z) + model.likelihood(model.decoder(z)).log_prob(x) - q.log_prob(z)
    spread = by_hand.std(0)
    assert ((weights - by_hand.mean(0)).abs() < 6 * spread).all()  # loose: the shapes and the signs
    assert weights.shape == (5, 6)


def linear_guide():
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return guides.MeanField(nn.MLP(5, 8, hidden=()), 2).double()


SCALES = {
    "plain": {},
    "subsample size": {"subsample": "size"},
    "subsample indices": {"subsample": "indices"},
    "annealed": {"scale": 0.1},
    "scaled inside": {"inside": 7.0},
}


def scaled_pair(model, guide, *, subsample=None, scale=None, inside=None, full=50):
    """The oracle and a mean-field guide as plain functions, under plates and scales that must not matter."""

    def plate(x):
        size = len(x)
        if subsample == "size":
            return pyro.plate("data", full, subsample_size=size)
        if subsample == "indices":
            return pyro.plate("data", full, subsample=torch.arange(size))
        return pyro.plate("data", size)

    def annealed():
        return poutine.scale(scale=scale or 1.0)

    def generative(x):
        with plate(x), annealed():
            with poutine.scale(scale=inside or 1.0):
                z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ model.weight.T + model.bias, model.scale).to_event(1), obs=x)

    def recognition(x):
        with plate(x), annealed():
            pyro.sample("z", guide.posterior(x))

    return generative, recognition


@pytest.mark.parametrize("options", SCALES.values(), ids=SCALES)
def test_subsampling_and_annealing_scales_do_not_change_the_weights(oracle, options):
    model, x = oracle
    guide = linear_guide()
    plain = quietly(*scaled_pair(model, guide), x, num_particles=90, batch_size=13)
    other = quietly(*scaled_pair(model, guide, **options), x, num_particles=90, batch_size=13)
    torch.testing.assert_close(other, plain, rtol=0, atol=1e-12)


def test_masks_are_kept(oracle):
    model, x = oracle
    seen = torch.arange(5) < 3

    def generative(x, *, second=False):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            features = z @ model.weight.T + model.bias
            pyro.sample("x", dist.Normal(features, model.scale).mask(seen).to_event(1), obs=x)
            if second:
                with poutine.mask(mask=x[:, 0] > 0):
                    pyro.sample("y", dist.Normal(x.sum(-1), 1.0), obs=x[:, 0])

    def both(x):
        generative(x, second=True)

    guide, partial = linear_guide(), make_oracle(2, 3, 1)[0]
    with torch.no_grad():
        partial.weight.copy_(model.weight[:3])
        partial.bias.copy_(model.bias[:3])
        partial.raw_scale.copy_(model.raw_scale[:3])
    masked = quietly(generative, guide, x, num_particles=20)
    z_weights = quietly(lambda x: partial(x[:, :3]), guide, x, num_particles=20)
    torch.testing.assert_close(masked, z_weights, rtol=0, atol=1e-12)
    extra = quietly(both, guide, x, num_particles=20) - masked
    density = dist.Normal(x.sum(-1), 1.0).log_prob(x[:, 0])
    torch.testing.assert_close(extra, torch.where(x[:, 0] > 0, density, 0.0).expand(20, -1), rtol=0, atol=1e-9)


def test_a_second_latent_and_a_nested_plate_count_once(oracle):
    model, x = oracle

    def generative(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ model.weight.T + model.bias, model.scale).to_event(1), obs=x)
            pyro.sample("w", dist.Normal(x.sum(-1), 2.0))
            with pyro.plate("views", 3, dim=-2):
                pyro.sample("v", dist.Normal(torch.zeros(3, 1).double(), 1.0))

    def recognition(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", model.posterior(x))
            pyro.sample("w", dist.Normal(x.sum(-1), 2.0))
            with pyro.plate("views", 3, dim=-2):
                pyro.sample("v", dist.Normal(torch.zeros(3, 1).double(), 1.0))

    weights = quietly(generative, recognition, x, num_particles=10, batch_size=7)
    torch.testing.assert_close(weights, model.log_evidence(x).detach().expand(10, -1), rtol=0, atol=1e-10)


def test_auxiliary_sites_of_the_guide_count():
    def generative(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def recognition(x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(x / 2, 0.5**0.5), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(u, log_density=0.0))

    x = torch.randn(9, generator=torch.Generator().manual_seed(0))
    weights = quietly(generative, recognition, x, num_particles=6)
    torch.testing.assert_close(weights, dist.Normal(0.0, 2**0.5).log_prob(x).expand(6, 9), rtol=0, atol=1e-5)


def test_discrete_latents_are_sampled():
    rates = torch.tensor([0.2, 0.9])

    def generative(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Bernoulli(rates[z.long()]), obs=x)

    def posterior(x):
        joint = torch.stack([0.7 * (0.2 * x + 0.8 * (1 - x)), 0.3 * (0.9 * x + 0.1 * (1 - x))])
        return joint

    def recognition(x):
        joint = posterior(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(joint[1] / joint.sum(0)))

    x = torch.tensor([0.0, 1.0, 1.0])
    weights = quietly(generative, recognition, x, num_particles=30)
    torch.testing.assert_close(weights, posterior(x).sum(0).log().expand(30, 3), rtol=0, atol=1e-6)


def test_memory_stays_flat_in_the_number_of_particles(monkeypatch):
    model, guide = make_vae()
    rows = []
    run = model.forward
    monkeypatch.setattr(model, "forward", lambda x: rows.append(len(x)) or run(x))
    quietly(model, guide, bits(40), num_particles=2000, batch_size=16)
    assert max(rows) <= 16 * 256
