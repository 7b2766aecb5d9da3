"""What was installed when something was measured."""

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from hf_vlr import __version__


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of this package, Python and those of `packages` that are installed, by name."""
    found = {"hf_vlr": __version__, "python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
