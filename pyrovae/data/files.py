"""The user's own data: a ``.npy`` array or a CSV table."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyrovae.data.binarisation import Binarisation
from pyrovae.data.data import Data


class Array(Data):
    """A ``.npy`` file: rows ``[N, D]``, grey pictures ``[N, H, W]`` or pictures ``[N, C, H, W]``.

    Args:
        path: of the file.
        levels: divide by this number (255 for grey levels in a byte).
        binarise: how intensities become bits; None leaves them as they are.
        mapped: map the file into memory instead of reading it, for one that is larger than memory.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        levels: float | None = None,
        binarise: Binarisation | None = None,
        mapped: bool = False,
    ) -> None:
        try:
            array = np.load(path, allow_pickle=False, mmap_mode="c" if mapped else None)  # c: nothing is written back
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"cannot read an array from {str(path)!r}: {error}") from None
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub" or not 1 < array.ndim < 5:
            got = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
            raise ValueError(f"{str(path)!r} must hold numbers [N, D], [N, H, W] or [N, C, H, W], got {got}")
        image_shape = (1, *array.shape[1:]) if array.ndim == 3 else array.shape[1:] if array.ndim == 4 else None
        tensor = torch.from_numpy(array.reshape(len(array), -1)) if len(array) else torch.empty(0, 1, device="cpu")
        if mapped and levels is None and not tensor.is_floating_point():
            levels = 1
        if not mapped and (levels is None or tensor.dtype != torch.uint8):
            tensor = tensor.to(torch.get_default_dtype())
        super().__init__(tensor, image_shape=image_shape, levels=levels, binarise=binarise, mapped=mapped)


class CSV(Data):
    """A CSV table with a header: a row a datum, a column a feature.

    Args:
        path: of the file.
        label: column kept apart as the labels, by name, not as a feature; an empty cell is a label that is not known.
        standardise: subtract each column's mean and divide by its standard deviation; those of the training set for
            all parts of :meth:`Data.splits`, the table's own where it is taken whole.
        binarise: how intensities become bits; None leaves them as they are.
        missing: whether empty cells are missing values (``likelihoods.Missing``, ``nn.Observed``); otherwise they are
            refused.
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
        try:
            table = pd.read_csv(path)
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read a table from {str(path)!r}: {error}") from None
        if not len(table):
            raise ValueError(f"{str(path)!r} has a header and no rows: the data set is empty")
        labels, names = None, None
        if label is not None:
            if label not in table:
                raise ValueError(f"{str(path)!r} has no column {label!r}; it has {', '.join(map(str, table))}")
            numbers, kinds = pd.factorize(table.pop(label), sort=True)
            labels, names = torch.from_numpy(numbers.astype(np.int64)), [str(kind) for kind in kinds]
        if standardise and binarise is not None:
            raise ValueError("standardised columns cannot be binarised: give standardise or binarise, not both")
        super().__init__(
            self._features(table, str(path), missing),
            labels=labels,
            label_names=names,
            feature_names=[str(name) for name in table],
            binarise=binarise,
            missing=missing,
        )
        self.standardise = standardise

    @staticmethod
    def _features(table: pd.DataFrame, path: str, missing: bool) -> Tensor:
        for name, column in table.items():
            if not pd.api.types.is_numeric_dtype(column):
                raise ValueError(
                    f"column {name!r} of {path!r} is not numeric: drop it, encode it, or name it as the label"
                )
            if column.isna().any() and not missing:
                row = int(column.isna().to_numpy().argmax())
                raise ValueError(
                    f"column {name!r} of {path!r} lacks a value in row {row} ({int(column.isna().sum())} in all): "
                    "drop or impute them first, or say missing=True (--data.missing true) and use likelihoods.Missing, "
                    "which the command line does by itself"
                )
        return torch.from_numpy(table.to_numpy(np.float64)).to(torch.get_default_dtype())
