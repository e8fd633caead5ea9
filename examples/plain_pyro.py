"""A VAE in plain Pyro, then evaluated: how good are its bound and its posterior, digit by digit?

    z ~ N(0, I),    x | z ~ Bernoulli(decoder(z)),    q(z | x) = N(loc(x), diag(scale(x)^2))

The model, the guide and the training loop are Pyro's own, written out; pyrovae reads the same two functions.

Reference: Kingma and Welling, "Auto-encoding variational Bayes", 2014; the layout is that of Pyro's VAE tutorial.
"""

import argparse

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

import pyrovae

LATENT_DIM = 8


def main(epochs=150, num_particles=1000):
    pyro.set_rng_seed(0)
    train, _, test = pyrovae.data.Digits(binarise=pyrovae.data.Static()).splits(seed=0)
    encoder = nn.Sequential(nn.Linear(64, 128), nn.Softplus(), nn.Linear(128, 2 * LATENT_DIM))
    decoder = nn.Sequential(nn.Linear(LATENT_DIM, 128), nn.Softplus(), nn.Linear(128, 64))

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENT_DIM), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = encoder(x).chunk(2, dim=-1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), loss=Trace_ELBO())
    for epoch in range(epochs):
        loss = 0.0
        for batch in torch.randperm(len(train)).split(64):
            loss += svi.step(*train.batch(batch))
        if epoch % 25 == 0:
            print(f"epoch {epoch}: {loss / len(train):.2f} nats per observation")

    result = pyrovae.evaluate(model, guide, test, num_particles=num_particles)
    for name, value in result.summary().items():
        print(f"{name}: {value:.3f}")
    inference = pyrovae.to_arviz(model, guide, test.subset(range(50)), num_draws=200)
    print("worst k-hat, digits", inference.sample_stats["khat"].to_series().nlargest(5).round(2).to_dict())
    return result, inference


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=150)
    main(parser.parse_args().epochs)
