"""Does a heavier KL give latents that each hold one factor? Sprites of known shape, scale, orientation and place.

    z ~ N(0, I) of 8,    x ~ Bernoulli(decoder(z)),    objective: E[log p(x | z)] - beta KL, or beta on TC alone

Printed for each strategy: five published scores of its codes (above chance: 0 for noise, 1 for one latent per
factor), the parts of the rate, and which latents are in use. If a weight collapses latents, the scores of the rest may
rise.

Reference: Higgins et al., "beta-VAE: learning basic visual concepts with a constrained variational framework", 2017;
Chen, Li, Grosse and Duvenaud, "Isolating sources of disentanglement in variational autoencoders", 2018.
"""

import pandas as pd
import torch
from pyro.infer import Trace_ELBO

import pyrovae
from pyrovae import guides, likelihoods, models, nn, objectives, priors

LATENTS = 8


def pair(size):
    torch.manual_seed(0)
    model = models.VAE(
        prior=priors.StandardNormal(LATENTS),
        decoder=nn.MLP(LATENTS, size, hidden=(256, 256)),
        likelihood=likelihoods.Bernoulli(),
    )
    return model, guides.MeanField(nn.MLP(size, 256, hidden=(256,)), LATENTS)


def main(epochs=200, num_data=1000):
    sprites = pyrovae.data.Sprites(size=16, binarise=pyrovae.data.Static())
    some = sprites.subset(torch.randperm(len(sprites), generator=torch.Generator().manual_seed(0))[:num_data])
    size = sprites.batch(slice(0, 1))[0].shape[1]
    strategies = {
        "ELBO": Trace_ELBO(),
        "beta 4": objectives.BetaELBO(4.0),
        "total correlation 6": objectives.BetaTCVAE(len(sprites), total_correlation=6.0),
    }
    scores, rates = {}, {}
    for name, objective in strategies.items():
        model, guide = pair(size)
        fit = pyrovae.fit(model, guide, sprites, objective=objective, epochs=epochs, progress=False)
        codes = pyrovae.codes(fit.model, fit.guide, some, progress=False)
        scores[name] = pyrovae.disentanglement(codes, some.factors, categorical=[0])["adjusted"]
        rates[name] = pyrovae.aggregate(fit.model, fit.guide, some, progress=False).summary()
        print(f"{name}: {pyrovae.usage(fit.model, fit.guide, some, progress=False)}")
    parts = ["distortion", "rate", "mutual_information", "total_correlation", "dimension_wise"]
    table = pd.concat([pd.DataFrame(scores), pd.DataFrame(rates).loc[parts]])
    print(table.round(2).to_string())
    return table


if __name__ == "__main__":
    main()
