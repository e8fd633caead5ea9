"""``pyrovae list``."""

import inspect
from typing import Any, get_args

from torch.distributions import Distribution

from pyrovae import data as data_catalogue
from pyrovae import guides as guide_catalogue
from pyrovae import likelihoods as likelihood_catalogue
from pyrovae import models as model_catalogue
from pyrovae import nn as nn_catalogue
from pyrovae import objectives as objective_catalogue
from pyrovae import priors as prior_catalogue
from pyrovae.app.models import MODELS
from pyrovae.app.parser import first_sentence
from pyrovae.data import Data
from pyrovae.diagnostics.diagnostic import diagnostics
from pyrovae.guides import Guide
from pyrovae.likelihoods import Likelihood
from pyrovae.nn import Network
from pyrovae.priors import Prior


def list_command() -> None:
    """List the catalogues: every name with a description; a star marks what only Python can make or use."""
    for name, catalogue in _CATALOGUES.items():
        print(f"{name}:")
        for member in catalogue.__all__:
            value = getattr(catalogue, member)
            if inspect.isclass(value) and not inspect.isabstract(value) and not _is_base(value):
                mark = " " if _is_made(name, member) or _is_for_options(name, value) else "*"
                print(f" {mark}{member:<22} {first_sentence(value)}{_goes_with(name, member)}")
    print("diagnostics:")
    for name, diagnostic in diagnostics().items():
        needs = f" (needs {', '.join(diagnostic.needs)})" if diagnostic.needs else ""
        print(f"  {name:<22} {first_sentence(type(diagnostic))}{needs}")
    print("* only in Python: it takes what no option can give")


_CATALOGUES: dict[str, Any] = {
    "models": model_catalogue,
    "guides": guide_catalogue,
    "priors": prior_catalogue,
    "likelihoods": likelihood_catalogue,
    "objectives": objective_catalogue,
    "nn": nn_catalogue,
    "data": data_catalogue,
}
_MADE_BY = {  # members that an option makes, or that are made by themselves
    "ClassConditional": "made by --model SemiSupervisedVAE", "SemiSupervisedELBO": "for --model SemiSupervisedVAE",
    "Clustered": "made by --model GaussianMixtureVAE", "WithGlobals": "made by --model BayesianVAE",
    "Hierarchical": "made by --model HierarchicalVAE", "Ladder": "made by --model HierarchicalVAE",
    "ConditionalNormal": "made by --model ConditionalVAE --model.learned_prior true", "Mixed": "made for tables",
    "Missing": "made where values are missing", "Observed": "made where values are missing",
    "SideBySide": "made for models that need it",
}  # fmt: skip
_SUPPLIED = {  # arguments without a default that the command line gives to members of a catalogue
    "guides": {"encoder", "latent_dim"}, "priors": {"latent_dim"},
    "likelihoods": set(), "objectives": set(), "nn": {"in_shape", "out_shape"}, "data": set(),
}  # fmt: skip


def _goes_with(catalogue: str, member: str) -> str:
    """Return what a member of a catalogue goes with."""
    made = next((maker for maker in MODELS if catalogue == "models" and maker.__name__ == member), None)
    if made is not None:
        return f" [guide: {made.guided}]"
    if (catalogue, member) == ("nn", "Table"):
        return " [made for tables]"
    return f" [{_MADE_BY[member]}]" if _is_made(catalogue, member) else ""


def _is_made(catalogue: str, member: str) -> bool:
    """Whether another option makes a member of a catalogue; a prior and a guide are both named Hierarchical."""
    return member in _MADE_BY and (catalogue, member) != ("priors", "Hierarchical")


def _is_for_options(catalogue: str, value: Any) -> bool:
    """Whether the command line can make a member of a catalogue, and has a use for it."""
    if value is data_catalogue.Stream:
        return False  # it needs a Dataset
    if value in {nn_catalogue.Table, data_catalogue.Table}:
        return True
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = [p for p in inspect.signature(value).parameters.values() if p.kind not in variadic]
    annotations = {p.name: p.annotation for p in parameters if p.default is p.empty}
    if catalogue == "models":
        return value.__name__ in {maker.__name__ for maker in MODELS}
    if not (_SUPPLIED[catalogue] if catalogue in {"guides", "nn"} else set()) <= {p.name for p in parameters}:
        return False
    plain = {name for name, kind in annotations.items() if {int, float, str, bool} & {kind, *get_args(kind)}}
    return annotations.keys() - plain <= _SUPPLIED[catalogue]


def _is_base(value: Any) -> bool:
    bases = {Guide, Prior, Likelihood, Network, Data, data_catalogue.Binarisation, data_catalogue.Splits}
    bases.add(data_catalogue.Field)
    return value in bases or issubclass(value, Distribution)
