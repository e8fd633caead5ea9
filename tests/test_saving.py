"""Files and folders: whole or not there, one writer at a time, and nothing of the user's is touched."""

import json
import multiprocessing
import subprocess
import sys
import threading
import time

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import bits, make_vae
from safetensors.torch import save_file

from pyrovae import fit, load
from pyrovae.saving import MANIFEST, RunFolder, files, lock, write_whole
from pyrovae.saving.run_folder import checksum
from pyrovae.training import storage

QUICK = {"steps": 3, "compile": False, "progress": False}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def saved(folder, **options):
    return fit(*make_vae(), bits(30), checkpoint=folder, **{**QUICK, **options})


def test_a_file_is_the_old_one_or_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "table.csv"
    write_whole(path, b"old")
    for broken in ("fsync", "replace"):
        with monkeypatch.context() as patched:
            patched.setattr(files.os, broken, full_disk)
            with pytest.raises(ValueError, match=r"cannot write .*No space left.*what was saved there before is kept"):
                write_whole(path, b"new")
            with pytest.raises(ValueError, match=r"No space left on device\)$"):  # nothing was there
                write_whole(tmp_path / "other", b"new")
        assert contents(tmp_path) == {"table.csv": b"old"}
    write_whole(path, b"new")
    assert contents(tmp_path) == {"table.csv": b"new"}


def outcome(act):
    """Return what a call gives, or else the sentence in which it is refused."""
    try:
        return act(), ""
    except ValueError as error:
        return None, str(error)


def full_disk(*_):
    raise OSError(28, "No space left on device")


def test_a_link_that_lies_in_wait_is_not_followed(tmp_path, monkeypatch):
    mine = tmp_path / "mine"
    mine.write_text("mine")
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "0" * 2 * n)
    (tmp_path / f".table.csv.{'0' * 16}.writing").symlink_to(mine)
    with pytest.raises(ValueError, match="File exists"):
        write_whole(tmp_path / "table.csv", b"new")
    assert mine.read_text() == "mine"


def test_a_save_removes_what_is_its_own_alone(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "tensors-foreign.safetensors")
    (tmp_path / "tensors-broken.safetensors").write_text("not tensors")
    stale = tmp_path / f".tensors-abc.safetensors.{'a' * 16}.writing"
    stale.write_text("of a save that was killed")
    orphan = tmp_path / "tensors-0123456789ab.safetensors"
    save_file({"a": torch.zeros(2)}, orphan, {"written by pyrovae as": orphan.name})
    save_file({"a": torch.zeros(2)}, tmp_path / "tensors-backup.safetensors", {"written by pyrovae as": orphan.name})
    foreign = contents(tmp_path).items() - {(p.name, p.read_bytes()) for p in (stale, orphan)}
    for _ in range(2):
        saved(tmp_path)
        assert foreign <= contents(tmp_path).items()
        assert len(contents(tmp_path)) == len(foreign) + 2
    assert load(tmp_path).stopped == "finished"


def test_one_writer_at_a_time(tmp_path):
    with lock(tmp_path):
        for write in (lambda: saved(tmp_path), lambda: fit(*make_vae(), bits(9), **QUICK).save(tmp_path)):
            with pytest.raises(ValueError, match="another process or thread writes into"):
                write()
    saved(tmp_path)


def test_a_process_that_dies_lets_go(tmp_path):
    def hold(folder, ready):
        with lock(folder):
            ready.set()
            time.sleep(60)

    context = multiprocessing.get_context("fork")
    ready = context.Event()
    other = context.Process(target=hold, args=(tmp_path, ready))
    other.start()
    assert ready.wait(20)
    with pytest.raises(ValueError, match="another process"), lock(tmp_path):
        pass
    other.kill()
    other.join()
    with lock(tmp_path):
        pass


def test_a_reader_beside_a_writer_reads_a_whole_fit(tmp_path):
    fitted, done = saved(tmp_path), []

    def write():
        for _ in range(60):
            fitted.save(tmp_path)
        done.append(1)

    writer = threading.Thread(target=write)
    writer.start()
    reads = 0
    while not done:
        tensors, document = storage.read(tmp_path)
        assert len(tensors["history"]) == 3
        assert document["stopped"] == "finished"
        reads += 1
    writer.join()
    assert reads


