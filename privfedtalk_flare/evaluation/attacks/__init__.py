"""Attacks on a federation, shipped so that its promises are measured and not only computed.

Each attack is given what it attacks as a function or as bytes (the real mechanism, weights, check, ciphertexts): it
knows nothing of how they are made, as an attacker would not. `privfedtalk_flare/audit.py` hands it the real ones.
"""


class AttackError(ValueError):
    """An attack that cannot be carried out. The message names the value and its range."""
