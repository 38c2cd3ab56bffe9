"""Attacks on a federation, shipped so that its promises are measured and not only computed.

Each attack is given what it attacks as a function or as bytes (the real mechanism, weights, check, ciphertexts): it
knows nothing of how they are made, as an attacker would not. `privfedtalk privacy audit` hands it those of a run
(canaries, liar, scalars); tests and `tests/benchmarks/membership.py` the others (curious, keys, membership), which need
a training of their own or a broken mechanism to compare with.
"""


class AttackError(ValueError):
    """An attack that cannot be carried out. The message names the value and its range."""
