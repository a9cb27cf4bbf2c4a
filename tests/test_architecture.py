"""The house: its picture and page are made from the imports of today, it has no circles, and nothing in it grows long.

The lists name what is longer than it should be, with the number of lines at most. A number here may only fall, and
what is short enough leaves its list.
"""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import architecture as house

FILE_LIMIT, FUNCTION_LIMIT = 300, 60
LONG_FILES = {
    "config/schema.py": 329,
    "engine/cpu/kernels.py": 454,
    "engine/packed_decoder.py": 450,
    "tasks/base.py": 324,
    "trainer.py": 356,
}
LONG_FUNCTIONS = {
    "rollout.py:generate": 78,
}

FILES = house.modules()
EDGES = house.imports(FILES)
PATHS = {str(path.relative_to(house.SOURCE / "hrpo")): path for path in FILES.values()}


def test_page_and_picture_are_what_the_script_makes():
    again = "run `python scripts/architecture.py`"
    assert house.PAGE.read_text() == house.page(), again
    assert house.PICTURE.read_text() == house.picture(), again


def test_no_circles():
    assert house.circles(EDGES - house.EXCEPTIONS) == set()
    assert house.circles(house.between_places(EDGES - house.EXCEPTIONS)) == set()


def test_no_import_leads_against_the_layers():
    boxes = {edge: [house.layer_of(house.place(end)) for end in edge] for edge in EDGES if "hrpo" not in edge}
    upward = {edge for edge, (importer, imported) in boxes.items() if importer > imported}
    assert upward <= house.EXCEPTIONS
    assert house.EXCEPTIONS <= EDGES, "delete what is gone from ignore_imports"


def test_every_room_says_what_it_is_for():
    rooms = {path.parent for path in PATHS.values()}
    assert [room for room in rooms if not house.first_line(room / "__init__.py")] == []


def over(limit, sizes):
    """What is longer than a limit."""
    return {name: size for name, size in sizes.items() if size > limit}


@pytest.mark.parametrize(
    ("limit", "ceilings", "sizes"),
    [
        (FILE_LIMIT, LONG_FILES, {name: len(path.read_text().splitlines()) for name, path in PATHS.items()}),
        (
            FUNCTION_LIMIT,
            LONG_FUNCTIONS,
            {f"{n}:{f}": lines for n, path in PATHS.items() for f, lines in house.function_lengths(path).items()},
        ),
    ],
    ids=["files", "functions"],
)
def test_nothing_grows_long(limit, ceilings, sizes):
    long = over(limit, sizes)
    assert {name: lines for name, lines in long.items() if lines > ceilings.get(name, limit)} == {}
    assert set(ceilings) <= set(long), "delete what is short enough now from the list"


def test_circles_and_floors_are_counted():
    """Or the tests above could look past them."""
    chain = {("a", "b"), ("b", "c"), ("a", "c")}
    assert house.circles(chain) == set()
    assert house.floors(chain) == 3
    assert house.circles({*chain, ("c", "b")}) == {frozenset("bc")}
    assert house.circles({*chain, ("c", "a"), ("x", "y"), ("y", "x")}) == {frozenset("abc"), frozenset("xy")}


def test_imports_are_found_wherever_they_stand(tmp_path):
    texts = {
        "a": "def f():\n    import hrpo.b",
        "b": "from hrpo import c, __version__",
        "c": "import torch\nfrom hrpo.d import e, f",
        "d": "",
        "d.e": "",
    }
    files = {"hrpo": tmp_path / "init.py", **{f"hrpo.{name}": tmp_path / f"{name}.py" for name in texts}}
    for name, path in files.items():
        path.write_text(texts.get(name.removeprefix("hrpo."), ""))
    pairs = {("a", "b"), ("b", "c"), ("c", "d"), ("c", "d.e")}
    assert house.imports(files) == {("hrpo.b", "hrpo"), *((f"hrpo.{a}", f"hrpo.{b}") for a, b in pairs)}
