"""How the controller asks sites: one broadcast, each reply checked and taken as it arrives, every refusal noted."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nvflare.apis.client import Client
from nvflare.apis.dxo import from_shareable
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.workflows.model_controller import ModelController

from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.flare.record import RunRecord
from privfedtalk_flare.flare.scalars import fault_of, misshapen
from privfedtalk_flare.flare.site import place_of
from privfedtalk_flare.privacy.chain import LedgerError
from privfedtalk_flare.privacy.echo import EchoBook


class AskingController(ModelController):
    """A controller whose tasks are broadcast by `_ask`. What sites answer badly, or too late, is in `_record`'s notes;
    `_statuses` counts the status words of the last task's failed replies."""

    def __init__(self, timeout: float, record: RunRecord) -> None:
        """`timeout`: seconds to wait for the replies to a task."""
        super().__init__(persistor_id="", ignore_result_error=True)
        self._timeout, self._record = timeout, record
        self._statuses: Counter[str] = Counter()
        self._answered = False
        self._receiving = threading.Lock()  # FLARE takes a reply in the thread in which it came, one at a time

    def _ask(self, task: str, params: Mapping[str, Any], meta: Mapping[str, Any], sites: Sequence[str],
             accept: Callable[[FLModel], str] | None = None) -> tuple[list[FLModel], list[FLModel]]:
        """Broadcasts a task; returns the replies that echo its header, and those of them that count, by site's name.

        `accept` takes a reply as it arrives, and returns why it does not count, "" where it does; what it raises is
        raised here, after the broadcast. A reply's payload is dropped then: however many sites there are, the server
        holds the updates that are arriving alone.
        """
        book = EchoBook(place_of(self.fl_ctx).state)
        data = FLModel(params_type=ParamsType.FULL, params=dict(params), current_round=int(meta[p.ROUND]),
                       meta={**meta, p.ECHO: book.told(sites)})
        self._statuses.clear()
        answers: dict[str, FLModel] = {}
        good: list[FLModel] = []
        failures: list[Exception] = []
        over = False

        def receive(reply: FLModel) -> bool:
            with self._receiving:
                try:
                    return take(reply)
                except Exception as failure:  # FLARE would log it, and the round go on as if nobody had answered
                    failures.append(failure)
                    return False

        def take(reply: FLModel) -> bool:
            site = reply.meta["client_name"]
            self._record.worked(reply.meta.get(p.BUSY))
            if reason := "its reply came too late" if over else fault_of(reply.meta, meta):
                self._refuse(site, reason)
                return False
            answers[site] = reply
            self._remember(book, site, reply.meta.get(p.LEDGER))
            refused = accept(reply) if accept is not None else ""
            if accept is not None:
                reply.params = {}
            if not refused:
                good.append(reply)
            return not refused

        self.broadcast_model(data, task_name=task, targets=list(sites), timeout=math.ceil(self._timeout),
                             callback=receive)
        with self._receiving:
            over = True  # of a job that is aborted, a reply may still be on its way through FLARE
        if failures:
            raise failures[0]
        self._answered = self._answered or bool(answers)
        return [answers[site] for site in sorted(answers)], sorted(good, key=lambda reply: reply.meta["client_name"])

    def _remember(self, book: EchoBook, site: str, ledger: Any) -> None:
        if ledger is None:
            return
        try:
            oddity = book.remember(site, ledger)
        except (OSError, LedgerError) as error:
            oddity = f"where its ledger stands could not be kept: {error}"
        if oddity:
            self._note(f"{site}: {oddity}")

    def _accept_train_result(self, client_name: str, result: Shareable, fl_ctx: FLContext,
                             is_unknown_task: bool = False) -> bool:
        """FLARE's hook for each result: one with an error code is noted by its status, and the round goes on."""
        rc = result.get_return_code()
        if rc in (None, ReturnCode.OK):
            return super()._accept_train_result(client_name, result, fl_ctx, is_unknown_task)
        try:
            meta = from_shareable(result).meta
        except ValueError:  # FLARE's own errors carry no content
            meta = {}
        status = "" if misshapen(meta) else meta.get(p.STATUS)
        with self._receiving:
            self._record.worked(meta.get(p.BUSY))
            self._statuses[str(status)] += 1
            self._refuse(client_name, status if status in p.STATUSES else f"return code {rc}")
        return False

    def process_result_of_unknown_task(self, client: Client, task_name: str, client_task_id: str, result: Shareable,
                                       fl_ctx: FLContext) -> None:
        """A reply that came after its task had ended."""
        self._refuse(client.name, f"its reply to {task_name} came too late")

    def warning(self, msg: str) -> None:
        """FLARE counts the results that it holds, and warns that it holds none, as `receive` has taken them all."""
        if not msg.startswith("Number of results (0) is different"):
            super().warning(msg)

    def _refuse(self, site: str, reason: str) -> None:
        self._note(f"{site} refused: {reason}")

    def _note(self, text: str) -> None:
        self._record.notes.append(text)
        self.logger.warning(text)
