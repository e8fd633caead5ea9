"""Log evidence per observation, cheaply where that is reliable and by annealing where it is not."""

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
from pyrovae.programs.types import Program


@dataclass(frozen=True)
class Evidence:
    """Estimates for each of N data. Nats, higher is better.

    Attributes:
        log_evidence: estimate of log p(x), ``[N]``.
        log_evidence_se: its Monte Carlo standard error, ``[N]``.
        khat: Pareto tail index of the importance weights, ``[N]``.
        annealed: whether the observation was annealed, ``[N]``.
        reliable: whether the estimate and its error are to be trusted, ``[N]``: by k-hat, or as
            :class:`~pyrovae.Annealing` has it, and not below a bound that the guide gives.
    """

    log_evidence: Tensor
    log_evidence_se: Tensor
    khat: Tensor
    annealed: Tensor
    reliable: Tensor

    def __len__(self) -> int:
        return len(self.log_evidence)

    def summary(self) -> dict[str, float]:
        """Return means over the data in nats, and the shares that were annealed and that are not to be trusted."""
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

    The rule: an observation keeps its importance-weighted estimate when the Pareto k-hat of its weights is within its
    limit (:func:`pyrovae.khat_limit`) and the standard error at most ``tolerance``. Every other observation is
    annealed, and only that estimate counts: the larger of two noisy ones would be biased up. What fails in annealing
    from one start, or ends below a bound that the guide gives (its ELBO, its importance weights), is annealed from the
    other, too; what fails in both is not ``reliable``.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        data: a tensor, a tuple of tensors, or a data set.
        num_particles: importance samples per observation.
        tolerance: standard error in nats that an importance-weighted estimate may have.
        num_chains: of annealing, an observation.
        num_temperatures: of annealing, as :func:`pyrovae.ais` has it.
        anneal_from_guide: start annealing from the guide, and from the prior what fails; False: the other way round, as
            guides need that cannot score a z that they did not draw.
        **options: batch_size, seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Raises:
        ValueError: as :func:`~pyrovae.evaluate` and, where an observation has to be annealed, :func:`~pyrovae.ais` do.
    """
    tolerance = positive("tolerance", tolerance)
    num_chains = at_least("num_chains", num_chains, 1)
    check_temperatures(num_temperatures)
    data = as_data(data).fixed()
    weighted = evaluate(model, guide, data, num_particles=num_particles, **options)
    trusted = weighted.reliable & (weighted.log_evidence_se <= tolerance)
    log_evidence, error = weighted.log_evidence.clone(), weighted.log_evidence_se.clone()
    reliable = trusted.clone()
    rest = (~trusted).nonzero().flatten()
    if len(rest):
        starts = [guide, None] if anneal_from_guide else [None, guide]
        chains: dict[str, Any] = {"num_chains": num_chains, "num_temperatures": num_temperatures}
        bounds = [(bound[rest], se[rest]) for bound, se in weighted.bounds]
        found = supported(model, starts, data, rest.tolist(), bounds, **chains, **without(options, "batch_size"))
        log_evidence[rest], error[rest], reliable[rest] = found.log_evidence, found.log_evidence_se, found.reliable
    return Evidence(log_evidence, error, weighted.khat, ~trusted, reliable)
