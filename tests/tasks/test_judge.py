import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import unicodedata
from fractions import Fraction
from pathlib import Path

import pytest
from steps import grows_no_faster

from hrpo.tasks import scorer_process
from hrpo.tasks.judge import judge, normalise_answer, plain_tex
from hrpo.tasks.letter import chosen_letter
from hrpo.tasks.number import last_number

GOLDEN = [json.loads(line) for line in (Path(__file__).parents[1] / "golden" / "scoring.jsonl").open()]
KINDS = {"gsm8k": "number"}

# completion -> our verdict (strict, lenient) where the release says otherwise, and why
DEVIATIONS = {
    "x #### 2,000,000": ((True, True), "the release takes thousands separators for the end of a number"),
    "#### 1/2": ((True, True), "the release does not hand bare a/b to math-verify, to which it is \\frac{1}{2}"),
}


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: f"{row['kind']}: {row['completion']!r}")
def test_released_verdicts(row):
    verdict = judge(KINDS.get(row["kind"], row["kind"]), row["completion"], row["gold"])
    released = (row["reward"] == 1.0, row["correct"])
    if row["completion"] in DEVIATIONS:
        expected, _ = DEVIATIONS[row["completion"]]
        assert expected != released
    else:
        expected = released
    assert (verdict.strict, verdict.lenient) == expected


@pytest.mark.parametrize("row", [row for row in GOLDEN if row["kind"] == "math"], ids=lambda row: row["completion"])
def test_string_rule_is_the_releases(row):
    assert judge("math_string", row["completion"], row["gold"]) == (row["reward"] == 1.0, row["correct"])


def test_deviations_are_all_in_the_golden_file():
    assert DEVIATIONS.keys() <= {row["completion"] for row in GOLDEN}


# ---- the delimiter ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "strict", "lenient"),
    [
        ("3 + 4 = 7 #### 7", True, True),
        ("7", False, True),
        ("#### 7 #### 7", False, True),
        ("#### 8 #### 7", False, True),
        ("#### 7 #### 8", False, False),
        ("7 ####", False, False),
        ("##### 7", True, True),  # one "####" and a "#"
        ("######## 7", False, True),  # two
        ("### 7", False, True),
        ("####7", True, True),
        ("#### \n\n 7 \n", True, True),
        ("", False, False),
        ("   ", False, False),
        ("####", False, False),
    ],
)
@pytest.mark.parametrize("kind", ["number", "math", "qa"])
def test_delimiter(kind, completion, strict, lenient):
    assert judge(kind, completion, "7") == (strict, lenient)


def test_other_delimiter():
    assert judge("number", "#### 5 <answer> 7", "7", delimiter="<answer>") == (True, True)
    assert judge("number", "#### 7", "7", delimiter="<answer>") == (False, True)


def test_unknown_kind():
    with pytest.raises(ValueError, match="number, math, choice, qa"):
        judge("gsm8k", "#### 7", "7")


def test_only_qa_takes_several_golds():
    with pytest.raises(ValueError, match="one gold"):
        judge("number", "#### 7", ["7", "8"])


