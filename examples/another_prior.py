"""What would another prior say about these wines? By reweighting, by a fit of its own, and is it worth the search?

    z ~ N(0, I),    x ~ N(decoder(z), s^2)

1. Other priors in the place of N(0, I), model and guide as they were fitted: `reprior`.
2. How much evidence could the best prior gain, by a flow fitted to other wines, and at most: `prior_gain`.
3. A fit under each prior, compared on held-out wines: differences, the probability of being worse, stacking weights,
   and Bayes factors with their Monte Carlo errors.

Reference: Yao, Vehtari, Simpson and Gelman, "Using stacking to average Bayesian predictive distributions", 2018.
Data: Forina et al., "PARVUS", wine recognition data, 1988: UCI repository (part of scikit-learn).
"""

import argparse

import pandas as pd
import torch
from sklearn.datasets import load_wine

import pyrovae
from pyrovae import data, guides, models, nn, priors

LATENT = 2
OTHERS = {
    "N(0, 0.7^2)": lambda: pyrovae.priors.Parametric(LATENT, "Normal", {"loc": 0.0, "scale": 0.7}),
    "Laplace": lambda: priors.Laplace(LATENT),
    "Student-t, 3 df": lambda: priors.StudentT(LATENT, df=3.0),
}


def fitted(prior, train, validation, epochs):
    torch.manual_seed(0)
    likelihood = train.likelihood()
    decoder = nn.MLP(LATENT, likelihood.features(train.shape), hidden=(32,))
    model = models.VAE(prior=prior.requires_grad_(False), decoder=decoder, likelihood=likelihood)
    guide = guides.FullRank(nn.Table(lambda width: nn.MLP(width, 32), train.inputs), LATENT)
    return pyrovae.fit(
        model, guide, train, validation_data=validation, patience=100, epochs=epochs, lr=3e-3, progress=False
    )  # fmt: skip


def main(epochs=400, num_particles=4000):
    frame = load_wine(as_frame=True).data
    table = data.Table(frame, types=dict.fromkeys(frame.columns, "continuous"))
    train, validation, test = table.splits(validation=0.15, test=0.35, seed=0)
    fits = {"N(0, 1)": fitted(priors.StandardNormal(LATENT), train, validation, epochs)}
    one, quiet = fits["N(0, 1)"], {"num_particles": num_particles, "progress": False}
    rows = {n: pyrovae.reprior(one.model, one.guide, test, p(), **quiet) for n, p in OTHERS.items()}
    print(f"{len(test)} held-out wines, other priors without a fit:")
    for name, found in rows.items():
        print(f"  {name}: {found}")
    gain = pyrovae.prior_gain(one.model, one.guide, test, progress=False)
    print(gain)
    fits |= {name: fitted(prior(), train, validation, epochs) for name, prior in OTHERS.items()}
    comparison = pyrovae.compare(fits, test, **quiet)
    columns = ["log_evidence", "difference", "difference_se", "p_worse", "diagnosis", "weight", "weight_se", "reliable"]
    print(f"fits of their own:\n{comparison[columns].round(3).to_string()}")
    evaluations = {n: pyrovae.evaluate(f.model, f.guide, test, **quiet) for n, f in fits.items()}
    factors = pyrovae.bayes_factors(evaluations)
    print(f"Bayes factors of the held-out wines, given the others:\n{factors.round(2).to_string()}")
    summary = {name: found.summary() for name, found in rows.items()}
    return pd.DataFrame(summary).T, gain, comparison, factors


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=400)
    main(parser.parse_args().epochs)
