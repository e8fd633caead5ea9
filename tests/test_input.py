"""Bad input gets one sentence that names what was wrong, before any program is run."""

import functools
import inspect
import math
import threading
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import bits, make_oracle, make_vae, near_guide, seeded
from test_cli import refused

import pyrovae
from pyrovae import guides, models, nn, objectives
from pyrovae.app.commands import main

X = bits(24)
COUNTS = [0, -1, 1.5, math.nan, math.inf, "3", None, True, [3], np.float64(2.5)]
SIZES = [0, -1.0, math.nan, math.inf, "3", True, [3], 1 + 1j, np.float32("nan")]
SEEDS = [-1, 1.5, "3", None, True, 2**63]
CHOICES = ["nonsense", 3, None, [1]]
DEVICES = ["nonsense", "cuda:99", 3.5]
COUNTED, SIZED = ["0", "-1", "1.5", "nan", "x"], ["0", "-1", "nan", "inf", "x"]  # on the command line
QUIET = {"progress": False}


class Counting:
    """A program that counts its runs."""

    def __init__(self, program):
        self.program, self.runs = program, 0

    def __call__(self, *batch):
        self.runs += 1
        return self.program(*batch)


def mean(x):
    return x.mean(-1)


ASKED = {  # of each function: how it is called, and what may not be given
    "fit": (
        lambda f, m, g, **k: f(m, g, X, **{"steps": 2, "compile": False, **k}),
        {
            "steps": COUNTS, "batch_size": COUNTS, "patience": COUNTS, "lr": [*SIZES, None], "clip_norm": SIZES,
            "checkpoint_seconds": SIZES[1:], "seed": SEEDS, "compile": CHOICES, "precision": CHOICES, "device": DEVICES,
            "optimizer": [3, "adam", torch.optim.lr_scheduler.StepLR], "objective": [3, "elbo", objectives.BetaELBO],
            "validation_data": [X[:0], X[:3] * math.nan, "x"],
        },
    ),
    "evaluate": (
        lambda f, m, g, **k: f(m, g, X, **k),
        {"num_particles": COUNTS, "batch_size": COUNTS, "seed": SEEDS, "compile": CHOICES, "device": DEVICES},
    ),
    "ais": (
        lambda f, m, g, **k: f(m, X, **k),
        {"num_chains": COUNTS, "num_temperatures": COUNTS, "batch_size": COUNTS, "seed": SEEDS},
    ),
    "bdmc": (lambda f, m, g, **k: f(m, X, **k), {"num_chains": COUNTS, "num_temperatures": COUNTS}),
    "evidence": (
        lambda f, m, g, **k: f(m, g, X, **k),
        {"num_particles": COUNTS, "num_chains": COUNTS, "num_temperatures": COUNTS, "tolerance": SIZES},
    ),
    "hmc": (
        lambda f, m, g, **k: f(m, g, X, **k),
        {"num_warmup": COUNTS, "num_draws": COUNTS, "num_chains": COUNTS, "seed": SEEDS},
    ),
    "gaps": (
        lambda f, m, g, **k: f(m, g, X, **{"log_evidence": (torch.zeros(24), torch.zeros(24)), **k}),
        {"num_steps": COUNTS, "num_particles": COUNTS, "seed": SEEDS},
    ),
    "to_arviz": (
        lambda f, m, g, **k: f(m, g, X, **k),
        {"num_draws": COUNTS, "num_particles": COUNTS, "batch_size": COUNTS, "seed": SEEDS},
    ),
    "sbc": (
        lambda f, m, g, **k: f(m, g, X, **k),
        {"num_simulations": COUNTS, "num_draws": COUNTS, "batch_size": COUNTS, "seed": SEEDS},
    ),
    "simulate": (lambda f, m, g, **k: f(m, X, **k), {"num_simulations": COUNTS, "seed": SEEDS}),
    "pit": (lambda f, m, g, **k: f(m, X, **k), {"num_draws": COUNTS, "seed": SEEDS}),
    "usage": (lambda f, m, g, **k: f(m, g, X, **k), {"num_draws": COUNTS, "batch_size": COUNTS, "seed": SEEDS}),
    "aggregate": (lambda f, m, g, **k: f(m, g, X, **k), {"num_draws": COUNTS, "batch_size": COUNTS, "seed": SEEDS}),
    "codes": (lambda f, m, g, **k: f(m, g, X, **k), {"batch_size": COUNTS, "seed": SEEDS}),
    "prior_test": (lambda f, m, g, **k: f(m, g, X, **k), {"num_permutations": COUNTS, "seed": SEEDS}),
    "sample_quality": (lambda f, m, g, **k: f(m, X, **k), {"neighbours": COUNTS, "seed": SEEDS}),
    "prior_predictive_check": (
        lambda f, m, g, **k: f(m, g, X, {"mean": mean}, **k), {"num_sets": COUNTS, "seed": SEEDS},
    ),
    "posterior_predictive_check": (
        lambda f, m, g, **k: f(m, g, X, {"mean": mean}, **k), {"num_sets": COUNTS, "seed": SEEDS},
    ),
    "posterior": (
        lambda f, m, g, **k: f(m, g, X, **k),
        {"num_draws": COUNTS, "most_particles": COUNTS, "num_chains": COUNTS, "num_warmup": COUNTS, "seed": SEEDS},
    ),
    "sample": (lambda f, m, g, **k: f(m, **{"num": 3, **k}), {"num": COUNTS, "seed": SEEDS}),
    "decode": (
        lambda f, m, g, **k: f(m, {"z": torch.zeros(3, 2)}, **k), {"num_draws": COUNTS, "seed": SEEDS},
    ),
    "reconstruct": (lambda f, m, g, **k: f(m, g, X, **k), {"num_draws": COUNTS, "seed": SEEDS}),
    "interpolate": (lambda f, m, g, **k: f(m, g, X, X, **k), {"num": COUNTS, "num_draws": COUNTS, "seed": SEEDS}),
    "traverse": (lambda f, m, g, **k: f(m, g, X, 0, [0.0], **k), {"num_draws": COUNTS, "seed": SEEDS}),
    "impute": (lambda f, m, g, **k: f(m, g, X, **k), {"num_imputations": COUNTS, "seed": SEEDS}),
    "anomaly": (
        lambda f, m, g, **k: f(m, g, X, X, **k), {"num_particles": COUNTS, "batch_size": COUNTS, "seed": SEEDS},
    ),
    "cluster": (
        lambda f, m, g, **k: f(m, g, X, **{"num_clusters": 2, **k}),
        {"num_clusters": COUNTS, "num_draws": COUNTS, "seed": SEEDS},
    ),
    "neighbours": (lambda f, m, g, **k: f(m, g, X, **k), {"num": COUNTS, "num_draws": COUNTS, "seed": SEEDS}),
    "project": (lambda f, m, g, **k: f(m, g, X, **k), {"num_draws": COUNTS, "batch_size": COUNTS, "seed": SEEDS}),
    "augment": (lambda f, m, g, **k: f(m, g, X, **k), {"num": COUNTS, "per_class": COUNTS, "seed": SEEDS}),
    "sensitivity": (lambda f, m, g, **k: f(m, g, X, **k), {"num_particles": COUNTS, "threshold": SIZES, "seed": SEEDS}),
    "reprior": (
        lambda f, m, g, **k: f(m, g, X, pyrovae.priors.StandardNormal(3), **k),
        {"num_particles": COUNTS, "seed": SEEDS},
    ),
    "lc2st": (
        lambda f, m, g, **k: f(m, g, X, **k),
        {"num_simulations": COUNTS, "num_draws": COUNTS, "num_permutations": COUNTS, "seed": SEEDS},
    ),
    "recovery": (
        lambda f, m, g, **k: f(m, g, X, **k), {"num_simulations": COUNTS, "num_draws": COUNTS, "seed": SEEDS},
    ),
    "misspecification": (
        lambda f, m, g, **k: f(m, g, X, **k),
        {"num_simulations": COUNTS, "num_permutations": COUNTS, "num_particles": COUNTS, "max_data": COUNTS},
    ),
    "prior_gain": (
        lambda f, m, g, **k: f(m, g, X, **k),
        {"num_folds": COUNTS, "steps": COUNTS, "num_particles": COUNTS, "max_data": COUNTS, "seed": SEEDS},
    ),
    "elicit": (
        lambda f, m, g, **k: f(m, [pyrovae.Quantiles("z", lambda v: v["z"][:, 0], {0.5: 1.0})], **k),
        {"num_draws": COUNTS, "steps": COUNTS, "num_check": COUNTS, "seed": SEEDS},
    ),
    "compress": (lambda f, m, g, **k: f(m, g, X, **k), {"bits": COUNTS, "seed": SEEDS}),
}  # fmt: skip
CASES = [
    (name, option, value)
    for name, (_, options) in ASKED.items()
    for option, values in options.items()
    for value in values
    if not (value is None and inspect.signature(getattr(pyrovae, name)).parameters[option].default is None)
]


