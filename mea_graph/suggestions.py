"""What a user may have meant by a name that does not exist."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns the end of a message about an unknown name: the known name nearest to it, or nothing where none is near.

    Case and the difference between `-` and `_` do not count; a name that only one of them begins with is that one, cut short.

    Args:
        name: What came.
        known: The names there are.

    >>> did_you_mean("poolng", ["channels", "pooling"])
    " (did you mean 'pooling'?)"
    >>> did_you_mean("colour", ["channels", "pooling"])
    ''
    """
    by_plain_form: dict[str, str] = {}
    for candidate in known:
        by_plain_form.setdefault(_plain(candidate), candidate)
    begun = [plain for plain in by_plain_form if len(name) > 2 and plain.startswith(_plain(name))]
    near = begun if len(begun) == 1 else get_close_matches(_plain(name), by_plain_form, n=1, cutoff=0.65)
    return f" (did you mean {by_plain_form[near[0]]!r}?)" if near else ""


def _plain(name: str) -> str:
    return name.casefold().replace("-", "_")
