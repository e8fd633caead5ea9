"""For which digits is the guide wrong, and are the digits such as the model makes?

A VAE of binarised digits with a factorised Gaussian guide. Under the model: are its posteriors right on average
(`sbc`), at every held-out digit (`lc2st`), and do they find latents that are known (`recovery`)? And under the data:
are the held-out digits within what the model makes (`misspecification`), and which pixels, which digits are not?

Reference: Linhart, Gramfort and Rodrigues, "L-C2ST: Local diagnostics for posterior approximations in simulation-based
inference", 2023; Schmitt, Buerkner, Koethe and Radev, "Detecting model misspecification in amortized Bayesian
inference with neural networks", 2023.
Data: Alpaydin and Kaynak, "Optical recognition of handwritten digits", 1998: UCI repository (part of scikit-learn).
"""

import argparse

import pandas as pd
import torch

import pyrovae
from pyrovae import data, guides, likelihoods, models, nn, priors

LATENT = 4


def main(epochs=150, num_simulations=10_000, num_null=20):
    train, validation, test = data.Digits(binarise=data.Static()).splits(seed=0)
    torch.manual_seed(0)
    model = models.VAE(
        prior=priors.StandardNormal(LATENT), decoder=nn.MLP(LATENT, 64), likelihood=likelihoods.Bernoulli()
    )
    guide = guides.MeanField(nn.MLP(64, 64), LATENT)
    fit = pyrovae.fit(
        model, guide, train, validation_data=validation, patience=20, epochs=epochs, lr=2e-3, progress=False
    )
    quiet = {"progress": False}
    calibration = pyrovae.sbc(fit.model, fit.guide, test, num_simulations=num_simulations // 10, **quiet)
    print(calibration.table()[["adjusted", "pot", "piet", "spread"]].round(3).to_string())
    local = pyrovae.lc2st(fit.model, fit.guide, test, num_simulations=num_simulations, num_null=num_null, **quiet)
    print(local)
    table = local.table().assign(digit=test.labels.numpy())
    by_digit = table.groupby("digit").agg(
        effect=("effect", "mean"), rejected=("pvalue", lambda p: float((p <= 0.05).mean()))
    )
    print(f"by digit:\n{by_digit.round(3).to_string()}")
    found = pyrovae.recovery(fit.model, fit.guide, test, **quiet)
    print(found)
    criticism = pyrovae.misspecification(fit.model, fit.guide, test, **quiet)
    print(criticism)
    print(criticism.tests.round(4).to_string())
    print(f"the oddest digits:\n{criticism.worst(5).round(4).to_string()}")
    return by_digit, pd.DataFrame(criticism.tests), found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--figure", help="file for the figure of recovered latents")
    arguments = parser.parse_args()
    recovered = main(arguments.epochs)[2]
    if arguments.figure:
        recovered.plot().savefig(arguments.figure)
