"""Make transformers' Auto classes know our models, in either order of imports.

`import hf_vlr` must stay light, so it cannot register by importing the Auto classes. It looks whether they
are already there; if not, it watches for them and registers when their import is over.

"Over" means that no import of transformers or of our models is still under way in the thread. Our model files
import the Auto classes at their top, and registering in the midst of that would meet half-made modules.
"""

import functools
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# AutoConfig's module: each of the other Auto modules imports it.
AUTO_MODULE = "transformers.models.auto.configuration_auto"
WATCHED = ("transformers.", "hf_vlr.modeling.")


def install() -> None:
    """Register our classes now if the Auto classes are imported, else right after they will be.

    Calling it again changes nothing.
    """
    if AUTO_MODULE in sys.modules:
        _register()
    elif not any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watcher())


def _register() -> None:
    from hf_vlr.modeling import register_auto_classes

    register_auto_classes()


class _Watcher(MetaPathFinder):
    """Counts, per thread, how deep the imports of the watched packages are nested; registers at depth 0."""

    def __init__(self) -> None:
        self._thread = threading.local()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not f"{fullname}.".startswith(WATCHED):
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                self._follow(spec)
                return spec
        return None

    def _follow(self, spec: ModuleSpec) -> None:
        loader = spec.loader
        if hasattr(loader, "exec_module"):
            # On the instance, which serves this one module: the loader keeps its class and its other uses.
            loader.exec_module = functools.partial(self._execute, loader, loader.exec_module)

    def _execute(self, loader: object, execute: Callable[[ModuleType], None], module: ModuleType) -> None:
        del loader.exec_module
        self._thread.depth = getattr(self._thread, "depth", 0) + 1
        try:
            execute(module)
        finally:
            self._thread.depth -= 1
        if self._thread.depth == 0 and AUTO_MODULE in sys.modules and self in sys.meta_path:
            # First, so that what registering imports is not watched in its turn; back again if it fails.
            sys.meta_path.remove(self)
            try:
                _register()
            except BaseException:
                sys.meta_path.insert(0, self)
                raise
