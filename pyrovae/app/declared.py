"""How an option is declared: its default, help and check, by command, and how its values are read and written."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, get_args

from pyrovae.errors import OptionError

Widths = tuple[int, ...]


@dataclass(frozen=True)
class Check:
    """What a value must fulfil, and how a message says it: "--epochs `wanted`, got -1"."""

    fulfilled: Callable[[Any], bool]
    wanted: str


def at_least(least: int, most: int = 10**9) -> Check:
    """No more than `most`, so that nothing is counted out, or allocated, for a number that was typed by mistake."""
    return Check(lambda value: bool(least <= value <= most), f"must be at least {least}, and at most {most}")


def sizes(most: int, longest: int) -> Check:
    """A size, or several, of at most `most` each. Those below 1 are refused where the model is known."""
    return Check(
        lambda value: (
            len(value) <= longest and max(value, default=0) <= most if isinstance(value, tuple) else value <= most
        ),
        f"may be at most {most}" + (f", and there may be at most {longest}" if longest > 1 else ""),
    )


def amount(what: str) -> Check:
    """Zero switches it off."""
    return Check(lambda value: 0 <= value < math.inf, f"is {what}, 0 for none")


POSITIVE = Check(lambda value: value > 0, "must be positive")


def option(
    default: Any,
    help: str,
    *,
    check: Check | None = None,
    commands: tuple[str, ...] = ("fit",),
    by_model: bool = False,
    later: bool = False,
    before: Any = None,
    defaults: Mapping[str, Any] | None = None,
    helps: Mapping[str, str] | None = None,
) -> Any:
    """Declare a field of `Options`. Its name and type are those of the field.

    Args:
        default: the value where none is given; None where it is decided from the data.
        help: what `--help` says. `{known}` stands for the names that the option knows, `{models}` for the models that it is
            meant for.
        check: what a value other than None must fulfil.
        commands: the commands that offer it.
        by_model: whether it is meant only for the models that list it in `Model.takes`.
        later: whether there are run.json files from before it existed; they are read with the default, or with `before`.
        before: what such runs did, where that is not the default.
        defaults: by command, another default. A command that gives a default but does not offer the option still uses it.
        helps: by command, another help.
    """
    declared: dict[str, Any] = {
        "help": help,
        "check": check,
        "commands": commands,
        "by_model": by_model,
        "later": later,
        "before": before,
    }
    declared |= {"defaults": defaults or {}, "helps": helps or {}}
    return field(default=default, metadata=declared)


@dataclass(frozen=True)
class Option:
    """An option as it was declared; see `option`."""

    name: str
    type: Any
    default: Any
    help: str
    check: Check | None
    commands: tuple[str, ...]
    by_model: bool
    later: bool
    before: Any
    defaults: Mapping[str, Any]
    helps: Mapping[str, str]

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    @property
    def is_widths(self) -> bool:
        """Whether it takes several whole numbers, separated by commas on the command line."""
        return self.type in (Widths, Widths | None)

    def default_of(self, command: str) -> Any:
        return self.defaults.get(command, self.default)

    def help_of(self, command: str) -> str:
        return self.helps.get(command, self.help)

    def refuse(self, value: Any) -> None:
        if self.check is not None and value is not None and not self.check.fulfilled(value):
            raise OptionError(f"{self.flag} {self.check.wanted}, got {value}.")

    def parse(self, text: Any) -> Any:
        """The value that the command line gives."""
        if not self.is_widths or text is None:
            return text
        try:
            return tuple(int(width) for width in text.split(",") if width.strip())
        except ValueError:
            raise OptionError(f"{self.flag} takes whole numbers, such as 400 or 300,300, got {text!r}.") from None

    def shown(self, value: Any) -> Any:
        """The value as the command line writes it."""
        return ",".join(map(str, value)) if self.is_widths and value is not None else value

    def from_json(self, value: Any) -> Any:
        if self.is_widths and value is not None:
            numbers = tuple(value) if isinstance(value, list) else (value,)  # `label` wrote its one width as a number
            if all(type(number) is int for number in numbers):
                return numbers
        else:
            known = get_args(self.type) if isinstance(self.type, UnionType) else (self.type,)
            if (
                (value is None and type(None) in known)
                or type(value) in known
                or (type(value) is int and float in known)
            ):
                return value
        raise TypeError(f"{self.name}: {value!r}")
