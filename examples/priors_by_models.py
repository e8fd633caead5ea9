"""Which prior for which model? Handwritten digits, held-out log evidence, differences paired by digit.

    VAE:              z ~ p(z),                       x ~ Bernoulli(decoder(z))
    HierarchicalVAE:  z2 ~ p(z2),  z1 ~ N(. | z2),    x ~ Bernoulli(decoder(z1))

The aggregate posterior is not N(0, I); a prior that can follow it loses fewer nats to the mismatch.

Reference: Tomczak and Welling, "VAE with a VampPrior", 2018.
"""

import argparse

import torch

import pyrovae
from pyrovae import guides, likelihoods, models, nn, objectives, priors

LATENT = 8
PRIORS = {
    "standard normal": lambda dim: priors.StandardNormal(dim),
    "mixture of 10": lambda dim: priors.MixtureOfGaussians(dim, num_components=10),
    "VampPrior of 50": lambda dim: priors.VampPrior(dim, num_components=50),
    "flow": lambda dim: priors.NormalizingFlow(dim),
}


def vae(prior):
    model = models.VAE(prior=prior, decoder=nn.MLP(LATENT, 64), likelihood=likelihoods.Bernoulli())
    return model, guides.MeanField(nn.MLP(64, 64), LATENT)


def hierarchical(prior):
    model = models.HierarchicalVAE(
        prior=prior, transitions=[nn.MLP(4, 2 * LATENT)], decoder=nn.MLP(LATENT, 64), likelihood=likelihoods.Bernoulli()
    )
    return model, guides.Ladder([nn.MLP(64, 64), nn.MLP(64, 32)], model)


MODELS = {"VAE": (vae, LATENT), "HierarchicalVAE": (hierarchical, 4)}


def main(epochs=300, num_particles=1000):
    train, validation, test = pyrovae.data.Digits(binarise=pyrovae.data.Static()).splits(seed=0)
    fits = {}
    for model_name, (make, top) in MODELS.items():
        for prior_name, prior in PRIORS.items():
            torch.manual_seed(0)
            model, guide = make(prior(top))
            if isinstance(model.prior, priors.VampPrior):
                model.prior.attach(guide, train)
            annealed = objectives.BetaELBO(objectives.linear(5 * epochs))
            options = {"validation_data": validation, "patience": 150, "progress": False}
            name = f"{model_name}, {prior_name}"
            fits[name] = pyrovae.fit(model, guide, train, objective=annealed, epochs=epochs, **options)
    table = pyrovae.compare(fits, test, num_particles=num_particles, progress=False)
    print(table.round(2).to_string())
    for name in MODELS:
        own = {n.removeprefix(f"{name}, "): f for n, f in fits.items() if n.startswith(name)}
        base = pyrovae.evaluate(*pair(own["standard normal"]), test, num_particles=num_particles, progress=False)
        for prior_name, fit in own.items():
            result = pyrovae.evaluate(*pair(fit), test, num_particles=num_particles, progress=False)
            gain = result.log_evidence - base.log_evidence
            error = float(gain.std()) / len(gain) ** 0.5
            print(
                f"{name}, {prior_name}: {float(gain.mean()):+.2f} nats to the standard normal (paired se {error:.2f})"
            )
    return table


def pair(fit):
    return fit.model, fit.guide


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=300)
    main(parser.parse_args().epochs)
