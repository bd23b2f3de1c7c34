"""Arguments that many take: numbers, whole numbers, widths of layers, words. A wrong one is one OptionError."""

from __future__ import annotations

import functools
import inspect
import math
import operator
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from collections.abc import Set as AnySet
from numbers import Integral
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from pyrovae._near import near_names
from pyrovae.errors import OptionError, shortened

P = ParamSpec("P")
R = TypeVar("R")
MOST_LAYERS = 1000
MOST = 2**31 - 1  # units of a layer, or elements of a row along one dimension: 8 GiB in float32


def told(value: object) -> str:
    """A value as an error message quotes it: in one line, and not too long."""
    return shortened(repr(value), 100)


def index_of(value: Any) -> int | None:
    """A whole number, such as one of NumPy's, as a Python int; None for anything else, and for True and False."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # the last two: an array or a tensor with several elements
        return None


def as_count(name: str, value: Any, least: int = 1, most: int | None = None, *, also: str = "") -> int:
    """How many there are to be of something, as a Python int; `also` says what else it may be, such as ", or None".

    Raises:
        OptionError: It is no whole number, or not between `least` and `most`.

    Example:
        >>> from pyrovae._arguments import as_count
        >>> as_count("blocks", 2.5)
        Traceback (most recent call last):
        pyrovae.errors.OptionError: blocks must be a whole number of at least 1, got 2.5.
    """
    number = index_of(value)
    upper = "" if most is None else f" and at most {most}"
    if number is None:
        raise OptionError(f"{name} must be a whole number of at least {least}{upper}{also}, got {told(value)}.")
    if number < least:
        raise OptionError(f"{name} must be at least {least}{upper}{also}, got {told(number)}.")
    if most is not None and number > most:
        raise OptionError(f"{name} must be at most {most}{also}, got {told(number)}.")
    return number


def as_seed(seed: Any, least: int = -(2**63), most: int = 2**63 - 1) -> int:
    """A seed as a Python int, by default any whole number of 64 bits, such as one of NumPy's. OptionError otherwise."""
    number = index_of(seed)
    if number is None or not least <= number <= most:
        bits = "at most 63 bits" if least == -(2**63) else f"at least {least} and at most {most}"
        raise OptionError(f"seed must be a whole number of {bits}, got {told(seed)}.")
    return number


def as_number(
    name: str,
    value: Any,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    below: float = math.inf,
    most: float = math.inf,
    also: str = "",
    cure: str = "",
) -> float:
    """A finite number between bounds, as a Python int or float.

    Args:
        name: The argument.
        value: Its value.
        above: A bound that it must exceed.
        least: A lower bound that it may have.
        below: A bound that it must not reach.
        most: An upper bound that it may have.
        also: What else it may be, for the message, such as ", or None".
        cure: A sentence at the end of the message.

    Raises:
        OptionError: It is no number, not finite, or out of bounds.

    Example:
        >>> from pyrovae._arguments import as_number
        >>> as_number("scale", -1, above=0)
        Traceback (most recent call last):
        pyrovae.errors.OptionError: scale must be a positive number, got -1.
    """
    number = number_of(value)
    inside = number is not None and above < number < below and least <= number <= most and math.isfinite(number)
    if number is None or not inside:
        wanted = _range(above, least, below, most)
        raise OptionError(f"{name} must be {wanted}{also}, got {told(value)}.{cure and ' '}{cure}")
    return number


def _range(above: float, least: float, below: float, most: float) -> str:
    """The numbers between bounds, in words."""
    bounds = {"above": above, "at least": least, "below": below, "at most": most}
    told_bounds = {words: bound for words, bound in bounds.items() if math.isfinite(bound)}
    match tuple(told_bounds):
        case ():
            return "a finite number"
        case ("above",) if above == 0:
            return "a positive number"
        case ("above", "below"):
            return f"a number between {above:g} and {below:g}"
        case ("at least", "at most"):
            return f"a number from {least:g} to {most:g}"
    words = " and ".join(f"{words} {bound:g}" for words, bound in told_bounds.items())
    return f"a number {'of ' if words.startswith('at') else ''}{words}"


def number_of(value: Any) -> float | None:
    """A number, such as one of NumPy's or a tensor with one element, as a Python int or float; None for anything else."""
    if isinstance(value, (bool, str, bytes)):
        return None
    try:
        number = float(value)
        return int(value) if isinstance(value, Integral) else number
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None


