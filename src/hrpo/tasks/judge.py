r"""Is a completion right? One rule for each kind of answer, and a second one for mathematics.

`judge` reads the text after the last delimiter (the whole text where there is none):

- "number": the last number in it equals the gold one, exactly, as fractions; see number.py.
- "math": math-verify calls its last formula equal to the gold one, or both are the same LaTeX string up to layout.
- "choice": the letter that it chooses is the gold one; see letter.py.
- "qa": it equals one of the gold answers after SQuAD's normalisation, typographic letters taken for typed ones.
- "math_string": as in the paper's release, see math_string.py.

No rule runs code found in a completion, raises on one, or takes more than about two seconds over one.
"""

import itertools
import json
import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from hrpo.tasks.letter import chosen_letter
from hrpo.tasks.math_string import tidy, up_to_brace
from hrpo.tasks.number import last_number, plain_numbers
from hrpo.tasks.scorer_process import Aside

DELIMITER = "####"  # ends thinking; the answer follows
_ANSWER_CHARS = 100_000  # of its end; no rule takes a second over as many


class Verdict(NamedTuple):
    """`lenient`: the answer is right. `strict`: and the delimiter appears exactly once."""

    strict: bool
    lenient: bool


def judge(kind: str, completion: str, gold: str | list[str], delimiter: str = DELIMITER) -> Verdict:
    """Compare a completion's answer with the gold answer.

    Delimiters are counted without overlap: "#####" holds one "####", "########" two.

    Args:
        kind: "number", "math", "choice", "qa" or "math_string".
        completion: the text that the model wrote.
        gold: the right answer; for "qa" one or a list of them, any of which will do.
        delimiter: what separates the reasoning from the answer.

    Returns:
        The verdict. The training reward is `strict`, accuracy is reported for both.

    Raises:
        ValueError: `kind` is none of these, or there are several golds and `kind` is not "qa".

    """
    if kind not in RULES:
        raise ValueError(f"kind must be one of {', '.join(RULES)}, got {kind!r}")
    golds = [gold] if isinstance(gold, str) else gold
    if kind != "qa" and len(golds) != 1:
        raise ValueError(f"kind {kind!r} takes one gold answer, got {len(golds)}")
    answer = completion.rpartition(delimiter)[2].strip()
    if kind == "qa" and len(answer) > _ANSWER_CHARS:  # it is compared as a whole, so its end must not pass for it
        answer = ""
    answer = answer[-_ANSWER_CHARS:]
    lenient = answer != "" and any(RULES[kind](answer, gold.strip()) for gold in golds)
    return Verdict(strict=lenient and completion.count(delimiter) == 1, lenient=lenient)


# ---- number and choice --------------------------------------------------------------------------------------


def _same_number(answer: str, gold: str) -> bool:
    value = last_number(answer)
    return value is not None and value == last_number(gold)


def _same_choice(answer: str, gold: str) -> bool:
    return chosen_letter(answer) == gold.upper()


# ---- qa ---------------------------------------------------------------------------------------------------

