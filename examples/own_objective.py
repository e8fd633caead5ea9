"""An objective of your own: the importance-weighted bound with the leading term of its bias taken off.

With L_K the bound of K particles, J = K L_K - (K - 1) mean_i L_{K-1} without particle i, whose bias is of order 1/K^2
where that of L_K is of order 1/K. It is no bound, but nearer to log p(x).

Reference: Nowozin, "Debiasing evidence approximations: on importance-weighted autoencoders and jackknife variational
inference", 2018.
"""

import argparse
import math

import torch

import pyrovae
from pyrovae import guides, models, nn, objectives


class Jackknife(objectives.Objective):
    """The whole objective: per-datum log weights in, one number out; particles, scales and masks are taken care of."""

    def total(self, model, guide, batch, known):
        drawn = self.draw(model, guide, batch, known)
        log_weights, k = drawn.log_weights, self.num_particles
        whole = log_weights.logsumexp(0) - math.log(k)
        rest = [log_weights[[j for j in range(k) if j != i]].logsumexp(0) - math.log(k - 1) for i in range(k)]
        return drawn.scale * (k * whole - (k - 1) * torch.stack(rest).mean(0)).sum()


def main(steps=500):
    torch.manual_seed(0)
    truth = models.LinearGaussian(4, 12)
    x = truth.evidence().sample((500,))
    model, guide = models.LinearGaussian(4, 12), guides.MeanField(nn.MLP(12, 32), 4)
    fitted = pyrovae.fit(model, guide, x, steps=steps, lr=5e-3, objective=Jackknife(5), progress=False)
    exact = float(model.log_evidence(x).mean())
    found = {"log p(x), exact": exact}
    with torch.random.fork_rng():
        for name, objective in {"jackknife, 5": Jackknife(5), "IWAE, 5": objectives.IWAE(5)}.items():
            found[name] = -sum(objective.loss(fitted.model, fitted.guide, x) for _ in range(20)) / 20 / len(x)
    print({name: round(value, 3) for name, value in found.items()})
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    main(parser.parse_args().steps)
