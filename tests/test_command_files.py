"""What the command line reads and writes: the user's files stay, the data are the run's own, no option runs code."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from test_cli import BITS, FAST, refused, run

TINY = ["--num_particles", 20, "--num_draws", 2, "--simulations", 0, "--latents_of", 0]
ONE = ["--guides", '{"mean_field": "MeanField"}']


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "mine" / "table.csv"
    path.parent.mkdir()
    pd.DataFrame(np.random.default_rng(0).normal(size=(80, 3)), columns=list("abc")).to_csv(path, index=False)
    return path


def of(table):
    return ["--data", "CSV", "--data.path", table, "--likelihood", "HeteroscedasticGaussian", *FAST, "--latent_dim", 2]


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_a_run_did_not_write_stays(tmp_path, table, capsys):
    out = tmp_path / "run"
    assert run("compare", *of(table), *TINY, *ONE, "--out", out, capsys=capsys)[0] == 0
    mine = {
        "notes.txt": b"mine", "figures/mine.png": b"mine", "other.nc": b"mine", "sub/fit.json": b"mine",
        "mean_field/tensors-mine.safetensors": b"mine", "mean_field/notes.txt": b"mine",
    }  # fmt: skip
    for name, content in mine.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(content)
    before = files(out)
    assert "already holds a run" in refused(capsys, "compare", *of(table), *TINY, *ONE, "--out", out)
    assert files(out) == before
    other = ["--guides", '{"full_rank": "FullRank"}', "--overwrite", "true"]
    assert run("compare", *of(table), *TINY, *other, "--out", out, capsys=capsys)[0] == 0
    after = files(out)
    assert mine.items() <= after.items()
    assert not [name for name in after if name.startswith("mean_field") and name not in mine]
    assert (out / "full_rank" / "fit.json").exists()
    (out / "mean_field.nc").write_bytes(b"mine")  # where the next run would write
    said = refused(capsys, "compare", *of(table), *TINY, *ONE, "--out", out, "--overwrite", "true")
    assert "mean_field.nc' is not of this run and would be written over" in said
    assert (out / "mean_field.nc").read_bytes() == b"mine"


def test_folders_that_are_no_place_for_a_run(tmp_path, table, capsys, monkeypatch):
    monkeypatch.chdir(table.parent)
    before = files(tmp_path)
    for command in ("fit", "compare"):
        for out, message in (
            (".", "is not empty ('table.csv')"),
            ("", "is an empty string"),
            ("table.csv", "it is a file"),
        ):
            for overwrite in ("false", "true"):
                said = refused(capsys, command, *of("table.csv"), "--out", out, "--overwrite", overwrite)
                assert message in said
    assert files(tmp_path) == before
    assert run("fit", *of(table), "--out", tmp_path / "run", capsys=capsys)[0] == 0
    assert "is not empty" in refused(capsys, "evaluate", tmp_path / "run", "--out", table.parent)
    (tmp_path / "run" / "history.csv").write_text(table.read_text())  # results of a run given as its data
    inside = of(tmp_path / "run" / "history.csv")
    said = refused(capsys, "fit", *inside, "--out", tmp_path / "run", "--overwrite", "true")
    assert "would be read and written over" in said
    assert (tmp_path / "run" / "history.csv").read_text() == table.read_text()


def test_a_run_is_evaluated_on_its_own_data_or_on_data_that_are_named(tmp_path, table, capsys, monkeypatch):
    monkeypatch.chdir(table.parent)
    assert run("fit", *of("table.csv"), "--out", tmp_path / "run", capsys=capsys)[0] == 0
    monkeypatch.chdir(tmp_path)  # the path of the data was relative
    ask = ["evaluate", tmp_path / "run", "--num_particles", 20, "--progress", "false"]
    status, said = run(*ask, capsys=capsys)
    assert status == 0, said.err
    assert json.loads(said.out)["num_data"] == 16
    whole = pd.read_csv(table)
    changed = {
        "a row more": pd.concat([whole, whole[:1]]), "another order": whole[::-1], "a row fewer": whole[1:],
        "another number": whole.assign(c=whole["c"] + 1e-6 * (np.arange(80) == 79)),
    }  # fmt: skip
    for rows in changed.values():
        rows.to_csv(table, index=False)
        assert "are not those of the run" in refused(capsys, *ask)
    status, said = run(*ask, "--data", "CSV", "--data.path", table, capsys=capsys)
    assert json.loads(said.out)["num_data"] == 80
    table.unlink()
    assert "cannot read a table" in refused(capsys, *ask)


def test_a_run_is_resumed_as_what_it_was(tmp_path, table, capsys):
    given = [*of(table), "--out", tmp_path / "run"]
    assert run("fit", *given, capsys=capsys)[0] == 0
    before = files(tmp_path / "run")
    others = {
        "likelihood": ["--likelihood", "StudentT"], "prior": ["--prior", "Laplace"], "seed": ["--seed", 1],
        "activation": ["--decoder.activation", "torch.nn.Tanh"], "kl_weight": ["--objective", "BetaELBO"],
        "lr": ["--lr", 0.5], "guide": ["--guide", "FullRank"],
    }  # fmt: skip
    for name, options in others.items():
        said = refused(capsys, "fit", *given, *options, "--resume", "true")
        assert "was made with" in said, name
        assert "use the same, or --overwrite true" in said, name
    after = files(tmp_path / "run")
    after[".pyrovae.json"] = before[".pyrovae.json"]
    assert after == before  # nor does the configuration claim that it was so
    assert run("fit", *given, "--epochs", 3, "--resume", "true", capsys=capsys)[0] == 0
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["epochs"] == 3


def test_a_refused_resumption_changes_nothing_that_is_known_of_a_run(tmp_path, table, capsys):
    given = [*of(table), "--out", tmp_path / "run"]
    ask = ["evaluate", tmp_path / "run", "--num_particles", 20, "--progress", "false"]
    assert run("fit", *given, capsys=capsys)[0] == 0
    whole = table.read_bytes()
    pd.read_csv(table)[::-1].to_csv(table, index=False)
    assert "was made with other data" in refused(capsys, "fit", *given, "--resume", "true")
    assert "are not those of the run" in refused(capsys, *ask)
    table.write_bytes(whole)
    assert "was made with seed 0, got 3" in refused(capsys, "fit", *given, "--resume", "true", "--seed", 3)
    for bad in (["--latent_dim", 0], ["--likelihood", "Bernoulli"], ["--prior", "UniformSphere"], ["--lr", "nan"]):
        refused(capsys, "fit", *given, "--overwrite", "true", *bad)
    assert run(*ask, capsys=capsys)[0] == 0  # what was there is there
    more = ["--config", tmp_path / "run" / "config.yaml", "--resume", "true", "--epochs", 3]
    assert run("fit", *more, capsys=capsys)[0] == 0  # the way to go on
    (tmp_path / "run").rename(tmp_path / "moved")
    assert run("evaluate", tmp_path / "moved", *ask[2:], capsys=capsys)[0] == 0
    assert (
        run("evaluate", tmp_path / "moved", *ask[2:], "--num_draws", 2, "--out", tmp_path / "moved", capsys=capsys)[0]
        == 0
    )


def test_a_run_that_was_refused_leaves_no_configuration_to_the_next(tmp_path, table, capsys):
    given = [*of(table), "--out", tmp_path / "run"]
    assert "support" in refused(capsys, "fit", *given, "--likelihood", "Bernoulli", "--lr", 0.5)
    assert run("fit", *given, capsys=capsys)[0] == 0
    described = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert described["lr"] == 0.001
    assert "HeteroscedasticGaussian" in str(described["likelihood"])


def test_a_strategy_is_added_to_a_run_on_the_same_parts_alone(tmp_path, table, capsys):
    given = [*of(table), *TINY, "--out", tmp_path / "run"]
    assert run("compare", *given, *ONE, capsys=capsys)[0] == 0
    other = ["--guides", '{"other": "FullRank"}', "--resume", "true"]
    assert "was made with seed 0" in refused(capsys, "compare", *given, *other, "--seed", 3)
    assert run("compare", *given, *other, capsys=capsys)[0] == 0


def test_a_fit_of_another_run_is_not_evaluated_on_this_ones_parts(tmp_path, table, capsys):
    for seed in (1, 2):
        assert run("fit", *of(table), "--seed", seed, "--out", tmp_path / str(seed), capsys=capsys)[0] == 0
    shutil.copytree(tmp_path / "1" / "fit", tmp_path / "2" / "copied")
    ask = ["--num_particles", 20, "--progress", "false"]
    assert "was not fitted to the data of" in refused(capsys, "evaluate", tmp_path / "2" / "copied", *ask)
    assert run("evaluate", tmp_path / "2", *ask, capsys=capsys)[0] == 0


def test_what_the_user_edited_is_not_written_over(tmp_path, table, capsys):
    given = [*of(table), "--out", tmp_path / "run"]
    assert run("fit", *given, capsys=capsys)[0] == 0
    history = tmp_path / "run" / "history.csv"
    history.write_text(history.read_text() + "mine\n")
    for option in ("--resume", "--overwrite"):
        assert "was changed since this run wrote it" in refused(capsys, "fit", *given, option, "true")
    assert history.read_text().endswith("mine\n")
    history.unlink()
    history.mkdir()
    assert "was changed since" in refused(capsys, "fit", *given, "--overwrite", "true")
    history.rmdir()
    assert run("fit", *given, "--overwrite", "true", capsys=capsys)[0] == 0


LOUD = "import pathlib\npathlib.Path('ran').write_text('')\nfrom pyrovae.nn import MLP\nclass Mine(MLP):\n    pass\n"


def test_no_option_runs_code_that_the_user_did_not_permit(tmp_path, capsys, monkeypatch):
    (tmp_path / "loud.py").write_text(LOUD)
    (tmp_path / "config.yaml").write_text("encoder:\n  class_path: loud.Mine\nallow_module: loud\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    start = ["fit", *BITS, "--out", "run", *FAST]
    for options in (
        ["--encoder", "loud.Mine"], ["--config", "config.yaml"], ["--objective", "loud.Mine"],
        ["--objective", "BetaELBO", "--objective.kl_weight", "os.close"], ["--prior", "builtins.exec"],
        ["--encoder", "os.system"], ["--guide", "loud.Mine"], ["--decoder.activation", "subprocess.Popen"],
        ["--encoder", "pyrovae.app.commands.main"], ["--likelihood", "pickle.loads"],
        ["--data", "Stream", "--data.dataset", "loud.Mine"], ["--data", "pyrovae.data.stream.Stream"],
    ):  # fmt: skip
        said = refused(capsys, *start[:-6], *FAST, *options)
        assert "not in the catalogues" in said or "neither a name that fits" in said or "no option" in said, said
        assert not (tmp_path / "ran").exists()
        assert "loud" not in sys.modules
        assert not (tmp_path / "run").exists()
    assert "takes the name of a module" in refused(capsys, *start, "--allow_module", "../x")
    status, said = run(
        "fit", *BITS, "--out", "run", *FAST[:4], "--encoder", "loud.Mine", "--allow_module", "loud", capsys=capsys
    )
    assert status == 0, said.err
    assert (tmp_path / "ran").exists()
    assert "loud.Mine" in (tmp_path / "run" / "config.yaml").read_text()
    assert "allow" not in (tmp_path / "run" / "config.yaml").read_text()
    del sys.modules["loud"]


def test_the_settings_of_other_programs_stay():
    from jsonargparse import _common

    before = dict(_common.parsing_settings)
    with pytest.raises(SystemExit):
        run("fit", "--nonsense", 3)
    run("list")
    assert _common.parsing_settings == before


NAMES = [
    "../escape", "a/b", "/etc/x", "figures", "Figures", "table.csv", "report.html", ".hidden", "", " ", "a.", "=1+1",
    "-rf", "a\nb", "config.yaml", "nul\0",
]  # fmt: skip


@pytest.mark.parametrize(
    ("of", "name"), [*(("guides", name) for name in NAMES), ("objectives", "../x"), ("objectives", "a/b")]
)
def test_names_of_strategies_stay_in_the_folder(tmp_path, capsys, name, of):
    values = {"guides": {"g": "MeanField"}, "objectives": {"o": "Trace_ELBO"}}
    values[of] = {name: next(iter(values[of].values())), **({} if of == "guides" else {"p": "Trace_ELBO"})}
    options = [part for key, value in values.items() for part in (f"--{key}", json.dumps(value))]
    said = refused(capsys, "compare", *BITS, "--out", tmp_path / "run", *FAST, *TINY, *options)
    assert "cannot be named" in said
    assert not (tmp_path / "run").exists()


def test_two_names_of_one_folder(tmp_path, capsys):
    both = json.dumps({"A": "MeanField", "a": "FullRank"})
    assert "would share a folder" in refused(capsys, "compare", *BITS, "--out", tmp_path / "r", "--guides", both)


def start(*arguments, **options):
    command = [sys.executable, "-W", "ignore", "-m", "pyrovae", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_ctrl_c_in_the_middle_of_an_exec_has_its_own_status():
    """Python notes an interrupt that leaves an exec, and dies by the signal at its end, although it was handled."""
    commands = "m = types.ModuleType('pyrovae.app.commands'); m.main = lambda: exec('raise KeyboardInterrupt')"
    run = "sys.modules[m.__name__] = m; from pyrovae.__main__ import main; sys.exit(main())"
    code = f"import sys, types; {commands}; {run}"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "pyrovae: interrupted\n")


def test_ctrl_c_while_a_class_is_made_is_an_interrupt(monkeypatch, capsys):
    """Python 3.11 turns it into a RuntimeError, which a part that cannot be made would raise as well."""
    import pyrovae.app.commands as commands

    class Interrupted:
        def __set_name__(self, owner, name):
            raise KeyboardInterrupt

    def make(*_):
        with commands.made_by_options():
            type("Part", (), {"field": Interrupted()})

    monkeypatch.setattr(commands, "_run", make)
    assert commands.main(["list"]) == 130
    assert capsys.readouterr().err == "pyrovae: interrupted\n"
    lines = [
        "import sys", "from pyrovae.__main__ import main", "import pyrovae.app.commands as commands", "def act():",
        "    try: raise KeyboardInterrupt", "    except KeyboardInterrupt as e: raise RuntimeError('set_name') from e",
        "commands.main = act", "sys.exit(main())",
    ]  # fmt: skip
    code = "\n".join(lines)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "pyrovae: interrupted\n")


@pytest.mark.parametrize("after", [0.3, 1.5, 4.0, None])
def test_ctrl_c_is_one_line_wherever_it_comes(tmp_path, after):
    process = start("fit", *BITS, "--out", tmp_path / "run", "--epochs", 100000, "--patience", "null")
    if after is None:
        while not (tmp_path / "run" / "fit").exists():
            time.sleep(0.05)
    time.sleep(after or 1.0)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    lines = [line for line in said.splitlines() if line and "step/s" not in line and "fit:" not in line]
    assert len(lines) == 1, said
    assert lines[0].startswith("pyrovae: ")


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="the system has no SIGHUP")
def test_a_terminal_that_closes_stops_a_fit_after_saving(tmp_path):
    process = start("fit", *BITS, "--out", tmp_path / "run", "--epochs", 100000, "--patience", "null")
    text = ""
    while "step/s, bound" not in text:
        text += process.stderr.read(1)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGHUP
    assert json.loads((tmp_path / "run" / "fit" / "fit.json").read_text())["stopped"] == "SIGHUP"


def test_a_reader_that_has_enough_is_no_error():
    process = start("list", env={**os.environ, "PYTHONUNBUFFERED": "1"})
    with process.stderr as errors:
        process.stdout.close()
        assert errors.read() == ""
    assert process.wait(60) == 141


def test_progress_in_a_file_is_lines(tmp_path):
    with (tmp_path / "log").open("w") as log:
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "pyrovae",
            "fit",
            *BITS,
            "--out",
            tmp_path / "run",
            "--epochs",
            "3",
        ]
        subprocess.run(command, stderr=log, stdout=log, check=True)
    text = Path(tmp_path / "log").read_text()
    assert "\r" not in text
    assert max(map(len, text.splitlines())) < 160
    assert "100%" in text


def test_a_full_disk_leaves_no_half_a_file(tmp_path, table, capsys, monkeypatch):
    from pyrovae.saving import files as writing

    assert run("compare", *of(table), *TINY, *ONE, "--out", tmp_path / "whole", capsys=capsys)[0] == 0
    names = sorted(files(tmp_path / "whole"))
    write = writing.os.replace
    for full in ("report.html", "table.csv", "mean_field.nc", "figures", "per_datum.csv", "config.yaml", "history"):

        def replace(source, target, full=full):
            if full in str(target):
                raise OSError(28, "No space left on device")
            write(source, target)

        monkeypatch.setattr(writing.os, "replace", replace)
        command = "fit" if full == "history" else "compare"
        given = [*of(table), "--out", tmp_path / full, *([] if command == "fit" else [*TINY, *ONE])]
        assert "No space left on device" in refused(capsys, command, *given)
        monkeypatch.undo()
        left = sorted(files(tmp_path / full))
        assert not [name for name in left if full in name or ".writing" in name]
        assert set(left) <= {*names, "fit/fit.json", *(n for n in left if "safetensors" in n)}
