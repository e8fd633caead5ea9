"""What harm does to files and fits: ``python -W ignore benchmarks/reliability.py`` writes ``docs/reliability.md``.

Every kind of file that a run reads back is flipped bit by bit and cut off, every kind of fit is killed and resumed, two
writers share a folder, and the disk is full at every write. An outcome is *equal* (the same to the bit as without the
harm), *refused* (one sentence, no traceback) or *wrong*; one that is wrong ends the script with status 1.
"""

import argparse
import contextlib
import errno
import gzip
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pandas as pd
import pyro
import torch
from sklearn.datasets import load_digits

import pyrovae
from pyrovae import data, guides, likelihoods, models, nn, objectives, priors
from pyrovae.app.commands import main as command
from pyrovae.saving import files

OUTCOMES = ("equal", "refused", "wrong")
TINY = ["--encoder.hidden", "[8]", "--decoder.hidden", "[8]", "--features", "8", "--latent_dim", "2"]
QUIET = ["--progress", "false", "--compile", "false"]


def run(*arguments: object) -> tuple[int, str, str]:
    """Run the command line in this process: its status and what it says."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = command([str(argument) for argument in arguments])
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        except Exception as error:
            return 99, out.getvalue(), f"{type(error).__name__}: {error}"
    return status, out.getvalue(), err.getvalue()


def outcome(found: tuple[int, str, str], expected: tuple[int, str, str]) -> str:
    """Say what a command came to."""
    status, out, err = found
    if status == 0:
        return "equal" if out == expected[1] else "wrong"
    return "refused" if status == 2 and len(err.strip().splitlines()) == 1 else "wrong"


def damaged(content: bytes, kind: str, place: int) -> bytes:
    """Flip a bit of a file's content, or cut it off."""
    if kind == "cut":
        return content[:place]
    changed = bytearray(content)
    changed[place] ^= 1 << (place % 8)
    return bytes(changed)


def damage(folder: Path, flips: int, cuts: int) -> pd.DataFrame:
    """Damage every kind of file that ``evaluate`` reads, and evaluate."""
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 3)).round(4), columns=list("abc"))
    table.to_csv(folder / "table.csv", index=False)
    np.save(folder / "rows.npy", table.to_numpy())
    (folder / "packed.csv.gz").write_bytes(gzip.compress((folder / "table.csv").read_bytes(), mtime=0))
    rows, generator = [], np.random.default_rng(1)
    for name, kind in (("table.csv", "CSV"), ("packed.csv.gz", "CSV"), ("rows.npy", "Array")):
        out = folder / f"run-{name}"
        given = ["--data", kind, "--data.path", folder / name, "--likelihood", "HeteroscedasticGaussian"]
        assert run("fit", *given, "--out", out, "--epochs", 2, *TINY, *QUIET)[0] == 0
        ask = ("evaluate", out, "--num_particles", 20, "--progress", "false")
        expected = run(*ask)
        assert expected[0] == 0, expected
        paths = {f"data: {name}": folder / name}
        if name == "table.csv":
            tensors = next((out / "fit").glob("*.safetensors"))
            paths |= {"fit.json": out / "fit" / "fit.json", "tensors": tensors, "config.yaml": out / "config.yaml"}
            paths |= {"the list of a run's files": out / ".pyrovae.json"}
        for label, path in paths.items():
            whole = path.read_bytes()
            for harm, count in (("flip", flips), ("cut", cuts)):
                found = Counter[str]()
                for place in generator.integers(0, len(whole), count).tolist():
                    path.write_bytes(damaged(whole, harm, place))
                    result = run(*ask)
                    found[outcome(result, expected)] += 1
                    if outcome(result, expected) == "wrong":
                        print("WRONG", label, harm, place, result, file=sys.stderr)
                path.write_bytes(whole)
                rows.append([label, harm, count, *(found[name] for name in OUTCOMES)])
                print(rows[-1], flush=True)
    return pd.DataFrame(rows, columns=["file", "harm", "times", *OUTCOMES])


