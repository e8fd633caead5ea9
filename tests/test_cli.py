import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from test_data import fake_mnist

from pyrovae.app.commands import main

FAST = ["--epochs", "2", "--progress", "false", "--encoder.hidden", "[8]", "--decoder.hidden", "[8]", "--features", "8"]
SMALL = ["--simulations", "20", "--latents_of", "120"]  # of what compare asks of every fit


BITS = ["--data", "Digits", "--data.binarise", "Static"]


def run(*arguments, capsys=None):
    status = main([str(argument) for argument in arguments])
    return status, capsys.readouterr() if capsys else None


def refused(capsys, *arguments):
    """Run a command that must fail in one sentence; return it."""
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        status = exit_.code
    error = capsys.readouterr().err.strip()
    assert status == 2, error
    assert len(error.splitlines()) == 1
    assert error.startswith("pyrovae: error: ")
    return error


def test_guides_are_compared_by_objectives(tmp_path, capsys):
    status, said = run(
        "compare", *BITS, "--out", tmp_path / "run", *FAST, "--num_particles", 20, "--num_draws", 2, *SMALL,
        "--guides", '{"mean_field": "MeanField", "spline": {"class_path": "SplineCoupling"}}',
        "--objectives", '{"elbo": "Trace_ELBO", "iwae": {"class_path": "IWAE", "init_args": {"num_particles": 3}}}',
        capsys=capsys,
    )  # fmt: skip
    assert status == 0
    for name in ("mean_field-elbo", "mean_field-iwae", "spline-elbo", "spline-iwae"):
        assert name in said.out
        assert (tmp_path / "run" / name / "fit.json").exists()
    status, _ = run("fit", *BITS, "--out", tmp_path / "fit", *FAST, "--objective", "FreeBits",
                    "--objective.free_nats", 0.2, capsys=capsys)  # fmt: skip
    assert status == 0
    assert "objectives is empty" in refused(capsys, "compare", *BITS, "--out", tmp_path / "d", "--objectives", "{}")
    message = refused(capsys, "fit", *BITS, "--out", tmp_path / "e", *FAST, "--guide", "Flow", "--objective", "DIPVAE")
    assert "mean and covariance of q(z | x)" in message


def test_priors_and_likelihoods_that_need_more_are_given_it(tmp_path, capsys):
    status, said = run("fit", *BITS, "--out", tmp_path / "vamp", *FAST, "--prior", "VampPrior",
                       "--prior.num_components", 5, capsys=capsys)  # fmt: skip
    assert status == 0, said.err
    status, said = run("evaluate", tmp_path / "vamp", "--num_particles", 20, "--progress", "false", capsys=capsys)
    assert status == 0, said.err
    rows = pd.DataFrame(np.random.default_rng(0).normal(size=(80, 3)), columns=["a", "b", "c"])
    rows.iloc[::4, 1] = np.nan
    rows.to_csv(tmp_path / "table.csv", index=False)
    given = ["--data", "CSV", "--data.path", tmp_path / "table.csv", "--data.standardise", "true", *FAST]
    given += ["--likelihood", "HeteroscedasticGaussian", "--latent_dim", 2]
    assert "lacks a value in row 0" in refused(capsys, "fit", *given, "--out", tmp_path / "without")
    status, said = run(
        "compare", *given, "--data.missing", "true", "--out", tmp_path / "holes", "--num_particles", 20,
        "--num_draws", 2, "--guides", '{"mean_field": "MeanField"}', capsys=capsys,
    )  # fmt: skip
    assert status == 0, said.err


