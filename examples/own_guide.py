"""A guide of your own: heavy-tailed codes, for a posterior whose tails a Gaussian would miss.

q(z | x) = prod_d Student-t(df_d(x), loc_d(x), scale_d(x)), on wine's 13 chemical measurements, z ~ Laplace(0, 1).
"""

import argparse

import pyro.distributions as dist
import torch
from sklearn.datasets import load_wine

import pyrovae
from pyrovae import guides, likelihoods, models, nn, priors


class HeavyTailed(guides.Guide):
    """The whole guide: a head that gives the family's parameters, and the family."""

    def __init__(self, encoder, latent_dim, *, latent="z", support=None):
        super().__init__(encoder, latent_dim, latent=latent, support=support)
        self.head = torch.nn.Linear(self.num_features, 3 * self.free_dim)

    def family(self, params):
        loc, raw_scale, raw_df = params.chunk(3, dim=-1)
        return dist.StudentT(1 + nn.positive(raw_df + 5), loc, nn.positive(raw_scale)).to_event(1)


def main(epochs=400, num_particles=1000):
    table = load_wine().data
    x = torch.tensor((table - table.mean(0)) / table.std(0), dtype=torch.float32)
    train, validation, test = pyrovae.data.Data(x).splits(validation=0.15, test=0.3)
    fits = {}
    for name, family in {"Gaussian": guides.MeanField, "heavy-tailed": HeavyTailed}.items():
        torch.manual_seed(0)
        likelihood = likelihoods.Gaussian(num_scales=13)
        model = models.VAE(prior=priors.Laplace(3), decoder=nn.MLP(3, 13, hidden=(32,)), likelihood=likelihood)
        guide = family(nn.MLP(13, 32, hidden=(32,)), 3)
        options = {"epochs": epochs, "validation_data": validation, "patience": epochs // 4, "lr": 2e-3}
        fits[name] = pyrovae.fit(model, guide, train, progress=False, **options)
    comparison = pyrovae.compare(fits, test, num_particles=num_particles, progress=False)
    print(comparison.round(3).to_string())
    return comparison


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=400)
    main(parser.parse_args().epochs)
