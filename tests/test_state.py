"""No global effects: at import, and in every public call (the autouse fixture watches the whole suite)."""

import subprocess
import sys

import pytest
import torch
from conftest import bits, make_vae

import pyrovae
from pyrovae.state import default_device, random_state

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
    import pyro

    with pyro.validation_enabled(flag):
        model, guide = make_vae()
        pyrovae.fit(model, guide, bits(20), steps=3, progress=False)
        pyrovae.evaluate(model, guide, bits(5), num_particles=3, progress=False)
        assert torch.distributions.Distribution._validate_args is flag
        assert pyro.poutine.is_validation_enabled() is flag
        with pytest.raises(ValueError, match="outside the likelihood's support"):
            pyrovae.evaluate(model, guide, bits(5) + 3, progress=False)
        assert torch.distributions.Distribution._validate_args is flag


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
