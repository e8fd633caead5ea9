"""Priors from what is known about the data: their hyperparameters are fitted to statements about what they make."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

import pandas as pd
import torch
from torch import Tensor, nn

from pyrovae.common.checks import at_least
from pyrovae.common.progress import progress_bar
from pyrovae.data import Data, carried
from pyrovae.importance.options import Options, shared_keywords
from pyrovae.priors import Parametric
from pyrovae.programs.densities import log_density
from pyrovae.programs.isolation import random_state
from pyrovae.programs.sites import GIVEN, sample_sites, site_rows
from pyrovae.programs.streams import stream_seed
from pyrovae.programs.types import Program, Trace
from pyrovae.uses.programs import alone, as_covariates, released_run
from pyrovae.uses.statements import Statement
from pyrovae.uses.values import Values, expected

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DAMPING = 1e-3  # of the squared derivatives, relative to their mean
HALVINGS = 10  # of a step that does not help
SHOWN = 4000  # draws of each statistic that are kept for the figure


@dataclass(frozen=True, repr=False)
class Elicited:
    """What was stated, and what the fitted prior makes.

    Attributes:
        statements: the statements.
        draws: draws of every statement's statistic under the fitted prior, ``[S]`` each, by name.
        before: the same under the prior at the start.
        prior: the model's prior, with the fitted hyperparameters; None for a model without one.
    """

    statements: tuple[Statement, ...]
    draws: Mapping[str, Tensor]
    before: Mapping[str, Tensor]
    prior: nn.Module | None

    @property
    def hyperparameters(self) -> dict[str, Tensor]:
        """Fitted hyperparameters by name, of a prior that names them (:class:`pyrovae.priors.Parametric`)."""
        if not isinstance(self.prior, Parametric):
            return {}
        return {name: value.detach() for name, value in self.prior.values().items()}

    @property
    def met(self) -> bool:
        """Whether all statements are met within four Monte Carlo standard errors."""
        return bool(self.table()["met"].all())

    def table(self) -> pd.DataFrame:
        """Return one row per stated number: stated, what came out with its Monte Carlo error, before, met.

        Of quantiles ``below`` and ``at_most`` are the shares of the draws below the stated number and at most as large:
        of a continuous statistic both are the stated probability where it is met.
        """
        rows = {}
        for statement in self.statements:
            fit, start = (statement.compared(d[statement.name]) for d in (self.draws, self.before))
            for k, label in enumerate(statement.labels):
                rows[statement.name, label] = {
                    "stated": float(statement.stated[k]), "came_out": float(fit.value[k]), "se": float(fit.se[k]),
                    "before": float(start.value[k]), "below": float(fit.below[k]), "at_most": float(fit.at_most[k]),
                    "met": bool(fit.met[k]),
                }  # fmt: skip
        index = pd.MultiIndex.from_tuples(list(rows), names=["statement", "number"])
        return pd.DataFrame(list(rows.values()), index=index)

    def plot(self) -> "Figure":
        """Plot each statistic's distribution function before and after, with the statements as points."""
        from pyrovae import plots

        return plots.elicited(self)

    def __repr__(self) -> str:
        table = self.table()
        text = f"{int(table['met'].sum())} of {len(table)} stated numbers met"
        values = {n: v.double().cpu().numpy().round(3).tolist() for n, v in self.hyperparameters.items()}
        return text + (f"; {values}" if values else "")


