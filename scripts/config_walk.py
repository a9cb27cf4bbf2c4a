"""Count who gets all settings of a run: python scripts/config_walk.py.

Prints, for each file of the package, how many functions take a `TrainConfig`, alone or in a mapping, how many methods
read one that their object keeps, and the names of both.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "hrpo"
SETTINGS = "TrainConfig"
Function = ast.FunctionDef | ast.AsyncFunctionDef


def main() -> None:
    """Print the table and the sums."""
    takers, readers = dict[str, list[str]](), dict[str, list[str]]()
    for path in sorted(SOURCE.rglob("*.py")):
        name, tree = str(path.relative_to(SOURCE)), ast.parse(path.read_text())
        takers[name] = [node.name for node in functions(tree) if takes(node)]
        kept = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        readers[name] = [f"{node.name}.{method}" for node in kept for method in reading(node)]
    files = [name for name in takers if takers[name] or readers[name]]
    print(f"{'file':<32}{'take':>6}{'read':>6}")
    for name in files:
        print(f"{name:<32}{len(takers[name]):>6}{len(readers[name]):>6}  {', '.join(takers[name] + readers[name])}")
    taking, reading_ = (sum(map(len, found.values())) for found in (takers, readers))
    print(f"{f'{len(files)} files':<32}{taking:>6}{reading_:>6}")


def functions(tree: ast.AST) -> Iterator[Function]:
    """Yield all functions and methods."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def takes(node: Function) -> bool:
    """Whether a parameter is annotated with it."""
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return any(argument.annotation is not None and names_it(argument.annotation) for argument in arguments)


def names_it(annotation: ast.expr) -> bool:
    """Whether an annotation has the class in it."""
    return any(isinstance(node, ast.Name) and node.id == SETTINGS for node in ast.walk(annotation))


def reading(node: ast.ClassDef) -> list[str]:
    """Return the methods that read settings which the object keeps, but for those that take them."""
    kept = {
        part.target.id
        for part in node.body
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name) and names_it(part.annotation)
    }
    for method in filter(takes, functions(node)):
        kept |= {
            target.attr
            for part in ast.walk(method)
            if isinstance(part, ast.Assign) and is_settings(part.value)
            for target in part.targets
            if isinstance(target, ast.Attribute)
        }
    return [
        method.name
        for method in functions(node)
        if not takes(method)
        and any(
            isinstance(part, ast.Attribute) and part.attr in kept and is_self(part.value) for part in ast.walk(method)
        )
    ]


def is_settings(value: ast.expr) -> bool:
    """Whether a value is the parameter `config`, or a copy of it with other values."""
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "dataclasses.replace":
        value = value.args[0]
    return isinstance(value, ast.Name) and value.id == "config"


def is_self(value: ast.expr) -> bool:
    """Whether an expression is `self`."""
    return isinstance(value, ast.Name) and value.id == "self"


if __name__ == "__main__":
    main()
