"""Options read from the constructors' own signatures; the names that an option may take are a closed list."""

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, Namespace, _common, set_parsing_settings
from torch import nn

import pyrovae
from pyrovae.diagnostics.diagnostic import diagnostics
from pyrovae.tables import is_table_file

# Modules that a value may name, beside those that --allow-module permits; all others are refused before any import.
_ALLOWED = (
    "pyrovae.app.models", "pyrovae.data", "pyrovae.guides", "pyrovae.likelihoods", "pyrovae.models", "pyrovae.nn",
    "pyrovae.objectives", "pyrovae.priors", "pyro.infer.trace_elbo", "pyro.infer.tracegraph_elbo",
    "pyro.infer.traceenum_elbo", "pyro.infer.trace_mean_field_elbo", "pyro.infer.renyi_elbo",
    "torch.nn.modules.activation", "torch.optim.lr_scheduler",
)  # fmt: skip
_INFER = ("Trace_ELBO", "TraceGraph_ELBO", "TraceEnum_ELBO", "TraceMeanField_ELBO", "RenyiELBO")
_DENIED = ("*", "pyrovae.data.stream", "pyrovae.data.Stream")  # a Stream takes a Dataset, which no option can give
OF_A_RUN = ("evaluate", "posterior", "sample", "impute", "score")  # commands that ask about a saved fit
ALLOW = "--allow_module"


class Parser(ArgumentParser):
    """A parser that reports an error in one sentence."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the sentence and exit with status 2."""
        text = plain(message)
        text = re.sub(
            r"Expected a dot import path string: (\S+)",
            r"\1 is neither a name that fits here (`pyrovae list` shows all, --help those that fit) nor an import path",
            text,
        )
        text = re.sub(
            r"Importing '([^']+)' is not allowed, denied by.*?to allow it\.",
            r"\1 is not in the catalogues (`pyrovae list`): to use a module of your own that you trust, add "
            f"{ALLOW} and its name",
            text,
        )
        print(
            f"pyrovae: error: {text} (for what is accepted: {self.prog.replace(' [options]', '')} --help)",
            file=sys.stderr,
        )
        raise SystemExit(2)


def plain(message: str) -> str:
    """Return a message in one line; of a value that may be one part or nothing, what the part says is wrong."""
    text = " ".join(message.split())
    found = re.search(
        r"Does not validate against any of the Union subtypes Subtypes: .*? Errors: - (.*?)(?: - Expected a <class "
        r"'NoneType'>)? Given value type:",
        text,
    )
    return text if found is None else text[: found.start()] + found[1]


@contextmanager
def closed_list(permitted: Sequence[str]) -> Iterator[None]:
    """Let values name only members of the catalogues and of modules that the user permits, inside the block.

    Raises:
        ValueError: for a module whose name is not valid.
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
    """Return the modules that ``--allow_module`` names, and the other arguments; no file can permit a module."""
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


def with_tables(arguments: Sequence[str]) -> list[str]:
    """Return arguments in which ``--data survey.csv`` and ``--data pictures/`` are spelled out as a Table or a Folder.

    A command about a run reads a table as the fit's own was, unless there are options of the data's own.
    """
    as_fitted = bool(arguments) and arguments[0] in OF_A_RUN and not any(a.startswith("--data.") for a in arguments)
    spelled: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name != "--data":
            spelled.append(argument)
            continue
        value = value if equals else next(rest, "")
        if is_table_file(value):
            spelled += [f"--table={value}"] if as_fitted else ["--data=Table", f"--data.source={value}"]
        elif value and Path(value).is_dir():
            spelled += ["--data=Folder", f"--data.path={value}"]
        else:
            spelled += [argument] if equals else [argument, value] if value else [argument]
    return spelled


def make_parser(commands: Mapping[str, Callable[..., Any]]) -> tuple[Parser, dict[str, Parser]]:
    """Return the parser of the command line, and the parser of each command."""
    parser = Parser(prog="pyrovae", description=pyrovae.__doc__, version=pyrovae.__version__)
    subcommands = parser.add_subcommands(dest="command")
    parsers = {}
    for name, function in commands.items():
        summary = first_sentence(function)
        parsers[name] = Parser(prog=f"pyrovae {name}", description=summary)
        if name != "list":
            parsers[name].add_argument("--config", action="config", help="YAML file with any of the options")
            has_positional = name in {"describe", *OF_A_RUN}
            parsers[name].add_function_arguments(function, as_positional=has_positional, skip={"sizes"})
            parsers[name].add_argument(
                ALLOW, help="a module of yours that options may name; may be given several times, but not in a file"
            )
        if name == "compare":
            taken = {*inspect.signature(function).parameters, "config", "overwrite", ALLOW.lstrip("-")}
            for option, (default, help_text) in _options_of_diagnostics(taken).items():
                parsers[name].add_argument(f"--{option}", type=int, default=default, help=help_text)
        if name in {"fit", "compare"}:
            help_text = "replace what an earlier run in the same folder left."
            parsers[name].add_argument("--overwrite", type=bool, default=False, help=help_text)
        subcommands.add_subcommand(name, parsers[name], help=summary)
    return parser, parsers


def _options_of_diagnostics(taken: Set[str]) -> dict[str, tuple[int, str]]:
    """Return the diagnostics' own options: the default and the help of the first diagnostic that has each.

    Raises:
        ValueError: for an option that is no name of an option, or is one of the command's own.
    """
    options: dict[str, tuple[int, str]] = {}
    for one in diagnostics().values():
        if not one.option.isidentifier() or one.option in taken:
            what = "is one of the command's own" if one.option in taken else "is not made of letters, digits and _"
            raise ValueError(f"the option {one.option!r} of the diagnostic {one.name!r} {what}: give it another name")
        options.setdefault(one.option, (one.default, one.help or f"number for {one.title}; 0 leaves it out."))
    return options


def import_permitted(name: str) -> None:
    """Import a module that the user permits, so that its diagnostics are known; the working folder is searched first.

    Raises:
        ValueError: when the module cannot be imported.
    """
    before = list(sys.path)
    sys.path.insert(0, os.getcwd())
    try:
        importlib.import_module(name)
    except Exception as error:  # of any kind: the module is the user's own
        raise ValueError(f"{ALLOW} {name}: it cannot be imported ({type(error).__name__}: {error})") from error
    finally:
        sys.path[:] = before


def configuration_text(options: Namespace, parser: ArgumentParser) -> str:
    """Return a run's configuration as YAML, without the options that are for this call only."""
    config = yaml.safe_load(parser.dump(options, skip_unset=False))
    for name in ("config", ALLOW.lstrip("-")):
        config.pop(name, None)
    for name in ("resume", "overwrite"):
        config.pop(name, None)
    return yaml.safe_dump(config, sort_keys=False)


def first_sentence(documented: Any) -> str:
    """Return the first sentence of a docstring."""
    paragraph = " ".join((inspect.getdoc(documented) or "").split("\n\n")[0].split())
    return re.split(r"(?<=\.)\s", paragraph)[0].removesuffix("::")
