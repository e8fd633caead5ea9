"""Comparison of strategies on the same data: paired differences, best first, over one or more seeds."""

import math
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Unpack

import pandas as pd

from pyrovae.app.models import per_observation
from pyrovae.app.tabulation import comparison, cross_validation, same_number
from pyrovae.data import Data, as_data, carried
from pyrovae.diagnostics.diagnostic import Fitted, chosen, diagnostics
from pyrovae.diagnostics.evidence.evaluate import Evaluation, evaluate
from pyrovae.importance.options import BATCH_SIZE, Options, shared_keywords, without
from pyrovae.programs.types import Program
from pyrovae.training import Fit

Candidate = Fit | tuple[Program, Program]
Candidates = Mapping[str, Candidate | Sequence[Candidate]]
SIMULATIONS = 1000


@shared_keywords(batch_size=BATCH_SIZE, compile="auto")
def compare(
    candidates: Candidates,
    data: Any,
    *,
    num_particles: int = 1000,
    reference: str | None = None,
    ask: str | Sequence[str] | Mapping[str, int] = (),
    with_gaps: bool = False,
    with_latents: bool = False,
    with_calibration: bool = False,
    **options: Unpack[Options],
) -> pd.DataFrame:
    """Compare strategies, each one fit or one fit per seed, on held-out data.

    Args:
        candidates: fits, or (model, guide) pairs, by name; or lists of them, one per seed. All lists have one length,
            and fits of the same seed have the same position. Where the fits of several seeds differ only by chance
            (initial parameters, noise, order), the errors are those of the strategy rather than of one fit.
        data: a tensor, a tuple of tensors, a table, or a data set; the same for all. For a cross-validation, a list of
            data sets, one per fold (``[fold.test for fold in data.folds(5)]``): every strategy then has one fit per
            fold, in the same order.
        num_particles: number of importance samples per observation.
        reference: name of the strategy that the others are compared with; None takes the best, which is picked on these
            same data.
        ask: further questions: their names, or a dict from each name to the number of observations to ask about. The
            names are those of ``pyrovae list``, and the caller's own (:class:`pyrovae.Diagnostic`). Their columns come
            last.
        with_gaps: also split the gap of each strategy, as :func:`pyrovae.gaps` does: the gap below log p(x) by
            annealing, which does not rely on the guide, so that the two parts may add up to more than log_evidence -
            elbo. Also give the share of the data for which that log p(x) is unreliable.
        with_latents: also describe what the latents hold, as :func:`pyrovae.usage` and, for 1,000 observations taken at
            random, :func:`pyrovae.aggregate` do.
        with_calibration: also check calibration on 1,000 observations that each model simulates, as :func:`pyrovae.sbc`
            does.
        **options: batch_size, seed, compile, device and progress, as all questions take them
            (:class:`pyrovae.Options`).

    Returns:
        One row per strategy, best log evidence first, as :func:`comparison` describes, and, of fits, how they ended
        (``ended``; :class:`pyrovae.training.Ending`). Where a question cannot be asked
        of a pair, its columns are NaN, with a warning that says why.

    Raises:
        ValueError: for no candidates, for an unknown question, and for what :func:`pyrovae.evaluate` refuses.
    """
    if not isinstance(candidates, Mapping):
        raise ValueError(f"candidates must be a dict of fits or pairs by name, got a {type(candidates).__name__}")
    runs = {name: _runs(candidate) for name, candidate in candidates.items()}
    pairs = {name: [programs(one) for one in run] for name, run in runs.items()}
    same_number({name: len(run) for name, run in runs.items()})
    if not is_folds(data):
        _see_that_scales_are_alike(pairs)
    sizes = chosen(ask)
    flags = {"gaps": with_gaps, "latents": with_latents, "calibration": with_calibration}
    seconds = {n: [c.seconds if isinstance(c, Fit) else math.nan for c in run] for n, run in runs.items()}
    if is_folds(data):
        if sizes or any(flags.values()):
            raise ValueError("a cross-validation compares evidence alone: ask further questions fold by fold")
        _see_that_folds_match(data, runs)
        parts = [as_data(part, *pair).fixed() for part, pair in zip(data, _one_per_fold(pairs, data), strict=True)]
        folded = {
            name: [
                evaluate(*pair, part, num_particles=num_particles, **options)
                for pair, part in zip(run, parts, strict=True)
            ]
            for name, run in pairs.items()
        }
        table = cross_validation(folded, seconds, reference=reference)
        endings = {name: endings_of(run) for name, run in runs.items()}
        return table.assign(ended=pd.Series(endings)) if any(endings.values()) else table
    data = as_data(data, *next(iter(pairs.values()))[0]).fixed()
    numbers = {"gaps": len(data), "latents": len(data), "calibration": SIMULATIONS}
    sizes = {**sizes, **{name: numbers[name] for name, yes in flags.items() if yes}}
    evaluations = {
        name: [evaluate(*pair, data, num_particles=num_particles, **options) for pair in run]
        for name, run in pairs.items()
    }
    answers = answered(pairs, data, sizes, **without(options, "batch_size", "compile"))
    endings = {name: endings_of(run) for name, run in runs.items()}
    for note in [*_not_asked(sizes, data, len(next(iter(pairs.values())))), *answers.notes]:
        warnings.warn(note, stacklevel=3)
    table = comparison(evaluations, seconds, answers.columns(), reference=reference)
    return table.assign(ended=pd.Series(endings)) if any(endings.values()) else table


