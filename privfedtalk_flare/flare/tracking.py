"""TensorBoard scalars, from a site or the server to the server's run folder.

FLARE's analytics events go round every result filter, so nothing is sent from here that is not on an allow list.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from nvflare.apis.analytix import ANALYTIC_EVENT_TYPE, AnalyticsDataType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext
from nvflare.apis.utils.analytix_utils import create_analytic_dxo, send_analytic_dxo

from privfedtalk_flare.evaluation.summary import Round

EVENT = ANALYTIC_EVENT_TYPE
"""Fired where the scalar is made; ConvertToFedEvent carries it to the server, where TBAnalyticsReceiver writes it."""
FED_EVENT = f"fed.{ANALYTIC_EVENT_TYPE}"

SITE_WITH_DP = frozenset({"snr", "identities"})
"""What a site may send under differential privacy: no loss, score, clip fraction or training time."""
SITE = SITE_WITH_DP | {"seconds/training"}
"""What a site's executor may send where no guarantee is claimed."""
RELEASED = frozenset({"score"})
"""What its privacy filter may send there, of what it has just released: the score in mode `metadata`, on its grid."""
SERVER = frozenset({"snr", "epsilon/receivers", "epsilon/server", "epsilon/server_and_site", "seconds/wall",
                    "seconds/aggregate", "clip_norm", "weight/*", "bytes_up/*", "bytes_down/*", "metric/*"})
"""What the server writes: functions of the replies that every site's egress filter let through."""


def of_round(entry: Round) -> dict[str, float]:
    """The server's scalars of one finished round."""
    by_site = {f"{what}/{site}": told[what] for site, told in entry.sites.items()
               for what in ("weight", "bytes_up", "bytes_down") if what in told}
    epsilons = {f"epsilon/{view}": value for view, value in entry.epsilon.items() if isinstance(value, float)}
    clip_norm = {} if entry.clip_norm is None else {"clip_norm": entry.clip_norm}
    return {**by_site, **epsilons, **clip_norm, **{f"seconds/{what}": value for what, value in entry.seconds.items()}}


def send(component: FLComponent, fl_ctx: FLContext, scalars: Mapping[str, float], step: int,
         allowed: frozenset[str]) -> None:
    """Sends `scalars` (tag -> finite number) at `step`. `allowed` is one of the lists above; `x/*` admits any x/tag.

    Raises ValueError on a tag or value that may not be sent: an event would carry it past the egress filter.
    """
    for tag, value in scalars.items():
        if tag not in allowed and f"{tag.split('/')[0]}/*" not in allowed:
            raise ValueError(f"scalar {tag!r} may not be sent from here; the choices are {', '.join(sorted(allowed))}")
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            raise ValueError(f"scalar {tag!r}: expected a finite number, got {value!r}")
        dxo = create_analytic_dxo(tag=tag, value=float(value), data_type=AnalyticsDataType.SCALAR, global_step=step)
        send_analytic_dxo(component, dxo=dxo, fl_ctx=fl_ctx, event_type=EVENT)
