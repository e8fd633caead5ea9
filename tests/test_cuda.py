"""On a CUDA device: compiled steps replayed as graphs, evaluating, faults and resumption."""

import math
from contextlib import nullcontext

import pytest
import torch
from conftest import SIGMAS, bits, make_oracle, make_vae, planted, seeded
from test_device import CALLS, MODEL

from pyrovae import (
    aggregate,
    ais,
    codes,
    compare,
    data,
    evaluate,
    fit,
    gaps,
    guides,
    hmc,
    likelihoods,
    log_weights,
    models,
    nn,
    pit,
    priors,
    sbc,
    simulate,
    to_arviz,
    usage,
)
from pyrovae.training import FitError
from pyrovae.training.capture import Captured

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def quick(model, guide, x, **options):
    return fit(model, guide, x, **{"progress": False, "batch_size": 16, **options})


def test_a_captured_fit_ends_where_the_eager_one_does(monkeypatch):
    captured = []
    inner = Captured.__init__
    monkeypatch.setattr(Captured, "__init__", lambda self, *a: captured.append(1) or inner(self, *a))
    options = {
        "epochs": 40,
        "validation_data": bits(200, seed=1),
        "lr": lambda s: 0.01 / (1 + 0.01 * s),
        "clip_norm": 50.0,
    }
    eager, fast = (quick(*make_vae(), bits(200), compile=c, **options) for c in (False, True))
    assert captured  # replayed as a graph
    evaluated = [evaluate(f.model, f.guide, bits(200, seed=1), num_particles=50, progress=False) for f in (eager, fast)]
    one, other = (float(j.elbo.mean()) for j in evaluated)
    monte_carlo = math.hypot(*(j.summary()["elbo_mc_se"] for j in evaluated))
    assert abs(one - other) < SIGMAS * monte_carlo + 0.1  # and what rounding, grown over 520 steps, sets them apart by
    assert fast.history["loss"].isna().sum() == 0