def endings_of(run: Iterable[Any]) -> str:
    """Return how the fits of a strategy ended, and how many of them; "" for pairs that were not fitted here."""
    counts = Counter(fit.ending.status for fit in run if isinstance(fit, Fit))
    if len(counts) == 1 or not counts:
        return next(iter(counts), "")
    return ", ".join(f"{status} x {count}" for status, count in counts.most_common())


def _see_that_scales_are_alike(pairs: Mapping[str, Sequence[tuple[Program, Program]]]) -> None:
    """See that all strategies were fitted to one reading of the table: densities on different scales do not compare.

    Raises:
        ValueError: naming two strategies.
    """
    encodings = [(name, carried(*pair)) for name, run in pairs.items() for pair in run]
    known = [(name, encoding.described()) for name, encoding in encodings if encoding is not None]
    for name, described in known[1:]:
        if described != known[0][1]:
            raise ValueError(
                f"{known[0][0]!r} and {name!r} were fitted to tables that were read or scaled differently, so that "
                "their densities cannot be compared: fit all to the training part of one table"
            )


def is_folds(data: Any) -> bool:
    """Whether data are a list of sets, one per fold of a cross-validation."""
    return isinstance(data, list | tuple) and bool(data) and all(isinstance(part, Data) for part in data)


def _see_that_folds_match(folds: Sequence[Data], runs: Mapping[str, Sequence[Any]]) -> None:
    """See that every fit to a table was made on the training part of its own fold, by the scales of the two.

    Raises:
        ValueError: naming the strategy and the fold.
    """
    for name, run in runs.items():
        for k, (fold, fit) in enumerate(zip(folds, run, strict=False)):
            encodings = fold.encoding, fit.encoding if isinstance(fit, Fit) else None
            if None not in encodings and encodings[0].described() != encodings[1].described():  # type: ignore[union-attr]
                raise ValueError(
                    f"fit {k} of {name!r} was not made on the training part of fold {k}: give the fits in the order of "
                    "the folds"
                )


def _one_per_fold(pairs: Mapping[str, list[Any]], folds: Sequence[Data]) -> list[Any]:
    """Return the first strategy's pairs, after a check that every strategy has one per fold."""
    first = next(iter(pairs.values()))
    if len(first) != len(folds):
        raise ValueError(f"a strategy needs one fit per fold: got {len(first)} fits for {len(folds)} folds")
    return first


def _not_asked(names: Iterable[str], data: Data, num_seeds: int) -> Iterator[str]:
    for name in names:
        diagnostic = diagnostics()[name]
        if need := diagnostic.lacks(data, num_seeds):
            what = "several seeds of a strategy" if need == "seeds" else f"data with {need}"
            yield f"{diagnostic.title}: not asked, as it needs {what}"


def _runs(candidate: Any) -> list[Candidate]:
    """Return the candidates of a strategy, one per seed."""
    pair = isinstance(candidate, tuple) and len(candidate) == 2 and all(callable(part) for part in candidate)
    return list(candidate) if isinstance(candidate, list | tuple) and not pair else [candidate]


def programs(candidate: Any) -> tuple[Program, Program]:
    """Return a candidate's model and guide.

    Raises:
        ValueError: when the candidate is neither a fit nor a pair.
    """
    if isinstance(candidate, Fit):
        return candidate.model, candidate.guide
    if isinstance(candidate, tuple) and len(candidate) == 2:
        return candidate[0], candidate[1]
    raise ValueError(
        "a candidate is a Fit or a tuple (model, guide), or a list of them, one per seed; got "
        f"{type(candidate).__name__}"
    )


