"""How many threads this process works on."""

from __future__ import annotations


def limit_threads(count: int) -> None:
    """`count` for torch and for the BLAS under numpy, each of which would else take every core: sites that share a
    machine would wait for each other's spinning threads."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(count)
    threadpool_limits(count)
