"""Scripts, languages and loops of texts."""

import pytest

from hrpo.evaluation import text_quality
from hrpo.evaluation.text_quality import language_of, loops, writing_of

ENGLISH = "There are 12 apples and he eats 3 of them, so nine are left in the bag. #### 9"
GERMAN = "Es sind zwölf Äpfel da, und er isst drei davon, also bleiben neun im Beutel übrig."


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", False),
        ("aaaa" * 5, True),
        ("aaaa" * 4, False),  # 16 characters
        ("the cat sat. " * 4, True),
        ("so: " + "the cat sat. " * 4 + "the c", True),  # the length limit cuts a round
        ("the cat sat. " * 3 + "the c", False),
        ("the cat sat. " * 4 + "#### 4", False),  # it has ended
        (("ab" * 49 + "c.") * 4, True),  # 100 characters
        (("ab" * 49 + "c..") * 4, False),
    ],
)
def test_loops(text, found):
    assert loops(text) is found


def test_languages():
    pytest.importorskip("py3langid")
    assert [language_of(text) for text in (ENGLISH, GERMAN)] == ["en", "de"]
    assert language_of("12 + 12 = 24, 24 + 1 = 25 #### 25") == ""


def test_shares(monkeypatch):
    shares = writing_of([ENGLISH, ENGLISH + " #### 9", "so 好 " * 9, "#### 1"])
    assert shares["scripts"] == {"Latin": 0.75, "Han": 0.25}
    assert (shares["mixed_scripts"], shares["repeated_delimiter"], shares["loops"]) == (0.25, 0.25, 0.25)
    monkeypatch.setattr(text_quality, "knows_languages", lambda: False)
    assert writing_of([ENGLISH])["languages"] == {}
    monkeypatch.setattr(text_quality, "knows_languages", lambda: True)
    monkeypatch.setattr(text_quality, "language_of", lambda text: "en" if "apples" in text else "")
    assert writing_of([ENGLISH, "12", ENGLISH])["languages"] == {"en": 1.0}