@dataclass
class Answers:
    """The answers of the diagnostics about every fit.

    Attributes:
        found: answers by diagnostic and strategy, one per seed.
        notes: one sentence for each question that could not be asked, with the reason.
    """

    found: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def columns(self) -> dict[str, dict[str, float]]:
        """Return further columns of the comparison, by strategy."""
        columns: dict[str, dict[str, float]] = {}
        for name, diagnostic in diagnostics().items():
            for strategy, answers in self.found.get(name, {}).items():
                columns.setdefault(strategy, {}).update(diagnostic.columns(answers))
        return columns

    def by_fit(self, name: str) -> dict[str, Any]:
        """Return a diagnostic's answers by fit: the strategy's name, with the seed's number where there are several."""
        return {
            strategy if len(answers) == 1 else f"{strategy}, seed {k}": answer
            for strategy, answers in self.found[name].items()
            for k, answer in enumerate(answers)
        }

    def of_first(self, name: str, order: Sequence[str]) -> dict[str, Any]:
        """Return a diagnostic's answers about the first fit of each strategy, in the given order of strategies."""
        return {strategy: self.found[name][strategy][0] for strategy in order if strategy in self.found[name]}


def answered(
    pairs: Mapping[str, Sequence[tuple[Program, Program]]],
    data: Data,
    sizes: Mapping[str, int | None],
    *,
    seed: int,
    device: Any,
    progress: bool,
) -> Answers:
    """Ask the diagnostics about every fit of every strategy; note each question that cannot be asked.

    Args:
        pairs: fitted pairs by strategy, one per seed.
        data: held-out data.
        sizes: names of diagnostics, with the value of their option; None means its default, or all of the data.
        seed: seed of all random draws.
        device: device to run on; None means CUDA where there is one.
        progress: whether to show progress bars.
    """
    answers = Answers()
    for name, diagnostic in diagnostics().items():
        number = diagnostic.default or len(data) if sizes.get(name) is None else sizes.get(name)
        size = diagnostic.check(number or 0) if name in sizes else 0
        for strategy, run in pairs.items() if size else ():
            if diagnostic.lacks(data, len(run)):
                continue
            try:
                fits = [Fitted(*pair, data, size, len(run), seed, device, progress) for pair in run]
                answers.found.setdefault(name, {})[strategy] = [diagnostic.answer(fitted) for fitted in fits]
            except Exception as error:  # of any kind: the diagnostic may be the caller's own
                answers.notes.append(f"{diagnostic.title} of {strategy}: {_said(error)}.")
    answers.found = {name: by_strategy for name, by_strategy in answers.found.items() if by_strategy}
    return answers


def _said(error: Exception) -> str:
    """Return an error's sentence; one that is not meant to be read has its type, and where it was raised."""
    if isinstance(error, ValueError):
        return str(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({where.filename}, line {where.lineno})"


@dataclass
class Findings:
    """All results about strategies on the same held-out data.

    Attributes:
        evaluations: evaluations by name, one per seed.
        table: table of :func:`comparison`.
        seconds: seconds of every fit by name, one per seed.
        answers: answers of the diagnostics.
        effects: main effects of guides and objectives; None where there are not several of both.
    """

    evaluations: dict[str, list[Evaluation]]
    table: pd.DataFrame
    seconds: dict[str, list[float]]
    answers: Answers
    effects: pd.DataFrame | None = None

    @property
    def own_table(self) -> pd.DataFrame:
        """The table without the diagnostics' columns, which the diagnostics' own tables show."""
        theirs = {column for columns in self.answers.columns().values() for column in columns}
        return self.table.drop(columns=[column for column in self.table if column in theirs])


def examine(
    fits: Mapping[str, Sequence[Fit]],
    test: Data,
    *,
    num_particles: int,
    sizes: Mapping[str, int],
    compile: bool | str = "auto",
    reference: str | None = None,
    **options: Any,
) -> Findings:
    """Evaluate every fit, and ask the diagnostics about it.

    Args:
        fits: fits by name, one per seed.
        test: held-out data.
        num_particles: number of importance samples per observation.
        sizes: names of diagnostics, with the value of their option.
        compile: whether log weights are compiled, as in :func:`pyrovae.evaluate`.
        reference: name of the strategy that the others are compared with; None takes the best.
        options: ``seed``, ``device`` and ``progress``.
    """
    keywords: dict[str, Any] = {"num_particles": num_particles, "compile": compile, **options}
    pairs = {name: [per_observation(f) for f in run] for name, run in fits.items()}
    evaluations = {name: [evaluate(*pair, test, **keywords) for pair in run] for name, run in pairs.items()}
    seconds = {name: [f.seconds for f in run] for name, run in fits.items()}
    answers = answered(pairs, test, sizes, **options)
    table = comparison(evaluations, seconds, answers.columns(), reference=reference)
    return Findings(evaluations, table, seconds, answers)
