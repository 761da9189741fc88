import os
import signal

import pytest

from memexp.training.distribution import World, heed
from memexp.training.signals import Interrupted, StopRequest


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR2, 140)])
def test_a_signal_is_remembered_and_its_exit_status_is_the_shells(signum, status):
    before = signal.getsignal(signum)
    with StopRequest() as stop:
        heed(stop, World())
        os.kill(os.getpid(), signum)
        with pytest.raises(Interrupted) as caught:
            heed(stop, World())
    assert caught.value.exit_status == status
    assert signal.getsignal(signum) is before


@pytest.mark.parametrize(
    ("signals", "heeded"),
    [
        (["SIGUSR2", "SIGUSR2"], "SIGUSR2"),
        (["SIGUSR2", "SIGTERM", "SIGUSR2"], "SIGTERM"),
        (["SIGTERM", "SIGUSR2"], "SIGTERM"),
        (["SIGINT", "SIGUSR2", "SIGUSR2"], "SIGINT"),
    ],
)
def test_a_notice_may_come_from_several_and_ends_nothing_that_is_saving(signals, heeded):
    """SLURM gives one to every process of a job, and so does the sweep that is one of them."""
    with StopRequest() as stop:
        for name in signals:
            os.kill(os.getpid(), signal.Signals[name])
        assert stop.signum == signal.Signals[heeded]


def test_a_second_signal_is_not_held_back():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts with it ignored
    try:
        _interrupt_twice()
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupt_twice() -> None:
    with StopRequest():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
