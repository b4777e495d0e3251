"""What a decode process says of a mistake of ours."""

import socket

import pytest

from model.framing import PREFIX_BYTES
from model.images import Alpha, Orientation, frames, main
from tests.model.images.conftest import GME, LIMITS

SET_UP = frames.SetUp(spec=GME, limits=LIMITS, orientation=Orientation.EXIF, alpha=Alpha.WHITE)


def test_a_mistake_of_ours_is_told_by_type_and_place_without_its_text(monkeypatch):
    """The text of an exception may hold the image."""

    def decode(*_: object, **__: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(main, "decode", decode)
    gateway, process = socket.socketpair()
    with gateway, process:
        main._answer(process, SET_UP, b"")
        answer = gateway.recv(10_000)
    failed = frames.unpack_for_gateway(answer[PREFIX_BYTES:])
    assert isinstance(failed, frames.Failed)
    assert failed.description.startswith("RuntimeError in _answer:")
    assert "secret" not in failed.description


@pytest.mark.parametrize(
    "sent",
    [b"GET / HTTP/1.1\r\n", frames.pack_head(frames.Decode()), frames.pack_head(frames.Ready())],
)
def test_a_process_that_is_sent_something_else_first_ends(sent):
    gateway, process = socket.socketpair()
    with gateway, process:
        gateway.sendall(sent)
        assert main.serve(process) == main.os.EX_PROTOCOL


def test_a_process_whose_gateway_is_gone_ends():
    gateway, process = socket.socketpair()
    gateway.close()
    with process:
        assert main.serve(process) == 0
