"""Which of three layers hold the information? Handwritten digits, the KL of every layer.

    z3 ~ N(0, I),    z2 ~ N(. | z3),    z1 ~ N(. | z2, z3),    x ~ Bernoulli(decoder(z1, z2, z3))

A bottom-up guide and a ladder are compared with a plain VAE of as many latents in one layer. The KL is annealed,
because upper layers easily collapse at the start. The rate of a layer is a KL under the ladder, which samples in the
model's order.

Reference: Sonderby, Raiko, Maaloe, Sonderby and Winther, "Ladder variational autoencoders", 2016.
"""

import argparse

import torch

import pyrovae
from pyrovae import guides, likelihoods, models, nn, objectives, priors


def deep():
    return models.HierarchicalVAE(
        prior=priors.StandardNormal(2),
        transitions=[nn.MLP(2, 2 * 4), nn.MLP(4 + 2, 2 * 8)],
        decoder=nn.MLP(8 + 4 + 2, 64),
        likelihood=likelihoods.Bernoulli(),
        skip=True,
    )


def candidates():
    model = deep()
    yield "ladder", model, guides.Ladder([nn.MLP(64, 64), nn.MLP(64, 32), nn.MLP(32, 16)], model)
    layers = [(64, 8), (8, 4), (4, 2)]
    bottom_up = guides.Hierarchical([guides.MeanField(nn.MLP(wide, 64), narrow) for wide, narrow in layers])
    yield "bottom-up", deep(), bottom_up
    plain = models.VAE(prior=priors.StandardNormal(14), decoder=nn.MLP(14, 64), likelihood=likelihoods.Bernoulli())
    yield "one layer", plain, guides.MeanField(nn.MLP(64, 64), 14)


def fitted(pairs, train, steps, options):
    """Fit each pair with an annealed KL."""
    fits = {}
    for name, model, guide in pairs:
        annealed = objectives.BetaELBO(objectives.linear(steps))
        fits[name] = pyrovae.fit(model, guide, train, objective=annealed, progress=False, **options)
    return fits


def report(fits, test, num_particles):
    for name, fit in fits.items():
        print(f"{name}: nats of each layer")
        print(pyrovae.rates(fit.model, fit.guide, test, progress=False).round(2).to_string())
    table = pyrovae.compare(fits, test, num_particles=num_particles, progress=False)
    print(table.round(2).to_string())
    return table


def main(epochs=300, num_particles=1000):
    train, validation, test = pyrovae.data.Digits(binarise=pyrovae.data.Static()).splits(seed=0)
    torch.manual_seed(0)
    options = {"epochs": epochs, "validation_data": validation, "patience": 150}
    return report(fitted(candidates(), train, 5 * epochs, options), test, num_particles)


def on_mnist(root, epochs=25, num_particles=1000):
    """Two layers, 20 and 40 latents, beside one of 40: with enough data the upper layer is worth having."""
    splits = pyrovae.data.MNIST(root=root, binarise=pyrovae.data.Dynamic()).splits(seed=0)
    wide = (300, 300)
    torch.manual_seed(0)
    plain = models.VAE(
        prior=priors.StandardNormal(40), decoder=nn.MLP(40, 784, hidden=wide), likelihood=likelihoods.Bernoulli()
    )
    pairs = [("one layer", plain, guides.MeanField(nn.MLP(784, 300, hidden=(300,)), 40))]
    torch.manual_seed(0)
    model = models.HierarchicalVAE(
        prior=priors.StandardNormal(20),
        transitions=[nn.MLP(20, 2 * 40, hidden=(200,))],
        decoder=nn.MLP(40 + 20, 784, hidden=wide),
        likelihood=likelihoods.Bernoulli(),
        skip=True,
    )
    lower = guides.MeanField(nn.MLP(784, 300, hidden=(300,)), 40)
    upper = guides.MeanField(nn.MLP(40, 200, hidden=(200,)), 20)
    pairs.append(("two layers", model, guides.Hierarchical([lower, upper])))
    fits = fitted(pairs, splits.train, 4000, {"epochs": epochs})
    return report(fits, splits.test.subset(range(1000)), num_particles)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=None)
    parser.add_argument("--mnist", help="folder that holds MNIST/raw: compare on MNIST instead")
    arguments = parser.parse_args()
    options = {} if arguments.epochs is None else {"epochs": arguments.epochs}
    on_mnist(arguments.mnist, **options) if arguments.mnist else main(**options)
