import copy
import functools
import json
import math
import os
import re
import signal
import threading

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import SIGMAS, bits, make_oracle, make_vae, seeded
from pyro import poutine
from pyro.infer import (
    SVI,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTMC_ELBO,
)
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from safetensors.torch import load_file

from pyrovae import FitError, FitInterrupted, evaluate, fit, guides, likelihoods, load, models, nn, objectives, priors
from pyrovae.data import as_data
from pyrovae.programs.pair import Pair
from pyrovae.programs.state import State
from pyrovae.saving import files
from pyrovae.training import storage
from pyrovae.training.gradients import Gradients
from pyrovae.training.parameters import find_params


def quick(model, guide, data, **options):
    return fit(model, guide, data, **{"steps": 20, "compile": False, "progress": False, **options})


def state(fitted):
    pair = Pair(fitted.model, fitted.guide)
    return {f"{name}/{key}": v.clone() for name, m in pair.modules.items() for key, v in m.state_dict().items()}


def same(one, other):
    return set(one) == set(other) and all(
        torch.equal(one[key].nan_to_num(0.5), other[key].nan_to_num(0.5)) for key in one
    )


def without_time(history):
    return history.drop(columns="seconds")


def test_the_gradient_is_that_of_the_closed_form_in_expectation():
    """Of the ELBO of a mean-field guide on the oracle, by the reparametrised estimator of Trace_ELBO."""
    model, x = make_oracle(2, 5, 20)
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        torch.manual_seed(1)
        guide = guides.MeanField(nn.MLP(5, 2, hidden=()), 2).double()
        pair = Pair(model, guide)
        layout, _, _ = pair.read((x,))
        params, _ = find_params(pair, as_data(x), layout)
        q = guide.posterior(x).base_dist
        exact = torch.autograd.grad(-model.elbo(x, q.loc, q.scale.square().diag_embed()).sum(), list(params.values()))
        draws = {key: [] for key in params}
        gradients = Gradients(pair, layout, Trace_ELBO(), params, State(pair.modules.values(), {}, {}))
        for _ in range(800):
            _, *found = gradients.measure((x, torch.arange(len(x))))
            for key, grad in zip(params, found, strict=True):
                draws[key].append(grad)
    for (key, values), closed in zip(draws.items(), exact, strict=True):
        stacked = torch.stack(values)
        error = stacked.std(0) / math.sqrt(len(values)) + 1e-9
        # 34 comparisons at 5 standard errors: below 2e-5
        assert float(((stacked.mean(0) - closed) / error).abs().max()) < SIGMAS + 1, key


def test_the_oracle_is_learned():
    """Fitting W, b and s by SVI reaches the maximum likelihood, here that of the sample's covariance."""
    _, x = make_oracle(2, 5, 400)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = models.LinearGaussian(2, 5).double()
        guide = guides.FullRank(nn.MLP(5, 8, hidden=()), 2).double()
    quick(model, guide, x, epochs=300, steps=None, batch_size=100, lr=lambda step: 2e-2 / (1 + step / 200))
    centred = x - x.mean(0)
    eigenvalues = torch.linalg.eigvalsh(centred.T @ centred / len(x)).flip(0)
    noise = eigenvalues[2:].mean()
    log_det = eigenvalues[:2].log().sum() + 3 * noise.log()
    best = -0.5 * (5 * math.log(2 * math.pi) + log_det + 5)  # Tipping and Bishop, equation 8
    reached = float(model.log_evidence(x).mean().detach())
    assert best - 0.02 < reached <= best + 1e-9


def test_history_has_a_row_a_step_in_nats_per_datum():
    model, guide = make_vae()
    x = bits(50)
    fitted = quick(model, guide, x, epochs=3, steps=None, batch_size=20, validation_data=bits(10, seed=1))
    h = fitted.history
    assert list(h["step"]) == list(range(9))
    assert list(h["epoch"]) == [0] * 3 + [1] * 3 + [2] * 3
    assert h["validation_bound"].notna().tolist() == [False, False, True] * 3
    np.testing.assert_allclose(h["loss"], -h["bound"], rtol=1e-5)
    np.testing.assert_allclose(h["bound"], h["reconstruction"] - h["kl"], rtol=1e-5)
    assert (h["bound"].between(-30, 0)).all()
    assert h["seconds"].is_monotonic_increasing
    assert (h["lr"] == 1e-3).all()


@pytest.mark.parametrize(
    "options", [{"subsample_size": True}, {"subsample_size": True, "exactly": True}, {"scale": 0.1}]
)
def test_the_bound_has_no_scale_and_the_loss_has_them(options):
    model, guide = make_vae()
    full = 40 if options.get("exactly") else 1000

    def plate(x):
        return (
            pyro.plate("data", full, subsample_size=len(x))
            if "subsample_size" in options
            else pyro.plate("data", len(x))
        )

    def generative(x):
        pyro.module("model", model)
        with plate(x):
            with poutine.scale(scale=options.get("scale", 1.0)):
                z = pyro.sample("z", model.prior())
            pyro.sample("x", model.likelihood(model.decoder(z)), obs=x)

    def recognition(x):
        pyro.module("guide", guide)
        with plate(x), poutine.scale(scale=options.get("scale", 1.0)):
            pyro.sample("z", guide.posterior(x))

    x = bits(40)
    h = quick(generative, recognition, x, steps=30, batch_size=16).history
    np.testing.assert_allclose(h["bound"], h["reconstruction"] - h["kl"], rtol=1e-5)
    weight = options.get("scale", 1.0)
    np.testing.assert_allclose(-h["loss"], h["reconstruction"] - weight * h["kl"], rtol=1e-4)


