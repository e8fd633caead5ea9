"""Where the time of a compiled fit and evaluation goes: ``benchmarks/parts.py`` writes ``docs/parts-DEVICE.md``.

PyTorch's profiler, with Inductor's own kernels recorded under the names of the operations that were fused in them.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch._inductor.config as inductor
from cases import CASES, bits
from growth import PARTICLES, networks_pair
from peer import DEVICE, networks
from speed import machine, markdown
from torch.profiler import profile

from pyrovae import evaluate, fit

ROWS = 12  # largest parts that are shown


def parts(act: Callable[[], object]) -> pd.DataFrame:
    """Profile a call: the operations in which most of its own time goes, compiling and Python left out."""
    with profile() as profiled:
        act()
    rows = [(e.key, e.count, (e.self_cpu_time_total + e.self_device_time_total) / 1e3) for e in profiled.key_averages()]
    frame = pd.DataFrame(rows, columns=["operation", "calls", "milliseconds"])
    frame = frame[frame["operation"].str.match(r"aten::|graph_|Optimizer|## Call")]
    frame["share"] = frame["milliseconds"] / frame["milliseconds"].sum()
    return frame.sort_values("milliseconds", ascending=False).head(ROWS)


def training(name: str) -> Callable[[], object]:
    """Return 20 epochs of compiled training, whose code is on the disk after a first call."""
    case = CASES[name]
    x = bits(case)[0].to(DEVICE)
    x = x[: len(x) // case.batch * case.batch]
    pair, _ = networks_pair(case, networks)
    return lambda: fit(*pair, x, epochs=20, batch_size=case.batch, compile=True, progress=False)


def judging() -> Callable[[], object]:
    """Return a compiled evaluation of 128 images of the case mnist."""
    case = CASES["mnist"]
    pair, _ = networks_pair(case, networks)
    x = bits(case)[0][:128].to(DEVICE)
    return lambda: evaluate(*pair, x, num_particles=PARTICLES, compile=True, progress=False)


def main() -> None:
    """Profile and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder for parts-DEVICE.md")
    options = parser.parse_args()
    inductor.cpp.enable_kernel_profile = True
    text = [f"Machine: {machine()}. Made by `benchmarks/parts.py`. Profiling itself lengthens every small call."]
    calls = {"Training, the case digits: 20 epochs": training("digits"), "Evaluating 128 images": judging()}
    for title, act in calls.items():
        act()
        text.append(f"## {title}\n\n{markdown(parts(act))}")
    out = options.out / f"parts-{DEVICE.type}.md"
    out.write_text("\n\n".join(text) + "\n")
    print(out.read_text())


if __name__ == "__main__":
    main()