@shared_keywords()
def elicit(
    model: Program,
    statements: Sequence[Statement],
    *covariates: Any,
    parameters: Iterable[Tensor] | None = None,
    num_draws: int = 4000,
    steps: int = 40,
    num_check: int = 50_000,
    units: Data | None = None,
    **options: Unpack[Options],
) -> Elicited:
    """Fit the hyperparameters of a prior so that data drawn from the model meet what is known about such data.

    The model is run without data, and its prior is changed, in place, until quantiles and probabilities of statistics
    of what it makes are those that were stated. The rest of the model stays as it is, so that this is for a model whose
    decoder means something before a fit: a measurement model, a regression, a decoder fitted to earlier data.

    Derivatives are those of the likelihood ratio, which needs only that log p(z) can be differentiated; so any
    statistic will do, of counts and categories, too. Steps are Gauss-Newton's, shortened where they do not help, on new
    draws each time, and the second half of them is averaged.

    Source: Hartmann et al., "Flexible prior elicitation via the prior predictive distribution", 2020; Glynn,
    "Likelihood ratio gradient estimation for stochastic systems", 1990.

    Args:
        model: generative program ``model(*batch)``, whose first arguments are the data.
        statements: :class:`pyrovae.Quantiles` and :class:`pyrovae.Probability`.
        *covariates: the further arguments of the model, ``[num_draws, ...]``, or ``[1, ...]`` for all draws alike.
        parameters: tensors of priors to fit, with ``requires_grad``; None: those of ``model.prior``, which may be a
            :class:`pyrovae.priors.Parametric`, a mixture, or a flow.
        num_draws: number of draws per step.
        steps: number of steps.
        num_check: number of new draws on which the statements are compared afterwards.
        units: a table whose names and units ``to_frame()`` of the values has; None: the table that the model was fitted
            to.
        **options: seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Returns:
        What was stated and what came out, as a table and a figure. More statements than a prior has hyperparameters
        cannot all be met in general: the table says which were not.

    Raises:
        ValueError: for no statements, no parameters, parameters of anything but a prior, a model with global latents
            or that computes with its data, and an event that the prior at the start never or always makes.

    Example:
        >>> from pyrovae import Quantiles, priors
        >>> import pyro, pyro.distributions as dist
        >>> class Heights(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.prior = priors.Parametric(1, "Normal", {"loc": 0.0, "scale": 1.0})
        ...     def forward(self, x):
        ...         with pyro.plate("data", len(x)):
        ...             z = pyro.sample("z", self.prior())
        ...             pyro.sample("x", dist.Normal(z, 5.0).to_event(1), obs=x)
        >>> stated = Quantiles("height", lambda v: v["x"][:, 0], {0.05: 150.0, 0.5: 170.0, 0.95: 190.0})
        >>> result = elicit(Heights(), [stated], progress=False)
        >>> bool(abs(result.hyperparameters["loc"] - 170) < 0.5), result.met
        (True, True)
    """
    for name, number, least in (("num_draws", num_draws, 200), ("steps", steps, 2), ("num_check", num_check, 200)):
        at_least(name, number, least)
    _see_statements(statements)
    prior = getattr(model, "prior", None)
    free = _parameters(prior, parameters)
    encoding = carried(model) if units is None else units.encoding
    seed, label = options["seed"], "elicit" if options["progress"] else None
    with alone(model, options) as device, progress_bar(total=steps, label=label, unit="step") as bar:
        draws = _Draws(model, tuple(statements), covariates, free, device, encoding, num_draws, seed)
        draws.see_that_only_a_prior_changes()
        before = draws.checked(num_check)
        total = [torch.zeros_like(p) for p in free]
        for step in range(steps):
            draws.step(step)
            if step >= steps // 2:
                for kept, p in zip(total, free, strict=True):
                    kept.add_(p.detach())
            bar.update()
        for kept, p in zip(total, free, strict=True):
            p.copy_(kept / (steps - steps // 2))
        if not all(bool(p.isfinite().all()) for p in free):
            raise ValueError("the hyperparameters grow without a limit: no prior of this family meets the statements")
        after = draws.checked(num_check)
    return Elicited(tuple(statements), after, before, prior if isinstance(prior, nn.Module) else None)


def _see_statements(statements: Any) -> None:
    if not isinstance(statements, Sequence) or not statements or not all(isinstance(s, Statement) for s in statements):
        raise ValueError(f"statements must be a list of Quantiles and Probability, got {statements!r}")
    names = [statement.name for statement in statements]
    if len(set(names)) < len(names):
        raise ValueError(f"the statements must have different names, got {names}")


def _parameters(prior: Any, parameters: Iterable[Tensor] | None) -> list[Tensor]:
    if parameters is not None:
        given = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        if not all(isinstance(p, Tensor) and p.requires_grad and p.is_leaf for p in given):
            raise ValueError(
                "parameters must be tensors with requires_grad, such as those of a module, and some are not"
            )
    else:
        given = [p for p in prior.parameters() if p.requires_grad] if isinstance(prior, nn.Module) else []
    free = given
    if not free:
        raise ValueError(
            "there is nothing to fit: give the model a prior with hyperparameters, such as "
            'priors.Parametric(8, "Laplace", {"loc": 0.0, "scale": 1.0}), or parameters='
        )
    return free


class _Draws:
    """Draws of the model under its prior, and steps of the prior's hyperparameters.

    Args:
        model: generative program.
        statements: the statements.
        covariates: further arguments of the model.
        parameters: what is fitted.
        device: device of the run.
        encoding: how the model's table is read, or None.
        count: number of draws per step.
        seed: seed of all draws.
    """

    def __init__(
        self, model: Program, statements: tuple[Statement, ...], covariates: tuple[Any, ...],
        parameters: list[Tensor], device: torch.device, encoding: Any, count: int, seed: int,
    ) -> None:  # fmt: skip
        self.model, self.statements, self.parameters, self.device = model, statements, parameters, device
        self.encoding, self.count, self.seed = encoding, count, seed
        self.covariates = as_covariates(model, count, covariates, device)

    def run(self, stream: int) -> Trace:
        with random_state("elicitation", stream_seed("draws of the prior", self.seed, stream), self.device):
            return released_run(self.model, self.count, self.covariates, self.device)

    def numbers(self, trace: Trace) -> list[Tensor]:
        """Return every statement's statistic of the draws, ``[S]`` each."""
        sites = dict(sample_sites(trace))
        observed = tuple(name for name, site in sites.items() if GIVEN in site["infer"])
        drawn = {name: site_rows(site).detach().cpu() for name, site in sites.items()}
        means = dict(drawn)
        if any(statement.mean for statement in self.statements):
            means |= {n: site_rows({**sites[n], "value": expected(sites[n]["fn"])}).detach().cpu() for n in observed}
        values = {which: Values(v, self.encoding, None, observed) for which, v in ((False, drawn), (True, means))}
        return [statement.numbers(values[statement.mean]) for statement in self.statements]

    def residual(self, trace: Trace) -> Tensor:
        """Return how far all stated numbers are from the draws, ``[M]``."""
        return torch.cat([s.residual(n) for s, n in zip(self.statements, self.numbers(trace), strict=True)])

    def step(self, number: int) -> None:
        """Take one step of Gauss and Newton, halved until it helps on the same random numbers."""
        trace = self.run(number)
        numbers, residual = self.numbers(trace), self.residual(trace)
        scores = torch.cat([s.scores(n) for s, n in zip(self.statements, numbers, strict=True)])
        rows = self._derivatives(trace, scores)
        gram = rows @ rows.T
        damping = DAMPING * float(gram.diagonal().mean()) + 1e-300
        step = -rows.T @ torch.linalg.solve(gram + damping * torch.eye(len(gram)).to(gram), residual)
        start, loss = [p.detach().clone() for p in self.parameters], float(residual.square().sum())
        for halving in range(HALVINGS):
            self._move(start, step * 0.5**halving)
            if self._loss(number) < loss:
                return
        self._move(start, torch.zeros_like(step))

    def _loss(self, number: int) -> float:
        try:
            loss = float(self.residual(self.run(number)).square().sum())
        except ValueError:  # a step beyond what the distributions take
            return math.inf
        return loss if math.isfinite(loss) else math.inf

    def _derivatives(self, trace: Trace, scores: Tensor) -> Tensor:
        """Return the derivatives of all residuals by all parameters, ``[M, P]``."""
        values = {name: site["value"].detach() for name, site in sample_sites(trace)}
        with torch.enable_grad():
            again = released_run(self.model, self.count, self.covariates, self.device, values)
            density = log_density(again, self.count).double()
            rows = []
            for weights in scores:
                loss = (weights.to(density) * density).mean()
                grads = torch.autograd.grad(loss, self.parameters, retain_graph=True, allow_unused=True)
                flat = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, self.parameters, strict=True)]
                rows.append(torch.cat([g.detach().reshape(-1).double().cpu() for g in flat]))
        return torch.stack(rows)

    def _move(self, start: list[Tensor], step: Tensor) -> None:
        parts = step.split([p.numel() for p in start])
        for p, s, part in zip(self.parameters, start, parts, strict=True):
            p.copy_(s + part.reshape(s.shape).to(s))

    def see_that_only_a_prior_changes(self) -> None:
        """Refuse parameters that the distribution of the data given the latents depends on.

        Raises:
            ValueError: naming the site.
        """
        trace = self.run(0)
        values = {name: site["value"].detach() for name, site in sample_sites(trace)}
        with torch.enable_grad():
            again = released_run(self.model, self.count, self.covariates, self.device, values)
            for name, site in sample_sites(again):
                density = site["fn"].log_prob(site["value"]).sum()
                if GIVEN not in site["infer"] or not density.requires_grad:
                    continue
                grads = torch.autograd.grad(density, self.parameters, allow_unused=True, retain_graph=True)
                if any(g is not None for g in grads):
                    raise ValueError(
                        f"a parameter changes the distribution of {name!r} given the latents, and only priors of "
                        "latents are elicited: leave it out of parameters="
                    )

    def checked(self, total: int) -> dict[str, Tensor]:
        """Return new draws of every statement's statistic, by its name."""
        rounds = -(-total // self.count)
        parts = [self.numbers(self.run(2**20 + k)) for k in range(rounds)]
        return {s.name: torch.cat([p[k] for p in parts]) for k, s in enumerate(self.statements)}
