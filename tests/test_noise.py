import ast
import re
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

import pyrovae
from pyrovae.programs.noise import DatumNoise
from pyrovae.programs.streams import datum_seeds, stream_seed

ROWS = 6


def families():
    rows = torch.arange(1.0, ROWS + 1) / (ROWS + 1)
    pair = rows[:, None].expand(ROWS, 2).contiguous()
    return {
        "Normal": lambda s: dist.Normal(pair[s], 1.0).to_event(1),
        "Laplace": lambda s: dist.Laplace(pair[s], 1.0).to_event(1),
        "Gamma": lambda s: dist.Gamma(pair[s] + 1, 1.0).to_event(1),
        "Beta": lambda s: dist.Beta(pair[s] + 1, pair[s] + 2).to_event(1),
        "StudentT": lambda s: dist.StudentT(3.0, pair[s]).to_event(1),
        "MultivariateNormal": lambda s: dist.MultivariateNormal(pair[s], torch.eye(2)),
        "LowRank": lambda s: dist.LowRankMultivariateNormal(pair[s], pair[s][..., None], pair[s]),
        "Categorical": lambda s: dist.Categorical(pair[s]),
        "OneHotCategorical": lambda s: dist.OneHotCategorical(pair[s]),
        "Bernoulli": lambda s: dist.Bernoulli(pair[s]).to_event(1),
        "Poisson": lambda s: dist.Poisson(pair[s] * 5).to_event(1),
        "Binomial": lambda s: dist.Binomial(7, pair[s]).to_event(1),
        "Dirichlet": lambda s: dist.Dirichlet(pair[s] + 1),
        "Exponential": lambda s: dist.Exponential(pair[s] + 1).to_event(1),
        "RelaxedOneHot": lambda s: dist.RelaxedOneHotCategorical(torch.tensor(0.5), pair[s]),
        "ContinuousBernoulli": lambda s: dist.ContinuousBernoulli(pair[s]).to_event(1),
        "Mixture": lambda s: dist.MixtureSameFamily(dist.Categorical(pair[s]), dist.Normal(pair[s], 1.0)),
        "VonMises": lambda s: dist.VonMises(rows[s], 1.0),
        "events of Categorical": lambda s: dist.Categorical(pair[s][:, None].expand(-1, 4, 2)).to_event(1),
        "events of OneHot": lambda s: dist.OneHotCategorical(pair[s][:, None].expand(-1, 4, 2)).to_event(1),
        "events of mixtures": lambda s: dist.MixtureSameFamily(
            dist.Categorical(pair[s][:, None].expand(-1, 3, 2)), dist.Normal(pair[s][:, None].expand(-1, 3, 2), 1.0)
        ).to_event(1),
        "flow": lambda s: dist.TransformedDistribution(
            dist.Normal(pair[s], 1.0).to_event(1), [torch.distributions.biject_to(constraints.positive)]
        ),
    }


@pytest.mark.parametrize("name", families())
def test_a_datum_draws_the_same_whatever_its_batch(name):
    family = families()[name]
    with DatumNoise("test", 3, range(ROWS), torch.device("cpu")):
        together = family(slice(None)).sample()
    for i in range(ROWS):
        with DatumNoise("test", 3, [i], torch.device("cpu")):
            alone = family(slice(i, i + 1)).sample()
        if name != "VonMises":  # its rejection sampler goes on until the whole batch is accepted
            torch.testing.assert_close(together[i], alone[0], rtol=0, atol=0)
        assert together[i].shape == alone[0].shape


@pytest.mark.parametrize(
    "draw",
    [
        lambda x: torch.randn_like(x),
        lambda x: torch.rand_like(x),
        lambda x: torch.randint(1000, x.shape),
        lambda x: torch.randint(5, 1000, x.shape),
        lambda x: torch.normal(0.0, x + 1),
        lambda x: torch.normal(x, 1.0),
        lambda x: torch.bernoulli(x / 10),
        lambda x: torch.empty_like(x).exponential_(),
    ],
)
def test_torchs_own_draws(draw):
    x = torch.arange(12.0).reshape(6, 2) / 2

    def run(indices):
        with DatumNoise("test", 0, indices, torch.device("cpu")):
            return [draw(x[list(indices)]) for _ in range(3)]

    together = run(range(6))
    for i in range(6):
        for whole, alone in zip(together, run([i]), strict=True):
            assert torch.equal(whole[i], alone[0])


