"""A network for data with missing values."""

import torch
from torch import Tensor, nn

from pyrovae.nn.network import Network, num_features


class Observed(Network):
    """Passes a network the data, with zeros in place of NaN, and beside them a mask of the observed values.

    Source: Nazabal, Olmos, Ghahramani and Valera, "Handling incomplete heterogeneous data using VAEs", 2020.

    Args:
        network: network that takes twice the columns of the data: ``nn.MLP(2 * 13, 32)`` for 13 columns.

    Example:
        >>> from pyrovae import nn
        >>> Observed(nn.MLP(2 * 3, 8))(torch.tensor([[0.5, torch.nan, 1.0]])).isfinite().all()
        tensor(True)
    """

    def __init__(self, network: Network | nn.Module) -> None:
        super().__init__()
        self.out_features = num_features("network", network)
        self.network = network

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        """Map ``[..., D]`` with NaN, and the network's other inputs, to its features."""
        observed = ~x.isnan()
        values = torch.where(observed, x, torch.zeros_like(x))
        out: Tensor = self.network(torch.cat([values, observed.to(x.dtype)], dim=-1), *others)
        return out
