"""Modules that had another name in 0.1: importing one by its old name works in this version, with a warning."""

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType

MOVED = {
    "checkpoints": "storage.run_dir",
    "errors": "common.errors",
    "files": "common.files",
    "harness": "evaluation.lm_eval",
    "inference": "evaluation.inference",
    "processes": "common.distributed",
    "prompts": "chat",
    "run": "training.train",
    "statistics": "common.statistics",
    "stop": "common.signals",
    "tasks.task": "tasks.base",
    "techniques": "engine.interface",
}


class _Moved(MetaPathFinder, Loader):
    """Finds modules under their old names, and gives what has the new one."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for an old name."""
        package, _, old = name.partition(".")
        return spec_from_loader(name, self) if package == "hrpo" and old in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module under its new name."""
        new = f"hrpo.{MOVED[spec.name.removeprefix('hrpo.')]}"
        warnings.warn(f"{spec.name} is {new} since 0.2, and has this name in this version only", FutureWarning, 2)
        module = importlib.import_module(new)
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Leave the module as it was imported under its new name."""
        module.__spec__ = self.spec


def find_moved_modules() -> None:
    """Let imports by old names find what has moved."""
    sys.meta_path.append(_Moved())
