"""Posterior simulation-based calibration: is the posterior of what all data share right, given these data?"""

from collections.abc import Callable, Mapping
from typing import Any, Unpack

import torch
from torch import Tensor

from pyrovae.common.checks import at_least, shown
from pyrovae.common.progress import progress_bar
from pyrovae.data import Data, as_data
from pyrovae.diagnostics.calibration.ranks import Ranks, Tally, rank
from pyrovae.diagnostics.predictive.draws import coordinates
from pyrovae.diagnostics.predictive.simulate import simulate
from pyrovae.importance.options import Options, shared_keywords
from pyrovae.importance.question import refuse_weights
from pyrovae.programs.handlers import given
from pyrovae.programs.isolation import random_state
from pyrovae.programs.streams import stream_seed
from pyrovae.programs.types import Program

Quantity = Callable[[Mapping[str, Tensor]], Tensor | float]


@shared_keywords()
def posterior_sbc(
    model: Program,
    guide: Any,
    data: Any,
    refit: Callable[[Data], Any],
    *,
    num_simulations: int = 100,
    num_draws: int = 99,
    quantities: Mapping[str, Quantity] | None = None,
    **options: Unpack[Options],
) -> Ranks:
    """Rank draws of global latents among those of their posterior given the data and a replicate made from that draw.

    w ~ q(w | x), then x' ~ p(x' | w), then the posterior of w given x and x' together, by another fit. If the
    inference is right, w is a draw of that posterior, so that its ranks are uniform. Calibration by draws of the prior
    asks the same about data that the prior makes, which may be unlike these.

    Source: Säilynoja, Schmitt, Bürkner and Vehtari, "Posterior SBC: simulation-based calibration checking conditional
    on data", 2025.

    Args:
        model: generative program with latents outside the data plate.
        guide: guide of these latents that was fitted to the data, with ``draw()``, a dict of one draw by site, as
            :class:`~pyrovae.guides.WithGlobals` has.
        data: the data; they are not scaled or subsampled anew.
        refit: function of a data set, twice as large (the data, then their replicate), that returns a guide fitted to
            it, or a :class:`pyrovae.Fit`; the model's ``num_data`` has to be twice as large, too.
        num_simulations: number of draws and fits.
        num_draws: number K of draws of every fit.
        quantities: further functions to rank, by name, each of a dict of one draw by site. What a factorised guide gets
            wrong is seen in functions of several latents, such as a sum.
        **options: seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Returns:
        Ranks ``[num_simulations, Q]`` of every coordinate and quantity; ``.table()`` has their p-values.

    Raises:
        ValueError: for a guide without ``draw()``, latents that all data share but none of them drawn, and as
            :func:`pyrovae.simulate` does.
    """
    at_least("num_simulations", num_simulations, 2)
    at_least("num_draws", num_draws, 2)
    if not callable(getattr(guide, "draw", None)):
        raise ValueError("the guide has no global latents to draw: it needs draw(), as guides.WithGlobals has")
    if not callable(refit):
        raise ValueError(f"refit must be a function of a data set that returns a fitted guide, got {refit!r}")
    data = as_data(data, model).fixed()
    refuse_weights(data)
    own, seed, names = dict(quantities or {}), options["seed"], []
    tally = Tally()
    with progress_bar(total=num_simulations, label="posterior sbc" if options["progress"] else None, unit="fit") as bar:
        for number in range(num_simulations):
            with random_state("posterior sbc", stream_seed("draw of globals", seed, number)), torch.no_grad():
                truth = {name: value.detach() for name, value in guide.draw().items()}
            replicate = simulate(
                given(model, truth), data, seed=stream_seed("replicate", seed, number), device=options["device"],
                progress=False,
            )  # fmt: skip
            fitted = refit(_together(data, replicate.data))
            fitted = getattr(fitted, "guide", fitted)
            if not callable(getattr(fitted, "draw", None)):
                raise ValueError(f"refit must return a guide with draw(), or a Fit, got {shown(fitted)}")
            with random_state("posterior sbc", stream_seed("draws of a fit", seed, number)), torch.no_grad():
                draws = [_numbers(_alike(fitted.draw(), truth), own) for _ in range(num_draws)]
            tally.add(number, *(t[None] for t in rank(_numbers(truth, own), torch.stack(draws))))
            names = [name for site, value in truth.items() for name in coordinates(site, value)]
            bar.update()
    return Ranks(tally.ranks("ties of posterior sbc", seed), num_draws, (*names, *own))


def _together(data: Data, replicate: Data) -> Data:
    """Return the data, as they are in batches, and their replicate as one set."""
    count = len(data.fields)
    both = zip(data.batch(slice(0, len(data)))[:count], replicate.batch(slice(0, len(replicate)))[:count], strict=True)
    tensors = [torch.cat([one.cpu(), other.cpu()]) for one, other in both]
    return Data(*(field.with_values(tensor) for field, tensor in zip(data.fields, tensors, strict=True)))


def _alike(draw: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a draw in the order of the true latents.

    Raises:
        ValueError: for other latents, or latents of another shape.
    """
    shapes = [{name: tuple(value.shape) for name, value in one.items()} for one in (truth, draw)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"the guide that refit returns draws {shapes[1]}, but that of the data draws {shapes[0]}")
    return {name: draw[name] for name in truth}


def _numbers(draw: Mapping[str, Tensor], own: Mapping[str, Quantity]) -> Tensor:
    """Return all coordinates and quantities of a draw, ``[Q]``."""
    parts = [value.detach().double().reshape(-1).cpu() for value in draw.values()]
    for name, function in own.items():
        number = torch.as_tensor(function(draw), dtype=torch.float64).detach().cpu()
        if number.numel() != 1:
            raise ValueError(f"the quantity {name!r} must return one number of a draw, got {list(number.shape)}")
        parts.append(number.reshape(1))
    return torch.cat(parts)
