"""What a series of releases costs, by who is looking (gaussian.py and sampled.py have the mathematics)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from privfedtalk_flare.privacy.gaussian import AccountError, composed_mu, epsilon_of
from privfedtalk_flare.privacy.sampled import composed_epsilon, effective_noise_multiplier

VIEWS = ("receivers", "server", "server_and_site")
UNBOUNDED = "unbounded"
SCORES = ("coarse", "noised", "counts", "sealed", "none")
PUBLIC_METADATA = ("given the public metadata: each round's score (rounded to 1/16, at most about 4 bits) and clip "
                   "count are published and lie outside this promise")
PUBLIC_COUNTS = "given the public metadata: each round's clip count is published and lies outside this promise"
SECRET_SAMPLE = "as long as nobody learns in which rounds a person was sampled"
SHARED_NOISE = "as long as, beside whoever looks, as many sites of each sum are honest as it takes shares of the noise"
OPENED = "each upload opened by itself holds one site's share of the noise only"


@dataclass(frozen=True)
class Release:
    """What one round published about each identity of a site.

    `noise_multiplier` (sigma) None: no noise, nothing is promised. `score` says how the score travelled: `coarse`,
    `noised` (with `score_noise_multiplier`, sigma_s), `sealed` (inside the update), not at all but beside a public
    clip count (`counts`), or `none`. `sampling` (q): the probability with which an identity took part, in secret.
    `honest` (h): the sites that add sigma together, a share sigma / sqrt(h) each; 1: each adds all of it.
    `clip_bit_noise_multiplier` (sigma_b), with adaptive clipping: the noise of the bit that says who was clipped.
    """

    noise_multiplier: float | None
    score: str = "none"
    score_noise_multiplier: float | None = None
    sampling: float = 1.0
    clip_bit_noise_multiplier: float | None = None
    honest: int = 1

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise AccountError(f"score {self.score!r} is unknown; the choices are {', '.join(SCORES)}")
        for name in ("noise_multiplier", "score_noise_multiplier", "clip_bit_noise_multiplier"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise AccountError(f"{name} must be a finite number above 0, got {value!r}")
        if (self.score == "noised") != (self.score_noise_multiplier is not None):
            raise AccountError("score_noise_multiplier is set exactly when the score is 'noised', got "
                               f"score {self.score!r} and score_noise_multiplier {self.score_noise_multiplier!r}")
        if self.honest < 1:
            raise AccountError(f"honest must be at least 1 site, got {self.honest!r}")
        if not 0 < self.sampling <= 1:
            raise AccountError(f"sampling must lie above 0 and at most at 1, got {self.sampling!r}")

    def effective_noise(self, *, opened: bool = False) -> float:
        """sigma_eff of all that this release published, as one Gaussian step; `opened`: to who opens a site's upload,
        which holds that site's share of the noise only."""
        if self.noise_multiplier is None:
            raise AccountError("a release without noise is no Gaussian step")
        sigma = self.noise_multiplier / (math.sqrt(self.honest) if opened else 1.0)
        return effective_noise_multiplier(sigma, self.score_noise_multiplier, self.clip_bit_noise_multiplier)

    @property
    def scalars(self) -> list[float]:
        """The noise multipliers of what the server sees in clear: the score, and the bit, whose sensitivity is half."""
        bit = self.clip_bit_noise_multiplier
        return [sigma for sigma in (self.score_noise_multiplier, None if bit is None else 2 * bit) if sigma is not None]


@dataclass(frozen=True)
class View:
    """Epsilon at delta for one observer; `epsilon` is math.inf where nothing is promised. `words` go beside it."""

    epsilon: float
    delta: float
    words: str

    @property
    def value(self) -> float | str:
        """Epsilon for JSON and tables: a number, or "unbounded"."""
        return self.epsilon if math.isfinite(self.epsilon) else UNBOUNDED


def views(releases: Sequence[Release], delta: float, *, encrypted: bool = True, server_learns_theta: bool = True,
          tight: bool = True) -> dict[str, View]:
    """Epsilon of all `releases` together, for each observer (privacy/THREATS.md says who they are).

    `receivers`: the other sites and whoever is given the adapter. `server_and_site`: the server with one colluding
    site, which holds the shared key and opens each upload. `server`: the server alone; it sees scores and clip bits
    only, as long as the encryption holds and nothing derived from theta (metrics, SNR) is sent to it; otherwise its
    view is the receivers'. Sampling helps against all: nobody is told who was sampled, and a site that trains everybody
    takes as long whoever it was. `tight`: as `composed_epsilon`.
    """
    words = []
    if any(r.score == "coarse" for r in releases):
        words.append(PUBLIC_METADATA)
    elif any(r.score in ("noised", "counts") for r in releases):
        words.append(PUBLIC_COUNTS)
    if any(r.noise_multiplier is None for r in releases):
        bare = sum(r.noise_multiplier is None for r in releases)
        words.append(f"{bare} of {len(releases)} releases about these people carried no noise")
        receivers = opened = server = math.inf
    else:
        receivers, opened = (composed_epsilon([(r.effective_noise(opened=seen), r.sampling) for r in releases], delta,
                                              tight=tight) for seen in (False, True))
        server = epsilon_of(composed_mu(sigma for r in releases for sigma in r.scalars), delta)
    if any(r.sampling < 1 for r in releases):
        words.append(SECRET_SAMPLE)
    if shared := any(r.honest > 1 for r in releases):
        words.append(SHARED_NOISE)
    if not encrypted:
        alone = View(opened, delta, "; ".join([*words, "nothing is encrypted"]))
    elif server_learns_theta:
        why = "the receivers' view, because metrics of the shared adapter are sent to it"
        alone = View(receivers, delta, "; ".join([*words, why]))
    else:
        alone = View(server, delta, "; ".join([*words, "as long as the encryption holds"]))
    return {"receivers": View(receivers, delta, "; ".join(words)), "server": alone,
            "server_and_site": View(opened, delta, "; ".join([*words, OPENED] if shared else words))}
