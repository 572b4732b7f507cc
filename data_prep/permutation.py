"""A seeded random permutation of any number of rows: each entry is computed by itself, in no memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.split import splitmix64

ROUNDS = 8
# Of fewer bits, too few hashes are different for every order to be as likely as another.
FEWEST_BITS = 6
# Of the seed's random numbers, those that no split is drawn from.
STREAM = 0x726F_776F_7264_6572


@dataclass(frozen=True, kw_only=True)
class Permutation:
    """A permutation of the numbers 0 … n − 1, drawn by a seed.

    A Feistel network permutes the numbers of b bits, b the fewest that n needs: in each round one half
    of the bits is changed by a hash of the other, which the same hash would change back. A number that
    falls outside is permuted again until it falls inside, of many numbers each less than once on average.

    Attributes:
        n: How many numbers.
        seed: Any integer.

    Source: M. Luby, C. Rackoff, "How to construct pseudorandom permutations from pseudorandom
    functions", SIAM J. Comput. 17 (1988); J. Black, P. Rogaway, "Ciphers with arbitrary finite domains",
    CT-RSA 2002 (cycle walking).
    """

    n: int
    seed: int

    def __call__(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where some numbers go.

        Args:
            numbers: (B), each in [0, n).

        Returns:
            (B), each in [0, n).
        """
        places = self._mix(numbers.astype(np.uint64))
        while len(outside := np.flatnonzero(places >= self.n)):
            places[outside] = self._mix(places[outside])
        return places.astype(np.int64)

    def _mix(self, numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """The permutation of all numbers of as many bits."""
        bits = max(FEWEST_BITS, (self.n - 1).bit_length())
        low = bits // 2
        halves = [numbers >> np.uint64(low), numbers & np.uint64((1 << low) - 1)]
        masks = [np.uint64((1 << (bits - low)) - 1), np.uint64((1 << low) - 1)]
        for index, key in enumerate(self._keys()):
            changed = index % 2
            halves[changed] = halves[changed] ^ (splitmix64(halves[1 - changed] ^ key) & masks[changed])
        return halves[0] << np.uint64(low) | halves[1]

    def _keys(self) -> NDArray[np.uint64]:
        """(ROUNDS) the hashes' keys."""
        seed = splitmix64(np.array([self.seed & (2**64 - 1)], dtype=np.uint64)) ^ np.uint64(STREAM)
        return splitmix64(splitmix64(seed) ^ np.arange(ROUNDS, dtype=np.uint64))
