"""Detectors and attacks of other packages that are installed, found by their entry points (CONTRIBUTING.md).

An entry point of the group `lookout.detectors` or `lookout.attacks` has the name of a choice, and as its value a
package whose folder holds `detector/<name>.yaml` or `attack/<name>.yaml`. Only that folder is read here; code of
the package runs where the choice is made.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

GROUPS = {"detector": "lookout.detectors", "attack": "lookout.attacks"}


@dataclass(frozen=True)
class Contribution:
    """A choice of `group` that a distribution brings along; `folder` holds <group>/<name>.yaml."""

    group: str
    name: str
    folder: Path
    package: str
    distribution: str
    version: str


class InstalledChoices(SearchPathPlugin):
    """Lets Hydra find the YAML files of `contributions`."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in dict.fromkeys(one.folder for one in contributions()):
            search_path.append("lookout-entry-points", f"file://{folder}")


def register() -> None:
    Plugins.instance().register(InstalledChoices)


def contributions() -> tuple[Contribution, ...]:
    """All installed contributions; ValueError names an entry point without a file, or with a name that is taken."""
    return _contributions(tuple(sys.path))


def choices(folder: Path, group: str) -> list[str]:
    """The names to choose from in a group: the files in `folder`, without those that they share (`_*.yaml`), and
    what other packages bring along."""
    own = [path.stem for path in (folder / group).glob("[!_]*.yaml")]
    installed = contributions() if group in GROUPS else ()
    theirs = [one.name for one in installed if one.group == group]
    if twice := sorted({name for name in theirs if name in own or theirs.count(name) > 1}):
        packages = [one.distribution for one in installed if (one.group, one.name) == (group, twice[0])]
        others = ["Lookout itself"] * (twice[0] in own) + packages
        raise ValueError(f"{group}={twice[0]} is offered twice, by {' and by '.join(others)}: remove one of them")
    return own + theirs


def check(folder: Path) -> None:
    """Refuse, whatever was chosen, what `contributions` and `choices` refuse."""
    for group in GROUPS:
        choices(folder, group)


def package_versions(kinds: Iterable[type]) -> dict[str, str]:
    """Distribution -> version of the classes that come with a package found here: for the keys of their results."""
    roots = {kind.__module__.partition(".")[0] for kind in kinds}
    return {one.distribution: one.version for one in contributions() if one.package in roots}


@functools.lru_cache(maxsize=4)
def _contributions(path: tuple[str, ...]) -> tuple[Contribution, ...]:
    found = (one for group, label in GROUPS.items() for entry in _entries(label) for one in [_of(group, entry)])
    return tuple(sorted(found, key=lambda one: (one.group, one.name, one.distribution)))


def _entries(label: str) -> Iterator[EntryPoint]:
    """The entry points of a group, without repetitions from the same distribution."""
    found = entry_points(group=label)
    yield from {(entry.name, entry.value, _distribution(entry)[0]): entry for entry in found}.values()


def _of(group: str, entry: EntryPoint) -> Contribution:
    distribution, version = _distribution(entry)
    said = f"the package {distribution} offers {group}={entry.name} in {entry.value}"
    try:
        spec = find_spec(entry.value)
    except Exception as error:  # whatever the package does when it is imported
        raise ValueError(f"{said}, which cannot be imported: {type(error).__name__}: {error}") from error
    places = list(spec.submodule_search_locations or ()) if spec else []
    folder = next((Path(place) for place in places if Path(place, group, f"{entry.name}.yaml").is_file()), None)
    if folder is None:
        raise ValueError(f"{said}, but there is no file {group}/{entry.name}.yaml")
    return Contribution(group, entry.name, folder, entry.value.partition(".")[0], distribution, version)


def _distribution(entry: EntryPoint) -> tuple[str, str]:
    return (entry.dist.name, entry.dist.version) if entry.dist else ("?", "?")
