"""Missing cells filled in several times, so that what is computed from them knows what was missing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Unpack

import numpy as np
import pandas as pd
import pyro
import torch
from pyro import poutine
from scipy import stats
from torch import Tensor

from pyrovae.arviz.labels import refuse_beyond
from pyrovae.common.checks import at_least, share
from pyrovae.data import Data, Table, as_data
from pyrovae.data.columns import Columns
from pyrovae.importance.options import BATCH_SIZE, Options, shared_keywords, without
from pyrovae.importance.question import Question, ask
from pyrovae.importance.simulation import drawn_anew
from pyrovae.programs.noise import DatumNoise
from pyrovae.programs.sites import outer_plates, released
from pyrovae.programs.types import Program
from pyrovae.tables import Encoding
from pyrovae.tables.encoding import from_codes, to_codes
from pyrovae.tables.frames import replaced
from pyrovae.uses.posterior import Posterior, posterior
from pyrovae.uses.values import with_holes

DRAWS = 1000  # of the posterior, from which the imputations are taken


@dataclass(frozen=True)
class Imputations:
    """M completed copies of N observations with D columns.

    Attributes:
        values: the copies, ``[M, N, D]``, in the units of the data; observed cells are as they were.
        missing: which cells were missing, ``[N, D]``.
        posterior: draws of the latents from which the cells were drawn, with the method of each observation.
        reliable: whether each observation's imputations can be relied on, ``[N]``: by its draws of the latents.
        encoding: how the table was read; None for other data.
        frame: the table as it was, covariates included; None for other data.
        index: names of the observations, ``[N]``.
        names: names of the columns; None where they have none.
    """

    values: Tensor
    missing: Tensor
    posterior: Posterior
    reliable: np.ndarray
    encoding: Encoding | None
    frame: pd.DataFrame | None
    index: np.ndarray
    names: list[str] | None

    def __len__(self) -> int:
        return len(self.values)

    @classmethod
    def joined(cls, parts: Sequence["Imputations"]) -> "Imputations":
        """Return imputations of the same data by several fits as one.

        With fits to bootstrap samples, or with random weights (``Data(x, weights=...)``, exponential), the copies vary
        by what is not known of the parameters, too, as is proper for Rubin's rules.

        Raises:
            ValueError: for no parts, or imputations of different data.
        """
        if not parts or any(not torch.equal(p.missing, parts[0].missing) for p in parts):
            raise ValueError("only imputations of the same data can be joined: give one or more, of the same cells")
        columns = [None if part.encoding is None else part.encoding.outcomes for part in parts]
        if any(found != columns[0] for found in columns):
            raise ValueError(
                "the fits read their tables differently, with other categories or types: fit all to tables made with "
                "the same types= and levels="
            )
        reliable = np.logical_and.reduce([part.reliable for part in parts])
        return replace(parts[0], values=torch.cat([part.values for part in parts]), reliable=reliable)

    @property
    def tables(self) -> list[pd.DataFrame]:
        """The copies as tables: names, units and categories of the table that the model was fitted to."""
        return [self.table(k) for k in range(len(self))]

    def table(self, number: int) -> pd.DataFrame:
        """Return one copy as a table."""
        one = self.values[number]
        if self.encoding is None or self.frame is None:
            return pd.DataFrame(one.flatten(1).numpy(), index=self.index, columns=self.names)
        completed = self.encoding.to_frame(to_codes(one, self.encoding.outcomes), "outcome", self.frame.index)
        return replaced(self.frame, {str(name): completed[name] for name in completed})

    @property
    def mean(self) -> Tensor:
        """Mean of the copies, ``[N, D]``; of categories without an order the most frequent one."""
        mean = self.values.double().mean(0).to(self.values.dtype)
        if self.encoding is None:
            return mean
        cells = torch.tensor([c.type == "categorical" for c in self.encoding.outcomes], device="cpu")
        return torch.where(cells, self.values.mode(0).values, mean)

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """Return an interval for every cell, ``[N, D]`` each, that a missing value is in with probability ``level``.

        Its ends are quantiles of the copies, such that a further draw falls between them with that probability; it
        takes at least 2 / (1 - level) - 1 copies. Cells that were observed have ends equal to their value.

        Raises:
            ValueError: for a level outside of (0, 1), or too few copies.
        """
        if not 0 < level < 1:
            raise ValueError(f"level must be a probability between 0 and 1, got {level!r}")
        if (1 - level) / 2 * (len(self) + 1) < 1 - 1e-9:
            needed = int(np.ceil(2 / (1 - level) - 1 - 1e-9))
            raise ValueError(f"an interval of {level:g} takes at least {needed} imputations, got {len(self)}")
        tails = [(1 - level) / 2, (1 + level) / 2]
        low, high = np.quantile(self.values.numpy(), tails, axis=0, method="weibull")
        return torch.from_numpy(low), torch.from_numpy(high)

    def pool(self, function: Callable[[Any], Any], level: float = 0.95) -> pd.DataFrame:
        """Apply an estimator to every copy, and pool the results by Rubin's rules.

        The variance of the pooled estimate is the mean of the estimator's own variances, and (1 + 1 / M) times the
        variance of the estimates between the copies. Intervals are by Student's t with Barnard and Rubin's degrees of
        freedom where the result knows those of complete data (``df_resid``), else with Rubin's.

        Source: Rubin, "Multiple imputation for nonresponse in surveys", 1987, section 3.3; Barnard and Rubin,
        "Small-sample degrees of freedom with multiple imputation", 1999.

        Args:
            function: function of one completed set, a table where the data are one and else a tensor ``[N, D]``. It
                returns (estimate, variance), numbers or arrays, or a fitted model of statsmodels.
            level: level of the intervals.

        Returns:
            One row per estimate: ``estimate``, ``se``, ``df``, ``low``, ``high``, and ``missing_information``, the
            share of the variance that is due to missing cells.
        """
        share("level", level, ends=False)
        if len(self) < 2:
            raise ValueError("Rubin's rules need at least 2 imputations, for the variance between them")
        sets: list[Any] = self.tables if self.encoding is not None else list(self.values)
        results = [_estimate(function(one)) for one in sets]
        names, complete = results[0].names, results[0].df
        if any(set(r.names) != set(names) for r in results):
            raise ValueError(
                "the function must return the same estimates for every completed set, and it returns others"
            )
        places = [[r.names.index(name) for name in names] for r in results]
        estimates = np.stack([r.values[place] for r, place in zip(results, places, strict=True)])
        variances = np.stack([r.variances[place] for r, place in zip(results, places, strict=True)])
        count, within = len(results), variances.mean(0)
        between = estimates.var(0, ddof=1)
        extra = (1 + 1 / count) * between
        total = within + extra
        with np.errstate(divide="ignore", invalid="ignore"):
            lost = np.where(total > 0, extra / total, 0.0)
            df = np.where(lost > 0, (count - 1) / lost**2, np.inf)
            if complete is not None:
                own = (complete + 1) / (complete + 3) * complete * (1 - lost)
                df = np.where(np.isinf(df), own, 1 / (1 / df + 1 / own))
        half = stats.t.ppf(0.5 + level / 2, df) * np.sqrt(total)
        mean = estimates.mean(0)
        columns = {
            "estimate": mean, "se": np.sqrt(total), "df": df, "low": mean - half, "high": mean + half,
            "missing_information": lost,
        }  # fmt: skip
        return pd.DataFrame(columns, index=names)

    def __str__(self) -> str:
        cells, rows = int(self.missing.sum()), int(self.missing.any(1).sum())
        return f"{len(self)} imputations of {cells} cells in {rows} of {self.missing.shape[0]} rows; {self.posterior}"


@shared_keywords(batch_size=BATCH_SIZE, compile="auto")
def impute(
    model: Program,
    guide: Program,
    data: Any,
    *,
    num_imputations: int = 20,
    site: str | None = None,
    chains: bool = True,
    max_bytes: int = 4 * 2**30,
    **options: Unpack[Options],
) -> Imputations:
    """Fill in missing cells M times: z ~ p(z | x_observed), x_missing ~ p(x_missing | z).

    The latents are drawn by :func:`pyrovae.posterior`: by importance resampling of the guide's draws, and by
    Hamiltonian Monte Carlo where weights fail. Cells are taken to be missing at random, which is what a density that
    leaves them out says (:class:`~pyrovae.likelihoods.Missing`): whether a cell is missing may depend on observed
    cells, and not on what the cell would hold.

    A model of cells that are not missing at random has a latent for them, named as the site with ``_missing`` behind
    it (:class:`~pyrovae.models.MissingNotAtRandom`); the cells are then those draws.

    The parameters are points, so that their uncertainty is not part of the imputations, and intervals by Rubin's rules
    are too narrow where the rows are few beside the parameters: :meth:`Imputations.joined` takes several fits.

    Source: Mattei and Frellsen, "MIWAE: deep generative modelling and imputation of incomplete data sets", 2019.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``, which takes NaN.
        data: a tensor with NaN, a tuple of tensors, a table, or a data set.
        num_imputations: number of copies M.
        site: observed site whose cells are filled in; None takes the only one with missing cells.
        chains: whether Hamiltonian Monte Carlo is tried where weights fail; False is faster, and marks more rows as
            unreliable.
        max_bytes: refuse copies that take more memory than this.
        **options: batch_size, seed, compile, device and progress, as all questions take them
            (:class:`pyrovae.Options`).

    Raises:
        ValueError: for a pair that breaks the contract, bad data or bad numbers, data without missing cells, several
            sites with missing cells, or copies beyond ``max_bytes``.
    """
    num_imputations = at_least("num_imputations", num_imputations, 1)
    data = as_data(with_holes(data), model, guide).fixed()
    with ask(model, guide, data, takes_weights=True, **without(options, "compile")) as question:
        if question.layout.summed:
            raise ValueError(
                f"latent site {question.layout.summed[0]!r} is summed out, so that cells cannot be drawn given it: "
                "sample it in the guide"
            )
        name, source = _incomplete(question, site)
        refuse_beyond(max_bytes, 8 * num_imputations * data.fields[source].tensor.numel())
    latents = posterior(
        model, guide, data, num_draws=max(DRAWS, num_imputations), chains=chains, max_bytes=max_bytes, **options
    )
    chosen = np.linspace(0, len(next(iter(latents.draws.values()))) - 1, num_imputations).round().astype(int)
    parts = []
    with ask(model, guide, data, takes_weights=True, **without(options, "compile")) as question:
        with pyro.validation_enabled(False), question.bar("impute") as bar:
            for indices, batch in question.data.batches(question.batch_size):
                parts.append(_filled(question, indices, batch, latents, chosen, name))
                bar.update(len(indices))
    drawn = torch.cat(parts, 1).double()
    return _completed(data, source, drawn, latents)


def _incomplete(question: Question, site: str | None) -> tuple[str, int]:
    """Return the observed site whose cells are filled in, and its tensor's position in a batch.

    Raises:
        ValueError: where no site or several have missing cells.
    """
    readings = {s.name: s.reading.source for s in question.layout.observed if s.reading is not None}
    if site is not None:
        if site not in readings:
            raise ValueError(f"site {site!r} is not observed: the model observes {', '.join(readings)}")
        return site, readings[site]
    fields = question.data.fields
    tensors = {name: fields[source].tensor for name, source in readings.items()}
    holed = [name for name, tensor in tensors.items() if tensor.is_floating_point() and bool(tensor.isnan().any())]
    if not holed:
        raise ValueError("there is nothing to impute: no cell is missing (NaN)")
    if len(holed) > 1:
        raise ValueError(f"several sites have missing cells, {', '.join(holed)}: say site=")
    return holed[0], readings[holed[0]]


def _filled(
    question: Question, indices: range, batch: tuple[Tensor, ...], latents: Posterior, chosen: np.ndarray, name: str
) -> Tensor:
    """Return draws of a batch's observed site given draws of the latents, ``[M, len(indices), ...]``, on the CPU."""
    count = len(chosen)
    if f"{name}_missing" in latents.draws:  # the model's own, given which cells were seen
        return latents.draws[f"{name}_missing"][torch.from_numpy(chosen), indices.start : indices.stop]
    rows = tuple(t.repeat_interleave(count, 0) for t in batch)
    values = {}
    for site, draws in latents.draws.items():
        own = draws[torch.from_numpy(chosen), indices.start : indices.stop].transpose(0, 1).flatten(0, 1)
        values[site] = own.to(question.data.device).movedim(0, latents.outer_dims.get(site, 0))
    program = poutine.condition(released(question.pair.model), data=values)

    def noise() -> DatumNoise:
        own = DatumNoise("imputations", question.seed, indices, question.data.device)
        own.repeats = count
        return own

    trace = drawn_anew(question, program, rows, noise)[1]
    node = trace.nodes[name]
    value = node["value"].movedim(node["value"].dim() - 1 - node["fn"].event_dim, 0)
    assert not outer_plates(node)
    return value.unflatten(0, (len(indices), count)).transpose(0, 1).cpu()


