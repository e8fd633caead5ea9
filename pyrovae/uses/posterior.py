"""Posterior draws of every observation's latents, each from the cheapest method that its own diagnostics accept."""

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyrovae.arviz.labels import assemble, labelled, own_dims, refuse_beyond, refuse_names
from pyrovae.common.checks import at_least, flag, share
from pyrovae.data import Data, as_data
from pyrovae.diagnostics.evidence.evaluate import evaluate
from pyrovae.importance.options import BATCH_SIZE, Options, shared_keywords, without
from pyrovae.importance.psis import PRACTICAL, draws_needed, khat_limit
from pyrovae.importance.question import Question, ask
from pyrovae.mcmc.hmc import hmc
from pyrovae.programs.sites import outer_plates
from pyrovae.programs.types import Program
from pyrovae.uses.weighted import weighted_draws

METHODS = ("guide", "importance", "hmc", "unreliable")
STATISTICS = ("khat", "ess", "rhat", "pvalue", "unusual", "seconds")
LARGEST_KHAT = 1.0  # above which the mean of the weights need not exist, so that more of them do not help
LARGEST_RHAT = 1.01
FEWEST_PARTICLES = 200
ESS_PER_CHAIN = 100
LONGER = 2  # times as long are the chains of a second try
DATA_AT_ONCE = 1024  # of chains, whose cost hardly grows with the data up to there


@dataclass
class Posterior:
    """Draws of p(z | x) of each of N observations.

    Attributes:
        draws: draws by latent site, ``[S, N, plates, ..., event]``. Those of an unreliable observation are the last
            that were tried, and are not draws of its posterior.
        method: how each observation's draws were made, ``[N]``: "guide", "importance", "hmc", or "unreliable".
        khat: Pareto tail index of the importance weights that were looked at last, ``[N]``.
        ess: how many independent draws tell as much, ``[N]``: of the weights, or of the chains (the worst latent).
        rhat: R-hat of the chains, the worst latent, ``[N]``; NaN where there are none.
        pvalue: share of the reference data whose log evidence is not above that of the observation, ``[N]``; NaN
            without reference data.
        unusual: whether the observation is unlike the reference data, ``[N]``: its p-value is at most ``level``.
        seconds: time that each observation's draws took, ``[N]``.
        index: names of the observations, ``[N]``.
        note: why the last method could not be used, where it could not; else "".
        plates: names of the plates left of the data plate, by site.
        outer_dims: number of the model's dimensions left of the data plate's, by site.
    """

    draws: dict[str, Tensor]
    method: np.ndarray
    khat: Tensor
    ess: Tensor
    rhat: Tensor
    pvalue: Tensor
    unusual: Tensor
    seconds: Tensor
    index: np.ndarray
    note: str = ""
    plates: Mapping[str, list[str]] = field(default_factory=dict)
    outer_dims: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.method)

    @property
    def reliable(self) -> np.ndarray:
        """Whether each observation's draws passed the diagnostics of their method, ``[N]``."""
        result: np.ndarray = self.method != "unreliable"
        return result

    def table(self) -> pd.DataFrame:
        """Return one row per observation: method, khat, ess, rhat, pvalue, unusual, seconds."""
        columns = {
            name: getattr(self, name).numpy() for name in ("khat", "ess", "rhat", "pvalue", "unusual", "seconds")
        }
        return pd.DataFrame({"method": self.method, **columns}, index=self.index).rename_axis("datum")

    def summary(self) -> dict[str, float]:
        """Return how many observations have draws of each method, how many are unusual, and the seconds in all."""
        counts = {name: int((self.method == name).sum()) for name in METHODS}
        return {
            "num_data": len(self),
            **counts,
            "unusual": int(self.unusual.sum()),
            "seconds": float(self.seconds.sum()),
        }

    def __str__(self) -> str:
        result = self.summary()
        parts = [
            f"{result['guide']} from the guide's own draws, weighted", f"{result['importance']} from more of them",
            f"{result['hmc']} by Hamiltonian Monte Carlo",
        ]  # fmt: skip
        text = f"posterior of {len(self)} observations: {', '.join(parts)}"
        bad, odd = int(result["unreliable"]), int(result["unusual"])
        text += f"; {bad} UNRELIABLE: no method passed its diagnostics" if bad else "; all passed their diagnostics"
        text += f" ({self.note})" if bad and self.note else ""
        text += f"; {odd} unlike the reference data" if odd else ""
        return text + f" ({result['seconds']:.1f} s)"

    def to_arviz(self) -> Any:
        """Return the draws as an ArviZ object, with ``method`` and ``reliable`` as coordinates of the observations.

        ``sample_stats`` holds ``khat``, ``ess``, ``rhat``, ``pvalue``, ``unusual`` and ``seconds``.
        """
        variables = {
            name: (("chain", "draw", *own_dims(name, v.dim() - 2, self.plates.get(name, []))), v.numpy()[None])
            for name, v in self.draws.items()
        }
        stats = {name: ("datum", getattr(self, name).numpy()) for name in STATISTICS}
        rungs = {"method": ("datum", self.method.astype(str)), "reliable": ("datum", self.reliable)}
        draws, stats_of = labelled(variables, self.index), labelled(stats, self.index)
        return assemble({"posterior": draws.assign_coords(rungs), "sample_stats": stats_of.assign_coords(rungs)})


