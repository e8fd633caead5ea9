"""What compiling saves and costs, beside the work that is counted: ``python benchmarks/compiling.py``.

Writes ``docs/compiling.md``: one row per call (a step of a fit, a chunk of log weights, a gradient of latents), its
work as ``pyrovae.programs.compilation.Work`` counts it, its time eager and compiled, the seconds that compiling takes
with an empty cache, and the constants START and PASS that explain what is saved, by weighted least squares.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from cases import CASES, bits
from scipy.optimize import nnls
from speed import machine, markdown

CALLS = {"fit": (*CASES, "wide"), "weights": ("mnist", "digits"), "gradient": ("mnist", "digits")}


def least(call: Callable[[], object], times: int) -> float:
    """Return the seconds of the fastest of some calls: what else the machine does only adds."""
    found = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return min(found)


def _pair(case):
    from peer import networks, programs

    return programs(case, *networks(case))


def of_fit(name: str, times: int) -> dict[str, float]:
    """Measure steps of a fit."""
    from peer import DEVICE

    from pyrovae import fit

    case = CASES[name if name != "wide" else "mnist"]
    size = 2048 if name == "wide" else case.batch
    x = bits(case)[0][:size].to(DEVICE)
    seconds, first = {}, {}
    for compile in (False, True):
        at = fit(*_pair(case), x, batch_size=size, steps=times, compile=compile, progress=False).history["seconds"]
        seconds[compile], first[compile] = float(np.diff(at).min()), float(at.iloc[0])
    said = fit(*_pair(case), x, batch_size=size, steps=1, progress=False).compiled
    return row(said, seconds, first[True] - first[False])


def of_weights(name: str, times: int) -> dict[str, float]:
    """Measure chunks of log weights."""
    from peer import DEVICE

    from pyrovae.importance.log_weights import Weigher, chunks
    from pyrovae.importance.question import ask

    case = CASES[name]
    x = bits(case)[0][:32].to(DEVICE)
    seconds, whole = {}, {}
    for compile in (False, True, "auto"):
        with ask(*_pair(case), x, seed=0, device=None) as question:
            weigher = Weigher(question, compile, chunks(256), 32, None)
            lines: list[str] = []
            weigher.choice.say = lines.append
            batch = question.data.batch(slice(0, 32))
            started = time.perf_counter()
            weigher(range(32), batch)
            if compile == "auto":
                break
            whole[compile] = time.perf_counter() - started
            weigher(range(32), question.data.batch(slice(0, 32)))
            seconds[compile] = least(lambda: weigher(range(32), batch), times // 10)  # noqa: B023
    return row(lines[0], seconds, whole[True] - whole[False])


def of_gradient(name: str, times: int) -> dict[str, float]:
    """Measure gradients of latents."""
    from peer import DEVICE

    from pyrovae.importance.question import ask
    from pyrovae.mcmc.chains import Sampler

    case = CASES[name]
    x = bits(case)[0][:32].to(DEVICE)
    seconds, whole = {}, {}
    for compile in (False, True, "auto"):
        with ask(*_pair(case), x, seed=0, device=None) as question:
            field = Sampler(question, 4, 20, 20, 4, True, 32, compile, None).field
            lines: list[str] = []
            field.choice.say = lines.append
            rows = tuple(t.repeat_interleave(4, 0) for t in question.data.batch(slice(0, 32)))
            free = torch.zeros(128, case.latent, device=DEVICE)
            started = time.perf_counter()
            field(rows, free)
            if compile == "auto":
                break
            whole[compile] = time.perf_counter() - started
            seconds[compile] = least(lambda: field(rows, free), times)  # noqa: B023
    return row(lines[0], seconds, whole[True] - whole[False])


def row(said: str, seconds: dict[bool, float], cost: float) -> dict[str, float]:
    """Put a call's work, as the line that says what was chosen has it, beside its times."""
    operations, numbers = re.search(r"each (\d+) operations that write (\S+) numbers", said).groups()  # type: ignore[union-attr]
    return {"operations": int(operations), "numbers": float(numbers), "eager": seconds[False],
            "compiled": seconds[True], "compiling": cost}  # fmt: skip


def measure(kind: str, name: str, times: int) -> dict[str, float]:
    """Measure a call in a process of its own, with an empty cache of compiled code."""
    with tempfile.TemporaryDirectory() as cache:
        env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
        command = [sys.executable, "-W", "ignore", __file__, "--one", kind, name, "--times", str(times)]
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    found = [line for line in done.stdout.splitlines() if line.startswith('{"operations"')]
    if not found:
        raise RuntimeError(f"{kind} {name}: {done.stderr[-2000:]}")
    return json.loads(found[-1])


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/compiling.md"))
    parser.add_argument("--times", type=int, default=100, help="calls of which the fastest counts")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        kind, name = options.one
        found = {"fit": of_fit, "weights": of_weights, "gradient": of_gradient}[kind](name, options.times)
        print(json.dumps(found))
        return
    rows = {}
    for kind, names in CALLS.items():
        for name in names:
            rows[f"{kind}, {name}"] = measure(kind, name, options.times)
            print(kind, name, rows[f"{kind}, {name}"], flush=True)
    table = pd.DataFrame(rows).T.rename_axis("call")
    saved = table["eager"] - table["compiled"]
    weight = 1 / table["eager"]  # relative errors count
    (start, write), _ = nnls(
        table[["operations", "numbers"]].mul(weight, axis=0).to_numpy(), (saved * weight).to_numpy()
    )
    table["saved"], table["saved by the rule"] = saved, start * table["operations"] + write * table["numbers"]
    text = [
        f"Machine: {machine()}. Made by `benchmarks/compiling.py`: seconds, the fastest of {options.times} calls.",
        markdown(table.reset_index()),
        f"Least squares of what is saved: START = {start:.2g} seconds an operation, PASS = {write:.2g} a number; "
        f"compiling takes {table['compiling'].median():.3g} seconds in the median.",
    ]
    options.out.write_text("\n\n".join(text) + "\n")
    print(options.out.read_text())


if __name__ == "__main__":
    main()
