"""How near each guide's family comes to posteriors of a known shape: ``python benchmarks/shapes.py``.

Two posteriors in two latents: one bent like a banana, one with two modes. Each family is fitted to one observation
without amortisation (``guides.Local``), by the ELBO; KL(q || p) is the evidence, by quadrature on a grid, less the
fitted ELBO at fresh draws. Writes ``docs/shapes.md`` and ``.png``.
"""

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from speed import markdown
from torch import Tensor, nn

import pyrovae
from pyrovae import fit, guides, log_weights
from pyrovae.nn import MLP

DRAWS = 20_000
EDGE, POINTS = 5.0, 401


class Banana(nn.Module):
    """z ~ N(0, I), x ~ N(z_2 + z_1^2, 0.3^2), seen at x = 1.5."""

    x = 1.5

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal((z[..., 1] + z[..., 0] ** 2)[..., None], 0.3).to_event(1), obs=x)


class TwoModes(nn.Module):
    """z ~ N(0, I), x ~ N(z_1^2 + z_2 / 2, 0.4^2), seen at x = 2."""

    x = 2.0

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal((z[..., 0] ** 2 + 0.5 * z[..., 1])[..., None], 0.4).to_event(1), obs=x)


def families():
    """Return what makes each family, from an encoder that does not matter here."""
    encoder = partial(MLP, 1, 16)
    deep = {"num_steps": 6}
    return {
        "MeanField": lambda: guides.MeanField(encoder(), 2),
        "FullRank": lambda: guides.FullRank(encoder(), 2),
        "Mixture, 8": lambda: guides.Mixture(encoder(), 2, num_components=8),
        "Planar": lambda: guides.Planar(encoder(), 2, num_steps=8),
        "Flow (IAF)": lambda: guides.Flow(encoder(), 2, **deep),
        "MaskedAutoregressive": lambda: guides.MaskedAutoregressive(encoder(), 2, **deep),
        "SplineCoupling": lambda: guides.SplineCoupling(encoder(), 2, **deep),
        "SplineAutoregressive": lambda: guides.SplineAutoregressive(encoder(), 2, **deep),
        "Auxiliary": lambda: guides.Auxiliary(encoder(), 2),
    }


def grid() -> Tensor:
    """Return the points of quadrature, ``[POINTS, POINTS, 2]``."""
    axis = torch.linspace(-EDGE, EDGE, POINTS)
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)


def posterior(model: nn.Module) -> tuple[float, Tensor]:
    """Return the log evidence of the observation, and the posterior's density on the grid."""
    points = grid().reshape(-1, 2)
    x = torch.full((len(points), 1), model.x)
    trace = pyro.poutine.trace(pyro.condition(model, data={"z": points})).get_trace(x)
    trace.compute_log_prob()
    joint = trace.nodes["z"]["log_prob"] + trace.nodes["x"]["log_prob"]
    evidence = float(joint.double().logsumexp(0)) + 2 * math.log(2 * EDGE / (POINTS - 1))
    return evidence, (joint - evidence).exp().reshape(POINTS, POINTS)


def fit_local(model: Any, make: Callable[[], Any], steps: int) -> tuple[float, float, torch.Tensor]:
    """Fit a family to one posterior; return its ELBO with its standard error, and draws of it."""
    torch.manual_seed(0)
    x = torch.full((64, 1), model.x)  # one observation, 64 draws a step
    guide = guides.Local(make(), x[:1])
    fitted = fit(
        model, guide, x, steps=steps, batch_size=64, lr=lambda s: 0.02 * 0.5 ** (4 * s / steps),
        clip_norm=100.0, progress=False,
    )  # fmt: skip
    weights = log_weights(model, fitted.guide, x[:1], num_particles=DRAWS, progress=False)[:, 0].double()
    elbo, error = float(weights.mean()), float(weights.std()) / math.sqrt(DRAWS)
    with torch.no_grad():
        z = fitted.guide.posterior(x[:1].expand(4000, 1)).sample()
    return elbo, error, z


def main() -> None:
    """Fit, measure, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder for shapes.md and .png")
    parser.add_argument("--steps", type=int, default=3000, help="gradient steps of every fit")
    options = parser.parse_args()
    made, rows = families(), []
    figure, axes = plt.subplots(2, len(made) + 1, figsize=(1.75 * (len(made) + 1), 3.9), layout="constrained")
    for line, model in zip(axes, (Banana(), TwoModes()), strict=True):
        evidence, density = posterior(model)
        span = [-3, 3, -3, 3]
        level = density[::2, ::2]
        line[0].imshow(density, extent=[-EDGE, EDGE, -EDGE, EDGE], origin="lower", cmap="Blues")
        line[0].set_title(f"{type(model).__name__}: exact", fontsize=8)
        for ax, (name, make) in zip(line[1:], made.items(), strict=True):
            elbo, error, z = fit_local(model, make, options.steps)
            rows.append([type(model).__name__, name, evidence - elbo, error])
            heights = [share * float(level.max()) for share in (0.05, 0.3, 0.7)]
            ax.contour(level, extent=[-EDGE, EDGE, -EDGE, EDGE], colors="#1f4e79", linewidths=0.6, levels=heights)
            ax.plot(*z.T, ",", color="#b04a3a", alpha=0.5)
            ax.set_title(f"{name}\nKL {evidence - elbo:.3f}", fontsize=8)
            print(rows[-1], flush=True)
        for ax in line:
            ax.set(xlim=span[:2], ylim=span[2:], xticks=[], yticks=[], aspect="equal")
    figure.suptitle("lines: exact posterior (0.05, 0.3 and 0.7 of its peak); dots: draws of the guide", fontsize=8)
    figure.savefig(options.out / "shapes.png", dpi=150)
    frame = pd.DataFrame(rows, columns=["posterior", "guide", "KL, nats", "standard error"])
    text = (
        f"Made by `benchmarks/shapes.py` with pyrovae {pyrovae.__version__}: {options.steps} steps of the ELBO on one "
        f"observation, KL(q, p) from {DRAWS:,} draws.\n\n{markdown(frame)}\n"
    )
    (options.out / "shapes.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