def test_there_are_some_four_hundred():
    assert len(CASES) > 400


@pytest.mark.parametrize(("name", "option", "value"), CASES)
def test_bad_numbers_are_refused_by_name_before_any_work(name, option, value):
    call, _ = ASKED[name]
    model, guide = map(Counting, make_vae())
    if name == "fit" and option == "patience":
        call = functools.partial(call, validation_data=X)
    with pytest.raises(ValueError, match=option) as refusal:
        call(getattr(pyrovae, name), model, guide, **QUIET, **{option: value})
    assert len(str(refusal.value).splitlines()) == 1
    assert (model.runs, guide.runs) == (0, 0)


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_numbers_of_numpy_are_numbers(kind):
    model, guide = make_vae()
    plain = pyrovae.fit(model, guide, X, steps=3, batch_size=8, lr=0.01, seed=2, compile=False, **QUIET)
    fitted = pyrovae.fit(
        *make_vae(), X, steps=kind(3), batch_size=kind(8), lr=np.float64(0.01), seed=kind(2), compile=False, **QUIET
    )
    assert fitted.history["loss"].equals(plain.history["loss"])
    one, other = (pyrovae.evaluate(model, guide, X, num_particles=n, seed=n, **QUIET) for n in (5, kind(5)))
    assert torch.equal(one.elbo, other.elbo)


