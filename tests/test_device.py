"""Devices are kept apart: every question of a pair on a card that is pretended, and under a default device of it."""

import warnings
from contextlib import nullcontext

import pytest
import torch
from conftest import bits, make_oracle, make_vae, seeded
from pretended_card import CARD, OnCard, pretended_card

import pyrovae
from pyrovae import data, guides, likelihoods, models, nn, priors

QUICK = {"progress": False}
FIT = {"steps": 3, "compile": False, **QUICK}
MODEL, X = make_oracle(2, 5, 24)
EXACT = guides.Exact(MODEL)
TRUTH = MODEL.log_evidence(X).detach()
BITS = bits(24)


@pytest.fixture
def card(monkeypatch):
    with pretended_card(monkeypatch) as device:
        yield device


@pytest.fixture(autouse=True)
def back_on_the_host():
    yield
    MODEL.to("cpu")


def mean_field():
    return seeded(lambda: guides.MeanField(nn.MLP(5, 16), 2)).double()


def mixture():
    return seeded(lambda: guides.Mixture(nn.MLP(5, 16), 2, num_components=2)).double()


def bayesian():
    here = torch.get_default_device()  # where modules are made
    model = models.BayesianVAE(
        prior=priors.StandardNormal(2), decoder=nn.MLP(2, 12, hidden=(4,)), likelihood=likelihoods.Bernoulli(),
        num_data=24,
    )  # fmt: skip
    return model, guides.WithGlobals.of(guides.MeanField(nn.MLP(12, 8), 2), model, BITS.to(here))


def saved(folder, device):
    pyrovae.fit(*make_vae(), BITS, device=device, **FIT).save(folder)
    return pyrovae.load(folder)


def digits(folder, device):
    return data.Digits(binarise=data.Static()).splits(seed=0).train.batch(slice(0, 3))


def mapped(folder, device):
    import numpy as np

    np.save(folder / "bits.npy", BITS.numpy())
    whole = data.Array(folder / "bits.npy", mapped=True)
    pyrovae.fit(*make_vae(), whole.splits(seed=0).train, device=device, **FIT)


def table(folder, device):
    (folder / "table.csv").write_text("a,b,s\n" + "1,4,u\n2,3,v\n3,1,u\n4,2,v\n" * 5)
    whole = data.CSV(folder / "table.csv", label="s", standardise=True)
    pyrovae.evaluate(MODEL, mean_field(), torch.cat([whole.splits(seed=0).train.batch(slice(0, 9))[0]] * 3, 1)[:, :5],
                     num_particles=5, device=device, **QUICK)  # fmt: skip


def pseudo_inputs(folder, device):
    def make():
        prior, guide = priors.VampPrior(2, num_components=3), guides.MeanField(nn.MLP(12, 8), 2)
        prior.attach(guide, BITS)
        return models.VAE(prior=prior, decoder=nn.MLP(2, 12), likelihood=likelihoods.Bernoulli()), guide

    return pyrovae.evaluate(*seeded(make), BITS, num_particles=5, device=device, **QUICK)


def all_of_calibration(folder, device):
    found = pyrovae.sbc(
        MODEL, mixture(), X, num_simulations=12, num_draws=9, device=device, **QUICK,
        quantities={"norm": lambda z, x: z["z"].norm(dim=-1)},
    )  # fmt: skip
    return found.table(), found.coverage(), found.plot()


def draws_against_the_guide(folder, device):
    reference = pyrovae.hmc(MODEL, mean_field(), X, num_warmup=20, num_draws=8, device=device, **QUICK)
    return pyrovae.guide_error(MODEL, mean_field(), X, reference, device=device, **QUICK)


def one_parameter_each(folder, device):
    here = torch.get_default_device()  # where modules are made
    guide = seeded(lambda: guides.Local(guides.MeanField(nn.MLP(12, 8), 3), BITS.to(here)))
    return pyrovae.fit(make_vae()[0], guide, BITS, device=device, **FIT)


def labelled(folder, device):
    def make():
        model = models.SemiSupervisedVAE(
            prior=priors.StandardNormal(2), decoder=nn.MLP(4, 12), likelihood=likelihoods.Bernoulli(), num_classes=2
        )
        return model, guides.ClassConditional(nn.MLP(12, 8), guides.MeanField(nn.MLP(14, 8), 2), 2)

    whole = data.Data(BITS, labels=torch.arange(24, device="cpu") % 2).labelled(BITS[:, 0] > 0)
    return pyrovae.evaluate(*seeded(make), whole, num_particles=5, device=device, **QUICK)


