"""Pin what is installed in .venv and needed by the project: .venv/bin/python scripts/lock.py > requirements.lock."""

from importlib.metadata import distribution

from packaging.requirements import Requirement

EXTRAS = ("quantization", "smollm2", "retrieval", "test", "bench", "lint")


def needed(name: str, extras: set[str], seen: dict[str, str]) -> None:
    """Collect a package and what it needs: name -> version."""
    package = distribution(name)
    for line in package.requires or []:
        requirement = Requirement(line)
        wanted = [{"extra": extra} for extra in extras or {""}]
        if requirement.marker is not None and not any(requirement.marker.evaluate(extra) for extra in wanted):
            continue
        key = requirement.name.lower().replace("_", "-")
        if key not in seen or requirement.extras:
            seen[key] = distribution(key).version.split("+")[0]
            needed(key, set(requirement.extras), seen)


found: dict[str, str] = {}
needed("hrpo", set(EXTRAS), found)
print("# pip constraints: what the project is developed and tested with. Made by scripts/lock.py.")
print("\n".join(f"{name}=={version}" for name, version in sorted(found.items()) if name != "hrpo"))
