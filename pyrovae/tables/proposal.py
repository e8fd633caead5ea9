"""Proposed types of columns, by their values: a proposal, which the user can override by name."""

import warnings
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pandas.api import types as dtypes

from pyrovae.tables.column import plain

MOST_CATEGORIES = 20  # different texts that are always taken for categories
FEW_PER_CATEGORY = 10  # rows per different text, from which more of them are
MOST_GRADES = 10  # grades of an answer, such as 1 to 7
FEWEST_IDS = 20  # rows from which texts that are all different, or whole numbers in sequence, are taken for ids
LONGEST_ID = 64  # characters
FARTHEST_FROM_ZERO = 5  # whole numbers that begin above this one are hardly counts
SKEWED = 1.0  # skewness from which numbers above zero are taken by their logarithm
YEARS = (1800, 2200)
ZEROS = 0.05  # share of zeros that is worth a note
SPIKE = 0.2  # share of one number from which a density of its neighbourhood means little
FEWEST_IN_SPIKE = 20  # rows
SPIKED = "where no density is bounded"
STRAY = "numbers"
COMMA = "numbers with decimal commas"
TRIED = 200  # different texts that are tried as dates


class Proposal(NamedTuple):
    """A proposed type, its categories in order where it has any, and what to look at."""

    type: str
    levels: tuple[Any, ...] = ()
    note: str = ""


def proposal(column: pd.Series) -> Proposal:
    """Propose the type of a column; missing cells do not count."""
    values = column.dropna()
    if isinstance(column.dtype, pd.CategoricalDtype):
        return _of_categories(column.dtype)
    if not len(values):
        return Proposal("constant", note="no cell has a value")
    if dtypes.is_bool_dtype(values.dtype):
        return Proposal("binary", (False, True)) if values.nunique() > 1 else Proposal("constant")
    if dtypes.is_datetime64_any_dtype(values.dtype) or isinstance(values.dtype, pd.PeriodDtype):
        return Proposal("date")
    if dtypes.is_numeric_dtype(values.dtype) and not dtypes.is_complex_dtype(values.dtype):
        return _of_numbers(values.to_numpy(np.float64))
    return _of_texts(values)


def levels_of(column: pd.Series) -> tuple[Any, ...]:
    """Return the categories of a column in their order, or, where it has none of its own, its values in order."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return tuple(plain(level) for level in column.dtype.categories)
    values = [plain(value) for value in column.dropna().unique()]
    try:
        return tuple(sorted(values))
    except TypeError:  # of several kinds
        return tuple(sorted(values, key=lambda value: (type(value).__name__, str(value))))


def _of_categories(dtype: pd.CategoricalDtype) -> Proposal:
    levels = tuple(plain(level) for level in dtype.categories)
    if len(levels) < 2:
        return Proposal("constant", levels, "one category" if levels else "no category")
    if len(levels) == 2:
        return Proposal("binary", levels)
    return Proposal("ordinal" if dtype.ordered else "categorical", levels)


def _of_numbers(values: np.ndarray) -> Proposal:
    different = np.unique(values)
    low, high, count = different[0], different[-1], len(different)
    if count == 1:
        return Proposal("constant")
    whole = bool((different == np.round(different)).all()) and bool(np.isfinite(different).all())
    if count == 2:
        return Proposal("binary", tuple(int(v) if whole else float(v) for v in different))
    if not whole:
        return _of_measurements(values, low)
    if count == len(values) and count**2 / (2 * (high - low + 1)) >= FEWEST_IDS / 2:
        return Proposal("id", note="whole numbers, each once, where chance would repeat some")
    if low >= YEARS[0] and high <= YEARS[1]:
        return Proposal("continuous", note="whole numbers like years")
    if low == 1 and high <= MOST_GRADES and count >= high - 1:
        return Proposal("ordinal", tuple(range(1, int(high) + 1)), "grades from 1; categorical if without an order")
    if low < 0 or low > FARTHEST_FROM_ZERO:
        return _of_measurements(values, low, "whole numbers")
    few = "; ordinal if these are grades" if count <= MOST_CATEGORIES and high <= 2 * count else ""
    return Proposal("count", note=f"whole numbers{few}")


def _of_measurements(values: np.ndarray, low: float, note: str = "") -> Proposal:
    found, counts = np.unique(values, return_counts=True)
    if len(found) <= MOST_GRADES and len(values) >= FEW_PER_CATEGORY * len(found):
        whole = bool((found == np.round(found)).all())
        return Proposal("ordinal", tuple(map(int if whole else float, found)), f"{len(found)} different numbers")
    most = float(counts.max() / len(values))
    if most > SPIKE and counts.max() >= FEWEST_IN_SPIKE:
        return Proposal("continuous", note=f"{most:.0%} are {found[counts.argmax()]:g}, {SPIKED}")
    if note:
        return Proposal("continuous", note=note)
    if low > 0 and _skewness(values) > SKEWED:
        return Proposal("positive", note="above zero and skewed")
    zeros = float((values == 0).mean())
    return Proposal("continuous", note=f"{zeros:.0%} zeros" if low == 0 and zeros > ZEROS else "")


def _skewness(values: np.ndarray) -> float:
    deviations = values - values.mean()
    spread = float(np.sqrt((deviations**2).mean()))
    return float((deviations**3).mean()) / spread**3 if spread > 0 else 0.0


def _of_texts(values: pd.Series) -> Proposal:
    texts = values.astype(str)
    count = texts.nunique()
    if count == 1:
        return Proposal("constant")
    if texts.str.fullmatch(r"\s*-?\d+(\.\d{3})*(,\d+)?\s*").all() and texts.str.contains(",").any():
        return Proposal("text", note=f"{COMMA}: say decimal=','")
    numbers = pd.to_numeric(texts, errors="coerce")
    if 0.5 < float(numbers.notna().mean()) < 1:
        stray = texts[numbers.isna()].iloc[0]
        return Proposal("text", note=f"{STRAY}, but {stray!r}: mark it as missing")
    if _are_dates(texts):
        return Proposal("date")
    short = bool((texts.str.len() <= LONGEST_ID).all())
    if count == len(texts) >= FEWEST_IDS and short and not texts.str.contains(r"\s").any():
        return Proposal("id", note="short texts, each once")
    if count <= MOST_CATEGORIES or count * FEW_PER_CATEGORY <= len(texts):
        return Proposal("binary" if count == 2 else "categorical", levels_of(values))
    return Proposal("text", note=f"{count:,} different texts")


def _are_dates(texts: pd.Series) -> bool:
    some = pd.Series(texts.unique()[:TRIED])
    if not some.str.fullmatch(r"\s*\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([T ][\d:.+Z-]+)?\s*").all():
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on the order of day and month
        return bool(pd.to_datetime(some, errors="coerce", format="mixed").notna().all())
