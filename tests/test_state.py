"""No global effects: at import, and in every public call (the autouse fixture watches the whole suite)."""

import functools
import subprocess
import sys
import types

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import bits, make_vae, seeded
from torch import nn

import pyrovae
from pyrovae import guides, likelihoods, models, plots, priors
from pyrovae.nn import MLP
from pyrovae.programs.isolation import default_device, modes, random_state
from pyrovae.programs.pair import Pair
from pyrovae.training import storage

IMPORT = """
import random, warnings
import numpy, torch, pyro, matplotlib, pandas, tqdm.auto, sympy, scipy.special, sklearn
def state():
    import pyro.poutine, pyro.infer.util
    return (
        torch.get_rng_state().numpy().tobytes(), str(numpy.random.get_state()), random.getstate(),
        torch.distributions.Distribution._validate_args, pyro.poutine.is_validation_enabled(),
        pyro.infer.util.is_validation_enabled(), dict(pyro.get_param_store().named_parameters()),
        torch.get_default_dtype(), matplotlib.get_backend(), str(dict(matplotlib.rcParams)), list(warnings.filters),
        torch.get_num_threads(),
    )
import sys
before, loaded = state(), set(sys.modules)
import pyrovae
for name in {names}:
    getattr(pyrovae, name)
after = state()
changed = [i for i, (a, b) in enumerate(zip(before, after)) if a != b]
assert not changed, changed
print(sorted(m for m in set(sys.modules) - loaded if m in ("arviz", "matplotlib.pyplot")))
"""


@pytest.mark.parametrize("names", [[], list(pyrovae.__all__)])
def test_importing_everything_changes_nothing(names):
    code = IMPORT.format(names=names)
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    if not names:
        assert result.stdout.strip() == "[]"


def test_every_public_name_is_there():
    for name in pyrovae.__all__:
        assert getattr(pyrovae, name) is not None
    assert set(pyrovae.__all__) <= set(dir(pyrovae))
    assert pyrovae.__version__ != "unknown"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = pyrovae.nothing


@pytest.mark.parametrize("flag", [True, False])
def test_validation_flags_survive_either_way(flag):
    with pyro.validation_enabled(flag):
        model, guide = make_vae()
        pyrovae.fit(model, guide, bits(20), steps=3, progress=False)
        pyrovae.evaluate(model, guide, bits(5), num_particles=3, progress=False)
        assert torch.distributions.Distribution._validate_args is flag
        assert pyro.poutine.is_validation_enabled() is flag
        with pytest.raises(ValueError, match="outside the likelihood's support"):
            pyrovae.evaluate(model, guide, bits(5) + 3, progress=False)
        assert torch.distributions.Distribution._validate_args is flag


HALF = nn.Dropout(0.5)


def dropping(x):
    return HALF(x)


class Holding(nn.Module):
    """A model whose decoder passes through a dropout that is no submodule of it."""

    def __init__(self, way):
        super().__init__()
        self.decoder = nn.Linear(3, 12)
        drop = nn.Dropout(0.5)
        holders = {
            "list": [drop], "dict": {"a": {0: drop}}, "closure": lambda z: drop(z), "default": lambda z, d=drop: d(z),
            "partial": functools.partial(drop), "object": types.SimpleNamespace(net=drop), "global": dropping,
            "nested": [nn.ModuleDict({"a": drop})],
        }  # fmt: skip
        self.held = {"attribute": drop}.get(way, holders.get(way))
        if way == "hidden":
            self.__dict__["drop"] = drop
        self.way = way

    def drop(self, z):
        return z

    def forward(self, x):
        pyro.module("model", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(self.through(z))).to_event(1), obs=x)

    def through(self, z):
        if self.way in ("list", "dict", "object", "nested"):
            picked = {"list": lambda h: h[0], "dict": lambda h: h["a"][0], "object": lambda h: h.net,
                      "nested": lambda h: h[0]["a"]}[self.way](self.held)  # fmt: skip
            return picked(z)
        if self.way == "method":
            return HALF(z)
        return self.drop(z) if self.way == "hidden" else self.held(z)


class Plain:
    """The same, as an object that is no module."""

    __slots__ = ("model", "nets")

    def __init__(self, way):
        self.model = Holding(way)
        self.nets = {1: self.model}

    def __call__(self, x):
        return self.nets[1](x)