def bits(size: int, seed: int = 0) -> torch.Tensor:
    grey = torch.tensor(load_digits().data[:size] / 16, dtype=torch.float32)
    return torch.bernoulli(grey, generator=torch.Generator().manual_seed(seed))


def seeded(make: Callable[[], object]) -> object:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def vae(guide: object = guides.MeanField, prior: object = None, likelihood: object = None, width: int = 64, **options):
    prior = prior or priors.StandardNormal(4)
    likelihood = likelihood or likelihoods.Bernoulli()
    decoder = nn.MLP(4, likelihood.features(width), hidden=(16,))
    model = models.VAE(prior=prior, decoder=decoder, likelihood=likelihood)
    made = guide(nn.MLP(width, 16, hidden=(16,)), 4, **options)
    if isinstance(prior, priors.VampPrior):
        prior.attach(made, bits(120))
    return model, made


def dropout_pair():
    model, guide = vae()
    guide.encoder = nn.MLP(64, 16, hidden=(16,), dropout=0.2, normalisation=torch.nn.BatchNorm1d)
    return model, guide


def discriminator():
    layers = [torch.nn.utils.spectral_norm(torch.nn.Linear(4, 16)), torch.nn.ReLU(), torch.nn.Linear(16, 1)]
    return torch.nn.Sequential(*layers)


def plain():
    model, guide = vae()

    def program(x):
        return model(x)

    def recognition(x):
        pyro.param("beside", torch.tensor(1.0))
        return guide(x)

    return program, recognition


FITS = {  # a pair, its data and how it is fitted
    "mean field": lambda: (vae(), bits(120), {}),
    "flow, importance-weighted": lambda: (vae(guides.Flow), bits(120), {"objective": objectives.IWAE(3)}),
    "VampPrior": lambda: (vae(prior=priors.VampPrior(4, num_components=5)), bits(120), {}),
    "mixture prior, annealed": lambda: (
        vae(prior=priors.MixtureOfGaussians(4, num_components=3)), bits(120),
        {"objective": objectives.BetaELBO(objectives.linear(50))},
    ),
    "adversarial": lambda: (
        vae(), bits(120), {"objective": objectives.FactorVAE(seeded(discriminator), total_correlation=2.0)},
    ),
    "validation and patience": lambda: (vae(), bits(120), {"validation_data": bits(60, 1), "patience": 1000}),
    "dropout and batch statistics": lambda: (dropout_pair(), bits(120), {}),
    "bits drawn anew": lambda: (
        vae(), data.Data(torch.tensor(load_digits().data[:120] / 16, dtype=torch.float32), binarise=data.Dynamic()), {},
    ),
    "plain programs": lambda: (plain(), bits(120), {}),
    "Pyro's optimizer": lambda: (vae(), bits(120), {"optimizer": pyro.optim.ClippedAdam({"lr": 1e-3})}),
    "a schedule, clipped": lambda: (vae(), bits(120), {"lr": lambda step: 1e-2 / (1 + step), "clip_norm": 5.0}),
    "double precision": lambda: (vae(), bits(120), {"precision": "float64"}),
}  # fmt: skip


def fitted(kind: str, folder: Path, steps: int) -> None:
    """Fit, or go on fitting, and write what came out."""
    pair, x, options = FITS[kind]()
    found = pyrovae.fit(
        *pair, x, steps=steps, batch_size=32, checkpoint=folder, checkpoint_seconds=0.0, resume=True, compile=False,
        progress=False, **options,
    )  # fmt: skip
    tensors = [p.detach() for program in pair if isinstance(program, torch.nn.Module) for p in program.parameters()]
    losses = torch.from_numpy(found.history.drop(columns="seconds").to_numpy(float))
    torch.save([*tensors, losses], folder / "end.pt")


