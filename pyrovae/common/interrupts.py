"""Ctrl-C that comes as another error."""


def is_interrupt(error: BaseException | None) -> bool:
    """Whether an error is an interrupt, or was raised because of one.

    Python 3.11 turns an interrupt that comes while a class is being made (``__set_name__``) into a RuntimeError.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False
