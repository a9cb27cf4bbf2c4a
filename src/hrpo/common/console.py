"""What a run shows while it goes: a live line on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from hrpo.common.metrics import MEAN_LENGTH, NO_SIGNAL
from hrpo.common.output import failures_told, visible


class Screen(Console):
    """Standard output, on which texts are shown as they are: nothing in them is markup, an emoji or a command.

    What writes raises an OutputError where standard output takes nothing any more.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Make a text ready; whatever is printed comes by here, the cells of tables too."""
        return super().render_str(visible(text), **options)

    @property  # type: ignore[misc]  # rich's can be set, too
    def file(self) -> IO[str]:
        """Standard output as it is at the moment."""
        return cast(IO[str], _Told(super().file))


class _Told:
    """A stream that tells its own failures from those of files."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with failures_told():
            return self.stream.write(text)

    def flush(self) -> None:
        with failures_told():
            self.stream.flush()


console = Screen(soft_wrap=True)


@contextmanager
def bar(label: str, total: int, done: int = 0) -> Iterator["Bar"]:
    """Show how far something is; the block calls `advance` on what it gets."""
    columns = [TextColumn("{task.description}", markup=False), BarColumn(bar_width=16), MofNCompleteColumn()]
    columns += [TextColumn("{task.fields[note]}", markup=False), TimeRemainingColumn()]
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield Bar(progress, visible(label), total, done)


class Bar:
    """One line of progress."""

    def __init__(self, progress: Progress, label: str, total: int, done: int) -> None:
        self.progress, self.label, self.total, self.done = progress, label, total, done
        self.task = progress.add_task(label, total=total, completed=done, note="")
        self.start, self.first, self.printed = time.monotonic(), done, 0.0

    def advance(self, count: int = 1, note: str = "", *, every: float = 0.0) -> None:
        """Go on by `count`; off a terminal print a line, at most one in `every` seconds and always the last."""
        self.done += count
        self.progress.update(self.task, completed=self.done, note=note)
        now = time.monotonic()
        if not console.is_terminal and (self.done == self.total or now - self.printed >= every):
            self.printed = now
            left = (now - self.start) / (self.done - self.first) * (self.total - self.done)
            console.print(f"{self.label} {self.done}/{self.total} {note} left {clock(left)}")


def metrics_note(metrics: Mapping[str, float]) -> str:
    """One line about an update."""
    if "nll" in metrics:
        return f"nll {metrics['nll']:.4f} length {metrics[MEAN_LENGTH]:.1f} {metrics['tokens_per_second']:.0f} tokens/s"
    reward = f"{metrics['reward']:.3f}" if "reward" in metrics else "none"
    return (
        f"reward {reward} signal {1 - metrics[NO_SIGNAL]:.0%} length {metrics[MEAN_LENGTH]:.1f} "
        f"kl {metrics.get('kl', 0.0):.4f} hidden {metrics['hidden_ratio']:.3f} "
        f"{metrics['tokens_per_second']:.0f} tokens/s"
    )


def print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """Print a table; the first column is left-aligned. Off a terminal it is as wide as it has to be."""
    table = Table(title=title, title_justify="left")
    for at, name in enumerate(header):
        table.add_column(name, justify="left" if at == 0 else "right")
    for row in rows:
        table.add_row(*row)
    screen = console
    if not console.is_terminal:
        wide = console.measure(table, options=console.options.update(max_width=10_000)).maximum
        screen = Screen(width=max(wide, console.width), quiet=console.quiet)
    screen.print(table)


def clock(seconds: float) -> str:
    """Return a duration as 1:05, or 2:01:05 from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
