"""Makes the `film` fixture known to the tests of this folder."""

from films import film

__all__ = ["film"]
