"""What a seed may be: a number that every generator takes as it is, NumPy's and PyTorch's."""

from __future__ import annotations

from afm_dist.errors import OptionError

LARGEST_SEED = 2**63 - 1


def check_seed(name: str, seed: int) -> None:
    """Refuse a number that is no seed.

    Args:
        name: What gives it, for the message.
        seed: The number.

    Raises:
        OptionError: it is negative, or has more than 63 bits.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise OptionError(f"{name} {seed}: must lie in 0 to {LARGEST_SEED}, which is 2^63 - 1")
