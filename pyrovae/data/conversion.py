"""What calls take as data, as a set; a table is read as the pair's own table was."""

from typing import Any

import numpy as np
from torch import Tensor, nn

from pyrovae.data.data import Data
from pyrovae.data.table import Table
from pyrovae.data.tensors import instead_of
from pyrovae.tables import Encoding, is_frame

ENCODING = "_table_encoding"  # the attribute of a fitted program that says how its table was read


def as_data(data: Any, *programs: Any, encoding: Encoding | None = None) -> Data:
    """Return ``data`` as a set: a tensor, an array, a tuple of them, a table, or a set already.

    A table (pandas, polars, :class:`Table`) is read as the table was that the programs were fitted to: columns by name,
    with the fit's categories and scales.

    Args:
        data: the data.
        *programs: the programs that take them.
        encoding: how the programs' table was read; None looks it up in the programs.

    Raises:
        ValueError: for anything else, for what :class:`Data` refuses, and for a pandas or polars table where the
            programs were not fitted to one.
    """
    encoding = carried(*programs) if encoding is None else encoding
    if is_frame(data):
        if encoding is None:
            raise ValueError(
                "a table was given to programs that were not fitted to one, so it is unknown how its columns become "
                "numbers: give data.Table(frame), or fit to a table first"
            )
        return Table.like(data, encoding)
    if isinstance(data, Table):
        return data.on_own_scale() if encoding is None else data.encoded_as(encoding)
    if isinstance(data, Data):
        return data
    parts = data if isinstance(data, tuple | list) else (data,)
    stray = [part for part in parts if not isinstance(part, Tensor | np.ndarray)]
    if stray or not parts:
        numbers = isinstance(data, tuple | list) and bool(stray) and isinstance(stray[0], int | float)
        other = data if numbers else stray[0] if stray else None
        got = f"{type(other).__name__}{instead_of(other)}" if stray else "nothing"
        raise ValueError(f"data must be a tensor, a tuple of tensors, a table or a data set of pyrovae, got {got}")
    return Data(*parts)


def training_data(data: Any, *programs: Any) -> Data:
    """Return what a fit is given as a set, as :func:`as_data` does; programs that were fitted to no table take any."""
    return Table(data) if is_frame(data) and carried(*programs) is None else as_data(data, *programs)


def carried(*programs: Any) -> Encoding | None:
    """Return how the table was read that the programs were fitted to; None where they were fitted to none.

    Raises:
        ValueError: for programs that were fitted to different tables.
    """
    encodings = [getattr(program, ENCODING, None) for program in programs]
    known = [encoding for encoding in encodings if isinstance(encoding, Encoding)]
    if any(encoding.described() != known[0].described() for encoding in known[1:]):
        raise ValueError("model and guide were fitted to tables that were read differently: take both from one fit")
    return known[0] if known else None


def attach(program: Any, encoding: Encoding | None) -> None:
    """Note on a module, or on an object that carries a program, how the table was read that it was fitted to."""
    if isinstance(program, nn.Module) or encoding is not None:
        object.__setattr__(program, ENCODING, encoding)