def as_widths(name: str, widths: Any, *, some: bool = False, least: int = 1, one: str = "layer") -> tuple[int, ...]:
    """Widths of layers, one for each: `512` means `(512,)`, one layer of that width, and `()` none.

    Args:
        name: The argument, such as "hidden".
        widths: Its value.
        some: Whether there must be one at least.
        least: The least of each.
        one: What has such a width, for the message.

    Raises:
        OptionError: It is neither a whole number nor a list or tuple of them, or one is out of range.

    Example:
        >>> from pyrovae._arguments import as_widths
        >>> as_widths("hidden", 512), as_widths("hidden", [64, 64])
        ((512,), (64, 64))
    """
    found = _listed(widths)
    numbers = None if found is None else [index_of(one) for one in found]
    if numbers is None or (some and not numbers) or any(n is None or not least <= n <= MOST for n in numbers):
        none = "" if some else ", or () for none"
        raise OptionError(
            f"{name} must be a whole number from {least} to {MOST}, or a list of such numbers, one for each {one}{none}, got "
            f"{told(widths)}."
        )
    return tuple(n for n in numbers if n is not None)


def _listed(given: Any) -> list[Any] | None:
    """What a list holds, or an array; a number by itself as a list; None for what has no order, and for texts."""
    if index_of(given) is not None:
        return [given]
    if isinstance(given, (str, bytes, Mapping, AnySet)) or not isinstance(given, Iterable):
        return None
    try:
        return list(given)
    except (TypeError, ValueError):  # an array without dimensions
        return None


def as_choice(name: str, value: Any, choices: Collection[str], *, also: str = "") -> str:
    """One of several words; `also` says what else it may be, such as " or None".

    Raises:
        OptionError: It is none of them. The message says which there are.

    Example:
        >>> from pyrovae._arguments import as_choice
        >>> as_choice("gradient", "steep", ("plain", "stl"))
        Traceback (most recent call last):
        pyrovae.errors.OptionError: gradient must be one of 'plain', 'stl', got 'steep'.
    """
    if not isinstance(value, str) or value not in choices:
        near = near_names(value, list(choices)) if isinstance(value, str) else ""
        raise OptionError(f"{name} must be one of {', '.join(map(repr, choices))}{also}, got {told(value)}{near}.")
    return value


def as_path(name: str, value: Any) -> Path:
    """The path of a file or folder.

    Raises:
        OptionError: It is no text, nor an object that stands for a path.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise OptionError(f"{name} must be the path of a file or folder, a text or a pathlib.Path, got {told(value)}.")
    return Path(value)


def as_mapping(name: str, value: Any, of: str) -> dict[Any, Any]:
    """What is given by name, as a dict; {} where None is given.

    Raises:
        OptionError: It is no dict. `of` says what it holds, such as "values by the names of arguments".
    """
    if value is not None and not isinstance(value, Mapping):
        raise OptionError(f"{name} must be a dict of {of}, or None, got {told(value)}.")
    return dict(value or {})


def as_function(name: str, value: Any, of: str) -> Any:
    """A function as it is.

    Raises:
        OptionError: It cannot be called. `of` says of what it is one, such as "a batch".
    """
    if not callable(value):
        raise OptionError(f"{name} must be a function of {of}, got {told(value)}.")
    return value


def as_several(name: str, value: Any, of: str) -> list[Any]:
    """What a list, a tuple or another series holds.

    Raises:
        OptionError: It is none, such as a text, a dict or a number. `of` says what it holds, such as "modules".
    """
    found = None if index_of(value) is not None else _listed(value)
    if found is None:
        raise OptionError(f"{name} must be a list of {of}, got {told(value)}.")
    return found


def as_names(name: str, value: Any) -> tuple[str, ...] | None:
    """Names as a tuple, of one given by itself or of several; None where None is given.

    Raises:
        OptionError: It is neither a text nor a list of texts.
    """
    listed = [value] if isinstance(value, str) else _listed(value) if value is not None else []
    if listed is None or not all(isinstance(one, str) for one in listed):
        raise OptionError(f"{name} must be a name, or a list of names, got {told(value)}.")
    return None if value is None else tuple(listed)


def refuse_unknown(who: str, given: Iterable[str], known: Collection[str], meant: Mapping[str, str]) -> None:
    """OptionError for a keyword that a function does not have. It says which one was meant.

    Args:
        who: The function, such as "pv.fit".
        given: The keywords of a call.
        known: Those that it has.
        meant: What other libraries call them.
    """
    for name in given:
        if name not in known:
            near = f": use {meant[name]}" if name in meant else near_names(name, list(known))
            near = near or f"; those that it has are {', '.join(known)}"
            raise OptionError(f"{who} has no option {name!r}{near}.")


def with_known_keywords(who: str, meant: Mapping[str, str]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator of a function of many options, whose unknown keywords are refused by `refuse_unknown`."""

    def decorated(function: Callable[P, R]) -> Callable[P, R]:
        known = tuple(inspect.signature(function).parameters)

        @functools.wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            refuse_unknown(who, kwargs, known, meant)
            return function(*args, **kwargs)

        return called

    return decorated
