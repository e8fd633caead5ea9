"""The entry of the command line, which answers Ctrl-C in one line also while libraries are still being imported."""

import sys


def main() -> int:
    """Run the command line; returns the exit status."""
    try:
        from pyrovae.app.commands import main as command

        return command()
    except BaseException as error:
        if not _is_interrupt(error):
            raise
        print("pyrovae: interrupted", file=sys.stderr)
        return 130
    finally:  # an interrupt inside another exec, as in a dataclass that was being made, would end Python by the signal
        exec("")


def _is_interrupt(error: BaseException) -> bool:
    from pyrovae.common.interrupts import is_interrupt

    return is_interrupt(error)


if __name__ == "__main__":
    sys.exit(main())
