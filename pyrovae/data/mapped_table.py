"""A table in parts as arrays that are mapped into memory."""

import shutil
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from pyrovae.tables import Encoding
from pyrovae.tables.column import ENCODED


class OwnFolder:
    """A folder of files for as long as this object is used."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="pyrovae-table-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def mapped_arrays(
    encoding: Encoding, parts: Iterable[pd.DataFrame], count: int, folder: Path, kept: Sequence[str]
) -> tuple[dict[str, Tensor], pd.DataFrame]:
    """Encode a table part by part into files, and map these into memory.

    Args:
        encoding: the table's columns.
        parts: parts of the table, in order.
        count: number of rows in all.
        folder: folder of the files.
        kept: roles whose columns are kept as they are, in memory.

    Returns:
        The outcomes and the covariates in their own units, ``[N, D]`` each, by role; and the columns that were kept.
    """
    roles = {role: len(encoding.of_role(role)) for role in ENCODED if encoding.of_role(role)}
    files = {
        role: open_memmap(folder / f"{role}.npy", mode="w+", dtype=np.float64, shape=(count, width))
        for role, width in roles.items()
    }
    names, frames, start = [column.name for column in encoding.of_role(*kept)], [], 0
    for part in parts:
        stop = start + len(part)
        if isinstance(part.index, pd.RangeIndex):
            part.index = pd.RangeIndex(start, stop)
        for role, file in files.items():
            file[start:stop] = encoding.encode(part, role).numpy()
        frames.append(part[names])
        start = stop
    for file in files.values():
        file.flush()
    arrays = {role: torch.from_numpy(np.load(folder / f"{role}.npy", mmap_mode="c")) for role in files}
    return arrays, pd.concat(frames)
