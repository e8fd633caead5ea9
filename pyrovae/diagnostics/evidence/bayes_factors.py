"""Bayes factors of models from their evidence on the same data."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from pyrovae.diagnostics.evidence.evaluate import Evaluation
from pyrovae.diagnostics.evidence.evidence import Evidence

_WORDS = ((2, "not worth more than a bare mention"), (6, "positive"), (10, "strong"), (np.inf, "very strong"))
ERRORS = 4.0  # Monte Carlo standard errors within which a Bayes factor is not told from 1


def bayes_factors(evidence: Mapping[str, Evaluation | Evidence], *, reference: str | None = None) -> pd.DataFrame:
    """Return the Bayes factor of every model against the best one, or ``reference``, with its Monte Carlo error.

    A Bayes factor is the ratio of the probabilities that two models give to the data. Here it is that of these
    observations given what the models were fitted to: on held-out data, p(held-out | training) of the one model over
    that of the other, with the parameters at their estimates. On the data of the fit it favours the more flexible
    model. Unlike a difference per observation it grows with the data, and says nothing of new ones.

    Source: Kass and Raftery, "Bayes factors", 1995, for the words.

    Args:
        evidence: results of :func:`pyrovae.evaluate` or :func:`pyrovae.evidence` on the same data, by name.
        reference: name of the model that the others are compared with; None takes the best.

    Returns:
        One row per model, best first: ``log_bayes_factor`` in nats (natural logarithm), corrected for the bias
        of the logarithm of a mean; ``mc_se``, its Monte Carlo standard error, as of independent estimates;
        ``evidence``, Kass and Raftery's word for its size, for or against the model, or "not resolved" within four
        standard errors of 0; ``reliable``: whether all observations of both models are reliable.

    Raises:
        ValueError: for fewer than two models, different numbers of data, survey weights, or an unknown reference.
    """
    lists = [name for name, one in evidence.items() if not hasattr(one, "log_evidence")]
    if lists:
        raise ValueError(f"a Bayes factor is of one evaluation per model, got a {type(evidence[lists[0]]).__name__}")
    sizes = {name: len(one) for name, one in evidence.items()}
    if len(sizes) < 2 or len(set(sizes.values())) > 1:
        raise ValueError(f"Bayes factors need two or more models on the same data, got numbers of data {sizes}")
    if any(getattr(one, "weights", None) is not None for one in evidence.values()):
        raise ValueError("the data carry survey weights, and a Bayes factor is of the sample as it is: unweighted()")
    totals, variances = {}, {}
    for name, one in evidence.items():
        variance = one.log_evidence_se.double().square()
        totals[name], variances[name] = float((one.log_evidence + 0.5 * variance).sum()), float(variance.sum())
    if reference is not None and reference not in totals:
        raise ValueError(f"reference must be one of {', '.join(totals)}, got {reference!r}")
    base = max(totals, key=lambda name: totals[name]) if reference is None else reference
    rows = {}
    for name, total in totals.items():
        factor, error = total - totals[base], 0.0 if name == base else (variances[name] + variances[base]) ** 0.5
        rows[name] = {
            "log_bayes_factor": factor,
            "mc_se": error,
            "evidence": "" if name == base else _word(factor, error),
            "reliable": bool(evidence[name].reliable.all() and evidence[base].reliable.all()),
        }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("name")
    return table.sort_values("log_bayes_factor", ascending=False, kind="stable")


def _word(factor: float, error: float) -> str:
    if not math.isfinite(factor) or not abs(factor) > ERRORS * error:  # not a number, too
        return "not resolved"
    word = next(word for limit, word in _WORDS if 2 * abs(factor) <= limit)
    return word if word == _WORDS[0][1] else f"{word}, {'for' if factor > 0 else 'against'}"
