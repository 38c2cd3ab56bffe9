"""LSE-C and LSE-D: cepstra against the library that SyncNet's own came from, distances against what is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from privfedtalk_flare.data.synthetic import Person, render_clip
from privfedtalk_flare.evaluation.syncnet import MOST_SHIFT, SyncNet, from_embeddings, load_syncnet, mfcc, sync_errors


@pytest.fixture(scope="module")
def clip():
    return render_clip(Person.draw(3, 0), 0, 1.2)


@pytest.mark.parametrize("samples", [19_200, 16_000, 12_345, 300])
def test_cepstra_are_those_of_python_speech_features(clip, samples: int) -> None:
    import python_speech_features

    audio = np.clip(clip.audio[:samples] * 20, -1, 0.9)
    theirs = python_speech_features.mfcc(audio.astype(np.float64) * 32768, 16000)
    np.testing.assert_allclose(mfcc(audio), theirs, rtol=1e-6, atol=1e-6)


def test_lips_that_go_with_their_sound_are_near_at_no_shift_and_far_at_others() -> None:
    torch.manual_seed(0)
    sound = torch.randn(60, 32)
    distance, confidence = from_embeddings(sound + 0.01 * torch.randn(60, 32), sound)
    assert distance < 0.2 and confidence > 5
    late = torch.cat([torch.zeros(4, 32), sound[:-4]])
    assert from_embeddings(late, sound)[0] < 1.0  # found at another shift, the four frames without sound aside
    apart, lost = from_embeddings(torch.randn(60, 32), sound)
    assert apart > 5 and lost < 1
    assert from_embeddings(sound[:1], sound[:1])[0] == pytest.approx(0, abs=1e-3) and MOST_SHIFT == 15


def test_the_network_takes_windows_of_five_frames_and_is_read_from_its_file(clip, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = SyncNet().eval()
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    assert len([name for name in state if name.endswith("num_batches_tracked")]) == 14
    save_file({name: tensor for name, tensor in state.items() if "num_batches" not in name},
              tmp_path / "syncnet.safetensors")  # as older files have it
    again = load_syncnet(tmp_path / "syncnet.safetensors")
    frames = clip.frames[:8]
    distance, confidence = sync_errors(again, frames, clip.audio[:8 * 640])
    assert (distance, confidence) == pytest.approx(sync_errors(network, frames, clip.audio[:8 * 640]))
    assert distance > 0 and confidence >= 0
    with pytest.raises(ValueError, match="a film of 5 frames is too short for SyncNet; it needs 6"):
        sync_errors(network, clip.frames[:5], clip.audio)
    del state["netfcaud.0.weight"]
    save_file(state, tmp_path / "half.safetensors")
    with pytest.raises(ValueError, match=r"half\.safetensors: not the weights of SyncNet: it lacks 1 tensors, such as"):
        load_syncnet(tmp_path / "half.safetensors")