def posterior(folder, device):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "posterior of")
        options = {"num_draws": 9, "num_chains": 2, "num_warmup": 20, "level": 0.1, "reference": X, "device": device}
        return pyrovae.posterior(MODEL, mean_field(), X, **options, **QUICK).to_arviz()


def impute(folder, device):
    def make():
        likelihood = likelihoods.Missing(likelihoods.Bernoulli())
        model = models.VAE(prior=priors.StandardNormal(2), decoder=nn.MLP(2, 12), likelihood=likelihood)
        return model, guides.MeanField(nn.Observed(nn.MLP(24, 8)), 2)

    holed = torch.where(torch.arange(12, device=BITS.device) == 3, torch.nan, BITS)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "posterior of")
        return pyrovae.impute(*seeded(make), holed, num_imputations=2, device=device, **QUICK).mean


def compress(folder, device):
    pair = make_vae()
    content = pyrovae.compress(*pair, BITS, device=device, **QUICK)
    return pyrovae.decompress(*pair, content, device=device, **QUICK)


def weights(folder, device):
    rows = data.Data(BITS, weights=torch.arange(24, device="cpu") + 1.0)
    pyrovae.fit(*make_vae(), rows, validation_data=rows, device=device, **FIT)
    return pyrovae.evaluate(*make_vae(), rows, num_particles=3, device=device, **QUICK).summary()


MEAN = {"mean": lambda x: x.mean()}


def elicit(folder, device):
    prior = pyrovae.priors.Parametric(2, "Normal", {"loc": 0.0, "scale": 1.0})
    model = seeded(lambda: models.VAE(prior=prior, decoder=nn.MLP(2, 3), likelihood=likelihoods.Bernoulli()))
    stated = [pyrovae.Quantiles("z", lambda v: v["z"][:, 0], {0.5: 1.0})]
    stated.append(pyrovae.Quantiles("x", lambda v: v["x"].sum(1), {0.5: 1.0}, mean=True))
    pyrovae.elicit(model, stated, num_draws=200, steps=2, num_check=200, device=device, **QUICK).table()


def posterior_sbc(folder, device):
    model, guide = seeded(bayesian)
    pyrovae.posterior_sbc(
        model, guide, BITS, lambda both: guide, num_simulations=2, num_draws=3, device=device, **QUICK
    ).table()


