"""The command line ``pyrovae describe | fit | ...``, with options from the constructors' own signatures."""

import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from jsonargparse import Namespace

from pyrovae.app.folders import CONFIG, absolute, prepare
from pyrovae.app.parser import (
    Parser,
    closed_list,
    configuration_text,
    import_permitted,
    make_parser,
    permitted_modules,
    plain,
    with_tables,
)
from pyrovae.app.parts import made_by_options
from pyrovae.common.interrupts import is_interrupt
from pyrovae.diagnostics.diagnostic import diagnostics
from pyrovae.programs.isolation import importing
from pyrovae.saving import RunFolder
from pyrovae.training import FitError, FitInterrupted
from pyrovae.training.group import Group, launched

_SPELLINGS = {  # of the arguments that messages name: in Python, and as an option
    "or resume=False": "or --overwrite true",
    "resume=True": "--resume true",
}

_COMMANDS = ("describe", "fit", "evaluate", "compare", "posterior", "sample", "impute", "score", "list")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit status.

    Bad input gives one sentence on standard error and status 2. A fit that had to stop gives status 1. A signal gives
    status 128 plus its number, after saving.
    """
    try:
        with warnings_in_one_line():
            return _run(sys.argv[1:] if arguments is None else arguments)
    except FitInterrupted as interruption:
        print(f"pyrovae: {interruption}".replace("resume=True", "--resume true"), file=sys.stderr)
        return 128 + interruption.signum
    except KeyboardInterrupt:
        print("pyrovae: interrupted", file=sys.stderr)
        return 130
    except FitError as error:
        print(f"pyrovae: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of the output has closed it
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError) as error:
        if is_interrupt(error):
            print("pyrovae: interrupted", file=sys.stderr)
            return 130
        text = plain(str(error))
        for python, option in _SPELLINGS.items():
            text = text.replace(python, option)
        print(f"pyrovae: error: {text}", file=sys.stderr)
        return 2


@contextlib.contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Print warnings inside the block as one line each, without the place in the source that they come from."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"pyrovae: warning: {' '.join(str(message).split())}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def _run(arguments: Sequence[str]) -> int:
    permitted, arguments = permitted_modules(with_tables(arguments))
    with closed_list(permitted):
        for name in permitted:
            import_permitted(name)
        named = arguments[:1] if arguments and arguments[0] in _COMMANDS and arguments[0] != "list" else _COMMANDS
        commands = {name: _imported(name) for name in named}
        parser, parsers = make_parser(commands)
        options = parser.parse_args(arguments)
        command = options.command
        act = commands[command]
        if command == "list":
            act()
        else:
            with made_by_options():
                instances = parsers[command].instantiate(options[command])
            values = _values(command, vars(instances))
            if command in {"fit", "compare"}:
                _run_into_folder(act, command, options[command], values, parsers[command])
            else:
                _alone(act, command, values)
        sys.stdout.flush()
    return 0


def _imported(command: str) -> Callable[..., Any]:
    """Return a command's function; only the command that is named is imported, as comparisons draw figures."""
    with importing():
        module = importlib.import_module(f"pyrovae.app.{command}_command")
    act: Callable[..., Any] = getattr(module, f"{command}_command")
    return act


def _values(command: str, instances: Mapping[str, Any]) -> dict[str, Any]:
    """Return a command's arguments; the diagnostics' own options are in ``sizes``."""
    values = {name: v for name, v in instances.items() if name not in {"config", "overwrite", "allow_module"}}
    if command != "compare":
        return values
    own = {diagnostic.option for diagnostic in diagnostics().values()}
    return {**{k: v for k, v in values.items() if k not in own}, "sizes": {k: values[k] for k in own}}


def _alone(act: Callable[..., Any], command: str, values: dict[str, Any]) -> None:
    """Run a command that makes no run; it has no use for several processes."""
    with launched() as rank:
        if rank:
            raise ValueError(f"{command} runs in one process: start it without torchrun")
        act(**values)


def _run_into_folder(
    act: Callable[..., Any], command: str, options: Namespace, values: dict[str, Any], parser: Parser
) -> None:
    """Run a command whose results are in a folder, together with the configuration that repeats it."""
    with launched() as rank, ExitStack() as stack:
        if rank and command != "fit":
            raise ValueError(f"{command} runs in one process: start it without torchrun")
        folder = None
        with Group().together():
            if not rank:
                folder = prepare(options, values)
                stack.enter_context(folder.locked())
                config = configuration_text(absolute(options), parser)
                record = {"data": values["data"].fingerprint(), "seed": values["seed"]}
                if options.overwrite and folder.exists:  # the old run stays until this one can begin
                    folder.begin(instead={**record, "config": config})
                else:
                    folder.begin(**record)
                    if not options.resume or not (folder.path / CONFIG).exists():
                        folder.write(CONFIG, config)
        settings = act(**values)
        if folder is not None:  # a resumed run's new settings, once they have taken effect
            for name, value in settings.items():
                options[name] = value
            RunFolder(folder.path).write(CONFIG, configuration_text(absolute(options), parser))