_VULGAR_FRACTION = re.compile(r"(?<=\w)(?=[¼-¾⅐-⅞])")  # 4½ is 4 1/2, not 41/2
_ACCENTS = re.compile(r"(?<=[a-z])[\u0300-\u036f]+")
_ON_A_KEYBOARD = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛´ʹʻʼʽ′`", "'"),
        **dict.fromkeys("“”„‟″«»", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
        **{"×": "x", "⁄": "/", "ø": "o", "ł": "l", "đ": "d", "ı": "i", "æ": "ae", "œ": "oe"},
    }
)


def typed(text: str) -> str:
    """Return a text in lower case as it can be typed: plain quotes, dashes and spaces, no accents, no ligatures.

    Letters of other scripts stay; composed and decomposed ones become the same.
    """
    text = unicodedata.normalize("NFKD", _VULGAR_FRACTION.sub(" ", text).translate(_ON_A_KEYBOARD).casefold())
    text = _ACCENTS.sub("", unicodedata.normalize("NFKD", text.translate(_ON_A_KEYBOARD)))
    text = unicodedata.normalize("NFKC", text)
    return " ".join("".join(letter for letter in text if unicodedata.category(letter) != "Cf").split())


def normalise_answer(text: str) -> str:
    """SQuAD's normalisation of what can be typed: no case, no punctuation or symbols, no articles, single spaces."""
    kept = "".join(letter for letter in typed(text) if unicodedata.category(letter)[0] not in "PS")
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def _same_words(answer: str, gold: str) -> bool:
    wanted = normalise_answer(gold)
    if wanted:
        return normalise_answer(answer) == wanted
    # "---", ")" and "A" normalise to nothing, as wrong answers of that form do: compare those as they are
    return typed(answer) == typed(gold) or typed(answer).strip(".!\"'* ") == typed(gold)


# ---- math -------------------------------------------------------------------------------------------------

_MATH_CHARS = 2000  # of the answer's end: enough for any answer in MATH ten times over
_PHRASE_CHARS = 200
_MATH_BYTES = 2 << 30

_FORMULA = re.compile(r"(\\\[.+?\\\]|\\\(.+?\\\)|\$\$.+?\$\$|(?<!\\)\$.+?(?<!\\)\$)", re.DOTALL)  # marked by its writer
_MONEY = re.compile(r"(?<!\\)\$(?=[0-9][^$\n]*(?:\$[0-9]|$))")  # no formula ends before a digit, or not at all
_WORDS_OF_TEX = re.compile(r"\\(?:text|textbf|mbox|mathrm|operatorname|begin|end)\s*\{[^{}]*\}|\\[A-Za-z]+")
_PROSE = re.compile(r"((?<![A-Za-z\\])[A-Za-z]{2,})")
_FUNCTION = re.compile(r"(?<![A-Za-z\\{])(pi|sqrt|sin|cos|tan|log|ln)(?![A-Za-z])")
_MATHEMATICAL = re.compile(r"(?<![A-Za-z0-9^_{])[0-9]|\\[A-Za-z]|[√π]")
_BROKEN_OFF = re.compile(r"[+*/^<>]|- |.*[-+*/^=<>]$", re.DOTALL)
_TEX = (
    (re.compile(r"(?<![A-Za-z0-9.\\])([0-9]+(?:\.[0-9]+)?)[eE]([+-]?[0-9]+)(?![A-Za-z0-9.])"), r"\1 \\times 10^{\2}"),
    (re.compile(r"(?<=[0-9])\*\*([+-]?[0-9]+)"), r"^{\1}"),
    (_FUNCTION, r"\\\1 "),
    (re.compile(r"\\sqrt *\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"\\(?:mathrm|mathit|text|textrm) *\{ *(e|i|\\pi) *\}"), r" \1 "),  # no units
    # math-verify passes over these, so that 1 + 2 + \ldots + n would be 3 + n
    (
        re.compile(r"\\(?:[lc]?dots[a-z]?|forall|exists)(?![A-Za-z])|(?<=[,+*/-]) ?\.\.\.|\.\.\.(?= ?[,+*/-])"),
        r"\\unreadable ",
    ),
)


def _math_end(answer: str) -> str:
    if len(answer) > _MATH_CHARS:
        answer = answer[-_MATH_CHARS:]
        answer = answer[answer.find("\n") + 1 :]  # a cut through $...$ would pair the dollars wrongly
    return answer


def _same_math(answer: str, gold: str) -> bool:
    answer, gold = _math_end(answer), _math_end(gold)
    same_string = plain_tex(answer) != "" and plain_tex(answer) == plain_tex(gold)
    question = json.dumps([_readings(gold)[-1:], _readings(answer)])
    return same_string or _math_verify.ask(question) == "true\n"


def plain_tex(text: str) -> str:
    r"""Return what the last \boxed holds, or all, without what is layout only ("\dfrac", "\left", "\,")."""
    start = text.rfind(r"\boxed{")
    if start >= 0:
        text = up_to_brace(text[start + len(r"\boxed{") :])
    text = re.sub(r"\\(?:text|textbf|mbox|mathrm)\s*\{([^{}]*)\}", r"\1", text.strip().strip("*"))
    text = re.sub(r"\\[dt]frac(?![A-Za-z])", r"\\frac", text)
    text = re.sub(r"\\(?:left|right)(?![A-Za-z])|\\[!,;:()\[\]]|\\?\$", "", text)
    text = re.sub(r"(?<![0-9])\s+|\s+(?![0-9])", "", text)  # "1 2" is not 12
    return text.rstrip(".")


def _readings(text: str) -> list[str]:
    r"""Return the forms in which to show a text to math-verify, every formula in it marked as one.

    Left alone, math-verify takes the first number of a bare formula for all of it ("3\sqrt{13}" for 3): so a
    formula goes in a box. A short phrase may be either ("the value is 7", "xy + 2x").
    """
    text = _MONEY.sub("", plain_numbers(text))
    for spelling, tex in _TEX:
        text = spelling.sub(tex, text)
    if r"\boxed" in text:
        return [text]
    pieces = _FORMULA.split(text)
    boxed = r"\boxed{" + text.strip("*# ").rstrip(".") + "}"
    if len(pieces) == 1 and not _PROSE.search(_WORDS_OF_TEX.sub(" ", text)):
        return [boxed]
    marked = "".join(piece if place % 2 else _marked(piece) for place, piece in enumerate(pieces))
    return [marked, boxed] if len(pieces) == 1 and len(text) <= _PHRASE_CHARS else [marked]


def _marked(prose: str) -> str:
    """Put the formulas between the words of a text in dollars."""
    pieces = _PROSE.split(re.sub(r"\\(?:text|textbf|mbox|mathrm)\s*\{([^{}]*)\}", r" \1 ", prose))
    for place in range(0, len(pieces), 2):
        formula = pieces[place].strip(" \t\n.,;:!?\"'*=`")
        if formula.count("(") != formula.count(")"):
            formula = formula.strip("()")
        if _MATHEMATICAL.search(formula):
            # what begins or ends with an operator has lost a part to the words ("xy + 2x")
            tex = r"\unreadable" if _BROKEN_OFF.match(formula) else formula
            pieces[place] = pieces[place].replace(formula, f"${tex}$", 1)
    return "".join(pieces)