def _completed(data: Data, source: int, drawn: Tensor, latents: Posterior) -> Imputations:
    """Return the data's own cells with drawn ones where they are missing, in the data's units."""
    field = data.fields[source]
    own = field.tensor.cpu().double()
    if isinstance(field, Columns):
        drawn = from_codes(field.fitted.invert(drawn), field.columns)
        own = from_codes(own, field.columns)
    elif field.scale is not None:
        mean, deviation = (m.cpu() for m in field.scale)
        drawn = drawn * deviation + mean
    elif field.levels is not None:
        drawn = drawn * field.levels
    missing = own.isnan()
    values = torch.where(missing, drawn.reshape(len(drawn), *own.shape), own)
    if not isinstance(field, Columns):
        values = values.to(field.tensor.dtype)
    encoding = data.encoding if isinstance(data, Table) and isinstance(field, Columns) else None
    frame = data.whole() if isinstance(data, Table) and encoding is not None else None
    return Imputations(values, missing, latents, latents.reliable, encoding, frame, data.index, field.feature_names)


class _Estimate(NamedTuple):
    """Estimates and variances, ``[P]`` each, their names, and the degrees of freedom for complete data, if known."""

    values: np.ndarray
    variances: np.ndarray
    names: list[Any]
    df: float | None


def _estimate(result: Any) -> _Estimate:
    """Return what an estimator found on one completed set.

    Raises:
        ValueError: for anything but (estimate, variance) and fitted models of statsmodels.
    """
    if hasattr(result, "params") and hasattr(result, "bse"):
        values, errors = (np.atleast_1d(np.asarray(part, dtype=float)) for part in (result.params, result.bse))
        names = list(result.params.index) if isinstance(result.params, pd.Series) else list(range(len(values)))
        return _Estimate(values, errors**2, names, getattr(result, "df_resid", None))
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise ValueError(
            "the function must return (estimate, variance), or a fitted model of statsmodels, got "
            f"{type(result).__name__}"
        )
    values, variances = (np.atleast_1d(np.asarray(part, dtype=float)) for part in result)
    if values.shape != variances.shape or values.ndim > 1:
        raise ValueError(f"an estimate needs a variance of its shape, got {values.shape} and {variances.shape}")
    names = list(result[0].index) if isinstance(result[0], pd.Series) else list(range(len(values)))
    return _Estimate(values, variances, names, None)
