"""A question of the caller's own is one file: asked, tabulated, drawn, listed."""

import importlib.util
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import seeded

import pyrovae
from pyrovae import guides, models, nn
from pyrovae.app.commands import main
from pyrovae.diagnostics import diagnostic as registry
from pyrovae.diagnostics.diagnostic import Diagnostic, Fitted, diagnostics, register

QUIET = {"progress": False}
ROOT = Path(__file__).parents[1]


@pytest.fixture
def apart(monkeypatch):
    """Registers into a registry of the test's own."""
    diagnostics()
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))


@pytest.fixture
def pairs():
    def make():
        model = models.LinearGaussian(2, 5).requires_grad_(False)
        return model, guides.Exact(model), guides.MeanField(nn.MLP(5, 4), 2)

    model, exact, other = seeded(make)
    return {"exact": (model, exact), "mean field": (model, other)}


def mean_of_x(needs=(), name="mean"):
    class Mean(Diagnostic):
        """Mean of the data."""

        title, option, default = "Mean", "mean_of", 7

        def ask(self, fitted):
            return float(fitted.some.tensors[0].mean()), len(fitted.some)

        def columns(self, answers):
            return {"mean": sum(a for a, _ in answers) / len(answers), "of": answers[0][1]}

        def table(self, answers):
            return pd.DataFrame({name: {"mean": a} for name, (a, _) in answers.items()}).T

    Mean.name, Mean.needs = name, needs
    return Mean


