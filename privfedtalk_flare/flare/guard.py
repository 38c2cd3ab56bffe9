"""Filters that fail without a word: the reason stays in the site's own log, below ERROR.

FLARE writes the text and the traceback of an exception in a filter into the error log, which provisioned sites stream
to the server by default. So nothing that names a value, a path or a person may be raised out of a filter.
"""

from __future__ import annotations

from typing import ClassVar

from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.filter import ContentBlockedException, Filter
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from privfedtalk_flare.flare.failures import answer_to
from privfedtalk_flare.flare.protocol import STATUS, STATUS_FAILED
from privfedtalk_flare.flare.replies import without_payload


class TaskFilter(Filter):
    """A filter of task data: whatever `incoming` raises makes the site decline the task, with a status word for the
    executor to answer with, and without the task's payload."""

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        try:
            return self.incoming(shareable, fl_ctx)
        except Exception as error:
            status = answer_to(error)[1]
            self.logger.warning(f"{fl_ctx.get_identity_name()}: task declined ({status}) by {type(self).__name__}: "
                                f"{error}", exc_info=status == STATUS_FAILED)
            try:
                dxo = from_shareable(shareable)
            except ValueError:  # no DXO: nothing of it goes on
                shareable, dxo = Shareable(), DXO(DataKind.WEIGHTS, data={})
            return DXO(dxo.data_kind, data={}, meta={**dxo.meta, STATUS: status}).update_shareable(shareable)

    def incoming(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        raise NotImplementedError


class ResultFilter(Filter):
    """A filter of results: whatever `outgoing` raises blocks the result. A failed one loses its payload."""

    said: ClassVar[str] = "the result may not leave; this site's own log says why"

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        try:
            if shareable.get_return_code() != ReturnCode.OK:
                return without_payload(shareable)
            return self.outgoing(shareable, fl_ctx)
        except Exception as error:
            self.logger.warning(f"{fl_ctx.get_identity_name()}: result of {fl_ctx.get_prop(FLContextKey.TASK_NAME)} "
                                f"blocked by {type(self).__name__}: {error}",
                                exc_info=not isinstance(error, ContentBlockedException))
        raise ContentBlockedException(f"{type(self).__name__}: {self.said}")

    def outgoing(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        raise NotImplementedError
