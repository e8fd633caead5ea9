"""The trainable parameters of a pair, wherever its programs declare them."""

import warnings
from dataclasses import replace

import torch
from torch import Tensor, nn

from pyrovae.data import Data
from pyrovae.internals.pyro import leaf_of
from pyrovae.programs.isolation import modes
from pyrovae.programs.layout import Layout
from pyrovae.programs.pair import Pair
from pyrovae.programs.types import Trace
from pyrovae.training.tensors import BARE

Params = dict[str, Tensor]


def first_traces(pair: Pair, data: Data, layout: Layout) -> tuple[Trace, Trace]:
    """Run the pair on the batch that its layout was read from, and return both traces, model first.

    The run leaves no statistics behind.
    """
    batch = data.numbered(assumed=True).batch(slice(0, layout.num_data))
    with modes(pair.all_modules, training=False), torch.no_grad():
        return pair.numbered(replace(layout, summed=())).traces(batch)


def find_params(
    pair: Pair, data: Data, layout: Layout, traces: tuple[Trace, Trace] | None = None
) -> tuple[Params, dict[str, Tensor]]:
    """Return the pair's trainable parameters by name, and those among them that belong to no module.

    These are the parameters of the modules that were passed as model or guide, and all parameters that the programs
    register with ``pyro.module`` or declare with ``pyro.param``.
    """
    owned = {id(p): f"{name}/{key}" for name, module in pair.modules.items() for key, p in module.named_parameters()}
    params: Params = {}
    bare: dict[str, Tensor] = {}
    for program in (pair.model, pair.guide):
        if isinstance(program, nn.Module):
            params.update({owned[id(p)]: p for p in program.parameters() if p.requires_grad})
    for trace in traces or first_traces(pair, data, layout):
        for name, site in trace.nodes.items():
            if site["type"] != "param":
                continue
            leaf = leaf_of(site["value"])
            if id(leaf) not in owned:
                if bare.setdefault(name, leaf) is not leaf:
                    raise ValueError(f"two parameters are named {name!r}: rename one of them")
                params[f"{BARE}/{name}"] = leaf
            elif leaf.requires_grad:
                params[owned[id(leaf)]] = leaf
    _warn_of_untrained(pair, params)
    return params, bare


def _warn_of_untrained(pair: Pair, params: Params) -> None:
    trained = {id(p) for p in params.values()}
    for name, module in pair.modules.items():
        own = [p for p in module.parameters() if p.requires_grad]
        if own and not any(id(p) in trained for p in own):
            warnings.warn(
                f"the parameters of {name!r}, a {type(module).__name__}, are not trained: register it with "
                "pyro.module, or freeze it with requires_grad_(False)",
                stacklevel=2,
            )
