"""Shared fixtures: no test leaves a trace, and the oracle."""

import math
import random
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyrovae import data, guides, likelihoods, models, nn, priors
from pyrovae.programs.noise import DatumNoise

collect_ignore = ["distributed_job.py", "killed_job.py"]  # scripts that tests run in processes of their own

with DatumNoise(
    "import", 0, [0], torch.device("cpu")
):  # torch imports on first use, and adds warning filters as it does
    torch.randn(1, 2)

LONG = Path(__file__).with_name("long.txt")  # made by .ci/long.py


def pytest_collection_modifyitems(items):
    """Mark the tests that take long, which ``make test`` leaves to the gate."""
    names = set(LONG.read_text().splitlines())
    for item in items:
        if item.nodeid in names:
            item.add_marker(pytest.mark.long)


# Every statistical assertion uses a two-sided normal tolerance of this many of its own standard errors, which a correct
# estimator exceeds with the probability below; the seeds are fixed, so a test that passes keeps passing.
SIGMAS = 4.0
FAILURE_PROBABILITY = math.erfc(SIGMAS / math.sqrt(2))  # 6.3e-5 a comparison


def global_state():
    """Everything global that a call could change."""
    import pyro.infer.util

    store = pyro.get_param_store()
    numpy_random = np.random.get_state(legacy=False)  # noqa: NPY002  the global state is what is guarded
    gauss = numpy_random["has_gauss"], numpy_random["gauss"]
    return {
        "torch random": torch.get_rng_state().numpy().tobytes(),
        "numpy random": (numpy_random["state"]["key"].tobytes(), numpy_random["state"]["pos"], gauss),
        "numpy printing": str(np.get_printoptions()),
        "python random": random.getstate(),
        "validation": (
            torch.distributions.Distribution._validate_args,
            pyro.distributions.is_validation_enabled(),
            poutine.is_validation_enabled(),
            pyro.infer.util.is_validation_enabled(),
        ),
        "param store": {name: id(value) for name, value in store.named_parameters()},
        "dtype": torch.get_default_dtype(),
        "device": str(torch.get_default_device()),
        "grad": torch.is_grad_enabled(),
        "handlers": len(poutine.runtime._PYRO_STACK),
        "matplotlib": (matplotlib.get_backend(), {k: str(v) for k, v in matplotlib.rcParams.items() if k != "backend"}),
        "threads": torch.get_num_threads(),
        "warning filters": list(warnings.filters),
    }


@pytest.fixture(autouse=True)
def no_trace_left(request):
    """Fail a test that leaves global state other than it was, unless it says that it does so itself."""
    if request.node.get_closest_marker("own_state"):
        yield
        pyro.clear_param_store()
        return
    before = global_state()
    yield
    after = global_state()
    changed = [name for name in before if before[name] != after[name]]
    assert not changed, f"the test changed {changed}"


@pytest.fixture
def apart():
    """Programs run by hand, outside of fit, draw random numbers and register parameters."""
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        yield


def seeded(make, seed=0):
    """Call a function with random numbers of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


@pytest.fixture
def oracle():
    """A linear-Gaussian model in float64, and data drawn from it."""
    return make_oracle(2, 5, 40)


def make_oracle(latent_dim, data_dim, size, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = models.LinearGaussian(latent_dim, data_dim, isotropic=False).double()
        with torch.no_grad():
            model.raw_scale.normal_(0, 0.3)
            model.bias.normal_()
            return model, model.evidence().sample((size,))


def near_guide(model, factor=1.2):
    """The oracle's posterior, its scale wrong by a factor."""

    def guide(x):
        with pyro.plate("data", len(x)):
            exact = model.posterior(x)
            pyro.sample("z", dist.MultivariateNormal(exact.loc, scale_tril=factor * exact.scale_tril))

    return guide


def make_vae(guide=guides.MeanField, *, data_dim=12, latent_dim=3, seed=0, **options):
    """A small Bernoulli VAE and its guide."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = models.VAE(
            prior=priors.StandardNormal(latent_dim),
            decoder=nn.MLP(latent_dim, data_dim, hidden=(16,)),
            likelihood=likelihoods.Bernoulli(),
        )
        return model, guide(nn.MLP(data_dim, 16, hidden=(16,)), latent_dim, **options)


def bits(size, data_dim=12, seed=0):
    """Random bits with some structure."""
    generator = torch.Generator().manual_seed(seed)
    rates = torch.rand(3, data_dim, generator=generator)
    chosen = torch.randint(3, (size,), generator=generator)
    return torch.bernoulli(rates[chosen], generator=generator)


class Watched(data.Data):
    """Data whose batches pass through a function of their indices and their tensor, from wherever they are taken."""

    def __init__(self, x, hook):
        super().__init__(x)
        self.hook = hook

    def batch(self, indices):
        x, *numbers = super().batch(indices)
        return (self.hook(indices, x) if isinstance(indices, torch.Tensor) else x, *numbers)

    def _copy(self, fields):
        other = super()._copy(fields)
        other.__class__ = Watched
        return other


def planted(x, first):
    """Data that hold a NaN at observation 7, from the batch of this number on."""
    calls = []

    def hook(indices, batch):
        calls.append(1)
        return torch.where((len(calls) >= first) & (indices == 7)[:, None], math.nan, batch)

    return Watched(x, hook)


def closed_form_se(values):
    return values.std(0) / math.sqrt(len(values))
