"""What does it cost to trust a guide only where its own diagnostics allow it? A linear-Gaussian model of two latents.

    z ~ N(0, I_2),    x ~ N(W z, s^2 I_D),    q(z | x) exact, but too narrow for some data and far off for others

Every posterior is known, so that the draws can be held against it, whichever method made them.

Reference: Schmitt, Li, Vehtari, Acerbi, Burkner and Radev, "Amortized Bayesian workflow", 2024.
"""

import argparse
import time

import pyro
import pyro.distributions as dist
import torch

import pyrovae


def program(rows, features):
    source, noise = torch.Generator().manual_seed(0), (features / 4) ** 0.5
    loading = torch.randn(features, 2, generator=source, dtype=torch.float64)
    covariance = torch.linalg.inv(torch.eye(2).double() + loading.T @ loading / noise**2)
    root = torch.linalg.cholesky(covariance)

    def model(x, kind):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ loading.T, noise).to_event(1), obs=x)

    def guide(x, kind):
        blind, narrow = (kind == 2)[:, None], (kind == 1)[:, None, None]
        with pyro.plate("data", len(x)):
            mean = x @ loading @ covariance / noise**2 + 9 * blind * root.diagonal()
            pyro.sample("z", dist.MultivariateNormal(mean, scale_tril=torch.where(narrow, 0.6, 1.0) * root))

    x = torch.randn(rows, 2, generator=source).double() @ loading.T
    x = x + noise * torch.randn(rows, features, generator=source).double()
    kind = torch.zeros(rows, dtype=torch.long)
    kind[: rows * 8 // 100], kind[rows - rows * 2 // 100 :] = 1, 2
    return model, guide, (x, kind), x @ loading @ covariance / noise**2, covariance


def main(rows=1000, features=4, num_draws=400):
    model, guide, data, mean, covariance = program(rows, features)
    options = {"device": "cpu", "progress": False}
    started = time.monotonic()
    found = pyrovae.posterior(model, guide, data, num_draws=num_draws, **options)
    ladder = time.monotonic() - started
    print(found)
    sd = covariance.diagonal().sqrt()
    error = (found.draws["z"].mean(0) - mean) / (sd / found.ess.sqrt()[:, None])
    spread = found.draws["z"].std(0) / sd
    for method in ("guide", "importance", "hmc"):
        rows_of = torch.from_numpy(found.method == method)
        if bool(rows_of.any()):
            scores = error[rows_of]
            print(
                f"{method:>10}: {int(rows_of.sum()):4} data; error of the mean in its own standard errors: root mean "
                f"square {float(scores.square().mean().sqrt()):.2f}, largest {float(scores.abs().max()):.1f}; "
                f"sd over the exact one {float(spread[rows_of].mean()):.3f}"
            )
    started = time.monotonic()
    pyrovae.hmc(model, guide, data, num_draws=500, num_warmup=500, **options)
    everything = time.monotonic() - started
    print(f"{ladder:.1f} s, and {everything:.1f} s by Hamiltonian Monte Carlo for all: {everything / ladder:.1f} times")
    return found, everything / ladder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--features", type=int, default=4)
    arguments = parser.parse_args()
    main(arguments.rows, arguments.features)
