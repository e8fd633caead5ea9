"""Whether prose keeps to the words of CONTRIBUTING.md, one per concept: ``python .ci/words.py`` names what does not."""

import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

INSTEAD = {
    r"judg(e|es|ed|ing)": "evaluate",
    r"climb(s|ed|ing)?": "maximise a bound",
    r"data points?|datapoints?": "observation",
    r"datum('s)?": "observation",
    r"(nats|draws|particles|chains|samples|weights|microseconds) an observation(?!')": "per observation",
    r"an? (row|column|fit|name|file|number) a \w+": "one ... per ...",
    r"one a (seed|site|fit|guide|row|column)": "one per ...",
    r"bettered|betters": "refine",
    r"groundtruth": "ground truth",
}
QUOTED = re.compile(
    r"``[^`]*``|`[^`]*`|\"[^\"\s]*\"|'[^'\s]*'|\w*(?:_\w+)+|[\w/]+\.(?:csv|py|md|nc)|\]\([^)]*\)|\{[^}]*\}"
)
PATTERNS = {re.compile(rf"\b(?:{word})\b", re.IGNORECASE): instead for word, instead in INSTEAD.items()}


def main() -> int:
    """Print every place, and return how the check went."""
    files = subprocess.check_output(["git", "ls-files", "*.py", "*.md"], text=True).split()
    places = [f"{file}:{place}" for file in files if not Path(file).is_symlink() for place in found(Path(file))]
    print("\n".join(places) or "the words are those of CONTRIBUTING.md")
    return 1 if places else 0


def found(path: Path) -> list[str]:
    """Return the places of a file whose words are others, each with what to write instead."""
    if path in (Path(".ci/words.py"), Path("CONTRIBUTING.md")):
        return []
    text = path.read_text()
    prose = python(text) if path.suffix == ".py" else enumerate(without_code(text).splitlines(), 1)
    return [
        f"{line}: {match.group()!r}: {instead}"
        for line, part in prose
        for pattern, instead in PATTERNS.items()
        for match in pattern.finditer(QUOTED.sub(" ", part))
    ]


def python(text: str) -> list[tuple[int, str]]:
    """Return the lines of comments, docstrings and messages, with their numbers; doctests are code."""
    parts = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.STRING, tokenize.COMMENT) and " " in token.string:
            lines = enumerate(token.string.strip("rbfuRBFU\"'").splitlines(), token.start[0])
            parts += [(number, line) for number, line in lines if not line.lstrip().startswith((">>>", "..."))]
    return parts


def without_code(text: str) -> str:
    """Return a page without its blocks of code, whose lines stay empty."""
    return re.sub(r"```.*?```", lambda block: "\n" * block.group().count("\n"), text, flags=re.DOTALL)


if __name__ == "__main__":
    sys.exit(main())