CALLS = {
    "fit": lambda f, d: pyrovae.fit(*make_vae(), BITS, device=d, validation_data=BITS, patience=2, **FIT),
    "fit a flow, clipped": lambda f, d: pyrovae.fit(*make_vae(guides.Flow), BITS, device=d, clip_norm=1.0, **FIT),
    "fit in double": lambda f, d: pyrovae.fit(*make_vae(guides.FullRank), BITS, device=d, precision="float64", **FIT),
    "fit by importance": lambda f, d: pyrovae.fit(
        *make_vae(), BITS, device=d, objective=pyrovae.objectives.IWAE(num_particles=3), **FIT
    ),
    "fit and draw bits": lambda f, d: pyrovae.fit(
        *make_vae(), data.Data(BITS / 2, binarise=data.Dynamic()), device=d, **FIT
    ),
    "fit from a loader": lambda f, d: pyrovae.fit(
        *make_vae(), data.Stream(torch.utils.data.TensorDataset(BITS.cpu())), device=d, **FIT
    ),
    "fit local parameters": one_parameter_each,
    "save and load": saved,
    "log_weights": lambda f, d: pyrovae.log_weights(*make_vae(), BITS, num_particles=7, device=d, **QUICK),
    "evaluate": lambda f, d: pyrovae.evaluate(MODEL, EXACT, X, num_particles=9, device=d, **QUICK).summary(),
    "evaluate labels": labelled,
    "evaluate pseudo-inputs": pseudo_inputs,
    "compare": lambda f, d: pyrovae.compare(
        {"a": (MODEL, mean_field()), "b": (MODEL, EXACT)}, X, num_particles=9, device=d, **QUICK
    ),
    "elpd": lambda f, d: pyrovae.elpd(pyrovae.evaluate(MODEL, EXACT, X, num_particles=9, device=d, **QUICK)),
    "evidence": lambda f, d: pyrovae.evidence(
        MODEL, mean_field(), X, num_particles=9, num_temperatures=9, num_chains=2, device=d, **QUICK
    ),
    "rates": lambda f, d: pyrovae.rates(MODEL, mean_field(), X, num_particles=9, device=d, **QUICK),
    "ais": lambda f, d: pyrovae.ais(MODEL, X, num_temperatures=10, device=d, **QUICK).summary(),
    "ais from a guide": lambda f, d: pyrovae.ais(MODEL, X, guide=mean_field(), num_temperatures=9, device=d, **QUICK),
    "bdmc": lambda f, d: pyrovae.bdmc(MODEL, X, num_temperatures=10, device=d, **QUICK),
    "hmc and guide_error": draws_against_the_guide,
    "gaps": lambda f, d: pyrovae.gaps(
        MODEL, mean_field(), X, log_evidence=(TRUTH, TRUTH * 0), num_steps=9, device=d, **QUICK
    ).summary(),
    "sbc": all_of_calibration,
    "simulate": lambda f, d: pyrovae.simulate(MODEL, X, num_simulations=30, device=d, **QUICK),
    "pit": lambda f, d: pyrovae.pit(MODEL, X, num_draws=9, device=d, **QUICK).table(),
    "posterior_predictive_check": lambda f, d: pyrovae.posterior_predictive_check(
        MODEL, mean_field(), X, MEAN, num_sets=5, device=d, **QUICK
    ),
    "prior_predictive_check": lambda f, d: pyrovae.prior_predictive_check(
        MODEL, mean_field(), X, MEAN, num_sets=5, device=d, **QUICK
    ),
    "sample_quality": lambda f, d: pyrovae.sample_quality(MODEL, X, neighbours=2, device=d, **QUICK),
    "to_arviz": lambda f, d: pyrovae.to_arviz(*make_vae(), BITS, num_draws=5, device=d, **QUICK),
    "globals_to_arviz": lambda f, d: pyrovae.globals_to_arviz(
        *seeded(bayesian), BITS, num_draws=3, num_particles=3, device=d, **QUICK
    ),
    "usage": lambda f, d: str(pyrovae.usage(MODEL, mean_field(), X, device=d, **QUICK)),
    "aggregate": lambda f, d: pyrovae.aggregate(MODEL, mean_field(), X, num_draws=3, device=d, **QUICK).summary(),
    "aggregate by moments": lambda f, d: pyrovae.aggregate(
        MODEL, mixture(), X, num_draws=3, device=d, **QUICK
    ).summary(),
    "codes": lambda f, d: pyrovae.codes(MODEL, mean_field(), X, num_draws=3, device=d, **QUICK),
    "prior_test": lambda f, d: pyrovae.prior_test(MODEL, mean_field(), X, max_data=20, device=d, **QUICK),
    "posterior": posterior,
    "sample": lambda f, d: pyrovae.sample(MODEL, 7, device=d, **QUICK),
    "decode": lambda f, d: pyrovae.decode(MODEL, {"z": torch.zeros(3, 2)}, device=d, **QUICK),
    "reconstruct": lambda f, d: pyrovae.reconstruct(MODEL, mean_field(), X, num_draws=3, device=d, **QUICK),
    "interpolate": lambda f, d: pyrovae.interpolate(
        MODEL, mean_field(), X[:2], X[2:4], path="spherical", num_draws=3, device=d, **QUICK
    ),
    "traverse": lambda f, d: pyrovae.traverse(MODEL, mean_field(), X[:2], 0, [-1.0, 1.0], device=d, **QUICK),
    "attribute": lambda f, d: pyrovae.attribute(
        MODEL, mean_field(), X, torch.arange(24, device="cpu") % 2, num_draws=3, device=d, **QUICK
    ),
    "impute": impute,
    "anomaly": lambda f, d: pyrovae.anomaly(
        MODEL, mean_field(), X[:2], X, rate=0.5, num_particles=5, device=d, **QUICK
    ),
    "cluster": lambda f, d: pyrovae.cluster(
        MODEL, mean_field(), X, 2, least_activity=0, num_draws=3, device=d, **QUICK
    ).table(),
    "neighbours": lambda f, d: pyrovae.neighbours(
        MODEL, mean_field(), X, num=2, least_activity=0, num_draws=3, device=d, **QUICK
    ),
    "project": lambda f, d: pyrovae.project(
        MODEL, mean_field(), X, least_activity=0, num_draws=3, device=d, **QUICK
    ).table(),
    "sensitivity": lambda f, d: pyrovae.sensitivity(MODEL, EXACT, X, num_particles=30, device=d, **QUICK).table(),
    "reprior": lambda f, d: pyrovae.reprior(
        MODEL,
        EXACT,
        X,
        seeded(lambda: pyrovae.priors.MixtureOfGaussians(2, num_components=2)),
        num_particles=30,
        device=d,
        **QUICK,
    ).table(),
    "lc2st": lambda f, d: pyrovae.lc2st(
        MODEL, mean_field(), X, num_simulations=200, num_null=1, num_permutations=19, device=d, **QUICK
    ).table(),
    "recovery": lambda f, d: pyrovae.recovery(MODEL, EXACT, X, num_simulations=9, device=d, **QUICK).table(),
    "posterior_sbc": posterior_sbc,
    "misspecification": lambda f, d: (
        pyrovae.misspecification(
            MODEL, mean_field(), X, num_simulations=30, num_permutations=19, num_particles=25, device=d, **QUICK
        ).tests
    ),
    "prior_gain": lambda f, d: pyrovae.prior_gain(
        MODEL, EXACT, X.repeat(3, 1), num_folds=2, steps=3, num_particles=25, device=d, **QUICK
    ).table(),
    "elicit": elicit,
    "augment": lambda f, d: pyrovae.augment(MODEL, mean_field(), X, 2, method="between", device=d, **QUICK),
    "compress": compress,
    "weights": weights,
    "digits": digits,
    "a mapped file": mapped,
    "a table": table,
    "sprites": lambda f, d: data.Sprites(size=8, scales=1, positions=2).subset(range(5)).batch(slice(0, 3)),
}


