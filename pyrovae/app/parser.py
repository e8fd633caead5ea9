"""Options read from the constructors' own signatures; what an option may name is a closed list."""

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, Namespace, _common, set_parsing_settings
from torch import nn

import pyrovae
from pyrovae.diagnostics.diagnostic import diagnostics

# What a value may name, beside what --allow-module permits; all else is refused before it is imported.
_ALLOWED = (
    "pyrovae.data", "pyrovae.guides", "pyrovae.likelihoods", "pyrovae.models", "pyrovae.nn", "pyrovae.objectives",
    "pyrovae.priors", "pyro.infer.trace_elbo", "pyro.infer.tracegraph_elbo", "pyro.infer.traceenum_elbo",
    "pyro.infer.trace_mean_field_elbo", "pyro.infer.renyi_elbo", "torch.nn.modules.activation",
)  # fmt: skip
_INFER = ("Trace_ELBO", "TraceGraph_ELBO", "TraceEnum_ELBO", "TraceMeanField_ELBO", "RenyiELBO")
_DENIED = ("*", "pyrovae.data.stream", "pyrovae.data.Stream")  # a Stream is of a Dataset, which no option can give
ALLOW = "--allow_module"


class Parser(ArgumentParser):
    """Says what is wrong in one sentence."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the sentence and exit with status 2."""
        text = " ".join(message.split())
        text = re.sub(
            r"Expected a dot import path string: (\S+)",
            r"\1 is neither a name that fits here (`pyrovae list` shows all, --help those that fit) nor an import path",
            text,
        )
        text = re.sub(
            r"Importing '([^']+)' is not allowed, denied by.*?to allow it\.",
            rf"\1 is not of the catalogues (`pyrovae list`): of a module of your own, which you trust, add {ALLOW} and "
            "its name",
            text,
        )
        print(
            f"pyrovae: error: {text} (for what is accepted: {self.prog.replace(' [options]', '')} --help)",
            file=sys.stderr,
        )
        raise SystemExit(2)


@contextmanager
def closed_list(permitted: Sequence[str]) -> Iterator[None]:
    """Let values name, inside the block, what the catalogues hold and modules that the user permits, nothing else.

    Raises:
        ValueError: for a module that is no name.
    """
    for name in permitted:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"{ALLOW} takes the name of a module, such as my_package.my_module, got {name!r}")
    before = dict(_common.parsing_settings)
    activations = [f"torch.nn.{name}" for name in nn.modules.activation.__all__]
    objectives = [f"pyro.infer.{name}" for name in _INFER]
    allowed = [*_ALLOWED, *objectives, *activations, *permitted]
    try:
        set_parsing_settings(import_path_denylist=list(_DENIED), import_path_allowlist=allowed)
        yield
    finally:
        _common.parsing_settings.clear()
        _common.parsing_settings.update(before)


def permitted_modules(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the modules that ``--allow_module`` names, and the other arguments: no file can permit a module."""
    modules: list[str] = []
    others: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name.replace("-", "_") != ALLOW.replace("-", "_"):
            others.append(argument)
            continue
        modules.append(value if equals else next(rest, ""))
    return modules, others


def make_parser(commands: Mapping[str, Callable[..., Any]]) -> tuple[Parser, dict[str, Parser]]:
    """Return the parser of the command line, and that of each command."""
    parser = Parser(prog="pyrovae", description=pyrovae.__doc__, version=pyrovae.__version__)
    added = parser.add_subcommands(dest="command")
    parsers = {}
    for name, function in commands.items():
        summary = first_sentence(function)
        parsers[name] = Parser(prog=f"pyrovae {name}", description=summary)
        if name != "list":
            parsers[name].add_argument("--config", action="config", help="YAML file with any of the options")
            parsers[name].add_function_arguments(function, as_positional=name == "evaluate", skip={"sizes"})
            parsers[name].add_argument(
                ALLOW, help="a module of yours that options may name; may be given several times, and by no file"
            )
        if name == "compare":
            for option, (default, text) in _options_of_diagnostics().items():
                parsers[name].add_argument(f"--{option}", type=int, default=default, help=text)
        if name in {"fit", "compare"}:
            text = "replace what an earlier run in the same folder left."
            parsers[name].add_argument("--overwrite", type=bool, default=False, help=text)
        added.add_subcommand(name, parsers[name], help=summary)
    return parser, parsers


def _options_of_diagnostics() -> dict[str, tuple[int, str]]:
    """Return the options that diagnostics have of their own: the default and the text of the first that has each."""
    options: dict[str, tuple[int, str]] = {}
    for one in diagnostics().values():
        options.setdefault(one.option, (one.default, one.help or f"of {one.title}; 0 leaves it out."))
    return options


def import_permitted(name: str) -> None:
    """Import a module that the user permits, so that its diagnostics are known; the folder of the call is looked in.

    Raises:
        ValueError: when it cannot be imported.
    """
    before = list(sys.path)
    sys.path.insert(0, os.getcwd())
    try:
        importlib.import_module(name)
    except Exception as error:  # of whatever kind: it is the user's own
        raise ValueError(f"{ALLOW} {name}: it cannot be imported ({type(error).__name__}: {error})") from error
    finally:
        sys.path[:] = before


def configuration_text(given: Namespace, parser: ArgumentParser) -> str:
    """Return a run's configuration as YAML, without what was said for this time only."""
    described = yaml.safe_load(parser.dump(given, skip_unset=False))
    for name in ("config", ALLOW.lstrip("-")):
        described.pop(name, None)
    for name in ("resume", "overwrite"):
        described.pop(name, None)
    return yaml.safe_dump(described, sort_keys=False)


def first_sentence(documented: Any) -> str:
    """Return the first sentence of a docstring."""
    paragraph = " ".join((inspect.getdoc(documented) or "").split("\n\n")[0].split())
    return re.split(r"(?<=\.)\s", paragraph)[0].removesuffix("::")