def test_built_in_questions_are_the_files_of_their_folder():
    folder = ROOT / "pyrovae" / "diagnostics" / "questions"
    assert set(diagnostics()) == {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert list(diagnostics()) == [
        "gaps", "latents", "calibration", "lc2st", "codes", "draws", "misspecification", "sensitivity", "prior_gain",
    ]  # fmt: skip


def test_a_question_of_ones_own_is_asked_of_every_seed(apart, pairs):
    register(mean_of_x())
    x = torch.arange(100.0).reshape(20, 5)
    table = pyrovae.compare(pairs, x, num_particles=5, ask="mean", **QUIET)
    assert (table["of"] == 7).all()
    seeds = {name: [pair, pair, pair] for name, pair in pairs.items()}
    table = pyrovae.compare(seeds, x, num_particles=5, ask={"mean": 20}, **QUIET)
    assert (table["of"] == 20).all()
    assert (table["mean"] == float(x.mean())).all()


def test_a_question_without_a_table_has_its_columns_as_one(apart):
    class Plain(mean_of_x()):
        table = Diagnostic.table

    assert Plain().table({"a, seed 0": (1.0, 7), "a, seed 1": (2.0, 7)})["mean"].tolist() == [1.0, 2.0]
    Plain.columns = Diagnostic.columns
    assert Plain().table({"a": (1.0, 7)}) is None


def test_a_question_s_columns_replace_none(apart, pairs):
    register(type("Greedy", (mean_of_x(name="greedy"),), {"columns": lambda self, answers: {"elbo": 0.0}}))
    with pytest.raises(ValueError, match="a comparison has a column 'elbo' already"):
        pyrovae.compare(pairs, torch.arange(100.0).reshape(20, 5), num_particles=5, ask="greedy", **QUIET)


def test_an_error_in_a_question_of_ones_own_leaves_the_other_answers(apart, pairs):
    def fail(self, fitted):
        return {}["a key"]

    register(mean_of_x())
    register(type("Broken", (mean_of_x(name="broken"),), {"ask": fail, "title": "Broken"}))
    x = torch.arange(100.0).reshape(20, 5)
    with pytest.warns(UserWarning, match=r"Broken of exact: KeyError: 'a key' \(.*test_diagnostics.py, line \d+\)"):
        assert "mean" in pyrovae.compare({"exact": pairs["exact"]}, x, num_particles=5, ask=["mean", "broken"], **QUIET)


@pytest.mark.parametrize("option", ["lr", "config", "--no"])
def test_an_option_that_is_taken_is_refused(apart, capsys, option):
    register(type("Taken", (mean_of_x(name="taken"),), {"option": option}))
    assert main(["list"]) == 2
    assert f"the option {option!r} of the diagnostic 'taken' is" in capsys.readouterr().err


def test_questions_by_name_are_those_by_keyword(pairs):
    x = torch.arange(100.0).reshape(20, 5).remainder(3)
    by_name = pyrovae.compare(pairs, x, num_particles=5, ask={"latents": 20}, **QUIET)
    by_keyword = pyrovae.compare(pairs, x, num_particles=5, with_latents=True, **QUIET)
    pd.testing.assert_frame_equal(by_name, by_keyword)


def test_what_a_question_needs_is_seen_to(apart, pairs):
    register(mean_of_x(needs=("labels",)))
    x = torch.arange(100.0).reshape(20, 5)
    with pytest.warns(UserWarning, match="Mean: not asked, as it needs data with labels"):
        assert "mean" not in pyrovae.compare(pairs, x, num_particles=5, ask="mean", **QUIET)
    labelled = pyrovae.data.Data(x, labels=torch.arange(20) % 2)
    assert "mean" in pyrovae.compare(pairs, labelled, num_particles=5, ask="mean", **QUIET)
    register(mean_of_x(needs=("seeds",), name="spread"))
    with pytest.warns(UserWarning, match="Mean: not asked, as it needs several seeds"):
        assert "mean" not in pyrovae.compare(pairs, x, num_particles=5, ask="spread", **QUIET)
    register(mean_of_x(needs=("scoring",), name="scored"))
    planar = seeded(lambda: guides.Planar(nn.MLP(5, 4), 2))
    one_way = {"planar": (pairs["exact"][0], planar)}
    with pytest.warns(UserWarning, match="Mean of planar: the guide cannot score"):
        assert "mean" not in pyrovae.compare(one_way, x, num_particles=5, ask="scored", **QUIET)
    assert "mean" in pyrovae.compare(pairs, x, num_particles=5, ask="scored", **QUIET)


def test_what_is_no_question_is_refused(apart, pairs):
    with pytest.raises(ValueError, match="there is no diagnostic 'colour': known are gaps"):
        pyrovae.compare(pairs, torch.zeros(5, 5), ask="colour", **QUIET)
    with pytest.raises(ValueError, match="register takes a subclass of Diagnostic"):
        register(print)
    with pytest.raises(ValueError, match="there is a diagnostic named 'gaps' already"):
        register(mean_of_x(name="gaps"))
    with pytest.raises(ValueError, match="needs 'luck', which is none of labels"):
        register(mean_of_x(needs=("luck",)))
    with pytest.raises(ValueError, match="has no name"):
        register(type("Nameless", (Diagnostic,), {"title": "T", "option": "o", "ask": lambda self, fitted: 0}))


def test_the_example_appears_everywhere(apart, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in sys.modules if name == "examples" or name.startswith("examples.")]:
        monkeypatch.delitem(sys.modules, name)
    assert importlib.util.find_spec("examples.own_question") is not None
    assert main(["list", "--allow_module", "examples.own_question"]) == 0
    assert "recognition            Share of the data" in capsys.readouterr().out
    out = tmp_path / "run"
    status = main([
        "compare", "--allow_module", "examples.own_question", "--data", "Digits", "--data.binarise", "Static", "--out",
        str(out), "--epochs", "1", "--num_particles", "5", "--num_draws", "2", "--max_arviz_data", "3", "--latents_of",
        "0", "--simulations", "0", "--recognition_of", "30", "--guides", '{"mean_field": "MeanField"}',
        "--encoder.hidden", "[8]", "--decoder.hidden", "[8]", "--progress", "false",
    ])  # fmt: skip
    assert status == 0
    assert "Recognition:" in capsys.readouterr().out
    assert pd.read_csv(out / "recognition.csv").loc[0, "num_data"] == 30
    assert "recognised" in pd.read_csv(out / "table.csv")
    assert "<h2>Recognition</h2>" in (out / "report.html").read_text()
    assert "recognition_of: 30" in (out / "config.yaml").read_text()


def test_a_module_that_cannot_be_imported_is_said(capsys):
    assert main(["list", "--allow_module", "no_such_module_here"]) == 2
    assert "--allow_module no_such_module_here: it cannot be imported (ModuleNotFoundError" in capsys.readouterr().err


def test_some_data_are_the_same_for_every_fit():
    data = pyrovae.data.Data(torch.randn(30, 2, generator=torch.Generator().manual_seed(0)))
    parts = [Fitted(print, print, data, 9, seed=3).some.tensors[0] for _ in range(2)]
    assert parts[0].equal(parts[1])
    assert len(parts[0]) == 9