@pytest.mark.parametrize("default", [False, True], ids=["", "default device"])
@pytest.mark.parametrize("name", CALLS)
def test_a_question_keeps_devices_apart(name, default, card, tmp_path):
    with card if default else nullcontext():
        CALLS[name](tmp_path, card)


@pytest.mark.parametrize(
    "name", ["fit", "evaluate", "compare", "sbc", "pit", "sample_quality", "to_arviz", "prior_test"]
)
def test_data_may_be_on_the_card_already(name, card, tmp_path, monkeypatch):
    for data_name in ("X", "BITS"):
        monkeypatch.setitem(globals(), data_name, globals()[data_name].to(card))
    CALLS[name](tmp_path, card)


@pytest.mark.parametrize("name", ["fit", "evaluate", "ais", "hmc and guide_error", "sbc", "to_arviz", "aggregate"])
def test_a_question_on_the_host_is_not_led_astray_by_a_default_device(name, card, tmp_path):
    with card:
        CALLS[name](tmp_path, "cpu")


def test_answers_on_the_card_are_those_on_the_host(card):
    one, other = (pyrovae.evaluate(MODEL, EXACT, X, num_particles=9, device=d, **QUICK) for d in ("cpu", card))
    torch.testing.assert_close(one.elbo, other.elbo)
    assert not isinstance(other.elbo, OnCard)


def test_what_cuda_refuses_is_refused(card):
    host, there = torch.zeros(5), torch.arange(3, device=card)
    assert there.device.type == CARD.type
    with pytest.raises(RuntimeError, match="indices should be either on cpu or on the same device"):
        host[there]
    assert there[torch.tensor([0, 1])].tolist() == [0, 1]  # the other way round it is allowed
    with pytest.raises(RuntimeError, match="on the same device"):
        host[:3] + there
    assert (there * torch.tensor(2.0)).tolist() == [0, 2, 4]  # as is a number
    with pytest.raises(TypeError, match="to numpy"):
        there.numpy()
    with pytest.raises(RuntimeError, match="type for generator"):
        torch.randperm(3, generator=torch.Generator().manual_seed(0), device=card)
    with card, pytest.raises(RuntimeError, match="type for generator"):
        torch.randperm(3, generator=torch.Generator().manual_seed(0))
    assert there.cpu().numpy().tolist() == [int(i) for i in there] == [0, 1, 2]
