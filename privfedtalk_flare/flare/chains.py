"""The filters and the executor that a job brought to a site, as FLARE's runner there holds them."""

from __future__ import annotations

from typing import Any

from nvflare.apis.fl_constant import FilterKey, FLContextKey
from nvflare.apis.fl_context import FLContext

from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.flare.executor import PrivFedTalkExecutor
from privfedtalk_flare.flare.filters import DecryptAdapter, EgressFilter, EncryptUpdate, PrivacyFilter, ReserveRelease
from privfedtalk_flare.settings import PrivacySettings, parse


def results_of(task: str, fl_ctx: FLContext) -> list[Any]:
    """The job's filters of this task's results, in order."""
    return _chain("task_result_filters", task, FilterKey.OUT, fl_ctx)


def data_of(task: str, fl_ctx: FLContext) -> list[Any]:
    """The job's filters of this task's data, in order."""
    return _chain("task_data_filters", task, FilterKey.IN, fl_ctx)


def privacy_of(fl_ctx: FLContext) -> PrivacySettings | None:
    """The settings of the job's privacy filter, None where it has none."""
    found = [one for one in results_of(p.TASK_ADAPTER, fl_ctx) if type(one) is PrivacyFilter]
    return parse(PrivacySettings, found[0].privacy, "privacy") if found else None


def fault_of_chains(fl_ctx: FLContext) -> str:
    """Why the job's adapter rounds do not give the promise of its settings, "" where they do.

    Classes are compared themselves, as a subclass, or a filter of the job's own in between, could take the noise off
    again; and the noise is C sigma / m only if the executor that says how many people there are is ours.
    """
    runner = fl_ctx.get_prop(FLContextKey.RUNNER)
    executor = runner.find_executor(p.TASK_ADAPTER) if runner is not None else None
    if type(executor) is not PrivFedTalkExecutor:
        return f"the executor of {p.TASK_ADAPTER!r} is {type(executor).__name__}, not {PrivFedTalkExecutor.__name__}"
    data, results = ([type(one) for one in of(p.TASK_ADAPTER, fl_ctx)] for of in (data_of, results_of))
    if data not in ([DecryptAdapter, ReserveRelease], [ReserveRelease]):
        return (f"its task data filters of {p.TASK_ADAPTER!r} are {_names(data)}; they must be DecryptAdapter and "
                "ReserveRelease")
    if results not in ([PrivacyFilter, EncryptUpdate, EgressFilter], [PrivacyFilter, EgressFilter]):
        return (f"its result filters of {p.TASK_ADAPTER!r} are {_names(results)}; they must be PrivacyFilter, "
                "EncryptUpdate and EgressFilter")
    return ""


def _chain(name: str, task: str, direction: str, fl_ctx: FLContext) -> list[Any]:
    table = getattr(fl_ctx.get_prop(FLContextKey.RUNNER), name, None) or {}
    return list(table.get(task + FilterKey.DELIMITER + direction) or ())


def _names(kinds: list[type]) -> str:
    return ", ".join(kind.__name__ for kind in kinds) or "none"