def width_of_latents():
    model, _ = make_vae(latent_dim=5)
    return model, make_vae()[1]


WIDTHS = {
    "encoder": (lambda: (*make_vae(), bits(9, 5)), "its 'encoder.layers.0' expects 12 columns, got 5"),
    "decoder": (lambda: (*width_of_latents(), X), "its 'decoder.layers.0' expects 5 columns, got 3"),
    "data": (
        lambda: (make_vae(data_dim=7)[0], make_vae()[1], X),
        r"data of \(12,\) columns.* a distribution of \(7,\)",
    ),
}


@pytest.mark.parametrize("name", WIDTHS)
@pytest.mark.parametrize("ask", [pyrovae.fit, pyrovae.evaluate, pyrovae.to_arviz])
def test_widths_that_do_not_match_are_said_in_columns(name, ask):
    make, message = WIDTHS[name]
    with pytest.raises(ValueError, match=message) as refusal:
        ask(*make(), **QUIET)
    assert "Trace Shapes" not in str(refusal.value)


def test_latents_of_other_widths():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).expand([len(x), 12]).to_event(1), obs=x)

    with pytest.raises(
        ValueError, match="'z' has 4 columns in the model but 3 in the guide: give both the same number"
    ):
        pyrovae.fit(model, make_vae()[1], X, steps=1, **QUIET)


