"""Labels: names of an ArviZ object's dimensions, for ArviZ 0.23 (``InferenceData``) and 1.x (``DataTree``).

ArviZ and xarray import parts of themselves when they are first used, so all calls of them are inside ``importing()``.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import arviz as az
import numpy as np
import pyro
import xarray as xr

from pyrovae.common.version import __version__
from pyrovae.programs.isolation import importing

ARVIZ_1 = int(az.__version__.split(".")[0]) >= 1
DIMS = ("chain", "draw", "datum")


def refuse_beyond(max_bytes: int, needed: int) -> None:
    """Refuse draws that take more memory than allowed."""
    if needed > max_bytes:
        raise ValueError(
            f"the draws would take {needed / 2**30:.1f} GiB, more than max_bytes={max_bytes / 2**30:.1f} GiB: "
            "pass fewer data, a smaller num_draws, or fewer groups"
        )


def refuse_names(plates: Mapping[str, Sequence[str]]) -> None:
    """Refuse sites and plates whose names have another meaning in ArviZ's objects.

    Args:
        plates: names of the plates left of the data plate, by site.

    Raises:
        ValueError: naming the site or the plate, and what to do.
    """
    events = re.compile(rf"({'|'.join(map(re.escape, plates))})_dim(_\d+)?") if plates else re.compile("(?!)")
    outer = {plate for names in plates.values() for plate in names}
    for kind, names in (("site", plates), ("plate", outer)):
        for name in names:
            if name in DIMS or events.fullmatch(name):
                raise ValueError(
                    f"the {kind} {name!r} has the name of a dimension of ArviZ's arrays ('chain', 'draw', 'datum', or "
                    "a site's name with _dim after it), which cannot be told apart: rename it"
                )


def as_integers(values: np.ndarray) -> np.ndarray:
    """Return whole numbers as integers, which ArviZ takes for discrete; others, and what has missing values, as is."""
    if values.dtype.kind != "f" or not (np.isfinite(values).all() and (values == np.round(values)).all()):
        return values
    return values.astype(np.int64 if np.abs(values).max(initial=0) > np.iinfo(np.int32).max else np.int32)


@importing()
def labelled(variables: dict[str, Any], index: np.ndarray | None = None) -> xr.Dataset:
    """Return variables ``{name: (dims, values)}`` as a dataset whose dimensions are numbered from 0.

    Args:
        variables: variables by name.
        index: numbers of the observations within the whole set; None numbers them from 0.
    """
    dataset = xr.Dataset(variables, attrs=_attributes())
    coords = {str(dim): np.arange(size) for dim, size in dataset.sizes.items()}
    return dataset.assign_coords({**coords, **({"datum": index} if index is not None and "datum" in coords else {})})


def own_dims(name: str, ndim: int, plates: list[str]) -> tuple[str, ...]:
    """Return the names of a site's dimensions: the one of the observations, and the ``ndim`` dimensions after it."""
    own = ndim - len(plates)
    events = [f"{name}_dim"] if own == 1 else [f"{name}_dim_{i}" for i in range(own)]
    return ("datum", *plates, *events)


def _attributes() -> dict[str, str]:
    return {
        "inference_library": "pyro",
        "inference_library_version": str(pyro.__version__),
        "creation_library": "pyrovae",
        "creation_library_version": __version__,
    }


@importing()
def assemble(groups: dict[str, xr.Dataset]) -> Any:
    """Return groups as an object of the installed version of ArviZ."""
    return xr.DataTree.from_dict(groups) if ARVIZ_1 else az.InferenceData(**groups)