# ---- number -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("-7", -7),
        ("−7", -7),
        ("0042", 42),
        ("18.50 dollars", "18.5"),
        ("12.", 12),
        (".5", "0.5"),
        ("-.5", "-0.5"),
        ("$18", 18),
        (r"\$18", 18),
        ("-$18", -18),
        ("$-18", -18),
        ("€1,234.50", "1234.5"),
        ("70%", 70),
        (r"70\%", 70),
        ("**42**", 42),
        (r"\boxed{42}", 42),
        ("(42)", 42),
        ("42kg", 42),
        ("42 m2", 42),
        ("42 m^2", 42),
        (r"42 \text{cm}^{2}", 42),
        ("42 g of H2O", 42),
        ("Rs.500", 500),
        ("1,234", 1234),
        ("2,000,000", 2000000),
        (r"10,\!080", 10080),
        ("10{,}080", 10080),
        ("1,2,3", 3),
        ("1,23", 23),
        ("1,2345", 2345),
        ("0,123", 123),
        ("6/3", 2),
        ("1 / 2", "1/2"),
        ("-6/3", -2),
        ("6/-3", -2),
        ("1,000/4", 250),
        ("5/0", None),
        ("0/0", None),
        ("5-3", 3),
        ("10 - 7 = 3", 3),
        ("10 -7", -7),
        ("x=-7", -7),
        ("f(2)-7", 7),
        ("5-7 days", 7),
        ("5–7 days", 7),
        ("between 10 and 20", 20),
        ("1e3", 1000),
        ("2.5E-1", "0.25"),
        ("1e3x", 1),
        ("3:45", 45),
        ("12.5.3", "12.5"),
        ("the total is 42 apples", 42),
        ("forty-two", None),
        ("", None),
        ("-", None),
        ("1/", 1),
        ("/2", 2),
        ("٣", None),
        (r"\frac{1}{2}", "1/2"),
        (r"-\dfrac12", "-1/2"),
        (r"2\tfrac{1}{2}", "5/2"),
        ("3 1/2", "7/2"),
        ("1 and 1/2", "3/2"),
        ("2½", "5/2"),
        ("3 4/2", 2),
        ("10^6", 10**6),
        ("10^{6}", 10**6),
        ("10**6", 10**6),
        ("10⁶", 10**6),
        ("10⁻³", "1/1000"),
        ("2^{10}", 1024),
        ("2^-3", "1/8"),
        ("0^-1", None),
        ("9^9^9", None),
        ("5 m s^-1", 5),
        (r"3\times10^4", 30_000),
        (r"2.5\,\times\,10^{3}", 2500),
        ("3 x 10^4", 30_000),
        ("3 × 10⁴", 30_000),
        ("2.5 million", 2_500_000),
        ("2.5\u00a0million people", 2_500_000),
        (r"\$2.5\text{ million}", 2_500_000),
        ("1/2 billion", 500_000_000),
        ("$2.5M", 2_500_000),
        ("50k", 50_000),
        ("300K", 300),
        ("5 k", 5),
        ("12 000", 12_000),
        ("12\u00a0000", 12_000),
        ("-12\u202f000.5", "-12000.5"),
        (r"12\,000", 12_000),
        ("12’000", 12_000),
        ("12_000", 12_000),
        ("2020 100", 100),
        ("1.234,5", "1234.5"),
        ("1.234.567", 1_234_567),
        ("1.234", "1.234"),
        ("1,00,000", 100_000),
        ("–7", -7),
        ("x = − 7", -7),
        ("minus 7", -7),
        ("10 minus 7", 7),
        ("1...5", 5),
        (r"\sqrt{16}", None),
        (r"2\sqrt{3}", None),
        (r"2\pi", None),
        (r"\frac{\pi}{2}", None),
        ("(-2)^2", None),
        (r"90^\circ", 90),
        ("42!", 42),
        ("9" * 5000, None),
        ("0." + "3" * 5000, None),
        ("1/" + "9" * 5000, None),
        ("1e999", 10**999),
    ],
)
def test_last_number(text, value):
    assert last_number(text) == (None if value is None else Fraction(value))


def test_numbers_compare_exactly():
    assert judge("number", "#### 0.1", "1/10").strict
    assert not judge("number", "#### 0.3333333333333333", "1/3").lenient
    assert not judge("number", "#### 9007199254740993", "9007199254740992").lenient
    assert judge("number", "#### 1234", "1,234").strict


def test_no_number_is_not_equal_to_no_number():
    assert not judge("number", "#### none", "none").lenient


