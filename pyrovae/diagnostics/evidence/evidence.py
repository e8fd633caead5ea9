"""Log evidence per observation, by importance sampling where that is reliable and by annealing where it is not."""

from dataclasses import dataclass
from typing import Any, Unpack

from torch import Tensor

from pyrovae.common.checks import at_least, positive
from pyrovae.data import as_data
from pyrovae.diagnostics.evidence.ais import check_temperatures
from pyrovae.diagnostics.evidence.evaluate import combined_error, evaluate, standard_error
from pyrovae.diagnostics.evidence.supported import supported
from pyrovae.diagnostics.evidence.trust import described, unreliable
from pyrovae.importance.options import BATCH_SIZE, Options, shared_keywords, without
from pyrovae.importance.question import refuse_weights
from pyrovae.programs.types import Program


@dataclass(frozen=True)
class Evidence:
    """Estimates for each of N observations. Nats, higher is better.

    Attributes:
        log_evidence: estimate of log p(x), ``[N]``.
        log_evidence_se: its Monte Carlo standard error, ``[N]``.
        khat: Pareto tail index of the importance weights, ``[N]``.
        annealed: whether the observation was annealed, ``[N]``.
        reliable: whether the estimate and its error are reliable, ``[N]``: by k-hat, or by the conditions of
            :class:`~pyrovae.Annealing`, and not below a bound from the guide.
    """

    log_evidence: Tensor
    log_evidence_se: Tensor
    khat: Tensor
    annealed: Tensor
    reliable: Tensor

    def __len__(self) -> int:
        return len(self.log_evidence)

    def summary(self) -> dict[str, float]:
        """Return means over the observations in nats, and the shares that were annealed and that are unreliable."""
        return {
            "num_data": len(self),
            "log_evidence": float(self.log_evidence.mean()),
            "log_evidence_se": standard_error(self.log_evidence),
            "log_evidence_mc_se": combined_error(self.log_evidence_se),
            "annealed": float(self.annealed.double().mean()),
            "unreliable": unreliable(self.reliable),
        }

    def __str__(self) -> str:
        return described("importance sampling, and annealing where that fails", self)


@shared_keywords(batch_size=BATCH_SIZE)
def evidence(
    model: Program,
    guide: Program,
    data: Any,
    *,
    num_particles: int = 1000,
    tolerance: float = 0.1,
    num_chains: int = 16,
    num_temperatures: int | str = "auto",
    anneal_from_guide: bool = True,
    **options: Unpack[Options],
) -> Evidence:
    """Estimate each observation's log evidence: importance sampling first, annealed importance sampling where it fails.

    An observation keeps its importance-weighted estimate if the Pareto k-hat of its weights is within its limit
    (:func:`pyrovae.khat_limit`) and the standard error is at most ``tolerance``. Every other observation is annealed,
    and only the annealing estimate counts, because the larger of two noisy estimates would be biased up. If annealing
    from one start fails, or ends below a bound from the guide (its ELBO, its importance-weighted bound), the
    observation is also annealed from the other start. If both fail, the estimate is not ``reliable``.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        data: a tensor, a tuple of tensors, or a data set.
        num_particles: number of importance samples per observation.
        tolerance: largest standard error in nats that an importance-weighted estimate may have.
        num_chains: number of annealing chains per observation.
        num_temperatures: number of annealing temperatures, as in :func:`pyrovae.ais`.
        anneal_from_guide: whether to anneal from the guide first, and from the prior where that fails; False: the other
            way round, as is necessary for guides that cannot score an externally supplied z.
        **options: batch_size, seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Raises:
        ValueError: as :func:`~pyrovae.evaluate` and, where an observation has to be annealed, :func:`~pyrovae.ais` do.
    """
    tolerance = positive("tolerance", tolerance)
    num_chains = at_least("num_chains", num_chains, 1)
    check_temperatures(num_temperatures)
    data = as_data(data, model, guide).fixed()
    refuse_weights(data)
    evaluation = evaluate(model, guide, data, num_particles=num_particles, **options)
    trusted = evaluation.reliable & (evaluation.log_evidence_se <= tolerance)
    log_evidence, error = evaluation.log_evidence.clone(), evaluation.log_evidence_se.clone()
    reliable = trusted.clone()
    rest = (~trusted).nonzero().flatten()
    if len(rest):
        starts = [guide, None] if anneal_from_guide else [None, guide]
        chains: dict[str, Any] = {"num_chains": num_chains, "num_temperatures": num_temperatures}
        bounds = [(bound[rest], se[rest]) for bound, se in evaluation.bounds]
        result = supported(model, starts, data, rest.tolist(), bounds, **chains, **without(options, "batch_size"))
        log_evidence[rest], error[rest], reliable[rest] = result.log_evidence, result.log_evidence_se, result.reliable
    return Evidence(log_evidence, error, evaluation.khat, ~trusted, reliable)
