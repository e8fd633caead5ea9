"""Fits that every earlier version has saved load for ever, and checkpoints resume to the bit."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import pyrovae
from pyrovae import guides, likelihoods, models, nn, priors
from pyrovae.training import storage
from pyrovae.training.migrations import FORMAT, migrated

SAVED = Path(__file__).parent / "saved"
X = torch.randint(17, (40, 6), generator=torch.Generator().manual_seed(0)) / 16
OPTIONS = {"batch_size": 20, "lr": 1e-2, "seed": 0, "compile": False, "device": "cpu", "progress": False}


def pair():
    """Return a model and a guide as the saved ones started."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        decoder = nn.MLP(2, 6, hidden=(4,))
        model = models.VAE(prior=priors.StandardNormal(2), decoder=decoder, likelihood=likelihoods.Gaussian())
        return model, guides.Flow(nn.MLP(6, 4, hidden=(4,)), 2, num_steps=2, hidden=(4,), context_dim=2)


def check(fitted, expected):
    assert fitted.history["loss"].tolist() == pytest.approx(expected["loss"], rel=1e-6)
    for role in ("model", "guide"):
        parameters = dict(getattr(fitted, role).named_parameters())
        assert parameters.keys() == expected[role].keys()
        for name, value in parameters.items():
            known = expected[role][name]
            first = value.flatten()[: len(known["first"])].tolist()
            assert [value.double().mean().item(), *first] == pytest.approx([known["mean"], *known["first"]], rel=1e-5)
    weights = pyrovae.log_weights(fitted.model, fitted.guide, X[:4], num_particles=3, seed=0, progress=False)
    torch.testing.assert_close(weights.double(), torch.tensor(expected["log_weights"]).double(), rtol=1e-5, atol=1e-5)


def expected(name):
    return json.loads((SAVED / f"{name}.json").read_text())


@pytest.mark.parametrize("name", ["format-1", "format-2", "format-2-checkpoint"])
def test_a_fit_of_every_format_loads(name):
    check(pyrovae.load(SAVED / name), expected(name))


def test_a_checkpoint_of_an_older_format_resumes(tmp_path):
    folder = shutil.copytree(SAVED / "format-2-checkpoint", tmp_path / "fit")
    fitted = pyrovae.fit(*pair(), X, steps=6, checkpoint=folder, resume=True, **OPTIONS)
    check(fitted, expected("format-2-checkpoint")["after six steps"])
    assert json.loads((folder / "fit.json").read_text())["format"] == FORMAT


def test_saved_fits_name_public_classes(tmp_path):
    fitted = pyrovae.fit(*pair(), X, steps=1, **OPTIONS)
    fitted.save(tmp_path)
    document = json.loads((tmp_path / "fit.json").read_text())
    assert document["guide"]["configuration"]["class"] == "pyrovae.guides.Flow"
    assert document["model"]["configuration"]["arguments"]["prior"]["class"] == "pyrovae.priors.StandardNormal"


def test_every_step_ends_in_the_format_of_today():
    named = {"class": "pyrovae.guides.flow.Flow", "arguments": {"encoder": {"class": "nn.MLP", "arguments": {}}}}
    resume = {"settings": {"seed": 0}, "progress": []}
    found = migrated({"format": 1, "guide": {"configuration": named}, "resume": resume})
    assert found["format"] == FORMAT
    assert found["guide"]["configuration"]["class"] == "pyrovae.guides.Flow"
    assert found["guide"]["configuration"]["arguments"]["encoder"]["class"] == "pyrovae.nn.MLP"
    assert found["resume"] == {"progress": []}
    assert storage.read(SAVED / "format-1")[1]["format"] == FORMAT
