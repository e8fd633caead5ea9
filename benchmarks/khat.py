"""Where k-hat reassures falsely, and what would have told: ``python benchmarks/khat.py`` prints a table in a minute.

z ~ prior (D independent latents), x_d ~ N(z_d, noise^2), so that the posterior factorises and log p(x) is a sum of
integrals over a line. The guide is Gaussian: the best by the ELBO, or the exact scale times a factor. For every
observation 1,000 weights give log p(x), its error and k-hat. An error is false reassurance where k-hat is within its
limit and the estimate is off by more than four of its stated errors. What might have told, of the same cost each:

- the larger k-hat of both halves of the weights, held against the limit for 500;
- k-hat by a defensive proposal: a fifth of the draws from the guide with three times its scale, the weights those of
  the mixture (deterministic mixture weights, so that they stay bounded where the guide's are not);
- the estimate of the defensive proposal, further from the guide's than four errors of both.
"""

import math

import torch
from torch.distributions import Laplace, Normal

from pyrovae import khat_limit, pareto_khat
from pyrovae.diagnostics.evidence.evaluate import weigh
from pyrovae.priors.sparse import HorseshoeDistribution

DATA, PARTICLES = 150, 1000
WIDER, SHARE = 3.0, 0.2  # of the defensive component


def one(value):
    return torch.tensor(value, dtype=torch.float64)


def line(prior, x, noise):
    """Log of the integral of prior times likelihood over z, ``[N, D]``; the grid is fine around 0 and around x."""
    tiny, grid = 1e-10, torch.linspace(0, 1, 20_001, dtype=torch.float64)
    total = torch.empty_like(x)
    for n, row in enumerate(x):
        low, high = ((row - 10 * noise) / tiny).asinh(), ((row + 10 * noise) / tiny).asinh()
        t = torch.lerp(low, high, grid[:, None])
        z = tiny * t.sinh()
        inside = prior.log_prob(z) + Normal(row, noise).log_prob(z) + t.cosh().log() + math.log(tiny)
        total[n] = inside.logsumexp(0) + (t[1] - t[0]).log()
    return total.sum(1)


def best_gaussian(prior, x, noise):
    """Location and scale of every latent's best Gaussian by the ELBO, by gradient steps on quasi-random draws."""
    nodes = Normal(0.0, 1.0).icdf((torch.arange(200, dtype=torch.float64) + 0.5) / 200)[:, None, None]
    loc, log_scale = x.clone().requires_grad_(), torch.full_like(x, math.log(noise)).requires_grad_()
    optimizer = torch.optim.Adam([loc, log_scale], lr=0.02)
    for _ in range(400):
        z = loc + log_scale.exp() * nodes
        bound = (prior.log_prob(z) + Normal(x, noise).log_prob(z)).mean(0) + log_scale
        optimizer.zero_grad()
        (-bound.sum()).backward()
        optimizer.step()
    return loc.detach(), log_scale.detach().exp()


def log_weights(prior, x, noise, loc, scale, defensive):
    """Log weights, ``[PARTICLES, DATA]``, of the guide or of the defensive mixture."""
    wide = int(SHARE * PARTICLES) if defensive else 0
    factor = torch.ones(PARTICLES, 1, 1, dtype=torch.float64)
    factor[:wide] = WIDER
    z = loc + scale * factor * torch.randn(PARTICLES, *x.shape, dtype=torch.float64)
    joint = (prior.log_prob(z) + Normal(x, noise).log_prob(z)).sum(-1)
    log_q = Normal(loc, scale).log_prob(z).sum(-1)
    if defensive:
        far = Normal(loc, WIDER * scale).log_prob(z).sum(-1)
        log_q = torch.logaddexp(log_q + math.log(1 - SHARE), far + math.log(SHARE))
    order = torch.randperm(PARTICLES)  # halves hold both kinds
    return (joint - log_q)[order]


def row(name, prior, latents, noise, factor=None):
    x = prior.sample((DATA, latents)) + noise * torch.randn(DATA, latents, dtype=torch.float64)
    truth = line(prior, x, noise)
    loc, scale = best_gaussian(prior, x, noise)
    if factor is not None:
        scale = scale * factor
    weights, guarded = (log_weights(prior, x, noise, loc, scale, defensive) for defensive in (False, True))
    own, other = weigh(weights), weigh(guarded)
    error = own["log_evidence"] - truth
    z = error / own["log_evidence_se"]
    fine = own["khat"] <= khat_limit(PARTICLES)
    false = fine & (z.abs() > 4)
    half = torch.stack([pareto_khat(part) for part in weights.chunk(2)]).max(0).values > khat_limit(PARTICLES // 2)
    guard = other["khat"] > khat_limit(PARTICLES)
    joint = (own["log_evidence_se"].square() + other["log_evidence_se"].square()).sqrt()
    apart = (own["log_evidence"] - other["log_evidence"]).abs() > 4 * joint
    fine_other = ((other["log_evidence"] - truth) / other["log_evidence_se"]).abs() <= 4

    def share(values, among):
        return f"{float(values[among].double().mean()):.0%}" if bool(among.any()) else "-"

    numbers = [
        f"{float(fine.double().mean()):.0%}", f"{float(false.double().mean()):.0%}",
        f"{float(error[false].median()):.2f}" if bool(false.any()) else "-",
        f"{float(own['khat'][false].median()):.2f}" if bool(false.any()) else "-",
        share(half, false), share(half, fine & ~false), share(guard, false), share(apart, false),
        share(apart, fine & ~false),
        f"{float(fine_other.double().mean()):.0%}",
    ]  # fmt: skip
    print(f"| {name} | {' | '.join(numbers)} |", flush=True)


def main() -> None:
    torch.manual_seed(0)
    horseshoe, laplace, normal = (
        HorseshoeDistribution(one(0.5)),
        Laplace(one(0.0), one(1.0)),
        Normal(one(0.0), one(1.0)),
    )
    print(
        "| prior, latents, guide | k fine | false | error | its k | split k tells | of the rest | defensive k tells "
        "| estimates part | of the rest | defensive right |"
    )
    print(f"|{' --- |' * 11}")
    for latents in (1, 4):
        row(f"horseshoe, {latents}, best", horseshoe, latents, 1.0)
    row("horseshoe, 4, 0.6 of the best scale", horseshoe, 4, 1.0, 0.6)
    for latents in (4, 20):
        row(f"Laplace, {latents}, best", laplace, latents, 1.0)
    row("Laplace, 4, 0.6 of the best scale", laplace, 4, 1.0, 0.6)
    for factor in (0.7, 0.5, 0.4):
        row(f"normal, 6, {factor} of the scale", normal, 6, 1.0, factor)
    row("normal, 20, 0.7 of the scale", normal, 20, 1.0, 0.7)


if __name__ == "__main__":
    main()
