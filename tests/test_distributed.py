"""Fits in several processes, by torchrun on the CPU."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from pyrovae import load

JOB = Path(__file__).parent / "distributed_job.py"


def run(folder, processes, **options):
    """Run the job in several processes; return their exit statuses, and how long after the first the last one ended."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, str(JOB), json.dumps({"folder": str(folder), **options})]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(JOB.parent)}
    if processes > 1:
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            environment |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(probe.getsockname()[1])}
        environment |= {"WORLD_SIZE": str(processes), "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [{"RANK": str(rank)} if processes > 1 else {} for rank in range(processes)]
    started = [subprocess.Popen(command, env={**environment, **rank}) for rank in ranks]
    ended: dict[int, float] = {}
    while len(ended) < processes:
        for rank, process in enumerate(started):
            if process.poll() is not None:
                ended.setdefault(rank, time.monotonic())
        time.sleep(0.02)
    return [process.returncode for process in started], max(ended.values()) - min(ended.values())


def history(folder, rank=0):
    return pd.read_csv(folder / f"history-{rank}.csv")


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_come_to_the_result_of_one(tmp_path, compile):
    """A hundred steps on the oracle, batches of 16 with a ragged last one of 6."""
    options = {"kind": "oracle", "steps": 100, "batch_size": 16, "compile": compile, "precision": "float64"}
    for processes in (1, 2):
        assert not any(run(tmp_path / str(processes), processes, **options)[0])
    one, two = tmp_path / "1", tmp_path / "2"
    pd.testing.assert_frame_equal(history(one), history(two), rtol=1e-8)
    pd.testing.assert_frame_equal(history(two, 0), history(two, 1), rtol=0, atol=0)
    for p, q in zip(torch.load(one / "params-0.pt"), torch.load(two / "params-1.pt"), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-8)


def test_every_datum_is_seen_once_an_epoch_also_where_a_batch_is_smaller_than_the_group(tmp_path):
    assert not any(run(tmp_path, 2, kind="vae", epochs=2, batch_size=23, compile=False)[0])  # 23, 23, 23 and 1
    parts = [json.loads((tmp_path / f"seen-{rank}.json").read_text()) for rank in (0, 1)]
    steps = [part[-8:] for part in parts]  # before them the pair is read
    for epoch in (slice(0, 4), slice(4, 8)):
        full = [i for rank in (0, 1) for part in steps[rank][epoch][:3] for i in part]
        assert sorted(full + steps[0][epoch][3]) == list(range(70))


@pytest.mark.slow
@pytest.mark.parametrize("first", [2, 1])
def test_a_checkpoint_is_resumed_by_another_number_of_processes(tmp_path, first):
    options = {"kind": "oracle", "batch_size": 16, "compile": False, "precision": "float64"}
    checkpoint = {"checkpoint": str(tmp_path / "checkpoint"), **options}
    assert not any(run(tmp_path / "whole", 1, steps=20, **options)[0])
    assert not any(run(tmp_path / "part", first, steps=9, **checkpoint)[0])
    assert not any(run(tmp_path / "part", 3 - first, steps=20, resume=True, **checkpoint)[0])
    pd.testing.assert_frame_equal(history(tmp_path / "whole"), history(tmp_path / "part"), rtol=1e-8)


def test_when_a_process_dies_the_others_stop_within_a_minute_and_the_checkpoint_is_whole(tmp_path):
    statuses, seconds = run(
        tmp_path, 2, kind="vae", steps=100_000, batch_size=16, compile=False, dies=60,
        checkpoint=str(tmp_path / "checkpoint"), checkpoint_seconds=0.0,
    )  # fmt: skip
    assert statuses == [1, -signal.SIGKILL]
    assert seconds < 60
    said = (tmp_path / "error-0.txt").read_text()
    assert re.search(r"stopped at step \d+: another process of the group has died.*is whole", said)
    assert len(load(tmp_path / "checkpoint").history) > 20


def test_a_nan_is_named_by_every_process_wherever_its_datum_is(tmp_path):
    statuses, _ = run(tmp_path, 2, kind="nan", steps=400, batch_size=16, compile=False)
    assert statuses == [1, 1]
    said = [(tmp_path / f"error-{rank}.txt").read_text() for rank in (0, 1)]
    assert said[0] == said[1]
    assert re.search(r"stopped at step \d+, batch of data \[7, .*first at site 'z', for data \[7\]", said[0])


BY_RANK = {
    "lr": ([1e-3, 1e-2], "lr=0.01, and process 0 lr=0.001"),
    "seed": ([0, 1], "seed=1, and process 0 seed=0"),
    "batch_size": ([16, 8], "batch_size=8"),
    "steps": ([20, 30], "steps=30"),
    "size": ([70, 60], "(steps|data)="),
    "latent_dim": ([3, 4], r"model\.prior\.latent_dim=4"),
    "clip_norm": ([None, 1.0], "clip_norm=1.0"),
}


@pytest.mark.parametrize("name", ["lr", "size", *(pytest.param(n, marks=pytest.mark.slow) for n in list(BY_RANK)[1:4]),
                                  pytest.param("latent_dim", marks=pytest.mark.slow),
                                  pytest.param("clip_norm", marks=pytest.mark.slow)])  # fmt: skip
def test_processes_that_were_given_different_things_do_not_begin(tmp_path, name):
    values, message = BY_RANK[name]
    options = {"kind": "vae", "steps": 20, "batch_size": 16, "compile": False, "by_rank": {name: values}}
    if name == "steps":
        del options["steps"]
    statuses, _ = run(tmp_path, 2, **options)
    assert all(statuses)
    for rank in (0, 1):
        said = (tmp_path / f"error-{rank}.txt").read_text()
        assert re.search(rf"process 1 of the group was given .*{message}.*: give all the same", said)


def test_the_failure_of_one_is_told_to_all(tmp_path):
    options = {"kind": "vae", "steps": 20, "batch_size": 16, "compile": False}
    statuses, _ = run(tmp_path, 2, **options, by_rank={"lr": [-1.0, 1e-3]})
    assert all(statuses)
    said = [(tmp_path / f"error-{rank}.txt").read_text() for rank in (0, 1)]
    assert said[0] == "lr must be a finite number above 0, got -1.0"
    assert said[1] == f"process 0 of the group cannot go on: ValueError: {said[0]}"


def test_a_full_disk_of_one_is_told_to_all(tmp_path):
    options = {"kind": "vae", "steps": 100_000, "batch_size": 16, "compile": False, "full": 40, "folder": str(tmp_path),
               "checkpoint": str(tmp_path / "checkpoint"), "checkpoint_seconds": 0.0}  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", str(JOB), json.dumps(options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(JOB.parent), "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    said = [(tmp_path / f"error-{rank}.txt").read_text() for rank in (0, 1)]
    assert "No space left on device" in said[0]
    assert re.search(r"another process of the group has died or hangs \(process 0: .*No space left on device", said[1])
    assert len(load(tmp_path / "checkpoint").history) >= 9


@pytest.mark.slow
def test_the_command_line_runs_under_torchrun(tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "pyrovae"]
    command = ["fit", "--data", "Digits", "--data.binarise", "Static", "--epochs", "2", "--out", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, *command], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("saved in") == 1
    assert load(tmp_path / "run" / "fit").history["epoch"].max() == 1
