"""Ranks as an ArviZ object, for its own plots of probability integral transforms."""

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovae.arviz.labels import assemble, labelled, refuse_names

if TYPE_CHECKING:
    from pyrovae.diagnostics.calibration.ranks import Ranks


def ranks_to_arviz(ranks: "Ranks") -> Any:
    """Return probability integral transforms in a group ``prior_sbc``, where ``az.plot_ecdf_pit`` (1.x) looks for them.

    Args:
        ranks: ranks from :func:`pyrovae.sbc` (``.latents``, ``.everything``) or :func:`pyrovae.pit`.

    Returns:
        ``arviz.InferenceData`` with ArviZ 0.x, ``xarray.DataTree`` with 1.x. Coordinates ``z[0]``, ``z[1]``, ... make
        up one variable ``z`` with the dimensions ``chain`` (of length 1), ``draw`` (one per simulation or observation)
        and ``z_dim``. A name without a number is a variable of its own.

    Raises:
        ValueError: for a site that has the name of a dimension.
    """
    columns: dict[str, list[np.ndarray]] = {}
    for name, column in zip(ranks.names, ranks.pit.T.numpy(), strict=True):
        columns.setdefault(re.sub(r"\[.*\]$", "", name), []).append(column)
    refuse_names({name: [] for name in columns})
    variables: dict[str, Any] = {}
    for name, parts in columns.items():
        alone = len(parts) == 1
        dims = ("chain", "draw") if alone else ("chain", "draw", f"{name}_dim")
        variables[name] = dims, (parts[0] if alone else np.stack(parts, axis=1))[None]
    return assemble({"prior_sbc": labelled(variables)})
