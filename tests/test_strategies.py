"""Three strategies by five seeds on handwritten digits: the errors of the comparison are those of a bootstrap."""

import numpy as np
import pytest
import torch
from conftest import SIGMAS, seeded
from pyro.infer import Trace_ELBO

import pyrovae
from pyrovae import data, guides, likelihoods, models, nn, objectives, priors

SEEDS = 5


def fitted(guide, objective, seed, splits):
    def made():
        model = models.VAE(
            prior=priors.StandardNormal(6), decoder=nn.MLP(6, 64, hidden=(64,)), likelihood=likelihoods.Bernoulli()
        )
        return model, guide(nn.MLP(64, 64, hidden=(64,)), 6)

    model, q = seeded(made, seed)
    return pyrovae.fit(model, q, splits.train, objective=objective, epochs=60, seed=seed, progress=False)


RESAMPLES = 4000
NOISE = 2 * SIGMAS / np.sqrt(2 * RESAMPLES)  # of the bootstrap, whose variance is most of what is compared


def bootstrap(values):
    """The standard error of the mean of ``[seeds, data]`` by Owen's pigeonhole bootstrap, its known bias taken off.

    Given the values, their resampled mean has the variance b_seed (K - 1) / K + b_data (N - 1) / N and a share of the
    rest, which the error for new seeds and new data counts as b_seed + b_data - rest.
    """
    generator = np.random.default_rng(0)
    rows, columns = (generator.integers(n, size=(RESAMPLES, n)) for n in values.shape)
    variance = np.var([values[r][:, c].mean() for r, c in zip(rows, columns, strict=True)], ddof=1)
    (seeds, size), means = values.shape, (values.mean(1), values.mean(0))
    by_seed, by_data = (m.var(ddof=1) / len(m) for m in means)
    rest = np.square(values - means[0][:, None] - means[1] + values.mean()).sum()
    rest /= (seeds - 1) * (size - 1) * seeds * size
    return np.sqrt(variance + by_seed / seeds + by_data / size - rest * (1 + (seeds - 1) * (size - 1) / seeds / size))


@pytest.mark.slow
def test_three_strategies_by_five_seeds_on_digits():
    splits = data.Digits(binarise=data.Static()).splits(seed=0)
    strategies = {
        "mean field": (guides.MeanField, Trace_ELBO()),
        "full rank": (guides.FullRank, Trace_ELBO()),
        "IWAE 10": (guides.MeanField, objectives.IWAE(num_particles=10)),
    }
    fits = {n: [fitted(*s, seed, splits) for seed in range(SEEDS)] for n, s in strategies.items()}
    fits["mean field again"] = [fitted(*strategies["mean field"], SEEDS + k, splits) for k in range(SEEDS)]
    options = {"num_particles": 500, "progress": False}
    table = pyrovae.compare(fits, splits.test, **options)
    values = {
        name: torch.stack(
            [pyrovae.evaluate(f.model, f.guide, splits.test, **options).log_evidence for f in run]
        ).numpy()
        for name, run in fits.items()
    }
    best = values[table.index[0]]
    for name, row in table.iterrows():
        assert row["log_evidence"] == pytest.approx(values[name].mean())
        assert row["seeds"] == SEEDS
        assert row["log_evidence_se"] == pytest.approx(bootstrap(values[name]), rel=NOISE)
        if name != table.index[0]:
            difference = values[name] - best
            assert row["difference_se"] == pytest.approx(bootstrap(difference), rel=NOISE)
            by_data = difference.mean(0).std(ddof=1) / np.sqrt(difference.shape[1])
            assert row["difference_se"] > 0.9 * by_data
    pair = pyrovae.compare({n: fits[n] for n in ("mean field", "mean field again")}, splits.test, **options)
    last = pair.iloc[1]
    assert abs(last["difference"]) < 2 * last["difference_se"]  # by chance not, in 5 to 12% of repeats
