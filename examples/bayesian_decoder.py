"""Does it help to be uncertain about the decoder? Breast-cancer measurements, 60 women to learn from.

    w ~ N(0, 1 / fan_in),    z_i ~ N(0, I),    x_i ~ N(decoder_w(z_i), s^2)

Held-out log p(x) of the Bayesian decoder is averaged over draws of the weights, log mean_s p(x | w_s). It is compared
with a plain VAE with the same networks. A fifth of the women are kept apart, and the plain VAE is stopped where they
are most likely. The spread of log p(x | w_s) over the draws shows how uncertain the model is.

Reference: Kingma and Welling, "Auto-encoding variational Bayes", 2014, appendix F. Data: Wolberg, Street and
Mangasarian, "Breast cancer Wisconsin (diagnostic)", UCI repository, 1995 (shipped with scikit-learn).
"""

import argparse
import math

import torch
from sklearn.datasets import load_breast_cancer

import pyrovae
from pyrovae import guides, likelihoods, models, nn, priors

LATENT, FEW = 3, 60


def main(epochs=3000, num_draws=20, num_particles=500):
    table = torch.tensor(load_breast_cancer().data, dtype=torch.float32).clamp(min=1e-4).log()
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))
    train, test = table[order[:FEW]], table[order[FEW:]]
    mean, deviation = train.mean(0), train.std(0)
    train, test = (train - mean) / deviation, (test - mean) / deviation
    size = train.shape[1]
    torch.manual_seed(0)
    parts = {"prior": priors.StandardNormal(LATENT), "likelihood": likelihoods.Gaussian(num_scales=size)}
    bayes = models.BayesianVAE(**parts, decoder=nn.MLP(LATENT, size, hidden=(32,)), num_data=FEW)
    local = guides.FullRank(nn.MLP(size, 32, hidden=(32,)), LATENT)
    guide = guides.WithGlobals.of(local, bayes, train)
    options = {"epochs": epochs, "batch_size": FEW, "lr": 2e-3, "progress": False}
    pyrovae.fit(bayes, guide, train, **options)

    torch.manual_seed(0)
    parts = {"prior": priors.StandardNormal(LATENT), "likelihood": likelihoods.Gaussian(num_scales=size)}
    plain = models.VAE(**parts, decoder=nn.MLP(LATENT, size, hidden=(32,)))
    plain_guide = guides.FullRank(nn.MLP(size, 32, hidden=(32,)), LATENT)
    stop = {"validation_data": train[: FEW // 5], "patience": epochs // 10}
    pyrovae.fit(plain, plain_guide, train[FEW // 5 :], **options, **stop)

    def held_out(model, guide):
        return pyrovae.evaluate(model, guide, test, num_particles=num_particles, progress=False).log_evidence

    torch.manual_seed(0)
    draws = torch.stack([held_out(pyrovae.given(bayes, guide.draw()), local) for _ in range(num_draws)])
    averaged = draws.logsumexp(0) - math.log(num_draws)
    single = held_out(plain, plain_guide)
    gain = averaged - single
    error = float(gain.std()) / len(gain) ** 0.5
    print(f"held-out log p(x): {float(averaged.mean()):.2f} Bayesian, {float(single.mean()):.2f} plain, nats per woman")
    print(f"gain {float(gain.mean()):.2f} (paired standard error {error:.2f})")
    print(f"spread over the decoders: {float(draws.std(0).median()):.2f} nats for the median woman")
    return float(gain.mean()), error


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3000)
    main(parser.parse_args().epochs)