# ---- choice -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(b)", "B"),
        ("b.", "B"),
        ("**C**", "C"),
        ("$C$", "C"),
        (r"\boxed{C}", "C"),
        (r"\boxed{\text{C}}", "C"),
        ("'B'", "B"),
        ("B. Paris", "B"),
        ("B.Paris", "B"),
        ("(B) Paris", "B"),
        ("b) Paris", "B"),
        ("**B.** Paris", "B"),
        ("**B**: Paris", "B"),
        ("B. Vitamin C", "B"),
        ("B. A car", "B"),
        ("B: I think", "B"),
        ("A or B", "B"),
        ("Option B", "B"),
        ("The answer is (c).", "C"),
        ("The answer is C, because A is wrong", "C"),
        ("A is correct", "A"),
        ("I think B", "B"),
        ("I think A", "A"),
        ("A car", "A"),
        ("J", "J"),
        ("I", "I"),
        ("K", None),
        ("Paris", None),
        ("e.g. Paris", None),
        ("3D", None),
        ("B's", None),
        ("D-glucose", None),
        ("U.S.A.", None),
        ("person(s)", None),
        ("", None),
        ("The answer is D. Hepatitis B", "D"),
        ("The correct answer is C, vitamin D", "C"),
        ("C, vitamin D", "C"),
        ("C. Both A and B", "C"),
        ("D Hepatitis B", "D"),
        ("D\nHepatitis B", "D"),
        ("Vitamin C helps.\n\nD. Hepatitis B", "D"),
        (r"\boxed{A} hydrogen (H) and helium (He)", "A"),
        ("**Answer:** B) 5 A", "B"),
        ("The correct option is (A) Plan B", "A"),
        ("answer: b", "B"),
        ("ANSWER B", "B"),
        ("the answer is\n\nb", "B"),
        ("option d", "D"),
        ("I choose option d because option A is better known", "D"),
        ("the answer is (a) a car", "A"),
        ("the answer is a car", None),
        ("the answer is a", "A"),
        ("the answer is c^2", None),
        ("Hepatitis B", None),
        ("5 A", None),
        ("A, B", "B"),
        ("(A) or (B)", "B"),
        ("B, not C", "B"),
        ("not A but B", "B"),
        ("not A", None),
        ("B, C is wrong", "B"),
        ("The answer is A. No, the answer is B", "B"),
        ("B is the correct answer, as in vitamin C", "B"),
        ("Paris (B)", "B"),
        ("<answer>C</answer>", "C"),
        ("“B”", "B"),
        ("（B）", "B"),
    ],
)
def test_chosen_letter(text, letter):
    assert chosen_letter(text) == letter


# ---- qa ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "gold", "right"),
    [
        ("#### the Beatles!", ["Beatles"], True),
        ("#### Beatles", ["Rolling Stones", "The Beatles"], True),
        ("#### Beatles", "The Beatles", True),
        ("#### a  b\nc", ["b c"], True),
        ("#### Paris, France", ["Paris"], False),
        ("#### ---", ["---"], True),
        ("#### )", [")"], True),
        ("#### (", [")"], False),
        ("#### a", ["The"], False),
        ("#### The", ["The"], True),
        ("#### ...", ["Paris"], False),
        ("####", [""], False),
        ("#### Paris", [], False),
        ("#### theatre", ["atre"], False),
        ("#### Ærø", ["ærø"], True),
        ("#### it's", ["it’s"], True),
        ("#### 1979-80", ["1979–80"], True),
        ("#### -128.6 F", ["−128.6\u00a0°F"], True),
        ("#### Beyonce\u0301", ["Beyoncé"], True),
        ("#### Beyonce", ["Beyoncé"], True),
        ("#### ﬁsh…", ["fish"], True),
        ("#### co\u00adop\u200e", ["coop"], True),
        ("#### 4 1/2", ["4½"], True),
        ("#### 41/2", ["4½"], False),
        ("#### か", ["が"], False),
        ("#### A.", ["a"], True),
        ("#### the", ["a"], False),
        ("#### A-", ["A+"], False),
        ("#### London" + " " * 200_000 + "Paris", ["Paris"], False),
    ],
)
def test_qa(completion, gold, right):
    assert judge("qa", completion, gold).strict is right


def test_squad_normalisation():
    assert normalise_answer("  The U.S. of a,\tA. ") == "us of"


