"""Your own model and guide: sparse codes of handwritten digits under a Laplace prior.

z_d ~ Laplace(0, 1),    x | z ~ Bernoulli(decoder(z)),    q(z | x) = N(loc(x), diag(scale(x)^2))
"""

import pyro
import pyro.distributions as dist
import torch

import pyrovae
from pyrovae import nn

train, validation, test = pyrovae.data.Digits(binarise=pyrovae.data.Static()).splits(seed=0)
torch.manual_seed(0)
encoder, decoder = nn.MLP(64, 16), nn.MLP(8, 64)


def model(x):
    pyro.module("decoder", decoder)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Laplace(torch.zeros(8), 1.0).to_event(1))
        pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)


def guide(x):
    pyro.module("encoder", encoder)
    with pyro.plate("data", len(x)):
        loc, raw = encoder(x).chunk(2, dim=-1)
        pyro.sample("z", dist.Normal(loc, nn.positive(raw)).to_event(1))


fit = pyrovae.fit(model, guide, train, epochs=100, validation_data=validation, patience=10)
print(pyrovae.evaluate(fit.model, fit.guide, test).summary())
inference = pyrovae.to_arviz(fit.model, fit.guide, test, num_draws=100)
print(inference.posterior["z"].mean(("chain", "draw")))
