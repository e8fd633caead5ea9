"""Where does a model of three layers keep what it knows? Handwritten digits, the KL of every layer.

    z3 ~ N(0, I),    z2 ~ N(. | z3),    z1 ~ N(. | z2, z3),    x ~ Bernoulli(decoder(z1, z2, z3))

A bottom-up guide and a ladder are compared with a plain VAE of as many latents in one layer. The KL is annealed, for
upper layers easily die at the start. The rate of a layer is a KL under the ladder, which samples in the model's order.

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


def main(epochs=300, num_particles=1000):
    train, validation, test = pyrovae.data.Digits(binarise=pyrovae.data.Static()).splits(seed=0)
    fits = {}
    torch.manual_seed(0)
    for name, model, guide in candidates():
        annealed = objectives.BetaELBO(objectives.linear(5 * epochs))
        options = {"validation_data": validation, "patience": 150, "progress": False}
        fits[name] = pyrovae.fit(model, guide, train, objective=annealed, epochs=epochs, **options)
        print(f"{name}: nats of each layer")
        print(pyrovae.rates(model, guide, test, progress=False).round(2).to_string())
    table = pyrovae.compare(fits, test, num_particles=num_particles, progress=False)
    print(table.round(2).to_string())
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=300)
    main(parser.parse_args().epochs)