def test_the_optimizer_and_the_schedule_act_inside_the_graph():
    fitted = quick(*make_vae(), bits(64), steps=60, lr=lambda s: 0.0 if s >= 30 else 0.01, compile=True)
    still = quick(*make_vae(), bits(64), steps=30, lr=lambda s: 0.01, compile=True)
    for p, q in zip(fitted.guide.parameters(), still.guide.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compile", [False, True])
def test_a_nan_is_found_at_its_step_though_nobody_waits_for_the_loss(compile):
    with pytest.raises(FitError, match=r"for data \[7\]") as caught:
        quick(*make_vae(), planted(bits(16), 100), steps=400, compile=compile)
    assert 90 < caught.value.step <= 100
    assert len(caught.value.fit.history) == caught.value.step
    assert all(bool(p.isfinite().all()) for p in caught.value.fit.model.parameters())


def test_compiled_log_weights_are_the_eager_ones():
    model, guide = make_vae()
    options = {"num_particles": 513, "batch_size": 16, "progress": False}
    eager, fast = (log_weights(model, guide, bits(40), compile=c, **options) for c in (False, True))
    torch.testing.assert_close(fast, eager, rtol=1e-4, atol=1e-3)


def test_convolutions_are_compiled_though_they_are_rounded_by_default():
    """cuDNN rounds the inputs of convolutions to ten bits; compiled and eager steps are compared without that."""
    shape = (1, 16, 16)
    encoder = seeded(lambda: nn.ConvEncoder(shape, 16))
    decoder = seeded(lambda: nn.ConvDecoder(4, shape))
    model = models.VAE(prior=priors.StandardNormal(4), decoder=decoder, likelihood=likelihoods.Bernoulli())
    x = data.Data((torch.rand(64, 256, generator=torch.Generator().manual_seed(0)) < 0.3).float(), image_shape=shape)
    before = torch.backends.cudnn.allow_tf32
    fitted = quick(model, guides.MeanField(encoder, 4), x, epochs=2, compile=True)
    assert fitted.compile, fitted.compiled
    assert torch.backends.cudnn.allow_tf32 == before


def test_bfloat16_trains():
    one, other = (quick(*make_vae(), bits(200), epochs=30, precision=p).history for p in ("float32", "bfloat16"))
    assert abs(one["bound"].tail(20).mean() - other["bound"].tail(20).mean()) < 0.3


def test_a_fit_resumes_on_the_device(tmp_path):
    options = {"compile": False, "validation_data": bits(20, seed=1)}
    whole = quick(*make_vae(), bits(50), steps=20, **options)
    quick(*make_vae(), bits(50), steps=8, checkpoint=tmp_path, **options)
    resumed = quick(*make_vae(), bits(50), steps=20, checkpoint=tmp_path, resume=True, **options)
    torch.testing.assert_close(
        torch.tensor(resumed.history["loss"].to_numpy()),
        torch.tensor(whole.history["loss"].to_numpy()),
        rtol=1e-4,
        atol=1e-4,
    )


def test_a_mapped_file_stays_on_the_host(tmp_path):
    import numpy as np

    np.save(tmp_path / "bits.npy", bits(64).numpy())
    mapped = data.Array(tmp_path / "bits.npy", mapped=True)
    fitted = quick(*make_vae(), mapped, steps=8)
    assert mapped.tensors[0].device.type == "cpu"
    assert len(fitted.history) == 8


@pytest.mark.parametrize("compile", [False, True])
def test_evidence_and_posteriors_are_the_oracles(compile):
    model, x = make_oracle(2, 5, 20)
    truth, exact = model.log_evidence(x).detach(), model.posterior(x)
    guide = seeded(lambda: guides.MeanField(nn.MLP(5, 16), 2)).double()
    found = ais(model, x, num_temperatures=300, compile=compile, progress=False)
    assert ((found.log_evidence - truth).abs() < 5 * found.log_evidence_se + 0.05).all()
    draws = hmc(model, guide, x, num_warmup=200, num_draws=200, compile=compile, progress=False).posterior["z"]
    error = (torch.as_tensor(draws.mean(("chain", "draw")).to_numpy()) - exact.mean) / exact.variance.sqrt()
    assert error.abs().max() < 0.3
    split = gaps(model, guide, x, log_evidence=(truth, truth * 0), progress=False)
    assert (split.amortization > -SIGMAS * split.optimal.elbo_se).all()


def test_calibration_and_latents_are_the_oracles():
    model, x = make_oracle(2, 5, 60)
    guide = guides.Exact(model)
    ranks = sbc(model, guide, x, num_simulations=300, progress=False)
    assert ((ranks.table()["spread"] - 1).abs() < SIGMAS * ranks.table()["spread_se"]).all()
    found = aggregate(model, guide, x, num_draws=8, progress=False).summary()
    assert found["mutual_information"] + found["marginal_kl"] == pytest.approx(found["rate"], abs=1e-6)
    used = usage(model, guide, x, progress=False)
    assert used.layers.loc["z", "rate"] == pytest.approx(found["rate"], abs=4 * found["rate_se"])
    error = (codes(model, guide, x, progress=False) - model.posterior(x).mean).abs()
    assert (error < 6 * model.posterior(x).variance.sqrt() / 10).all()


CARD = torch.device("cuda", 0)


@pytest.mark.parametrize("default", [False, True], ids=["", "default device"])
@pytest.mark.parametrize("name", CALLS)
def test_a_question_keeps_devices_apart(name, default, tmp_path):
    try:
        with CARD if default else nullcontext():
            CALLS[name](tmp_path, CARD)
    finally:
        MODEL.to("cpu")


def test_data_of_the_model_look_like_the_models():
    model, x = make_oracle(2, 5, 300)
    made = simulate(model, x, num_simulations=400, progress=False)
    moments = made.data.batch(slice(0, 400))[0].mean(0), model.evidence().mean.cpu(), model.evidence().variance.cpu()
    assert ((moments[0] - moments[1]).abs() < SIGMAS * (moments[2] / 400).sqrt()).all()
    assert (pit(model, made.data, seed=1, progress=False).table()["adjusted"] > 1e-4).all()
    wrong = pit(model, made.data.batch(slice(0, 400))[0] * 2, seed=1, progress=False)
    assert (wrong.table()["adjusted"] < 1e-4).any()


def test_strategies_are_compared_and_draws_handed_on():
    model, x = make_oracle(2, 5, 30)
    exact, near = guides.Exact(model), seeded(lambda: guides.MeanField(nn.MLP(5, 16), 2)).double()
    near = fit(model.requires_grad_(False), near, x, epochs=100, progress=False).guide
    model.to("cpu")
    table = compare({"exact": (model, exact), "near": (model, near)}, x, num_particles=500, progress=False)
    truth = float(model.log_evidence(x).mean())
    assert table.loc["exact", "elbo"] == pytest.approx(truth, abs=1e-6)
    assert table.loc["near", "elbo"] < truth
    drawn = to_arviz(model, exact, x, num_draws=400, progress=False)
    posterior = model.posterior(x)
    error = torch.as_tensor(drawn.posterior["z"].mean(("chain", "draw")).to_numpy()) - posterior.mean.cpu()
    assert (error.abs() < 5 * (posterior.variance.cpu() / 400).sqrt()).all()  # 60 comparisons: below 4e-5
    evidence = torch.as_tensor(drawn["marginal_log_likelihood"]["x"].to_numpy())
    torch.testing.assert_close(evidence, model.log_evidence(x).detach().cpu(), rtol=0, atol=1e-6)


def test_long_work_is_compiled_and_short_work_is_not():
    long, short = (quick(*make_vae(), bits(160), steps=n) for n in (8000, 5))
    assert (long.compile, short.compile) == (True, False)
    assert long.history["bound"].tail(100).mean() > long.history["bound"].head(10).mean()
