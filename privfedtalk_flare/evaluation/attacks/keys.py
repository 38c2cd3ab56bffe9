"""Key recovery: what a published adapter gives away about the CKKS key under which its sum was decrypted.

A decrypted polynomial is m = c0 + c1 s mod q. Whoever holds the ciphertext (the server) and knows m solves for s (Li
and Micciancio 2021, "On the security of homomorphic encryption on approximate numbers"). TenSEAL returns only the real
parts of the N/2 slots, which is m + m', ' being X -> 1/X. So one chunk says

    c1 s + c1' s' = (m + m') - (c0 + c0')   mod q

and two chunks under one key are two equations for the unknowns s and s', solved point by point in the number theoretic
transform. The right side must be known exactly: float32 values do that while they are small (about .01 at scale 2^32),
values on a grid of 2^-16 are wrong by hundreds of integers in every coefficient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from privfedtalk_flare.evaluation.attacks import AttackError

if TYPE_CHECKING:
    import tenseal

_GENERATOR = 3
"""SEAL's slot i is the value at zeta^(3^i), zeta = exp(i pi / N)."""
_LOW = np.uint64((1 << 19) - 1)
_MOST_BITS = 43
"""Two products of this many bits with 19 add up to less than 2^64."""


@dataclass(frozen=True)
class Recovered:
    """`coefficients` (N,) int64: the key as computed, in (-q/2, q/2). `ternary`: share of them in {-1, 0, 1}, which a
    right answer has in all and a wrong one in almost none."""

    coefficients: np.ndarray
    ternary: float


