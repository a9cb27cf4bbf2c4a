"""The work of a function, counted in steps instead of seconds: what must not be quadratic is shown by how it grows.

A step is a line of Python, or a node of a regular expression tried at one position. `re` tells nobody how often it
backtracks, so a `Counted` pattern finds what `re` finds and takes the same search in Python beside it.
"""

import re
import sys
from collections.abc import Callable, Iterator
from re import _compiler, _constants, _parser
from typing import Any

import pytest


def steps(function: Callable[[], object], package: str = "hrpo") -> int:
    """Return how many steps a call takes in the package's own code and regular expressions."""
    taken = [0]

    def trace(frame, event, argument):
        if frame.f_globals.get("__name__", "").split(".")[0] != package:
            return None
        taken[0] += 1
        return trace

    modules = [module for name, module in sys.modules.items() if name.split(".")[0] == package]
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            for name, value in list(vars(module).items()):
                if isinstance(value, re.Pattern):
                    patch.setattr(module, name, Counted(value, taken))
                elif value is re:
                    patch.setattr(module, name, CountedRe(taken))
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            function()
        finally:
            sys.settrace(before)
    return taken[0]


def grows_no_faster(function: Callable[[int], object], size: int) -> bool:
    """Whether four times the size takes about four times the steps at most; what is quadratic takes sixteen times."""
    return steps(lambda: function(4 * size)) < 5 * steps(lambda: function(size))


class CountedRe:
    """The module `re`, counting."""

    def __init__(self, taken: list[int]):
        self.taken = taken

    def __getattr__(self, name: str) -> Any:
        if name not in ("search", "match", "fullmatch", "split", "sub", "subn", "findall", "finditer"):
            return getattr(re, name)

        def call(pattern, *rest, flags=0, **options):
            return getattr(Counted(re.compile(pattern, flags), self.taken), name)(*rest, **options)

        return call


class Counted:
    """A compiled pattern, counting."""

    def __init__(self, pattern: re.Pattern, taken: list[int]):
        self.pattern, self.taken = pattern, taken
        self.tree = _parser.parse(pattern.pattern, pattern.flags & ~re.UNICODE)
        self.native = dict[tuple[Any, int], re.Pattern]()

    def __getattr__(self, name: str) -> Any:
        """Everything that goes through the whole text: findall, finditer, split, sub and subn."""

        def call(*arguments, **options):
            text = arguments["sub" in name]
            start: int | None = 0
            while start is not None:
                start = self.scan(text, start)
            return getattr(self.pattern, name)(*arguments, **options)

        return call

    def search(self, text: str, start: int = 0, end: int | None = None) -> re.Match | None:
        text = text[:end]
        self.scan(text, start)
        return self.pattern.search(text, start)

    def match(self, text: str, start: int = 0) -> re.Match | None:
        next(self.ends(self.tree, text, start), None)
        return self.pattern.match(text, start)

    def fullmatch(self, text: str) -> re.Match | None:
        any(end == len(text) for end in self.ends(self.tree, text, 0))
        return self.pattern.fullmatch(text)

    def scan(self, text: str, start: int) -> int | None:
        """Return where to go on after the first match from `start` on, None where there is none."""
        for at in range(start, len(text) + 1):
            for end in self.ends(self.tree, text, at):
                return max(end, at + 1)
        return None

    def ends(self, nodes: Any, text: str, at: int) -> Iterator[int]:
        """Yield the end of every match of a sequence of nodes that begins at `at`, in the order of being tried."""
        if not len(nodes):
            yield at
            return
        for end in self.ends_of_one(*nodes[0], nodes[:1], text, at):
            yield from self.ends(nodes[1:], text, end)

    def ends_of_one(self, kind: Any, inner: Any, node: Any, text: str, at: int) -> Iterator[int]:
        self.taken[0] += 1
        if kind in (_constants.MAX_REPEAT, _constants.MIN_REPEAT):
            yield from self.repeated(*inner, text, at, lazily=kind is _constants.MIN_REPEAT)
        elif kind is _constants.POSSESSIVE_REPEAT:
            yield from list(self.repeated(*inner, text, at, lazily=False))[:1]
        elif kind is _constants.SUBPATTERN:
            yield from self.ends(inner[3], text, at)
        elif kind is _constants.ATOMIC_GROUP:
            yield from list(self.ends(inner, text, at))[:1]
        elif kind is _constants.BRANCH:
            for branch in inner[1]:
                yield from self.ends(branch, text, at)
        elif kind in (_constants.ASSERT, _constants.ASSERT_NOT) and inner[0] > 0:
            if any(True for _ in self.ends(inner[1], text, at)) == (kind is _constants.ASSERT):
                yield at
        else:  # at most one character, or a look behind, which has a fixed width
            if (kind, id(inner)) not in self.native:
                self.native[kind, id(inner)] = _compiler.compile(node, self.pattern.flags & ~re.UNICODE)
            if found := self.native[kind, id(inner)].match(text, at):
                yield found.end()

    def repeated(self, least: int, most: int, inner: Any, text: str, at: int, *, lazily: bool) -> Iterator[int]:
        path = [(at, self.ends(inner, text, at))]  # the k-th entry: where k repetitions end, and the ends of another
        if lazily and least == 0:
            yield at
        while path:
            at, further = path[-1]
            end = next((end for end in further if end > at), None) if len(path) <= most else None
            if end is not None:
                path.append((end, self.ends(inner, text, end)))
                if lazily and len(path) > least:
                    yield end
            else:
                path.pop()
                if not lazily and len(path) >= least:
                    yield at
