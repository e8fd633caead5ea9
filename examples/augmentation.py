"""Does a classifier gain from new digits around the few that have labels? A model of all digits, labels for some.

    z ~ N(0, I),    x ~ N(decoder(z), s^2),    fitted to all training digits without their labels

For random sets of labelled digits, classifiers are trained on these alone, and on these with new ones around them:
draws of p(x' | z) with z ~ q(z | x), their means, and means of points between two digits of a class; and, as a peer,
the digits themselves with noise of the same variance as the draws have. Accuracies on held-out digits are paired by the
set of labels; errors are over the sets, given the one model.

Reference: Chadebec, Thibeau-Sutre, Burgos and Allassonniere, "Data augmentation in high dimensional low sample size
setting using a geometry-based variational autoencoder", 2022.
Data: Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI repository, 1998 (part of scikit-learn).
"""

import argparse

import numpy as np
import pandas as pd
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

import pyrovae
from pyrovae import data, guides, likelihoods, models, nn, priors

LATENT = 10
COPIES = 20
CLASSIFIERS = {
    "nearest neighbour": lambda: KNeighborsClassifier(1),
    "logistic regression": lambda: LogisticRegression(max_iter=5000),
    "random forest": lambda: RandomForestClassifier(200, random_state=0),
}


def fitted(train, validation, epochs):
    torch.manual_seed(0)
    model = models.VAE(
        prior=priors.StandardNormal(LATENT),
        decoder=nn.MLP(LATENT, 64, hidden=(128,)),
        likelihood=likelihoods.Gaussian(),
    )
    guide = guides.MeanField(nn.MLP(64, 128, hidden=(128,)), LATENT)
    return pyrovae.fit(model, guide, train, validation_data=validation, patience=20, epochs=epochs, progress=False)


def sets(fit, labelled, seed):
    """Return training sets by name: pictures and labels."""
    x, y = labelled.batch(slice(None))[0].numpy(), labelled.labels.numpy()
    options = {"seed": seed, "progress": False}
    made = {
        "draws around": pyrovae.augment(fit.model, fit.guide, labelled, COPIES, **options),
        "means around": pyrovae.augment(fit.model, fit.guide, labelled, COPIES, draws=False, **options),
        "means between": pyrovae.augment(
            fit.model, fit.guide, labelled, COPIES, method="between", draws=False, **options
        ),
    }
    spread = (made["draws around"]["x"].numpy() - x.repeat(COPIES, 0)).std()
    noisy = x.repeat(COPIES, 0) + np.random.default_rng(seed).normal(size=(len(x) * COPIES, x.shape[1])) * spread
    return {
        "labelled digits alone": (x, y),
        "noise added": (np.concatenate([x, noisy]), np.concatenate([y, y.repeat(COPIES)])),
        **{n: (np.concatenate([x, v["x"].numpy()]), np.concatenate([y, v.labels.numpy()])) for n, v in made.items()},
    }


def main(epochs=300, num_sets=20, per_class=5):
    train, validation, test = data.Digits().splits(seed=0)
    fit = fitted(train, validation, epochs)
    x_test, y_test = test.batch(slice(None))[0].numpy(), test.labels.numpy()
    rows = []
    for seed in range(num_sets):
        source = np.random.default_rng(seed)
        labels = train.labels.numpy()
        chosen = np.concatenate(
            [source.choice(np.flatnonzero(labels == c), per_class, replace=False) for c in range(10)]
        )
        for name, (x, y) in sets(fit, train.subset(chosen), seed).items():
            for classifier, make in CLASSIFIERS.items():
                accuracy = float((make().fit(x, y).predict(x_test) == y_test).mean())
                rows.append({"classifier": classifier, "trained on": name, "set": seed, "accuracy": accuracy})
    accuracies = pd.DataFrame(rows).pivot_table(
        index=["classifier", "trained on"], columns="set", values="accuracy", sort=False
    )
    gains = accuracies - accuracies.xs("labelled digits alone", level="trained on").reindex(accuracies.index, level=0)
    table = pd.DataFrame(
        {"accuracy": accuracies.mean(axis=1), "gain": gains.mean(axis=1), "gain_se": gains.std(axis=1) / num_sets**0.5}
    )
    print(table.round(3).to_string())
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--per_class", type=int, default=5)
    arguments = parser.parse_args()
    main(arguments.epochs, per_class=arguments.per_class)
