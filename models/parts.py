"""Checks of the parts of the models in this catalogue, as far as the parts describe themselves."""

from typing import Any

from torch import Tensor, nn

from pyrovae.common.checks import at_least
from pyrovae.likelihoods import Likelihood, Missing, Mixed
from pyrovae.nn.network import check_columns, check_module
from pyrovae.priors.prior import num_latents

PER_COLUMN = ("num_scales", "num_dispersions", "num_concentrations")  # 1, or one per column


def check_decoder(decoder: nn.Module, likelihood: nn.Module) -> None:
    """Check that both are modules, and that the decoder returns as many features as the likelihood takes.

    Raises:
        ValueError: if not; the message names the part.
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
    """Check that the decoder takes the prior's latents and ``more`` columns beside them, if both state how many.

    Raises:
        ValueError: if not; the message names both widths.
    """
    latents = num_latents(prior)
    if latents is not None:
        beside = f" and {more} more" if more else ""
        check_columns("decoder", decoder, latents + more, f"the latents of the prior{beside}")


def optional_size(num_data: int | None) -> int | None:
    """Return the number of observations in the whole data set as an int; None if it is not given."""
    return None if num_data is None else at_least("num_data", num_data, 1)


def split_exposure(model: nn.Module, others: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Return the covariates among the tensors beside x, and the exposure, the last one, where the likelihood takes it.

    Raises:
        ValueError: when the exposure is missing.
    """
    likelihood: Any = model.likelihood
    if not getattr(likelihood, "takes_exposure", False):
        return others, {}
    if not others:
        raise ValueError(
            f"the likelihood of the {type(model).__name__} takes an exposure: pass data as a tuple that ends with it, "
            "(x, exposure)"
        )
    return others[:-1], {"exposure": others[-1]}


def only_exposure(model: nn.Module, others: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Return the exposure of a model that takes no covariates.

    Raises:
        ValueError: when the exposure is missing, and for further tensors.
    """
    covariates, exposure = split_exposure(model, others)
    if covariates:
        raise ValueError(
            f"a {type(model).__name__} takes x alone, or x and an exposure where its likelihood does, got "
            f"{1 + len(others)} tensors: a model of covariates is models.ConditionalVAE"
        )
    return exposure