def child(kind: str, folder: Path, steps: int) -> int:
    number = os.fork()
    if not number:
        try:
            seeded(lambda: fitted(kind, folder, steps))
        except BaseException as error:
            print(f"WRONG {kind}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return number


def kills(folder: Path, count: int, seed: int) -> pd.DataFrame:
    """Kill every kind of fit at random moments, resume it, and compare the end with that of a fit left in peace."""
    rows, moments = [], random.Random(seed)
    for index, kind in enumerate(FITS):
        share = count // len(FITS) + (index < count % len(FITS))
        whole, killed, steps = folder / f"{index}-whole", folder / f"{index}-killed", 25 * share
        started = time.monotonic()
        status = os.waitpid(child(kind, whole, steps), 0)[1]
        seconds = time.monotonic() - started
        for _ in range(share):
            number = child(kind, killed, steps)
            time.sleep(moments.uniform(0, 1.5 * seconds / share))
            os.kill(number, signal.SIGKILL)
            os.waitpid(number, 0)
        status |= os.waitpid(child(kind, killed, steps), 0)[1]
        ends = [torch.load(f / "end.pt") for f in (whole, killed)] if not status else [[], [torch.zeros(1)]]
        same = len(ends[0]) == len(ends[1]) and all(
            torch.equal(p.nan_to_num(), q.nan_to_num()) for p, q in zip(*ends, strict=True)
        )
        rows.append([kind, share, share if same else 0, 0 if same else share])
        print(rows[-1], flush=True)
    return pd.DataFrame(rows, columns=["fit", "kills", "equal", "wrong"])


def _writer(folder: Path) -> NoReturn:
    """Fit in a process of its own, whose status says how that ended."""
    try:
        seeded(lambda: fitted("mean field", folder, 60))
    except ValueError as error:
        os._exit(3 if "another process or thread writes into" in str(error) else 4)
    except BaseException:
        os._exit(5)
    os._exit(0)


def writers(folder: Path, pairs: int) -> pd.DataFrame:
    """Let two processes fit into one folder at once: one goes on, the other is refused or comes after it."""
    found = Counter[str]()
    for pair in range(pairs):
        place, numbers = folder / f"pair-{pair}", []
        for _ in range(2):
            number = os.fork()
            if not number:
                _writer(place)
            numbers.append(number)
            time.sleep(0.02 * pair)
        ended = [os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) for number in numbers]
        whole = len(pyrovae.load(place).history) == 60
        right = whole and ended.count(0) >= 1 and set(ended) <= {0, 3}
        found["wrong" if not right else "refused" if 3 in ended else "equal"] += 1
    return pd.DataFrame([[pairs, *(found[name] for name in OUTCOMES)]], columns=["pairs of writers", *OUTCOMES])


