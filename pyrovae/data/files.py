"""The user's own data: a ``.npy`` array or a CSV table."""

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.lib import format as npy

from pyrovae.data.binarisation import Binarisation
from pyrovae.data.data import Data
from pyrovae.data.tensors import REMEDIES
from pyrovae.tables.csv_numbers import read_table


class Array(Data):
    """A ``.npy`` file: rows ``[N, D]``, grey pictures ``[N, H, W]`` or pictures ``[N, C, H, W]``.

    The set keeps the numbers as the file holds them; batches have the default dtype, or that of the pair.

    Args:
        path: path of the file.
        levels: number by which values are divided (255 for grey levels in a byte).
        binarise: how intensities become bits; None leaves them as they are.
        mapped: whether to map the file into memory instead of reading it, for a file larger than memory.

    Raises:
        ValueError: for a file that is missing, damaged, not a ``.npy`` file or of other contents, and for what
            :class:`Data` refuses.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        levels: float | None = None,
        binarise: Binarisation | None = None,
        mapped: bool = False,
    ) -> None:
        array = _read_array(path, mapped)
        image_shape = (1, *array.shape[1:]) if array.ndim == 3 else array.shape[1:] if array.ndim == 4 else None
        super().__init__(
            array.reshape(len(array), math.prod(array.shape[1:])),
            image_shape=image_shape if array.size else None,
            levels=1 if levels is None else levels,
            binarise=binarise,
            mapped=mapped,
        )
        self.path = Path(path)


def _read_array(path: str | Path, mapped: bool) -> np.ndarray:
    name = f"{str(path)!r}"
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"the path of a .npy file was expected, got {path!r}")
    try:
        with Path(path).open("rb") as file:
            _check_header(file, name, mapped)
        return np.asarray(np.load(path, allow_pickle=False, mmap_mode="c" if mapped else None))  # c: never written back
    except MemoryError:
        raise ValueError(f"cannot read an array from {name}: it is larger than memory, so say mapped=True") from None
    except OSError as error:
        raise ValueError(f"cannot read an array from {name}: {error.strerror or error}") from None


def _check_header(file: BinaryIO, name: str, mapped: bool) -> None:
    """Check that a file holds the array that its header describes, before an array of that size is made.

    Raises:
        ValueError: in one sentence that names the file.
    """
    shape, fortran, dtype = _header(file, name)
    if dtype.hasobject:
        raise ValueError(f"cannot read an array from {name}: it holds {REMEDIES['O']}")
    if dtype.kind not in "fiub" or not 1 < len(shape) < 5:
        raise ValueError(f"{name} must hold numbers [N, D], [N, H, W] or [N, C, H, W], got {dtype} of shape {shape}")
    size, expected = os.fstat(file.fileno()).st_size - file.tell(), math.prod(shape) * dtype.itemsize
    if min(shape) < 0 or size != expected:
        raise ValueError(
            f"cannot read an array from {name}: its header tells of {dtype} of shape {shape}, {expected} bytes, and "
            f"{size} follow, so it is damaged or was not saved whole: save it again by numpy.save"
        )
    unsigned = dtype.kind == "u" and dtype.itemsize > 1
    if mapped and (not dtype.isnative or unsigned or dtype.itemsize > 8 or (fortran and len(shape) > 2)):
        order = "in Fortran's order" if fortran else "of this dtype"
        raise ValueError(
            f"{name} holds {dtype} of shape {shape}, and an array {order} cannot be mapped: save it once as "
            "numpy.ascontiguousarray(x, numpy.float32), or read it with mapped=False"
        )


def _header(file: BinaryIO, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return what the header of a ``.npy`` file states: the shape, whether columns come first, and the dtype."""
    start = file.read(8)
    file.seek(0)
    if start.startswith(b"PK"):
        raise ValueError(
            f"cannot read an array from {name}: it is a .npz archive of arrays: save one of them by "
            f"numpy.save(path, numpy.load({name})[key])"
        )
    try:
        version = npy.read_magic(file)
        return npy.read_array_header_1_0(file) if version == (1, 0) else npy.read_array_header_2_0(file)
    except Exception:  # NumPy reads the header as Python text, which can be wrong in any way
        got = "it is empty" if not start else "it is no .npy file, or a damaged one"
        raise ValueError(f"cannot read an array from {name}: {got}: save the array by numpy.save") from None


class CSV(Data):
    """A CSV table with a header: one row per observation, one column per feature.

    The set keeps the numbers in double precision; batches have the default dtype, or that of the pair.

    Args:
        path: path of the file, in UTF-8, possibly compressed (``.gz``, ``.bz2``, ``.xz``).
        label: name of the column that holds the labels and is not a feature; an empty cell is an unknown label.
        standardise: whether to subtract each column's mean and divide by its standard deviation. All parts of
            :meth:`Data.splits` use those of the training set, a whole table its own.
        binarise: how intensities become bits; None leaves them as they are.
        missing: whether empty cells are missing values (``likelihoods.Missing``, ``nn.Observed``); otherwise they are
            refused.

    Raises:
        ValueError: for a file that cannot be read, has no header, has rows of another length than the header's, or has
            columns that are not numeric, and for what :class:`Data` refuses.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        label: str | None = None,
        standardise: bool = False,
        binarise: Binarisation | None = None,
        missing: bool = False,
    ) -> None:
        if standardise and binarise is not None:
            raise ValueError("standardised columns cannot be binarised: give standardise or binarise, not both")
        table = read_table(path, label, missing)
        super().__init__(
            torch.from_numpy(table.values),
            labels=None if table.labels is None else torch.from_numpy(table.labels),
            label_names=table.label_names,
            feature_names=table.names,
            levels=1,
            binarise=binarise,
            missing=missing,
        )
        self.fields = (replace(self.first, standardise=standardise),)
        self.path = Path(path)