# ---- math -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("7", r"\boxed{7}", True),
        ("7.", "7", True),
        ("**7**", "7", True),
        (r"\boxed{7}", "7", True),
        (r"\[ 7 \]", "7", True),
        (r"\(7\)", "7", True),
        ("the value is $7$", "7", True),
        ("7 apples", "7", True),
        ("8", "7", False),
        ("-7", "7", False),
        ("1/2", r"\frac{1}{2}", True),
        (r"\dfrac12", r"\frac{1}{2}", True),
        ("0.5", r"\frac{1}{2}", True),
        ("3 1/2", r"\frac{7}{2}", True),
        ("3 1/2", "2", False),  # math-verify's own reading
        ("$3 1/2$", "2", False),
        ("$3 1/2$", "3.5", True),
        ("the value is 3 1/2", "3.5", True),
        ("32,348", r"\$32,\!348", True),
        ("12 11", "1211", False),
        (r"3 \sqrt{13}", r"3\sqrt{13}", True),
        (r"$\sqrt{117}$", r"3\sqrt{13}", True),
        (r"3\sqrt{13}", "3", False),  # a formula is not its first number
        ("6 - 5i", "5", False),
        ("-5i + 6", "6 - 5i", True),
        ("xy + 2x", "2x + xy", True),
        ("x=5", "5", True),
        ("y = 2x + 3", "y=2x+3", True),
        ("3, 5, 7", "3,5,7", True),
        ("3, 5", "3,5,7", False),
        ("(1,2)", "(2,1)", False),
        ("(3,4]", "(3,4]", True),
        ("[3,4)", "(3,4]", False),
        ("east", r"\text{east}", True),
        ("seat", r"\text{east}", False),
        ("C", r"\text{(C)}", True),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}", True),
        (r"\begin{pmatrix} 1 \\ 3 \end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}", False),
        ("---", "7", False),
        (r"$4\sqrt(2)$", "4", False),  # what cannot be parsed is not its first number
        (r"$4\foo{2}$", "4", False),
        (r"\(4\foo{2}\)", "4", False),
        (r"$x=3$, then $y=4\foo(2)$", "3", False),
        (r"so x = 4\sqrt{2} units", "4", False),
        (r"so x = 4\sqrt{2} units", r"4\sqrt{2}", True),
        (r"$4\sqrt(2)$", r"4\sqrt{2}", True),
        (r"$2\mathrm{e}$", "2", False),
        (r"0.\overline{3}", "0", False),
        ("xy + 2x", "2", False),
        ("5 or 6", "5", False),
        ("$x=3$, so the answer is 5", "3", False),
        ("$x=3$, so the answer is 5", "5", True),
        (r"1, 3, 5, \ldots, 2n-1", r"1, 2, \ldots, n", False),
        (r"1 + 2 + \ldots + n", "3 + n", False),
        (r"\forall x>0, f(x)=0", "f(x)=0", False),
        (r"\frac{1}{2^{98}}", r"\frac{1}{2^{99}}", False),  # nearly zero is not zero
        (r"\frac{1}{2^{98}}", "2^{-98}", True),
        (r"\frac{1}{2006!}", r"\frac{1}{2004!}", False),
        (r"(1, \frac{1}{2^{98}})", r"(1, \frac{1}{2^{99}})", False),
        ("0.0000001", "0.0000002", False),
        (r"\sqrt{8} - 2\sqrt{2}", "0", True),
        ("0.333333", r"\frac{1}{3}", True),
        ("50%", "50", True),
        ("12 000", "12000", True),
        ("12 000", "0", False),
        ("2.5 million", "2500000", True),
        ("2.5 million", "2.5", False),
        ("1e5", "100000", True),
        ("–7", "-7", True),
        ("x²+1", "x^2+1", True),
        ("It costs $5 more, so the total is $12.", "12", True),
    ],
)
def test_math(answer, gold, right):
    assert judge("math", f"#### {answer}", gold).strict is right


def test_math_without_delimiter_reads_the_last_box():
    text = "First $x = 3$.\n\n" * 300 + r"So the answer is \boxed{\frac{1}{2}}."
    assert judge("math", text, r"\frac12") == (False, True)
    assert not judge("math", text, "3").lenient


def test_plain_tex():
    assert plain_tex(r"so \boxed{\left(1,\, \dfrac{1}{2}\right)}.") == r"(1,\frac{1}{2})"
    assert plain_tex(r"\boxed{3") == "3"
    assert plain_tex(r"\leftarrow") == r"\leftarrow"


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        (r"\boxed{\dfrac12}.", r"\frac{1}{2}", True),
        (r"$\tfrac1{2}$", r"\frac{1}{2}", True),
        ("$1/2$", r"\frac{1}{2}", True),  # as MATH's authors write it
        ("1/2", "2", True),  # the last number
        ("$x = 5$", "5", True),
        ("$x+1=2$", "2", False),
        (r"$\sqrt3$", r"\sqrt{3}", True),
        (r"$\left( 1, 2 \right)$", "(1,2)", True),
        (r"$50\%$", "50", True),
        (r"$12\text{ cm}$", "12", True),
        (r"$\text{East}$", r"\text{east}", True),
        ("$.5$", "0.5", True),
        ("$0.5$", r"\frac{1}{2}", False),
        ("$1+x$", "x+1", False),
        ("first $3$, then $4$", "4", True),
        ("nothing", "7", False),
        (r"\boxed{", "7", False),
        (r"$\frac$", r"\frac", True),
    ],
)
def test_string_rule(answer, gold, right):
    assert judge("math_string", f"#### {answer}", gold).strict is right


# ---- hostile texts ----------------------------------------------------------------------------------------

