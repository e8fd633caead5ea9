"""Tables of other kinds as pandas tables: arrays, sparse matrices, polars, AnnData."""

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
from pandas.api import types as dtypes
from torch import Tensor

EMPTY = ("", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "<NA>", "#N/A")  # texts of cells without a value
SOURCES = "a path, a pandas or polars table, an array, a sparse matrix or an AnnData object"


def is_frame(value: Any) -> bool:
    """Whether ``value`` is a table with named columns: of pandas, or of polars."""
    return isinstance(value, pd.DataFrame) or _is_polars(value)


def as_frame(source: Any, layer: str | None = None) -> pd.DataFrame:
    """Return a table, a matrix or an AnnData object as a pandas table; a matrix gets the names V1, V2, ...

    Args:
        source: the table.
        layer: name of the layer of an AnnData object whose matrix is read; None reads its ``X``.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(source, pd.DataFrame):
        frame = source
    elif _is_polars(source):
        frame = _of_polars(source)
    elif all(hasattr(source, name) for name in ("X", "obs", "var_names", "layers")):
        frame = _of_anndata(source, layer)
    else:
        frame = _of_matrix(source)
    if layer is not None and not hasattr(source, "layers"):
        raise ValueError(f"layer={layer!r} names a layer of an AnnData object, got a {type(source).__name__}")
    return _checked(frame)


def needed(module: str, package: str, what: str) -> ModuleType:
    """Import a package that only some kinds of tables need.

    Raises:
        ValueError: when it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ValueError(f"{what} needs the package {package}: pip install {package}") from None


def _checked(frame: pd.DataFrame) -> pd.DataFrame:
    if isinstance(frame.columns, pd.MultiIndex):
        raise ValueError("the table's columns have several levels of names: join them into one")
    frame = frame.set_axis([str(name) for name in frame.columns], axis=1)
    double = frame.columns[frame.columns.duplicated()]
    if len(double):
        raise ValueError(f"the table has several columns named {double[0]!r}: give every column a name of its own")
    if not len(frame):
        raise ValueError("the table has no rows: at least one observation is needed")
    if not len(frame.columns):
        raise ValueError("the table has no columns: at least one is needed")
    texts = [name for name in frame.columns if dtypes.is_string_dtype(frame[name].dtype)]
    return replaced(frame, {name: frame[name].mask(frame[name].isin(EMPTY)) for name in texts})


def replaced(frame: pd.DataFrame, columns: Mapping[str, Any]) -> pd.DataFrame:
    """Return a table with some columns replaced; the names may be any, unlike those of keywords."""
    if not columns:
        return frame
    changed = frame.copy(deep=False)
    for name, column in columns.items():
        changed[name] = column
    return changed


def _is_polars(value: Any) -> bool:
    return type(value).__module__.split(".")[0] == "polars" and hasattr(value, "to_pandas")


def _of_polars(source: Any) -> pd.DataFrame:
    needed("pyarrow", "pyarrow", "a polars table")
    frame: pd.DataFrame = source.to_pandas()
    ordered = {name: frame[name].cat.as_ordered() for name, kind in source.schema.items() if str(kind)[:4] == "Enum"}
    return replaced(frame, ordered)


def _of_matrix(source: Any) -> pd.DataFrame:
    values = _dense(source)
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "fiub":
        got = type(source).__name__ if not isinstance(values, np.ndarray) else f"{values.dtype} of {values.ndim} dims"
        raise ValueError(f"a table must be {SOURCES}, got {got}")
    return pd.DataFrame(values, columns=[f"V{k + 1}" for k in range(values.shape[1])])


def _dense(source: Any) -> Any:
    """Return a matrix as an array; counts that were kept as floats become whole numbers of the narrowest dtype."""
    if isinstance(source, Tensor):
        return (source.to_dense() if source.layout.__str__() != "torch.strided" else source).detach().cpu().numpy()
    if not hasattr(source, "toarray"):
        return source
    source = source.tocsr()
    source.sum_duplicates()
    values = source.data
    if len(values) and values.dtype.kind in "fiu" and bool((values == np.round(values)).all()) and values.min() >= 0:
        source = source.astype(np.min_scalar_type(int(values.max())))
    return source.toarray()


def _of_anndata(source: Any, layer: str | None) -> pd.DataFrame:
    if layer is not None and layer not in source.layers:
        raise ValueError(f"the AnnData object has no layer {layer!r}; it has {', '.join(source.layers) or 'none'}")
    matrix = _dense(source.X if layer is None else source.layers[layer])
    counts = pd.DataFrame(np.asarray(matrix), index=source.obs.index, columns=list(map(str, source.var_names)))
    both = counts.columns.intersection(source.obs.columns)
    if len(both):
        raise ValueError(f"the AnnData object has both a variable and an obs column named {both[0]!r}: rename one")
    return pd.concat([counts, source.obs], axis=1)


def named_columns(frame: pd.DataFrame, what: str, given: Any) -> None:
    """Check that the keys of a mapping are names of columns.

    Raises:
        ValueError: naming what was got, and the columns.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"{what} must be a dict from names of columns, got {given!r}")
    strange = [name for name in given if name not in frame.columns]
    if strange:
        names = ", ".join(map(str, frame.columns[:12])) + (", ..." if len(frame.columns) > 12 else "")
        raise ValueError(f"{what} names {strange[0]!r}, which is no column of the table; it has {names}")
