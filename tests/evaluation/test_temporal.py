"""Numbers of a clip that need a flow or a landmark's path, against what is known of it."""

from __future__ import annotations

import numpy as np
import pytest

from privfedtalk_flare.data.synthetic import Person, render_clip
from privfedtalk_flare.evaluation.temporal import jitter, jitter_ratio, optical_flow, warp_error


def noisy(frames: np.ndarray, size: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, size, frames.shape)
    return np.clip(frames + noise, 0, 255).astype(np.uint8)


def test_motion_that_follows_the_real_film_is_no_warp_error_and_flicker_is() -> None:
    film = render_clip(Person.draw(3, 0), 0, 1.0).frames
    flow = optical_flow(film)
    floor, flickering, shaken = (warp_error(one, film, flow) for one in (film, noisy(film, 6.0), noisy(film, 12.0)))
    assert floor < 0.6 * flickering < 0.6 * shaken
    still = np.repeat(film[:1], len(film), 0)
    assert warp_error(still, film, flow) > 1.1 * floor  # a still picture does not move where the real one does
    with pytest.raises(ValueError, match="expected the same"):
        warp_error(film[:3], film, flow)
    with pytest.raises(ValueError, match="with a flow of shape"):
        warp_error(film, film, flow[1:])


def test_what_cannot_be_followed_is_left_out_and_what_shifts_is_followed() -> None:
    film = render_clip(Person.draw(3, 0), 0, 1.0).frames
    jump = np.zeros((3, 64, 64, 3), np.uint8)
    jump[1:] = 60  # between the first two frames no pixel can be followed
    assert warp_error(jump, jump, optical_flow(jump)) < 1.0
    assert np.isnan(warp_error(jump[:2], jump[:2], optical_flow(jump[:2])))
    shift = np.stack([np.roll(film[0], n, axis=1) for n in range(4)])
    flow = optical_flow(shift)
    assert warp_error(shift, shift, flow) < 2.0
    assert np.median(flow[:, 1]) == pytest.approx(1.0, abs=0.1) and np.median(flow[:, 0]) == pytest.approx(0, abs=0.1)
    with pytest.raises(ValueError, match="F at least 2"):
        optical_flow(film[:1])


def test_jitter_is_the_second_difference_and_its_ratio_knows_smoothing_from_shaking() -> None:
    path = np.cumsum(np.random.default_rng(0).normal(size=50))
    assert jitter(path) == pytest.approx(np.abs(path[2:] - 2 * path[1:-1] + path[:-2]).mean())
    assert np.isnan(jitter([1, 2]))
    assert jitter_ratio(path, path) == 1.0
    assert jitter_ratio(path / 2, path) == jitter_ratio(path * 2, path) == pytest.approx(0.5)
    assert np.isnan(jitter_ratio(path, np.full(50, np.nan)))