MATH_BOMBS = {
    "tower": "#### $9^{9^{9}}$",
    "plain tower": "9^9^9^9",
    "factorial": "#### $100000000!$",
    "binomial": r"#### $\binom{10^9}{10^8}$",
    "100,000 brackets": "#### " + "(" * 100_000,
    "nested fractions": r"#### \boxed{" + r"\frac{" * 300,
    "unbalanced dollars": "$" * 2001,
    "many boxes": r"\boxed{" * 100_000,
}
CODE = '#### __import__("os")._exit(1)'
# What one rule or another looks for, again and again
REPEATED = [
    *(
        "1",
        "(",
        "-",
        " ",
        "1,",
        "1/",
        "A ",
        ",111",
        "\0",
        "\n",
        ".",
        "1 ",
        "1.",
        "A",
        "(b) ",
        "or ",
        "the ",
        "a-",
        "\\\\",
        "$",
    ),
    *("$1$ ", "#", "{", "\\\\$", r"\boxed{", r"\frac", r"\text{", r"\sqrt", "=", "'", "\u00a0", "\u2019"),
]

KINDS_OF_ANSWER = ["number", "math", "choice", "qa", "math_string"]


@pytest.mark.parametrize("text", MATH_BOMBS.values(), ids=MATH_BOMBS.keys())
def test_math_bombs_are_wrong(text):
    """That the test ends shows that judging them does: 9^(9^9) takes years, unless it is stopped."""
    assert judge("math", text, "7") == (False, False)
    assert judge("math", "#### $14/2$", "7").strict


@pytest.mark.parametrize("kind", KINDS_OF_ANSWER)
@pytest.mark.parametrize("letters", REPEATED)
def test_work_grows_with_the_text_and_no_faster(kind, letters, monkeypatch):
    module = sys.modules["hrpo.tasks.judge"]
    monkeypatch.setattr(module, "_MATH_CHARS", 50)  # which bounds what is quadratic in it
    monkeypatch.setattr(module._math_verify, "ask", lambda question: "")  # has a limit of its own
    for end in ("", "x"):
        assert grows_no_faster(lambda size: judge(kind, (letters * size)[:size] + end, "B"), 40)  # noqa: B023


@pytest.mark.parametrize("kind", KINDS_OF_ANSWER)
@pytest.mark.parametrize("letters", ["1,", pytest.param(("A ", *REPEATED), marks=pytest.mark.slow)], ids=["one", "all"])
def test_megabytes(kind, letters):
    for part in [letters] if isinstance(letters, str) else letters:
        text = (part * 1_000_000)[:1_000_000]
        for hostile in (text, f"#### {text}", f"#### {text * 8}"):
            assert not judge(kind, hostile, "J").lenient  # no letter of theirs


@pytest.mark.parametrize("bomb", MATH_BOMBS.values(), ids=MATH_BOMBS.keys())
def test_math_bombs_are_strings_to_the_string_rule(bomb):
    assert judge("math_string", bomb, "7") == (False, False)


@pytest.mark.parametrize("kind", KINDS_OF_ANSWER)
@pytest.mark.parametrize("text", [CODE, "#### \ud800", "#### \0", "#### \U0001f600", "#### \n\r\u2028"])
def test_odd_letters_and_code(kind, text):
    assert not judge(kind, text, "7").lenient


# ---- threads and processes --------------------------------------------------------------------------------


def test_off_the_main_thread():
    found = {}

    def work(name):
        found[name] = [
            judge("math", f"#### $\\frac{{{name}}}{{{name + value}}}$", r"\frac12").strict for value in range(4)
        ]

    threads = [threading.Thread(target=work, args=(name,)) for name in range(1, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {name: [value == name for value in range(4)] for name in range(1, 4)}


def test_bomb_off_the_main_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(judge("math", MATH_BOMBS["tower"], "7").lenient))
    thread.start()
    thread.join(10)
    assert found == [False]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_forked_process_asks_its_own():
    assert judge("math", "#### $14/2$", "7").strict
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        verdicts = pool.starmap(judge, [("math", f"#### ${2 * n}/2$", "7") for n in range(12)])
    assert [verdict.strict for verdict in verdicts] == [n == 7 for n in range(12)]
    assert judge("math", "#### $14/2$", "7").strict


def living_child(process):
    """Return the process that answers, which the one that was started has forked."""
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])


