"""Numbers as people write them: 1,234.5 and 1.234,5, in groups of thousands, with a currency or per cent."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

_GROUPS = r" '\u2019\u00a0\u2009\u202f"  # marks between thousands that are no decimal marks
_CODES = (
    "EUR|USD|GBP|CHF|JPY|CNY|CAD|AUD|NZD|SEK|NOK|DKK|ISK|PLN|CZK|HUF|RON|BGN|TRY|RUB|UAH|INR|PKR|IDR|KRW|SGD|HKD|TWD|THB|MYR"
    "|PHP|VND|BRL|MXN|ARS|CLP|COP|PEN|ZAR|NGN|KES|EGP|ILS|SAR|AED"
)
_MONEY = rf"(?:[A-Z]{{0,2}}[$¢£¤¥\u20a0-\u20c0]|(?<![A-Za-z])(?:{_CODES}|kr\.?|zł|Kč|Ft|Fr\.)(?![A-Za-z]))"
_BEFORE = re.compile(rf"{_MONEY}[\s\u00a0\u202f]*")
_AFTER = re.compile(rf"(?:{_MONEY}|%)$")
# in time that grows with the length of a cell, whatever is in it: no two parts can take the same digits
_POINT = re.compile(r"(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_POINT_GROUPS = re.compile(rf"(\d{{1,3}}(,\d{{2,3}})+|\d{{1,3}}([{_GROUPS}]\d{{3}})+)(\.\d*)?")
_COMMA = re.compile(rf"(\d+|\d{{1,3}}(\.\d{{3}})+|\d{{1,3}}([{_GROUPS}]\d{{3}})+)(,\d+)?([eE][+-]?\d+)?|,\d+")
_LAST_GROUP = re.compile(r",\d{3}(\.|$)")
_DIGIT = re.compile(r"\d")
_FORM = re.compile(r"(\D*)1(\D?)234([.,])5((?:\D.*)?)")
_LONGEST = 60  # characters of a number with its unit, such as kg, mg/dL and km²
_NO_UNITS = ("st", "nd", "rd", "th", "am", "pm", "AM", "PM", "a.m", "p.m")  # behind the number of a place, or an hour
_PLURAL = re.compile(r"(?<=[A-Za-z]{2})s$")  # of kgs and hours; ms and s are units of their own
_MULTIPLES = ("k", "K", "M", "B", "thousand", "mio", "mn", "million", "bn", "billion", "tsd", "mrd")
_SIGNS = {"USD": "$", "US$": "$", "EUR": "€", "GBP": "£", "JPY": "¥", "INR": "₹", "PLN": "zł", "CZK": "Kč", "HUF": "Ft"}
_SIGNS |= {"kr.": "kr", "SEK": "kr", "NOK": "kr", "DKK": "kr", "CHF": "Fr."}
_ADDRESS = re.compile(r"(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})")
_LETTER = re.compile("[A-Za-z\u00b5\u03bc\u03a9\u00b0]")
_WITH_UNIT = re.compile(
    rf"([\d.,{_GROUPS}]*\d\.?(?:[eE][+-]?\d+)?)[\s\u00a0\u202f]?"
    r"([A-Za-z\u00b5\u03bc\u03a9\u00b0][A-Za-z\u00b5\u03bc\u03a9\u00b0\u00b2\u00b3/\u00b7*^.\d-]{0,19}(?: [A-Za-z/]{1,10})?)"
)


class Style(NamedTuple):
    """How the numbers of a column are written: with a decimal comma, what is negative in brackets, a unit behind.

    The `sign` is a currency, or per cent, that its cells have, where that is known.
    """

    comma: bool = False
    brackets: bool = False
    unit: str = ""
    sign: str = ""


class _Parts(NamedTuple):
    sign: str
    before: str
    digits: str
    after: str
    brackets: bool


def _parts(cell: str) -> _Parts | None:
    """A cell without what is around its digits, None where it has no digit or two signs."""
    if not _DIGIT.search(cell):
        return None
    text = cell.strip()
    brackets = text[0] == "(" and text[-1] == ")"
    sign, text = _sign(text[1:-1].strip() if brackets else text)
    found = _BEFORE.match(text)
    before = found[0] if found else ""
    inner, text = _sign(text[len(before) :]) if before else ("", text)
    found = _AFTER.search(text)
    digits = text[: found.start()].rstrip() if found else text
    if not found and not before and len(text) <= _LONGEST and _LETTER.search(text) and not any(_reads(text)):
        with_unit = _WITH_UNIT.fullmatch(text)
        digits = with_unit[1] if with_unit else text
    if (sign and inner) or (brackets and (sign or inner)):
        return None
    return _Parts(sign or inner, before, digits, text[len(digits) :], brackets)


def _sign(text: str) -> tuple[str, str]:
    """The sign that a text begins with, "" for none, and the rest."""
    if text[:1] in ("-", "\u2212"):
        return "-", text[1:]
    return ("+", text[1:]) if text[:1] == "+" else ("", text)


def _reads(digits: str) -> tuple[bool, bool]:
    """Whether digits can be read with a decimal comma, and with a decimal point."""
    groups = _POINT_GROUPS.fullmatch(digits) and ("," not in digits or _LAST_GROUP.search(digits))
    return bool(_COMMA.fullmatch(digits)), bool(_POINT.fullmatch(digits) or groups)


def unit_of(after: str) -> str:
    """The unit behind a number, such as kg, as which kgs counts, too; "" for a currency and per cent."""
    after = after.strip()
    if not after or _AFTER.fullmatch(after):
        return ""
    return _PLURAL.sub("", after.rstrip(".")) or after


def _sign_of(part: _Parts) -> str:
    """The currency of a number, or per cent, "" for none: USD and $ are one."""
    sign = part.before.strip() or ("" if unit_of(part.after) else part.after.strip())
    return _SIGNS.get(sign, sign)


def word_units(cells: Iterable[Any]) -> Counter[str]:
    """The units that are behind numbers, currencies and per cent left out, and in how many cells each is."""
    numbers = Counter(cell for cell in cells if isinstance(cell, str))
    found: Counter[str] = Counter()
    for text, number in numbers.items():
        part = _parts(text)
        unit = "" if part is None else unit_of(part.after)
        if part is not None and unit and unit not in _NO_UNITS and any(_reads(part.digits)):
            found[unit] += number
    return found


def style_of(cells: Iterable[Any], known: Style | None = None, unit: str = "") -> Style:
    """How numbers are written, by all cells of a column.

    Where all of them can be read both ways, such as 1.234 and 1,234, it is as it is known to be, or else with a decimal point,
    unless all cells with a full stop are amounts of a currency, which have no three decimals. Brackets are a minus where
    other cells have none. A cell with a unit other than the `unit`, or the one that is known, is no number, nor is one with
    another currency than the one that is known.
    """
    cells, unit = list(cells), unit or (known.unit if known else "")
    sign = known.sign if known else ""
    texts = {cell for cell in cells if isinstance(cell, str) and any(mark in cell for mark in ",.(")}
    found = [part for text in texts if (part := _parts(text)) is not None]
    reads = [_reads(part.digits) for part in found]
    comma, point = (sum(one[k] and not one[1 - k] for one in reads) for k in (0, 1))
    brackets = any(part.brackets for part in found) and any(not _in_brackets(cell) for cell in cells)
    if comma or point:
        return Style(comma > point, brackets or bool(known and known.brackets), unit, sign)
    if known is not None:
        return Style(known.comma, brackets or known.brackets, unit, sign)
    stops = [part for part, both in zip(found, reads) if all(both) and "." in part.digits]
    amounts = bool(stops) and all(part.before or part.after.strip() not in ("", "%") for part in stops)
    return Style(amounts and not unit, brackets, unit)


def _in_brackets(cell: Any) -> bool:
    return isinstance(cell, str) and (cell.strip().startswith("(") or not _DIGIT.search(cell))


def number_of(cell: str, style: Style) -> float | None:
    """The finite number that a text says in a style, None if it says none; 1e999 is beyond all floating numbers."""
    part = _parts(cell)
    if part is None or (part.brackets and not style.brackets):
        return None
    unit, sign = unit_of(part.after), _sign_of(part)
    if (unit and unit != style.unit) or (sign and (style.unit or (style.sign and sign != style.sign))):
        return None
    if not unit and is_multiple(style.unit):
        return None
    comma, point = _reads(part.digits)
    if comma and style.comma:
        plain = re.sub(rf"[.{_GROUPS}]", "", part.digits).replace(",", ".")
    elif point:
        plain = re.sub(rf"[,{_GROUPS}]", "", part.digits)
    else:
        return None
    number = -float(plain) if part.sign == "-" or part.brackets else float(plain)
    return number if math.isfinite(number) else None


def form_of(cells: Iterable[Any], known: Style | None = None, unit: str = "") -> str | None:
    """How most of the numbers are written, told by how 1234.5 would be: "1.234,5 €"; "" for 1234.5; None without numbers."""
    texts = [cell for cell in cells if isinstance(cell, str)]
    style = style_of(texts, known, unit)
    different = dict.fromkeys(texts)  # in their order, by which one of two equally frequent forms is the first met
    found = [part for text in different if number_of(text, style) is not None and (part := _parts(text)) is not None]
    if not found:
        return None
    (before, after), _ = Counter((part.before, part.after) for part in found).most_common(1)[0]
    wholes = (part.digits.partition("," if style.comma else ".")[0] for part in found)
    marks = Counter(mark for whole in wholes for mark in dict.fromkeys(re.findall(rf"[.,{_GROUPS}]", whole)))
    group = marks.most_common(1)[0][0] if marks else ""
    form = f"{before}1{group}234{',' if style.comma else '.'}5{after}"
    return "" if form == "1234.5" else form


def without_sign(form: str) -> str:
    """A form without the currency that it has, or per cent."""
    found = _FORM.fullmatch(form)
    bare = form if found is None else form[len(found[1]) : len(form) - len(found[4])]
    return "" if bare == "1234.5" else bare


def units_of(cells: Iterable[Any]) -> list[str]:
    """The different currencies, and per cent, that numbers are written with."""
    parts = (_parts(cell) for cell in {cell for cell in cells if isinstance(cell, str)})
    return sorted(
        {unit for part in parts if part is not None for unit in (part.before.strip(), part.after.strip()) if unit}
    )


def without_unit(cells: Iterable[Any]) -> list[Any]:
    """The cells that are numbers with nothing behind."""
    numbers = (cell for cell in cells if not isinstance(cell, str) or ((part := _parts(cell)) and _is_bare(part)))
    return list(numbers)


def _is_bare(part: _Parts) -> bool:
    return not part.after.strip() and not part.before and any(_reads(part.digits))


def is_multiple(unit: str) -> bool:
    """Whether a unit multiplies a number, so that one without it says something else: 5k and 500."""
    return unit in _MULTIPLES or unit.lower() in _MULTIPLES[4:]


def are_addresses(cells: Iterable[Any]) -> bool:
    """Whether all cells are addresses of computers, such as 192.168.100.101, which is no number with a mark at thousands."""
    return all(
        isinstance(cell, str)
        and (found := _ADDRESS.fullmatch(cell.strip())) is not None
        and all(int(part) < 256 for part in found.groups())
        for cell in cells
    )


def is_form(form: Any) -> bool:
    """Whether this says how 1234.5 is written."""
    return isinstance(form, str) and _FORM.fullmatch(form) is not None


def style_in(form: str) -> Style | None:
    """The style of a form, None for no form."""
    found = _FORM.fullmatch(form)
    if found is None:
        return None
    sign = _sign_of(_Parts("", found[1], "1234", found[4], brackets=False))
    return Style(found[3] == ",", unit=unit_of(found[4]), sign=sign)


def write(number: float, form: str, decimals: int | None) -> str:
    """A number in a form, with so many decimals; None for as many as seven digits need."""
    found = _FORM.fullmatch(form)
    before, group, mark, after = found.groups() if found else ("", "", ".", "")
    plain = f"{abs(number):,.{decimals}f}" if decimals is not None else f"{float(f'{abs(number):.7g}'):,}"
    whole, _, rest = plain.removesuffix(".0" if decimals is None else "\0").partition(".")
    minus = "-" if number < 0 and any(digit in "123456789" for digit in plain) else ""
    return f"{minus}{before}{whole.replace(',', group)}{mark + rest if rest else ''}{after}"
