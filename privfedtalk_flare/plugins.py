"""Functions that a study brings, found by their dotted path."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from privfedtalk_flare.settings import SettingsError

SHIPPED = "privfedtalk_flare.custom"
"""Package of the copies that ship with PrivFedTalk, for use outside a FLARE job."""


def load_function(path: str, where: str) -> Callable[..., Any]:
    """The function at dotted `path`, such as `study_clips.find_clips`; `where` names the setting in error messages.

    Looks on the Python path (a job's `app/custom` is on it), then among the copies that ship with the package. An
    error inside a module that exists is raised as it is. Raises `SettingsError` naming all that was tried.
    """
    module_name, _, name = path.rpartition(".")
    if not module_name or not name.isidentifier():
        raise SettingsError(f"{where}: {path!r} is not a dotted path of a function, such as study_clips.find_clips")
    own = module_name.removeprefix(f"{SHIPPED}.")
    if not own.startswith("study_") or "." in own:  # a job's settings must not be a way to call shutil.rmtree
        raise SettingsError(f"{where}: {path!r} is no function of a study; its module must be called study_*, in "
                            f"the job's app/custom or in {SHIPPED}")
    tried = []
    for candidate in dict.fromkeys((module_name, f"{SHIPPED}.{own}")):
        try:
            module = importlib.import_module(candidate)
        except ModuleNotFoundError as error:
            if error.name is None or not (candidate == error.name or candidate.startswith(f"{error.name}.")):
                raise
            tried.append(f"module {candidate} (not found)")
            continue
        function = getattr(module, name, None)
        if callable(function):
            return function
        found = sorted(n for n, v in vars(module).items() if callable(v) and not n.startswith("_"))
        tried.append(f"{candidate}.{name} (no such function; {candidate} has {', '.join(found) or 'none'})")
    raise SettingsError(f"{where}: cannot find {path!r}; tried {'; '.join(tried)}")