def test_compare_writes_everything(tmp_path, capsys):
    status, said = run(
        "compare", *BITS, "--out", tmp_path / "run", *FAST, "--num_particles", 50, "--num_draws", 5,
        "--max_arviz_data", 20, *SMALL, capsys=capsys,
    )  # fmt: skip
    assert status == 0
    for name in (
        "sbc_pvalue",
        "mutual_information",
        "log_evidence",
        "difference_se",
        "khat_over_limit",
        "seconds",
        "mean_field",
        "full_rank",
        "iaf",
    ):
        assert name in said.out
    out = tmp_path / "run"
    for name in ("mean_field", "full_rank", "iaf"):
        assert (out / f"{name}.nc").exists()
        assert (out / name / "fit.json").exists()
        assert len(pd.read_csv(out / name / "per_datum.csv")) == 359
    drawn = ["aggregate", "codes", "comparison", "labels", "marginals", "pareto", "pictures", "quality", "reliability"]
    drawn += ["training", "usage", "worst", *(f"calibration-{name}" for name in ("mean_field", "full_rank", "iaf"))]
    assert {path.stem for path in (out / "figures").iterdir()} == set(drawn)
    for figure in drawn:
        assert (out / "figures" / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
    assert list(pd.read_csv(out / "table.csv")["name"])
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(drawn)
    for heading in ("Comparison", "Calibration", "Latents", "Codes", "Draws", "Details", "Configuration"):
        assert f"<h2>{heading}</h2>" in page
    assert "<table" in page
    assert "http://" not in page
    assert "https://" not in page

    # its YAML file runs it again, to the same numbers: it says how every strategy's steps ran
    described = yaml.safe_load((out / "config.yaml").read_text())
    assert described["compile"] == dict.fromkeys(("mean_field", "full_rank", "iaf"), False)
    status, _ = run("compare", "--config", out / "config.yaml", "--out", tmp_path / "again", capsys=capsys)
    assert status == 0
    one, other = (pd.read_csv(folder / "table.csv").drop(columns="seconds") for folder in (out, tmp_path / "again"))
    pd.testing.assert_frame_equal(one, other)

    # one of its fits can be evaluated from the folder alone, on the same test set
    status, said = run("evaluate", out / "iaf", "--num_particles", 50, "--progress", "false", capsys=capsys)
    assert status == 0
    summary = json.loads(said.out)
    assert summary["log_evidence"] == pytest.approx(float(one.set_index("name").loc["iaf", "log_evidence"]))

    # and nothing is overwritten without being asked for
    assert "already holds a run" in refused(capsys, "compare", *BITS, "--out", out, *FAST)
    before = (out / "report.html").stat().st_mtime_ns
    few = ["--guides", '{"mf": "MeanField"}', "--num_draws", 2, "--latents_of", 0, "--simulations", 0]
    assert run("compare", *BITS, "--out", out, *FAST, "--overwrite", "true", *few, capsys=capsys)[0] == 0
    assert (out / "report.html").stat().st_mtime_ns > before


def test_seeds_gaps_and_what_is_left_out(tmp_path, capsys):
    out = tmp_path / "run"
    status, said = run(
        "compare", *BITS, "--out", out, *FAST, "--num_particles", 20, "--num_draws", 2, "--max_arviz_data", 5,
        "--guides", '{"mean_field": "MeanField", "planar": "Planar"}', "--num_seeds", 2, "--gaps_of", 4,
        "--latents_of", 60, "--simulations", 20, capsys=capsys,
    )  # fmt: skip
    assert status == 0
    assert "Where the bound loses:" in said.out
    assert set(pd.read_csv(out / "gaps.csv")["fit"]) >= {"mean_field, seed 0", "mean_field, seed 1"}
    assert "Latents of planar: the guide cannot score" in said.out
    table = pd.read_csv(out / "table.csv", index_col="name")
    assert (table["seeds"] == 2).all()
    for name in ("mean_field-seed0", "mean_field-seed1", "planar-seed0"):
        assert len(pd.read_csv(out / name / "per_datum.csv")) == 359
    one, two = (pd.read_csv(out / f"mean_field-seed{k}" / "per_datum.csv")["log_evidence"] for k in range(2))
    assert table.loc["mean_field", "log_evidence"] == pytest.approx((one.mean() + two.mean()) / 2)
    assert not np.allclose(one, two)
    assert not (out / "arviz_compare.csv").exists()  # ArviZ's table knows no seeds
    page = (out / "report.html").read_text()
    assert "<h2>Where the bound loses</h2>" in page
    assert "Latents of planar" in page
    status, _ = run("evaluate", out / "planar-seed1", "--num_particles", 20, "--progress", "false", capsys=capsys)
    assert status == 0
    status, _ = run(
        "compare", *BITS, "--out", tmp_path / "plain", *FAST, "--num_particles", 20, "--num_draws", 2,
        "--guides", '{"mean_field": "MeanField"}', "--latents_of", 0, "--simulations", 0, capsys=capsys,
    )  # fmt: skip
    assert status == 0
    assert "<h2>Calibration</h2>" not in (tmp_path / "plain" / "report.html").read_text()
    assert not (tmp_path / "plain" / "arviz_compare.csv").exists()
    assert "num_seeds must be a whole number" in refused(
        capsys, "compare", *BITS, "--out", tmp_path / "x", *FAST, "--num_seeds", 0
    )


def test_fit_evaluate_and_resume(tmp_path, capsys):
    out = tmp_path / "run"
    options = ["--guide", "Flow", "--guide.num_steps", 3, "--prior", "MixtureOfGaussians", "--prior.num_components", 4]
    assert run("fit", *BITS, "--out", out, *FAST, *options, capsys=capsys)[0] == 0
    described = yaml.safe_load((out / "config.yaml").read_text())
    assert described["guide"]["init_args"]["num_steps"] == 3
    assert described["compile"] is False  # what auto chose, for runs to come
    assert len(pd.read_csv(out / "history.csv")) == 20
    evaluated = tmp_path / "evaluated"
    quiet = ["--progress", "false", "--compile", "false"]
    status, said = run("evaluate", out, "--out", evaluated, "--num_draws", 3, *quiet, capsys=capsys)
    assert status == 0
    assert '"khat_over_limit"' in said.out
    assert (evaluated / "posterior.nc").exists()
    assert len(pd.read_csv(evaluated / "per_datum.csv")) == 359
    longer = [argument if argument != "2" else "4" for argument in map(str, FAST)]
    assert run("fit", *BITS, "--out", out, *longer, *options, "--resume", "true", capsys=capsys)[0] == 0
    assert len(pd.read_csv(out / "history.csv")) == 40


def test_the_users_own_files(tmp_path, capsys):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(80, 4)), columns=list("abcd")).assign(kind=rng.choice(["u", "v", None], 80))
    table.to_csv(tmp_path / "table.csv", index=False)
    status, _ = run(
        "compare", "--data", "CSV", "--data.path", tmp_path / "table.csv", "--data.label", "kind",
        "--data.standardise", "true", "--likelihood", "Gaussian", "--latent_dim", 2, "--out", tmp_path / "csv", *FAST,
        "--num_draws", 3, "--num_particles", 20, "--guides", '{"mf": "MeanField"}', capsys=capsys,
    )  # fmt: skip
    assert status == 0
    assert not (tmp_path / "csv" / "figures" / "pictures.png").exists()
    assert "probe_accuracy" in (tmp_path / "csv" / "report.html").read_text()  # of the rows that have a label
    table.head(1).to_csv(tmp_path / "one.csv", index=False)  # one row has no scale of its own: the fit's holds
    status, said = run(
        "evaluate", tmp_path / "csv" / "mf", "--data", "CSV", "--data.path", tmp_path / "one.csv", "--data.label",
        "kind", "--data.standardise", "true", "--num_particles", 20, "--progress", "false", capsys=capsys,
    )  # fmt: skip
    assert status == 0, said.err
    np.save(tmp_path / "pictures.npy", rng.integers(0, 256, (60, 5, 7)).astype(np.uint8))
    status, _ = run(
        "compare", "--data", "Array", "--data.path", tmp_path / "pictures.npy", "--data.levels", 255, "--likelihood",
        "ContinuousBernoulli", "--encoder", "ConvEncoder", "--encoder.channels", "[4]", "--decoder", "ConvDecoder",
        "--decoder.channels", "[4]", "--out", tmp_path / "npy", "--epochs", 1, "--num_draws", 3, "--num_particles", 20,
        "--guides", '{"iaf": {"class_path": "Flow", "init_args": {"num_steps": 1}}}', "--progress", "false",
        capsys=capsys,
    )  # fmt: skip
    assert status == 0
    assert (tmp_path / "npy" / "figures" / "pictures.png").exists()


