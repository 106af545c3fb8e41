"""What each test of the callbacks leaves behind: the random state and the interrupt handler as they were."""

import signal
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _isolated() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGINT)
    with torch.random.fork_rng(devices=[]):
        yield
    signal.signal(signal.SIGINT, handler)  # Lightning ignores it after a KeyboardInterrupt
