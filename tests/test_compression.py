"""Bits back: what is compressed comes back, and takes minus the ELBO."""

import math
import sys

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import SIGMAS, seeded

import pyrovae
from pyrovae import data, guides, likelihoods, models, nn, priors
from pyrovae.uses import codec, compression

pytest.importorskip("constriction")
QUIET = {"progress": False, "device": "cpu"}
D, L = 12, 3


def bits(count=60, seed=0):
    return (torch.rand(count, D, generator=torch.Generator("cpu").manual_seed(seed)) < 0.3).float()


def vae(prior=None, likelihood=None, features=D):
    return models.VAE(
        prior=prior or priors.StandardNormal(L), decoder=nn.MLP(L, features, hidden=(8,)),
        likelihood=likelihood or likelihoods.Bernoulli(),
    )  # fmt: skip


def mean_field():
    return guides.MeanField(nn.MLP(D, 16), L)


def vamp():
    model, guide = vae(priors.VampPrior(L, num_components=4)), mean_field()
    model.prior.attach(guide, data.Data(bits()))
    return model, guide


def layered(ladder):
    model = models.HierarchicalVAE(
        prior=priors.StandardNormal(2), transitions=[nn.MLP(2, 2 * L)], decoder=nn.MLP(L + 2, D),
        likelihood=likelihoods.Bernoulli(), skip=True,
    )  # fmt: skip
    if ladder:
        return model, guides.Ladder([nn.MLP(D, 16), nn.MLP(16, 8)], model)
    return model, guides.Hierarchical([mean_field(), guides.MeanField(nn.MLP(L, 16), 2)])


def clustered():
    model = models.GaussianMixtureVAE(
        num_clusters=3, latent_dim=L, decoder=nn.MLP(L, D), likelihood=likelihoods.Bernoulli()
    )
    return model, guides.Clustered(mean_field(), model)


