"""Held-out log evidence in ArviZ's own form."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch

from pyrovae.arviz.elpd import compared, elpd_data
from pyrovae.diagnostics.evidence.evaluate import Evaluation


def elpd(evaluation: Evaluation, training: Evaluation | None = None) -> Any:
    """Return held-out log evidence as the ELPD object that ``az.compare`` takes, so that it can compare pairs.

    Its pointwise values are log p(x_i) of held-out data; there is no leave-one-out step. ``pareto_k`` and ``n_eff_i``,
    k-hat and effective sample size, belong to the importance weights from which they were estimated. The total is a sum
    over the data, as in ArviZ.

    Args:
        evaluation: evaluation of held-out data.
        training: evaluation of the data that the pair was fitted to. From it comes the effective number of parameters
            ``p``: their number times the difference of the mean log densities of both sets, what a training log
            density promises too much. None leaves it at 0.

    Raises:
        ValueError: for data with survey weights, which ArviZ's totals do not take.
    """
    if evaluation.weights is not None:
        raise ValueError(
            "the data carry survey weights, which ArviZ's totals do not take: compare by pyrovae.compare, or evaluate "
            "data.unweighted(), the sample as it is"
        )
    return elpd_data(
        evaluation.log_evidence.numpy(),
        evaluation.khat.numpy(),
        evaluation.ess.numpy(),
        num_parameters=0.0 if training is None else _optimism(evaluation, training),
        num_particles=evaluation.num_particles,
        khat_limit=evaluation.khat_limit,
        warn=not bool(evaluation.reliable.all()),
    )


def _optimism(evaluation: Evaluation, training: Evaluation) -> float:
    difference = float(training.weighted("log_evidence").mean() - evaluation.weighted("log_evidence").mean())
    return len(training) * difference


def elpd_comparison(evaluations: Mapping[str, Evaluation | Sequence[Evaluation]]) -> pd.DataFrame:
    """Return ``az.compare`` of held-out evaluations: ranks, differences and stacking weights.

    Its columns have ArviZ's names and are totals over the data: ``elpd_loo``, and ``p_loo``, which is 0 because there
    is no leave-one-out step. ``warning`` says that some k-hat is above its limit, which depends on the number of
    particles.

    Args:
        evaluations: at least 2 evaluations of the same data, by name. For several seeds, the mean log evidence of each
            observation is used.
    """
    return compared({name: elpd(_mean(one)) for name, one in evaluations.items()})


def _mean(run: Evaluation | Sequence[Evaluation]) -> Evaluation:
    """Return a strategy's evaluations as one evaluation: means over seeds, and the worst k-hat."""
    if isinstance(run, Evaluation):
        return run
    first, estimates = run[0], ("elbo", "elbo_se", "log_evidence", "log_evidence_se", "ess")
    means = {name: torch.stack([getattr(e, name) for e in run]).mean(0) for name in estimates}
    khat = torch.stack([e.khat for e in run]).max(0).values
    return Evaluation(**means, khat=khat, num_particles=first.num_particles, index=first.index, weights=first.weights)
