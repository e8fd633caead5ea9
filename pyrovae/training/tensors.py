"""The tensors of a fit as they are saved, by name."""

import numpy as np
import torch
from torch import Tensor

from pyrovae.programs.pair import Pair

BARE = "param"  # prefix of bare parameters among saved tensors


def pair_tensors(pair: Pair, bare: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return every tensor of a pair: its modules' state and its bare parameters, unconstrained.

    A module that no other module registers contributes its buffers alone: its parameters are bare ones, or not fitted.
    """
    tensors = {
        f"{name}/{key}": value
        for name, module in pair.modules.items()
        for key, value in module.state_dict().items()
        if isinstance(value, Tensor)
    }
    return {**tensors, **_hidden_buffers(pair), **{f"{BARE}/{name}": value for name, value in bare.items()}}


def _hidden_buffers(pair: Pair) -> dict[str, Tensor]:
    buffers: dict[str, Tensor] = {}
    for name, module in pair.hidden.items():
        parameters = {key for key, _ in module.named_parameters(remove_duplicate=False)}
        state = {key: t for key, t in module.state_dict().items() if isinstance(t, Tensor) and key not in parameters}
        buffers.update({f"{name}/{key}": t for key, t in state.items()})
    return buffers


def fitted_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a folder that belong to the fitted pair, without the history and what resuming needs."""
    extra = ("history", "optimizer/", "second/", "objective/", "random", "best/", "last/")
    return {key: value for key, value in tensors.items() if not key.startswith(extra)}


def restore_pair(pair: Pair, bare: dict[str, Tensor], tensors: dict[str, Tensor], source: str) -> None:
    """Copy saved tensors into the pair's modules and bare parameters.

    Raises:
        ValueError: when the tensors do not belong to this pair; the message names the first that does not fit.
    """
    expected = pair_tensors(pair, bare)
    for key in _hidden_buffers(pair).keys() - tensors.keys():  # fits saved by version 0.1.0 do not hold them
        del expected[key]
    for key in sorted({*expected, *tensors}):
        theirs, ours = (_shape(group.get(key)) for group in (tensors, expected))
        if theirs != ours:
            raise ValueError(
                f"{source} was saved from another pair: for {key!r} it holds {theirs}, but this pair has {ours}"
            )
    with torch.no_grad():
        for key, value in expected.items():
            value.copy_(tensors[key])


def _shape(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else f"shape {tuple(tensor.shape)}"


def history_rows(tensors: dict[str, Tensor]) -> np.ndarray:
    """Return a saved fit's history, ``[steps, columns]``."""
    return np.asarray(tensors["history"].numpy())