def test_enumerated_latents_are_fitted_with_traceenum():
    def model(x):
        locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(2) / 2), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(locs[k], 0.5), obs=x)

    def guide(x):
        pass

    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([-2.0, 3.0])[torch.randint(2, (300,), generator=generator)]
    x = centres + 0.5 * torch.randn(300, generator=generator)
    fitted = quick(model, guide, x, steps=400, batch_size=100, lr=0.02, objective=TraceEnum_ELBO(), validation_data=x)
    found = fitted.model.store["params"]["locs"].detach().sort().values
    torch.testing.assert_close(found, torch.tensor([-2.0, 3.0]), atol=0.15, rtol=0)
    mixture = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(found, 0.5))
    assert fitted.history["validation_bound"].iloc[-1] == pytest.approx(float(mixture.log_prob(x).mean()), abs=0.05)
    evidence = evaluate(fitted.model, fitted.guide, x, num_particles=1, progress=False).log_evidence
    torch.testing.assert_close(evidence, mixture.log_prob(x), atol=1e-5, rtol=1e-5, check_dtype=False)


WEIGHTS, CENTRES = torch.tensor([0.3, 0.7]), torch.tensor([-2.0, 1.0])


def mixture(**marks):
    """A mixture of two Gaussians, its assignments left to the objective, and 50 data."""

    def model(x):
        locs = pyro.param("locs", CENTRES.clone())
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(WEIGHTS), infer=marks)
            pyro.sample("x", dist.Normal(locs[k], 1.0), obs=x)

    return model, lambda x: None, 1.5 * torch.randn(50, generator=torch.Generator().manual_seed(0))


def of_mixture(x):
    """Return its densities by component ``[50, 2]``."""
    return WEIGHTS.log() + dist.Normal(CENTRES, 1.0).log_prob(x[:, None])


@pytest.mark.parametrize("objective", [TraceEnum_ELBO, JitTraceEnum_ELBO])
def test_the_loss_of_what_is_summed_out_is_the_evidence(objective):
    model, guide, x = mixture(enumerate="parallel")
    h = quick(model, guide, x, steps=1, objective=objective()).history
    assert h["loss"][0] == pytest.approx(-float(of_mixture(x).logsumexp(1).mean()), abs=1e-6)


def test_the_loss_of_several_draws_is_their_bound():
    """1,000 draws per observation: the bias is half the relative variance of their mean; fails once in 16,000."""
    model, guide, x = mixture(enumerate="parallel", num_samples=1000)
    h = quick(model, guide, x, steps=1, objective=TraceTMC_ELBO()).history
    joint = of_mixture(x)
    variance = ((2 * joint - WEIGHTS.log()).logsumexp(1) - 2 * joint.logsumexp(1)).expm1() / 1000
    expected = float((variance / 2 - joint.logsumexp(1)).mean())
    assert h["loss"][0] == pytest.approx(expected, abs=SIGMAS * float(variance.sum().sqrt()) / len(x))


UNGUIDED = {
    "Trace_ELBO": ({"enumerate": "parallel"}, None, "Trace_ELBO does not do: use objective=TraceEnum_ELBO()"),
    "TraceMeanField_ELBO": ({"enumerate": "parallel"}, TraceMeanField_ELBO(), "use objective=TraceEnum_ELBO()"),
    "TraceGraph_ELBO": ({"enumerate": "parallel"}, TraceGraph_ELBO(), "use objective=TraceEnum_ELBO()"),
    "RenyiELBO": ({"enumerate": "parallel"}, RenyiELBO(), "use objective=TraceEnum_ELBO()"),
    "IWAE": ({"enumerate": "parallel"}, objectives.IWAE(), "use objective=TraceEnum_ELBO()"),
    "TraceTMC_ELBO": ({"enumerate": "parallel"}, TraceTMC_ELBO(), "use objective=TraceEnum_ELBO()"),
    "draws": ({"enumerate": "parallel", "num_samples": 5}, TraceEnum_ELBO(), "use objective=TraceTMC_ELBO()"),
    "sequential": ({"enumerate": "sequential"}, TraceEnum_ELBO(), "is not sampled by the guide: sample it"),
    "unmarked": ({}, TraceEnum_ELBO(), "is not sampled by the guide: sample it"),
}


@pytest.mark.parametrize(("marks", "objective", "message"), UNGUIDED.values(), ids=UNGUIDED)
def test_an_objective_that_does_not_sum_out_is_refused(marks, objective, message):
    model, guide, x = mixture(**marks)
    with pytest.raises(ValueError, match=r"^latent site 'k' of the model .*" + re.escape(message)):
        quick(model, guide, x, objective=objective)


@pytest.mark.parametrize("settings", [{}, {"num_particles": 3}, {"num_particles": 3, "vectorize_particles": True}])
@pytest.mark.parametrize(
    ("jitted", "plain"),
    [
        (JitTrace_ELBO, Trace_ELBO),
        (JitTraceEnum_ELBO, TraceEnum_ELBO),
        (JitTraceGraph_ELBO, TraceGraph_ELBO),
        (JitTraceMeanField_ELBO, TraceMeanField_ELBO),
    ],
)
def test_a_jitted_objective_runs_as_what_it_jits(jitted, plain, settings):
    options = {"steps": 5, "batch_size": 20, "compile": False}  # batches of 20 and of 10
    settings = {**settings, "max_plate_nesting": 1, "strict_enumeration_warning": False, "retain_graph": False}
    objective = jitted(**settings, ignore_jit_warnings=True)
    one = quick(*make_vae(), bits(30), objective=objective, **options)
    other = quick(*make_vae(), bits(30), objective=plain(**settings), **options)
    assert without_time(one.history).equals(without_time(other.history))
    assert one.compiled == f"{jitted.__name__} runs as {plain.__name__}, since a fit compiles its steps itself"
    assert other.compiled == ""


