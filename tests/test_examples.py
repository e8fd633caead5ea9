"""Every example runs, and the README's example is one of them."""

import runpy
import sys
from pathlib import Path

import pytest

import pyrovae

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


def example(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


@pytest.mark.own_state
def test_plain_pyro():
    result, inference = example("plain_pyro")["main"](epochs=30, num_particles=50)
    assert float(result.elbo.mean()) > -28.5
    assert inference.posterior["z"].shape == (1, 200, 50, 8)


@pytest.mark.own_state
def test_custom_prior():
    comparison = example("custom_prior")["main"](epochs=30, num_particles=50)
    assert set(comparison.index) == {"standard normal", "Laplace", "mixture of 3"}


@pytest.mark.own_state
def test_own_guide():
    assert set(example("own_guide")["main"](epochs=5, num_particles=50).index) == {"Gaussian", "heavy-tailed"}


@pytest.mark.own_state
def test_own_objective():
    found = example("own_objective")["main"](steps=200)
    assert found["truncated, 10"] <= found["IWAE, 10"] < found["log p(x), exact"] + 0.05


@pytest.mark.own_state
def test_own_model(monkeypatch, capsys):
    fit = pyrovae.fit
    monkeypatch.setattr(pyrovae, "fit", lambda *a, **k: fit(*a, **{**k, "epochs": 10}), raising=False)
    names = example("own_model")
    assert names["inference"].posterior["z"].shape == (1, 100, 359, 8)
    assert "log_evidence" in capsys.readouterr().out


def test_the_readme_shows_the_example_as_it_is():
    readme = (ROOT / "README.md").read_text()
    code = (EXAMPLES / "own_model.py").read_text().split('"""\n', 2)[-1].strip()
    assert code in readme
    assert len(readme.splitlines()) <= 130


def test_every_example_is_tested_and_short():
    here = Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f'example("{path.stem}")' in here
        assert len(path.read_text().splitlines()) < 200


def test_the_command_line_is_installed():
    assert Path(sys.executable).with_name("pyrovae").exists()