WAYS = [
    "attribute", "list", "dict", "closure", "default", "partial", "object", "global", "nested", "hidden", "method",
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", [Holding, Plain])
def test_modules_are_in_eval_mode_wherever_they_are_held(make, way, apart):
    model = seeded(lambda: make(way))
    guide = make_vae()[1]
    options = {"num_particles": 20, "progress": False}
    modules = [*Pair(model, guide).all_modules, HALF]
    pyrovae.evaluate(model, guide, bits(5), num_particles=2, progress=False)
    assert all(part.training for module in modules for part in module.modules())
    found = pyrovae.evaluate(model, guide, bits(5), **options)
    with modes(modules, training=False):
        expected = pyrovae.evaluate(model, guide, bits(5), **options)
    assert torch.equal(found.elbo, expected.elbo)


class Normalising(nn.Module):
    """A guide whose statistics of the batch are kept in a list."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(12, 4), nn.Linear(4, 6)
        self.kept = [nn.BatchNorm1d(4, affine=False)]

    def forward(self, x):
        pyro.module("guide", self)
        loc, raw = self.last(self.kept[0](self.first(x))).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))


@pytest.mark.parametrize("compile", [False, True])
def test_statistics_of_modules_in_plain_attributes_are_trained_and_saved(tmp_path, compile):
    model, guide = make_vae()[0], seeded(Normalising)
    fitted = pyrovae.fit(model, guide, bits(60), steps=20, batch_size=30, compile=compile, progress=False)
    assert int(guide.kept[0].num_batches_tracked) == 20
    assert float(guide.kept[0].running_mean.abs().max()) > 0
    fitted.save(tmp_path)
    before = pyrovae.evaluate(model, guide, bits(9), num_particles=5, progress=False)
    other = seeded(Normalising, 1)
    loaded = pyrovae.load(tmp_path, make_vae()[0], other)
    after = pyrovae.evaluate(loaded.model, loaded.guide, bits(9), num_particles=5, progress=False)
    assert torch.equal(before.elbo, after.elbo)
    tensors, document = storage.read(tmp_path)  # as version 0.1.0 wrote them
    storage.write(tmp_path, {key: t for key, t in tensors.items() if "kept" not in key}, document)
    pyrovae.load(tmp_path, make_vae()[0], seeded(Normalising, 2))


def test_a_bayesian_decoder_is_evaluated_without_its_dropout():
    decoder = seeded(lambda: nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 5)))
    model = models.BayesianVAE(
        prior=priors.StandardNormal(2), decoder=decoder, likelihood=likelihoods.Bernoulli(), num_data=30
    )
    local = seeded(lambda: guides.MeanField(MLP(5, 8), 2))
    given = pyrovae.given(model, model.start)
    one, other = (pyrovae.evaluate(given, local, bits(6, 5), num_particles=9, progress=False) for _ in range(2))
    assert torch.equal(one.elbo, other.elbo)
    with modes([decoder], training=False):
        expected = pyrovae.evaluate(given, local, bits(6, 5), num_particles=9, progress=False)
    assert torch.equal(one.elbo, expected.elbo)
    assert decoder[1].training


def test_a_library_that_is_imported_inside_a_call_changes_nothing(tmp_path, monkeypatch):
    from pyrovae.programs.isolation import importing

    (tmp_path / "loud.py").write_text(LOUD)
    monkeypatch.syspath_prepend(tmp_path)
    with importing():
        import loud
    assert loud.loaded  # and the fixture of all tests sees that nothing else is left
    with pytest.raises(ModuleNotFoundError), importing():  # also where a part of it is missing
        import loud.part


LOUD = """
import random, warnings
import numpy, torch
numpy.random.seed(1), random.random(), torch.rand(1), warnings.simplefilter("ignore")
loaded = True
"""

# Every part of ArviZ and of xarray that is imported changes what it can, as some do where more libraries are installed.
FIRST = """
import importlib.abc, importlib.machinery, random, sys, warnings
import numpy, torch, pyro, pandas, matplotlib.figure, sklearn.neighbors, tqdm.auto, scipy.stats
import pyrovae
from pyrovae import evaluate, guides, models, priors, sbc, nn, likelihoods

class Loud(importlib.abc.MetaPathFinder):
    imported = []
    def find_spec(self, name, path, target=None):
        if name.split(".")[0].split("_")[0] in {{"arviz", "xarray"}}:
            self.imported.append(name)
            numpy.random.random(), random.random(), torch.rand(1)
            warnings.filterwarnings("ignore", message=name)

def state():
    return (str(numpy.random.get_state()), random.getstate(), torch.get_rng_state().tolist(), list(warnings.filters))

torch.manual_seed(0)
model = models.LinearGaussian(2, 5).requires_grad_(False)
guide, x, quiet = guides.FullRank(nn.MLP(5, 8), 2), torch.zeros(4, 5), {{"progress": False}}
prepared = {prepared}
sys.meta_path.insert(0, Loud())
before = state()
{call}
changed = [name for name, a, b in zip(("numpy", "python", "torch", "filters"), before, state()) if a != b]
assert Loud.imported, "nothing was imported"
assert not changed, changed
"""
RANKS = "sbc(model, guide, x, num_simulations=5, num_draws=9, **quiet).latents"
JUDGED = "evaluate(model, guide, x, num_particles=9, **quiet)"


@pytest.mark.parametrize(
    ("prepared", "call"),
    [
        ("None", "pyrovae.to_arviz(model, guide, x, num_draws=50, corrected=True, **quiet)"),
        ("None", "pyrovae.hmc(model, guide, x, num_warmup=20, num_draws=8, **quiet)"),
        (
            f"{JUDGED}, {RANKS}",
            "pyrovae.elpd_comparison(dict(a=prepared[0], b=prepared[0]));pyrovae.ranks_to_arviz(prepared[1])",
        ),
    ],
)
def test_the_first_use_of_arviz_inside_a_call_changes_nothing(prepared, call):
    code = FIRST.format(prepared=prepared, call=call)
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_a_library_that_matplotlib_asks_after_changes_nothing(monkeypatch):

    class Lazy(types.ModuleType):
        asked = 0

        def __getattr__(self, name):
            if not self.asked:  # a module is imported once
                self.asked = 1
                exec(LOUD, {})
            raise AttributeError(name)

    lazy = Lazy("jax")  # as a lazily imported one is in sys.modules before its first use
    monkeypatch.setitem(sys.modules, "jax", lazy)
    for draw in (
        lambda: plots.axes.figure_and_axes(2, height=2),
        lambda: plots.pictures({"one": torch.zeros(3, 4)}, (1, 2, 2)),
    ):
        lazy.asked = 0
        draw()
        assert lazy.asked  # and the fixture of all tests sees that nothing else is left


def test_a_checkout_that_is_not_installed_has_a_version(monkeypatch):
    import importlib
    import importlib.metadata

    import pyrovae.common.version

    assert pyrovae.to_arviz  # imported as users do, so that what the import changes is put back
    from pyrovae.arviz import labels

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    with monkeypatch.context() as patched:
        patched.setattr(importlib.metadata, "version", missing)
        assert importlib.reload(pyrovae.common.version).__version__ == "unknown"
    assert importlib.reload(pyrovae.common.version).__version__ == pyrovae.__version__
    monkeypatch.setattr(labels, "__version__", "unknown")
    assert labels.labelled({"z": ("draw", [1.0])}).attrs["creation_library_version"] == "unknown"


def test_random_state_nests():
    before = torch.get_rng_state()
    with random_state("test", 0):
        one = torch.rand(1)
        with random_state("test", 1):
            torch.rand(5)
        two = torch.rand(1)
    with random_state("test", 0):
        assert torch.equal(torch.rand(2), torch.cat([one, two]))
    assert torch.equal(torch.get_rng_state(), before)


def test_default_device():
    assert default_device("cpu").type == "cpu"
    assert default_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("guide", ["MeanField", "FullRank", "Flow"])
def test_fit_evaluate_and_draw_on_cuda(guide, tmp_path):
    model, made = make_vae(getattr(pyrovae.guides, guide))
    fitted = pyrovae.fit(model, made, bits(64), steps=20, checkpoint=tmp_path, progress=False)
    assert next(model.parameters()).is_cuda
    on_cuda = pyrovae.evaluate(model, made, bits(9), num_particles=2000, progress=False)
    on_cpu = pyrovae.evaluate(model, made, bits(9), num_particles=2000, device="cpu", progress=False)
    error = (on_cuda.log_evidence_se.square() + on_cpu.log_evidence_se.square()).sqrt()
    assert ((on_cuda.log_evidence - on_cpu.log_evidence).abs() < 5 * error).all()  # 9 comparisons: below 6e-6
    weights = [pyrovae.log_weights(model, made, bits(9), num_particles=7, batch_size=b, progress=False) for b in (2, 9)]
    torch.testing.assert_close(*weights, atol=1e-3, rtol=1e-4)
    assert pyrovae.to_arviz(model, made, bits(4), num_draws=3, progress=False).posterior["z"].shape == (1, 3, 4, 3)
    resumed = pyrovae.fit(
        *make_vae(getattr(pyrovae.guides, guide)), bits(64), steps=30, checkpoint=tmp_path, resume=True, progress=False
    )
    assert len(resumed.history) == 30
    assert len(fitted.history) == 20
