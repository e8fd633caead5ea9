"""Which digits are unlike those that a model was fitted to? Each class in turn is left out of the training data.

    z ~ N(0, I),    x ~ discretised logistic (decoder(z), s),    fitted to nine of ten classes

The scores of held-out digits of all ten classes are held against which are of the class that was left out: the area
under the ROC curve, beside scikit-learn's isolation forest and one-class support vector machine on the same digits. Of
those that are rejected at a false discovery rate of 0.2, the share that is of known classes is printed as well, which
is at most 0.2 on average, whatever the model.

Reference: Nalisnick, Matsukawa, Teh and Lakshminarayanan, "Detecting out-of-distribution inputs to deep generative
models using typicality", 2019; Liu, Ting and Zhou, "Isolation forest", 2008.
Data: Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI repository, 1998 (part of scikit-learn).
"""

import argparse
import warnings

import numpy as np
import pandas as pd
import torch
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.svm import OneClassSVM

import pyrovae
from pyrovae import data, guides, likelihoods, models, nn, priors

LATENT = 8
RATE = 0.2


def fitted(train, validation, epochs, seed):
    torch.manual_seed(seed)
    model = models.VAE(
        prior=priors.StandardNormal(LATENT), decoder=nn.MLP(LATENT, 128, hidden=(64,)),
        likelihood=likelihoods.DiscretisedLogistic(levels=17),
    )  # fmt: skip
    guide = guides.MeanField(nn.MLP(64, 64, hidden=(64,)), LATENT)
    return pyrovae.fit(
        model, guide, train, validation_data=validation, patience=20, epochs=epochs, seed=seed, progress=False
    )


def one_class(left_out, epochs, num_particles):
    """Return the areas of all scores, the share of known classes among what is rejected, and the power."""
    parts = data.Digits().splits(validation=0.25, test=0.25, seed=0)
    train, validation, reference = (
        part.subset(np.flatnonzero(part.labels.numpy() != left_out))
        for part in (parts.train, parts.validation.subset(slice(0, 150)), parts.validation.subset(slice(150, None)))
    )
    fit, odd = fitted(train, validation, epochs, left_out), parts.test.labels.numpy() == left_out
    areas, options = {}, {"num_particles": num_particles, "progress": False, "rate": RATE}
    for score in ("evidence", "typicality", "reconstruction"):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "with .* reference data")  # how many are needed to reject a single one
            table = pyrovae.anomaly(fit.model, fit.guide, parts.test, reference, score=score, **options)
        areas[f"VAE, {score}"] = roc_auc_score(odd, table["score"])
        if score == "evidence":
            rejected = table["rejected"].to_numpy()
    pixels, others = (part.tensors[0].numpy() / 16 for part in (train, parts.test))
    forest = IsolationForest(n_estimators=300, random_state=left_out).fit(pixels)
    machine = OneClassSVM(gamma="scale", nu=0.1).fit(pixels)
    areas["isolation forest"] = roc_auc_score(odd, -forest.score_samples(others))
    areas["one-class SVM"] = roc_auc_score(odd, -machine.score_samples(others))
    return areas, ((rejected & ~odd).sum() / max(1, rejected.sum()), rejected[odd].mean())


def main(epochs=400, num_particles=500, classes=tuple(range(10))):
    areas, rejections = zip(*(one_class(c, epochs, num_particles) for c in classes), strict=True)
    table = pd.DataFrame(areas, index=pd.Index(classes, name="class left out"))
    print(table.round(3).to_string())
    summary = pd.DataFrame({"mean": table.mean(), "difference": table.sub(table["VAE, evidence"], axis=0).mean()})
    summary["difference_se"] = table.sub(table["VAE, evidence"], axis=0).std() / len(table) ** 0.5
    print(summary.round(3).to_string())
    false, power = np.array(rejections).T
    error = false.std(ddof=1) / len(false) ** 0.5
    print(
        f"rejected at a rate of {RATE}: of the class left out {power.mean():.2f}; among the rejected, of known classes"
    )
    print(f"{false.mean():.2f} on average over the classes (standard error {error:.2f})")
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=400)
    main(parser.parse_args().epochs)
