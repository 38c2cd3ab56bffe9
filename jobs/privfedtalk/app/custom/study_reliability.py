"""How reliable an identity's update is. Edit it: the job carries this file to every site as part of its `app/custom`.

Named in the job by `reliability.signal: study_reliability.score`. Runs on the site; only its mean over the site's
people leaves it, as `reliability.release` says.
"""

from __future__ import annotations

import numpy as np

from privfedtalk_flare import reliability


def score(*, generated: np.ndarray, unheard: np.ndarray | None, real: np.ndarray, mask: np.ndarray,
          embeddings: np.ndarray, reference: np.ndarray, alpha: float, tau: float, lip_sync: float) -> float:
    """Scores one identity's held-out window, in [0, 1]: alpha * identity consistency + (1 - alpha) * stability, of
    which a share `lip_sync` is given to lip-sync consistency.

    `generated` and `real` are frames (F, H, W, 3) in 0..255, `mask` (H, W) is True where the mouth was generated,
    `unheard` is what is generated without the sound (None where `lip_sync` is 0), `embeddings` (F, E) are identity
    embeddings of the generated frames and `reference` (R, E) of a real one of each training clip. `alpha`, `tau` (grey
    levels) and `lip_sync` come from the job. With a score outside [0, 1] the person's update counts as zero.
    """
    consistency = reliability.identity_consistency(embeddings, reference)
    stability = reliability.temporal_stability(generated, real, mask, tau)
    lips = 0.0 if unheard is None else reliability.lip_sync_consistency(generated, unheard, real, mask)
    return reliability.score(consistency, stability, alpha, lips, lip_sync)