def test_different_data_draw_different_noise():
    with DatumNoise("test", 0, range(100), torch.device("cpu")):
        x = torch.randn(100, 50)
    correlation = torch.corrcoef(x)
    off = correlation[~torch.eye(100, dtype=torch.bool)]
    assert off.abs().max() < 6 / 50**0.5  # 4950 pairs: below 1e-4 for independent rows
    assert abs(float(x.mean())) < 4 / 5000**0.5  # below 7e-5


def test_repeats_stand_in_a_row_and_differ():
    noise = DatumNoise("test", 0, range(3), torch.device("cpu"))
    noise.repeats = 4
    with noise:
        x = torch.rand(12)
        y = torch.empty(2, 12).uniform_()
    assert len(set(x.tolist())) == 12
    with DatumNoise("test", 0, [1], torch.device("cpu")) as alone:
        alone.repeats = 4
        torch.testing.assert_close(x[4:8], torch.rand(4))
        torch.testing.assert_close(y[:, 4:8], torch.empty(2, 4).uniform_())


def test_noise_shared_by_all_data_is_left_to_the_global_generator():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        expected = torch.randn(7)
        torch.manual_seed(1)
        with DatumNoise("test", 0, range(3), torch.device("cpu")):
            torch.testing.assert_close(torch.randn(7), expected)


def purposes():
    """Return every purpose that the package names, with the place of each."""
    named = {"DatumNoise": 0, "stream_seed": 0, "generator": 0, "random_state": 0, "seed_streams": 0, "ranks": 0,
             "numpy_generator": 0, "library_seed": 0}  # fmt: skip
    found = []
    for path in Path(pyrovae.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
                first = node.args[0] if node.args else None
                if name in named and isinstance(first, ast.Constant) and isinstance(first.value, str):
                    found.append((first.value, path.name))
    return found


def test_every_stream_of_the_package_is_named():
    found = purposes()
    assert len({purpose for purpose, _ in found}) >= 15
    places = {}
    for purpose, place in found:
        places.setdefault(purpose, set()).add(place)
    shared = {purpose for purpose, where in places.items() if len(where) > 1}
    assert shared <= {"particles", "initial values", "fit"}  # one purpose, whoever draws for it
    source = "".join(path.read_text() for path in Path(pyrovae.__file__).parent.rglob("*.py"))
    assert not re.search(r"(Noise|seed|default_rng)\([^)\n]*seed *[*+]", source)  # no stream by arithmetic


def test_streams_of_a_thousand_seeds_and_all_purposes_are_apart():
    """Streams agree by chance alone: of c calls of n data, (c n)^2 / 2^33 pairs are expected to."""
    calls = [(purpose, seed) for purpose in sorted({p for p, _ in purposes()}) for seed in range(1000)]
    starts = {stream_seed(*call) for call in calls}
    assert len(starts) == len(calls)
    seeds = np.array([datum_seeds(*call, range(20)) for call in calls], dtype=np.int64)
    assert all(len(set(row)) == 20 for row in seeds[:1000])
    _, counts = np.unique(seeds, return_counts=True)
    expected = seeds.size**2 / 2**33
    assert (counts - 1).sum() < expected + 6 * expected**0.5 + 6  # Poisson: below 1e-8
    steps = np.diff(seeds[:, :2] % 2**32)[:, 0]
    assert len(np.unique(steps)) > 0.999 * len(calls)  # and no two run side by side


def test_seeds_of_a_call_are_distinct():
    assert len(set(datum_seeds("particles", 5, range(100_000)))) == 100_000


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2, 4])  # 2 rows: as long as the plate
def test_a_further_plate_as_long_as_the_batch_does_not_take_its_noise(batch_size, compile):
    def model(x):
        with pyro.plate("data", len(x)), pyro.plate("groups", 2, dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x.expand(2, -1, -1))

    def guide(x):
        with pyro.plate("data", len(x)), pyro.plate("groups", 2, dim=-2):
            pyro.sample("z", dist.Normal(x.expand(2, -1, -1) / 2, 1.0).to_event(1))

    x = torch.arange(24.0).reshape(8, 3) / 10
    options = {"num_particles": 1, "progress": False}
    expected = pyrovae.log_weights(model, guide, x, batch_size=3, compile=False, **options)
    found = pyrovae.log_weights(model, guide, x, batch_size=batch_size, compile=compile, **options)
    torch.testing.assert_close(found, expected)
