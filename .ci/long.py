"""The tests that take long, from what pytest says of durations: ``pytest --durations=0 ... | python .ci/long.py``.

Writes ``tests/long.txt``, whose tests are marked ``long``: ``make test`` leaves them out, and the gate runs them.
"""

import re
import sys
from collections import Counter
from pathlib import Path

SECONDS = 0.9  # that a test may take, set-up included, on two cores
ALWAYS = (  # run in any case: one way through the command line, and three kinds of compiled steps
    "tests/test_cli.py::test_fit_evaluate_and_resume",
    "tests/test_compiled.py::test_loss_and_gradients_are_those_of_the_eager_step[mean field]",
    "tests/test_compiled.py::test_loss_and_gradients_are_those_of_the_eager_step[enumerated]",
    "tests/test_compiled.py::test_loss_and_gradients_are_those_of_the_eager_step[batch statistics]",
)


def main() -> None:
    """Read standard input, write the list."""
    durations: Counter[str] = Counter()
    for line in sys.stdin:
        if match := re.match(r"\s*([\d.]+)s (?:call|setup|teardown)\s+(tests/\S.*)$", line):
            durations[match.group(2).strip()] += float(match.group(1))  # type: ignore[assignment]
    names = sorted(name for name, seconds in durations.items() if seconds > SECONDS and name not in ALWAYS)
    Path("tests/long.txt").write_text("\n".join(names) + "\n")
    print(f"{len(names)} tests take more than {SECONDS} s")


if __name__ == "__main__":
    main()
