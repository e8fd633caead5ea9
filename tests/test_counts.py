"""Counts of observations of unequal size: exposures, totals, documents."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SIGMAS, seeded

import pyrovae
from pyrovae import data, guides, likelihoods, models, nn, priors

QUICK = {"progress": False, "compile": False}


@pytest.mark.parametrize("make", [
    likelihoods.Poisson, likelihoods.NegativeBinomial,
    lambda exposure: likelihoods.ZeroInflated(likelihoods.Poisson(exposure=exposure)),
])  # fmt: skip
def test_means_are_proportional_to_the_exposure(make):
    plain, exposed = make(exposure=False), make(exposure=True)
    features = torch.linspace(-1, 2, 5 * exposed.features(3)).reshape(5, -1)
    exposure = torch.tensor([[0.1], [1.0], [2.0], [50.0], [1e4]])
    with torch.no_grad():
        ones = exposed(features, exposure=torch.ones(5, 1))
        torch.testing.assert_close(ones.log_prob(torch.ones(5, 3)), plain(features).log_prob(torch.ones(5, 3)))
        torch.testing.assert_close(
            exposed(features, exposure=exposure).mean, plain(features).mean * exposure, rtol=1e-4, atol=1e-6
        )
        left = exposed(features[None].expand(4, 5, -1), exposure=exposure)  # an enumerated dimension
        assert left.batch_shape == (4, 5)
    with pytest.raises(ValueError, match=r"takes an exposure, the last tensor of a batch"):
        exposed(features)
    with pytest.raises(ValueError, match="Gaussian takes no exposure"):
        likelihoods.Gaussian()(features, exposure=exposure)


def test_a_poisson_density_under_an_exposure_is_that_of_the_closed_form():
    features, exposure, x = torch.tensor([[0.3, -1.0]]), torch.tensor([7.0]), torch.tensor([[4.0, 0.0]])
    rate = 7 * nn.positive(features)
    expected = (x * rate.log() - rate - (x + 1).lgamma()).sum(-1)
    torch.testing.assert_close(likelihoods.Poisson(exposure=True)(features, exposure=exposure).log_prob(x), expected)


def test_multinomial_draws_have_their_own_totals_and_the_right_moments():
    """Means and covariances of 20,000 draws of 5 categories at 4 standard errors, 30 numbers: below 2e-3."""
    logits, totals = torch.linspace(-1, 1, 10).reshape(2, 5), torch.tensor([3.0, 40.0])
    density, num = likelihoods.Multinomial()(logits, exposure=totals[:, None]), 20_000
    drawn = seeded(lambda: density.sample((num,))).double()
    assert drawn.sum(-1).equal(totals.double().expand(num, 2))
    probs = logits.double().softmax(-1)
    torch.testing.assert_close(density.mean.double(), totals[:, None] * probs, rtol=1e-5, atol=1e-5)
    error = drawn.std(0) / num**0.5
    assert bool(((drawn.mean(0) - totals[:, None] * probs).abs() < SIGMAS * error).all())
    for row, (n, p) in enumerate(zip(totals.double(), probs, strict=True)):
        expected = n * (torch.diag(p) - torch.outer(p, p))
        centred = drawn[:, row] - n * p
        products = centred[:, :, None] * centred[:, None]
        assert bool(((products.mean(0) - expected).abs() < SIGMAS * products.std(0) / num**0.5).all())


def test_parts_of_a_table_take_the_exposure_that_need_it():
    frame = pd.DataFrame(
        {"visits": [0, 3, 12, 2, 1], "age": [40.5, 31.0, 22.0, 57.5, 18.0], "years": [0.5, 1, 10, 2, 1]}
    )
    table = data.Table(frame, roles={"years": "exposure"}, types={"visits": "count"})
    exposure = table.batch(slice(None))[1][:, 0]
    assert exposure.tolist() == frame["years"].tolist()
    mixed = table.likelihood()
    assert mixed.takes_exposure
    features = torch.zeros(5, mixed.features(2))
    means = mixed(features, exposure=exposure).mean
    torch.testing.assert_close(means[:, 0] / means[0, 0], exposure / exposure[0])
    assert bool((means[:, 1] == 0).all())
    again = data.Table.like(frame, table.encoding)
    assert again.batch(slice(None))[1][:, 0].equal(exposure)
    with pytest.raises(ValueError, match="an exposure must be above 0, got 0 for observation 0"):
        data.Table(frame.assign(years=[0, 1, 1, 2, 1]), roles={"years": "exposure"})


def test_totals_are_exposures():
    counts = torch.tensor([[1, 2, 3], [0, 0, 4]])
    assert data.Data(counts).with_totals().batch(slice(None))[1].tolist() == [[6], [4]]
    table = data.Table(counts.repeat(3, 1) + 1, types={"V1": "count", "V2": "count"}, totals=True)
    assert table.batch(slice(0, 2))[1].tolist() == [[5], [2]]  # V3 has two values, and is no count
    assert table.typical_exposure == 2
    with pytest.raises(ValueError, match="and the table has no counts"):
        data.Table(torch.randn(5, 2, generator=torch.Generator().manual_seed(0)), totals=True)


def pair_of_counts(size, likelihood, encoder):
    model = models.VAE(prior=priors.StandardNormal(2), decoder=nn.MLP(2, size), likelihood=likelihood)
    return model, guides.MeanField(encoder, 2)


def cells(rows=600, columns=30, clusters=3):
    rng = np.random.default_rng(5)
    labels = rng.integers(0, clusters, rows)
    profiles = rng.gamma(0.5, 1.0, (clusters, columns)) + 0.02
    profiles /= profiles.sum(1, keepdims=True)
    sizes = np.exp(rng.uniform(np.log(300), np.log(3000), rows))
    return rng.poisson(profiles[labels] * sizes[:, None]), sizes, labels


def test_programs_are_given_the_exposure_and_encoders_see_rates():
    counts, _, _ = cells(40)
    table = data.Table(counts, types={f"V{k + 1}": "count" for k in range(30)}, totals=True)
    encoder = seeded(lambda: nn.Table(lambda width: nn.MLP(width, 8), table.inputs, exposure=table.typical_exposure))
    x, exposure = table.batch(slice(None))
    torch.testing.assert_close(encoder.shown(3 * x, 3 * exposure), encoder.shown(x, exposure))
    assert encoder.network.in_features == 31
    pair = seeded(lambda: pair_of_counts(30, table.likelihood(), encoder))
    fit = pyrovae.fit(*pair, table, epochs=2, **QUICK)
    found = pyrovae.evaluate(fit.model, fit.guide, table, num_particles=5, **QUICK)
    again = pyrovae.evaluate(
        fit.model, fit.guide, pd.DataFrame(counts, columns=table.feature_names), num_particles=5, **QUICK
    )
    assert found.log_evidence.equal(again.log_evidence)
    simulated = pyrovae.simulate(fit.model, table, seed=1, progress=False)
    assert simulated.data.batch(slice(None))[1].equal(exposure)
    with pytest.raises(ValueError, match="made for an exposure"):
        pyrovae.evaluate(fit.model, fit.guide, x, num_particles=5, **QUICK)


@pytest.mark.parametrize("compile", [False, True])
def test_compiled_steps_with_totals(compile):
    counts, _, _ = cells(32)
    documents = data.Data(torch.from_numpy(counts), levels=1).with_totals()
    pair = seeded(lambda: pair_of_counts(30, likelihoods.Multinomial(), nn.MLP(31, 8)))
    fit = pyrovae.fit(*pair, documents, steps=3, compile=compile, progress=False)
    assert bool(np.isfinite(fit.history["loss"]).all())


# documents

TEXTS = ["the cat sat on the mat", "the dog sat", "a cat and a dog and a cat", "dog dog dog dog"]


def test_documents_are_counted(tmp_path):
    documents = data.Documents(TEXTS)
    assert documents.feature_names == ["cat", "dog", "sat", "the"]
    counts, totals = documents.batch(slice(None))
    assert totals[:, 0].tolist() == counts.sum(1).tolist() == [4, 3, 3, 4]
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n\n")
    assert data.Documents(path).batch(slice(None))[0].equal(counts)
    later = data.Documents(["cat on a mat", "dog"], vocabulary=documents.feature_names)
    assert later.batch(slice(None))[0].tolist() == [[1, 0, 0, 0], [0, 1, 0, 0]]
    assert data.Documents(TEXTS, stop_words="english").feature_names == ["cat", "dog", "sat"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: data.Documents(["a a", "b"]), "the words cannot be counted"),
        (lambda: data.Documents(["cat cat", "cat", "?"]), r"document 2 has no counted word \(1 in all\)"),
        (lambda: data.Documents([1, 2]), "texts must be a list of strings"),
        (lambda: data.Documents("/nowhere/at all"), "cannot read documents"),
    ],
)
def test_documents_that_cannot_be_counted(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_documents_of_unequal_length_pass_their_own_predictive_check():
    """Draws of a fitted model have each document's own length; with one length for all, their spread is lost."""
    rng = np.random.default_rng(2)
    lengths = rng.integers(5, 200, 300)
    topics = rng.dirichlet(np.full(20, 0.3), 2)
    counts = torch.from_numpy(np.stack([rng.multinomial(n, topics[k % 2]) for k, n in enumerate(lengths)]))
    documents = data.Data(counts, levels=1).with_totals()
    own = seeded(lambda: pair_of_counts(20, likelihoods.Multinomial(), nn.MLP(21, 16)))
    fit = pyrovae.fit(*own, documents, epochs=30, **QUICK)
    spread = {"length": lambda x: x.sum(-1).std(), "words": lambda x: (x > 0).double().sum(-1).std()}
    check = pyrovae.posterior_predictive_check(fit.model, fit.guide, documents, spread, num_sets=50, progress=False)
    assert check.loc["length", "observed"] == pytest.approx(check.loc["length", "mean"])
    one = seeded(lambda: pair_of_counts(20, likelihoods.Multinomial(total_count=int(lengths.max())), nn.MLP(20, 16)))
    fit = pyrovae.fit(*one, counts.float(), epochs=2, **QUICK)
    check = pyrovae.posterior_predictive_check(fit.model, fit.guide, counts.float(), spread, num_sets=5, progress=False)
    assert check.loc["length", "mean"] == 0
