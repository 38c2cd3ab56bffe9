"""What the numbers of a private run mean, in words."""

from __future__ import annotations

import math

HANDFUL = 100
"""Below this many identities in a federation, differential privacy at a serious epsilon drowns the update."""

DROWNED = 0.05
"""SNR of a round below which nothing was seen to be learnt: in study privacy half the gain was left at .1 and none at
.04, of an adapter of rank 2."""

GAINED = 0.1
"""SNR of a round from which on adapters of rank 2 were seen to keep half of their gain or more, by steps of eta 24 at
C 1: half to three quarters at .10 and .11, all of it at .23 (studies privacy and scale)."""

LEARNT = 0.3
"""The same of the most that a round's SNR could be (`snr_bound`), which was three times what it was."""


def handful_words(identities: int, snr: float, epsilon: float, *, most: bool = False) -> str:
    """One sentence for people: what `identities` people at this `epsilon` make of the shared adapter at this `snr`,
    or, with `most`, where it is no larger than this."""
    people = "1 person" if identities == 1 else f"{identities} people"
    if math.isinf(epsilon):
        return f"No epsilon is promised to the {people} of this run: their updates carry too little noise or none."
    promise = f"epsilon {epsilon:.2f} for {people}"
    if epsilon > 20:
        promise += " (so large that it promises little)"
    if snr >= 1:
        return (f"{promise}: the signal is {'at most ' if most else ''}{snr:.2g} times the noise, so the shared "
                f"adapter {'can learn' if most else 'learns'} from them.")
    text = (f"{promise}: the noise is {'at least ' if most else ''}{_times(snr)} the signal, so the shared adapter "
            f"{below_noise(snr, most)} from them.")
    if identities < HANDFUL and snr < DROWNED:
        text += " With a handful of people this shows the machinery; it takes hundreds to learn something under it."
    return text


def below_noise(snr: float, most: bool) -> str:
    """What an adapter does whose rounds have this SNR below 1, or, with `most`, no larger one."""
    if snr < DROWNED:
        return "learns next to nothing"
    if snr < (LEARNT if most else GAINED):
        return "learns little, if anything,"
    return "may still learn, if its rank is small and the server's step long,"


def _times(snr: float) -> str:
    if snr < 1e-3:
        return "more than 1,000 times"
    return f"{1 / snr:.0f} times" if snr < 0.1 else f"{1 / snr:.1f} times"
