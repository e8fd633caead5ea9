"""Signal-to-noise ratio of the gradient against the number of particles: ``python benchmarks/gradient_snr.py``.

On a linear-Gaussian model in 5 latents, whose guide's parameters lie a little off their best values (as in Rainforth
et al., "Tighter variational bounds are not necessarily better", 2018; the doubly reparametrised gradient is that of
Tucker et al., 2019). Writes ``docs/gradient-snr.md`` and ``.png``.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from speed import markdown
from torch import Tensor, nn

from pyrovae.objectives import IWAE

LATENT, OFF = 5, 0.1
PARTICLES = (1, 2, 4, 8, 16, 32, 64, 128)
REPEATS = 60_000  # of every gradient
FROM = 8  # particles, from where the slopes are taken
ESTIMATORS = {"plain": "IWAE", "dreg": "IWAE, doubly reparametrised"}


class Model(nn.Module):
    """z ~ N(mu, I), x ~ N(z, I), with a mu for every repeat."""

    def __init__(self, repeats: int, mu: Tensor) -> None:
        super().__init__()
        self.mu = nn.Parameter(mu.repeat(repeats, 1))

    def forward(self, x: Tensor) -> None:
        mu = self.mu.repeat_interleave(len(x) // len(self.mu), 0)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(mu, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


class Guide(nn.Module):
    """q(z | x) = N(A x + b, 2/3 I), with an A (its diagonal) and b for every repeat."""

    def __init__(self, repeats: int, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.params = nn.Parameter(torch.cat([a, b]).repeat(repeats, 1))

    def forward(self, x: Tensor) -> None:
        a, b = self.params.repeat_interleave(len(x) // len(self.params), 0).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(a * x + b, (2 / 3) ** 0.5).to_event(1))


def ratio(estimator: str, particles: int) -> tuple[float, float]:
    """Return |E g| / sqrt(trace Cov g) of the guide's and of the model's gradient g; the square is without bias."""
    generator = torch.Generator().manual_seed(0)
    mu = torch.randn(LATENT, generator=generator)
    x = mu + torch.randn(LATENT, generator=generator) * 2**0.5
    a = 0.5 + OFF * torch.randn(LATENT, generator=generator)
    b = mu / 2 + OFF * torch.randn(LATENT, generator=generator)
    found: list[list[Tensor]] = [[], []]
    for part in torch.arange(REPEATS).split(max(1, 40_000 // particles)):
        model, guide = Model(len(part), mu + OFF), Guide(len(part), a, b)
        loss = IWAE(particles, estimator=estimator).differentiable_loss(model, guide, x.repeat(len(part), 1))
        for kept, grad in zip(found, torch.autograd.grad(loss, [guide.params, model.mu]), strict=True):
            kept.append(grad)
    guides, models = (torch.cat(kept) for kept in found)
    return _ratio(guides), _ratio(models)


def _ratio(grads: Tensor) -> float:
    noise = grads.var(0).sum()
    signal = grads.mean(0).square().sum() - noise / len(grads)
    return float((signal.clamp(min=0) / noise).sqrt())


def main() -> None:
    """Measure, fit slopes, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder for gradient-snr.md and .png")
    options = parser.parse_args()
    torch.manual_seed(0)
    rows = [[ESTIMATORS[e], k, *ratio(e, k)] for e in ESTIMATORS for k in PARTICLES]
    frame = pd.DataFrame(rows, columns=["gradient", "particles", "of the guide", "of the model"])
    slopes = []
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained", sharey=True)
    for ax, of in zip(axes, ("of the guide", "of the model"), strict=True):
        for colour, (name, part) in zip(("#b04a3a", "#1f4e79"), frame.groupby("gradient"), strict=True):
            late = part[part["particles"] >= FROM]
            slope, level = np.polyfit(np.log(late["particles"]), np.log(late[of]), 1)
            slopes.append([name, of, slope])
            ax.loglog(part["particles"], part[of], "o", color=colour, ms=4)
            at = np.array([float(FROM), PARTICLES[-1]])
            ax.loglog(at, np.exp(level) * at**slope, color=colour, lw=1, label=f"{name}: slope {slope:.2f}")
        ax.set_xlabel("particles K")
        ax.set_title(f"gradient {of}", fontsize=10)
        ax.legend(fontsize=8, frameon=False)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("signal-to-noise ratio")
    options.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out / "gradient-snr.png", dpi=150)
    text = (
        f"Made by `benchmarks/gradient_snr.py`: slopes of log signal-to-noise against log K, from K = {FROM}.\n\n"
        + markdown(pd.DataFrame(slopes, columns=["gradient", "of", "slope"]))
        + "\n\n"
        + markdown(frame)
        + "\n"
    )
    (options.out / "gradient-snr.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
