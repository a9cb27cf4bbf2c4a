"""What a module finds out about a model, remembered as long as that model lives, and not on the model."""

from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")


class PerModel(Generic[T]):
    """One value for each model.

    Args:
        make: makes the value of a model that is new here.

    """

    all: ClassVar[list["PerModel[Any]"]] = []

    def __init__(self, make: Callable[[], T]) -> None:
        self.make = make
        self.values: WeakKeyDictionary[Any, T] = WeakKeyDictionary()
        PerModel.all.append(self)

    def of(self, model: Any) -> T:
        """Return a model's value."""
        if model not in self.values:
            self.values[model] = self.make()
        return self.values[model]


def remember_as(copy: Any, original: Any) -> None:
    """Let a copy of a model share what is known about the original: it has the same structure and weights."""
    for store in PerModel.all:
        if original in store.values:
            store.values[copy] = store.values[original]
