"""Does a heavy-tailed or a learned prior fit tabular data better than N(0, I)? Wine, 13 chemical measurements.

    z ~ p(z),    x | z ~ N(decoder(z), s^2),    q(z | x) = N(loc(x), L(x) L(x)')

with p(z) standard normal, Laplace, or a mixture of Gaussians learned with the model. The table's difference column has
the standard error of the paired differences, so that priors are compared on the same wines.

Reference: Forina et al., "PARVUS", wine recognition data, UCI repository, 1988 (shipped with scikit-learn).
"""

import argparse

import pyro.distributions as dist
import torch
from sklearn.datasets import load_wine

import pyrovae
from pyrovae import guides, likelihoods, models, nn, priors

LATENT_DIM = 3


def main(epochs=1500, num_particles=2000):
    wines = pyrovae.data.Data(torch.tensor(load_wine().data, dtype=torch.float32))
    train, validation, test = wines.standardised().splits(validation=0.15, test=0.3)  # by the training wines' moments
    candidates = {
        "standard normal": lambda: priors.StandardNormal(LATENT_DIM),
        "Laplace": lambda: dist.Laplace(torch.zeros(LATENT_DIM), 1.0).to_event(1),
        "mixture of 3": lambda: priors.MixtureOfGaussians(LATENT_DIM, num_components=3),
    }
    fits = {}
    for name, prior in candidates.items():
        torch.manual_seed(0)
        model = models.VAE(
            prior=prior(), decoder=nn.MLP(LATENT_DIM, 13, hidden=(32,)), likelihood=likelihoods.Gaussian(num_scales=13)
        )
        guide = guides.FullRank(nn.MLP(13, 32, hidden=(32,)), LATENT_DIM)
        fits[name] = pyrovae.fit(
            model,
            guide,
            train,
            epochs=epochs,
            validation_data=validation,
            patience=epochs // 5,
            lr=2e-3,
            progress=False,
        )
    comparison = pyrovae.compare(fits, test, num_particles=num_particles, progress=False)
    print(comparison.round(3).to_string())
    return comparison


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=1500)
    main(parser.parse_args().epochs)
