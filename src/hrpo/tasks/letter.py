r"""Which option does a text choose? A letter from A to J.

What counts, the first of these that there is, and of several the last one:

1. what is named as the answer: "The answer is D. Hepatitis B", "answer: b", "B is right";
2. an option by that name: "option d";
3. a label in front of an option's text, or alone on its line: "C, vitamin D", "(b) Paris";
4. a capital that stands alone, or a letter in parentheses: "I think B", "A or B".

So letters within the text of an option do not count, nor do those that are ruled out ("not A", "A is wrong").
"""

import re
import unicodedata

_TYPOGRAPHY = str.maketrans({**dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-"), **dict.fromkeys("‘’`", "'")})
_MARKUP = re.compile(
    r"\\(?:boxed|fbox|text|textbf|textrm|mathrm|mathbf|mbox)(?![a-z])|</?[a-z]+>|\\[()\[\]]|[*_$~{}\"“”«»#]"
)
_BOX = re.compile(r"\\(?:boxed|fbox) ?(\{(?:[^{}]|\{[^{}]*\})*\})")
_LETTER = r"(?<![A-Za-z0-9'])[(\['<]{0,3}([A-Ja-j])(?![A-Za-z0-9]|[-'][A-Za-z])[)\]'>]*"
_LONE = re.compile(r"[^A-Za-z0-9]*([A-Ja-j])[^A-Za-z0-9]*")  # nothing but the letter: "b", "(C).", "'B'"
_ENGLISH = re.compile(
    r"(?:[AI]\s+(?=[a-z])|[ai]\s+(?=[A-Za-z]))(?!(?:is|was|because|since|as|or|and|but|for|so)\b)"
)  # "A car", "I think"
_FORMULA = re.compile(r"[a-j]\s*[-+*/^=<>×]")

_BE = r"(?:is|are|was|would be|must be|seems|looks)"
_RULED_OUT = re.compile(
    r"(?i:\b(?:not|isn't|never|neither(?! \()|nor|than|instead of|except|eliminate|excluding)) "
    rf"(?:(?i:option|choice) )?{_LETTER}"
    rf"|{_LETTER} (?:{_BE} (?:clearly |also |definitely )?(?:not|wrong|incorrect|false|out|excluded|eliminated)\b"
    r"|(?:isn't|can't|cannot|wasn't)\b)"
)
_FILLERS = (
    r"(?:[\s:=,;.>-]|\b(?:is|are|was|be|being|would|will|must|should|to|the|this|that|question|it|it's|of|for|option"
    r"|choice|answer|letter|number|correct|right|best|final|one|therefore|thus|hence|so|clearly|probably|either|both|my)"
    r"\b){0,16}?"
)
_NAMED = re.compile(
    r"(?i:\b(?:answer|ans|solution|choose|chose|pick|picked|select|selected|go with|going with|correct|right|best)\b"
    rf"{_FILLERS}){_LETTER}"
    rf"|(?:^|[.:;,!?\n]|\b(?i:so|thus|hence|therefore|option|choice|think|believe))\s*{_LETTER},? {_BE} "
    r"(?:the |clearly |definitely |most likely )*(?:correct|right|best|true|answer)\b",
)
_OPTION = re.compile(
    rf"(?i:\b(?:option|choice|letter))\s*{_LETTER}|(?i:\b(?:it is|it's|it must be))\s*{_LETTER}(?=\W*$)"
)
_LABEL = re.compile(rf"\W*{_LETTER}(?:[.):;,]+(?=\s|$|(?<!,)[A-Z][a-z])| - |\s*$|(?<=[)\]])\s|(?<=[B-HJ]) (?=[A-Z]))")
_MORE = re.compile(
    rf"[)\]'>]{{0,3}}\s*(?:[,/&]|\b(?:or|and)\b)[\s,]*(?:\b(?:or|and)\b\s*)?(?:(?i:option|choice) )?{_LETTER}"
    r"(?=\s*(?:$|[.;:!?\n/&]|(?:or|and|is|are|because|since|but)\b|,\s*(?:(?:or|and)\s+)?[A-Ja-j]\b))"
)
_STANDING = re.compile(r"(?<![A-Za-z0-9'-])(?<![A-Za-z]\.)([A-J]|(?<=\()[a-j](?=\)))(?![A-Za-z0-9]|[-'][A-Za-z])")
_WORD_BEFORE = re.compile(r"([A-Za-z0-9%°]{2,}|[0-9%°])\s$")  # "vitamin C", "5 A": of a name or a quantity, but for
_BEFORE = re.compile(
    r"is|are|was|be|or|and|but|so|thus|hence|then|therefore|to|it's|that's|say|think|guess|believe|prefer|take|with|for|as"
    r"|choo?se|pick(?:ed)?|select(?:ed)?|only|just|either|both|final|means?|probably|definitely|likely|clearly|actually"
    r"|surely|certainly|obviously|leaves|leaving|option|choice|answer|letter",
    re.IGNORECASE,
)


def chosen_letter(text: str) -> str | None:
    """Return the option, A to J, that a text chooses, None where it chooses none; see the module.

    "A or B" chooses B, as in the release. "A" and "I" before a lower-case word are taken for English, unless there is
    no other letter.
    """
    boxes = _BOX.findall(text)
    text = _MARKUP.sub("", unicodedata.normalize("NFKC", boxes[-1] if boxes else text).translate(_TYPOGRAPHY)).strip()
    lone = _LONE.fullmatch(text)
    if lone:
        return lone[1].upper()
    text = _RULED_OUT.sub(" - ", text)
    for pattern in (_NAMED, _OPTION):
        found = [match for match in pattern.finditer(text) if _is_letter(match, text)]
        if found:
            return _last_of_list(found[-1], text)
    lines = text.split("\n")
    for line in lines[:1] if _LONE.fullmatch(lines[0]) else (lines[-1], lines[0]):
        label = _LABEL.match(line)
        if label:
            return _last_of_list(label, line)
    found = [match for match in _STANDING.finditer(text) if not _in_a_name(match, text)]
    options = [match for match in found if _is_letter(match, text)] or found
    return options[-1][1].upper() if options else None


def _is_letter(match: re.Match[str], text: str) -> bool:
    """Whether what was found is meant as a letter: no article, no pronoun, no variable of a formula."""
    start = match.start(match.lastindex or 0)
    return not _ENGLISH.match(text, start) and not _FORMULA.match(text, start)


def _last_of_list(match: re.Match[str], text: str) -> str:
    """Return the letter that was found, or the last one where it opens a list ("A or B")."""
    more = _MORE.match(text, match.end(match.lastindex or 0))
    while more:
        match, more = more, _MORE.match(text, more.end(1))
    return match[match.lastindex or 0].upper()


def _in_a_name(match: re.Match[str], text: str) -> bool:
    """Whether a word stands right before that makes a name or a quantity of it: "Hepatitis B", "5 A"."""
    word = _WORD_BEFORE.search(text, max(0, match.start() - 30), match.start())
    return word is not None and not _BEFORE.fullmatch(word[1])
