"""Do the public calls still give the same numbers? ``python -W ignore benchmarks/same_numbers.py --against FILE.json``.

``--write FILE.json`` makes the calls of ``calls.py`` and keeps a few numbers of each, at full double precision;
``--against FILE.json`` makes them again and prints a table of the largest relative differences. The exit status is 1
where a number changed by more than rounding, or where a call fails. Numbers are the same to the last bit on one
machine with one set of versions; on another they may differ by rounding, which some calls make larger.
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
    """Return a call's row of the table, and whether its numbers are the same."""
    try:
        change = difference(made(call), saved.get(name, []))
        said = f"{change:.1e}" if change else "0"
    except Exception as error:  # of a name that moved, say: the other calls are made all the same
        traceback.print_exc()
        change, said = math.inf, type(error).__name__
    same = change <= call.tolerance
    return f"| {name} | {call.what} | {said} | {'same' if same else 'CHANGED'} |", same


def against(path: Path) -> bool:
    """Make every call, print the table, and return whether all numbers are the same."""
    started, saved = time.perf_counter(), json.loads(path.read_text())
    if saved["versions"] != versions():
        print(f"Written with {saved['versions']}, compared with {versions()}.\n")
    print("| call | what is compared | largest relative difference | |\n| --- | --- | --- | --- |", flush=True)
    same = {}
    for name, call in CALLS.items():
        text, same[name] = row(name, call, saved["calls"])
        print(text, flush=True)
    same.update(dict.fromkeys(saved["calls"].keys() - CALLS.keys(), False))  # calls that are no longer made
    changed = sorted(name for name, held in same.items() if not held)
    seconds = time.perf_counter() - started
    print(f"\n{len(same)} calls in {seconds:.0f} s; changed: {', '.join(changed) or 'none'}.")
    return not changed


def main() -> int:
    """Write or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", type=Path, metavar="FILE", help="keep the numbers here")
    what.add_argument("--against", type=Path, metavar="FILE", help="compare with the numbers that are kept here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with threadpool_limits(1):  # sums are the same whatever the number of cores
        if options.write:
            write(options.write)
            return 0
        return 0 if against(options.against) else 1


if __name__ == "__main__":
    sys.exit(main())
