"""What ``precision="bfloat16"`` does to the bound: ``python benchmarks/precision.py`` writes ``docs/precision.md``.

One VAE is fitted in float32. Its bound on held-out digits is then computed with the products of its networks in float32
and in bfloat16, with the same parameters and the same noise; and the fit is repeated in bfloat16, both evaluated alike.
"""

import argparse
import math
from pathlib import Path

import torch

from pyrovae import data, evaluate, fit, guides, likelihoods, models, nn, priors
from pyrovae.importance.log_weights import log_weights
from pyrovae.training.bfloat16 import bfloat16_layers

PARTICLES = 100


def pair():
    torch.manual_seed(0)
    model = models.VAE(prior=priors.StandardNormal(8), decoder=nn.MLP(8, 64), likelihood=likelihoods.Bernoulli())
    return model, guides.MeanField(nn.MLP(64, 128), 8)


def compared(name: str, one, other) -> str:
    difference = other - one
    error = float(difference.std() / math.sqrt(len(difference)))
    means = f"{float(one.mean()):.4f} | {float(other.mean()):.4f} | {float(difference.mean()):+.5f}"
    return f"| {name} | {means} | {error:.5f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--epochs", type=int, default=200)
    options = parser.parse_args()
    splits = data.Digits(binarise=data.Static()).splits()
    fits = {
        p: fit(*pair(), splits.train, epochs=options.epochs, precision=p, compile=False, progress=False)
        for p in ("float32", "bfloat16")
    }
    model, guide = fits["float32"].model, fits["float32"].guide
    evaluation = {"num_particles": PARTICLES, "progress": False, "compile": False}
    exact = log_weights(model, guide, splits.test, **evaluation).double().mean(0)
    with bfloat16_layers([model, guide]):
        rounded = log_weights(model, guide, splits.test, **evaluation).double().mean(0)
    evaluated = [evaluate(f.model, f.guide, splits.test, **evaluation).elbo for f in fits.values()]
    text = "\n".join([
        f"The bound on {len(splits.test)} held-out digits, {PARTICLES} particles each, in nats per observation: a "
        "difference",
        "and its paired standard error over the data. Made by `python benchmarks/precision.py`.",
        "",
        "| what is in bfloat16 | float32 | bfloat16 | difference | standard error |",
        "| --- | --- | --- | --- | --- |",
        compared("the products of the networks, same parameters, same noise", exact, rounded),
        compared(f"the products in the {options.epochs} epochs of a fit; evaluated in float32", *evaluated),
    ])  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "precision.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