def positive():
    """A latent above 0, Gamma in the model and log-normal in the guide."""
    network = nn.MLP(D, 2 * L)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(torch.full((L,), 2.0), 1.0).to_event(1))
            logits = z.log().repeat(1, D // L)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x):
        pyro.module("network", network)
        with pyro.plate("data", len(x)):
            loc, raw = network(x).chunk(2, -1)
            pyro.sample("z", dist.LogNormal(loc, nn.positive(raw)).to_event(1))

    return model, guide


GREY = (bits() * 3 + bits(seed=1) * 5) / 8
PAIRS = {
    "mean field": lambda: ((vae(), mean_field()), bits()),
    "full rank": lambda: ((vae(), guides.FullRank(nn.MLP(D, 16), L)), bits()),
    "low rank": lambda: ((vae(), guides.LowRank(nn.MLP(D, 16), L)), bits()),
    "a mixture of Gaussians": lambda: ((vae(), guides.Mixture(nn.MLP(D, 16), L)), bits()),
    "a mixture prior": lambda: ((vae(priors.MixtureOfGaussians(L, num_components=3)), mean_field()), bits()),
    "a Laplace prior": lambda: ((vae(priors.Laplace(L)), mean_field()), bits()),
    "pseudo-inputs": lambda: (vamp(), bits()),
    "two layers": lambda: (layered(False), bits()),
    "a ladder": lambda: (layered(True), bits()),
    "clusters": lambda: (clustered(), bits()),
    "positive latents": lambda: (positive(), bits()),
    "counts": lambda: ((vae(likelihood=likelihoods.Poisson()), mean_field()), bits() * 7 + bits(seed=1)),
    "grey levels": lambda: (
        (vae(likelihood=likelihoods.DiscretisedLogistic(levels=9), features=2 * D), mean_field()), GREY,
    ),
    "bytes": lambda: ((vae(), mean_field()), data.Data(bits().to(torch.uint8) * 255, levels=255)),
    "constant": lambda: ((vae(), mean_field()), torch.zeros(20, D)),
    "in double": lambda: (tuple(p.double() for p in (vae(), mean_field())), bits().double()),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_every_bit_comes_back_at_the_rate_of_the_elbo(name):
    """The rate without overhead is within 4 errors and 0.7% of minus the mean log weight; a draw per observation."""
    pair, x = seeded(PAIRS[name])
    content = pyrovae.compress(*pair, x, seed=3, **QUIET)
    stored = x.tensors[0] if isinstance(x, data.Data) else x
    back = pyrovae.decompress(*pair, content, **QUIET)
    assert back.dtype == stored.dtype
    assert torch.equal(back, stored)
    assert content.num_data == len(stored)
    assert content.nats == len(content) * 8 * math.log(2) / len(stored)
    weights = pyrovae.log_weights(*pair, x, num_particles=200, **QUIET)
    rate, spread = -float(weights.mean()), float(weights.double().var(0).mean())
    words, below = words_and_seeds(pair, x)
    net = (words - below) * math.log(2) / len(stored)
    # constant cells are not in the code, and values that never occur have no share in a cell's probability
    if name not in ("constant", "counts", "grey levels"):
        assert abs(net - rate) < SIGMAS * math.sqrt(spread / len(stored)) + 0.007 * rate + 64 * math.log(2) / len(
            stored
        )


@pytest.mark.parametrize("width", [1, 3, 5, 7, 9, 13, 31, 50])
def test_rows_of_any_width_come_back(width):
    """A row of odd width starts anywhere in memory, and a product of matrices may depend on that to the last bit."""

    def make():
        model = models.VAE(prior=priors.StandardNormal(4), decoder=nn.MLP(4, width), likelihood=likelihoods.Bernoulli())
        return model, guides.MeanField(nn.MLP(width, 64), 4)

    source = torch.Generator("cpu").manual_seed(width)
    x = (torch.rand(300, width, generator=source) < 0.4).float()
    pair = seeded(make)
    assert torch.equal(pyrovae.decompress(*pair, pyrovae.compress(*pair, x, **QUIET), **QUIET), x)


def test_what_batches_round_is_refused_and_whole_numbers_come_back():
    pair = seeded(PAIRS["grey levels"])[0]
    grey = (GREY.double() * 8).round() / 8
    assert torch.equal(pyrovae.decompress(*pair, pyrovae.compress(*pair, grey, **QUIET), **QUIET), grey)
    whole = data.Data((grey * 8).float(), levels=8)
    assert torch.equal(pyrovae.decompress(*pair, pyrovae.compress(*pair, whole, **QUIET), **QUIET), whole.tensors[0])

    def tens():
        return vae(likelihood=likelihoods.DiscretisedLogistic(levels=11), features=2 * D), mean_field()

    with pytest.raises(ValueError, match="holds float64 numbers that batches of float32 round"):
        pyrovae.compress(*seeded(tens), torch.full((5, D), 0.3, dtype=torch.float64), **QUIET)


def test_rows_that_are_alike_at_first_do_not_decide_where_latents_lie():
    """Latents of the first rows are within 0.1 of each other, and those of the rest far off."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 10.0))
            pyro.sample("x", dist.Bernoulli(logits=z[:, None].expand(-1, D)).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(20 * (x.mean(-1) - 0.5), 0.02))

    x = torch.cat([torch.zeros(1500, D), torch.eye(D).repeat(42, 1), torch.ones(500, D)])
    lengths = [pyrovae.compress(model, guide, rows, verify=False, **QUIET).nats for rows in (x, x.flip(0))]
    assert abs(lengths[0] - lengths[1]) < 0.1


def test_latents_at_the_edge_of_their_support():
    def make(prior):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", prior.expand([2]).to_event(1))
                logits = z.clamp(1e-3, 10).log().repeat(1, D // 2)
                pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", prior.expand([len(x), 2]).to_event(1))

        return model, guide

    for prior in (dist.Beta(0.1, 0.1), dist.Gamma(0.1, 1.0), dist.LogNormal(0.0, 10.0)):
        pair = make(prior)
        assert torch.equal(pyrovae.decompress(*pair, pyrovae.compress(*pair, bits(), **QUIET), **QUIET), bits())
    with pytest.raises(ValueError, match="a latent that is a Poisson cannot be coded"):
        pyrovae.compress(*make(dist.Poisson(2.0)), bits(), **QUIET)


def test_columns_of_one_tensor_with_supports_of_their_own():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("a", dist.Bernoulli(logits=z[:, None].expand(-1, 2)).to_event(1), obs=x[:, :2])
            pyro.sample("b", dist.Poisson(z.exp()[:, None].expand(-1, 3)).to_event(1), obs=x[:, 2:])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(-1) - 0.5, 0.7))

    x = torch.cat([bits()[:, :2], bits()[:, 2:5] * 3], 1)
    assert torch.equal(pyrovae.decompress(model, guide, pyrovae.compress(model, guide, x, **QUIET), **QUIET), x)


def words_and_seeds(pair, x):
    """Return the number of bits of the code, and of those below it."""
    below = []

    class Coder:
        def __init__(self, make):
            self.make = make

        def __call__(self, words):
            below.append(32 * len(words))
            return self.make(words)

    compression_coder = compression._coder
    make = Coder(compression_coder())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression, "_coder", lambda: make)
        content = pyrovae.compress(*pair, x, seed=3, verify=False, **QUIET)
    return 32 * len(compression._parts(content)[2]), below[-1]


def test_a_table_with_missing_cells():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "city": rng.choice(["x", "y", "z"], 80),
            "children": rng.poisson(2, 80),
            "owner": rng.choice([True, False], 80),
        }
    )
    frame.loc[::7, "city"] = None
    table = data.Table(frame)
    likelihood = table.likelihood()

    def make():
        decoder = nn.MLP(2, likelihood.features(table.shape))
        model = models.VAE(prior=priors.StandardNormal(2), decoder=decoder, likelihood=likelihood)
        return model, guides.MeanField(nn.Table(lambda width: nn.MLP(width, 8), table.inputs), 2)

    pair = seeded(make)
    whole = table.batch(slice(0, 80))[0]
    back = pyrovae.decompress(*pair, pyrovae.compress(*pair, table, **QUIET), **QUIET)
    assert torch.equal(back.isnan(), whole.isnan())
    assert torch.equal(back.nan_to_num(-1.0), whole.nan_to_num(-1.0).double())


def test_covariates_are_given_again():
    def make():
        model = models.ConditionalVAE(
            prior=priors.StandardNormal(L), decoder=nn.MLP(L + 2, D), likelihood=likelihoods.Bernoulli()
        )
        return model, guides.MeanField(nn.MLP(D + 2, 16), L)

    pair, x = seeded(make), bits()
    y = torch.arange(120.0).reshape(60, 2) / 60
    content = pyrovae.compress(*pair, (x, y), **QUIET)
    assert torch.equal(pyrovae.decompress(*pair, content, y, **QUIET), x)
    with pytest.raises(ValueError, match="covariates"):
        pyrovae.decompress(*pair, content, **QUIET)
    with pytest.raises(ValueError, match="does not decode"):
        pyrovae.decompress(*pair, content, y * 3, **QUIET)


def test_two_sites_and_scalars():
    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Bernoulli(logits=z[:, None].expand(-1, 4)).to_event(1), obs=x)
            pyro.sample("y", dist.Poisson(z.exp()), obs=y)

    def guide(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(-1) - 0.5 + 0.1 * y, 0.7))

    x, y = bits()[:, :4], bits().sum(1)
    back = pyrovae.decompress(model, guide, pyrovae.compress(model, guide, (x, y), **QUIET), **QUIET)
    assert isinstance(back, tuple)
    assert torch.equal(back[0], x)
    assert torch.equal(back[1], y)


def test_damage_is_seen():
    pair, x = seeded(PAIRS["mean field"])
    content = pyrovae.compress(*pair, x, **QUIET)
    for place in [*range(0, len(content), 5), len(content) - 1]:
        damaged = bytearray(content)
        damaged[place] ^= 4
        with pytest.raises(ValueError, match=r"damaged|does not decode"):
            pyrovae.decompress(*pair, bytes(damaged), **QUIET)
    for bad in (b"", content[:10], content[:-4], b"pyrovae\x01" + b"\xff" * 30):
        with pytest.raises(ValueError, match=r"damaged|does not decode"):
            pyrovae.decompress(*pair, bad, **QUIET)
    with pytest.raises(ValueError, match="content must be the bytes"):
        pyrovae.decompress(*pair, "text", **QUIET)
    other = seeded(PAIRS["mean field"])[0]
    with torch.no_grad():
        next(other[0].decoder.parameters()).add_(0.1)
    with pytest.raises(ValueError, match="does not decode"):
        pyrovae.decompress(*other, content, **QUIET)


REFUSED = {
    "flow": (lambda: (vae(), guides.Flow(nn.MLP(D, 16), L)), "latent site 'z' of the guide is a Transformed"),
    "reals": (lambda: (vae(likelihood=likelihoods.Gaussian()), mean_field()), "not discrete"),
    "compositions": (
        lambda: (vae(likelihood=likelihoods.Multinomial(total_count=9)), mean_field()), "dependent cells",
    ),
    "sphere": (
        lambda: (vae(priors.UniformSphere(L)), guides.Spherical(nn.MLP(D, 16), L)), "coordinates depend on each other",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_coded_is_refused(name):
    make, sentence = REFUSED[name]
    with pytest.raises(ValueError, match=sentence):
        pyrovae.compress(*seeded(make), bits(), **QUIET)


def test_a_model_that_computes_with_its_data_is_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
            pyro.sample("x", dist.Bernoulli(logits=z[:, None] + before).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(-1), 0.7))

    with pytest.raises(ValueError, match="computes with the data that it observes"):
        pyrovae.compress(model, guide, bits(), **QUIET)


def test_few_bits_below_are_enough_whatever_the_pair_takes(monkeypatch):
    """With a single observation the seeds are all that there is."""
    pair, x = seeded(PAIRS["full rank"])
    content = pyrovae.compress(*pair, x[:1], **QUIET)
    assert torch.equal(pyrovae.decompress(*pair, content, **QUIET), x[:1])
    monkeypatch.setattr(codec, "SPARE", 8)
    assert torch.equal(pyrovae.decompress(*pair, pyrovae.compress(*pair, x, **QUIET), **QUIET), x)


def test_the_package_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "constriction", None)
    pair, x = seeded(PAIRS["mean field"])
    with pytest.raises(ImportError, match=r"pip install 'pyrovae\[compression\]'"):
        pyrovae.compress(*pair, x, **QUIET)
    with pytest.raises(ValueError, match="bits must be from 4 to 16"):
        pyrovae.compress(*pair, x, bits=20, **QUIET)