def test_a_mass_is_no_density():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[:, None], 1.0).expand([len(x), 12]).to_event(1), obs=x)

    def guide(x):
        rate = pyro.param("rate", torch.tensor(0.5), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Poisson(rate.expand(len(x))), infer={"is_auxiliary": False})

    for ask in (pyrovae.evaluate, functools.partial(pyrovae.fit, steps=2)):
        with pytest.raises(ValueError, match="'z' is continuous in the model and discrete in the guide"):
            ask(model, guide, X, **QUIET)


def shared(plate):
    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", *plate(x)):
            pyro.sample("x", dist.Normal(w, 1.0).expand([len(x), 1]).to_event(1), obs=x)

    def guide(x):
        loc, scale = pyro.param("loc", torch.tensor(0.0)), pyro.param("scale", torch.tensor(0.3))
        with pyro.plate("data", *plate(x)):
            pass
        pyro.sample("w", dist.Normal(loc, scale.abs() + 1e-6))

    return model, guide


def test_a_part_of_the_data_does_not_stand_for_all_unless_the_plate_says_so():
    """With 1,000 data of unit noise the posterior's standard deviation is 0.0316, whatever the size of a batch."""
    x = seeded(lambda: torch.randn(1000, 1) + 1)
    options = {"steps": 2000, "lr": lambda step: 0.01 * 0.998**step, "compile": False, **QUIET}
    with pytest.raises(
        ValueError, match=r"'w' is shared by all 1000 data, and the data plate is as long as a batch: write"
    ):
        pyrovae.fit(*shared(lambda x: (len(x),)), x, batch_size=100, **options)
    for size, plate in ((1000, lambda x: (len(x),)), (100, lambda x: (1000, len(x)))):
        fitted = pyrovae.fit(*shared(plate), x, batch_size=size, **options)
        scale = float(fitted.model.store["params"]["scale"].detach().abs())
        assert 0.02 < scale < 0.05, size


@pytest.mark.parametrize("offset", [0.0, 1e7])
def test_weights_that_rounding_decides_are_not_trusted(offset):
    """A guide of half the scale is seen through in float64, and behind a large constant in float32 no more."""
    model, x = make_oracle(2, 5, 40)
    guide = near_guide(model, 0.5)

    def shifted(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            far = x.new_full((len(x), 1), math.sqrt(2 * offset))  # whose log density is a constant
            loc = torch.cat([z @ model.weight.T + model.bias, 0 * far], -1)
            scale = torch.cat([model.scale.expand_as(x), 1 + 0 * far], -1)
            pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=torch.cat([x, far], -1))

    exact = pyrovae.evaluate(shifted, guide, x, num_particles=1000, **QUIET)
    model.float()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        rounded = pyrovae.evaluate(shifted, guide, x.float(), num_particles=1000, **QUIET)
    share = float((~exact.reliable).double().mean())
    assert share > 0.5
    assert float((~rounded.reliable).double().mean()) >= share - 0.1
    assert any("which float32 keeps to within" in str(w.message) for w in said) == (offset > 0)


