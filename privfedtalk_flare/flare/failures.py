"""How a site answers when its work fails: a return code and a status word, never the error's own text."""

from __future__ import annotations

from nvflare.apis.fl_constant import ReturnCode

from privfedtalk_flare.flare.protocol import (
    STATUS_BUDGET_SPENT,
    STATUS_DATA_ERROR,
    STATUS_FAILED,
    STATUS_LEDGER,
    STATUS_LOG_STREAMING,
    STATUS_MISSING_ASSET,
    STATUS_NO_BACKBONE,
    STATUS_NO_CLIPS,
    STATUS_NO_ENCRYPTION,
    STATUS_NO_LEDGER,
    STATUS_OUT_OF_MEMORY,
    STATUS_STEP_REFUSED,
    STATUS_STOPPED,
    STATUS_WRONG_HEADER,
)

_BY_NAME = {
    "NoClipsError": (ReturnCode.EMPTY_RESULT, STATUS_NO_CLIPS),
    "ClipError": (ReturnCode.EXECUTION_EXCEPTION, STATUS_DATA_ERROR),
    "FileNotFoundError": (ReturnCode.EXECUTION_EXCEPTION, STATUS_MISSING_ASSET),
    "CiphertextError": (ReturnCode.BAD_TASK_DATA, STATUS_DATA_ERROR),
    "ChunkError": (ReturnCode.BAD_TASK_DATA, STATUS_DATA_ERROR),
    "LogStreamingError": (ReturnCode.EXECUTION_EXCEPTION, STATUS_LOG_STREAMING),
    "HeaderError": (ReturnCode.BAD_TASK_DATA, STATUS_WRONG_HEADER),
    "KeyFault": (ReturnCode.BAD_TASK_DATA, STATUS_WRONG_HEADER),
    "PlainTaskError": (ReturnCode.BAD_TASK_DATA, STATUS_NO_ENCRYPTION),
    "BackboneRefused": (ReturnCode.BAD_TASK_DATA, STATUS_NO_BACKBONE),
    "StepRefused": (ReturnCode.BAD_TASK_DATA, STATUS_STEP_REFUSED),
    "Stopped": (ReturnCode.EXECUTION_EXCEPTION, STATUS_STOPPED),
    "BudgetExceeded": (ReturnCode.EXECUTION_EXCEPTION, STATUS_BUDGET_SPENT),
    "NoLedger": (ReturnCode.EXECUTION_EXCEPTION, STATUS_NO_LEDGER),
    "LedgerError": (ReturnCode.EXECUTION_EXCEPTION, STATUS_LEDGER),
    "MemoryError": (ReturnCode.EXECUTION_EXCEPTION, STATUS_OUT_OF_MEMORY),
    "OutOfMemoryError": (ReturnCode.EXECUTION_EXCEPTION, STATUS_OUT_OF_MEMORY),
}
"""By class name, base classes included, so that naming torch's errors does not import torch."""


ADVICE = {STATUS_OUT_OF_MEMORY: "; set low_memory: true in this site's privfedtalk.yaml, or name fewer devices there; "
                                "a job with a smaller training.batch or adapter.rank takes less as well"}
"""What the site's own log says beside a failure of that status."""


class HeaderError(ValueError):
    """A task meant for another job, adapter or backbone. The message names the key and both values."""


class PlainTaskError(ValueError):
    """A task of a job without encryption, at a site that demands it."""


class BackboneRefused(ValueError):  # noqa: N818  (an answer, not an error)
    """A backbone task at a site that does not allow that phase."""


def answer_to(error: Exception) -> tuple[str, str]:
    """The (return code, status) with which a site answers `error`."""
    for kind in type(error).__mro__:
        if kind.__name__ in _BY_NAME:
            return _BY_NAME[kind.__name__]
    if isinstance(error, RuntimeError) and "allocate memory" in str(error):  # torch on a CPU says no more than this
        return ReturnCode.EXECUTION_EXCEPTION, STATUS_OUT_OF_MEMORY
    return ReturnCode.EXECUTION_EXCEPTION, STATUS_FAILED
