"""A site's own rules, whatever a job says: named in its `local/privacy.json`, which FLARE reads for every job.

FLARE runs a site's filters before a job's, so none of them sees what leaves. This is a component of the same file: it
hears of each task before the job's filters, and of each result after them, when nothing but the sending is left.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.filter import ContentBlockedException
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey, ProcessType
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.flare.chains import fault_of_chains, privacy_of
from privfedtalk_flare.flare.egress import EgressFilter
from privfedtalk_flare.flare.events import claims_dp, guard_site
from privfedtalk_flare.flare.replies import status_reply
from privfedtalk_flare.flare.site import place_of
from privfedtalk_flare.settings import SettingsError, parse, setting

REFUSED = p.STATUS_POLICY
"""The word with which a site answers what its own rules refuse."""

_ASKED = "privfedtalk_asked"
_COOKIES = "privfedtalk_cookies"
_TASK = "privfedtalk_task"


class PolicyRefused(ValueError):  # noqa: N818  (an answer, not an error)
    """A job that a site's own rules do not allow. The message names the rule, what the job has, and what to change."""


@dataclass(frozen=True)
class SiteRules:
    """The `rules` of a site's privacy.json. What else a site decides stands in its privfedtalk.yaml."""

    require_dp: bool = setting(True, "refuse what has no differential privacy: mechanism off, and task backbone")
    noise_multiplier: float = setting(1.0, "the smallest sigma, in units of the clip norm", low=1e-3)


class SitePolicy(FLComponent):
    """Enforces differential privacy and egress at a site, whatever the job's configuration says.

    Args:
        rules: `SiteRules`.

    A task that the rules refuse loses its content, so that nothing trains on it, and is answered by a status word; the
    reason stays in the site's own log. The result of any other passes the site's own `EgressFilter` after the job's,
    and must echo the task's round and nonce. Events are let out as if the job had differential privacy, if the rules
    demand it. A job's code runs in this very process: these rules hold against its settings, its filters and its
    components, and not against code that is out to break them.
    """

    def __init__(self, rules: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.rules = rules
        self._rules = parse(SiteRules, rules, "privacy.json: rules")
        self._egress = EgressFilter({"scheme": "off"})  # so that the site's own file alone decides about encryption

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if fl_ctx.get_process_type() == ProcessType.SERVER_JOB:  # a simulation gives its server the same file
            return
        demanded = self._rules.require_dp
        guard_site(event_type, fl_ctx, self.logger.warning, lambda ctx: demanded or claims_dp(ctx))
        if event_type == EventType.BEFORE_TASK_DATA_FILTER:
            self._before(fl_ctx)
        elif event_type == EventType.BEFORE_TASK_EXECUTION:
            fl_ctx.set_prop(_TASK, fl_ctx.get_prop(FLContextKey.TASK_DATA), private=True, sticky=False)
        elif event_type == EventType.AFTER_TASK_RESULT_FILTER:
            self._after(fl_ctx)

    def refuse(self, fl_ctx: FLContext) -> None:
        """Raises `PolicyRefused` where the rules do not allow the task at hand, `SettingsError` where the site's own
        files forbid any."""
        place_of(fl_ctx)
        task = fl_ctx.get_prop(FLContextKey.TASK_NAME)
        if task not in p.TASKS:
            raise PolicyRefused(f"task {task!r} is none of this site's; the choices are {', '.join(p.TASKS)}")
        if not self._rules.require_dp:
            return
        if task == p.TASK_BACKBONE:
            raise PolicyRefused("privacy.json says require_dp, and backbone weights carry no guarantee; a site that "
                                "trains a backbone sets require_dp: false while it does")
        if task == p.TASK_ADAPTER:
            self._refuse_round(fl_ctx)

    def _refuse_round(self, fl_ctx: FLContext) -> None:
        if fault := fault_of_chains(fl_ctx):
            raise PolicyRefused(f"privacy.json says require_dp, and {fault}")
        privacy, least = privacy_of(fl_ctx), self._rules.noise_multiplier
        if privacy is None or privacy.mechanism != "gaussian":
            raise PolicyRefused("privacy.json says require_dp, and this job has privacy.mechanism "
                                f"{privacy.mechanism if privacy else 'missing'!r}; it must be 'gaussian'")
        if privacy.noise != "local":
            raise PolicyRefused(f"privacy.json says require_dp, and privacy.noise {privacy.noise!r} makes a site rely "
                                "on the others' noise; it must be 'local'")
        noises = {"noise_multiplier": privacy.noise_multiplier}
        if privacy.clip_quantile is not None:  # a bit has half a sensitivity
            noises["clip_bit_noise_multiplier"] = 2 * privacy.clip_bit_noise_multiplier
        for name, sigma in noises.items():
            if sigma < least:
                raise PolicyRefused(f"privacy.{name} {getattr(privacy, name):g} is below what the noise_multiplier "
                                    f"{least:g} of this site's privacy.json asks for")

    def _before(self, fl_ctx: FLContext) -> None:
        """Remembers what the server asked, and takes the content of a task that the rules refuse."""
        task = fl_ctx.get_prop(FLContextKey.TASK_DATA)
        asked: dict[str, Any] = {}
        try:
            asked = {key: value for key, value in from_shareable(task).meta.items() if key in p.HEADER}
            fl_ctx.set_prop(_COOKIES, copy.deepcopy(task.get_cookie_jar()), private=True, sticky=False)
            self.refuse(fl_ctx)
        except Exception as reason:
            self._warn("task declined", reason, fl_ctx)
            # As theta = 0 and without a key id, so that no filter of ours has anything to open or to compare.
            meta = {**asked, p.KEY_ID: "", p.ZERO: True, p.STATUS: REFUSED}
            if isinstance(task, Shareable):
                DXO(DataKind.WEIGHTS, data={}, meta=meta).update_shareable(task)
        fl_ctx.set_prop(_ASKED, asked, private=True, sticky=False)

    def _after(self, fl_ctx: FLContext) -> None:
        """Replaces the result, in its own Shareable, by what may leave of it."""
        reply = fl_ctx.get_prop(FLContextKey.TASK_RESULT)
        if not isinstance(reply, Shareable):
            return  # FLARE sends nothing else
        asked = fl_ctx.get_prop(_ASKED) or {}
        try:
            self.refuse(fl_ctx)
            clean = self._egress.process(reply, fl_ctx)
            told = from_shareable(clean).meta
            for key in (p.ROUND, p.NONCE):
                if told.get(key) is not None and told[key] != asked.get(key):
                    raise PolicyRefused(f"the result's {key} {told[key]!r:.80} is not the task's {asked.get(key)!r}")
        except Exception as reason:
            self._warn("result blocked", reason, fl_ctx)
            clean = status_reply(REFUSED, asked)
        dict.clear(reply)
        dict.update(reply, clean)
        if isinstance(task := fl_ctx.get_prop(_TASK), Shareable):  # FLARE sends its cookies back with the result
            task.set_cookie_jar(fl_ctx.get_prop(_COOKIES))

    def _warn(self, what: str, reason: Exception, fl_ctx: FLContext) -> None:
        """Below ERROR, as guard.py says why."""
        known = isinstance(reason, (PolicyRefused, SettingsError, ContentBlockedException))
        self.logger.warning(f"{fl_ctx.get_identity_name()}: {what} by this site's own rules "
                            f"({fl_ctx.get_prop(FLContextKey.TASK_NAME)}): {reason}", exc_info=not known)
