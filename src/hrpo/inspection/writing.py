"""Which scripts a text is written in, and whether one language's writing has them all."""

SCRIPTS = (
    "Arabic Armenian Bengali Bopomofo Cyrillic Devanagari Ethiopic Georgian Greek Gujarati Gurmukhi Han Hangul Hebrew "
    "Hiragana Kannada Katakana Khmer Lao Latin Malayalam Mongolian Myanmar Oriya Sinhala Tamil Telugu Thai Tibetan"
)
# Scripts that are written together (Unicode Technical Standard 39, section 5.1).
TOGETHER = ({"Han", "Hiragana", "Katakana"}, {"Han", "Hangul"}, {"Han", "Bopomofo"})


def scripts_of(text: str) -> list[str]:
    """Return the scripts of a text's letters, in alphabetical order; "other" for one that is not in `SCRIPTS`."""
    if text.isascii():  # quickly, for most
        return ["Latin"] if any(map(str.isalpha, text)) else []
    import regex

    named = "|".join(rf"(?P<{name}>\p{{Script={name}}})" for name in SCRIPTS.split())
    letters = regex.finditer(rf"(?=\p{{L}})(?:{named}|(?P<other>\P{{Script=Common}}))", text)
    return sorted({match.lastgroup for match in letters})


def is_mixed(scripts: list[str]) -> bool:
    """Whether no language writes with these scripts alone."""
    return len(scripts) > 1 and not any(set(scripts) <= group for group in TOGETHER)
