"""Draw the house from its imports: python scripts/architecture.py.

Writes docs/architecture.svg, and the tables of docs/architecture.md between their markers. What imports what is read
from the source, imports inside functions included; the layers are those of `[tool.importlinter]` in pyproject.toml.
"""

import ast
import re
import tomllib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"
PAGE = ROOT / "docs" / "architecture.md"
PICTURE = ROOT / "docs" / "architecture.svg"
READING_ORDER = (
    *("gate", "latent", "delimiter", "model", "data", "rollout", "rewards", "advantages"),
    *("logprobs", "loss", "algorithms", "engines", "trainer", "evaluate", "chat", "sft"),
)

Edge = tuple[str, str]  # importer, imported
CONTRACTS = {
    contract["id"]: contract
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
}
LAYERS = [re.findall(r"\w+", layer) for layer in CONTRACTS["layers"]["layers"]]  # from the top
EXCEPTIONS = {
    tuple(line.split(" -> ")) for contract in CONTRACTS.values() for line in contract.get("ignore_imports", ())
}


def modules() -> dict[str, Path]:
    """Return the files of the package by their dotted names."""
    paths = sorted((SOURCE / "hrpo").rglob("*.py"))
    return {".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imports(files: dict[str, Path]) -> set[Edge]:
    """Return which file imports which."""
    found = set()
    for name, path in files.items():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{n}" if f"{node.module}.{n}" in files else str(node.module) for n in names]
            found |= {(name, other) for other in names if other in files and other != name}
    return found


def reachable(edges: Iterable[Edge]) -> dict[str, set[str]]:
    """Return what each node leads to, over one arrow or several."""
    direct: dict[str, set[str]] = {}
    for start, end in edges:
        direct.setdefault(start, set()).add(end)
    reach = {}
    for start in direct:
        seen, ahead = set(), list(direct[start])
        while ahead:
            node = ahead.pop()
            if node not in seen:
                seen.add(node)
                ahead += direct.get(node, ())
        reach[start] = seen
    return reach


def circles(edges: Iterable[Edge]) -> set[frozenset[str]]:
    """Return the groups of nodes that lead to one another."""
    reach = reachable(edges)
    return {frozenset(m for m in reach[n] if n in reach.get(m, ())) for n in reach if n in reach[n]}


def floors(edges: set[Edge]) -> int:
    """Return how many nodes the longest chain of arrows has; there must be no circles."""
    reach = reachable(edges)
    height: dict[str, int] = {}
    for node in sorted({n for edge in edges for n in edge}, key=lambda n: len(reach.get(n, ()))):
        height[node] = 1 + max((height[end] for start, end in edges if start == node), default=0)
    return max(height.values(), default=0)


def place(module: str) -> str:
    """Return the box that a file stands in: its room, a room within a room, or the file itself in the story."""
    parts = module.split(".")[1:]
    folder = (SOURCE / "hrpo").joinpath(*parts)
    return "/".join((parts if folder.is_dir() else parts[:-1]) or parts)


def between_places(edges: Iterable[Edge]) -> Counter[Edge]:
    """Return how many imports lead from one box to another; what starts the package is none."""
    pairs = ((place(start), place(end)) for start, end in edges)
    return Counter(pair for pair in pairs if pair[0] != pair[1] and not {"", "__main__"} & set(pair))


def layer_of(box: str) -> int:
    """Return the number of a box's layer, counted from the top."""
    return next(number for number, names in enumerate(LAYERS) if box.split("/")[0] in names)


def layout(boxes: Iterable[str], arrows: Iterable[Edge]) -> dict[str, tuple[float, float]]:
    """Return the middle of each box: a row a layer, each box near those with which it shares arrows."""
    rows: dict[int, list[str]] = {}
    for box in sorted(boxes):
        rows.setdefault(layer_of(box), []).append(box)
    at: dict[str, tuple[float, float]] = {}
    for _ in range(9):
        for y, (_, row) in enumerate(sorted(rows.items())):
            around = {b: [at[o][0] for a in arrows for o in a if b in a and o != b and o in at] for b in row}
            row.sort(key=lambda b: (sum(around[b]) / len(around[b]) if around[b] else WIDTH / 2, b))
            at |= {b: (WIDTH * (i + 0.5) / len(row), 40 + 100 * y) for i, b in enumerate(row)}
    return at


WIDTH, BOX = 1200, (130, 36)
STYLE = """
text { font: 14px system-ui, sans-serif; text-anchor: middle; fill: #1f2328; }
.count { font-size: 11px; stroke: #fff; stroke-width: 4px; paint-order: stroke; }
.room { fill: #ddf4ff; stroke: #54aeff; } .story { fill: #fff8c5; stroke: #d4a72c; }
path { fill: none; stroke: #8c959f; } .up { stroke: #cf222e; stroke-width: 2; }
"""


def arrow(start: tuple[float, float], end: tuple[float, float], count: int, *, up: bool) -> str:
    """Return an arrow between two boxes with the number of imports: out on one side and in on the other."""
    (x1, y1), (x2, y2), half, tip = start, end, BOX[1] / 2, 5
    if y1 == y2:  # out and in at the bottom
        y1, y2 = y1 + half, y2 + half + tip
        c = y1 + 40
    else:
        down = 1 if y1 < y2 else -1
        y1, y2 = y1 + down * half, y2 - down * (half + tip)
        c = (y1 + y2) / 2
    x, y = (x1 + x2) / 2, (y1 + 6 * c + y2) / 8
    kind = ' class="up"' if up else ""
    curve = f"M{x1:.0f} {y1:.0f}C{x1:.0f} {c:.0f} {x2:.0f} {c:.0f} {x2:.0f} {y2:.0f}"
    label = f'<text class="count" x="{x:.0f}" y="{y + 4:.0f}">{count}</text>'
    return f'<path{kind} marker-end="url(#head)" d="{curve}"/>{label}'


def picture() -> str:
    """Return docs/architecture.svg: an arrow that follows from others is left out, one against the layers is red."""
    files = modules()
    edges = imports(files)
    arrows, against = between_places(edges - EXCEPTIONS), between_places(edges & EXCEPTIONS)
    reach = reachable(arrows)
    drawn = {
        (start, end): count
        for (start, end), count in sorted(arrows.items())
        if not any(end in reach.get(middle, ()) for first, middle in arrows if first == start and middle != end)
    }
    boxes = {place(name) for name in files} - {"", "__main__"}
    at = layout(boxes, drawn)
    height = max(y for _, y in at.values()) + 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}"><style>{STYLE}</style>',
        '<marker id="head" viewBox="0 0 8 8" refX="4" refY="4" markerWidth="8" markerHeight="8" orient="auto" '
        'markerUnits="userSpaceOnUse"><path d="M0 0L8 4L0 8z" style="fill:#8c959f;stroke:none"/></marker>',
        f'<rect width="{WIDTH}" height="{height:.0f}" fill="#fff"/>',
        *(arrow(at[a], at[b], count, up=False) for (a, b), count in drawn.items()),
        *(arrow(at[a], at[b], count, up=True) for (a, b), count in sorted(against.items())),
    ]
    for box, (x, y) in sorted(at.items()):
        kind, name = ("room", f"{box}/") if is_room(box) else ("story", box)
        parts.append(
            f'<rect class="{kind}" rx="6" x="{x - BOX[0] / 2:.0f}" y="{y - BOX[1] / 2:.0f}" width="{BOX[0]}" '
            f'height="{BOX[1]}"/><text x="{x:.0f}" y="{y + 5:.0f}">{name}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def is_room(box: str) -> bool:
    """Whether a box is a folder."""
    return (SOURCE / "hrpo" / box).is_dir()


def first_line(path: Path) -> str:
    """Return what a file says first of itself."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


def table(head: str, rows: Iterable[str]) -> str:
    """Return a table in Markdown; cells are parted by bars."""
    return "\n".join([f"| {head} |", "|---" * (head.count("|") + 1) + "|", *(f"| {row} |" for row in rows)])


def tables() -> dict[str, str]:
    """Return what stands between the markers of docs/architecture.md, by their names."""
    files = modules()
    edges = imports(files)
    layered = edges - EXCEPTIONS
    arrows = between_places(edges)
    boxes = sorted({place(name) for name in files} - {"", "__main__"}, key=lambda box: (layer_of(box), box))
    story = [n for n in READING_ORDER if n in boxes] + [n for n in boxes if n not in READING_ORDER and not is_room(n)]

    def link(box: str) -> str:
        name = f"{box}/" if is_room(box) else f"{box}.py"
        return f"[{name}](../src/hrpo/{name})"

    def room(box: str) -> str:
        used = ", ".join(f"{end} {arrows[box, end]}" for end in boxes if arrows[box, end])
        count = sum(place(name) == box for name in files)
        about = first_line(SOURCE / "hrpo" / box / "__init__.py")
        return f"{link(box)} | {about} | {count} | {used or 'nothing of hrpo'}"

    return {
        "numbers": (
            f"{len(files)} files import one another {len(edges)} times. The longest chain of imports has "
            f"{floors(layered)} files, and {floors(set(between_places(layered)))} boxes of the picture.\n"
            f"Circles among files: {len(circles(layered))}; among boxes: {len(circles(between_places(layered)))}. "
            f"Imports against the layers: {len(edges & EXCEPTIONS)}."
        ),
        "story": table("file | what it holds", (f"{link(n)} | {first_line(files[f'hrpo.{n}'])}" for n in story)),
        "layers": table(
            "layer | rooms and files",
            (
                f"{number} | " + ", ".join(link(box) for box in boxes if layer_of(box) == layer)
                for number, layer in enumerate(sorted(set(map(layer_of, boxes))), start=1)
            ),
        ),
        "rooms": table("room | what it is for | files | imports", (room(box) for box in boxes if is_room(box))),
    }


def page() -> str:
    """Return docs/architecture.md with its tables made anew."""
    text = PAGE.read_text()
    for name, made in tables().items():
        before, _, rest = text.partition(f"<!-- {name} -->\n")
        text = f"{before}<!-- {name} -->\n{made}\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
    return text


def function_lengths(path: Path) -> dict[str, int]:
    """Return how many lines each function of a file has; of several with one name, the longest."""
    found: dict[str, int] = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            found[node.name] = max(length, found.get(node.name, 0))
    return found


if __name__ == "__main__":
    PICTURE.write_text(picture())
    PAGE.write_text(page())
