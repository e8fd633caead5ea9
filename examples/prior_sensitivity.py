"""What does the prior do to each wine's posterior? Thirteen measurements, two latents, three priors.

    z ~ N(0, I), Laplace(0, 1) or Student-t(3),    x ~ N(decoder(z), s^2)

The prior and the likelihood of each wine are raised to powers of 0.8 and 1.25 by reweighting, without a fit: where the
posterior of a latent follows both, the prior and the wine disagree about it; where it follows the prior alone, the wine
says little. Wines are held out.

Reference: Kallioinen, Paananen, Burkner and Vehtari, "Detecting and diagnosing prior and likelihood sensitivity with
power-scaling", 2024.
Data: Forina et al., "PARVUS", wine recognition data, 1988: UCI repository (part of scikit-learn).
"""

import argparse

import pandas as pd
import torch
from sklearn.datasets import load_wine

import pyrovae
from pyrovae import data, guides, models, nn, priors

LATENT = 2
PRIORS = {
    "standard normal": lambda: priors.StandardNormal(LATENT),
    "Laplace": lambda: priors.Laplace(LATENT),
    "Student-t, 3 df": lambda: priors.StudentT(LATENT, df=3.0),
}


def main(epochs=400, num_particles=4000):
    frame = load_wine(as_frame=True).data
    train, validation, test = data.Table(frame, types=dict.fromkeys(frame.columns, "continuous")).splits(seed=0)
    likelihood = train.likelihood()
    rows, worst = {}, {}
    for name, prior in PRIORS.items():
        torch.manual_seed(0)
        decoder = nn.MLP(LATENT, likelihood.features(train.shape), hidden=(32,))
        model = models.VAE(prior=prior(), decoder=decoder, likelihood=train.likelihood())
        guide = guides.FullRank(nn.Table(lambda width: nn.MLP(width, 32), train.inputs), LATENT)
        fit = pyrovae.fit(
            model, guide, train, validation_data=validation, patience=100, epochs=epochs, lr=3e-3, progress=False
        )
        found = pyrovae.sensitivity(fit.model, fit.guide, test, num_particles=num_particles, progress=False)
        rows[name] = {
            "log_evidence": float(pyrovae.evaluate(fit.model, fit.guide, test, progress=False).log_evidence.mean()),
            "prior": float(found.prior.median()), "likelihood": float(found.likelihood.median()), **found.summary(),
        }  # fmt: skip
        worst[name] = found.table().nlargest(3, "prior")[["prior", "likelihood", "diagnosis", "mean", "sd", "reliable"]]
    table = pd.DataFrame(rows).T
    print("median sensitivities over wines and latents, and shares of wines:")
    print(table.round(3).to_string())
    for name, part in worst.items():
        print(f"the posteriors that follow the {name} prior most:\n{part.round(3).to_string()}")
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=400)
    main(parser.parse_args().epochs)
