"""A fit that is killed again and again: see test_faults.py. Arguments: folder, kills, seed of the moments, compile."""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from conftest import bits, make_vae

from pyrovae import fit

folder, kills, seed, compile = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "compile"
STEPS = 100 * kills


def run(checkpoint):
    options = {"steps": STEPS, "batch_size": 16, "validation_data": bits(20, seed=1), "compile": compile}
    fitted = fit(
        *make_vae(), bits(50), checkpoint=checkpoint, checkpoint_seconds=0.0, resume=True, progress=False, **options
    )
    fitted.history.drop(columns="seconds").to_csv(checkpoint / "history.csv", index=False)
    torch.save([p.detach() for m in (fitted.model, fitted.guide) for p in m.parameters()], checkpoint / "params.pt")


def child(checkpoint):
    number = os.fork()  # everything is imported, so that the moments fall into the fit
    if not number:
        run(checkpoint)
        os._exit(0)
    return number


started = time.monotonic()
status = os.waitpid(child(folder / "whole"), 0)[1]
assert status == 0, status
seconds = time.monotonic() - started
moments, at = random.Random(seed), []
for _ in range(kills):
    number = child(folder / "killed")
    at.append(moments.uniform(0, 1.5 * seconds / kills))
    time.sleep(at[-1])
    os.kill(number, signal.SIGKILL)
    os.waitpid(number, 0)
print(
    f"killed after {', '.join(f'{moment:.3f}' for moment in at)} s (seed {seed}, whole fit {seconds:.1f} s)", flush=True
)
assert os.waitpid(child(folder / "killed"), 0)[1] == 0
