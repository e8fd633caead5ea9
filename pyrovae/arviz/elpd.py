"""Held-out log evidence in ArviZ's own form."""

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import arviz as az
import numpy as np
import pandas as pd
import torch
import xarray as xr

from pyrovae.arviz.labels import ARVIZ_1
from pyrovae.evaluation import Evaluation
from pyrovae.state import importing


@importing()
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
    warn = not bool(evaluation.reliable.all())
    known: dict[str, Any] = {
        "se": se,
        "n_samples": evaluation.num_particles,
        "n_data_points": len(values),
        "warning": warn,
    }
    known.update({"scale": "log", "good_k": evaluation.khat_limit, "pareto_k": khat})
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


@importing()
def elpd_comparison(evaluations: Mapping[str, Evaluation | Sequence[Evaluation]]) -> pd.DataFrame:
    """Return ``az.compare`` of held-out evaluations: ranks, differences, and the weights of their stacking.

    Its columns have ArviZ's names (``elpd_loo``, and a ``p_loo`` of 0, for nothing was left out of anything), totals
    over the data; ``warning`` says that some k-hat is above its limit,
    which depends on the number of particles.

    Args:
        evaluations: of the same data, by name, at least 2; of several seeds, the mean log evidence of a datum is taken.
    """
    options = {"round_to": "none"} if ARVIZ_1 else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of k-hats, which are beside this; the table says so by itself
        table: pd.DataFrame = az.compare({name: elpd(_mean(one)) for name, one in evaluations.items()}, **options)
    return table


def _mean(run: Evaluation | Sequence[Evaluation]) -> Evaluation:
    """Return a strategy's evaluations as one: means over seeds, and the worst k-hat."""
    if isinstance(run, Evaluation):
        return run
    stacked = {f.name: torch.stack([getattr(e, f.name) for e in run]) for f in fields(Evaluation)[:-1]}
    means = {name: values.mean(0) for name, values in stacked.items() if name != "khat"}
    return Evaluation(**means, khat=stacked["khat"].max(0).values, num_particles=run[0].num_particles)
