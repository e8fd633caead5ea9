"""What should stand in the empty cells of a table? Wine, 13 chemical measurements, three cells in ten missing.

    z ~ N(0, I),    x ~ N(decoder(z), s^2), only observed values count,    q(z | observed x)

An imputed value is the mean of p(missing | observed), by importance sampling: draws of z weighed by p(x, z) / q(z | x).

Reference: Mattei and Frellsen, "MIWAE: deep generative modelling and imputation of incomplete data sets", 2019.
Data: Forina et al., "PARVUS", wine recognition data, UCI repository, 1988 (shipped with scikit-learn).
"""

import argparse

import pandas as pd
import torch
from sklearn.datasets import load_wine
from sklearn.experimental import enable_iterative_imputer  # noqa: F401  makes the next import work
from sklearn.impute import IterativeImputer, KNNImputer

import pyrovae
from pyrovae import guides, likelihoods, models, nn, objectives, priors

LATENT = 3


def impute(model, guide, x, num_particles):
    """Return the mean of every value given the observed ones."""
    with torch.no_grad():
        q = guide.posterior(x)
        z = q.sample((num_particles,))
        p_x = model.likelihood(model.decoder(z))
        weights = (model.prior().log_prob(z) + p_x.log_prob(x) - q.log_prob(z)).softmax(0)
        means = (weights[..., None] * p_x.mean).sum(0)
    return torch.where(x.isnan(), means, x)


def main(epochs=1500, num_particles=500, seeds=3):
    table = torch.tensor(load_wine().data, dtype=torch.float32)
    whole = (table - table.mean(0)) / table.std(0)
    rows = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        missing = torch.rand(whole.shape) < 0.3
        missing[missing.all(1), 0] = False
        x = torch.where(missing, torch.nan, whole)
        likelihood = likelihoods.Missing(likelihoods.Gaussian(num_scales=13))
        model = models.VAE(
            prior=priors.StandardNormal(LATENT), decoder=nn.MLP(LATENT, 13, hidden=(32,)), likelihood=likelihood
        )
        guide = guides.MeanField(nn.Observed(nn.MLP(2 * 13, 32, hidden=(32,))), LATENT)
        data = pyrovae.data.Data(x, missing=True)
        train, validation, _ = data.splits(validation=0.15, test=0.0, seed=seed)
        objective = objectives.IWAE(10, estimator="dreg")
        options = {"validation_data": validation, "patience": epochs // 5, "lr": 2e-3, "progress": False}
        pyrovae.fit(model, guide, train, objective=objective, epochs=epochs, **options)
        tables = {
            "column mean": torch.where(missing, x.nanmean(0), x),
            "5 nearest neighbours": torch.from_numpy(KNNImputer(n_neighbors=5).fit_transform(x)),
            "chained regressions": torch.from_numpy(
                IterativeImputer(max_iter=100, tol=0.01, random_state=seed).fit_transform(x)
            ),
            "VAE": impute(model, guide, x, num_particles),
        }
        rows += [{"method": n, "rmse": float((v - whole)[missing].square().mean().sqrt())} for n, v in tables.items()]
    errors = pd.DataFrame(rows).groupby("method", sort=False)["rmse"].agg(["mean", "std"])
    print(errors.round(3).to_string())
    return errors


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=1500)
    main(parser.parse_args().epochs)
