"""Files as pandas tables: CSV with any separator, Parquet, Excel, AnnData."""

import csv
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from pyrovae.tables.csv_numbers import OPENERS, check_header, explained, lines, read_header
from pyrovae.tables.frames import EMPTY, needed

SEPARATORS = ",;\t|"
SNIFFED = 20  # lines by which the separator is recognised
TABS = (".tsv", ".tab")
TEXTS = (".csv", ".txt", ".dat", *TABS)
PARQUET, EXCEL, ANNDATA = (".parquet", ".pq"), (".xlsx", ".xlsm", ".xls", ".ods"), (".h5ad",)


def is_table_file(name: str) -> bool:
    """Whether a text is the name of a file that can be a table, by its ending."""
    path = Path(name)
    path = path.with_suffix("") if path.suffix.lower() in OPENERS else path
    return path.suffix.lower() in (*TEXTS, *PARQUET, *EXCEL, *ANNDATA)


def read_file(
    path: str | os.PathLike[str],
    *,
    separator: str | None = None,
    decimal: str = ".",
    encoding: str = "utf-8-sig",
    sheet: str | int = 0,
    codes: Mapping[str, Sequence[Any]] | Sequence[Any] = (),
    texts: Sequence[str] = (),
) -> Any:
    """Read a file: a pandas table, or an AnnData object.

    Args:
        path: path of the file; its ending says what it is: ``.parquet``, ``.xlsx``, ``.h5ad``, and a CSV table
            otherwise, possibly compressed (``.gz``, ``.bz2``, ``.xz``).
        separator: what separates the fields of a CSV table; None recognises a comma, semicolon, tab or bar.
        decimal: decimal point of a CSV table, "." or ",".
        encoding: encoding of a CSV table; the default is UTF-8, with or without a byte-order mark.
        sheet: name or number of the sheet of an Excel file.
        codes: texts or numbers that mark a missing cell, of all columns or by column.
        texts: columns of a CSV table that stay texts, such as ids with leading zeros.

    Raises:
        ValueError: in one sentence that names the file and what is wrong with it.
    """
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"the path of a table was expected, got {path!r}")
    path, name = Path(path), f"{str(path)!r}"
    ending = path.suffix.lower()
    if not path.is_file():
        raise ValueError(f"cannot read a table from {name}: there is no such file")
    if ending in PARQUET:
        needed("pyarrow", "pyarrow", f"the Parquet file {name}")
        return _tried(name, lambda: pd.read_parquet(path))
    if ending in EXCEL:
        needed("openpyxl", "openpyxl", f"the Excel file {name}")
        options: dict[str, Any] = {"sheet_name": sheet, "keep_default_na": False, "na_values": _empty(codes)}
        return _tried(name, lambda: pd.read_excel(path, **options))
    if ending in ANNDATA:
        return _tried(name, lambda: needed("anndata", "anndata", f"the file {name}").read_h5ad(path))
    with explained(name):
        return _csv(path, name, separator, decimal, encoding, codes, texts)


def _tried(name: str, read: Any) -> Any:
    try:
        return read()
    except ValueError as error:
        raise ValueError(f"cannot read a table from {name}: {' '.join(str(error).split())}") from None
    except Exception as error:  # of any kind: another library reads the file
        raise ValueError(f"cannot read a table from {name}: {type(error).__name__}: {error}") from None


def _csv(
    path: Path, name: str, separator: str | None, decimal: str, encoding: str, codes: Any, texts: Sequence[str]
) -> pd.DataFrame:
    if decimal not in (".", ","):
        raise ValueError(f"decimal must be '.' or ',', got {decimal!r}")
    with _opened(path, encoding) as file:
        separator = separator or _sniffed(file, path, name, decimal)
    if separator == decimal:
        raise ValueError(f"separator and decimal are both {decimal!r}: they must differ")
    with _opened(path, encoding) as file:
        check = partial(_see_that_columns_have_names, name=name, separator=separator)
        header = read_header(file, path, name, separator, check)
    with _opened(path, encoding) as file:
        frame = pd.read_csv(
            file, sep=separator, decimal=decimal, index_col=0 if _is_indexed(header) else False,
            low_memory=False, keep_default_na=False, na_values=_empty(codes, header),
            float_precision="round_trip" if decimal == "." else None, dtype=dict.fromkeys(texts, str),
            skip_blank_lines=len(header) > 1,
        )  # fmt: skip
    return frame.rename_axis(None) if _is_indexed(header) else frame


def _empty(codes: Any, columns: Sequence[str] = ()) -> Any:
    """Return the texts that stand for a missing cell, of all columns or by column as pandas takes them."""
    if isinstance(codes, Mapping):
        return {name: [*EMPTY, *map(str, codes.get(name, ()))] for name in columns} if columns else list(EMPTY)
    return [*EMPTY, *map(str, codes)]


def _opened(path: Path, encoding: str) -> Any:
    try:
        return OPENERS.get(path.suffix.lower(), open)(path, "rt", encoding=encoding, newline="")
    except LookupError:
        raise ValueError(f"encoding {encoding!r} is not known: such as 'utf-8', 'latin-1' or 'cp1252'") from None


def _sniffed(file: Any, path: Path, name: str, decimal: str) -> str:
    """Return the separator that splits the first lines into the same number of fields, at least two; else a comma."""
    if Path(path.stem if path.suffix.lower() in OPENERS else path.name).suffix.lower() in TABS:
        return "\t"
    first = [line for line, _ in zip(lines(file, path, name), range(SNIFFED), strict=False)]
    widths = {}
    for mark in SEPARATORS:
        if mark != decimal:
            rows = [row for row in csv.reader(first, delimiter=mark) if row]
            widths[mark] = len(rows[0]) if rows and len({len(row) for row in rows[:-1] or rows}) == 1 else 0
    best = max(widths, key=lambda mark: widths[mark])
    return best if widths[best] > 1 else ","


def _see_that_columns_have_names(header: list[str], name: str, separator: str) -> None:
    """Check a header, in which the first column may be an index without a name."""
    mark = next((mark for mark in SEPARATORS if len(header) == 1 and mark in header[0]), None)
    if mark is not None:
        raise ValueError(f"the fields of {name} are separated by {mark!r}, and separator is {separator!r}")
    check_header(header[1:] if _is_indexed(header) else header, name)


def _is_indexed(header: list[str]) -> bool:
    return len(header) > 1 and (not header[0].strip() or header[0] == "Unnamed: 0")
