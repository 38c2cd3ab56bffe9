"""Changing the key that all sites share: when one of them leaves, or after an adapter was given away.

The server's state of a job is ciphertext under the old key. Whoever holds both client contexts, at one of the sites
that stay, opens it and encrypts it anew; the server gets the new file and the new server context, and opens nothing.
"""

from __future__ import annotations

from pathlib import Path

from privfedtalk_flare.encryption.keys import check_key_id, key_id, load_secret
from privfedtalk_flare.encryption.packing import decrypt, encrypt, held_values
from privfedtalk_flare.encryption.sums import as_sum
from privfedtalk_flare.flare.chunks import from_params, to_params
from privfedtalk_flare.flare.protocol import KEY_ID
from privfedtalk_flare.flare.record import read_round, save_round


def rotate(state: Path, old: Path, new: Path, out: Path) -> str:
    """Writes `state`, a file of the server's `rounds`, encrypted under the client context `new` instead of `old`, to
    `out`; returns the new key's id. Raises `KeyFault` where `old` is not the key of that file, or `new` is no other,
    and `CiphertextError` where the file holds no ciphertext.
    """
    theta, told = read_round(state)
    before, after = (load_secret(path.read_bytes(), str(path)) for path in (old, new))
    check_key_id(told["header"][KEY_ID], key_id(before), str(state))
    if key_id(after) == key_id(before):
        raise ValueError(f"{new} holds the same key as {old}: provision the project again, with a new key, first")
    chunks = from_params(theta)
    values = decrypt(chunks, held_values(chunks, before), before)
    told["header"][KEY_ID] = key_id(after)
    save_round(out, to_params(as_sum(encrypt(values, after), values.size, after)), told)
    return key_id(after)
