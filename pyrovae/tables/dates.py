"""Dates that are written as texts."""

import re

import pandas as pd
from pandas.api import types as dtypes

from pyrovae.tables.encoding import Encoding
from pyrovae.tables.frames import replaced

PARTS = re.compile(r"\s*(\d{1,4})[-/.](\d{1,2})[-/.](\d{1,4})")


def with_dates(frame: pd.DataFrame, encoding: Encoding) -> pd.DataFrame:
    """Return a table whose column of times holds times, where it held texts.

    Raises:
        ValueError: for texts that are no dates, or whose days and months cannot be told apart.
    """
    texts = [
        c.name for c in encoding.of_role("time") if c.name in frame and dtypes.is_string_dtype(frame[c.name].dtype)
    ]
    return replaced(frame, {name: as_times(frame[name]) for name in texts})


def as_times(texts: pd.Series) -> pd.Series:
    """Return texts as times: the year first, or day and month in the order that the texts themselves show.

    Raises:
        ValueError: for texts that are no dates, or whose days and months cannot be told apart.
    """
    name = texts.name
    parts = texts.dropna().astype(str).str.extract(PARTS).dropna()
    year_first = bool(len(parts)) and bool((parts[0].str.len() == 4).all())
    first, second = (int(parts[k].astype(int).max()) if len(parts) else 0 for k in (0, 1))
    if len(parts) and not year_first and first <= 12 and second <= 12:
        raise ValueError(
            f"column {name!r} holds dates such as {texts.dropna().iloc[0]!r}, whose days and months cannot be told "
            "apart: write them as 2024-01-31, or give a column of times"
        )
    times = pd.to_datetime(texts, errors="coerce", format="mixed", dayfirst=not year_first and first > 12)
    wrong = times.isna() & texts.notna()
    if bool(wrong.any()):
        stray = texts[wrong].iloc[0]
        raise ValueError(f"column {name!r} is a time, and holds {stray!r}: write dates as 2024-01-31, or give numbers")
    return times
