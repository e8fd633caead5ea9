"""What do two guides make of a survey of mixed types, from a table to held-out evidence? Fair's survey on affairs.

    z ~ p(z),    x_d ~ p_d(x_d | decoder(z)),    q(z | observed x)

with p_d by the type of the column: Gaussian, negative binomial, Bernoulli, ordinal or categorical. The table comes from
statsmodels; one cell in thirty is made missing, two columns are given the names of their categories, and affairs, 0 in
two rows of three, where no density is bounded, are cut into grades.

Reference: Nazabal, Olmos, Ghahramani and Valera, "Handling incomplete heterogeneous data using VAEs", 2020.
Data: Fair, "A theory of extramarital affairs", Journal of Political Economy, 1978 (shipped with statsmodels).
"""

import argparse

import numpy as np
import pandas as pd
import torch
from statsmodels.datasets import fair

import pyrovae
from pyrovae import data, guides, models, nn, priors

LATENT = 4
WORK = ["student", "farming", "white-collar", "teaching", "administrative", "professional"]
TYPES = {"occupation": "categorical", "occupation_husb": "categorical"}


def survey(rows=3000):
    frame = fair.load_pandas().data.sample(rows, random_state=0)
    for column in ("occupation", "occupation_husb"):
        frame[column] = frame[column].map(dict(enumerate(WORK, 1)))
    frame["affairs"] = pd.cut(frame["affairs"], [-1, 0, 1, 5, 60], labels=["none", "to 1", "to 5", "more"])  # a year
    holes = np.random.default_rng(0).random(frame.shape) < 1 / 30
    return frame.mask(holes)


def fitted(train, validation, family, prior, seed, epochs):
    torch.manual_seed(seed)
    likelihood = train.likelihood()
    decoder = nn.MLP(LATENT, likelihood.features(train.shape))
    encoder = nn.Table(lambda width: nn.MLP(width, 64), train.inputs)
    model, guide = models.VAE(prior=prior, decoder=decoder, likelihood=likelihood), family(encoder, LATENT)
    return pyrovae.fit(
        model, guide, train, validation_data=validation, epochs=epochs, patience=10, seed=seed, progress=False
    )


def main(epochs=100, num_particles=1000, seeds=3):
    table = data.Table(survey(), types=TYPES)
    print(table.describe()[["type", "missing", "scaling", "likelihood"]].to_string())
    train, validation, test = table.splits(seed=0)
    families = {"mean field": guides.MeanField, "full rank": guides.FullRank}
    fits = {
        name: [fitted(train, validation, family, priors.Laplace(LATENT), seed, epochs) for seed in range(seeds)]
        for name, family in families.items()
    }
    comparison = pyrovae.compare(fits, test, num_particles=num_particles, reference="mean field", progress=False)
    print(comparison[["log_evidence", "difference", "difference_se", "reliable", "ended"]].to_string())
    best = fits["full rank"][0]
    new = survey().loc[test.index[:3]].sample(frac=1, axis=1, random_state=1)  # columns in another order
    print(pyrovae.evaluate(best.model, best.guide, new, progress=False).table()[["log_evidence", "khat"]].to_string())
    print("three new people, drawn from the model, beside the three of the table:")
    draws = pyrovae.to_arviz(best.model, best.guide, test, num_draws=1, progress=False).prior_predictive["x"][0, 0, :3]
    print(test.to_frame(draws.to_numpy(), scaled=False).to_string(index=False))
    print(new[test.feature_names].to_string(index=False))
    return comparison


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=100)
    main(epochs=parser.parse_args().epochs)