@pytest.fixture
def math_verify():
    server = sys.modules["hrpo.tasks.judge"]._math_verify
    judge("math", "#### $16/2$", "7")
    yield server
    server.spare = scorer_process.SPARE_SECONDS


on_linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc")


@on_linux
@pytest.mark.parametrize("whom", ["starter", "child", "both"])
def test_killed_process_is_asked_again(math_verify, whom):
    child = living_child(math_verify.process)
    for pid in {"starter": [math_verify.process.pid], "child": [child], "both": [math_verify.process.pid, child]}[whom]:
        os.kill(pid, signal.SIGKILL)
    if whom != "child":
        math_verify.process.wait(10)  # until then its child may still answer
    for numerator in (14, 16, 14):
        assert judge("math", f"#### ${numerator}/2$", "7").strict is (numerator == 14)


@on_linux
def test_stopped_process_is_asked_again(math_verify, monkeypatch):
    monkeypatch.setattr(scorer_process, "CLOCK_SECONDS", 0.5)
    os.killpg(math_verify.process.pid, signal.SIGSTOP)
    assert judge("math", "#### $14/2$", "7").strict


def test_hopeless_answers_share_their_time(math_verify, monkeypatch):
    """When it is used up, an answer has a tenth of a second; right ones are still right, and earn time back."""
    bomb = MATH_BOMBS["tower"]
    monkeypatch.setattr(math_verify, "spare", 0.5)
    assert not judge("math", bomb, "7").lenient
    assert math_verify.spare == -0.5
    assert not judge("math", bomb, "7").lenient
    assert math_verify.spare == pytest.approx(-0.6)
    assert judge("math", "#### $14/2$", "7").strict
    assert math_verify.spare == pytest.approx(-0.55)


def test_import_is_light():
    code = "import sys, hrpo.tasks.judge; sys.exit(bool({'torch', 'math_verify', 'sympy'} & sys.modules.keys()))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


# ---- real data, where present -----------------------------------------------------------------------------

DATA = Path(os.environ.get("HRPO_DATA", Path(__file__).parents[3] / "shared" / "data"))


def rows(path):
    if not (DATA / path).exists():
        pytest.skip(f"no {DATA / path}")
    return [json.loads(line) for line in (DATA / path).open()]


def test_real_gsm8k():
    golds = [row["answer"].rpartition("####")[2].strip() for row in rows("gsm8k/test.jsonl")]
    assert len(golds) == 1319
    for gold in golds:
        wrong = int(gold.replace(",", "")) + 1
        assert judge("number", f"#### {gold}", gold) == (True, True)
        assert judge("number", f"#### {wrong}", gold) == (False, False)
        assert judge("number", f"#### {wrong:,}", gold) == (False, False)


def test_real_math500():
    golds = [row["answer"] for row in rows("math500/math500.jsonl")]
    for gold in golds:
        for form in (gold, f"${gold}$", rf"\boxed{{{gold}}}", f"{gold}."):
            assert judge("math", f"#### {form}", gold) == (True, True), gold
    for answer, gold in itertools.pairwise(golds[:101]):
        if answer != gold.removeprefix("x="):
            assert judge("math", f"#### {answer}", gold) == (False, False), (answer, gold)


def test_real_arc():
    for row in rows("arc_challenge/arc_challenge_llmfoundry.jsonl"):
        for option, text in enumerate(row["choices"]):
            letter, gold = "ABCDE"[option], "ABCDE"[row["gold"]]
            for form in (letter, f"{letter}. {text}", f"({letter}) {text}", f"**{letter}**"):
                assert judge("choice", f"#### {form}", gold).strict is (letter == gold), (form, gold)


TYPED = str.maketrans({"–": "-", "—": "-", "−": "-", "’": "'", "×": "x", "ø": "o"})


def test_real_nq():
    answers = [row["answer"] for row in rows("nq_open/NQ-open.dev.jsonl")]
    for index, golds in enumerate(answers):
        for gold in golds:
            assert judge("qa", f"#### {gold}", golds) == (True, True), gold
        assert not judge("qa", f"#### {golds[0]} not {answers[index - 1][0]}", golds).lenient
    ascii_only = [
        any(
            judge(
                "qa",
                "#### " + unicodedata.normalize("NFKD", gold).translate(TYPED).encode("ascii", "ignore").decode(),
                golds,
            ).strict
            for gold in golds
        )
        for golds in answers
    ]
    assert ascii_only.count(False) == 1  # a title in Japanese
