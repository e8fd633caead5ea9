"""What is timed: networks, data, and the loss that a user of torch alone would write. Imports torch alone."""

import gzip
import os
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """A network of one hidden layer each way, or a convolutional one, and its data.

    Attributes:
        data: "mnist" or "digits", bits.
        size: data in an epoch.
        hidden: units of the hidden layers; 0 for convolutions.
        latent: number of latents.
        batch: data in a step.
        guide: "mean field" or "iaf".
        particles: of an importance-weighted bound; 1 for the ELBO.
    """

    data: str
    size: int
    hidden: int
    latent: int
    batch: int
    guide: str = "mean field"
    particles: int = 1

    @property
    def features(self) -> int:
        """Number of pixels."""
        return 784 if self.data == "mnist" else 64


CASES = {
    "mnist": Case("mnist", 60_000, 400, 50, 256),
    "digits": Case("digits", 1_437, 64, 8, 32),
    "convolutional": Case("mnist", 6_000, 0, 16, 128),
    "iaf": Case("mnist", 12_000, 400, 50, 256, guide="iaf"),
    "iwae": Case("mnist", 3_000, 400, 50, 64, particles=50),
}


def bits(case: Case) -> tuple[Tensor, bool]:
    """Return the case's data, and whether they are the real ones: random bits of their shape stand in for MNIST."""
    generator = torch.Generator().manual_seed(0)
    if case.data == "digits":
        from sklearn.datasets import load_digits

        grey = torch.tensor(load_digits().data[: case.size] / 16, dtype=torch.float32)
        return torch.bernoulli(grey, generator=generator), True
    raw = Path(os.environ.get("PYROVAE_DATA", "data")) / "MNIST" / "raw" / "train-images-idx3-ubyte"
    packed = raw.with_suffix(".gz")
    if not raw.exists() and not packed.exists():
        return (torch.rand(case.size, 784, generator=generator) < 0.2).float(), False
    content = raw.read_bytes() if raw.exists() else gzip.decompress(packed.read_bytes())
    pixels = torch.frombuffer(bytearray(content[16:]), dtype=torch.uint8).view(-1, 784)[: case.size]
    return torch.bernoulli(pixels.float() / 255, generator=generator), True


class Encoder(nn.Module):
    """From pixels to location and scale; to a context as well, for a flow."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.body, width = _encoder_body(case)
        self.loc, self.log_scale = nn.Linear(width, case.latent), nn.Linear(width, case.latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        return self.loc(h), self.log_scale(h).exp()


class Decoder(nn.Module):
    """From latents to logits."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.body = _decoder(case)

    def forward(self, z: Tensor) -> Tensor:
        logits: Tensor = self.body(z.reshape(-1, z.shape[-1]))
        return logits.reshape(*z.shape[:-1], -1)


def _encoder_body(case: Case) -> tuple[nn.Module, int]:
    if case.hidden:
        return nn.Sequential(nn.Linear(case.features, case.hidden), nn.Softplus()), case.hidden
    layers = [nn.Unflatten(-1, (1, 28, 28)), nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten()), 32 * 7 * 7


def _decoder(case: Case) -> nn.Module:
    if case.hidden:
        return nn.Sequential(nn.Linear(case.latent, case.hidden), nn.Softplus(), nn.Linear(case.hidden, case.features))
    up = [nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 1, 4, 2, 1), nn.Flatten()]
    return nn.Sequential(nn.Linear(case.latent, 32 * 7 * 7), nn.ReLU(), nn.Unflatten(-1, (32, 7, 7)), *up)


def negative_elbo(encoder: Encoder, decoder: Decoder, x: Tensor, particles: int) -> Tensor:
    """Return the loss that a user of torch alone would write, summed over the batch."""
    loc, scale = encoder(x)
    if particles == 1:
        z = loc + scale * torch.randn_like(scale)
        kl = 0.5 * (loc**2 + scale**2 - 1 - 2 * scale.log()).sum()
        return F.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum") + kl
    noise = torch.randn(particles, *loc.shape, device=x.device)
    z = loc + scale * noise
    log_joint = -0.5 * z.square().sum(-1) - F.binary_cross_entropy_with_logits(
        decoder(z), x.expand(particles, *x.shape), reduction="none"
    ).sum(-1)
    log_q = (-0.5 * noise.square() - scale.log()).sum(-1)
    return -(log_joint - log_q).logsumexp(0).sum()
