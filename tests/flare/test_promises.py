"""What the account and the modes take for granted, on the real filters of several sites."""

import numpy as np
import pytest
from chain import HEADER, Site, person
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from privfedtalk_flare.encryption import packing
from privfedtalk_flare.encryption.keys import load_public
from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.flare.aggregator import ISFAAggregator
from privfedtalk_flare.flare.chunks import from_params
from privfedtalk_flare.settings import PrivacySettings, parse

OPEN = {"encryption": {"scheme": "off"}, "yaml": "require_encryption: false\n"}
LARGE = 250_000
"""Values over which a standard deviation is known to .14 %."""


@pytest.mark.parametrize(("privacy", "mode"), [
    ({}, "metadata"), ({"noise_multiplier": 4.0, "clip_norm": 0.1}, "sealed"), ({"sampling": 0.25}, "uniform")])
def test_sigma_as_drawn_is_sigma_as_accounted_and_no_noise_is_used_twice(tmp_path, privacy, mode):
    told = parse(PrivacySettings, privacy, "privacy")
    m, drawn = 2, []
    for name in ("site-1", "site-2"):
        site = Site(tmp_path, name=name, size=LARGE, privacy=privacy, reliability={"mode": mode}, **OPEN)
        for number in (1, 2):
            header = {**HEADER, p.ROUND: number, p.NONCE: f"{number:04x}"}
            site.receive(**header)
            drawn.append(site.send([person(i, 0.0, size=LARGE) for i in range(m)], header).data[p.PLAIN])
    promised = told.noise_multiplier * told.clip_norm / (told.sampling * m)
    for noise in drawn:
        assert noise.std() == pytest.approx(promised, rel=0.01)
        assert abs(noise.mean()) < 5 * promised / np.sqrt(LARGE)
    between = np.abs(np.corrcoef(drawn) - np.eye(4)).max()
    assert between < 5 / np.sqrt(LARGE)


def theta_of(folder, mode, scores, vectors):
    """theta after one round of two sites with one person each, without noise, through CKKS."""
    aggregator = ISFAAggregator({"mode": mode, "gamma": 2.0, "max_clips": 4}, {"scheme": "ckks"})
    for place, (score, vector) in enumerate(zip(scores, vectors, strict=True), 1):
        site = Site(folder, name=f"site-{place}", privacy={"mechanism": "off"},
                    reliability={"mode": mode, "gamma": 2.0, "max_clips": 4})
        header = {**HEADER, p.KEY_ID: ""}
        site.receive(**header)
        sent = site.send([type(person())(vector, score, 4)], header)
        if aggregator._context is None:
            aggregator._context = load_public((folder / "keys" / "server_context.tenseal").read_bytes())
            aggregator.begin_round(header, ["site-1", "site-2"])
        assert aggregator.accept_model(FLModel(params_type=ParamsType.FULL, params=sent.data, meta={
            **sent.meta, "client_name": site.ctx.get_identity_name()})) == ""
    aggregator.aggregate_model()
    return packing.decrypt(from_params(aggregator.theta), vectors[0].size, site.key())


def test_sealed_ratios_are_those_of_metadata_within_the_encryptions_error(tmp_path):
    """One person a site, equal counts, no cap, scores on the grid: then both modes weigh alike, up to a constant."""
    scores, vectors = (1.0, 0.25), [person(i).vector for i in range(2)]
    found = {mode: np.linalg.lstsq(np.stack(vectors, 1), theta_of(tmp_path / mode, mode, scores, vectors),
                                   rcond=None)[0] for mode in ("metadata", "sealed")}
    ratio = np.exp(2.0 * (scores[0] - scores[1]))
    for mode, weights in found.items():
        assert weights[0] / weights[1] == pytest.approx(ratio, rel=1e-4), mode
    assert found["metadata"].sum() == pytest.approx(1.0, abs=1e-4)
    assert found["sealed"][0] == pytest.approx(0.5, abs=1e-4)  # (1/K) exp(gamma (1 - 1))
