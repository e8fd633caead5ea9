"""The tensors that a set can hold: dense, finite numbers, with one observation per row; arrays are converted."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pyrovae.tables import is_frame

ROWS = 4096  # number of rows read at once from a set that may be larger than memory
LARGEST_LOSS = 1e-3  # largest rounding error of a column, in its standard deviations
FEWEST = 10  # least number of observations from which a column's spread is estimated
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WHOLE = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)  # which torch can store, but hardly compute with
REMEDIES = {  # by numpy's letter for the kind of a dtype
    "O": "Python objects: give numbers, x.astype(float), of rows of one length",
    "S": "text: encode it as numbers",
    "U": "text: encode it as numbers",
    "T": "text: encode it as numbers",
    "c": "complex numbers: give their real and imaginary parts as columns",
    "M": "dates: give numbers, such as x.astype('datetime64[s]').astype(float)",
    "m": "durations: give numbers, such as x.astype('timedelta64[s]').astype(float)",
    "V": "records: give their fields as the columns of one array, numpy.lib.recfunctions.structured_to_unstructured(x)",
}


def as_tensor(value: Any, name: str) -> Tensor:
    """Return a tensor or an array as a tensor that torch can index, compute with and write to.

    Raises:
        ValueError: for anything else, and for numbers that are masked, complex, sparse, quantized, nested, not stored
            or too large; the message calls the value ``name``.
    """
    tensor = _of_array(value, name) if isinstance(value, np.ndarray) else value
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} must be a tensor or an array, got {type(value).__name__}{instead_of(value)}")
    _see_that_it_is_plain(tensor, name)
    if tensor.dtype not in UNSIGNED:
        return tensor
    signed = tensor.to(torch.int64)
    if bool((signed < 0).any()):
        raise ValueError(f"{name} holds whole numbers above 2**63 - 1, torch's largest: give them as float64, or scale")
    return signed


def instead_of(data: Any) -> str:
    """Return the end of a message: what to give instead of such data, or "" where there is no replacement."""
    if isinstance(data, Mapping):
        return ": give its tensors as a tuple, in the order of the programs' arguments"
    if isinstance(data, Dataset | DataLoader):
        return ": wrap the Dataset, pyrovae.data.Stream(dataset)"
    if isinstance(data, str | bytes):
        return ": read the file, pyrovae.data.Table(path) or pyrovae.data.Array(path)"
    if isinstance(data, np.generic | int | float | complex):
        return ": give an array with one observation per row, numpy.array([[x]])"
    if isinstance(data, list | tuple):
        return ": give an array with one observation per row, numpy.array(x), of rows of one length"
    if type(data).__name__ == "Series":
        return ": give a table, x.to_frame().T for one row of it, or x.to_numpy()"
    if is_frame(data):
        return ": give pyrovae.data.Table(frame)"
    for method in ("toarray", "to_numpy"):  # of SciPy's sparse matrices, and of tables
        if hasattr(data, method):
            return f": give x.{method}()"
    return ""


def _of_array(array: np.ndarray, name: str) -> Tensor:
    if isinstance(array, np.ma.MaskedArray):
        raise ValueError(
            f"{name} is a masked array, whose fillers would be taken for data: give x.astype(float).filled(np.nan), "
            "and say Data(..., missing=True)"
        )
    if array.dtype.kind in REMEDIES:
        raise ValueError(f"{name} has dtype {array.dtype}, {REMEDIES[array.dtype.kind]}")
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        raise ValueError(f"{name} has dtype {array.dtype}, which torch does not have: give x.astype(numpy.float64)")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    whole_steps = all(step >= 0 and step % array.itemsize == 0 for step in array.strides)
    return torch.from_numpy(array if whole_steps and array.flags.writeable else array.copy())


def _see_that_it_is_plain(tensor: Tensor, name: str) -> None:
    if tensor.is_nested:
        raise ValueError(f"{name} is a nested tensor: give one whose rows have one length, x.to_padded_tensor(0.0)")
    if tensor.layout is not torch.strided:
        raise ValueError(
            f"{name} is not dense ({tensor.layout}): give x.to_dense(), or a pyrovae.data.Stream of a Dataset that "
            "makes each row dense as it is read"
        )
    if tensor.is_meta and type(tensor) is Tensor:  # a subclass may keep values of its own
        raise ValueError(f"{name} is on the meta device, so it has a shape and no values: give a tensor with values")
    if tensor.is_quantized:
        raise ValueError(f"{name} is quantized: give x.dequantize()")
    if tensor.is_complex():
        raise ValueError(f"{name} has dtype {tensor.dtype}: give the real and imaginary parts as columns")
    if tensor.dtype not in (*FLOATING, *WHOLE, *UNSIGNED):
        raise ValueError(f"{name} has dtype {tensor.dtype}, which torch hardly computes with: give x.float()")


def check(tensors: Sequence[Tensor], missing: Sequence[bool] = ()) -> None:
    """Check that tensors make up a set.

    Raises:
        ValueError: for no tensors, no rows, no columns, different lengths, and values that are not finite. Where
            ``missing`` is true for a tensor, NaN is allowed in it; a row must have a value in one of these tensors.
    """
    if not tensors or any(t.dim() == 0 for t in tensors):
        raise ValueError("data must be tensors whose dimension 0 is the observation")
    lengths = [t.shape[0] for t in tensors]
    if len(set(lengths)) > 1:
        raise ValueError(f"the tensors of a batch must have one length, got lengths {lengths}")
    if lengths[0] == 0:
        raise ValueError("the data set is empty: at least one observation is needed")
    if tensors[0].numel() == 0:
        raise ValueError(f"the first tensor of the data, {list(tensors[0].shape)}, has no columns: give at least one")
    holed = [k for k, t in enumerate(tensors) if t.is_floating_point() and bool(missing) and missing[k]]
    for position, tensor in enumerate(tensors):
        if tensor.is_floating_point():
            _see_that_it_is_finite(tensor, position, position in holed)
    if holed:
        _see_that_rows_have_values([tensors[position] for position in holed], holed)


def _see_that_rows_have_values(tensors: Sequence[Tensor], positions: Sequence[int]) -> None:
    parts = zip(*(tensor.unsqueeze(-1).split(ROWS) for tensor in tensors), strict=True)
    count, first = _found(torch.stack([p.isnan().flatten(1).all(1) for p in part]).all(0) for part in parts)
    if count:
        several = f" in any of tensors {', '.join(map(str, positions))}" if len(positions) > 1 else ""
        raise ValueError(f"observation {first} has no observed value{several} ({count} data in all): drop it")


def _found(parts: Iterable[Tensor]) -> tuple[int, int]:
    """Return how many rows of all parts are marked, and the first of them; parts are of ``ROWS`` rows each."""
    count, first = 0, -1
    for number, marked in enumerate(parts):
        if first < 0 and bool(marked.any()):
            first = number * ROWS + int(marked.nonzero()[0])
        count += int(marked.sum())
    return count, first


def _see_that_it_is_finite(tensor: Tensor, position: int, missing: bool) -> None:
    parts = tensor.unsqueeze(-1).split(ROWS)
    if missing:
        count, index = _found((part.isinf()).flatten(1).any(1) for part in parts)
    else:
        count, index = _found(~part.isfinite().flatten(1).all(1) for part in parts)
    if count:
        values = tensor[index].flatten()
        valid = values.isfinite() | (values.isnan() & missing)
        remedy = "Data(..., missing=True)" if position == 0 else "Data(..., Field(tensor, missing=True))"
        raise ValueError(
            f"tensor {position} of the data holds {values[~valid][0].item()} at observation {index} "
            f"({count} data in all): "
            f"drop or impute what is missing first, or say {remedy} and use likelihoods.Missing"
        )


def lost_by_rounding(parts: Iterable[Tensor], dtype: torch.dtype) -> Tensor:
    """Return each column's loss by ``dtype``: the root mean square of its rounding errors, in standard deviations.

    A constant column loses nothing. NaN does not count as a value.

    Args:
        parts: parts of the rows, ``[n, ...]`` each, in order.
        dtype: floating dtype to round to.
    """
    origin = None
    for part in parts:
        rows = part.flatten(1) if part.dim() > 1 else part[:, None]
        values, present = rows.double(), ~rows.isnan()
        if origin is None:
            origin = values.nanmean(0).nan_to_num()  # near the values, so that the digits of their spread are kept
            count, error, total, square = (torch.zeros_like(origin) for _ in range(4))
            low, high = torch.full_like(origin, torch.inf), torch.full_like(origin, -torch.inf)
        shifted = torch.where(present, values - origin, 0.0)
        errors = torch.where(present, (rows - rows.to(dtype).to(rows.dtype)).double(), 0.0)
        count, error = count + present.sum(0), error + errors.square().sum(0)
        total, square = total + shifted.sum(0), square + shifted.square().sum(0)
        low = torch.minimum(low, torch.where(present, values, torch.inf).amin(0))
        high = torch.maximum(high, torch.where(present, values, -torch.inf).amax(0))
    variance = (square - total.square() / count).clamp(min=0)
    return torch.where((high > low) & (error > 0), (error / variance).sqrt(), 0.0)