def full_disks(folder: Path, every: int) -> pd.DataFrame:
    """Let the disk be full at one write after another of a comparison; then make room and resume."""
    fsync, calls, limit = files.os.fsync, [0], [10**9]

    def limited(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] >= limit[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    files.os.fsync = limited
    given = ["--data", "Digits", "--data.binarise", "Static", "--epochs", 2, *TINY, *QUIET, "--num_particles", 20]
    given += ["--num_draws", 2, "--simulations", 0, "--latents_of", 0, "--guides", '{"mean_field": "MeanField"}']
    try:
        assert run("compare", *given, "--out", folder / "whole")[0] == 0
        expected, writes, found = (
            (folder / "whole" / "mean_field" / "per_datum.csv").read_bytes(),
            calls[0],
            Counter[str](),
        )
        for number in range(1, writes + 1, every):
            out, calls[0], limit[0] = folder / str(number), 0, number
            status, _, err = run("compare", *given, "--out", out)
            half = [path for path in out.rglob("*") if path.name.endswith(".writing")]
            limit[0] = 10**9
            again = run("compare", *given, "--out", out, "--resume", "true")
            same = again[0] == 0 and (out / "mean_field" / "per_datum.csv").read_bytes() == expected
            said = status in (0, 1, 2) and "Traceback" not in err and (status == 0 or "No space left" in err)
            found["wrong" if half or not same or not said else "refused" if status else "equal"] += 1
            if half or not same or not said:
                print("WRONG", number, status, err, again, half, file=sys.stderr)
            shutil.rmtree(out)
    finally:
        files.os.fsync = fsync
    row = [writes, sum(found.values()), *(found[name] for name in OUTCOMES)]
    return pd.DataFrame([row], columns=["writes of a comparison", "tried", *OUTCOMES])


def markdown(frame: pd.DataFrame) -> str:
    rows = [list(map(str, frame.columns)), ["---"] * frame.shape[1], *frame.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


TEXT = """# What is not lost, and what is not misread

The tables are made by `benchmarks/reliability.py` (seed {seed}). *equal*: the same to the bit as without the harm;
*refused*: one sentence on standard error and exit status 2, no traceback; *wrong*: anything else. Of two writers, one
is refused, or comes after the other.

## Files flipped and cut off

One bit of a file is flipped, or the file is cut off, at a random place, and the run is evaluated.

{damage}

## Fits killed

SIGKILL at random moments, then resumed, until the end. Parameters and history are compared with those of a fit left in
peace.

{kills}

## Two writers of one folder

{writers}

## A disk that is full

Each write of `pyrovae compare` in turn finds no space; then the run is resumed. *equal*: what found no space was a
folder's entry on its way to the disk, after the file was in its place.

{disks}

## What a run promises

- A file is written beside its place and moved there when it is on the disk: it is the old one or the new one. A fit is
  a JSON document, which holds checksums of itself and of its tensors, and one file of tensors.
- A run keeps a list of the files that it wrote (`.pyrovae.json`) and touches no other: `--overwrite true` removes
  these, and a file in the place of one of them that the run did not write, or that was edited since, is not written
  over; `config.yaml` alone, which is made to be edited, is rewritten by a resumed run. A folder that is not
  empty and not a run's is no place for a run, nor is one whose files are read by it.
- One process at a time writes into a folder; one that dies lets go of it. On Windows, and on file systems without
  locks, nothing keeps a second one out.
- `evaluate` without `--data` uses the test part of the run's own data. The run knows their checksum: if the file has
  changed since, it is refused, because the parts would be others, and rows that were trained on would be among those
  tested. New data are named by `--data`, and taken whole.
- A fit is resumed as what it was: pair, objective, optimizer, schedules (by the values that they gave), data and
  validation data are compared, and the first difference is named. The number of epochs, patience, and compiling may
  change.
- SIGINT, SIGTERM and SIGHUP end a fit after its step, with a checkpoint. A second one ends it at once.
- In a group of processes all begin with the same settings and data, or none does; what stops one is told to the others
  where the group's store outlives it, as torchrun's does.
- Fits and questions in several threads take turns, since random state and the param store are the process's.
- A file that is mapped into memory (`data.Array(path, mapped=True)`) and is cut off by somebody else under way ends the
  process by SIGBUS: nothing in Python can catch that. Copy a file that may change before mapping it.

What loading and configuring promise about code is in [SECURITY.md](../SECURITY.md).
"""


def main() -> None:
    """Run the sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=200, help="of every kind of file")
    parser.add_argument("--cuts", type=int, default=80, help="of every kind of file")
    parser.add_argument("--kills", type=int, default=100, help="of all kinds of fit together")
    parser.add_argument("--pairs", type=int, default=12, help="of writers")
    parser.add_argument("--every", type=int, default=1, help="of the writes of a comparison")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of kills")
    parser.add_argument("--out", type=Path, help="file to write, such as docs/reliability.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("damage", "kills", "writers", "disks"):
            (folder / part).mkdir()
        found = {
            "writers": writers(folder / "writers", options.pairs),
            "kills": kills(folder / "kills", options.kills, options.seed),
            "disks": full_disks(folder / "disks", options.every),
            "damage": damage(folder / "damage", options.flips, options.cuts),
        }
    text = TEXT.format(seed=options.seed, **{name: markdown(table) for name, table in found.items()})
    if options.out is not None:
        options.out.write_text(text)
    print(text.split("## What a run promises")[0])
    wrong = sum(int(table["wrong"].sum()) for table in found.values())
    sys.exit(f"{wrong} outcomes were wrong" if wrong else 0)


if __name__ == "__main__":
    main()
