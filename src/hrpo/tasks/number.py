r"""Numbers in text: 1,234 and 12 000, -5 with any minus, 3 1/2 and \frac{1}{2}, 10^6, 3\times10^4, 2.5 million.

`plain_numbers` gives what can be written in several ways one spelling; `last_number` reads the last number of a text.
"""

import re
import unicodedata
from collections import deque
from fractions import Fraction

_NUMBER_CHARS = 400  # nobody means a longer one, and Python's int() refuses 4,300 digits
_DIGITS = r"[0-9]{1,400}(?:\.[0-9]{1,400})?"
_START = (
    r"(?<![A-Za-z0-9_^])(?<!\^[{-])(?<!\^\{-)(?<![0-9][.])"  # digits glued to a letter or a caret: "H2O", "m2", "cm^2"
)

# ---- one spelling -----------------------------------------------------------------------------------------------

_SUPERSCRIPT = re.compile(r"([⁺⁻]?)([⁰¹²³⁴-⁹]+)")
_VULGAR = re.compile(r"(?<=[0-9])(?=[¼-¾⅐-⅞])")  # 2½ is 2 1/2
_ONE_CHARACTER = str.maketrans({**dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-"), "⁄": "/"})
_SPACE = r"(?:\\[ ,;:]|[ ~'’_])"
_GROUPS = re.compile(rf"{_START}(?<![.,])[1-9][0-9]{{0,2}}(?:{_SPACE}[0-9]{{3}})+(?![0-9])")
_MIXED = re.compile(r"(?<![0-9./^])([0-9]{1,9})(?: and)? +([0-9]{1,9})/([0-9]{1,9})(?![0-9.])")
_SCALES = {"hundred": 2, "thousand": 3, "lakh": 5, "million": 6, "crore": 7, "billion": 9, "trillion": 12}
_SCALED = re.compile(rf"{_START}({_DIGITS})(/[0-9]+)?[ -]?({'|'.join(_SCALES)})s?(?![a-z])", re.IGNORECASE)


def plain_numbers(text: str) -> str:
    """Return a text whose numbers are spelled alike.

    Every minus is a hyphen (the en dash too, which some type for it) and every space a plain one; superscripts are
    powers (`10⁶` is `10^{6}`); mixed numbers are improper fractions (`3 1/2` is `7/2`); spaces and apostrophes do not
    group digits (`12 000` is `12000`); thousands and millions are powers of ten (`2.5 million` is `2.5e6`).
    """
    text = _GROUPS.sub(lambda match: re.sub("[^0-9]", "", match[0]), _plain_letters(text))
    text = _MIXED.sub(_improper, text)
    return _SCALED.sub(lambda match: f"{match[1]}e{_SCALES[match[3].lower()]}{match[2] or ''}", text)


def _plain_letters(text: str) -> str:
    text = _SUPERSCRIPT.sub(lambda match: f"^{{{unicodedata.normalize('NFKC', match[0])}}}", text)
    return unicodedata.normalize("NFKC", _VULGAR.sub(" ", text).replace("º", "°")).translate(_ONE_CHARACTER)


def _improper(match: re.Match[str]) -> str:
    whole, over, under = map(int, match.groups())
    return f"{whole * under + over}/{under}" if over < under else match[0]


# ---- the last number --------------------------------------------------------------------------------------------

_WORDS_IN_TEX = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox) *\{([^{}]*)\}")
_FRAC = re.compile(
    r"((?<=[0-9]) *)?\\[dtc]?frac *"
    r"(?:([0-9])([0-9])|([0-9]) *\{([0-9.,]+)\}|\{(-?[0-9.,]+)\} *(?:\{([0-9.,]+)\}|([0-9])))"
)
# 1,234,567; in India 12,34,567; 1.234.567 and 1.234,5 in much of Europe
_COMMAS = re.compile(rf"{_START}(?:[1-9][0-9]{{0,2}}(?:,[0-9]{{3}})+|[1-9][0-9]?(?:,[0-9]{{2}})+,[0-9]{{3}})(?![0-9])")
_POINTS = re.compile(
    rf"{_START}(?<![.,])([1-9][0-9]{{0,2}}(?:(?:\.[0-9]{{3}}){{2,}}|(?:\.[0-9]{{3}})+(?=,[0-9])))(?:,([0-9]+))?"
    r"(?![0-9,.][0-9])"
)
_LETTERS = {"k": 3, "m": 6, "mn": 6, "b": 9, "bn": 9}
_ABBREVIATED = re.compile(rf"(?:([$£€¥₹] ?{_DIGITS})(?i:(k|mn?|bn?))|{_START}({_DIGITS})(k))(?![A-Za-z0-9])")
_SPACE_IN_TEX = re.compile(r"\\[,;: ]|~")
_COMMAND = re.compile(r"(\\[A-Za-z]+)(?=[0-9])")
_EXPONENT = r" ?(?:\^|\*\*)(?: ?\{ ?([+-]?[0-9]{1,3}) ?\}| ?([+-]?[0-9]{1,3})(?![0-9.]))(?! ?\^|\*\*)"
_POWER = re.compile(rf"{_START}(?<![.,)}}\]])([0-9]{{1,9}}(?:\.[0-9]{{1,9}})?){_EXPONENT}")
_TIMES_TEN = re.compile(rf"{_START}({_DIGITS}) *(?:\\times|\\cdot|[×·⋅∙*x]) *1e([+-]?[0-9]{{1,3}})")
_UNSIGNED = r"(?:[0-9]+(?:\.[0-9]+)?|(?<![A-Za-z0-9.])\.[0-9]+)(?:[eE][+-]?[0-9]{1,3}(?![A-Za-z0-9]))?"
_NUMBER = re.compile(
    # a hyphen right after a digit, a letter or a closing bracket subtracts ("5-3") or joins ("5-7"); elsewhere, and
    # touching its number, it is a sign
    r"(?P<inside>\\sqrt *(?:\[[^\]]{0,9}\])? *\{?|√\(?|frac *\{|\} *\{)?"
    r"(?P<minus>(?<![A-Za-z0-9_)\]}%])-(?:\\?[$£€¥₹])?|(?<== )- |(?<![0-9)] )\b(?:[Mm]inus|[Nn]egative) )?"
    rf"{_START}(?P<over>{_UNSIGNED})(?: ?/ ?(?P<under>-?{_UNSIGNED}))?"
    r"(?P<goes_on>(?=[)}\]]* ?(?:\\sqrt|√|\\pi(?![a-z])|π"
    r"|(?:\^|\*\*(?=[0-9a-z({]))(?! ?\{? ?(?:\\circ|°|\\text|th|st|nd|rd)))))?"
)


def last_number(text: str) -> Fraction | None:
    r"""Return the last number in a text ("a/b" counts as one), None where there is none that can be used.

    None too where the number is only a part of what is written: in a root, in a fraction of formulas, times pi.
    """
    text = _WORDS_IN_TEX.sub(r"\1", _plain_letters(text)).replace("\\!", "").replace("{,}", ",")
    text = _FRAC.sub(_slashed, _SPACE_IN_TEX.sub(" ", text))
    text = _COMMAS.sub(lambda match: match[0].replace(",", ""), text)
    text = _POINTS.sub(lambda match: match[1].replace(".", "") + (f".{match[2]}" if match[2] else ""), text)
    text = _ABBREVIATED.sub(_abbreviated, plain_numbers(text))
    text = _POWER.sub(_raised, _COMMAND.sub(r"\1 ", text))
    text = _TIMES_TEN.sub(r"\1e\2", text)
    last = deque(_NUMBER.finditer(text), maxlen=1)
    if not last or len(last[0][0]) > _NUMBER_CHARS or last[0]["inside"] or last[0]["goes_on"] is not None:
        return None
    match = last[0]
    over, under = (Fraction(match[part] or "1") for part in ("over", "under"))
    if under == 0:
        return None
    return (-over if match["minus"] else over) / under


def _raised(match: re.Match[str]) -> str:
    base, power = match[1], int(match[2] or match[3])
    if base == "10":
        return f"1e{power}"
    if len(base) * abs(power) > _NUMBER_CHARS or (Fraction(base) == 0 and power < 0):
        return match[0]
    return str(Fraction(base) ** power)


def _slashed(match: re.Match[str]) -> str:
    space, *parts = match.groups()
    return ("" if space is None else " ") + "/".join(part for part in parts if part)


def _abbreviated(match: re.Match[str]) -> str:
    number, letters = (match[1], match[2]) if match[1] else (match[3], match[4])
    return f"{number}e{_LETTERS[letters.lower()]}"
