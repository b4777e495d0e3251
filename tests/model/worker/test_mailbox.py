"""What a worker finds in its sockets, in the middle of a pass and between two."""

import select
import socket
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from model.types import Features
from model.worker import frames
from model.worker.mailbox import Mailbox, Pass
from tests.model.worker.fakes import features_of


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket, Mailbox]]:
    """The gateway's ends, and the mailbox at the others."""
    (ours, theirs), (our_urgent, their_urgent) = socket.socketpair(), socket.socketpair()
    with ours, theirs, our_urgent, their_urgent:
        yield ours, our_urgent, Mailbox(theirs, their_urgent)


def run_frame(pass_id: int, *, is_urgent: bool = False, may_interrupt: bool = False, side: int = 0) -> bytes:
    images = (np.zeros((side, side, 3), dtype=np.uint8),) if side else ()
    features = [Features(token_ids=np.array([pass_id], dtype=np.int32), images=images)]
    return b"".join(frames.pack_run(pass_id, features, is_urgent=is_urgent, may_interrupt=may_interrupt))


def urgent_frame(pass_id: int, **options: int) -> bytes:
    return run_frame(pass_id, is_urgent=True, may_interrupt=True, **options)


def ids_of(mailbox: Mailbox, count: int) -> list[int]:
    return [one.pass_id for one in (mailbox.next() for _ in range(count)) if isinstance(one, Pass)]


def test_urgent_passes_come_first_and_all_others_in_their_order(sockets):
    gateway, urgent, mailbox = sockets
    gateway.sendall(run_frame(1) + run_frame(2))
    urgent.sendall(urgent_frame(3) + urgent_frame(4))
    assert ids_of(mailbox, 4) == [3, 4, 1, 2]
    gateway.sendall(run_frame(5) + frames.pack_head(frames.Stop()))
    assert ids_of(mailbox, 1) == [5]
    assert mailbox.next() == frames.Stop()


def test_only_a_pass_that_may_interrupt_does(sockets):
    """Those behind one that may not wait with it: urgent passes keep their order."""
    _, urgent, mailbox = sockets
    urgent.sendall(urgent_frame(1) + run_frame(2, is_urgent=True) + urgent_frame(3))
    mailbox.look()
    first = mailbox.next_interrupting()
    assert first is not None
    assert first.pass_id == 1
    assert mailbox.next_interrupting() is None
    assert mailbox.num_urgent == 2
    mailbox.put_back(first)
    assert ids_of(mailbox, 3) == [1, 2, 3]


def test_one_look_reads_an_urgent_pass_to_its_end(sockets):
    """A look a piece would be a block of waiting for each 200 kB of a picture."""
    _, urgent, mailbox = sockets
    sender = threading.Thread(target=urgent.sendall, args=(urgent_frame(1, side=1_000),))
    sender.start()
    poll = select.poll()
    poll.register(mailbox._urgent, select.POLLIN)
    poll.poll()
    mailbox.look()
    sender.join()
    assert mailbox.num_urgent == 1


def test_a_look_does_not_wait_for_the_rest_of_a_staged_pass(sockets):
    """The pass that runs would stand still for another that cannot begin before its end."""
    gateway, urgent, mailbox = sockets
    staged = run_frame(1, side=1_000)
    gateway.sendall(staged[:100_000])
    mailbox.look()
    urgent.sendall(urgent_frame(2))
    mailbox.look()
    assert mailbox.num_urgent == 1
    sender = threading.Thread(target=gateway.sendall, args=(staged[100_000:],))
    sender.start()
    assert ids_of(mailbox, 2) == [2, 1]
    sender.join()


@pytest.mark.parametrize("is_urgent", [False, True])
def test_a_look_raises_nothing_and_the_next_wait_does(sockets, is_urgent):
    """An exception in the middle of a pass would be taken for one of the encoder's."""
    gateway, urgent, mailbox = sockets
    (urgent if is_urgent else gateway).sendall(b"GET / HTTP/1.1\r\n\r\n")
    mailbox.look()
    mailbox.look()
    assert mailbox.next_interrupting() is None
    with pytest.raises(frames.FrameError, match="this one with b'GET '"):
        mailbox.next()


@pytest.mark.parametrize("is_urgent", [False, True])
def test_a_gateway_that_is_gone_ends_the_waiting_whichever_socket_tells(sockets, is_urgent):
    gateway, urgent, mailbox = sockets
    urgent.sendall(urgent_frame(1))
    (urgent if is_urgent else gateway).close()
    mailbox.look()
    mailbox.look()
    with pytest.raises(EOFError):
        mailbox.next()


def test_an_answer_that_nobody_takes_is_an_error_of_the_connection(sockets):
    gateway, _, mailbox = sockets
    gateway.close()
    with pytest.raises(ConnectionError):
        mailbox.send(frames.Failed(pass_id=1, error_type="KeyError", is_out_of_memory=False))


def test_features_arrive_as_they_were_sent(sockets):
    gateway, _, mailbox = sockets
    gateway.sendall(b"".join(frames.pack_run(9, [features_of(1, 2, num_prompt_tokens=1), features_of(3)])))
    one = mailbox.next()
    assert isinstance(one, Pass)
    assert (one.is_urgent, one.may_interrupt, one.num_tokens) == (False, False, 3)
    assert [features.token_ids.tolist() for features in one.features] == [[1, 2], [3]]
    assert one.features[0].num_prompt_tokens == 1
