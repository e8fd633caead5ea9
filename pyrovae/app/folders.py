"""The folder of a run: what it may hold before the run begins, and what an earlier run has left."""

import contextlib
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from pyrovae.app.autoencoder import GuideMaker, ObjectiveMaker
from pyrovae.common.checks import at_least
from pyrovae.data import Data, data_root
from pyrovae.diagnostics.diagnostic import diagnostics
from pyrovae.programs.streams import check_seed
from pyrovae.saving import RunFolder
from pyrovae.training.storage import holds_fit, remove

CONFIG = "config.yaml"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. +-]*")  # of a strategy, and of its folder


def prepare(given: Namespace, values: dict[str, Any]) -> RunFolder:
    """See that a run may write into its folder, and that no name of a strategy leads out of it.

    Raises:
        ValueError: in one sentence, before anything is made or removed.
    """
    if given.resume and given.overwrite:
        raise ValueError("give resume or overwrite, not both")
    folder = RunFolder(given.out)
    begun = any(holds_fit(folder.path / name) for name in folder.fits) or {*folder.files} - {CONFIG}
    if begun and not given.resume and not given.overwrite:
        raise ValueError(f"{given.out!r} already holds a run: pass --resume true, --overwrite true or another --out")
    files, fits = [CONFIG, "history.csv"], ["fit"]
    if "guides" in values:
        chosen = strategies(values["guides"], values["objectives"])
        at_least("num_seeds", values["num_seeds"], 1)
        fits = [one for name in chosen for one in run_names(name, values["num_seeds"])]
        files = [CONFIG, "table.csv", "arviz_compare.csv", "report.html", *(f"{one}/per_datum.csv" for one in fits)]
        files += [f"{name}.csv" for name in diagnostics()]
        files += [f"{run_names(name, values['num_seeds'])[0]}.nc" for name in chosen]
        _check_names([*fits, *chosen], [*files, "figures"])
    check_seed(values["seed"])
    folder.check([*files, *(folder.files if given.overwrite else ())], inputs(values["data"]))
    for name, known in {"data": values["data"].fingerprint(), "seed": values["seed"]}.items() if begun else ():
        if given.resume and folder.record.get(name) != known:
            what = "other data" if name == "data" else f"seed {folder.record.get(name)}"
            raise ValueError(
                f"the run in {given.out!r} was made with {what}, got {known}: use the same, or --overwrite true, or "
                "another --out"
            )
    for one in fits:
        if (folder.path / one).is_symlink() or (holds_fit(folder.path / one) and one not in folder.fits):
            raise ValueError(
                f"{str(folder.path / one)!r} holds a fit that is not of this run: name another folder for the results"
            )
    return folder


def _check_names(names: Sequence[str], taken: Sequence[str]) -> None:
    reserved, seen = {name.lower() for name in taken}, dict[str, str]()
    for name in dict.fromkeys(names):
        if not _NAME.fullmatch(name) or name.endswith((".", " ")) or name.lower() in reserved:
            raise ValueError(
                f"a strategy cannot be named {name!r}, of which a folder is made: use letters, digits, spaces and "
                "'_-+.', and none of the names of a run's own files"
            )
        if seen.setdefault(name.lower(), name) != name:
            raise ValueError(f"strategies {seen[name.lower()]!r} and {name!r} would share a folder: rename one of them")


def clear(folder: RunFolder) -> None:
    """Remove what an earlier run has left, now that it is known that this one can begin."""
    instead, fits = folder.record.pop("instead"), folder.fits
    for name in fits:
        remove(folder.path / name)
    folder.clear()
    for name in fits:
        with contextlib.suppress(OSError):  # the user's own files may be there
            (folder.path / name).rmdir()
    described = instead.pop("config")
    folder.note(**instead)
    folder.write(CONFIG, described)


def inputs(data: Data) -> list[Path]:
    """Return the files that a data set was read from."""
    return [path for path in [getattr(data, "path", None)] if path is not None]


def absolute(given: Namespace) -> Namespace:
    """Return a run's options with the paths of its data made absolute, so that they hold wherever it is read."""
    given = given.clone()
    for name, default in {"path": None, "root": data_root(None)}.items():
        key = f"data.init_args.{name}"
        if key in given and (given[key] or default) is not None:
            given[key] = str(Path(str(given[key] or default)).resolve())
    return given


def strategies(
    guides: dict[str, GuideMaker], objectives: dict[str, ObjectiveMaker]
) -> dict[str, tuple[GuideMaker, ObjectiveMaker]]:
    """Return every guide with every objective, by name."""
    pairs = itertools.product(guides.items(), objectives.items())
    return {(g if len(objectives) == 1 else f"{g}-{o}"): (guide, objective) for (g, guide), (o, objective) in pairs}


def run_names(name: str, num_seeds: int) -> list[str]:
    """Return the folder of each of a strategy's fits."""
    return [name] if num_seeds == 1 else [f"{name}-seed{k}" for k in range(num_seeds)]