def test_mnist_from_a_data_root(tmp_path, capsys):
    fake_mnist(tmp_path, train=60)
    status, _ = run(
        "compare", "--data", "MNIST", "--data.root", tmp_path, "--data.binarise", "Dynamic", "--out", tmp_path / "run",
        *FAST, "--num_particles", 2, "--num_draws", 2, "--max_arviz_data", 5, "--guides", '{"mf": "MeanField"}',
        "--simulations", 20, "--latents_of", 0,
        capsys=capsys,
    )  # fmt: skip
    assert status == 0


def test_list_names_every_catalogue(capsys):
    status, said = run("list", capsys=capsys)
    assert status == 0
    for name in ("VAE", "LinearGaussian", "FullRank", "MixtureOfGaussians", "ContinuousBernoulli", "Trace_ELBO", "CSV"):
        assert name in said.out
    starred = {line.split()[0].removeprefix("*") for line in said.out.splitlines() if line.startswith(" *")}
    assert {"FactorVAE", "Stream", "Exact", "Local", "SemiAmortized"} <= starred
    assert not starred & {
        "VAE",
        "HierarchicalVAE",
        "Clustered",
        "SemiSupervisedELBO",
        "Table",
        "MeanField",
        "Flow",
        "Bernoulli",
        "Poisson",
        "BetaTCVAE",
        "FreeBits",
        "MLP",
        "CSV",
    }


