"""Do the public calls still give the same numbers? ``python -W ignore benchmarks/same_numbers.py --against FILE.json``.

``--write FILE.json`` makes the calls of ``calls.py`` and keeps a few numbers of each, at full double precision;
``--against FILE.json`` makes them again and prints a table of the largest relative differences, which is also written
where ``--out FILE.md`` says. The exit status is 1 where a number changed by more than rounding for no reason that is
known, or where a call fails. Numbers are the same to the last bit on one machine with one set of versions; on another
they may differ by rounding, which some calls make larger.
"""

import argparse
import json
import math
import platform
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import torch
from calls import CALLS, Call
from threadpoolctl import threadpool_limits

NAMED = (
    "random numbers of NumPy and scikit-learn come from streams named by their purpose, no longer from the bare seed, "
    "which other calls and the caller's own generators share, and which scikit-learn refuses from 2^32 on"
)
REASONS = {  # of numbers that are not those of version 0.1.0
    "sample_quality": NAMED,
    "codes": f"clusters, folds and resamples of label_scores: {NAMED}",
    "prior_tests": NAMED,
    "disentanglement": NAMED,
    "to_arviz": f"the draws chosen by corrected=True: {NAMED}",
    "hmc": f"the folds of guide_error: {NAMED}",
}
ALL = 6  # entries of an array that are kept one by one; of a longer one, some and its moments
Saved = dict[str, Any]


def numbers(value: Any) -> list[float]:
    """Return the numbers that are kept of a value; of a table, those of its numeric columns, times left out."""
    if isinstance(value, dict):
        return [number for part in value.values() for number in numbers(part)]
    if isinstance(value, list | tuple):
        return [number for part in value for number in numbers(part)]
    if isinstance(value, pd.DataFrame):
        table = value.drop(columns="seconds", errors="ignore").select_dtypes(["number", "bool"])
        return [*map(float, table.shape), *(number for _, column in table.items() for number in of_array(column))]
    if isinstance(value, torch.Tensor):
        value = value.detach().double().numpy()
    array = np.asarray(value, dtype=float)
    return [*map(float, array.shape), *of_array(array)]


def of_array(given: Any) -> list[float]:
    """Return a short array's entries; of a longer one the number of finite ones, their moments, and a few entries."""
    values = np.asarray(given, dtype=float).ravel()
    if len(values) <= ALL:
        return [float(value) for value in values]
    finite = values[np.isfinite(values)]
    moments = [finite.mean(), finite.std(), np.abs(finite).mean()] if len(finite) else []
    return [float(value) for value in (len(finite), *moments, *values[:3], values[len(values) // 2], values[-1])]


def difference(now: list[float], before: list[float]) -> float:
    """Return the largest relative difference of two lists; infinite where one is longer, or a number is none."""
    if len(now) != len(before):
        return math.inf
    one, other = np.array(now), np.array(before)
    equal = (one == other) | (np.isnan(one) & np.isnan(other))
    with np.errstate(all="ignore"):
        relative = np.abs(one - other) / np.maximum(np.abs(one), np.abs(other))
    return float(np.where(equal, 0.0, np.nan_to_num(relative, nan=math.inf)).max(initial=0.0))


def made(call: Call) -> list[float]:
    """Make a call, with torch's seed set and no parameters of another call about."""
    torch.manual_seed(0)
    pyro.clear_param_store()
    return numbers(call.act())


def versions() -> dict[str, str]:
    """Return what the numbers depend on besides pyrovae."""
    return {"python": platform.python_version(), "torch": torch.__version__, "pyro": pyro.__version__}


def write(path: Path) -> None:
    """Make every call and keep its numbers."""
    found = {name: made(call) for name, call in CALLS.items()}
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(values)}" for name, values in found.items())
    path.write_text(f'{{\n "versions": {json.dumps(versions())},\n "calls": {{\n{rows}\n }}\n}}\n')


def row(name: str, call: Call, saved: Saved) -> tuple[str, bool]:
    """Return a call's row of the table, and whether its numbers are the same or changed for a reason."""
    try:
        change = difference(made(call), saved.get(name, []))
        text = f"{change:.1e}" if change else "0"
    except Exception as error:  # of a name that moved, say: the other calls are made all the same
        traceback.print_exc()
        return f"| {name} | {call.what} | {type(error).__name__} | FAILED |", False
    if change <= call.tolerance:
        return f"| {name} | {call.what} | {text} | same |", True
    return f"| {name} | {call.what} | {text} | changed: {REASONS.get(name, 'WHY?')} |", name in REASONS


def against(path: Path, out: Path | None) -> bool:
    """Make every call, print the table, and return whether all numbers are the same or changed for a reason."""
    started, saved = time.perf_counter(), json.loads(path.read_text())
    if saved["versions"] != versions():
        print(f"Written with {saved['versions']}, compared with {versions()}.\n")
    lines = ["| call | what is compared | largest relative difference | |", "| --- | --- | --- | --- |"]
    explained = {}
    for name, call in CALLS.items():
        text, explained[name] = row(name, call, saved["calls"])
        lines.append(text)
        print(text, flush=True)
    explained.update(dict.fromkeys(saved["calls"].keys() - CALLS.keys(), False))  # calls that are no longer made
    wrong = sorted(name for name, fine in explained.items() if not fine)
    print(
        f"\n{len(explained)} calls in {time.perf_counter() - started:.0f} s; unexplained: {', '.join(wrong) or 'none'}."
    )
    if out is not None:
        lines = [TITLE.format(count=len(explained), **versions()), *lines]
        out.write_text("\n".join(lines) + "\n")
    return not wrong


TITLE = """# The numbers of version 0.1.0

{count} public calls at fixed seeds, their numbers beside those that version 0.1.0 gave before its insides were arranged
anew. Made by `python -W ignore benchmarks/same_numbers.py --against benchmarks/numbers.json --out docs/numbers.md` on
one thread, with Python {python}, torch {torch} and Pyro {pyro}, as the numbers of version 0.1.0.
"""


def main() -> int:
    """Write or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", type=Path, metavar="FILE", help="keep the numbers here")
    what.add_argument("--against", type=Path, metavar="FILE", help="compare with the numbers that are kept here")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with threadpool_limits(1):  # sums are the same whatever the number of cores
        if options.write:
            write(options.write)
            return 0
        return 0 if against(options.against, options.out) else 1


if __name__ == "__main__":
    sys.exit(main())