def test_a_jitted_objective_runs_under_a_pyro_optimizer():
    histories = [
        quick(*make_vae(), bits(30), steps=4, objective=objective, optimizer=pyro.optim.Adam({"lr": 1e-2})).history
        for objective in (JitTrace_ELBO(), Trace_ELBO())
    ]
    assert without_time(histories[0]).equals(without_time(histories[1]))


def test_a_subclass_of_a_jitted_objective_is_refused():
    class Own(JitTrace_ELBO):
        pass

    with pytest.raises(ValueError, match=r"Own is a subclass of JitTrace_ELBO, .*: make it one of Trace_ELBO"):
        quick(*make_vae(), bits(5), objective=Own())


def test_patience_goes_back_to_the_best_state():
    model, guide = make_vae()
    x, held_out = bits(20), bits(30, seed=5)
    fitted = quick(model, guide, x, epochs=400, steps=None, lr=2e-2, validation_data=held_out, patience=5)
    assert fitted.stopped == "patience"
    bounds = fitted.history["validation_bound"].dropna()
    assert len(bounds) < 400
    assert len(bounds) - 1 - int(bounds.reset_index(drop=True).idxmax()) == 5
    again = quick(*make_vae(), x, epochs=int(bounds.reset_index(drop=True).idxmax()) + 1, steps=None, lr=2e-2)
    assert same(state(fitted), state(again))


def test_learning_rate_schedule_and_clipping():
    model, guide = make_vae()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fitted = quick(
        model, guide, bits(30), steps=4, lr=lambda step: 0.5 / (step + 1), optimizer=torch.optim.SGD, clip_norm=1e-6
    )
    np.testing.assert_allclose(fitted.history["lr"], [0.5, 0.25, 0.5 / 3, 0.125])
    moved = max(float((v - before[k]).abs().max()) for k, v in model.state_dict().items())
    assert 0 < moved < 2e-6
    assert (fitted.history["grad_norm"] > 1e-3).all()


def test_the_users_own_optimizer():
    model, guide = make_vae()
    groups = [{"params": model.parameters(), "lr": 0.0}, {"params": guide.parameters(), "lr": 1e-2}]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    quick(model, guide, bits(30), optimizer=torch.optim.Adam(groups))
    assert same(before, model.state_dict())
    quick(model, guide, bits(30), optimizer=lambda params: torch.optim.RMSprop(params, lr=1e-2))
    assert not same(before, model.state_dict())


SCHEDULERS = {
    "StepLR": {"step_size": 1, "gamma": 0.5},
    "MultiStepLR": {"milestones": [2, 3], "gamma": 0.1},
    "ExponentialLR": {"gamma": 0.9},
    "CosineAnnealingLR": {"T_max": 6},
    "LambdaLR": {"lr_lambda": lambda epoch: 1 / (1 + epoch)},
    "OneCycleLR": {"max_lr": 0.1, "total_steps": 10},
    "ReduceLROnPlateau": {"patience": 0, "factor": 0.5, "threshold": 0.1},
}


def scheduled(name, lr):
    """Return Pyro's optimizer with a scheduler, and the same scheduler of torch."""
    settings = SCHEDULERS[name]
    of_torch = getattr(torch.optim.lr_scheduler, name)(torch.optim.Adam([torch.zeros(1)], lr=lr), **settings)
    arguments = {"optimizer": torch.optim.Adam, "optim_args": {"lr": lr}, **copy.deepcopy(settings)}
    return getattr(pyro.optim, name)(arguments), of_torch


