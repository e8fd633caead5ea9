"""How far do ten labels per class go? Handwritten digits, 100 of 1,258 with a label, held-out accuracy.

    y ~ Categorical,    z ~ N(0, I),    x ~ N(decoder(z, y), 0.15^2),    q(y, z | x) = q(y | x) q(z | x, y)

M2 fits pictures and labels together, with y summed out where it is missing. M1+M2 does so on the codes of a plain VAE
(M1) that used no label. The baseline is the same classifier on the 100 labelled digits alone.

Reference: Kingma, Rezende, Mohamed and Welling, "Semi-supervised learning with deep generative models", 2014.
"""

import argparse

import pandas as pd
import torch
from torch.nn.functional import cross_entropy

import pyrovae
from pyrovae import guides, likelihoods, models, nn, objectives, priors

PIXELS, CLASSES, LATENT = 64, 10, 8


def few(labels, each):
    """Keep ``each`` labels of every class, drawn at random; -1 for the others."""
    few_labels = torch.full_like(labels, -1)
    for k in range(CLASSES):
        rows = (labels == k).nonzero()[:, 0]
        few_labels[rows[torch.randperm(len(rows))[:each]]] = k
    return few_labels


def supervised(x, labels, steps):
    classifier = torch.nn.Sequential(nn.MLP(x.shape[1], 64), torch.nn.ReLU(), torch.nn.Linear(64, CLASSES))
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(classifier(x), labels).backward()
        optimizer.step()
    return lambda x: classifier(x).softmax(-1)


def m2(x, labels, likelihood, steps):
    size = x.shape[1]
    model = models.SemiSupervisedVAE(
        prior=priors.StandardNormal(LATENT),
        decoder=nn.MLP(LATENT + CLASSES, likelihood.features(size)),
        likelihood=likelihood,
        num_classes=CLASSES,
    )
    guide = guides.ClassConditional(nn.MLP(size, 64), guides.MeanField(nn.MLP(size + CLASSES, 64), LATENT), CLASSES)
    weight = 0.1 * len(x) / int((labels >= 0).sum()) * PIXELS  # the bound of a picture is a sum over its pixels
    objective = objectives.SemiSupervisedELBO(weight)
    pyrovae.fit(model, guide, (x, labels), objective=objective, steps=steps, batch_size=64, progress=False)
    return guide.probabilities


def main(steps=3000, each=10, seeds=3):
    train, _, test = pyrovae.data.Digits().splits(validation=0.1, seed=0)
    (x,), (x_test,) = train.batch(slice(None)), test.batch(slice(None))
    rows = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        labels = few(train.labels, each)
        has_label = labels >= 0
        classifiers = {"supervised alone": supervised(x[has_label], labels[has_label], steps // 2)}
        classifiers["M2"] = m2(x, labels, likelihoods.Gaussian(fixed=0.15), steps)
        likelihood = likelihoods.Gaussian(fixed=0.15)
        plain = models.VAE(prior=priors.StandardNormal(10), decoder=nn.MLP(10, PIXELS), likelihood=likelihood)
        codes = guides.MeanField(nn.MLP(PIXELS, 128), 10)
        annealed = objectives.BetaELBO(objectives.linear(steps // 2))
        pyrovae.fit(plain, codes, x, steps=steps, batch_size=64, objective=annealed, progress=False)
        with torch.no_grad():
            z, z_test = (codes.posterior(part).mean for part in (x, x_test))
            probabilities = {name: classify(x_test) for name, classify in classifiers.items()}
        stacked = m2(z, labels, likelihoods.Gaussian(num_scales=10), steps)
        with torch.no_grad():
            probabilities["M1+M2"] = stacked(z_test)
        for name, probs in probabilities.items():
            rows.append({"method": name, "accuracy": float((probs.argmax(1) == test.labels).double().mean())})
    table = pd.DataFrame(rows).groupby("method", sort=False)["accuracy"].agg(["mean", "std"])
    print(table.round(3).to_string())
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000)
    main(parser.parse_args().steps)
