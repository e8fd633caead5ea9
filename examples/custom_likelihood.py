"""A likelihood of your own: absolute errors instead of squared ones, for measurements with outliers.

    z ~ N(0, I),    x_d ~ Laplace(decoder_d(z), scale_d)

On the diabetes data of Efron, Hastie, Johnstone and Tibshirani (2004), ten standardised measurements, shipped with
scikit-learn.
"""

import argparse

import pyro.distributions as dist
import torch
from sklearn.datasets import load_diabetes

import pyrovae
from pyrovae import guides, likelihoods, models, nn, priors


class LaplaceErrors(likelihoods.Likelihood):
    """The whole likelihood: one distribution per column; masks, moments and draws come with it."""

    def __init__(self, num_columns):
        super().__init__()
        self.raw_scale = torch.nn.Parameter(torch.zeros(num_columns))

    def columns(self, features):
        return dist.Laplace(features, nn.positive(self.raw_scale))


def main(epochs=300, num_particles=500):
    table = load_diabetes(scaled=False).data
    x = torch.tensor((table - table.mean(0)) / table.std(0), dtype=torch.float32)
    train, validation, test = pyrovae.data.Data(x).splits(validation=0.15, test=0.3)
    fits = {}
    for name, likelihood in {"Gaussian": likelihoods.Gaussian(num_scales=10), "Laplace": LaplaceErrors(10)}.items():
        torch.manual_seed(0)
        model = models.VAE(prior=priors.StandardNormal(3), decoder=nn.MLP(3, 10, hidden=(32,)), likelihood=likelihood)
        guide = guides.MeanField(nn.MLP(10, 32, hidden=(32,)), 3)
        options = {"epochs": epochs, "validation_data": validation, "patience": epochs // 4, "progress": False}
        fits[name] = pyrovae.fit(model, guide, train, **options)
    comparison = pyrovae.compare(fits, test, num_particles=num_particles, progress=False)
    print(comparison.round(3).to_string())
    return comparison


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=300)
    main(parser.parse_args().epochs)
