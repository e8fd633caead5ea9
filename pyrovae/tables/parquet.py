"""Parquet files read in parts, for tables larger than memory."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from pyrovae.tables.column import BY_LEVELS, Column
from pyrovae.tables.encoding import without_codes
from pyrovae.tables.frames import as_frame, needed
from pyrovae.tables.proposal import levels_of

ROWS = 65_536  # of a part
FIRST = 4  # parts that types are proposed from
MOST_LEVELS = 10_000  # categories of one column


def parts(path: str | Path, codes: Mapping[str, Sequence[Any]] | Sequence[Any] = ()) -> Iterator[pd.DataFrame]:
    """Iterate over the parts of a Parquet file; cells with a code are missing.

    Raises:
        ValueError: for a file that is no Parquet file, or that cannot be read.
    """
    name = f"{str(path)!r}"
    arrow: Any = needed("pyarrow", "pyarrow", f"the Parquet file {name}")
    module: Any = needed("pyarrow.parquet", "pyarrow", f"the Parquet file {name}")
    if not Path(path).is_file():
        raise ValueError(f"cannot read a table from {name}: there is no such file")
    try:
        file = module.ParquetFile(path, memory_map=True)
        for batch in file.iter_batches(batch_size=ROWS):
            frame = as_frame(batch.to_pandas())
            by_name = codes if isinstance(codes, Mapping) else {name: list(codes) for name in frame.columns}
            yield without_codes(frame, by_name)
    except (OSError, arrow.lib.ArrowException) as error:
        raise ValueError(f"cannot read a table from {name}: {' '.join(str(error).split())}") from None
    finally:
        arrow.default_memory_pool().release_unused()


def first_rows(path: str | Path, codes: Any) -> pd.DataFrame:
    """Return the first rows of a file, from which types are proposed."""
    return pd.concat([part for part, _ in zip(parts(path, codes), range(FIRST), strict=False)], ignore_index=True)


def completed(columns: Sequence[Column], path: str | Path, codes: Any) -> tuple[tuple[Column, ...], int]:
    """Return columns with the categories and the missing cells of all rows, and the number of rows.

    Raises:
        ValueError: for a column with too many categories.
    """
    levels = {column.name: dict.fromkeys(column.levels) for column in columns if column.type in BY_LEVELS}
    missing, count = {column.name: column.missing for column in columns}, 0
    for part in parts(path, codes):
        count += len(part)
        for name, known in levels.items():
            known.update(dict.fromkeys(level for level in levels_of(part[name]) if level not in known))
            if len(known) > MOST_LEVELS:
                raise ValueError(f"column {name!r} has over {MOST_LEVELS:,} categories: give it another type or role")
        for name in missing:
            missing[name] = missing[name] or bool(part[name].isna().any())
    found = [
        replace(c, missing=missing[c.name], levels=_ordered(c, list(levels[c.name])))
        if c.name in levels
        else replace(c, missing=missing[c.name])
        for c in columns
    ]
    return tuple(found), count


def _ordered(column: Column, levels: list[Any]) -> tuple[Any, ...]:
    """Return the categories of all rows in their order.

    Raises:
        ValueError: for further categories than the first rows showed, where these decide the type or the order.
    """
    late = [level for level in levels if level not in column.levels]
    numbers = all(isinstance(level, int | float) for level in levels)
    decides = column.type == "binary" or (column.type == "ordinal" and not numbers)
    if late and (decides or (column.type == "ordinal" and min(levels) < min(column.levels))):
        raise ValueError(
            f"column {column.name!r} looks {column.type} in its first {FIRST * ROWS:,} rows, {list(column.levels)}, "
            f"and later holds {late[0]!r}: say its type, and its categories in order by levels="
        )
    return tuple(sorted(levels) if numbers else levels)
