"""The command line on own tables, and every model by name."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from test_tables import ROLES, holed, survey

import pyrovae
from pyrovae.app.commands import main

TINY = ["--latent_dim", "2", "--features", "8", "--encoder.hidden", "[8]", "--decoder.hidden", "[8]", "--epochs", "1"]
TINY += ["--compile", "false", "--progress", "false"]
DIGITS = ["--data", "Digits", "--data.binarise", "Static"]
WORDS = json.dumps(ROLES)
QUICK = ["--num_particles", "3", "--progress", "false"]


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "survey.csv"
    holed(survey(120)).to_csv(path, index=False)
    return path


def ran(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def refused(capsys, *arguments):
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_a_table_from_file_to_report(table, tmp_path, capsys):
    settings = tmp_path / "survey.yaml"
    out = ran(capsys, "describe", table, "--out", settings)
    assert "120 rows" in out
    assert "NegativeBinomial" in out
    written = yaml.safe_load(settings.read_text())["data"]["init_args"]
    assert written["roles"]["id"] == "id"
    assert written["roles"]["day"] == "time"
    assert written["roles"]["comment"] == "drop"
    assert written["levels"]["smoker"] == ["no", "yes"]
    asked = ["--simulations", "20", "--latents_of", "24", "--num_draws", "3"]
    guides = ["--guides", '{"mean_field": "MeanField"}']
    ran(capsys, "compare", "--config", settings, "--out", tmp_path / "run", *TINY, *QUICK, *guides, *asked)
    assert (tmp_path / "run" / "report.html").exists()
    rows = pd.read_csv(tmp_path / "run" / "mean_field" / "per_datum.csv")
    assert rows["datum"].str.startswith("p").all()
    assert "exists: name another" in refused(capsys, "describe", table, "--out", settings)


def test_fit_evaluate_and_load_a_table(table, tmp_path, capsys):
    ran(capsys, "fit", "--data", table, "--data.roles", WORDS, "--out", tmp_path / "run", *TINY)
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["data"]["init_args"]["source"] == str(table)
    summary = json.loads(ran(capsys, "evaluate", tmp_path / "run", *QUICK))
    fit = pyrovae.load(tmp_path / "run")
    frame = pd.read_csv(table)
    result = pyrovae.evaluate(fit.model, fit.guide, frame, num_particles=3, progress=False)
    assert len(result) == 120 != summary["num_data"] == 24
    new = tmp_path / "new.parquet"
    frame.sample(frac=1, axis=1, random_state=0).to_parquet(new)
    summary = json.loads(ran(capsys, "evaluate", tmp_path / "run", "--data", new, *QUICK))
    assert summary["elbo"] == pytest.approx(float(result.elbo.mean()), rel=1e-12)
    named = ["--data", new, "--data.roles", WORDS]
    summary = json.loads(ran(capsys, "evaluate", tmp_path / "run", *named, *QUICK))
    assert summary["elbo"] == pytest.approx(float(result.elbo.mean()), rel=1e-12)
    frame.drop(columns="age").to_csv(tmp_path / "wrong.csv", index=False)
    said = refused(capsys, "evaluate", tmp_path / "run", "--data", tmp_path / "wrong.csv", *QUICK)
    assert "wrong.csv' lacks 'age'" in said
    ran(capsys, "fit", *DIGITS, "--out", tmp_path / "digits", *TINY)
    assert "was not fitted to a table" in refused(capsys, "evaluate", tmp_path / "digits", "--data", new, *QUICK)


def test_folds_and_named_splits_on_the_command_line(table, tmp_path, capsys):
    frame = pd.read_csv(table)
    frame["part"] = np.resize(["train", "train", "validation", "test"], len(frame))
    frame["w"] = np.linspace(1, 3, len(frame))
    frame.to_csv(table, index=False)
    words = json.dumps({**ROLES, "part": "drop", "w": "weight"})
    named = ["--data", table, "--data.roles", words, "--embedding", "2"]
    out, tail = tmp_path / "folds", [*TINY, *QUICK]
    folds = ["--split.num_folds", "3", "--split.stratify", "part", "--guides", '{"a": "MeanField", "b": "FullRank"}']
    said = ran(capsys, "compare", *named, *folds, "--reference", "a", "--out", out, *tail)
    assert "3 folds, 120 data" in said
    names = [pd.read_csv(out / f"a-fold{k}" / "per_datum.csv")["datum"] for k in range(3)]
    assert sorted(pd.concat(names)) == sorted(frame["id"])
    assert "Nadeau and Bengio" in (out / "report.html").read_text()
    summary = json.loads(ran(capsys, "evaluate", out / "b-fold2", *QUICK))
    assert summary["num_data"] == len(names[2])
    assert summary["elbo"] != pytest.approx(pd.read_csv(out / "b-fold2" / "per_datum.csv")["elbo"].mean())
    ran(capsys, "fit", *named, "--split.parts", "part", "--out", tmp_path / "parts", *TINY)
    assert json.loads(ran(capsys, "evaluate", tmp_path / "parts", *QUICK))["num_data"] == 30
    for more, words in (
        (["--split.num_folds", "3"], "a cross-validation is made by compare"),
        (["--split.time", "nothing"], "time names 'nothing', which is no column"),
        (["--split.time", "day", "--split.groups", "part"], "a set is split in one way"),
    ):
        assert words in refused(capsys, "fit", *named, *more, "--out", tmp_path / "no", *TINY)
    for more, words in (
        (["--split.test", "0.3"], "takes no split.test"), (["--num_seeds", "2"], "has one fit per fold"),
    ):  # fmt: skip
        assert words in refused(capsys, "compare", *named, *folds, *more, "--out", tmp_path / "no", *tail)


MODELS = {
    "VAE": [], "HierarchicalVAE": ["--model.upper_dims", "[2, 2]"], "GaussianMixtureVAE": ["--model.num_clusters", "3"],
    "BayesianVAE": [],
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_models_of_a_table_by_name(name, table, tmp_path, capsys):
    arguments = ["--data", table, "--data.roles", WORDS, "--model", name, *MODELS[name]]
    ran(capsys, "fit", *arguments, "--out", tmp_path / "run", *TINY)
    assert f"pyrovae.app.models.{name}" in (tmp_path / "run" / "config.yaml").read_text()
    assert np.isfinite(json.loads(ran(capsys, "evaluate", tmp_path / "run", *QUICK))["elbo"])


LABELLED = {
    "ConditionalVAE": ["--model.learned_prior", "true"], "SemiSupervisedVAE": ["--model.num_labelled", "50"],
    "HierarchicalVAE": ["--model.top_down", "true", "--model.skip", "true"],
    "LinearGaussian": ["--model.isotropic", "true"],
}  # fmt: skip


@pytest.mark.parametrize("name", LABELLED)
def test_models_of_labelled_data_by_name(name, tmp_path, capsys):
    ran(capsys, "fit", *DIGITS, "--model", name, *LABELLED[name], "--out", tmp_path / "run", *TINY)
    assert np.isfinite(json.loads(ran(capsys, "evaluate", tmp_path / "run", *QUICK))["elbo"])


@pytest.mark.filterwarnings("ignore:.*rows are left out")
def test_covariates_and_labels_are_named_columns(table, tmp_path, capsys):
    roles = {**ROLES, "age": "covariate", "size": "covariate", "region": "label"}
    named = ["--data", table, "--data.roles", json.dumps(roles)]
    said = refused(capsys, "fit", *named, "--model", "ConditionalVAE", "--out", tmp_path / "a", *TINY)
    assert "covariates cannot have missing cells" in said
    named += ["--data.drop_incomplete", "true"]
    ran(capsys, "fit", *named, "--model", "ConditionalVAE", "--out", tmp_path / "a", *TINY)
    said = refused(capsys, "fit", *named, "--out", tmp_path / "b", *TINY)
    assert "VAE takes the outcomes alone, and the data have covariate beside them" in said
    label = ["--data", table, "--data.roles", json.dumps({**ROLES, "region": "label"})]
    ran(capsys, "fit", *label, "--model", "SemiSupervisedVAE", "--out", tmp_path / "c", *TINY)
    summary = json.loads(ran(capsys, "evaluate", tmp_path / "c", "--data", table, *label[2:], *QUICK))
    assert summary["num_data"] == 120


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "columns that no model observes: 'id' (an id), 'day' (dates)"),
        (["--data.roles", WORDS, "--model", "LinearGaussian"], "LinearGaussian takes complete continuous columns"),
        (["--data.roles", WORDS, "--model", "ConditionalVAE"], "ConditionalVAE takes covariates"),
        (["--data.roles", WORDS, "--model", "SemiSupervisedVAE"], "SemiSupervisedVAE takes labels"),
        (["--data.roles", WORDS, "--data.types", '{"age": "count"}'], "'age' is a count"),
        (["--data.separator", ";"], "are separated by ',', and separator is ';'"),
    ],
)  # fmt: skip
def test_wrong_tables_get_one_sentence(arguments, said, table, tmp_path, capsys):
    error = refused(capsys, "fit", "--data", table, *arguments, "--out", tmp_path / "run", *TINY)
    assert said in error
    assert not list((tmp_path / "run").glob("fit*"))


def test_a_folder_of_several_fits_names_them(table, tmp_path):
    for name in ("a", "b"):
        fit = pyrovae.fit(*_pair(table), pd.read_csv(table).drop(columns=list(ROLES)), epochs=1, progress=False)
        fit.save(tmp_path / "runs" / name)
    with pytest.raises(ValueError, match="holds several fits: name the folder of one, a, b inside it"):
        pyrovae.load(tmp_path / "runs")


def _pair(table):
    from test_tables import a_pair

    return a_pair(pyrovae.data.Table(pd.read_csv(table).drop(columns=list(ROLES))))


def test_list_says_what_goes_with_what(capsys):
    out = ran(capsys, "list")
    assert "[guide: ClassConditional, around any guide of one latent]" in out
    assert "\n  Table " in out
    assert out.count("made by --model HierarchicalVAE") == 2


def test_warnings_are_one_line(table, tmp_path):
    roles = json.dumps({**ROLES, "age": "covariate"})
    arguments = ["--data", table, "--data.roles", roles, "--data.drop_incomplete", "true", "--model", "ConditionalVAE"]
    command = [sys.executable, "-m", "pyrovae", "fit", *arguments, "--out", tmp_path / "run", *TINY]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    lines = [line for line in done.stderr.splitlines() if "rows are left out" in line]
    assert len(lines) == 1
    assert lines[0].startswith("pyrovae: warning: ")
    assert lines[0].endswith("of 120 rows are left out, which lack age")


@pytest.mark.filterwarnings("ignore:posterior of", "ignore:with .* reference data")
def test_what_a_fit_is_for_on_the_command_line(table, tmp_path, capsys):
    run = tmp_path / "run"
    ran(capsys, "fit", "--data", table, "--data.roles", WORDS, "--out", run, *TINY)
    frame = pd.read_csv(table)
    out = ran(capsys, "posterior", run, "--out", tmp_path / "p", "--num_draws", 20, "--num_warmup", 20, *QUICK[2:])
    assert "posterior of 24 observations" in out
    rows = pd.read_csv(tmp_path / "p" / "posterior.csv", index_col="datum")
    assert set(rows.index) <= set(frame["id"])
    assert (tmp_path / "p" / "posterior.nc").exists()
    ran(capsys, "sample", run, "--num", 30, "--out", tmp_path / "s", *QUICK[2:])
    drawn = pd.read_csv(tmp_path / "s" / "sample.csv")
    assert len(drawn) == 30
    assert set(drawn["smoker"]) <= {"no", "yes"}
    assert not drawn.isna().any().any()
    ran(capsys, "impute", run, "--data", table, "--num_imputations", 2, "--out", tmp_path / "i", *QUICK[2:])
    for k in range(2):
        one = pd.read_csv(tmp_path / "i" / f"imputed-0{k}.csv")
        assert one.columns.tolist() == frame.columns.tolist()  # also those in no batch, so that it can be read again
        one = one.set_index("id")
        assert len(one) == 120
        assert not one.isna().any().any()
        seen = frame.set_index("id").loc[one.index, one.columns]
        assert ((one == seen) | seen.isna()).all().all()
    ran(capsys, "score", run, "--data", table, "--out", tmp_path / "c", "--num_particles", 5, *QUICK[2:])
    scores = pd.read_csv(tmp_path / "c" / "scores.csv", index_col="datum")
    assert scores["pvalue"].is_monotonic_increasing
    assert set(scores["feature"]) <= set(frame.columns)
    assert "name new data to score" in refused(capsys, "score", run, "--out", tmp_path / "c2")
    said = refused(capsys, "impute", run, "--data", tmp_path / "none.csv", "--out", tmp_path / "no")
    assert "there is no such file" in said
    assert not (tmp_path / "no" / "imputed-00.csv").exists()
    ran(capsys, "fit", *DIGITS, "--out", tmp_path / "digits", *TINY)
    ran(capsys, "sample", tmp_path / "digits", "--num", 9, "--out", tmp_path / "d", *QUICK[2:])
    assert np.load(tmp_path / "d" / "sample.npy").shape == (9, 64)
    assert (tmp_path / "d" / "sample.png").exists()


def test_a_table_is_refused_before_libraries_of_figures_and_compilers_are_imported(table):
    code = (
        "import sys; from pyrovae.app.commands import main; "
        f"status = main(['fit', '--data', {str(table)!r}, '--out', {str(table.parent / 'no')!r}]); "
        "heavy = {'arviz', 'matplotlib', 'sklearn', 'scipy.stats', 'xarray', 'torch._dynamo', 'torch._inductor'}; "
        "sys.exit(repr(heavy & set(sys.modules)) if heavy & set(sys.modules) or status != 2 else 0)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "columns that no model observes: 'id' (an id), 'day' (dates)" in done.stderr