def test_two_threads_come_to_what_each_comes_to_alone():
    def work(pair, seed):
        fitted = pyrovae.fit(*pair, X, steps=60, seed=seed, compile=False, **QUIET)
        return fitted.history["loss"].tolist(), pyrovae.evaluate(*pair, X, num_particles=9, **QUIET).elbo

    alone, beside = [work(make_vae(seed=seed), seed) for seed in (0, 1)], {}
    pairs = [make_vae(seed=seed) for seed in (0, 1)]
    threads = [threading.Thread(target=lambda s=seed: beside.update({s: work(pairs[s], s)})) for seed in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in (0, 1):
        assert beside[seed][0] == alone[seed][0]
        assert torch.equal(beside[seed][1], alone[seed][1])


@pytest.mark.parametrize("compile", [False, True])
def test_a_fit_that_ends_far_above_its_start_has_diverged(compile):
    model, guide = seeded(lambda: (models.LinearGaussian(2, 5), guides.MeanField(nn.MLP(5, 8), 2)))
    x = seeded(lambda: torch.randn(64, 5))
    with pytest.warns(UserWarning, match=r"the fit diverged: its loss was .* lower the learning rate"):
        fitted = pyrovae.fit(model, guide, x, steps=120, lr=10.0, compile=compile, **QUIET)
    assert fitted.stopped == "diverged"


@pytest.mark.parametrize("bad", [-1e-3, math.nan, math.inf])
def test_a_schedule_that_gives_no_learning_rate(bad):
    with pytest.raises(pyrovae.FitError, match=r"stopped at step 5.*the learning rate's schedule gives"):
        pyrovae.fit(*make_vae(), X, steps=9, lr=lambda step: 1e-3 if step < 5 else bad, compile=False, **QUIET)
    for lr in (lambda step: -1.0, lambda step: "x", lambda: 1.0):
        with pytest.raises(ValueError, match="lr"):
            pyrovae.fit(*make_vae(), X, steps=9, lr=lr, **QUIET)


OPTIONS = {
    "fit": {
        "epochs": COUNTED, "batch_size": COUNTED, "patience": COUNTED, "lr": SIZED, "clip_norm": SIZED,
        "checkpoint_seconds": ["-1", "nan", "x"], "seed": ["-1", "1.5", "x"], "latent_dim": COUNTED,
        "features": COUNTED,
        "precision": ["half", "16"], "compile": ["maybe", "3"], "device": ["gpu", "cuda:99"],
        "guide": ["NoGuide", "Bernoulli"],
        "objective": ["NoELBO", "MeanField"], "prior": ["NoPrior", "3"], "likelihood": ["NoLikelihood", "MLP"],
        "encoder.hidden": ["[0]", "[-3]", "5.5", "x"], "resume": ["maybe"], "nonsense": ["3"],
    },
    "compare": {
        "num_particles": COUNTED, "num_draws": COUNTED, "max_arviz_data": COUNTED, "num_seeds": COUNTED,
        "gaps_of": ["-1", "x"],
        "latents_of": ["-1", "x"], "simulations": ["-1", "1", "x"], "seed": ["-1", "x"],
        "guides": ["{}", "3", '{"a": "NoGuide"}'],
        "objectives": ["{}", "x"], "compile": ["maybe", '{"nobody": true}'],
    },
    "evaluate": {
        "num_particles": COUNTED, "batch_size": COUNTED, "num_draws": COUNTED, "seed": ["-1", "x"], "device": ["gpu"],
        "compile": ["maybe"],
    },
}  # fmt: skip
OF_COMMANDS = [
    (c, option, value) for c, options in OPTIONS.items() for option, values in options.items() for value in values
]


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "run"
    arguments = [
        "--data",
        "Digits",
        "--data.binarise",
        "Static",
        "--epochs",
        "1",
        "--progress",
        "false",
        "--out",
        str(folder),
    ]
    assert main(["fit", *arguments]) == 0
    return folder


@pytest.mark.parametrize(("command", "option", "value"), OF_COMMANDS)
def test_bad_options_are_refused_by_the_command_line(tmp_path, saved_run, capsys, command, option, value):
    start = [str(saved_run)] if command == "evaluate" else ["--data", "Digits", "--data.binarise", "Static"]
    start += [] if command == "evaluate" else ["--out", str(tmp_path / "run")]
    said = refused(capsys, command, *start, "--progress", "false", f"--{option}", value)
    assert option.split(".")[-1] in said or value in said
    assert not list(tmp_path.glob("run/*/fit.json"))
