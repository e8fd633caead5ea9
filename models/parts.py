"""What the models of this catalogue ask of their parts, as far as the parts say it of themselves."""

from typing import Any

from torch import nn

from pyrovae.common.checks import at_least
from pyrovae.likelihoods import Likelihood, Missing, Mixed
from pyrovae.nn.network import check_columns, check_module
from pyrovae.priors.prior import num_latents

PER_COLUMN = ("num_scales", "num_dispersions", "num_concentrations")  # 1, or one for each column


def check_decoder(decoder: nn.Module, likelihood: nn.Module) -> None:
    """See that both are modules, and that the decoder's features are as many as the likelihood takes.

    Raises:
        ValueError: naming the part.
    """
    check_module("decoder", decoder)
    check_module("likelihood", likelihood)
    inner: Any = likelihood.likelihood if isinstance(likelihood, Missing) else likelihood
    width = getattr(decoder, "out_features", None)
    if not isinstance(width, int) or not isinstance(inner, Likelihood):
        return
    name, each = type(inner).__name__, inner.num_params
    if isinstance(inner, Mixed):
        if width != sum(inner.widths):
            raise ValueError(f"likelihood {name} expects {sum(inner.widths)} columns of the decoder, got {width}")
        return
    if width % each:
        raise ValueError(f"likelihood {name} takes {each} features per column, got {width} in all of the decoder")
    for argument in PER_COLUMN:
        number = getattr(inner, argument, 1)
        if number not in (1, width // each):
            raise ValueError(f"{argument} of the likelihood {name} expects {number} columns, got {width // each}")


def check_latents(prior: nn.Module, decoder: nn.Module, more: int = 0) -> None:
    """See that the decoder takes the prior's latents, and ``more`` columns beside them, where both say how many.

    Raises:
        ValueError: naming both widths.
    """
    latents = num_latents(prior)
    if latents is not None:
        beside = f" and {more} more" if more else ""
        check_columns("decoder", decoder, latents + more, f"the latents of the prior{beside}")


def optional_size(num_data: int | None) -> int | None:
    """Return the number of data in the whole set as an int, where it is given."""
    return None if num_data is None else at_least("num_data", num_data, 1)
