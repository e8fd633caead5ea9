"""The columns of a table: proposed by the values, overridden by name, refused together where no model observes them."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from pyrovae.tables.column import BY_LEVELS, OTHERS, OWN_SCALING, ROLES, SCALINGS, TYPES, Column, plain
from pyrovae.tables.frames import named_columns
from pyrovae.tables.proposal import Proposal, levels_of, proposal

SINGLE = ("label", "id", "time", "exposure", "weight", "frequency")
REMEDIES = {"date": "time", "id": "id"}


def columns_of(
    frame: pd.DataFrame,
    roles: Mapping[str, str],
    types: Mapping[str, str],
    levels: Mapping[str, Sequence[Any]],
    scaling: str | Mapping[str, str] | None,
    codes: Mapping[str, Sequence[Any]],
) -> tuple[Column, ...]:
    """Return the columns of a table.

    Raises:
        ValueError: for names that are no columns', unknown roles, types and scalings, and for types without categories.
    """
    scales = scaling if isinstance(scaling, Mapping) else {}
    for what, given in (("roles", roles), ("types", types), ("levels", levels), ("scaling", scales)):
        named_columns(frame, what, given)
    _known("roles", roles, ROLES)
    _known("types", types, TYPES)
    _known("scaling", scaling if isinstance(scaling, Mapping) else {"": scaling} if scaling else {}, SCALINGS)
    for role in SINGLE:
        names = [name for name, value in roles.items() if value == role]
        if len(names) > 1:
            raise ValueError(f"roles gives {names[0]!r} and {names[1]!r} the role {role!r}: one column can have it")
    common = scaling if isinstance(scaling, str) else None
    return tuple(
        _column(frame[name], roles.get(name, "outcome"), types.get(name), levels.get(name),
                scales.get(name), common, tuple(map(plain, codes.get(name, ()))))
        for name in frame.columns
    )  # fmt: skip


def refuse_unobservable(columns: Sequence[Column]) -> None:
    """Refuse columns that no model observes and that no role accounts for, all of them in one sentence.

    Raises:
        ValueError: naming each column, what it is, and what to say.
    """
    stray = [column for column in columns if column.is_encoded and column.type in OTHERS]
    if stray:
        what = ", ".join(f"{column.name!r} ({_article(column)})" for column in stray)
        words = ", ".join(f"{name!r}: {role!r}" for name, role in remedies(columns).items())
        raise ValueError(
            f"the table has columns that no model observes: {what}; give each a role, such as roles={{{words}}}, or "
            "another type"
        )
    if not any(column.role == "outcome" for column in columns):
        raise ValueError("the table has no column in the role 'outcome', which a model would observe")


def remedies(columns: Sequence[Column]) -> dict[str, str]:
    """Return a role for each column that no model observes: at most one id and one time, and the rest dropped."""
    taken = {column.role for column in columns}
    roles: dict[str, str] = {}
    for column in columns:
        if column.is_encoded and column.type in OTHERS:
            role = REMEDIES.get(column.type, "drop")
            roles[column.name] = "drop" if role in taken else role
            taken.add(role)
    return roles


def described(columns: Sequence[Column], missing: Mapping[str, int], ranges: Mapping[str, str]) -> pd.DataFrame:
    """Return one row per column: its properties, its number of missing cells, and its range.

    A role with a question mark is one that has to be given, because no model observes the column.
    """
    own = remedies(columns)
    rows = {
        column.name: {
            "type": column.type,
            "role": f"{own[column.name]}?" if column.name in own else column.role,
            "missing": missing.get(column.name, 0),
            "range": ranges.get(column.name, ""),
            "levels": ", ".join(map(str, column.levels)),
            "scaling": column.scaling,
            "likelihood": column.likelihood,
            "note": column.note,
        }
        for column in columns
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("column")


def _column(
    cells: pd.Series, role: str, kind: str | None, levels: Any, method: str | None, common: str | None,
    codes: tuple[Any, ...],
) -> Column:  # fmt: skip
    name, proposed = str(cells.name), proposal(cells)
    chosen = proposed if kind is None else _overridden(cells, kind, proposed, levels)
    if levels is not None:
        chosen = _reordered(name, cells, chosen, levels)
    own = "standardise" if (role, chosen.type) == ("covariate", "count") else OWN_SCALING.get(chosen.type, "none")
    if chosen.type in BY_LEVELS or chosen.type in OTHERS:
        if method not in (None, "none"):
            raise ValueError(f"scaling names {name!r}, which is {chosen.type} and has no scale")
        own = "none"
    elif chosen.type == "count" and role == "outcome" and method not in (None, "none"):
        raise ValueError(f"scaling names {name!r}, a count, which its likelihood takes as it is: give it another type")
    elif method is not None or (common is not None and own != "none"):
        own = method or common or own
    if role == "label":
        chosen = Proposal(chosen.type, tuple(levels) if levels is not None else levels_of(cells), chosen.note)
    return Column(
        name,
        chosen.type,
        role,
        str(cells.dtype),
        tuple(map(plain, chosen.levels)),
        own,
        bool(cells.isna().any()),
        codes,
        chosen.note,
    )


def _overridden(cells: pd.Series, kind: str, proposed: Proposal, levels: Any) -> Proposal:
    if kind not in BY_LEVELS:
        return Proposal(kind)
    own = proposed.levels if proposed.type == kind else levels_of(cells)
    if kind == "ordinal" and not isinstance(cells.dtype, pd.CategoricalDtype) and all(map(_is_number, own)):
        own = tuple(sorted(own, key=float))
    is_number = all(_is_number(level) for level in own)
    is_text = not (is_number or (isinstance(cells.dtype, pd.CategoricalDtype) and cells.dtype.ordered))
    if kind == "ordinal" and levels is None and is_text:
        raise ValueError(
            f"column {cells.name!r} is said to be ordinal, and its categories have no order of their own: give "
            f"levels={{{cells.name!r}: [...]}} with {', '.join(map(repr, own[:6]))} in order"
        )
    if levels is None and (len(own) < 2 or (kind == "binary" and len(own) != 2)):
        raise ValueError(f"column {cells.name!r} is said to be {kind}, and has {len(own)} different values")
    return Proposal(kind, own)


def _is_number(level: Any) -> bool:
    try:
        float(level)
    except (TypeError, ValueError):
        return False
    return True


def _reordered(name: str, cells: pd.Series, chosen: Proposal, levels: Any) -> Proposal:
    if not isinstance(levels, list | tuple) or len(set(levels)) != len(levels) or len(levels) < 2:
        raise ValueError(f"levels of {name!r} must be a list of two or more different categories, got {levels!r}")
    lacking = [level for level in levels_of(cells) if level not in levels and bool((cells == level).any())]
    if lacking:
        raise ValueError(f"levels of {name!r} lack {lacking[0]!r}, which the column holds")
    kind = chosen.type if chosen.type in BY_LEVELS else "ordinal"
    if kind == "binary" and len(levels) != 2:
        kind = "categorical"
    return Proposal(kind, tuple(levels), chosen.note)


def _known(what: str, given: Mapping[str, Any], words: Sequence[str]) -> None:
    for name, word in given.items():
        if word not in words:
            near = difflib.get_close_matches(str(word), words, 1)
            of = f" of {name!r}" if name else ""
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"{what}{of} must be one of {', '.join(words)}, got {word!r}{hint}")


def _article(column: Column) -> str:
    what = {"date": "dates", "text": "texts", "id": "an id", "constant": "does not vary"}[column.type]
    return f"{what}: {column.note}" if column.note.startswith("numbers") else what