@shared_keywords(batch_size=BATCH_SIZE, compile="auto")
def posterior(
    model: Program,
    guide: Program,
    data: Any,
    *,
    num_draws: int = 1000,
    reference: Any = None,
    level: float = 0.01,
    most_particles: int = 20_000,
    num_chains: int = 4,
    num_warmup: int = 500,
    chains: bool = True,
    max_bytes: int = 4 * 2**30,
    **options: Unpack[Options],
) -> Posterior:
    """Draw from the posterior p(z | x) of every observation, given the parameters, and say how far to trust the draws.

    Each observation goes up a ladder until its own diagnostics are passed:

    1. "guide": S draws of the guide, at least 200, resampled to S by their Pareto-smoothed importance weights, where
       k-hat is at most its limit for so many (:func:`pyrovae.khat_limit`).
    2. "importance": as many draws of the guide as k-hat calls for, at least ten times S and at most
       ``most_particles``, resampled to S, where their k-hat is at most its limit. An observation whose first k-hat is
       above 1 skips this.
    3. "hmc": Hamiltonian Monte Carlo on this observation alone, started at the guide's draws, where R-hat is at most
       1.01 and the bulk effective sample size at least 100 per chain; with a second try, twice as long.
    4. "unreliable": nothing passed. Such an observation is marked, and a warning is given.

    No diagnostic sees a mode that neither the guide nor a chain visits. With ``reference``, held-out data that are
    known to be normal, an observation is marked ``unusual`` where its log evidence is below that of all but a share
    ``level`` of them: neither model nor guide was made for it.

    Source: Schmitt et al., "Amortized Bayesian workflow", 2024; Vehtari et al., "Pareto smoothed importance sampling",
    2024; Vehtari et al., "Rank-normalization, folding, and localization: an improved R-hat", 2021.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        data: a tensor, a tuple of tensors, a table, or a data set.
        num_draws: number of draws S per observation.
        reference: held-out data that are not unusual; None compares with none.
        level: p-value up to which an observation is unusual.
        most_particles: largest number of the guide's draws per observation.
        num_chains: number of chains per observation.
        num_warmup: number of transitions per chain that adapt it.
        chains: whether Hamiltonian Monte Carlo is tried at all; False leaves what weights do not solve unreliable.
        max_bytes: refuse draws that take more memory than this.
        **options: batch_size, seed, compile, device and progress, as all questions take them
            (:class:`pyrovae.Options`).

    Raises:
        ValueError: for a pair that breaks the contract, bad data or bad numbers, draws beyond ``max_bytes``, or too few
            reference data for ``level``.

    Example:
        >>> from pyrovae import guides, models
        >>> model = models.LinearGaussian(2, 5)
        >>> result = posterior(model, guides.Exact(model), torch.zeros(7, 5), num_draws=50, progress=False)
        >>> result.draws["z"].shape, set(result.method.tolist())
        (torch.Size([50, 7, 2]), {'guide'})
    """
    for name, number, least in (
        ("num_draws", num_draws, 8), ("most_particles", most_particles, 1), ("num_chains", num_chains, 2),
        ("num_warmup", num_warmup, 20),
    ):  # fmt: skip
        at_least(name, number, least)
    data = as_data(data, model, guide).fixed()
    share("level", level, ends=False)
    compared = None if reference is None else _reference(model, guide, reference, level, _first(num_draws), options)
    result, evidence = _by_guide(model, guide, data, num_draws, max_bytes, options)
    if compared is not None:
        result.pvalue, result.unusual = _pvalues(evidence, compared, level)
    _by_more(model, guide, data, result, num_draws, most_particles, options)
    for length in (1, LONGER) if flag("chains", chains) else ():
        _by_chains(model, guide, data, result, num_draws, num_chains, num_warmup * length, options)
    if not result.reliable.all():
        warnings.warn(str(result), stacklevel=3)
    return result


def _reference(model: Program, guide: Program, data: Any, level: float, count: int, options: Any) -> Tensor:
    """Return the log evidence of the reference data."""
    reference = as_data(data, model, guide)
    if len(reference) + 1 < 1 / level:
        raise ValueError(
            f"{len(reference)} reference data cannot give a p-value of {level:g}: give at least {int(1 / level)}, or a "
            "larger level"
        )
    return evaluate(model, guide, reference.unweighted(), num_particles=count, **options).log_evidence


def _pvalues(evidence: Tensor, reference: Tensor, level: float) -> tuple[Tensor, Tensor]:
    below = torch.searchsorted(reference.sort().values, evidence, right=True)
    pvalue = (1 + below) / (1 + len(reference))
    return pvalue, pvalue <= level


