"""An objective of your own: the importance-weighted bound with its largest weights truncated.

    log 1/K sum_k min(w_k, sqrt(K) mean_j w_j),    w = p(x, z) / q(z | x)

per observation. No weight counts more than sqrt(K) times their mean, so that a single draw cannot dominate the bound;
the bound lies below the importance-weighted bound, and so below log p(x).

Reference: Ionides, "Truncated importance sampling", 2008.
"""

import argparse
import math

import torch

import pyrovae
from pyrovae import guides, models, nn, objectives


class Truncated(objectives.Objective):
    """The whole objective: log weights per observation in, one number out; particles, scales and masks come with it."""

    def total(self, model, guide, batch, known):
        particles = self.draw(model, guide, batch, known)
        log_weights, log_k = particles.log_weights, math.log(self.num_particles)
        most = log_weights.logsumexp(0) - log_k + 0.5 * log_k
        return particles.scale * (torch.minimum(log_weights, most).logsumexp(0) - log_k).sum()


def main(steps=500):
    torch.manual_seed(0)
    with torch.no_grad():
        x = models.LinearGaussian(4, 12).evidence().sample((500,))
    model, guide = models.LinearGaussian(4, 12), guides.MeanField(nn.MLP(12, 32), 4)
    fit = pyrovae.fit(model, guide, x, steps=steps, lr=5e-3, objective=Truncated(10), progress=False)
    with torch.no_grad():
        bounds = {"log p(x), exact": float(model.log_evidence(x).mean())}
    for name, objective in {"IWAE, 10": objectives.IWAE(10), "truncated, 10": Truncated(10)}.items():
        torch.manual_seed(1)
        bounds[name] = -objective.loss(fit.model, fit.guide, x) / len(x)
    print({name: round(value, 3) for name, value in bounds.items()})
    return bounds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    main(parser.parse_args().steps)
