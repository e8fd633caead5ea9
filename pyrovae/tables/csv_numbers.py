"""A CSV table as numbers; a table that pandas could only read by guessing or filling in is refused."""

import bz2
import csv
import gzip
import io
import lzma
import math
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
LONGEST_LINE = 2**26  # characters
LARGEST_RATIO, UNSUSPECTED = 100, 2**30  # characters per compressed byte; characters that are read in any case
YEARS = range(1800, 2200)  # years that may be names of columns
LARGEST_WHOLE = 2**53  # double precision holds every whole number up to this one


class Numbers(NamedTuple):
    """The numbers of a table ``[N, D]``, the names of its columns, its labels ``[N]`` and their names."""

    values: np.ndarray
    names: list[str]
    labels: np.ndarray | None
    label_names: list[str] | None


def read_table(path: str | Path, label: str | None, missing: bool) -> Numbers:
    """Read a CSV file with a header.

    Args:
        path: path of the file.
        label: name of the column of labels, or None.
        missing: whether cells without a value become NaN.

    Raises:
        ValueError: in one sentence that names the file and what is wrong with it.
    """
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"the path of a CSV file was expected, got {path!r}")
    name = f"{str(path)!r}"
    frame = _frame(Path(path), name)
    if label is not None and label not in list(frame):
        raise ValueError(f"{name} has no column {label!r}; it has {', '.join(map(str, frame))}")
    if not len(frame):
        raise ValueError(f"{name} has a header and no rows: the data set is empty")
    labels, label_names = None, None
    if label is not None:
        numbers, kinds = pd.factorize(frame.pop(label), sort=True)
        labels, label_names = numbers.astype(np.int64), [str(kind) for kind in kinds]
    if not len(frame.columns):
        raise ValueError(f"{name} has no column beside the label {label!r}: at least one feature is needed")
    columns = [_numbers(column, f"column {heading!r} of {name}", missing) for heading, column in frame.items()]
    return Numbers(np.stack(columns, 1), [str(heading) for heading in frame], labels, label_names)


def _frame(path: Path, name: str) -> pd.DataFrame:
    """Return the file as pandas reads it, after a check that leaves pandas nothing to guess."""
    with explained(name):
        _check_shape(path, name)
        with _opened(path) as file:
            return pd.read_csv(
                file, index_col=False, float_precision="round_trip", low_memory=False, dtype_backend="numpy_nullable"
            )


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn an error of reading a file inside the block into one sentence that names the file.

    Raises:
        ValueError: in one sentence.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(
            f"cannot read a table from {name}: it is not {error.encoding.upper()} text (byte "
            f"{error.object[error.start]:#04x}): save the table as comma-separated text in UTF-8, or name its encoding"
        ) from None
    except EOFError:
        raise ValueError(f"cannot read a table from {name}: the compressed file ends early: copy it again") from None
    except (zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"cannot read a table from {name}: it is damaged ({error}): copy it again") from None
    except (OSError, csv.Error, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())
        raise ValueError(f"cannot read a table from {name}: {reason}") from None


def _opened(path: Path) -> Any:
    opener = OPENERS.get(path.suffix.lower(), io.open)
    return opener(path, "rt", encoding="utf-8-sig", newline="")


def _check_shape(path: Path, name: str) -> None:
    """Check that a table has a header that names every column once, and rows of the header's length."""
    with _opened(path) as file:
        read_header(file, path, name, ",", lambda header: check_header(header, name))


def read_header(file: Any, path: Path, name: str, separator: str, check: Callable[[list[str]], None]) -> list[str]:
    """Read a table's rows, and return its header; every row has as many fields as the header names columns.

    Args:
        file: the opened file.
        path: its path.
        name: what messages call it.
        separator: what separates the fields.
        check: is given the header before the rows are read, and refuses a bad one.

    Raises:
        ValueError: for an empty file, and for a row of another length; the message names the line.
    """
    reader = csv.reader(lines(file, path, name), delimiter=separator)
    header: list[str] = []
    for row in reader:
        if len(row) < 2 and not "".join(row).strip() and len(header) != 1:
            continue  # a blank line is not a row
        if not header:
            header = row
            check(header)
        elif row and len(row) != len(header):
            raise ValueError(
                f"line {reader.line_num} of {name} has {len(row)} fields, and the header names {len(header)} "
                "columns: every row needs a field for each, an empty one where there is no value"
            )
    if not header:
        raise ValueError(f"cannot read a table from {name}: it is empty")
    return header