@pytest.mark.parametrize("name", ["fit.json", "tensors"])
@pytest.mark.parametrize("kind", ["flip", "cut"])
def test_damage_is_found_wherever_it_is(tmp_path, name, kind):
    folder = tmp_path / "run"
    saved(folder)
    before = {key: tensor.clone() for key, tensor in storage.read(folder)[0].items()}
    path = next(p for p in folder.iterdir() if p.name.startswith(name))
    content, places = path.read_bytes(), np.random.default_rng(0).integers(0, len(path.read_bytes()), 40)
    for place in places.tolist():
        damaged = bytearray(content[:place]) if kind == "cut" else bytearray(content)
        if kind == "flip":
            damaged[place] ^= 1 << (place % 8)
        path.write_bytes(bytes(damaged))
        found, said = outcome(lambda: storage.read(folder)[0])
        if found is None:
            assert str(folder) in said
        else:
            assert found.keys() == before.keys()
            assert all(torch.equal(found[key], before[key]) for key in before)


def test_a_fit_that_names_code_runs_none(tmp_path):
    saved(tmp_path)
    (tmp_path / "loud_module.py").write_text("raise SystemExit('imported')")
    for name in ("pyrovae.__main__.x", "loud_module.Loud", "os.system", "models.autoencoder.exec", "nn.functional.relu",
                 "guides.guide.Guide.__init__", "torch.nn.Linear", "models", "pyrovae.app.commands.main"):  # fmt: skip
        document = json.loads((tmp_path / "fit.json").read_text())
        document["model"]["configuration"] = {"class": name, "arguments": {}}
        document["sha256"] = storage._checksum(document)
        (tmp_path / "fit.json").write_text(json.dumps(document))
        command = [sys.executable, "-W", "ignore", "-c", f"import pyrovae; pyrovae.load({str(tmp_path)!r})"]
        if name.startswith(("loud", "pyrovae.__main__")):  # in a process that has not imported it
            done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
            assert "only modules of pyrovae are built" in done.stderr.splitlines()[-1]
            assert not done.stdout
        with pytest.raises(ValueError, match="only modules of pyrovae are built"):
            load(tmp_path)


def test_a_document_that_was_written_by_hand_is_refused_in_a_sentence(tmp_path):
    saved(tmp_path)
    whole = json.loads((tmp_path / "fit.json").read_text())
    changes = {
        "columns": ["a"], "stopped": None, "seconds": "x", "model": 3,
        "guide": {"configuration": {"class": "pyrovae.models.VAE"}},
        "tensors": {"file": 3, "sha256": 4}, "format": "2",
    }  # fmt: skip
    for key, value in changes.items():
        document = {**whole, key: value}
        document["sha256"] = storage._checksum(document)
        (tmp_path / "fit.json").write_text(json.dumps(document))
        _, said = outcome(lambda: load(tmp_path))
        assert len(said.splitlines()) < 2
    (tmp_path / "fit.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="cannot be read as a saved fit"):
        load(tmp_path)


def test_a_run_folder_touches_its_own_files_alone(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.check(["table.csv"])
    folder.begin(data="abc")
    folder.write("figures/one.png", b"ours")
    folder.write_table("table.csv", pd.DataFrame({"=x": ["=1+1", "plain"], "n": [-1.5, 2]}, index=["@a", "b"]))
    assert (tmp_path / "run" / "table.csv").read_text() == ",'=x,n\n'@a,'=1+1,-1.5\nb,plain,2.0\n"
    (tmp_path / "run" / "figures" / "mine.png").write_text("mine")
    (tmp_path / "run" / "report.html").write_text("mine")
    again = RunFolder(tmp_path / "run")
    assert (again.record["data"], again.files) == ("abc", ["figures/one.png", "table.csv"])
    with pytest.raises(ValueError, match="is not of this run and would be written over"):
        again.write("report.html", "ours")
    again.clear()
    left = {str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert left == {MANIFEST, "figures/mine.png", "report.html"}


def test_folders_that_are_not_a_runs(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for path, message in (("", "empty string"), (" ", "empty string"), (tmp_path, "not empty"),
                          (tmp_path / "mine.txt", "is a file")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            RunFolder(path).check()
    run = RunFolder(tmp_path / "run")
    run.begin()
    run.write("table.csv", "ours")
    with pytest.raises(ValueError, match="would be read and written over"):
        run.check(["table.csv"], [tmp_path / "run" / ".." / "run" / "table.csv"])
    forged = [
        {"files": {"../mine.txt": ""}, "fits": []},
        {"files": {"/etc/x": ""}, "fits": []},
        {"files": [], "fits": 3},
    ]
    signed = [{**record, "sha256": checksum(json.dumps(record).encode())} for record in forged]
    for record in ("{}", "[]", "{", json.dumps(forged[0]), *map(json.dumps, signed)):
        (tmp_path / "run" / MANIFEST).write_text(record)
        with pytest.raises(ValueError, match="cannot be read"):
            RunFolder(tmp_path / "run")
