"""ArviZ's diagnostics of chains, the worst over the latents of each observation."""

import arviz as az
import numpy as np
import xarray as xr

from pyrovae.programs.isolation import importing


@importing()
def mixing(draws: xr.Dataset) -> dict[str, tuple[str, np.ndarray]]:
    """Return R-hat and effective sample sizes per observation, the worst over its latents; a single chain is halved."""
    half = draws.sizes["draw"] // 2
    if draws.sizes["chain"] == 1:
        first, second = draws.isel(draw=slice(0, half)), draws.isel(draw=slice(half, 2 * half))
        draws = xr.concat([first, second.assign_coords(draw=first["draw"])], dim="chain")
    measures = {
        "rhat": (az.rhat(draws), "max"),
        "ess_bulk": (az.ess(draws, method="bulk"), "min"),
        "ess_tail": (az.ess(draws, method="tail"), "min"),
    }
    return {
        name: ("datum", getattr(np, kind)([_worst(v, kind) for v in values.data_vars.values()], axis=0))
        for name, (values, kind) in measures.items()
    }


def _worst(values: xr.DataArray, kind: str) -> np.ndarray:
    others = [dim for dim in values.dims if dim != "datum"]
    return np.asarray(getattr(values, kind)(others) if others else values)
