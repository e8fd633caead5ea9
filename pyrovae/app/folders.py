"""The folder of a run: what it may hold before the run begins, and what an earlier run left there."""

import contextlib
import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from pyrovae.app.parts import GuideMaker, ObjectiveMaker
from pyrovae.common.checks import at_least
from pyrovae.data import Data, data_root
from pyrovae.diagnostics.diagnostic import diagnostics
from pyrovae.programs.streams import check_seed
from pyrovae.saving import RunFolder
from pyrovae.training.storage import holds_fit, remove

CONFIG = "config.yaml"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. +-]*")  # of a strategy, and of its folder


def prepare(options: Namespace, values: dict[str, Any]) -> RunFolder:
    """Check that a run may write into its folder, and that no strategy's name leads out of it.

    Raises:
        ValueError: in one sentence, before any file is made or removed.
    """
    if options.resume and options.overwrite:
        raise ValueError("give resume or overwrite, not both")
    folder = RunFolder(options.out)
    begun = any(holds_fit(folder.path / name) for name in folder.fits) or {*folder.files} - {CONFIG}
    if begun and not options.resume and not options.overwrite:
        raise ValueError(f"{options.out!r} already holds a run: pass --resume true, --overwrite true or another --out")
    files, fits = [CONFIG, "history.csv"], ["fit"]
    if "guides" in values:
        makers = strategies(values["guides"], values["objectives"])
        at_least("num_seeds", values["num_seeds"], 1)
        fits = [fit for name in makers for fit in run_names(name, values["num_seeds"], values["split"].num_folds)]
        files = [
            CONFIG,
            "table.csv",
            "effects.csv",
            "arviz_compare.csv",
            "per_datum.csv",
            "report.html",
            *(f"{fit}/per_datum.csv" for fit in fits),
        ]
        files += [f"{name}.csv" for name in diagnostics()]
        if not values["split"].num_folds:
            files += [f"{run_names(name, values['num_seeds'])[0]}.nc" for name in makers]
        _check_names([*fits, *makers], [*files, "figures"])
    check_seed(values["seed"])
    folder.check([*files, *(folder.files if options.overwrite else ())], inputs(values["data"]))
    for name, value in {"data": values["data"].fingerprint(), "seed": values["seed"]}.items() if begun else ():
        if options.resume and folder.record.get(name) != value:
            what = "other data" if name == "data" else f"seed {folder.record.get(name)}"
            raise ValueError(
                f"the run in {options.out!r} was made with {what}, got {value}: use the same, or --overwrite true, or "
                "another --out"
            )
    for fit in fits:
        if (folder.path / fit).is_symlink() or (holds_fit(folder.path / fit) and fit not in folder.fits):
            raise ValueError(
                f"{str(folder.path / fit)!r} holds a fit that is not of this run: name another folder for the results"
            )
    return folder


def _check_names(names: Sequence[str], file_names: Sequence[str]) -> None:
    reserved, originals = {name.lower() for name in file_names}, dict[str, str]()
    for name in dict.fromkeys(names):
        if not _NAME.fullmatch(name) or name.endswith((".", " ")) or name.lower() in reserved:
            raise ValueError(
                f"a strategy cannot be named {name!r}, as its folder would have that name: use letters, digits, "
                "spaces and '_-+.', and none of the names of a run's own files"
            )
        if originals.setdefault(name.lower(), name) != name:
            raise ValueError(
                f"strategies {originals[name.lower()]!r} and {name!r} would share a folder: rename one of them"
            )


def clear(folder: RunFolder) -> None:
    """Remove what an earlier run left, once it is known that this run can begin."""
    instead, fits = folder.record.pop("instead"), folder.fits
    for name in fits:
        remove(folder.path / name)
    folder.clear()
    for name in fits:
        with contextlib.suppress(OSError):  # the user's own files may be there
            (folder.path / name).rmdir()
    config = instead.pop("config")
    folder.note(**instead)
    folder.write(CONFIG, config)


def inputs(data: Data) -> list[Path]:
    """Return the files that a data set was read from."""
    return [path for path in [getattr(data, "path", None)] if path is not None]


def absolute(options: Namespace) -> Namespace:
    """Return a run's options with absolute paths of its data, so that they hold in any working folder."""
    options = options.clone()
    for name, default in {"path": None, "source": None, "texts": None, "root": data_root(None)}.items():
        key = f"data.init_args.{name}"
        if key in options and (options[key] or default) is not None:
            options[key] = str(Path(str(options[key] or default)).resolve())
    return options


def strategies(
    guides: dict[str, GuideMaker], objectives: Mapping[str, ObjectiveMaker | None] | None
) -> dict[str, tuple[GuideMaker, Any]]:
    """Return every combination of a guide and an objective, by name; None stands for the model's own objective."""
    objectives = {"elbo": None} if objectives is None else objectives
    return {name: (guides[g], objectives[o]) for name, (g, o) in levels(guides, objectives).items()}


def levels(guides: Collection[str], objectives: Collection[str]) -> dict[str, tuple[str, str]]:
    """Return the names of the guide and the objective of every strategy, by the strategy's name."""
    pairs = itertools.product(guides, objectives)
    return {(g if len(objectives) == 1 else f"{g}-{o}"): (g, o) for g, o in pairs}


def run_names(name: str, num_seeds: int, num_folds: int = 0) -> list[str]:
    """Return the folder names of a strategy's fits, one per seed, or one per fold."""
    if num_folds:
        return [f"{name}-fold{k}" for k in range(num_folds)]
    return [name] if num_seeds == 1 else [f"{name}-seed{k}" for k in range(num_seeds)]
