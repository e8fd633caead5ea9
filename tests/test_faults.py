"""What happens to a fit happens without loss: kills, full disks, vanishing folders, numbers that explode."""

import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from conftest import Watched, bits, make_vae, planted, seeded

from pyrovae import fit, load, objectives
from pyrovae.saving import files
from pyrovae.training import FitError, storage

JOB = Path(__file__).parent / "killed_job.py"


@pytest.mark.parametrize(
    ("kills", "compile"),
    [
        (4, "eager"),
        pytest.param(20, "eager", marks=pytest.mark.slow),
        pytest.param(20, "compile", marks=pytest.mark.slow),
    ],
)
def test_a_fit_killed_at_random_moments_comes_to_the_bit_identical_end(tmp_path, kills, compile):
    seed = random.SystemRandom().randrange(10**6)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, str(JOB), str(tmp_path), str(kills), str(seed), compile]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=900)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    pd.testing.assert_frame_equal(*(pd.read_csv(f / "history.csv") for f in (whole, killed)), check_exact=True)
    for p, q in zip(*(torch.load(f / "params.pt") for f in (whole, killed)), strict=True):
        assert p.equal(q)


def test_a_second_network_resumes_to_the_bit_in_its_buffers_too(tmp_path):
    def objective():
        layers = [torch.nn.utils.spectral_norm(torch.nn.Linear(3, 8)), torch.nn.ReLU(), torch.nn.Linear(8, 1)]
        return objectives.FactorVAE(torch.nn.Sequential(*layers))

    options = {"batch_size": 16, "compile": False, "progress": False, "checkpoint_seconds": 0.0}
    for name, parts in (("whole", (20,)), ("resumed", (7, 13, 20))):
        for steps in parts:
            made = seeded(objective)
            fit(*make_vae(), bits(50), steps=steps, objective=made, checkpoint=tmp_path / name, resume=True, **options)
    one, other = (storage.read(tmp_path / name)[0] for name in ("whole", "resumed"))
    found = [key for key in one if key.startswith("objective/")]
    assert any(key.endswith("weight_u") for key in found)
    assert all(torch.equal(one[key], other[key]) for key in found)


def test_a_full_disk_stops_the_fit_in_a_sentence_and_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    write, calls = files.os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 12:  # of a file and of its folder, for two files in each of three saves
            raise OSError(28, "No space left on device")
        write(descriptor)

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(FitError, match=r"stopped at step 4: cannot save .*No space left.*is kept") as caught:
        fit(*make_vae(), bits(30), steps=9, checkpoint=tmp_path, checkpoint_seconds=0.0, compile=False, progress=False)
    assert len(caught.value.fit.history) == 4
    assert len(load(tmp_path).history) == 3


def test_a_folder_that_vanishes_is_made_again(tmp_path):
    folder = tmp_path / "checkpoint"
    model, guide = make_vae()
    calls = []

    def vanishing(x):
        calls.append(1)
        if len(calls) == 12:
            shutil.rmtree(folder)
        return model(x)

    fit(vanishing, guide, bits(30), steps=20, checkpoint=folder, checkpoint_seconds=0.0, compile=False, progress=False)
    assert len(load(folder, model=lambda x: model(x), guide=guide).history) == 20


@pytest.mark.parametrize("compile", [False, True])
def test_a_nan_in_the_thousandth_batch_is_reported_with_step_site_and_datum(tmp_path, compile):
    with pytest.raises(FitError, match=r"first at site 'z', for data \[7\]") as caught:
        fit(
            *make_vae(),
            planted(bits(32), 1000),
            steps=1500,
            batch_size=32,
            compile=compile,
            checkpoint=tmp_path,
            progress=False,
        )
    error = caught.value
    assert 990 < error.step <= 1000
    assert (error.site, error.indices[0]) == ("z", 7)
    for fitted in (error.fit, load(tmp_path)):
        assert len(fitted.history) == error.step
        assert all(bool(p.isfinite().all()) for m in (fitted.model, fitted.guide) for p in m.parameters())


class Impossible(torch.nn.Module):
    """Gives counts no probability that a float can hold."""

    def forward(self, features):
        rate = (-1e4 * features.abs()).exp()
        return dist.Poisson(rate).to_event(1)


@pytest.mark.parametrize("compile", [False, True])
def test_a_likelihood_that_underflows_is_reported(compile):
    model, guide = make_vae()
    model.likelihood = Impossible()
    with pytest.raises(
        FitError, match=r"stopped at step 0.*the loss is (nan|inf), first at site 'x', for data \["
    ) as caught:
        fit(model, guide, 50 * bits(40), steps=50, batch_size=40, compile=compile, progress=False)
    assert caught.value.site == "x"


@pytest.mark.parametrize("compile", [False, True])
def test_a_learning_rate_that_explodes_is_stopped_in_a_finite_state(tmp_path, compile):
    options = {"steps": 200, "batch_size": 30, "lr": 1e30, "optimizer": torch.optim.SGD, "checkpoint": tmp_path}
    with pytest.raises(FitError, match=r"stopped at step \d+, batch of data \[") as caught:
        fit(*make_vae(), bits(30), compile=compile, progress=False, **options)
    for fitted in (caught.value.fit, load(tmp_path)):
        assert all(bool(p.isfinite().all()) for m in (fitted.model, fitted.guide) for p in m.parameters())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("steps", [3_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_a_long_fit_does_not_grow_in_memory(steps):
    """Beyond its history, of ten numbers a step."""
    memory = []

    def measured(_, x):
        memory.append(1024 * int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]))
        return x

    x = Watched(bits(64), measured)
    fit(*make_vae(), x, steps=steps, batch_size=64, compile=steps > 50_000, progress=False)
    start, end = memory[len(memory) // 4], memory[-1]
    print(f"{steps} steps: {start / 1e6:.1f} MB after a quarter, {end / 1e6:.1f} MB at the end")
    assert end - start < 4e6 + 3 * 80 * steps
