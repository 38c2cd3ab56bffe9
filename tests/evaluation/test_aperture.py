import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from privfedtalk_flare.evaluation.aperture import mouth_aperture
from privfedtalk_flare.evaluation.metrics import clip_metrics, sync, sync_offset
from privfedtalk_flare.evaluation.temporal import optical_flow


def test_it_follows_the_truth_over_varied_people(corpus, area):
    """The people differ in skin, lips, beard, pose and light; the clips went through H.264."""
    recovered = [mouth_aperture(clip.frames, area) for clip in corpus]
    each = [sync(found, clip.aperture) for found, clip in zip(recovered, corpus, strict=True)]
    assert len(each) == 20
    assert np.mean(each) >= 0.98 and min(each) >= 0.93
    assert {sync_offset(found, clip.aperture) for found, clip in zip(recovered, corpus, strict=True)} == {0.0}
    error = np.mean([np.abs(found - clip.aperture).mean() for found, clip in zip(recovered, corpus, strict=True)])
    assert error < 0.08, "0 is closed and 1 is wide open, whoever speaks"


def test_it_reads_nothing_outside_the_mask(clip, area):
    hidden = np.where(area[..., None], clip.frames, 0)
    assert np.array_equal(mouth_aperture(hidden, area), mouth_aperture(clip.frames, area))


def test_it_reads_each_frame_as_it_is(clip, area):
    """A mouth that rests is not given the motion of its neighbours, nor one that swaps faces with another time."""
    assert np.ptp(mouth_aperture(clip.frames[:1].repeat(20, axis=0), area)) == 0.0
    copied = clip.frames.copy()
    copied[:, area] = clip.frames[0, area]
    assert sync(mouth_aperture(copied, area), clip.aperture) == 0.0
    late = np.concatenate([clip.frames[:1].repeat(3, axis=0), clip.frames[:-3]])
    assert sync_offset(mouth_aperture(late, area), clip.aperture) == 3.0


def test_it_bears_what_generators_do(corpus, area):
    rng = np.random.default_rng(0)
    blurred, noisy = [], []
    for clip in corpus[:8]:
        soft, rough = clip.frames.astype(np.float32), clip.frames.astype(np.float32)
        soft[:, area] = gaussian_filter(soft, (0, 0.7, 0.7, 0))[:, area]
        rough[:, area] += rng.normal(0, 5, rough[:, area].shape)
        blurred.append(sync(mouth_aperture(soft, area), clip.aperture))
        noisy.append(sync(mouth_aperture(np.clip(rough, 0, 255).astype(np.uint8), area), clip.aperture))
    assert np.mean(blurred) >= 0.97 and np.mean(noisy) >= 0.97


def test_a_still_picture_is_read_as_each_of_its_frames(clip, area):
    one = mouth_aperture(clip.frames[3:4], area)
    still = np.repeat(clip.frames[3:4], 6, 0)
    assert np.array_equal(mouth_aperture(still, area), np.repeat(one, 6))
    moved = still.copy()
    moved[5] = clip.frames[10]
    assert len(np.unique(mouth_aperture(moved, area).round(6))) > 1


def test_errors_say_what_was_expected(clip, area):
    with pytest.raises(ValueError, match=r"frames of shape \(64, 64, 3\); expected square pictures"):
        mouth_aperture(clip.frames[0], area)
    with pytest.raises(ValueError, match="mask of shape"):
        mouth_aperture(clip.frames, area[:32])
    with pytest.raises(ValueError, match="no room for a patch"):
        mouth_aperture(clip.frames, np.zeros_like(area))


def test_clip_metrics_of_the_real_clip_are_the_ceiling(clip, area):
    def embed(frames):
        return frames[:, ::16, ::16].reshape(len(frames), -1).astype(np.float64)

    flow = optical_flow(clip.frames)
    found = clip_metrics(clip.frames, clip.frames, area, flow, clip.aperture, mouth_aperture, embed, embed(clip.frames))
    assert found["psnr"] == found["psnr_mask"] == 100.0 and found["motion_ratio"] == 1.0 and found["flicker_gap"] == 0.0
    assert found["ssim"] == pytest.approx(1.0, abs=1e-5) and found["sync"] > 0.93 and found["sync_offset"] == 0.0
    assert found["identity"] > 0.95 and 0.0 < found["flicker"] < 0.5 and found["jitter_ratio"] > 0.5