@pytest.mark.parametrize("validation_data", [None, bits(10, seed=1)], ids=["no validation data", "validation data"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_of_pyros_steps_after_every_epoch(name, validation_data, tmp_path):
    options = {"steps": None, "batch_size": 20, "validation_data": validation_data}
    optimizer, of_torch = scheduled(name, 1e-2)
    h = quick(*make_vae(), bits(50), epochs=6, optimizer=optimizer, **options).history
    waits, rates = name == "ReduceLROnPlateau", []
    for _, rows in h.groupby("epoch"):
        metric = rows["loss"].mean() if validation_data is None else -rows["validation_bound"].iloc[-1]
        of_torch.optimizer.step()
        of_torch.step(*([metric] if waits else []))
        rates.append(of_torch.optimizer.param_groups[0]["lr"])
    assert rates[-1] != 1e-2
    ended = {scheduler.optimizer.param_groups[0]["lr"] for scheduler in optimizer.optim_objs.values()}
    assert len(ended) == 1
    assert ended.pop() == pytest.approx(rates[-1], rel=1e-12)
    quick(*make_vae(), bits(50), epochs=3, optimizer=scheduled(name, 1e-2)[0], checkpoint=tmp_path, **options)
    optimizer = scheduled(name, 1e-2)[0]
    resumed = quick(
        *make_vae(), bits(50), epochs=6, optimizer=optimizer, checkpoint=tmp_path, resume=True, **options
    ).history
    assert without_time(resumed).equals(without_time(h))


def test_settings_of_a_pyro_optimizer_by_parameter():
    model, guide = make_vae()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = pyro.optim.Adam(lambda name: {"lr": 0.0 if "decoder" in name else 1e-2})
    h = quick(model, guide, bits(30), optimizer=optimizer).history
    assert same(before, model.state_dict())
    assert h["loss"].iloc[-1] < h["loss"].iloc[0]
    optimizer = pyro.optim.SGD({"lr": 1.0}, lambda module, name: {"clip_value": 1e-6})
    quick(model, guide, bits(30), steps=4, optimizer=optimizer)
    moved = max(float((v - before[k]).abs().max()) for k, v in model.state_dict().items())
    assert 0 < moved < 5e-6


def parameters_of_each_datum(how):
    """x ~ N(z, 1), z ~ N(0, 1), and a guide that starts at the exact posterior of each of 50 data."""
    x = 1.5 * torch.randn(50, generator=torch.Generator().manual_seed(0)).double()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        locs = pyro.param("locs", lambda: x / 2)
        with pyro.plate("data", len(x)) as rows:
            pyro.sample("z", dist.Normal(locs[rows] if how == "indexed" else locs, math.sqrt(0.5)))

    if how == "automatic":
        guide = AutoNormal(model, init_loc_fn=init_to_value(values={"z": x / 2}), init_scale=math.sqrt(0.5))
    return model, guide, x


@pytest.mark.parametrize("how", ["bare", "indexed", "automatic"])
@pytest.mark.parametrize("batch_size", [50, 128])
def test_a_batch_of_the_whole_set_meets_the_parameters_of_each_datum(how, batch_size):
    model, guide, x = parameters_of_each_datum(how)
    exact = -float(dist.Normal(0.0, math.sqrt(2)).log_prob(x).mean())
    h = quick(model, guide, x, steps=2, batch_size=batch_size, lr=1e-9, precision="float64").history
    np.testing.assert_allclose(h["loss"], exact, rtol=1e-6)


def test_a_fit_looks_at_the_pair_on_batches_of_its_own_size():
    model, guide = make_vae()
    lengths = set()

    def recognition(x):
        lengths.add(len(x))
        return guide(x)

    quick(model, recognition, bits(80), steps=2, batch_size=50)
    assert lengths == {50, 30}


def test_precision():
    model, guide = make_vae()
    fitted = quick(model, guide, bits(30), precision="float64")
    assert next(model.parameters()).dtype == torch.float64
    assert evaluate(fitted.model, fitted.guide, bits(3), num_particles=2, progress=False).elbo.isfinite().all()


def test_frozen_parameters_stay():
    model, guide = make_vae()
    model.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    quick(model, guide, bits(30))
    assert same(before, model.state_dict())
    guide.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        quick(model, guide, bits(30))


def test_buffers_and_modes(tmp_path):
    with torch.random.fork_rng():
        encoder = torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5))
    encoder.out_features = 8
    encoder[2].eval()
    model, _ = make_vae()
    with torch.random.fork_rng():
        guide = guides.MeanField(encoder, 3)
    fitted = quick(model, guide, bits(64), steps=30)
    assert float(encoder[1].running_mean.abs().max()) > 0  # trained in train mode
    assert encoder[1].training
    assert not encoder[2].training  # modes are the caller's
    x = bits(9)
    one = evaluate(model, guide, x, num_particles=10, batch_size=9, progress=False).elbo
    other = evaluate(model, guide, x, num_particles=10, batch_size=2, progress=False).elbo
    torch.testing.assert_close(
        one, other, atol=1e-5, rtol=0
    )  # evaluated in eval mode: no observation depends on its batch
    fitted.save(tmp_path)
    with torch.random.fork_rng():
        fresh = torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5))
        fresh.out_features = 8
        again = load(tmp_path, guide=guides.MeanField(fresh, 3))
    assert same(state(again), state(fitted))


# Saving, resuming, interrupting


def test_a_saved_fit_is_rebuilt_from_its_folder_alone(tmp_path):
    fitted = quick(*make_vae(guides.Flow, num_steps=3, hidden=(8,)), bits(30))
    fitted.save(tmp_path / "fit")
    again = load(tmp_path / "fit")
    assert type(again.guide) is guides.Flow
    assert again.guide.num_steps == 3
    assert same(state(again), state(fitted))
    assert again.history.equals(fitted.history)
    assert (again.stopped, again.seconds) == (fitted.stopped, fitted.seconds)
    assert sorted(p.suffix for p in (tmp_path / "fit").iterdir()) == [".json", ".safetensors"]
    fitted.save(tmp_path / "fit")
    assert len(list((tmp_path / "fit").iterdir())) == 2


class Stop(BaseException):
    pass


def interrupted_at(step, folder, **options):
    """Fit until the program is killed in the middle of a step."""
    model, guide = make_vae()
    calls = []

    def counting(x):
        if model.training:  # as in steps alone
            calls.append(1)
        if len(calls) > step:
            raise Stop
        return model(x)

    with pytest.raises(Stop):
        quick(counting, guide, bits(50), checkpoint=folder, checkpoint_seconds=0.0, **options)


@pytest.mark.parametrize("step", [1, 7, 13])
def test_a_fit_resumes_to_the_bit_identical_result(tmp_path, step):
    options = {"steps": 20, "batch_size": 20, "validation_data": bits(10, seed=1), "lr": lambda s: 1e-2 / (1 + s)}
    model, guide = make_vae()

    def counting(x):
        return model(x)

    whole = quick(counting, guide, bits(50), **options)
    interrupted_at(step, tmp_path, **options)
    partial = load(tmp_path, *resumable())
    assert 0 < len(partial.history) < 20
    resumed = quick(*resumable(), bits(50), checkpoint=tmp_path, resume=True, **options)
    assert without_time(resumed.history).equals(without_time(whole.history))
    assert same(state(resumed), state(whole))


def resumable():
    model, guide = make_vae()

    def counting(x):
        return model(x)

    return counting, guide


def test_resuming_a_finished_fit_and_going_on(tmp_path):
    x, held_out = bits(30), bits(10, seed=3)
    options = {"steps": None, "validation_data": held_out, "patience": 100, "lr": 1e-2}
    whole = quick(*make_vae(), x, epochs=30, **options)
    quick(*make_vae(), x, epochs=20, checkpoint=tmp_path, **options)
    again = quick(*make_vae(), x, epochs=20, checkpoint=tmp_path, resume=True, **options)
    assert len(again.history) == 20
    longer = quick(*make_vae(), x, epochs=30, checkpoint=tmp_path, resume=True, **options)
    assert same(state(longer), state(whole))
    assert same(state(load(tmp_path)), state(whole))