def _load() -> Callable[[str], str]:
    """Return what answers questions by math-verify, in a process of its own; see scorer_process.py.

    Its own time limit is a SIGALRM: whole seconds, main thread only, and powerless while one big power is taken in C.
    """
    import logging
    import resource

    from math_verify import LatexExtractionConfig, parse, verify

    logging.disable()
    resource.setrlimit(resource.RLIMIT_AS, (_MATH_BYTES, _MATH_BYTES))  # a power may have a billion digits

    def answer(question: str) -> str:
        # of LaTeX only, and the last formula only: what cannot be parsed must not count as a number in it
        wanted, *found = [
            parse(text, [LatexExtractionConfig()], "no_fallback", "first_match", parsing_timeout=None)
            for text in itertools.chain(*json.loads(question))
        ]
        same = (
            verify(wanted, formula, timeout_seconds=None) and not _apart(wanted[0], formula[0]) for formula in found
        )
        return json.dumps(any(same))

    answer(json.dumps([[r"$\frac{1}{2} + \sqrt{3}$"], [r"$2^{3} - x$"]]))  # the first parse takes longest
    return answer


def _apart(gold: Any, answer: Any) -> bool:
    """Whether two formulas that math-verify calls equal are not: it rounds to 6 or 15 digits behind the point.

    They are compared by their values where their variables have some: to 40 digits, with decimals to 4.
    """
    import sympy
    from math_verify.grader import sort_key

    percent = sympy.UnevaluatedExpr  # how math-verify marks 1/100
    collections: tuple[tuple[Any, Callable[[Any], Iterable[Any]]], ...] = (
        (sympy.Tuple, lambda formula: formula.args),
        (sympy.FiniteSet, lambda formula: sympy.ordered(formula.args, keys=sort_key, default=False)),
        (sympy.MatrixBase, lambda formula: formula.flat()),
        (sympy.Interval, lambda formula: formula.args[:2]),
    )
    for kind, parts in collections:
        if isinstance(gold, kind) and isinstance(answer, kind):
            return any(_apart(*pair) for pair in zip(parts(gold), parts(answer), strict=False))
    gold, answer = (
        formula.rhs if isinstance(formula, sympy.Eq) and formula.lhs.is_Symbol else formula
        for formula in (gold, answer)
    )
    if not all(isinstance(formula, sympy.Expr) and not formula.has(percent) for formula in (gold, answer)):
        return False
    if gold.free_symbols != answer.free_symbols:  # a word, as one symbol or as a product of its letters
        return False
    point = {name: sympy.Rational(2 * place + 9, 7) for place, name in enumerate(sorted(gold.free_symbols, key=str))}
    values = [formula.doit().subs(point).evalf(60, maxn=300) for formula in (gold, answer)]
    if not all(value.is_number and value.is_finite and getattr(value, "_prec", 2) > 1 for value in values):
        return False
    tolerance = 1e-4 if gold.has(sympy.Float) or answer.has(sympy.Float) else sympy.Rational(1, 10**40)
    return bool(abs(values[0] - values[1]) > tolerance * max(map(abs, values)))


_math_verify = Aside("from hrpo.tasks.scorer_process import serve; from hrpo.tasks.judge import _load; serve(_load)")


def _same_tidied(answer: str, gold: str) -> bool:
    return tidy(_math_end(answer)) == tidy(rf"\boxed{{{_math_end(gold)}}}")


RULES = {
    "number": _same_number,
    "math": _same_math,
    "choice": _same_choice,
    "qa": _same_words,
    "math_string": _same_tidied,
}