def lines(file: Any, path: Path, name: str) -> Iterator[str]:
    """Iterate over the lines of a text, in bounded memory.

    Raises:
        ValueError: for a text that is not a table: a line that is too long, zero bytes, or a small file that unpacks to
            a very large text.
    """
    size, count = path.stat().st_size, 0
    while line := file.readline(LONGEST_LINE):
        count += len(line)
        if len(line) == LONGEST_LINE:
            raise ValueError(f"cannot read a table from {name}: a line has over {LONGEST_LINE} characters")
        if count > UNSUSPECTED and count > LARGEST_RATIO * size:
            raise ValueError(
                f"cannot read a table from {name}: it unpacks to over {LARGEST_RATIO} times its size: unpack it first, "
                "if it is a table"
            )
        if "\0" in line:
            raise ValueError(f"cannot read a table from {name}: it holds zero bytes, so it is no text")
        yield line


def check_header(header: list[str], name: str) -> None:
    """Check that a header names every column once.

    Raises:
        ValueError: naming the file and what is wrong with its header.
    """
    other = next((mark for mark in ";\t|" if len(header) == 1 and mark in header[0]), None)
    if other is not None or header[0].startswith("#"):
        what = f"the fields of {name} are separated by {other!r}" if other else f"{name} begins with a comment"
        raise ValueError(
            f"{what}: write it with commas between fields, points in numbers, and a header in the first line, as "
            "table.to_csv(path, index=False) does"
        )
    nameless = [k for k, heading in enumerate(header) if not heading.strip() or re.fullmatch(r"Unnamed: \d+", heading)]
    if nameless:
        raise ValueError(
            f"column {nameless[0]} of {name} has no name, like the index that pandas writes: write the table by "
            "to_csv(path, index=False), or name the column if it is one of the data"
        )
    if _are_numbers(header):
        raise ValueError(
            f"the first line of {name} holds numbers ({', '.join(header[:3])}{', ...' * (len(header) > 3)}), not the "
            "names of columns: give the columns names in the first line"
        )
    double = [heading for heading, times in Counter(header).items() if times > 1]
    if double:
        raise ValueError(f"{name} has several columns named {double[0]!r}: give every column a name of its own")


def _are_numbers(header: list[str]) -> bool:
    """Return whether a header is a row of data: numbers, unless they count the columns (0, 1, 2 or 2019, 2020)."""
    numbers = [value for heading in header if (value := _number(heading)) is not None]
    if any(isinstance(value, float) for value in numbers):
        return True
    counting = numbers[:1] == [0] or (len(numbers) > 1 and numbers[0] in YEARS)
    counting = counting and all(b - a == 1 for a, b in pairwise(numbers))
    return len(numbers) == len(header) and not counting


def _number(heading: str) -> int | float | None:
    """Return the number that a heading states, as an int where it is whole; None for a name."""
    text = heading.strip()
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    if re.fullmatch(r"[+-]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?", text):
        return float(text)
    return None


def _numbers(column: pd.Series, name: str, missing: bool) -> np.ndarray:
    """Return a column in double precision, after a check that this holds every number of it."""
    if not pd.api.types.is_numeric_dtype(column):
        stray = pd.to_numeric(column, errors="coerce").isna() & column.notna()
        first = int(stray.to_numpy().argmax())
        raise ValueError(
            f"{name} is not numeric (row {first} holds {str(column.iloc[first])[:40]!r}): drop it, encode it, leave "
            "its cells empty where values are missing, or name it as the label"
        )
    empty = column.isna().to_numpy()
    if empty.any() and not missing:
        raise ValueError(
            f"{name} lacks a value in row {int(empty.argmax())} ({int(empty.sum())} in all): "
            "drop or impute them first, or say missing=True (--data.missing true) and use likelihoods.Missing, "
            "which the command line does by itself"
        )
    values: np.ndarray = column.to_numpy(np.float64, na_value=math.nan)
    infinite = np.isinf(values)
    if infinite.any():
        first = int(infinite.argmax())
        raise ValueError(f"{name} holds {values[first]} in row {first} ({int(infinite.sum())} in all): drop or mend it")
    if pd.api.types.is_integer_dtype(column):
        for row in np.flatnonzero(np.abs(values) >= LARGEST_WHOLE):
            if int(column.iloc[row]) != int(values[row]):
                raise ValueError(
                    f"{name} holds {column.iloc[row]} in row {row}, which double precision rounds, as it does whole "
                    "numbers above 2**53: subtract an origin before the table is written"
                )
    return values