def test_a_fit_that_went_on_from_its_last_state_can_be_interrupted(tmp_path):
    x, held_out = bits(50), bits(10, seed=3)
    options = {"steps": None, "batch_size": 20, "validation_data": held_out, "patience": 100, "lr": 2e-2}

    whole = quick(*resumable(), x, epochs=40, **options)
    quick(*resumable(), x, epochs=20, checkpoint=tmp_path, **options)
    model, guide = make_vae()
    calls = []

    def counting(x):
        calls.append(1)
        if len(calls) > 40:
            raise Stop
        return model(x)

    with pytest.raises(Stop):
        quick(counting, guide, x, epochs=40, checkpoint=tmp_path, checkpoint_seconds=0.0, resume=True, **options)
    resumed = quick(*resumable(), x, epochs=40, checkpoint=tmp_path, resume=True, **options)
    assert without_time(resumed.history).equals(without_time(whole.history))
    assert same(state(resumed), state(whole))


def test_patience_may_grow_when_a_fit_is_resumed(tmp_path):
    x, held_out = bits(20), bits(30, seed=5)
    options = {"steps": None, "epochs": 60, "lr": 2e-2, "validation_data": held_out}
    short = quick(*make_vae(), x, patience=2, checkpoint=tmp_path, **options)
    assert short.stopped == "patience"
    longer = quick(*make_vae(), x, patience=8, checkpoint=tmp_path, resume=True, **options)
    assert same(state(longer), state(quick(*make_vae(), x, patience=8, **options)))


def test_a_mixture_of_modules_and_bare_parameters_is_saved_and_refitted(tmp_path):
    def make():
        model, guide = make_vae()

        def shifted(x):
            shift = pyro.param("shift", torch.zeros(12))
            pyro.module("model", model)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", model.prior())
                pyro.sample("x", model.likelihood(model.decoder(z) + shift), obs=x)

        return shifted, guide

    fitted = quick(*make(), bits(40))
    fitted.save(tmp_path)
    again = load(tmp_path, *make())
    x = bits(5)
    one, other = (evaluate(f.model, f.guide, x, num_particles=5, progress=False).elbo for f in (fitted, again))
    assert torch.equal(one, other)
    for start in (fitted, again):
        before = state(start)
        more = quick(start.model, start.guide, bits(40), lr=0.1)
        assert not same(before, state(more))
        assert float(more.model.store["params"]["shift"].detach().abs().max()) > 0.1
    copy.deepcopy(fitted.guide)


@pytest.mark.own_state
def test_a_fitted_pair_goes_on_under_plain_svi():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.7))

    torch.manual_seed(0)
    x = torch.randn(50) + 3
    fitted = quick(model, guide, x, steps=3)
    svi = SVI(fitted.model, fitted.guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(100):
        svi.step(x)
    assert float(fitted.model.store["params"]["m"].detach()) > 1


def test_annealed_loss_is_no_bound_for_enumerated_latents():
    def model(x):
        rate = pyro.param("rate", torch.tensor(0.0))
        with pyro.plate("data", len(x)), poutine.scale(scale=0.1):
            k = pyro.sample("k", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(rate + k, 1.0), obs=x)

    h = quick(model, lambda x: None, torch.zeros(10), steps=3, objective=TraceEnum_ELBO()).history
    assert h["loss"].notna().all()
    assert h["bound"].isna().all()


def test_a_fit_looks_at_the_pair_without_leaving_statistics(tmp_path):
    with torch.random.fork_rng():
        encoder = torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.BatchNorm1d(8))
        encoder.out_features = 8
        guide = guides.MeanField(encoder, 3)
    quick(make_vae()[0], guide, bits(64), steps=4)
    assert int(encoder[1].num_batches_tracked) == 4


