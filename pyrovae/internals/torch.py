"""The internals of torch that are used: dispatch modes, validation, draws, layers, the store of a process group."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["TorchDispatchMode", "tree_leaves", "tree_map"]

ALL = frozenset({torch.Tensor.all, torch._is_all_true})
LOOKING = "torch.distributions.distribution"  # the module that validates values
CONVOLUTION = nn.modules.conv._ConvNd


def is_validated(distribution: Any) -> bool:
    """Whether a distribution checks the values that it is given."""
    return isinstance(distribution, torch.distributions.Distribution) and bool(distribution._validate_args)


def standard_gamma(concentration: Tensor) -> Tensor:
    """Draw gamma variables of rate 1, with their gradient."""
    return torch._standard_gamma(concentration)


def cuda_generator(index: int) -> torch.Generator:
    """Return the default generator of a CUDA device."""
    generator: torch.Generator = torch.cuda.default_generators[index]
    return generator


def group_store() -> Any:
    """Return the key-value store of the default process group."""
    return dist.distributed_c10d._get_default_store()
