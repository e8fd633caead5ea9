"""How fast pyrovae trains and evaluates, beside its peers: ``python benchmarks/speed.py`` writes ``docs/speed.*``.

Every peer trains the same networks on the same bits, each in a process of its own, in rounds, so that what else the
machine does falls on all alike. A figure is the median of a peer's epochs over all rounds; its spread is their range.
Pythae runs with the interpreter that ``--pythae`` names (``make benchmark`` makes one), since it pins other packages.
"""

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from cases import CASES
from growth import evaluation, growth

HERE = Path(__file__).parent
ALL = (
    "pyrovae, compiled", "pyrovae, eager", "Pyro, tutorial", "Pyro, JitTrace_ELBO", "Pythae",
    "PyTorch by hand, eager", "PyTorch by hand, compiled", "matrix products alone",
)  # fmt: skip
PYRO = tuple(peer for peer in ALL if peer.startswith("pyrovae") or peer == "Pyro, tutorial")
PEERS = {  # by hand there is no flow, nor does the floor know convolutions; Pythae's bounds are its own
    "mnist": ALL,
    "digits": ALL,
    "convolutional": (*PYRO, "PyTorch by hand, eager", "PyTorch by hand, compiled"),
    "iaf": PYRO,
    "iwae": (*PYRO, "PyTorch by hand, eager", "PyTorch by hand, compiled", "matrix products alone"),
}
EPOCHS = {"mnist": 2, "digits": 20, "convolutional": 2, "iaf": 2, "iwae": 2}


