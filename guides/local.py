"""A guide without amortisation: parameters of its own for every datum."""

import copy
import functools
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.guides.guide import Guide


class Local(nn.Module):
    """q_i(z), a member of a family for every datum i, fitted to that datum alone.

    The parameters start where the family's own encoder puts the datum, and no encoder is used after that: what is lost
    by amortisation is the distance between the two. What a family shares besides (the networks of a flow's steps) is
    trained as well. A datum is known by its numbers, so that equal data share their parameters; data that were not
    given here are refused, as are data that change from epoch to epoch (dynamic binarisation).

    Source: Hoffman, Blei, Wang and Paisley, "Stochastic variational inference", 2013; Cremer, Li and Duvenaud,
    "Inference suboptimality in variational autoencoders", 2018.

    Args:
        family: any guide of one latent with an encoder; it is copied, and stays as it is.
        data: all data, a tensor or a tuple of tensors. A number of data, instead, makes room for a saved guide.

    Example:
        >>> from pyrovae import guides, nn
        >>> x = torch.rand(100, 8)
        >>> Local(guides.MeanField(nn.MLP(8, 16), 2), x).posterior(x[:5]).batch_shape
        torch.Size([5])
    """

    def __init__(self, family: Guide, data: Any) -> None:
        super().__init__()
        if not isinstance(family, Guide):
            raise ValueError(f"the family must be a guide with an encoder, got a {type(family).__name__}")
        tensors = () if isinstance(data, int) else tuple(data) if isinstance(data, tuple | list) else (data,)
        if not all(isinstance(t, Tensor) for t in tensors) or len({len(t) for t in tensors}) > 1:
            raise ValueError("data must be a tensor or tensors of one length, the same that are passed to fit")
        self.latent = family.latent
        self.data = data if isinstance(data, int) else len(tensors[0])
        self.keys: Tensor
        if not tensors:
            start, keys = torch.zeros(self.data, _width(family)), torch.zeros(self.data, dtype=torch.int64)
        else:
            with torch.no_grad():
                start = torch.cat([family.params(*part) for part in _parts(tensors)])
            keys = torch.cat([fingerprints(part) for part in _parts(tensors)])
            keys, order = keys.sort()
            start = start[order]
        self.family = copy.deepcopy(family)
        self.family.encoder, self.family.head = _unused(self.family.encoder), _unused(self.family.head)
        self.free = nn.Parameter(start)
        self.register_buffer("keys", keys)

    def params(self, *batch: Tensor) -> Tensor:
        """Return the parameters of every datum of a batch, ``[N, P]``; NaN for one that was not given."""
        keys = fingerprints(batch)
        place = torch.searchsorted(self.keys, keys).clamp(max=len(self.keys) - 1)
        known = self.keys[place] == keys
        if pyro.distributions.is_validation_enabled() and not bool(known.all()):
            raise ValueError(
                f"{int((~known).sum())} of {len(known)} data are not among the {len(self.keys)} that this guide has "
                "parameters for: make it with the data that it is to be used on, as they are (not binarised anew)"
            )
        return torch.where(known[:, None], self.free[place], torch.nan)

    def posterior(self, *batch: Tensor) -> dist.TorchDistribution:
        """Return q_i(z) of every datum of a batch: batch shape ``[N]``, event shape ``[latent_dim]``."""
        return self.family.member(self.params(*batch))

    def forward(self, *batch: Tensor) -> Tensor:
        """Sample the latent of every datum of the batch; return it, ``[N, latent_dim]``."""
        pyro.module("guide", self)
        with pyro.plate("data", batch[0].shape[0]):
            z: Tensor = pyro.sample(self.latent, self.posterior(*batch))
        return z


class Unused(nn.Module):
    """A network that stays known, with parameters that are not the guide's.

    Args:
        network: that is kept.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.__dict__["network"] = network
        self.out_features = network.out_features

    def forward(self, *features: Tensor) -> Tensor:
        """Run the network as it was."""
        out: Tensor = self.__dict__["network"](*features)
        return out


def _unused(network: nn.Module) -> nn.Module:
    return network if isinstance(network, Unused) else Unused(network)


def fingerprints(batch: tuple[Tensor, ...]) -> Tensor:
    """Return a number for every datum, ``[N]``, that depends on all bits of its values and on nothing else.

    Data that differ have the same one with a probability of about 2^-64 a pair.
    """
    rows = [t.reshape(len(t), -1).to(torch.float64).view(torch.int64) for t in batch]
    bits = torch.cat(rows, dim=1)
    bits = bits ^ (bits >> 32) ^ (bits >> 52)  # round numbers differ in their highest bits alone
    return (bits * _weights(bits.shape[1], str(bits.device))).sum(1)


@functools.cache
def _weights(size: int, device: str) -> Tensor:
    """Return odd numbers, the same at every call, ``[size]``."""
    generator = torch.Generator("cpu").manual_seed(0)
    drawn = torch.randint(-(2**62), 2**62, (size,), generator=generator, device="cpu", dtype=torch.int64)
    return (2 * drawn + 1).to(device)


def _parts(tensors: tuple[Tensor, ...]) -> Any:
    return zip(*(t.split(1024) for t in tensors), strict=True)


def _width(family: Guide) -> int:
    features = torch.zeros(1, family.num_features)
    with torch.no_grad():
        return int(family.head(features).shape[-1])