def _by_guide(
    model: Program, guide: Program, data: Data, num_draws: int, max_bytes: int, options: Options
) -> tuple[Posterior, Tensor]:
    """Return the guide's draws, weighted, of all data, and each log evidence."""
    count, started = len(data), time.monotonic()
    nans = torch.full((count,), torch.nan, dtype=torch.float64, device="cpu")
    with ask(model, guide, data, takes_weights=True, **without(options, "compile")) as question:
        question.layout.require_latents()
        plates, outer_dims = _plates(question)
        refuse_names(plates)
        parts = list(_within(question, num_draws, max_bytes))
    khat = torch.cat([part.khat for part in parts])
    seconds = torch.full_like(nans, (time.monotonic() - started) / count)
    method = np.where((khat <= khat_limit(_first(num_draws))).numpy(), "guide", "unreliable").astype(object)
    draws = {name: torch.cat([part.draws[name] for part in parts], 1) for name in parts[0].draws}
    ess = torch.cat([part.ess for part in parts])
    result = Posterior(
        draws, method, khat, ess, nans, nans.clone(), torch.zeros(count, dtype=torch.bool, device="cpu"), seconds,
        data.index, plates=plates, outer_dims=outer_dims,
    )  # fmt: skip
    return result, torch.cat([part.log_evidence for part in parts])


def _within(question: Question, num_draws: int, max_bytes: int) -> Any:
    """Iterate over weighted draws of all data; the first part shows whether all of them fit into memory."""
    for number, part in enumerate(weighted_draws(question, _first(num_draws), num_draws, "posterior, guide")):
        if not number:
            one = sum(v[:, 0].numel() * v.element_size() for v in part.draws.values())
            refuse_beyond(max_bytes, one * len(question.data))
        yield part


def _first(num_draws: int) -> int:
    """Return the number of particles of the first method: enough for a tail, however few draws are wanted."""
    return max(num_draws, FEWEST_PARTICLES)


def _plates(question: Question) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Return the names of the plates left of the data plate, and the number of dimensions there, by latent site."""
    nodes = question.pair.traces(question.data.batch(slice(0, 1)))[1].nodes
    names = question.layout.latents
    return {n: outer_plates(nodes[n]) for n in names}, {n: len(nodes[n]["fn"].batch_shape) - 1 for n in names}


def _by_more(
    model: Program, guide: Program, data: Data, result: Posterior, num_draws: int, most: int, options: Options
) -> None:
    """Draw more of the guide where its first draws do not suffice and more of them may."""
    rows = np.flatnonzero(~result.reliable & (result.khat <= LARGEST_KHAT).numpy())
    if not len(rows) or most <= _first(num_draws):
        return
    called_for = draws_needed(result.khat[rows].clamp(max=PRACTICAL)).max()
    count = int(min(most, max(10 * num_draws, float(called_for))))
    started = time.monotonic()
    with ask(model, guide, data.subset(rows.tolist()), takes_weights=True, **without(options, "compile")) as question:
        for part in weighted_draws(question, count, num_draws, "posterior, more draws"):
            good = part.khat <= khat_limit(count)
            own = rows[part.indices.start : part.indices.stop]
            _put(result, own, part.draws)
            result.khat[own], result.ess[own] = part.khat, part.ess
            result.method[own[good.numpy()]] = "importance"
    result.seconds[rows] += (time.monotonic() - started) / len(rows)


def _by_chains(
    model: Program, guide: Program, data: Data, result: Posterior, num_draws: int, num_chains: int, num_warmup: int,
    options: Options,
) -> None:  # fmt: skip
    """Run chains where weights fail."""
    rows = np.flatnonzero(~result.reliable)
    if not len(rows) or result.note:
        return
    started, length = time.monotonic(), max(num_warmup, -(-num_draws // num_chains))
    settings: Any = {"num_chains": num_chains, "num_warmup": num_warmup, "num_draws": length, "max_bytes": 2**62}
    try:
        settings |= {**options, "batch_size": max(options["batch_size"], DATA_AT_ONCE)}
        chains = hmc(model, guide, data.subset(rows.tolist()), **settings)
    except (ValueError, RuntimeError) as error:  # a latent that no gradient moves, numbers that no metric holds
        result.note = f"no chains: {error}"
        return
    stats = chains.sample_stats
    rhat, ess = (torch.from_numpy(np.array(stats[name], dtype=np.float64)) for name in ("rhat", "ess_bulk"))
    good = (rhat <= LARGEST_RHAT) & (ess >= ESS_PER_CHAIN * num_chains)
    kept = np.linspace(0, num_chains * length - 1, num_draws).round().astype(int)
    draws = {}
    for name in result.draws:
        values = np.array(chains.posterior[name])  # [chain, draw, data, ...]: as many of each chain, evenly spaced
        draws[name] = torch.from_numpy(values.reshape(-1, *values.shape[2:])[kept])
    _put(result, rows, draws)
    result.rhat[rows], result.ess[rows] = rhat, ess.clamp(max=num_draws)
    result.method[rows[good.numpy()]] = "hmc"
    result.seconds[rows] += (time.monotonic() - started) / len(rows)


def _put(result: Posterior, rows: np.ndarray, draws: Mapping[str, Tensor]) -> None:
    for name, values in draws.items():
        result.draws[name][:, torch.from_numpy(rows)] = values.to(result.draws[name])
