r"""Is a completion right? One rule for each kind of answer, and a second one for mathematics.

`judge` reads the text after the last delimiter (the whole text where there is none):

- "number": the last number in it equals the gold one, exactly, as fractions; see number.py.
- "math": math-verify calls it equal to the gold one, or both are the same LaTeX string up to layout.
- "choice": the letter that it chooses is the gold one; see letter.py.
- "qa": it equals one of the gold answers after SQuAD's normalisation, typographic letters taken for typed ones.
- "math_string": as in the paper's release, see math_string.py.

No rule runs code found in a completion, raises on one, or takes more than about two seconds over one.
"""

import json
import os
import re
import signal
import sys
import unicodedata
from typing import NamedTuple

from hrpo.tasks.aside import Aside
from hrpo.tasks.letter import chosen_letter
from hrpo.tasks.math_string import tidy, up_to_brace
from hrpo.tasks.number import last_number

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
_MATH_SECONDS = 1.0  # of processor time for one comparison; MATH's golds need 0.003 on average, 0.2 at most

_MARKED = re.compile(r"\\boxed|\\\[|\\\(|(?<!\\)\$.+?(?<!\\)\$", re.DOTALL)  # as mathematics, by its writer
_WORDS_OF_TEX = re.compile(r"\\(?:text|textbf|mbox|mathrm|operatorname|begin|end)\s*\{[^{}]*\}|\\[A-Za-z]+")
_PROSE = re.compile(r"[A-Za-z]{2,}")
_MIXED = re.compile(r"(?<![0-9./])([0-9]{1,9}) +([0-9]{1,9})/([0-9]{1,9})")  # 3 1/2, to math-verify (3 + 1)/2


def _math_end(answer: str) -> str:
    if len(answer) > _MATH_CHARS:
        answer = answer[-_MATH_CHARS:]
        answer = answer[answer.find("\n") + 1 :]  # a cut through $...$ would pair the dollars wrongly
    return answer


def _same_math(answer: str, gold: str) -> bool:
    answer, gold = _math_end(answer), _math_end(gold)
    same_string = plain_tex(answer) != "" and plain_tex(answer) == plain_tex(gold)
    question = json.dumps([_readings(gold)[-1], _readings(answer)])
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
    r"""Return the forms in which to show a text to math-verify.

    Left alone, math-verify takes the first number of a bare formula for all of it ("3\sqrt{13}" for 3): so a
    formula goes in a box. A short phrase may be either ("the value is 7", "xy + 2x").
    """
    text = _MIXED.sub(lambda m: f"{int(m[1]) * int(m[3]) + int(m[2])}/{m[3]}", text)
    if _MARKED.search(text):
        return [text]
    boxed = r"\boxed{" + text.strip("*").rstrip(".") + "}"
    if not _PROSE.search(_WORDS_OF_TEX.sub(" ", text)):
        return [boxed]
    return [text, boxed] if len(text) <= _PHRASE_CHARS else [text]


def _serve() -> None:
    """Let math-verify answer the questions on standard input until it closes; see aside.py.

    Its own time limit is a SIGALRM: whole seconds, main thread only, and powerless while one big power is taken in C.
    """
    import logging
    import resource

    from math_verify import parse, verify

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer; we end when it does
    logging.disable()
    resource.setrlimit(resource.RLIMIT_AS, (_MATH_BYTES, _MATH_BYTES))  # a power may have a billion digits
    replies = sys.stdout
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
    print("up", file=replies, flush=True)
    sys.stdin.readline()
    for line in sys.stdin:
        gold, answers = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, _MATH_SECONDS)  # SIGPROF's default action ends the process
        wanted, *found = [parse(text, parsing_timeout=None) for text in (gold, *answers)]
        same = any(verify(wanted, answer, timeout_seconds=None) for answer in found)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(same), file=replies, flush=True)


_math_verify = Aside("from hrpo.tasks.judge import _serve; _serve()")


def _same_tidied(answer: str, gold: str) -> bool:
    return tidy(_math_end(answer)) == tidy(rf"\boxed{{{_math_end(gold)}}}")


RULES = {
    "number": _same_number,
    "math": _same_math,
    "choice": _same_choice,
    "qa": _same_words,
    "math_string": _same_tidied,
}
