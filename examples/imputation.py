"""What should stand in the empty cells of a table? Two tables of measurements, three cells in ten missing.

    z ~ N(0, I),    x ~ N(decoder(z), s^2), only observed cells count,    q(z | observed x)

Each way of filling cells is held against what stood there: mean squared error of the imputed means (columns have
variance 1), and how often 90% intervals of 20 imputations hold the truth. A column's mean and nearest neighbours come
without intervals.

Reference: Mattei and Frellsen, "MIWAE: deep generative modelling and imputation of incomplete data sets", 2019.
Data: Forina et al., "PARVUS", wine recognition data, 1988; Wolberg, Mangasarian, Street and Street, "Breast cancer
Wisconsin (diagnostic)", 1993: UCI repository (shipped with scikit-learn).
"""

import argparse
import warnings

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401  makes the next import work
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer

import pyrovae
from pyrovae import data, guides, models, nn, objectives, priors

TABLES = {"wine": (load_wine, 3), "breast cancer": (load_breast_cancer, 6)}
COPIES = 20


def fitted(table, latents, epochs, seed, bootstrap):
    """Fit to the rows of a table, or to a bootstrap sample of its training rows."""
    torch.manual_seed(seed)
    train, validation, _ = table.splits(validation=0.15, test=0.0, seed=seed)
    if bootstrap:  # after the split, so that no copy of a training row is used for early stopping
        train = train.subset(np.random.default_rng(seed).integers(0, len(train), len(train)))
    likelihood = train.likelihood()
    decoder = nn.MLP(latents, likelihood.features(train.shape), hidden=(32,))
    model = models.VAE(prior=priors.StandardNormal(latents), decoder=decoder, likelihood=likelihood)
    guide = guides.MeanField(nn.Table(lambda width: nn.MLP(width, 32, hidden=(32,)), train.inputs), latents)
    return pyrovae.fit(
        model, guide, train, objective=objectives.IWAE(10, estimator="dreg"), epochs=epochs, lr=2e-3, seed=seed,
        validation_data=validation, patience=max(1, epochs // 5), progress=False,
    )  # fmt: skip


def by_vae(frame, types, latents, epochs, seed, fits):
    """Impute by one fit, or by several to bootstrap samples."""
    table, parts = data.Table(frame, types=types), []
    for number in range(fits):
        own = 1000 * seed + number
        fit = fitted(table, latents, epochs, own, bootstrap=fits > 1)
        parts.append(
            pyrovae.impute(fit.model, fit.guide, table, num_imputations=COPIES // fits, seed=own, progress=False)
        )
    return pyrovae.Imputations.joined(parts)


def score(copies, whole, missing, with_intervals=True):
    """Return the mean squared error of the means and the coverage of 90% intervals, in the whole table's scales."""
    scaled, truth = (np.stack(copies) - whole.mean(0)) / whole.std(0), (whole - whole.mean(0)) / whole.std(0)
    error = float(((scaled.mean(0) - truth)[missing] ** 2).mean())
    if not with_intervals:
        return error, float("nan")
    low, high = np.quantile(scaled, [0.05, 0.95], axis=0, method="weibull")
    return error, float(((low <= truth) & (truth <= high))[missing].mean())


def one_table(name, seed, epochs, fits):
    load, latents = TABLES[name]
    frame = load(as_frame=True).data.astype(float)
    whole = frame.to_numpy()
    missing = np.random.default_rng(seed).random(whole.shape) < 0.3
    missing[missing.all(1), 0] = False
    holed, types = frame.mask(missing), dict.fromkeys(frame.columns, "continuous")
    x = holed.to_numpy()
    scales = np.nanmean(x, 0), np.nanstd(x, 0)  # nearest neighbours and chained regressions are given standard columns
    back = lambda z: z * scales[1] + scales[0]  # noqa: E731
    z = (x - scales[0]) / scales[1]
    chained = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # draws do not converge
        for number in range(COPIES):
            imputer = IterativeImputer(sample_posterior=True, max_iter=10, random_state=1000 * seed + number)
            chained.append(back(imputer.fit_transform(z)))
    one, several = (by_vae(holed, types, latents, epochs, seed, count) for count in (1, fits))
    ways = {
        "column mean": (score([SimpleImputer().fit_transform(x)], whole, missing, False)),
        "5 nearest neighbours": (score([back(KNNImputer(n_neighbors=5).fit_transform(z))], whole, missing, False)),
        "chained regressions": score(chained, whole, missing),
        "VAE": score(list(one.values.numpy()), whole, missing),
        f"VAE, {fits} bootstrap fits": score(list(several.values.numpy()), whole, missing),
    }
    return [{"table": name, "method": way, "mse": e, "coverage": c} for way, (e, c) in ways.items()]


def main(epochs=1500, seeds=3, fits=4, tables=tuple(TABLES)):
    rows = [row for name in tables for seed in range(seeds) for row in one_table(name, seed, epochs, fits)]
    result = pd.DataFrame(rows).groupby(["table", "method"], sort=False)[["mse", "coverage"]].agg(["mean", "std"])
    print(result.round(3).to_string())
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    main(arguments.epochs, arguments.seeds)