def recover_key(chunks: Sequence[bytes], values: Sequence[np.ndarray], context: tenseal.Context) -> Recovered:
    """The secret key from two full `chunks` of a weighted sum and their decrypted `values` (N/2,) each.

    `context` is the server's, without secret key. Raises `AttackError` unless both are sums of one prime.
    """
    import tenseal as ts

    if len(chunks) != 2 or len(values) != 2:
        raise AttackError(f"needs two chunks and their values, got {len(chunks)} and {len(values)}")
    size, q = _ring(context)
    transform = _Transform(size, q)
    rows, rights = [], []
    for chunk, known in zip(chunks, values, strict=True):
        c0, c1 = _polynomials(ts.ckks_vector_from(context, chunk), size)
        twice = transform(np.asarray(_twice_real(np.asarray(known, np.float64), size, context.global_scale) % q,
                                     np.uint64))
        rows.append((c1, c1[::-1]))  # X -> 1/X reverses the points, as SEAL orders them
        rights.append((twice + 2 * np.uint64(q) - c0 - c0[::-1]) % np.uint64(q))
    key = _solve(rows, rights, q)
    centred = transform.inverse(key).astype(np.int64)
    centred[centred > q // 2] -= q
    return Recovered(centred, float(np.mean(np.abs(centred) <= 1)))


def true_key(context: tenseal.Context) -> np.ndarray:
    """(N,) int64 in {-1, 0, 1}: the key of a site's context, to compare with. Raises `AttackError` without one."""
    if not context.is_private():
        raise AttackError("this context holds no secret key to compare with")
    size, q = _ring(context)
    plain = context.secret_key().data.data()
    key = _Transform(size, q).inverse(np.array([plain.data(i) for i in range(size)], np.uint64)).astype(np.int64)
    key[key > q // 2] -= q
    return key


def _ring(context: tenseal.Context) -> tuple[int, int]:
    """(N, q): the ring's degree and the one prime over which a weighted sum stands."""
    data = context.seal_context().data.first_context_data().next_context_data()
    if data is None or data.next_context_data() is not None or data.total_coeff_modulus_bit_count() > _MOST_BITS:
        raise AttackError("sums under this context do not stand over one prime of at most "
                            f"{_MOST_BITS} bits, as with the shipped parameters; this attack is written for those")
    return int(data.parms().poly_modulus_degree()), int(data.total_coeff_modulus())


def _polynomials(vector: tenseal.CKKSVector, size: int) -> tuple[np.ndarray, np.ndarray]:
    part = vector.ciphertext()[0]
    if part.size() != 2 or part.coeff_modulus_size() != 1 or int(vector.size()) != size // 2:
        raise AttackError(f"a ciphertext of {part.size()} polynomials over {part.coeff_modulus_size()} primes with "
                            f"{vector.size()} values; needs a full chunk of a weighted sum, 2 over 1 with {size // 2}")
    flat = np.array([part[i] for i in range(2 * size)], np.uint64)
    return flat[:size], flat[size:]


def _twice_real(values: np.ndarray, size: int, scale: float) -> np.ndarray:
    """(N,) int64: the coefficients of m + m' from the slots' real parts (N/2,), rounded to integers.

    m + m' has twice those real parts at the roots zeta^(3^i) and at their conjugates.
    """
    spectrum = np.zeros(2 * size, np.complex128)
    exponent = 1
    for value in values:
        spectrum[exponent] = spectrum[2 * size - exponent] = 2.0 * value * scale
        exponent = exponent * _GENERATOR % (2 * size)
    # sum over the N roots of value * root^-k, divided by N: the inverse of evaluating at the odd powers of zeta
    return np.rint(np.fft.fft(spectrum)[:size].real / size).astype(np.int64)


def _solve(rows: Sequence[tuple[np.ndarray, np.ndarray]], rights: Sequence[np.ndarray], q: int) -> np.ndarray:
    """x of [a b; c d] [x y] = [e f] at every point, modulo q (Cramer)."""
    (a, b), (c, d) = rows
    e, f = rights
    minus = np.uint64(q)
    top = (_times(e, d, q) + minus - _times(b, f, q)) % minus
    bottom = (_times(a, d, q) + minus - _times(b, c, q)) % minus
    if not bottom.all():
        raise AttackError("the two chunks say the same at a point; take two others")
    return _times(top, np.array([pow(int(value), -1, q) for value in bottom], np.uint64), q)


class _Transform:
    """The negacyclic number theoretic transform of N coefficients modulo q, in the order in which SEAL stores it: point
    i is the value at psi^(2 r(i) + 1), r reversing bits, psi the smallest primitive 2N-th root of 1."""

    def __init__(self, size: int, q: int) -> None:
        self.size, self.q = size, q
        root = next(r for r in (pow(g, (q - 1) // (2 * size), q) for g in range(2, q)) if pow(r, size, q) == q - 1)
        square, power, smallest = root * root % q, root, root
        for _ in range(size):
            smallest = min(smallest, power)
            power = power * square % q
        self._psi = smallest
        bits = size.bit_length() - 1
        self._order = np.array([int(f"{i:0{bits}b}"[::-1], 2) for i in range(size)])

    def __call__(self, coefficients: np.ndarray) -> np.ndarray:
        turned = _times(coefficients, _powers(self._psi, self.size, self.q), self.q)
        return self._cyclic(turned, self._psi * self._psi % self.q)[self._order]

    def inverse(self, points: np.ndarray) -> np.ndarray:
        back = pow(self._psi, -1, self.q)
        natural = np.empty_like(points)
        natural[self._order] = points
        turned = self._cyclic(natural, back * back % self.q)
        scaled = _times(turned, np.full(self.size, pow(self.size, -1, self.q), np.uint64), self.q)
        return _times(scaled, _powers(back, self.size, self.q), self.q)

    def _cyclic(self, values: np.ndarray, omega: int) -> np.ndarray:
        """X_b = sum_k x_k omega^(k b), by halves."""
        if values.size == 1:
            return values
        q = np.uint64(self.q)
        even = self._cyclic(values[0::2], omega * omega % self.q)
        odd = self._cyclic(values[1::2], omega * omega % self.q)
        odd = _times(odd, _powers(omega, odd.size, self.q), self.q)
        return np.concatenate([(even + odd) % q, (even + q - odd) % q])


def _times(a: np.ndarray, b: np.ndarray, q: int) -> np.ndarray:
    """a b mod q, exact for q of at most `_MOST_BITS` bits: `a` in pieces of 19 bits."""
    modulus = np.uint64(q)
    high = (a >> np.uint64(38)) * b % modulus
    middle = ((high << np.uint64(19)) + (a >> np.uint64(19) & _LOW) * b) % modulus
    return ((middle << np.uint64(19)) + (a & _LOW) * b) % modulus


def _powers(base: int, count: int, q: int) -> np.ndarray:
    """(count,) uint64: base^0, base^1, ... mod q, by doubling."""
    out = np.ones(1, np.uint64)
    while out.size < count:
        step = pow(base, out.size, q)
        out = np.concatenate([out, _times(out, np.full(out.size, step, np.uint64), q)])
    return out[:count]