def test_parameters_that_nothing_trains_are_named():
    model, guide = make_vae()

    def forgot(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", model.prior())
            pyro.sample("x", model.likelihood(model.decoder(z)), obs=x)

    with pytest.warns(UserWarning, match=r"the parameters of 'model.model', a VAE, are not trained: register it"):
        quick(forgot, guide, bits(20), steps=2)


def test_resume_starts_afresh_where_there_is_nothing(tmp_path):
    fitted = quick(*make_vae(), bits(30), checkpoint=tmp_path / "new", resume=True)
    assert len(fitted.history) == 20


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops(tmp_path, number):
    options = {"steps": 4000, "batch_size": 20, "progress": False, "compile": False}
    options["lr"] = lambda step: signalled(step, number)
    before = signal.getsignal(number)
    with pytest.raises(FitInterrupted, match=f"{number.name}: stopped after step") as caught:
        fit(*make_vae(), bits(50), checkpoint=tmp_path, **options)
    assert signal.getsignal(number) is before
    done = len(caught.value.fit.history)
    assert done == 31
    assert len(load(tmp_path).history) == done
    short = {**options, "steps": done + 5, "lr": lambda step: 1e-3}
    resumed = fit(*make_vae(), bits(50), checkpoint=tmp_path, resume=True, **short)
    whole = fit(*make_vae(), bits(50), **short)
    assert same(state(resumed), state(whole))


def signalled(step, number):
    """A learning-rate schedule during whose thirtieth step the process gets a signal."""
    if step == 30:
        os.kill(os.getpid(), number)
    return 1e-3


def test_fit_runs_outside_of_the_main_thread():
    results = []
    thread = threading.Thread(target=lambda: results.append(quick(*make_vae(), bits(30))))
    thread.start()
    thread.join()
    assert len(results[0].history) == 20


# Faults


def explosive(after):
    """A model whose density is NaN for observation 7 from some call on."""
    model, guide = make_vae()
    calls = []

    def generative(x):
        pyro.module("model", model)
        calls.append(1)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", model.prior())
            logits = model.decoder(z)
            bad = (x[:, -1:] > 1.5) & (len(calls) > after)
            logits = torch.where(bad, math.nan, logits)
            pyro.sample("x", dist.Bernoulli(logits=logits[:, :-1], validate_args=False).to_event(1), obs=x[:, :-1])

    model.decoder = nn.MLP(3, 13, hidden=(16,))
    guide.encoder.layers[0] = torch.nn.Linear(13, 16)
    return generative, guide


def test_a_nan_names_step_site_and_data_and_keeps_the_last_good_state(tmp_path):
    x = torch.cat([bits(40), torch.zeros(40, 1)], 1)
    x[7, -1] = 2
    with torch.random.fork_rng():
        model, guide = explosive(after=30)
    with pytest.raises(
        FitError, match=r"at step \d+, batch of data \[7, .*first at site 'x'.*for data \[7\]"
    ) as caught:
        quick(model, guide, x, steps=200, batch_size=10, checkpoint=tmp_path, checkpoint_seconds=0.0)
    error = caught.value
    assert error.indices[0] == 7
    assert error.site == "x"
    assert error.step > 20
    assert len(error.fit.history) == error.step
    assert all(v.isfinite().all() for v in state(error.fit).values())
    assert len(load(tmp_path, model, guide).history) == error.step


def test_a_learning_rate_that_explodes_leaves_a_finite_state():
    with pytest.raises(FitError, match=r"the fit stopped at step") as caught:
        quick(*make_vae(), bits(30), steps=200, lr=1e30, optimizer=torch.optim.SGD)
    assert all(v.isfinite().all() for v in state(caught.value.fit).values())


def test_a_program_that_fails_later_is_reported_with_its_step():
    model, guide = make_vae()
    calls = []

    def failing(x):
        calls.append(1)
        if len(calls) > 12:
            raise RuntimeError("out of luck")
        return model(x)

    with pytest.raises(FitError, match=r"stopped at step \d+, .*RuntimeError: out of luck"):
        quick(failing, guide, bits(30))


BAD = {
    "nan": (lambda: torch.tensor([[0.0] * 12, [math.nan] * 12]), {}, "tensor 0 of the data holds nan at observation 1"),
    "inf": (lambda: torch.tensor([[0.0] * 12, [math.inf] * 12]), {}, "tensor 0 of the data holds inf at observation 1"),
    "support": (lambda: torch.full((200, 12), 0.5), {}, r"'x': observation 0 has values from 0.5 to 0.5, outside"),
    "empty": (lambda: torch.empty(0, 12), {}, "the data set is empty"),
    "shape": (lambda: torch.zeros(5, 11), {}, r"batch of \(5, 11\) float32: its 'encoder.layers.0' expects 12 columns"),
    "dtype": (lambda: torch.zeros(5, 12, dtype=torch.uint8), {}, r"the guide fails on a batch of \(5, 12\) uint8"),
    "lengths": (lambda: (torch.zeros(5, 12), torch.zeros(4)), {}, r"one length, got lengths \[5, 4\]"),
    "no tensor": (lambda: "digits", {}, "a tuple of tensors, a table or a data set of pyrovae, got str"),
    "scalar": (lambda: torch.tensor(1.0), {}, "dimension 0 is the observation"),
    "batch size": (lambda: bits(5), {"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
    "steps": (lambda: bits(5), {"steps": 0}, "steps must be a whole number of at least 1, got 0"),
    "both": (lambda: bits(5), {"epochs": 2}, "epochs or steps, not both"),
    "lr": (lambda: bits(5), {"lr": -1.0}, "lr must be a finite number above 0, got -1"),
    "clip": (lambda: bits(5), {"clip_norm": 0.0}, "clip_norm must be a finite number above 0"),
    "patience": (lambda: bits(5), {"patience": 3}, "patience needs validation_data"),
    "precision": (lambda: bits(5), {"precision": "half"}, "precision must be one of float32, float64, bfloat16, got"),
    "device": (lambda: bits(5), {"device": "abacus"}, "device 'abacus' cannot be used here"),
    "objective": (lambda: bits(5), {"objective": "elbo"}, "objective must be a pyro.infer.ELBO"),
    "optimizer": (lambda: bits(5), {"optimizer": 3}, "optimizer must be a torch or Pyro optimizer"),
    "no optimizer class": (lambda: bits(5), {"optimizer": nn.MLP}, "optimizer must be a torch or Pyro optimizer"),
    "scheduler": (
        lambda: bits(5), {"optimizer": scheduled("StepLR", 1e-2)[1]},
        "not be a learning-rate scheduler, got StepLR: pass an optimizer, and lr=a function of the step",
    ),
    "scheduler class": (
        lambda: bits(5), {"optimizer": torch.optim.lr_scheduler.ReduceLROnPlateau},
        "not be a learning-rate scheduler, got ReduceLROnPlateau: pass an optimizer, and lr=a function of the step",
    ),
    "scheduler from a function": (
        lambda: bits(5), {"optimizer": lambda p: torch.optim.lr_scheduler.ExponentialLR(torch.optim.Adam(p), 0.9)},
        "not be a learning-rate scheduler, got ExponentialLR: pass an optimizer, and lr=a function of the step",
    ),
    "closure": (lambda: bits(5), {"optimizer": torch.optim.LBFGS}, "LBFGS works on the loss itself"),
    "closure from a function": (
        lambda: bits(5), {"optimizer": lambda p: torch.optim.LBFGS(p)}, "LBFGS works on the loss itself",
    ),
    "closure under Pyro": (
        lambda: bits(5), {"optimizer": pyro.optim.PyroOptim(torch.optim.LBFGS, {})}, "LBFGS works on the loss itself",
    ),
    "second derivatives": (
        lambda: bits(5), {"optimizer": pyro.optim.multi.Newton({})}, "Newton works on the loss itself",
    ),
    "sparse": (lambda: bits(5), {"optimizer": torch.optim.SparseAdam}, "SparseAdam takes no dense gradients"),
    "sparse under Pyro": (
        lambda: bits(5), {"optimizer": pyro.optim.SparseAdam({"lr": 0.1})}, "SparseAdam takes no dense gradients",
    ),
    "without settings": (
        lambda: bits(5), {"optimizer": pyro.optim.Adam}, r"made with its settings, as pyro.optim.Adam\(",
    ),
    "from Pyro by a function": (
        lambda: bits(5), {"optimizer": lambda p: pyro.optim.Adam({"lr": 0.1})}, "must make a torch.optim.Optimizer",
    ),
    "seed": (lambda: bits(5), {"seed": 0.5}, "seed must be a whole number from 0 to .*, got 0.5"),
    "resume": (lambda: bits(5), {"resume": True}, "resume=True needs a checkpoint folder"),
    "validation": (lambda: bits(5), {"validation_data": torch.full((2, 12), 2.0)}, "outside the likelihood's support"),
    "own lr": (
        lambda: bits(5), {"optimizer": lambda p: torch.optim.SGD(p, lr=1.0), "lr": 0.1}, "lr=0.1 would be ignored",
    ),
    "pyro lr": (
        lambda: bits(5), {"optimizer": pyro.optim.Adam({"lr": 1.0}), "clip_norm": 1.0}, "a Pyro optimizer has its own",
    ),
    "other parameters": (
        lambda: bits(5), {"optimizer": torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)},
        "the optimizer holds 1 parameters that are not the pair's",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("data", "options", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_in_a_sentence(data, options, message):
    model, guide = make_vae()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        quick(model, guide, data(), **options)
    assert same(before, model.state_dict())


def test_a_bad_value_far_into_the_data_is_found_before_any_step():
    x = bits(1000)
    x[777, 3] = 3
    with pytest.raises(ValueError, match=r"observation 777 has values from 0 to 3, outside the likelihood's support"):
        quick(*make_vae(), x)


def damaged(folder, kind):
    document = json.loads((folder / "fit.json").read_text())
    tensors = folder / document["tensors"]["file"]
    content = tensors.read_bytes()
    if kind == "truncated":
        tensors.write_bytes(content[: len(content) // 2])
    elif kind == "flipped":
        tensors.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    elif kind == "missing":
        tensors.unlink()
    elif kind == "newer":
        (folder / "fit.json").write_text(json.dumps({**document, "format": 99}))
    elif kind == "garbled":
        (folder / "fit.json").write_text("{")
    elif kind == "class":
        document["model"]["configuration"] = {"class": "os.system", "arguments": {"command": "true"}}
        document["sha256"] = storage._checksum(document)  # as one who means harm can
        (folder / "fit.json").write_text(json.dumps(document))


DAMAGE = {
    "truncated": "truncated or altered",
    "flipped": "truncated or altered",
    "missing": "cannot be read",
    "newer": "has format 99, this version of pyrovae reads 3",
    "garbled": "cannot be read as a saved fit",
    "class": "names 'os.system', but only modules of pyrovae are built",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_folder_is_named(tmp_path, kind):
    quick(*make_vae(), bits(30), checkpoint=tmp_path)
    damaged(tmp_path, kind)
    with pytest.raises(ValueError, match=DAMAGE[kind]):
        load(tmp_path)
    if kind not in {"class"}:
        with pytest.raises(ValueError, match=DAMAGE[kind]):
            quick(*make_vae(), bits(30), checkpoint=tmp_path, resume=True)


OTHERWISE = {
    "likelihood": (lambda: other_vae(likelihood=likelihoods.ContinuousBernoulli()), {}, r"model\.likelihood=Bernoulli"),
    "prior": (lambda: other_vae(prior=priors.Laplace(3)), {}, r"=StandardNormal, got model\.prior=Laplace"),
    "activation": (
        lambda: other_vae(decoder=seeded(lambda: nn.MLP(3, 12, hidden=(16,), activation=torch.nn.Tanh))), {},
        "activation=ReLU, got",
    ),
    "guide": (lambda: make_vae(guides.FullRank), {}, "guide=MeanField, got guide=FullRank"),
    "weight": (make_vae, {"objective": objectives.BetaELBO(4.0)}, r"kl_weight=2.0, got objective\.kl_weight=4.0"),
    "weights over time": (
        make_vae, {"objective": objectives.BetaELBO(lambda step: 2.0 + step)}, r"kl_weight=2.0, got .*<lambda>",
    ),
    "particles": (make_vae, {"objective": objectives.BetaELBO(2.0, num_particles=3)}, "num_particles=1, got .*=3"),
    "objective": (make_vae, {"objective": None}, "objective=BetaELBO, got objective=Trace_ELBO"),
    "validation data": (make_vae, {"validation_data": bits(10, seed=5)}, "validation_data="),
    "no validation data": (make_vae, {"validation_data": None}, "got validation_data=None"),
    "schedule": (make_vae, {"lr": lambda step: 1e-3 / (1 + step)}, "lr="),
    "optimizer": (make_vae, {"optimizer": torch.optim.SGD}, "optimizer=Adam, got optimizer=SGD"),
    "its settings": (make_vae, {"optimizer": lambda params: torch.optim.Adam(params, lr=1.0)}, "got .*<lambda>"),
    "precision": (make_vae, {"precision": "float64"}, "(precision=float32, got precision=float64|data=)"),
}  # fmt: skip


def other_vae(**parts):
    model, guide = make_vae()
    for name, part in parts.items():
        setattr(model, name, part)
    return model, guide


@pytest.mark.parametrize("name", OTHERWISE)
def test_a_fit_is_resumed_as_what_it_was(tmp_path, name):
    make, options, message = OTHERWISE[name]
    given = {"objective": objectives.BetaELBO(2.0), "validation_data": bits(10, seed=3), "checkpoint": tmp_path}
    quick(*make_vae(), bits(30), **given)
    with pytest.raises(ValueError, match=f"was made with .*{message}.*use the same, or resume=False"):
        quick(*make(), bits(30), resume=True, **{**given, **options})
    assert len(quick(*make_vae(), bits(30), resume=True, **given, steps=25).history) == 25


@pytest.mark.parametrize(
    ("first", "then", "message"),
    [
        ({"lr": lambda step: 1e-2 * 0.9**step}, {"lr": lambda step: 1e-2 * 0.8**step}, r"lr=0.\d+ at step \d, got"),
        (
            {"objective": objectives.BetaELBO(objectives.linear(5))},
            {"objective": objectives.BetaELBO(objectives.linear(9))},
            r"kl_weight",
        ),
        (
            {"optimizer": lambda params: torch.optim.Adam(params, lr=1e-3)},
            {"optimizer": lambda params: torch.optim.Adam(params, lr=1.0)},
            r"optimizer\.groups\[0\]\.lr=0.001, got .*=1.0",
        ),
        (
            {"optimizer": pyro.optim.Adam({"lr": 1e-3})}, {"optimizer": pyro.optim.Adam({"lr": 1e-2})},
            r"optimizer\.lr=0.001, got",
        ),
    ],
)  # fmt: skip
def test_functions_of_the_step_are_held_to_what_they_gave(tmp_path, first, then, message):
    quick(*make_vae(), bits(30), checkpoint=tmp_path, **first)
    with pytest.raises(ValueError, match=f"was made with .*{message}"):
        quick(*make_vae(), bits(30), checkpoint=tmp_path, resume=True, **then)
    quick(*make_vae(), bits(30), checkpoint=tmp_path, resume=True, **first)


def test_a_plain_program_of_another_distribution_is_not_resumed(tmp_path):
    model, guide = make_vae()

    def program(x, scale=1.0, kind=dist.Normal):
        pyro.module("decoder", model.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", kind(torch.zeros(len(x), 3), torch.ones(())).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=model.decoder(z)).to_event(1), obs=x)

    quick(program, guide, bits(30), checkpoint=tmp_path)
    with pytest.raises(ValueError, match=r"made with model\.sites\.z=Normal, got model\.sites\.z=Laplace"):
        quick(functools.partial(program, kind=dist.Laplace), guide, bits(30), checkpoint=tmp_path, resume=True)


def test_a_folder_of_another_fit_is_refused(tmp_path):
    quick(*make_vae(), bits(30), checkpoint=tmp_path)
    for options, message in (
        ({"batch_size": 7}, "was made with batch_size=128, got batch_size=7"),
        ({"lr": 0.5}, r"was made with lr=0.001, got lr=0.5"),
        ({"optimizer": torch.optim.SGD}, "was made with optimizer=Adam, got optimizer=SGD"),
        ({"optimizer": pyro.optim.SGD({"lr": 1e-3})}, "was made with optimizer=Adam, got optimizer=PyroOptim of SGD"),
        (
            {"optimizer": scheduled("StepLR", 1e-3)[0]},
            "was made with optimizer=Adam, got optimizer=PyroLRScheduler of StepLR of Adam",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            quick(*make_vae(), bits(30), checkpoint=tmp_path, resume=True, **options)
    with pytest.raises(ValueError, match="was made with data="):
        quick(*make_vae(), bits(30, seed=8), checkpoint=tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"made with model\.prior\.latent_dim=3, got model\.prior\.latent_dim=5"):
        quick(*make_vae(latent_dim=5), bits(30), checkpoint=tmp_path, resume=True)
    with pytest.raises(ValueError, match="was saved from another pair"):
        load(tmp_path, *make_vae(latent_dim=5))
    with pytest.raises(ValueError, match="holds no saved fit"):
        load(tmp_path / "nowhere")


def test_a_pair_that_cannot_be_rebuilt_asks_for_its_programs(tmp_path):
    quick(*resumable(), bits(30)).save(tmp_path)
    with pytest.raises(ValueError, match=r"cannot rebuild its model .*pass load\(\.\.\., model=\.\.\.\)"):
        load(tmp_path)


def test_folders_that_cannot_be_written(tmp_path):
    occupied = tmp_path / "file"
    occupied.write_text("mine")
    with pytest.raises(ValueError, match="cannot write into the folder"):
        quick(*make_vae(), bits(30), checkpoint=occupied)
    fitted = quick(*make_vae(), bits(30))
    with pytest.raises(ValueError, match="cannot write into the folder"):
        fitted.save(occupied / "below")
    assert occupied.read_text() == "mine"


def test_a_full_disk_keeps_what_was_saved_before(tmp_path, monkeypatch):
    fitted = quick(*make_vae(), bits(30))
    fitted.save(tmp_path)
    before = load_file(next(tmp_path.glob("*.safetensors")))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(ValueError, match=r"No space left on device.*what was saved there before is kept"):
        quick(*make_vae(seed=1), bits(30)).save(tmp_path)
    monkeypatch.undo()
    assert same(before, load_file(next(tmp_path.glob("*.safetensors"))))
    assert same(state(load(tmp_path)), state(fitted))


def test_seeds(tmp_path):
    one, again, other = (quick(*make_vae(), bits(30), seed=s) for s in (0, 0, 1))
    assert one.history["loss"].tolist() == again.history["loss"].tolist()
    assert one.history["loss"].tolist() != other.history["loss"].tolist()


def test_a_progress_bar_is_shown_and_silenced(capsys):
    quick(*make_vae(), bits(30), progress=True)
    assert "fit" in capsys.readouterr().err
    quick(*make_vae(), bits(30), progress=False)
    assert capsys.readouterr().err == ""
