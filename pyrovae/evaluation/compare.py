"""Pairs compared on the same data: paired differences, best first."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch

from pyrovae.evaluation.evaluate import KHAT_LIMIT, Evaluation, evaluate, standard_error
from pyrovae.evaluation.gaps import Gaps, gaps
from pyrovae.pair import Program
from pyrovae.particles import BATCH_SIZE
from pyrovae.training import Fit

Candidate = Fit | tuple[Program, Program]


def compare(
    candidates: Mapping[str, Candidate],
    data: Any,
    *,
    num_particles: int = 1000,
    with_gaps: bool = False,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Compare fits, or pairs, on held-out data.

    Args:
        candidates: fits, or (model, guide) pairs, by name.
        data: a tensor, a tuple of tensors, or a data set; the same for all.
        num_particles: importance samples a datum.
        with_gaps: also split each one's gap, as :func:`pyrovae.gaps` does: below log p(x) by annealing, which does not
            trust the guide, so that the two may add up to more than log_evidence - elbo.
        batch_size: data held by a call of the programs.
        seed: of the particles, the same for all.
        device: None means CUDA where there is one.
        progress: whether to show a progress bar.

    Returns:
        A row a candidate, best log evidence first, as :func:`comparison` describes.

    Raises:
        ValueError: for no candidates, and for what :func:`pyrovae.evaluate` refuses.
    """
    if not isinstance(candidates, Mapping):
        raise ValueError(f"candidates must be a dict of fits or pairs by name, got a {type(candidates).__name__}")
    options: dict[str, Any] = {"num_particles": num_particles, "seed": seed, "device": device, "progress": progress}
    pairs = {name: programs(candidate) for name, candidate in candidates.items()}
    evaluations = {name: evaluate(*pair, data, batch_size=batch_size, **options) for name, pair in pairs.items()}
    split = {name: gaps(*pair, data, **options) for name, pair in pairs.items() if with_gaps}
    return comparison(evaluations, {name: c.seconds for name, c in candidates.items() if isinstance(c, Fit)}, split)


def programs(candidate: Any) -> tuple[Program, Program]:
    """Return a candidate's model and guide.

    Raises:
        ValueError: when it is neither a fit nor a pair.
    """
    if isinstance(candidate, Fit):
        return candidate.model, candidate.guide
    if isinstance(candidate, tuple) and len(candidate) == 2:
        return candidate[0], candidate[1]
    raise ValueError(f"a candidate is a Fit or a tuple (model, guide), got {type(candidate).__name__}")


def comparison(
    evaluations: Mapping[str, Evaluation],
    seconds: Mapping[str, float] | None = None,
    split: Mapping[str, Gaps] | None = None,
) -> pd.DataFrame:
    """Tabulate evaluations of the same data, best log evidence first.

    Columns, in nats per datum and means over the data where not said otherwise: ``log_evidence`` with its standard
    error over the data; ``difference`` to the best with the standard error of the PAIRED differences; ``elbo`` with its
    standard error; ``khat_over_0.7``, the share of data whose importance weights are not to be trusted; ``ess``, the
    mean effective sample size; ``seconds`` of fitting, NaN when not known. With gaps, the ``approximation`` and the
    ``amortization`` gap and their standard errors stand before the seconds.

    Raises:
        ValueError: for no evaluations, or evaluations of different numbers of data.
    """
    if not evaluations:
        raise ValueError("there is nothing to compare: give at least one candidate")
    sizes = {name: len(e) for name, e in evaluations.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"candidates must be judged on the same data, got numbers of data {sizes}")
    best = max(evaluations.values(), key=lambda e: float(e.log_evidence.mean()))
    rows = {}
    for name, e in evaluations.items():
        difference = e.log_evidence - best.log_evidence
        rows[name] = {
            "log_evidence": float(e.log_evidence.mean()),
            "log_evidence_se": standard_error(e.log_evidence),
            "difference": float(difference.mean()),
            "difference_se": standard_error(difference),
            "elbo": float(e.elbo.mean()),
            "elbo_se": standard_error(e.elbo),
            "khat_over_0.7": float((~(e.khat <= KHAT_LIMIT)).double().mean()),
            "ess": float(e.ess.mean()),
            **(_gap_columns(split[name]) if split else {}),
            "seconds": (seconds or {}).get(name, math.nan),
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.sort_values("log_evidence", ascending=False, kind="stable").rename_axis("name")


def _gap_columns(found: Gaps) -> dict[str, float]:
    summary = found.summary()
    kinds = ("approximation", "amortization")
    return {key: summary[key] for kind in kinds for key in (kind, f"{kind}_se")}
