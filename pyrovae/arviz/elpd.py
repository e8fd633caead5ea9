"""Held-out log evidence in ArviZ's own form."""

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import arviz as az
import numpy as np
import pandas as pd
import xarray as xr

from pyrovae.arviz.labels import ARVIZ_1
from pyrovae.evaluation import KHAT_LIMIT, Evaluation


def elpd(evaluation: Evaluation) -> Any:
    """Return held-out log evidence as the ELPD object that ``az.compare`` takes, so that it compares pairs.

    Its pointwise values are log p(x_i) of held-out data; nothing is left out of anything. ``pareto_k`` is that of the
    importance weights that estimated them. Summed over the data, as ArviZ does.

    Args:
        evaluation: of held-out data.
    """
    values = evaluation.log_evidence.numpy()
    pointwise = xr.DataArray(values, dims="datum", coords={"datum": np.arange(len(values))})
    khat = xr.DataArray(evaluation.khat.numpy(), dims="datum", coords={"datum": np.arange(len(values))})
    total, se = float(values.sum()), float(np.sqrt(len(values) * values.var()))
    warn = bool((evaluation.khat > KHAT_LIMIT).any())
    known: dict[str, Any] = {
        "se": se,
        "n_samples": evaluation.num_particles,
        "n_data_points": len(values),
        "warning": warn,
    }
    known.update({"scale": "log", "good_k": KHAT_LIMIT, "pareto_k": khat})
    if not ARVIZ_1:
        from arviz.stats.stats import ELPDData

        data = {"elpd_loo": total, "p_loo": 0.0, "loo_i": pointwise.rename("loo_i"), **known}
        order = (
            "elpd_loo",
            "se",
            "p_loo",
            "n_samples",
            "n_data_points",
            "warning",
            "loo_i",
            "pareto_k",
            "scale",
            "good_k",
        )
        return ELPDData(data=[data[key] for key in order], index=list(order))
    from arviz_stats import utils

    cls = getattr(utils, "ELPDDataLOO", utils.ELPDData)
    kind = {"kind": "loo"} if "kind" in inspect.signature(cls).parameters else {}
    return cls(elpd=total, p=0.0, elpd_i=pointwise, **known, **kind)


def elpd_comparison(evaluations: Mapping[str, Evaluation]) -> pd.DataFrame:
    """Return ``az.compare`` of held-out evaluations: ranks, differences, and the weights of their stacking.

    Args:
        evaluations: of the same data, by name, at least 2.
    """
    options = {"round_to": "none"} if ARVIZ_1 else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of k-hats, which are beside this; the table says so by itself
        table: pd.DataFrame = az.compare({name: elpd(one) for name, one in evaluations.items()}, **options)
    return table