def epochs(case: str, peer: str, pythae: str | None, quick: bool) -> dict:
    """Time a peer's epochs in a process of its own."""
    python = pythae if peer == "Pythae" else sys.executable
    if python is None:
        return {"seconds": [], "why": "no interpreter with Pythae was given"}
    number = max(1, EPOCHS[case] // 2) if quick else EPOCHS[case]
    command = [python, "-W", "ignore", str(HERE / "peer.py"), case, peer, str(number)]
    done = subprocess.run(command, capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if line.startswith('{"seconds"')]
    if not found:
        return {"seconds": [], "why": (done.stderr.strip().splitlines() or ["no output"])[-1][:120]}
    return json.loads(found[-1])


def table(rounds: int, pythae: str | None, quick: bool, case: str) -> pd.DataFrame:
    """Time every peer on a case."""
    found: dict[str, list[float]] = {}
    notes: dict[str, str] = {}
    for _ in range(rounds):
        for peer in PEERS[case]:
            result = epochs(case, peer, pythae, quick)
            found.setdefault(peer, []).extend(result["seconds"])
            if not result["seconds"]:
                notes[peer] = f"not measured: {result['why']}"
            elif not result["real"]:
                notes[peer] = "random bits instead of MNIST"
            print(case, peer, [f"{s:.4f}" for s in result["seconds"]][:4], flush=True)
    rows = []
    for peer, seconds in found.items():
        median = pd.Series(seconds).median() if seconds else float("nan")
        low, high = (min(seconds), max(seconds)) if seconds else (float("nan"),) * 2
        rows.append([case, peer, median, low, high, notes.get(peer, "")])
    result = pd.DataFrame(rows, columns=["case", "peer", "seconds an epoch", "least", "most", "note"])
    ours = result[result["peer"] == "pyrovae, compiled"].set_index("case")["seconds an epoch"]
    result.insert(3, "times pyrovae's", result["seconds an epoch"] / result["case"].map(ours))
    return result


def machine() -> str:
    """Name the machine."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    threads = torch.get_num_threads()
    return f"{names[0] if names else platform.processor()}, {threads} threads, torch {torch.__version__}"


def plot(result: pd.DataFrame, path: Path, title: str) -> None:
    """Draw each case's peers, as multiples of the compiled pyrovae."""
    cases = list(dict.fromkeys(result["case"]))
    heights = {"height_ratios": [(result["case"] == case).sum() for case in cases]}
    size = (7.5, 1.2 + 0.34 * len(result))
    figure, axes = plt.subplots(len(cases), 1, figsize=size, layout="constrained", gridspec_kw=heights)
    for ax, case in zip([axes] if len(cases) == 1 else axes, cases, strict=True):
        rows = result[(result["case"] == case) & result["seconds an epoch"].notna()][::-1]
        ratio = rows["times pyrovae's"]
        unit = ratio / rows["seconds an epoch"]
        errors = [(ratio - rows["least"] * unit).clip(lower=0), (rows["most"] * unit - ratio).clip(lower=0)]
        colours = ["#1f4e79" if peer.startswith("pyrovae") else "#b0b7bf" for peer in rows["peer"]]
        ax.barh(rows["peer"], ratio, xerr=errors, color=colours, error_kw={"lw": 0.8})
        for at, (value, end) in enumerate(zip(ratio, rows["most"] * unit, strict=True)):
            ax.annotate(f"{value:.2f}", (end, at), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
        ax.axvline(1, color="k", lw=0.6)
        ax.margins(x=0.12)
        ax.set_title(f"{case}: {CASES[case].size:,} data, batches of {CASES[case].batch}", loc="left", fontsize=9)
        ax.spines[["top", "right"]].set_visible(False)
    ax.set_xlabel("time of an epoch, in those of pyrovae compiled (bar: median, whisker: range)")
    figure.suptitle(title, fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def markdown(frame: pd.DataFrame) -> str:
    """Write a table."""
    shown = frame.copy()
    for name in shown.select_dtypes("number"):
        shown[name] = [("" if pd.isna(v) else f"{v:.4g}") for v in shown[name]]
    rows = [shown.columns.tolist(), ["---"] * shown.shape[1], *shown.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def kept(path: Path, cases: list[str]) -> pd.DataFrame:
    """Return the rows of an earlier run whose cases are not timed again."""
    earlier = pd.read_csv(path).fillna({"note": ""})
    return earlier[~earlier["case"].isin(cases)]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder for speed-DEVICE.md, .csv and .png")
    parser.add_argument("--rounds", type=int, default=3, help="times that every peer has its turn")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), help="which cases to time")
    parser.add_argument("--pythae", help="an interpreter that imports pythae")
    parser.add_argument("--images", type=int, default=10_000, help="images of the evaluation, at 5,000 particles each")
    parser.add_argument(
        "--quick", action="store_true", help="half the epochs and no growth: for a machine lent briefly"
    )
    parser.add_argument("--keep", type=Path, help="CSV of an earlier run on the same card, whose other cases stay")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    name = options.out / f"speed-{'cuda' if torch.cuda.is_available() else 'cpu'}"
    if "mnist" in options.cases:  # its network
        evaluated = evaluation(options.images)
        print(evaluated.to_string(), flush=True)
    results = [] if options.keep is None else [kept(options.keep, options.cases)]
    for case in options.cases:  # written after every case: what was measured is kept, however the run ends
        results.append(table(options.rounds, options.pythae, options.quick, case))
        result = pd.concat(results, ignore_index=True)
        result.to_csv(name.with_suffix(".csv"), index=False)
        plot(result, name.with_suffix(".png"), machine())
        parts = [
            f"Machine: {machine()}. Made by `benchmarks/speed.py`; rounds: {options.rounds}.",
            "## Training\n\n" + markdown(result),
        ]
        if "mnist" in options.cases:
            parts.append(
                "## Evaluation\n\n5,000 particles an image, network of the case mnist.\n\n" + markdown(evaluated)
            )
        name.with_suffix(".md").write_text("\n\n".join(parts) + "\n")
    if not options.quick:
        with name.with_suffix(".md").open("a") as page:
            page.write("\n## How cost grows\n\n" + markdown(growth()) + "\n")
    print(name.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
