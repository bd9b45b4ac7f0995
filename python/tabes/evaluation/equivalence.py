"""When two answers of mathematics say the same."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from fractions import Fraction

_DEEPEST = 20  # brackets within one another; no answer has as many
_LONGEST = 300  # digits of a fraction that is compared by value


def equivalent(one: str, other: str) -> bool:
    r"""Whether two answers of mathematics say the same, after `normalise`.

    Numbers are compared by value (``0.5``, ``\frac12`` and ``1/2``, mixed ones as ``2 3/4``),
    sequences and points part by part and in order. Algebra is not done: ``x+1`` and ``1+x`` differ.
    """
    return _same(normalise(one), normalise(other), _DEEPEST)


def _same(a: str, b: str, depth: int) -> bool:
    if a == b:
        return True
    x, y = _value(a), _value(b)
    if x is not None or y is not None:
        return x == y
    brackets = _brackets(a)
    if brackets != _brackets(b) or depth == 0:
        return False
    if brackets:
        a, b = a[1:-1], b[1:-1]
    parts_a, parts_b = _split(a), _split(b)
    if len(parts_a) != len(parts_b) or (len(parts_a) == 1 and not brackets):
        return False
    return all(_same(p, q, depth - 1) for p, q in zip(parts_a, parts_b, strict=True))


def _depths(text: str) -> list[int]:
    """How many brackets are open behind each character."""
    depths, depth = [], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        depths.append(depth)
    return depths


def _brackets(text: str) -> str:
    """The round or square brackets around a text, which tell open from closed intervals."""
    ends = text[:1] + text[-1:]
    if ends not in ("()", "[]", "(]", "[)"):
        return ""
    return ends if 0 not in _depths(text)[:-1] else ""  # not (1)+(2)


def _split(text: str) -> list[str]:
    """`text` at the commas that stand in no bracket."""
    depths = _depths(text)
    commas = [i for i, c in enumerate(text) if c == "," and depths[i] == 0]
    return [text[i:j] for i, j in zip([0, *(c + 1 for c in commas)], [*commas, None], strict=True)]


_DROPPED = re.compile(r"\\(?:left|right|big|Big|bigg|Bigg|displaystyle)(?![a-zA-Z])")
_SPACES = re.compile(
    r"(?<!\\)\\[,;:> ]|~|\\(?:quad|qquad|enspace|thinspace|medspace|thickspace)(?![a-zA-Z])|\s+"
)
_DEGREES = re.compile(r"\^\s*(?:\\circ(?![a-zA-Z])|\{\s*\\circ\s*\})|\\degree(?![a-zA-Z])|°")
_TEXT = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}"
)
_POWER = r"(?: ?\^ ?(?:\d|\{\d\}))?"
_UNIT = re.compile(rf"{_TEXT.pattern}{_POWER} ?$")
_WORDS = re.compile(rf"(?<=[\d}}]) ?([A-Za-z]{{2}}[A-Za-z /]*){_POWER}$")
# What a number may be of without being marked as text; single letters could be variables.
_UNITS = frozenset(
    """
    mm cm dm km inch inches in ft foot feet yd yard yards mile miles meter meters metre metres
    centimeter centimeters centimetre centimetres millimeter millimeters kilometer kilometers mg kg
    gram grams kilogram kilograms gm lb lbs pound pounds oz ounce ounces ton tons ml liter liters
    litre litres cup cups gallon gallons quart quarts pint pints sec secs second seconds min mins
    minute minutes hr hrs hour hours day days week weeks month months year years mph kph cent cents
    dollar dollars euro euros usd percent pct degree degrees deg radian radians rad unit units
    square sq cubic cu per
    """.split()  # noqa: SIM905
)
_SYMBOLS = {
    "\u2212": "-",
    "π": r"\pi ",
    "∞": r"\infty ",
    "√": r"\sqrt ",
    "\u00d7": r"\cdot ",
    "·": r"\cdot ",
    r"\times": r"\cdot",
    r"\dfrac": r"\frac",
    r"\tfrac": r"\frac",
    r"\cfrac": r"\frac",
    r"\$": "",
    "$": "",
    r"\%": "",
    "%": "",
    r"\lbrace": r"\{",
    r"\rbrace": r"\}",
}


def _vulgar(match: re.Match[str]) -> str:
    above, _, below = unicodedata.normalize("NFKC", match[0]).partition("\u2044")
    return rf"\frac{{{above}}}{{{below}}}"


def normalise(answer: str) -> str:
    r"""One spelling for answers that look different and mean the same.

    Goes: spacing and sizing commands, currency, percent and degree signs, units behind a number
    (anything in ``\text{}``, and well-known words), the left side of ``x = ...``, separators of
    thousands, a final full stop. ``\frac12``, ``\frac{1}2`` and ``1/2`` become ``\frac{1}{2}``,
    ``1 1/2`` becomes ``1\frac{1}{2}``, ``\sqrt3`` becomes ``\sqrt{3}``. Between digits a space
    stays: ``1 2`` is not ``12``.
    """
    text = re.sub("[\u00bc-\u00be\u2150-\u215e]", _vulgar, answer)  # a quarter to seven eighths
    for old, new in _SYMBOLS.items():
        text = text.replace(old, new)
    text = _without_thousands(_DEGREES.sub("", _DROPPED.sub("", text)))
    text = _without_units(re.sub(" +", " ", _SPACES.sub(" ", text)).strip())
    text = _TEXT.sub(r"\1", text).strip().removesuffix(".").strip()
    text = re.sub(r"(?<=\d) ?[/\u2044] ?(?=\d)", "/", text)
    if re.fullmatch(r"-? ?\d{1,3}(?:,\d{3})+(?:\.\d+| \d+/\d+)?", text):
        text = text.replace(",", "")
    if re.fullmatch(r"[A-Za-z ]{2,}", text):
        return text.lower()
    text = _one_spelling_of_fractions(text)
    # \pi r is not \pir; the arguments of roots and fractions get their braces further down.
    text = re.sub(r"(\\(?!sqrt|frac)[a-zA-Z]+) (?=[a-zA-Z])", r"\1{}", text)
    text = re.sub(r"(?<!\d) | (?!\d)", "", text)
    text = re.sub(r"^[A-Za-z]\w?(?:=|\\in(?![a-zA-Z])(?:\{\})?)", "", text)
    text = re.sub(r"([_^])\{(\w)\}", r"\1\2", text)
    text = re.sub(r"\\sqrt(\w)", r"\\sqrt{\1}", text)
    text = re.sub(r"(?<![\w}])\\frac\{-([^{}]*)\}", r"-\\frac{\1}", text)
    text = re.sub(r"(?<![\w}])(\\frac\{[^{}]*\})\{-([^{}]*)\}", r"-\1{\2}", text)
    text = text.removeprefix("--")
    text = re.sub(r"^\(([A-Z])\)$", r"\1", text)  # a choice
    return re.sub(r"(?<![\d.])\.(?=\d)", "0.", text)


def _without_thousands(text: str) -> str:
    r"""Without the marks that can be nothing else: ``1{,}000``, ``1,\!000``, ``1\,000``, ``1 000``.

    A plain comma may separate two numbers.
    """
    text = re.sub(r"(?<=\d)(?:\{,\}|,\\!|\\[!,])\s*(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<!\\)\\!", "", text)
    text = re.sub(r"(?<=\d)\{,\}(?=\d)", ",", text)
    grouped = r"(?<![\w.,/}])(?<!\d )[1-9]\d{0,2}(?: \d{3})+(?![\w/])(?! \d)"
    return re.sub(grouped, lambda m: m[0].replace(" ", ""), text)


def _without_units(text: str) -> str:
    unit = _UNIT.search(text)
    if unit and re.search(r"\d", text[: unit.start()]):
        return text[: unit.start()].rstrip()
    words = _WORDS.search(text.removesuffix("."))
    if words and all(word in _UNITS for word in re.split("[ /]+", words[1].lower().strip(" /"))):
        return text[: words.start()]
    return text


def _one_spelling_of_fractions(text: str) -> str:
    r"""``\frac{1}{2}`` for ``\frac12``, ``\frac 1 2``, ``\frac{1}2`` and ``1/2``, with a whole
    number in front for a mixed one."""
    text = re.sub(r"\\frac ?(\w) ?(\w)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac ?(\w)(?= ?\{)", r"\\frac{\1}", text)
    text = re.sub(r"(\\frac ?\{[^{}]*\}) ?(\w)", r"\1{\2}", text)
    # The part behind the whole number is less than one. 1 3/2 and 1 000/3 stay as they are.
    mixed = re.compile(r"(?<![\w}.])(?<![\d/] )(\d+) ([1-9]\d*)/(\d+)(?![\w{./])")
    text = mixed.sub(
        lambda m: rf"{m[1]}\frac{{{m[2]}}}{{{m[3]}}}" if _less(m[2], m[3]) else m[0], text
    )
    return re.sub(r"(?<![\w}.])(?<!\d )(\d+)/(\d+)(?![\w{.])", r"\\frac{\1}{\2}", text)


def _less(digits: str, others: str) -> bool:
    return Decimal(digits) < Decimal(others)


def _value(text: str) -> Fraction | Decimal | None:
    """The number that a normalised answer is: an integer, a decimal, a fraction or a mixed one."""
    if re.fullmatch(r"-?\d+(\.\d*)?", text):
        return Decimal(text)
    match = re.fullmatch(r"(-?)(\d*)\\frac\{(\d+)\}\{(\d+)\}", text)
    if match is None or len(text) > _LONGEST:
        return None
    whole, above, below = int(match[2] or 0), int(match[3]), int(match[4])
    if below == 0 or (match[2] and above >= below):
        return None  # 3\frac{7}{2} may be a product
    size = whole + Fraction(above, below)
    return -size if match[1] else size
