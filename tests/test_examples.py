"""Every example runs, and the README's example is one of them."""

import runpy
import sys
import warnings
from pathlib import Path

import pytest

import pyrovae
from pyrovae.diagnostics import diagnostic as registry

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
def test_custom_likelihood():
    assert set(example("custom_likelihood")["main"](epochs=8, num_particles=20).index) == {"Gaussian", "Laplace"}


@pytest.mark.own_state
def test_semi_supervised():
    table = example("semi_supervised")["main"](steps=200, seeds=1)
    assert list(table.index) == ["supervised alone", "M2", "M1+M2"]
    assert table["mean"].min() > 0.2  # ten classes


@pytest.mark.own_state
def test_posterior():
    found, _ = example("posterior")["main"](rows=100, num_draws=200)
    assert set(found.method) <= {"guide", "importance", "hmc"}
    assert (found.method == "guide").sum() >= 85


@pytest.mark.own_state
def test_clustering():
    table = example("clustering")["main"](steps=300, seeds=1)
    assert table[("ARI", "mean")]["GaussianMixtureVAE"] > 0.1


@pytest.mark.own_state
def test_completion():
    gain, error = example("completion")["main"](epochs=5, num_particles=20)
    assert abs(gain) < 100
    assert error > 0


@pytest.mark.own_state
def test_layers():
    assert set(example("layers")["main"](epochs=3, num_particles=20).index) == {"ladder", "bottom-up", "one layer"}


@pytest.mark.own_state
def test_priors_by_models():
    assert len(example("priors_by_models")["main"](epochs=2, num_particles=20)) == 8


@pytest.mark.own_state
def test_bayesian_decoder():
    gain, _ = example("bayesian_decoder")["main"](epochs=30, num_draws=2, num_particles=20)
    assert abs(gain) < 1000


@pytest.mark.own_state
def test_imputation():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "posterior of")
        table = example("imputation")["main"](epochs=60, seeds=1, fits=2, tables=("wine",))
    errors = table["mse"]["mean"].xs("wine")
    assert errors["VAE"] < 1.1 * errors["column mean"]


@pytest.mark.own_state
def test_prior_sensitivity():
    table = example("prior_sensitivity")["main"](epochs=3, num_particles=200)
    assert list(table.index) == ["standard normal", "Laplace", "Student-t, 3 df"]


@pytest.mark.own_state
def test_another_prior():
    moved, gain, comparison, factors = example("another_prior")["main"](epochs=3, num_particles=200)
    assert list(moved.index) == ["N(0, 0.7^2)", "Laplace", "Student-t, 3 df"]
    assert len(gain) == 62
    assert comparison["weight"].sum() == pytest.approx(1)
    assert set(factors.index) == {"N(0, 1)", *moved.index}


@pytest.mark.own_state
def test_elicited_prior():
    table = example("elicited_prior")["main"]().table()
    assert table.xs("at most 4 visits")["met"].all()
    assert not table["met"].all()


@pytest.mark.own_state
def test_local_calibration():
    by_digit, tests, found = example("local_calibration")["main"](epochs=3, num_simulations=400, num_null=1)
    assert len(by_digit) == 10
    assert len(tests) == 4
    assert found.truth.shape == (500, 4)


@pytest.mark.own_state
def test_anomalies():
    table = example("anomalies")["main"](epochs=2, num_particles=10, classes=(0, 4))
    assert table.shape == (2, 5)
    assert ((table >= 0) & (table <= 1)).all(axis=None)


@pytest.mark.own_state
def test_augmentation():
    table = example("augmentation")["main"](epochs=2, num_sets=2, per_class=2)
    assert table.shape == (15, 3)
    assert (table.xs("labelled digits alone", level=1)["gain"] == 0).all()


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


@pytest.mark.own_state
def test_disentanglement():
    table = example("disentanglement")["main"](epochs=4, num_data=200)
    assert list(table.columns) == ["ELBO", "beta 4", "total correlation 6"]
    assert (table.loc[["mig", "sap", "dci_disentanglement"]] <= 1).all().all()
    assert table.loc["rate", "beta 4"] < table.loc["rate", "ELBO"]


@pytest.mark.own_state
def test_own_question(monkeypatch):
    registry.diagnostics()
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))  # of this test alone
    table = example("own_question")["main"](epochs=2)
    assert table["recognised"].between(0, 1).all()


@pytest.mark.own_state
def test_own_table(capsys):
    table = example("own_table")["main"](epochs=3, num_particles=10, seeds=1)
    assert set(table.index) == {"mean field", "full rank"}
    assert "white-collar" in capsys.readouterr().out


@pytest.mark.own_state
def test_library_size():
    table = example("library_size")["main"](rows=600, epochs=40)
    assert table["correlation with log size"]["offset"] < table["correlation with log size"]["no offset"]
