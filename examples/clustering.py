"""Which digits belong together, if no label is used? Ten clusters of handwritten digits, beside k-means.

    y ~ Categorical(pi),   z ~ N(loc_y, diag(scale_y^2)),   x ~ N(decoder(z), 0.15^2),   q(z | x) p(y | z)

A plain VAE is fitted first, with an annealed KL; the clusters start from a Gaussian mixture of its codes. They are
scored against the labels of held-out digits by the adjusted Rand index (0 is chance) and normalised mutual information.

Reference: Jiang, Zheng, Tan, Tang and Zhou, "Variational deep embedding", 2017.
"""

import argparse

import pandas as pd
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

import pyrovae
from pyrovae import guides, likelihoods, models, nn, objectives, priors

CLUSTERS, LATENT = 10, 10


def main(steps=3000, seeds=3):
    train, _, test = pyrovae.data.Digits().splits(seed=0)
    (x,), (x_test,) = train.batch(slice(None)), test.batch(slice(None))
    rows = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        model = models.GaussianMixtureVAE(
            num_clusters=CLUSTERS,
            latent_dim=LATENT,
            decoder=nn.MLP(LATENT, 64),
            likelihood=likelihoods.Gaussian(fixed=0.15),
        )
        guide = guides.Clustered(guides.MeanField(nn.MLP(64, 128), LATENT), model)
        plain = models.VAE(prior=priors.StandardNormal(LATENT), decoder=model.decoder, likelihood=model.likelihood)
        options = {"batch_size": 64, "seed": seed, "progress": False}
        annealed = objectives.BetaELBO(objectives.linear(steps // 2))
        pyrovae.fit(plain, guide.latent, x, steps=steps, objective=annealed, **options)
        with torch.no_grad():
            codes, codes_test = (guide.latent.posterior(part).mean for part in (x, x_test))
            model.start_at(guide.latent.posterior(x).sample((5,)).flatten(0, 1), seed=seed)
        summed_out = objectives.TraceEnum_ELBO(max_plate_nesting=1)
        pyrovae.fit(model, guide, x, steps=steps, objective=summed_out, **options)
        pixels = KMeans(CLUSTERS, n_init=10, random_state=seed).fit(x)
        plain_codes = KMeans(CLUSTERS, n_init=10, random_state=seed).fit(codes)
        clusters = {
            "k-means of the pixels": pixels.predict(x_test),
            "k-means of a plain VAE's codes": plain_codes.predict(codes_test),
            "GaussianMixtureVAE": guide.probabilities(x_test).argmax(1),
        }
        rows += [
            {
                "method": name,
                "ARI": adjusted_rand_score(test.labels, y),
                "NMI": normalized_mutual_info_score(test.labels, y),
            }
            for name, y in clusters.items()
        ]
    table = pd.DataFrame(rows).groupby("method", sort=False).agg(["mean", "std"])
    print(table.round(3).to_string())
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000)
    main(parser.parse_args().steps)
