"""What texts are written in: scripts and languages, in one or several of them, and where they go round in circles."""

import importlib.util
from collections import Counter
from collections.abc import Sequence
from typing import Any

from hrpo.tasks.judge import DELIMITER

SCRIPTS = (
    "Arabic Armenian Bengali Bopomofo Cyrillic Devanagari Ethiopic Georgian Greek Gujarati Gurmukhi Han Hangul Hebrew "
    "Hiragana Kannada Katakana Khmer Lao Latin Malayalam Mongolian Myanmar Oriya Sinhala Tamil Telugu Thai Tibetan"
)
# Scripts that are written together (Unicode Technical Standard 39, section 5.1).
TOGETHER = ({"Han", "Hiragana", "Katakana"}, {"Han", "Hangul"}, {"Han", "Bopomofo"})
ROUNDS, LONGEST, LEAST = 4, 100, 20  # rounds of a loop, the longest of them, and all of them at least (characters)
LETTERS = 40  # from which on a language is told


def scripts_of(text: str) -> list[str]:
    """Return the scripts of a text's letters, in alphabetical order; "other" for one that is not in `SCRIPTS`.

    A Greek letter by itself is a formula's.
    """
    if text.isascii():  # quickly, for most
        return ["Latin"] if any(map(str.isalpha, text)) else []
    import regex

    named = "|".join(rf"(?P<{name}>\p{{Script={name}}}{'{2}' * (name == 'Greek')})" for name in SCRIPTS.split())
    other = r"(?P<other>[^\p{Script=Common}\p{Script=Greek}])"
    letters = regex.finditer(rf"(?=\p{{L}})(?:{named}|{other})", text)
    return sorted({match.lastgroup for match in letters})


def is_mixed(scripts: list[str]) -> bool:
    """Whether no language writes with these scripts alone."""
    return len(scripts) > 1 and not any(set(scripts) <= group for group in TOGETHER)


def loops(text: str) -> bool:
    """Whether a text ends in the same characters again and again; the last round may be cut off."""
    for period in range(1, min(LONGEST, len(text) // 2) + 1):
        same = 0
        while same + period < len(text) and text[-1 - same] == text[-1 - same - period]:
            same += 1
        if same + period >= max(ROUNDS * period, LEAST):
            return True
    return False


def knows_languages() -> bool:
    """Whether py3langid is installed, which tells 97 languages apart."""
    return importlib.util.find_spec("py3langid") is not None


def language_of(text: str) -> str:
    """Return a text's likeliest language (ISO 639-1) by its letters alone; "" where there are few."""
    import py3langid

    letters = " ".join("".join(sign if sign.isalpha() else " " for sign in text).split())
    return str(py3langid.classify(letters)[0]) if sum(map(str.isalpha, letters)) >= LETTERS else ""


def writing_of(texts: Sequence[str]) -> dict[str, Any]:
    """Return shares of the texts.

    scripts: that have a letter of a script, by its name; the most frequent first.
    languages: in a language, of the texts with 40 letters or more; empty without py3langid.
    mixed_scripts: in scripts that no language is written in alone.
    repeated_delimiter: with more than one ####.
    loops: that end in the same characters four times or more.
    """
    scripts = [scripts_of(text) for text in texts]
    languages = list(filter(None, map(language_of, texts))) if knows_languages() else []

    def shares(counts: Counter[str], of: int) -> dict[str, float]:
        return {name: count / of for name, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))}

    return {
        "scripts": shares(Counter(name for found in scripts for name in found), len(texts)),
        "languages": shares(Counter(languages), len(languages)),
        "mixed_scripts": sum(map(is_mixed, scripts)) / len(texts),
        "repeated_delimiter": sum(text.count(DELIMITER) > 1 for text in texts) / len(texts),
        "loops": sum(map(loops, texts)) / len(texts),
    }
