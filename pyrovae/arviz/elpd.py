"""ArviZ's ELPD objects, of either version, and its comparison of them."""

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import arviz as az
import numpy as np
import pandas as pd
import xarray as xr

from pyrovae.arviz.labels import ARVIZ_1
from pyrovae.programs.isolation import importing

_ORDER = (
    "elpd_loo", "se", "p_loo", "n_samples", "n_data_points", "warning", "loo_i", "pareto_k", "scale", "good_k",
)  # fmt: skip


@importing()
def elpd_data(
    values: np.ndarray, khat: np.ndarray, ess: np.ndarray, *, num_parameters: float, num_particles: int,
    khat_limit: float, warn: bool,
) -> Any:  # fmt: skip
    """Return pointwise log densities as the object that ``az.compare`` takes.

    Args:
        values: log p(x_i) in nats, ``[N]``.
        khat: k-hats of the importance weights that estimated the values, ``[N]``.
        ess: effective sample sizes of these weights, ``[N]``.
        num_parameters: effective number of parameters, ArviZ's p.
        num_particles: number of weights per observation.
        khat_limit: the largest k-hat of reliable weights.
        warn: whether some weights are unreliable.
    """
    coords = {"datum": np.arange(len(values))}
    pointwise, tail, sizes = (xr.DataArray(array, dims="datum", coords=coords) for array in (values, khat, ess))
    entries: dict[str, Any] = {
        "se": float(np.sqrt(len(values) * values.var())),
        "n_samples": num_particles,
        "n_data_points": len(values),
        "warning": warn,
        "scale": "log",
        "good_k": khat_limit,
        "pareto_k": tail,
    }
    total = float(values.sum())
    if not ARVIZ_1:
        from arviz.stats.stats import ELPDData

        data = {"elpd_loo": total, "p_loo": num_parameters, "loo_i": pointwise.rename("loo_i"), **entries}
        found = ELPDData(data=[data[key] for key in _ORDER], index=list(_ORDER))
        found["n_eff_i"] = sizes
        return found
    from arviz_stats import utils

    cls = getattr(utils, "ELPDDataLOO", utils.ELPDData)
    kind = {"kind": "loo"} if "kind" in inspect.signature(cls).parameters else {}
    known = inspect.signature(cls).parameters
    more = {"n_eff_i": sizes} if "n_eff_i" in known else {}
    return cls(elpd=total, p=num_parameters, elpd_i=pointwise, **entries, **kind, **more)


@importing()
def compared(elpds: Mapping[str, Any]) -> pd.DataFrame:
    """Return ``az.compare`` of ELPD objects, unrounded, without its warnings about k-hats, which the table shows."""
    options = {"round_to": "none"} if ARVIZ_1 else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table: pd.DataFrame = az.compare(dict(elpds), **options)
    return table
