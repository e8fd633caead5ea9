"""``pyrovae evaluate``."""

import json
import re
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from jsonargparse import ArgumentParser

import pyrovae
from pyrovae.app.fit_command import made_model
from pyrovae.app.folders import CONFIG, inputs
from pyrovae.app.models import VAE, ModelMaker, ModelOption, per_observation
from pyrovae.app.splits import ONE_SPLIT, Split
from pyrovae.common.checks import at_least
from pyrovae.data import Data, Splits, Table, as_data
from pyrovae.diagnostics.evidence.evaluate import evaluate
from pyrovae.importance.options import BATCH_SIZE
from pyrovae.importance.question import placed_data
from pyrovae.programs.pair import Pair
from pyrovae.saving import RunFolder
from pyrovae.tables import read_file
from pyrovae.training import Fit, load
from pyrovae.training.storage import holds_fit, settings_of


def evaluate_command(
    run: str,
    data: Data | None = None,
    table: str | None = None,
    out: str | None = None,
    num_particles: int = 1000,
    num_draws: int = 100,
    batch_size: int = BATCH_SIZE,
    compile: bool | Literal["auto"] = "auto",
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> None:
    """Evaluate a saved fit: log evidence, ELBO and k-hat per observation.

    Args:
        run: folder that `pyrovae fit` wrote, or one fit's folder of `pyrovae compare`.
        data: data set to evaluate on, whole, as new data; null means the test set of the run, whose file must be
            unchanged. The path of a table is short for --table.
        table: path of a table to evaluate on, whole, which is read as the fit's own was: separator, columns by name,
            codes, categories and scales.
        out: folder for a table with one row per observation and an ArviZ netCDF file; null only prints the summary.
        num_particles: number of importance samples per observation.
        num_draws: number of draws per observation in the netCDF file.
        batch_size: number of observations per call of the programs.
        compile: true compiles the log weights, false does not, auto does where it saves time.
        seed: seed of the particles.
        device: cpu, cuda, ...; null means CUDA where there is one.
        progress: show progress bars.
    """
    folder = Path(run)
    fitted = load(folder)
    target = None if out is None else RunFolder(out)
    if target is not None:
        files = [*([] if data is None else inputs(data)), *([] if table is None else [Path(table)])]
        target.check(["per_datum.csv", "posterior.nc"], [*files, folder / CONFIG])
    data_set = held_out(folder, fitted, data, table)
    pair = per_observation(fitted)
    options: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "device": device, "progress": progress}
    num_draws = at_least("num_draws", num_draws, 1)
    result = evaluate(*pair, data_set, num_particles=num_particles, compile=compile, **options)
    print(json.dumps(result.summary(), indent=1))
    if target is not None:
        with target.locked():
            target.begin()
            target.write_table("per_datum.csv", result.table(), index_label="datum")
            inference = pyrovae.to_arviz(*pair, data_set, num_draws=num_draws, num_particles=num_particles, **options)
            target.write("posterior.nc", as_netcdf(inference))
        print(f"wrote per_datum.csv and posterior.nc in {target.path}")


def held_out(run: Path, fitted: Fit, data: Data | None, table: str | None) -> Data:
    """Return the data in question: a table, read as the fit's own was, a data set, or the run's test data.

    Raises:
        ValueError: for data that cannot be read so, and where the run's data have changed.
    """
    if table is not None:
        return _maker(run).given(_new_table(run, table, fitted))
    if data is None:
        return _splits(run, fitted).test
    data_set = _maker(run).given(as_data(data, encoding=fitted.encoding))
    return data_set.with_moments(_splits(run, fitted).train.moments) if data.standardise else data_set


def _splits(run: Path, fitted: Fit) -> Splits:
    """Return the parts into which a run's data were split.

    Raises:
        ValueError: when no file says what the data were, or when they have changed.
    """
    folder = _run_folder(run)
    if folder is not None:
        settings, run_folder = yaml.safe_load((folder / CONFIG).read_text()), RunFolder(folder)
        if not run_folder.is_intact(CONFIG):
            raise ValueError(
                f"{str(folder / CONFIG)!r} is not as the run wrote it, so it is unknown which data the fit was "
                "trained on: restore the file, or name new data by --data"
            )
        data: Data = _instance("data", Data, settings["data"])
        if run_folder.record.get("data") != data.fingerprint():
            raise ValueError(
                f"the data that {str(folder / CONFIG)!r} names are not those of the run, so it is unknown which "
                "of them the fit was trained on: restore the file, or name new data by --data"
            )
        source = run / "fit" if holds_fit(run / "fit") else run
        split = _instance("split", Split, settings["split"]) if "split" in settings else ONE_SPLIT
        fold = re.search(r"-fold(\d+)$", source.name) if split.num_folds else None
        folds = split.of(data, run_folder.record["seed"])
        parts = _maker(run).split(folds[int(fold[1]) if fold else 0])
        train = placed_data(Pair(fitted.model, fitted.guide), parts.train, torch.device("cpu"))
        if settings_of(source).get("data") != train.fingerprint():
            raise ValueError(
                f"{str(source)!r} was not fitted to the data of {str(folder / CONFIG)!r}: name new data by --data"
            )
        return parts
    raise ValueError(f"{str(run)!r} has no {CONFIG} that says what its data were: name a run's folder, and --data")


def _new_table(run: Path, path: str, fitted: Fit) -> Table:
    """Return a file as a table that is read as the fit's own was.

    Raises:
        ValueError: for a fit to other data than a table, and for a file that cannot be read so.
    """
    if fitted.encoding is None:
        raise ValueError(
            f"{str(run)!r} was not fitted to a table, so it is unknown how {path!r} is to be read: use --data"
        )
    folder = _run_folder(run)
    settings = {} if folder is None else yaml.safe_load((folder / CONFIG).read_text()) or {}
    data = settings.get("data") or {}
    options = (data.get("init_args") or {}) if str(data.get("class_path", "")).endswith(".Table") else {}
    reading = {name: options[name] for name in ("separator", "decimal", "encoding", "sheet") if name in options}
    return Table.like(read_file(path, **reading), fitted.encoding, repr(path))


def _run_folder(run: Path) -> Path | None:
    return next((folder for folder in (run, run.parent) if (folder / CONFIG).exists()), None)


def _maker(run: Path) -> ModelMaker:
    """Return what made the model of a run."""
    folder = _run_folder(run)
    settings = {} if folder is None else yaml.safe_load((folder / CONFIG).read_text()) or {}
    return made_model(_instance("model", ModelOption, settings["model"])) if "model" in settings else VAE()


def _instance(name: str, kind: Any, setting: Any) -> Any:
    """Return what a setting of a configuration makes."""
    parser = ArgumentParser()
    parser.add_argument(f"--{name}", type=kind)
    return getattr(parser.instantiate(parser.parse_object({name: setting})), name)


def as_netcdf(inference: Any) -> bytes:
    """Return an ArviZ object as the content of a netCDF file."""
    from pyrovae.arviz.netcdf import netcdf  # its import takes a second, and list does not need it

    return netcdf(inference)
