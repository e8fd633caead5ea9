"""What ArviZ's power-scaling takes: the posterior of one observation, or of what all share, number by number."""

from typing import Any

import numpy as np
import xarray as xr

from pyrovae.arviz.labels import assemble, labelled
from pyrovae.common.checks import shown
from pyrovae.programs.isolation import importing

GROUPS = ("posterior", "log_prior", "log_likelihood")
DRAWS = ("chain", "draw")


@importing()
def for_psense(inference: Any, observation: Any = None) -> Any:
    """Return an object for ``az.psense_summary`` and ``az.plot_psense_dist`` of ArviZ 1.x.

    Each coordinate of the latents is a variable of its own; the log likelihood is one more, as a summary of the fit
    (and because ArviZ 1.3 does not plot a posterior of one variable).

    Args:
        inference: an object with the groups posterior, log_prior and log_likelihood: of
            ``pyrovae.to_arviz(..., groups=("posterior", "log_prior", "log_likelihood"), corrected=True)``, of
            :func:`pyrovae.globals_to_arviz`, or of :func:`pyrovae.from_pyro_svi` with both groups.
        observation: name of the observation; None for latents that all observations share.

    Raises:
        ValueError: for a group that is missing, or an observation that the object does not have.

    Example:
        >>> from pyrovae import guides, models, to_arviz
        >>> import torch
        >>> model, groups = models.LinearGaussian(2, 5), ("posterior", "log_prior", "log_likelihood")
        >>> found = to_arviz(model, guides.Exact(model), torch.zeros(7, 5), num_draws=9, groups=groups, progress=False)
        >>> list(for_psense(found, 3).posterior.data_vars)
        ['z[0]', 'z[1]', 'log likelihood']
    """
    parts = {group: _group(inference, group) for group in GROUPS}
    if observation is not None:
        index = parts["posterior"].coords.get("datum")
        if index is None or observation not in index.values:
            known = "no observations" if index is None else f"{index.size}, such as {index.values[0]}"
            raise ValueError(f"there is no observation {shown(observation)} in the object: it has {known}")
        parts = {group: dataset.sel(datum=observation) for group, dataset in parts.items()}
    elif "datum" in parts["posterior"].dims:
        raise ValueError("the latents are those of single observations: say of which, observation=0")
    variables: dict[str, Any] = {}
    for name, values in parts["posterior"].data_vars.items():
        own = np.asarray(values.transpose(*DRAWS, ...))
        flat = own.reshape(*own.shape[:2], -1)
        for k, place in enumerate(np.ndindex(*own.shape[2:])):
            label = f"{name}[{', '.join(map(str, place))}]" if place else str(name)
            variables[label] = DRAWS, flat[..., k]
    prior, likelihood = (_total(parts[group]) for group in GROUPS[1:])
    variables["log likelihood"] = DRAWS, likelihood
    groups = {
        "posterior": variables, "log_prior": {"log_prior": (DRAWS, prior)},
        "log_likelihood": {"log_likelihood": (DRAWS, likelihood)},
    }  # fmt: skip
    return assemble({name: labelled(group) for name, group in groups.items()})


def _group(inference: Any, name: str) -> xr.Dataset:
    group = getattr(inference, name, None)
    if group is None:
        raise ValueError(f"the object has no group {name!r}: make it with groups={GROUPS}, or log_likelihood=True")
    dataset: xr.Dataset = group.to_dataset() if hasattr(group, "to_dataset") else group
    return dataset


def _total(dataset: xr.Dataset) -> np.ndarray:
    """Return the sum of all variables over everything but the draws, ``[chain, draw]``."""
    sums = [values.sum([d for d in values.dims if d not in DRAWS]) for values in dataset.data_vars.values()]
    total: np.ndarray = np.asarray(sum(sums[1:], sums[0]).transpose(*DRAWS))
    return total
