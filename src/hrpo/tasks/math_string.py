r"""The rule by which the paper's release compares mathematical answers: equal strings, once both are tidied up.

Of an answer it takes what the last \boxed holds; else what stands in the last $...$, \(...\) or \[...\]; else the last
number. What is tidied up are the spellings that MATH's authors listed (arXiv:2103.03874), then \text and case.
Formulas that are written differently are different: "1/2" without dollars is 2, x+1 is not 1+x.
"""

import re

_FORMULA = re.compile(r"\\\[(.+?)\\\]|\\\((.+?)\\\)|\$\$(.+?)\$\$|\$(.+?)\$", re.DOTALL)
_NUMBER = re.compile(r"-?[0-9]*\.?[0-9]+")
_SPELLINGS = [
    ("\n", ""),
    (r"\!", ""),
    ("\\\\", "\\"),
    ("tfrac", "frac"),
    ("dfrac", "frac"),
    (r"\left", ""),
    (r"\right", ""),
    (r"^{\circ}", ""),
    (r"^\circ", ""),
    (r"\$", ""),
    (r"\%", ""),
    (" .", " 0."),
    ("{.", "{0."),
]


def tidy(answer: str) -> str:
    """Return the string that is compared."""
    text = _trimmed(answer.strip().removesuffix("."))
    formulas = [next(filter(None, found)) for found in _FORMULA.findall(text)]
    if "boxed" in text:
        text = boxed(text)
    elif formulas and formulas[-1].strip():
        text = formulas[-1].strip()
    else:
        text = (_NUMBER.findall(text) or [""])[-1]
    text = _trimmed(_spelled_alike(text))
    return re.sub(r"\\text\{([^}]*)\}", r"\1", text).lower()


def boxed(text: str) -> str:
    """Return what follows the last "boxed": within braces, or up to a dollar."""
    inner = text.rpartition("boxed")[2]
    return up_to_brace(inner[1:]) if inner.startswith("{") else inner.partition("$")[0].strip()


def up_to_brace(text: str) -> str:
    """Return a text up to the brace that closes one opened before it."""
    depth = 1
    for position, letter in enumerate(text):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return text[:position]
    return text


def _trimmed(text: str) -> str:
    return text.strip("\n").rstrip(".").rstrip("/").strip(" ")


def _spelled_alike(tex: str) -> str:
    tex = tex.strip("$")
    for spelling, common in _SPELLINGS:
        tex = tex.replace(spelling, common)
    tex = tex.partition(r"\text{ ")[0]  # a unit
    tex = re.sub(r"^\.", "0.", tex)
    name, equals, value = tex.partition("=")
    if equals and "=" not in value and len(name) <= 2:  # x = 5
        tex = value
    tex = re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", tex).replace(" ", "")
    tex = _with_braces(tex)
    return re.sub(r"^(-?[1-9][0-9]*|0)/(-?[1-9][0-9]*|0)$", r"\\frac{\1}{\2}", tex)


def _with_braces(tex: str) -> str:
    r"""Write \frac12 and \frac1{2} as \frac{1}{2}."""
    head, *parts = tex.split(r"\frac")
    if any(len(part) == 1 and part != "{" for part in parts):
        return tex
    for part in parts:
        if part[:1] in ("", "{"):
            head += r"\frac" + part
        elif part[1] == "{":
            head += rf"\frac{{{part[0]}}}{part[1:]}"
        else:
            head += rf"\frac{{{part[0]}}}{{{part[1]}}}{part[2:]}"
    return head
