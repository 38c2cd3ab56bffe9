"""How reliable an identity's update is. Edit it: the job carries this file to every site as part of its `app/custom`.

Named in the job by `reliability.signal: study_reliability.score`. Runs on the site; only its mean over the site's
people leaves it, as `reliability.release` says.
"""

from __future__ import annotations

import numpy as np

from privfedtalk_flare import reliability


def score(*, generated: np.ndarray, real: np.ndarray, mask: np.ndarray, embeddings: np.ndarray, reference: np.ndarray,
          alpha: float, tau: float) -> float:
    """Scores one identity's held-out window, in [0, 1]: alpha * identity consistency + (1 - alpha) * stability.

    `generated` and `real` are frames (F, H, W, 3) in 0..255, `mask` (H, W) is True where the mouth was generated,
    `embeddings` (F, E) are identity embeddings of the generated frames and `reference` (R, E) of real ones. `alpha`
    and `tau` (grey levels) come from the job. With a score outside [0, 1] the person's update counts as zero.
    """
    consistency = reliability.identity_consistency(embeddings, reference)
    stability = reliability.temporal_stability(generated, real, mask, tau)
    return reliability.score(consistency, stability, alpha)
