"""``pyrovae describe``."""

from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from pyrovae.data.table import described_frame, read_table
from pyrovae.saving import write_whole
from pyrovae.tables import Column
from pyrovae.tables.column import BY_LEVELS
from pyrovae.tables.schema import remedies

STYLE: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "default_flow_style": None, "width": 120}


def describe_command(
    source: str,
    out: str | None = None,
    roles: dict[str, str] | None = None,
    types: dict[str, str] | None = None,
    levels: dict[str, list[str | int | float | bool]] | None = None,
    missing: list[str | int | float] | dict[str, list[str | int | float]] | None = None,
    separator: str | None = None,
    decimal: str = ".",
    encoding: str = "utf-8-sig",
    sheet: str | int = 0,
) -> None:
    """Describe a table: the type, the role and the likelihood that are proposed for every column.

    With --out, writes a configuration that `pyrovae fit` and `pyrovae compare` take, in which each of them can be
    changed. Columns that no model observes get a role there: an id, a time, or drop.

    Args:
        source: path of the table (CSV, Parquet, Excel).
        out: YAML file to write; null only prints.
        roles: role by name of column: outcome, covariate, label, id, time, subject, group,
            exposure, weight, frequency or drop.
        types: type by name of column: continuous, positive, count, binary, ordinal or categorical.
        levels: order of the categories by name of column.
        missing: values that mark a missing cell: a list for all columns, or lists by name of column.
        separator: what separates the fields of a CSV table; null recognises it.
        decimal: decimal point of a CSV table, "." or ",".
        encoding: encoding of a CSV table.
        sheet: name or number of the sheet of an Excel file.
    """
    how: dict[str, Any] = {"separator": separator, "decimal": decimal, "encoding": encoding, "sheet": sheet}
    frame, columns = read_table(source, roles=roles, types=types, levels=levels, missing=missing, **how)
    table = described_frame(frame, columns)
    print(f"{len(frame):,} rows")
    with pd.option_context("display.max_rows", None, "display.max_colwidth", 40):
        print(table.to_string())
    if out is not None:
        if Path(out).exists():
            raise ValueError(f"{out!r} exists: name another file, or remove it")
        arguments = {"source": str(Path(source).resolve()), **_words(columns), "missing": missing or []}
        arguments |= {name: value for name, value in how.items() if value not in (None, ".", "utf-8-sig", 0)}
        data = {"data": {"class_path": "Table", "init_args": arguments}}
        command = f"# pyrovae compare --config {out} --out runs/{Path(out).stem}\n"
        write_whole(Path(out), (command + yaml.safe_dump(data, **STYLE)).encode())
        print(f"wrote {out}: change what is wrong, then{command[1:]}", end="")


def _words(columns: tuple[Column, ...]) -> dict[str, Any]:
    """Return the columns' types, roles and categories as options."""
    own = {**{column.name: column.role for column in columns}, **remedies(columns)}
    encoded = [column for column in columns if own[column.name] in ("outcome", "covariate")]
    return {
        "roles": own,
        "types": {column.name: column.type for column in encoded},
        "levels": {column.name: list(column.levels) for column in encoded if column.type in BY_LEVELS},
    }