def test_bad_input_ends_in_one_sentence(tmp_path, capsys):
    out = [*BITS, "--out", tmp_path / "run"]
    assert "NoSuch is neither a name" in refused(capsys, "compare", "--out", tmp_path / "run", "--data", "NoSuch")
    assert "nonsense" in refused(capsys, "fit", *out, "--nonsense", 3)
    assert "epochs" in refused(capsys, "fit", *out, "--epochs", "many")
    assert "invalid choice: 'fot'" in refused(capsys, "fot")
    assert "epochs must be a whole number of at least 1, got 0" in refused(capsys, "fit", *out, "--epochs", 0)
    assert "num_particles" in refused(capsys, "evaluate", make_fit(tmp_path, capsys), "--num_particles", 0)
    assert "batch_size" in refused(capsys, "fit", *BITS, "--out", tmp_path / "b", "--batch_size", 0)
    assert "cannot read a table from" in refused(
        capsys, "fit", "--out", tmp_path, "--data", "CSV", "--data.path", "none.csv"
    )
    assert "holds no saved fit" in refused(capsys, "evaluate", tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    assert "cannot write into the folder" in refused(capsys, "fit", *BITS, "--out", tmp_path / "file")
    assert "outside the likelihood's support" in refused(
        capsys, "fit", "--out", tmp_path / "c", "--data", "Digits", *FAST
    )
    assert "no file 'train-images" in refused(
        capsys, "fit", "--out", tmp_path, "--data", "MNIST", "--data.root", tmp_path
    )
    broken = tmp_path / "made" / "fit"
    (broken / "fit.json").write_text("{")
    assert "cannot be read as a saved fit" in refused(capsys, "evaluate", tmp_path / "made")
    assert "guides is empty" in refused(capsys, "compare", *BITS, "--out", tmp_path / "d", "--guides", "{}")
    assert "compile names 'flow', but the strategies are mean_field, full_rank, iaf" in refused(
        capsys, "compare", *BITS, "--out", tmp_path / "d", "--compile", '{"flow": true}'
    )


def make_fit(tmp_path, capsys):
    assert run("fit", *BITS, "--out", tmp_path / "made", *FAST, capsys=capsys)[0] == 0
    return tmp_path / "made"


@pytest.mark.parametrize("command", ["fit", "evaluate", "compare", "list"])
def test_help_suffices(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    said = capsys.readouterr().out
    if command in {"fit", "compare"}:
        for word in ("Digits, MNIST", "pyrovae.guides.Flow", "number of latents", "largest number of passes"):
            assert word in " ".join(said.split())


def test_a_signal_saves_and_exits_with_its_number(tmp_path):
    import signal
    import time

    command = [sys.executable, "-W", "ignore", "-m", "pyrovae", "fit", *BITS, "--out", str(tmp_path / "run")]
    process = subprocess.Popen(
        [*command, "--epochs", "100000", "--patience", "null"], stderr=subprocess.PIPE, text=True
    )
    text = ""
    while "step/s" not in text:
        text += process.stderr.read(1)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "SIGTERM: stopped after step" in said.splitlines()[-1]
    assert "Traceback" not in said
    document = json.loads(Path(tmp_path / "run" / "fit" / "fit.json").read_text())
    assert document["stopped"] == "SIGTERM"
