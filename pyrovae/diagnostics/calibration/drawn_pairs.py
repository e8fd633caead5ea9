"""The guide's draws of all data as one array, for tests that take latents as rows of numbers."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from pyrovae.data import Data
from pyrovae.importance.options import Options
from pyrovae.importance.question import ask
from pyrovae.programs.sites import is_discrete
from pyrovae.programs.types import Batch, Program


def drawn_flat(
    model: Program,
    guide: Program,
    data: Data,
    num_draws: int,
    label: str,
    options: Options,
    *,
    continuous: bool = False,
) -> tuple[np.ndarray, list[Batch]]:
    """Return draws of q(z | x), ``[draws, N, D]``, and the batches on the CPU.

    Args:
        model: generative program.
        guide: recognition program.
        data: the data.
        num_draws: number of draws per observation.
        label: label of the progress bar.
        options: batch_size, seed, device and progress.
        continuous: whether discrete latents are refused.
    """
    draws: dict[int, list[Tensor]] = {}
    with ask(model, guide, data, takes_weights=True, **options) as question:
        question.layout.require_latents()
        for part in question.particles(num_draws, label):
            for name in question.layout.latents if continuous else ():
                if is_discrete(part.model_trace.nodes[name]["fn"]):
                    raise ValueError(f"latent site {name!r} is discrete, and has no mean and standard deviation")
            values = [part.values(part.guide_trace.nodes[name]) for name in question.layout.latents]
            rows = [v.reshape(*v.shape[:2], -1).double().cpu() for v in values]
            draws.setdefault(part.indices.start, []).append(torch.cat(rows, 2))
        batches = [
            tuple(t.cpu() for t in question.pair.given(batch))
            for _, batch in question.data.batches(question.batch_size)
        ]
    return torch.cat([torch.cat(own) for own in draws.values()], 1).numpy(), batches


def flat(latents: Mapping[str, Tensor]) -> np.ndarray:
    """Return latents by site, ``[N, ...]`` each, side by side, ``[N, D]``."""
    return torch.cat([v.reshape(len(v), -1).double() for v in latents.values()], 1).numpy()
