"""Do the codes of counts say what is counted, or only how much? Simulated cells whose library size varies tenfold.

    z ~ N(0, I),    x_d ~ NegativeBinomial(mean e softplus(decoder(z))_d, dispersion r_d)

with the exposure e: the row's own total, or, without an offset, 1. The codes should tell the kinds of cells, and not
the size, which is printed as the multiple correlation of the code's means with the logarithm of the true size.

Reference: Lopez, Regier, Cole, Jordan and Yosef, "Deep generative modeling for single-cell transcriptomics", 2018.
"""

import argparse

import numpy as np
import pandas as pd
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

import pyrovae
from pyrovae import data, guides, models, nn, priors

LATENT, KINDS, GENES = 4, 4, 60


def cells(rows, seed=0):
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, KINDS, rows)
    profiles = rng.gamma(0.4, 1.0, (KINDS, GENES)) + 0.02
    rates = rng.gamma(5.0, (profiles / profiles.sum(1, keepdims=True))[kinds] / 5.0)
    sizes = np.exp(rng.uniform(np.log(500), np.log(5000), rows))
    return rng.poisson(rates * sizes[:, None]), sizes, kinds


def correlation(codes, sizes):
    """Return the multiple correlation of the codes with the logarithm of the sizes."""
    design, log_sizes = np.column_stack([np.ones(len(codes)), codes]), np.log(sizes)
    return float(np.corrcoef(design @ np.linalg.lstsq(design, log_sizes, rcond=None)[0], log_sizes)[0, 1])


def main(rows=4000, epochs=400):
    counts, sizes, kinds = cells(rows)
    rows_of = {}
    for offset in (True, False):
        table = data.Table(counts, types={f"V{k + 1}": "count" for k in range(GENES)}, totals=offset)
        train, validation, test = table.splits(seed=0)
        torch.manual_seed(0)
        decoder = nn.MLP(LATENT, GENES)
        model = models.VAE(prior=priors.StandardNormal(LATENT), decoder=decoder, likelihood=train.likelihood())
        encoder = nn.Table(lambda width: nn.MLP(width, 64), train.inputs, exposure=train.typical_exposure)
        guide = guides.MeanField(encoder, LATENT)
        fit = pyrovae.fit(
            model, guide, train, validation_data=validation, epochs=epochs, patience=40, lr=2e-3, progress=False
        )
        with torch.no_grad():
            codes = fit.guide.cpu().posterior(*test.batch(slice(None))).mean.numpy()
        clusters = KMeans(KINDS, n_init=10, random_state=0).fit_predict(codes)
        rows_of["offset" if offset else "no offset"] = {
            "correlation with log size": correlation(codes, sizes[test.index]),
            "ARI of k-means on the codes": adjusted_rand_score(kinds[test.index], clusters),
            "validation bound": fit.history["validation_bound"].max(),
            "ended": fit.ending.status,
        }
    table = pd.DataFrame.from_dict(rows_of, orient="index")
    print(table.round(3).to_string())
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4000)
    main(parser.parse_args().rows)
