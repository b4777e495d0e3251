"""What is packed is what is unpacked, and nothing else is read."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from model.types import Features
from model.worker import LoadOptions, frames
from tests.model.worker.fakes import fake_info, features_of

ids = arrays.arrays(np.int32, st.integers(1, 40))
counts = st.integers(0, 2**31)
some_features = st.builds(Features, token_ids=ids, num_prompt_tokens=counts, num_dropped_tokens=counts)
images = arrays.arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 5), st.just(3)))
some_features_with_images = st.builds(
    Features,
    token_ids=ids,
    images=st.lists(images, min_size=1, max_size=3).map(tuple),
    num_image_tokens=counts,
    num_prompt_tokens=counts,
    num_dropped_tokens=counts,
)


def cut(parts: Sequence[frames.Buffer]) -> tuple[memoryview, memoryview]:
    frame = b"".join(parts)
    header_bytes, body_bytes = frames.unpack_prefix(frame[: frames.PREFIX_BYTES])
    rest = memoryview(frame)[frames.PREFIX_BYTES :]
    assert len(rest) == header_bytes + body_bytes
    return rest[:header_bytes], rest[header_bytes:]


@given(st.integers(0, 2**40), st.lists(some_features, min_size=1, max_size=20))
def test_a_pass_comes_out_as_it_went_in(pass_id: int, features: list[Features]):
    header, body = cut(frames.pack_run(pass_id, features))
    run = frames.unpack_for_worker(header)
    assert isinstance(run, frames.Run)
    assert run.pass_id == pass_id
    unpacked = frames.unpack_run(run, body)
    assert len(unpacked) == len(features)
    for ours, theirs in zip(features, unpacked, strict=True):
        assert theirs.token_ids.dtype == np.int32
        assert np.array_equal(ours.token_ids, theirs.token_ids)
        assert ours.num_prompt_tokens == theirs.num_prompt_tokens
        assert ours.num_dropped_tokens == theirs.num_dropped_tokens


@given(st.lists(some_features | some_features_with_images, min_size=1, max_size=8))
def test_images_come_out_as_they_went_in_each_with_its_input(features: list[Features]):
    header, body = cut(frames.pack_run(1, features))
    unpacked = frames.unpack_run(frames.unpack_for_worker(header), body)
    for ours, theirs in zip(features, unpacked, strict=True):
        assert np.array_equal(ours.token_ids, theirs.token_ids)
        assert ours.num_image_tokens == theirs.num_image_tokens
        assert len(ours.images) == len(theirs.images)
        for sent, received in zip(ours.images, theirs.images, strict=True):
            assert received.dtype == np.uint8
            assert np.array_equal(sent, received)


def test_a_pass_of_texts_says_nothing_of_images():
    """A query's frame is as short as before there were images."""
    header, _ = cut(frames.pack_run(1, [features_of(1, 2), features_of(3)]))
    run = frames.unpack_for_worker(header)
    assert (run.image_sizes, run.image_lengths) == ((), ())


def test_pixels_of_any_layout_are_packed_as_rows():
    """What a decoder hands over may be a view of a larger picture, or mirrored."""
    picture = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    image = picture[::-1, 1:5]
    one = Features(token_ids=np.array([1], dtype=np.int32), images=(image,), num_image_tokens=1)
    header, body = cut(frames.pack_run(1, [one]))
    (unpacked,) = frames.unpack_run(frames.unpack_for_worker(header), body)
    assert np.array_equal(unpacked.images[0], image)


def test_ids_of_any_layout_and_type_are_packed_as_int32():
    """A tokenizer may give int64, and a truncated text is a slice of another array."""
    every_second = np.arange(10, dtype=np.int64)[::2]
    header, body = cut(frames.pack_run(1, [Features(token_ids=every_second)]))
    (unpacked,) = frames.unpack_run(frames.unpack_for_worker(header), body)
    assert unpacked.token_ids.tolist() == [0, 2, 4, 6, 8]


@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 8), st.integers(1, 8)),
        elements=st.floats(width=32, allow_nan=True),
    )
)
def test_rows_come_out_bit_by_bit(rows: np.ndarray):
    """NaN and infinity included: the gateway must see what the encoder gave."""
    message = frames.Rows(
        pass_id=7,
        num_rows=rows.shape[0],
        dimension=rows.shape[1],
        device_s=0.25,
        nonfinite_rows=(0,),
    )
    header, body = cut([frames.pack_head(message, body_bytes=rows.nbytes) + rows.tobytes()])
    unpacked = frames.unpack_for_gateway(header)
    assert unpacked == message
    assert frames.unpack_rows(unpacked, body).tobytes() == rows.tobytes()


@pytest.mark.parametrize(
    "message",
    [
        frames.Stage(text="loading weights 43%"),
        frames.Ready(info=fake_info(prompts={"query": "find: "})),
        frames.LoadFailed(message="no such folder"),
        frames.Failed(pass_id=3, error_type="KeyError", is_out_of_memory=False),
    ],
)
def test_messages_to_the_gateway_come_out_equal(message: frames.ToGateway):
    header, _ = cut([frames.pack_head(message)])
    assert frames.unpack_for_gateway(header) == message


@pytest.mark.parametrize(
    "message",
    [
        frames.Load(
            options=LoadOptions(folder="/m", source="m", matryoshka_dimensions=(256, 64)), loader="a:b", cpu=1
        ),
        frames.Stop(),
    ],
)
def test_messages_to_the_worker_come_out_equal(message: frames.ToWorker):
    header, _ = cut([frames.pack_head(message)])
    assert frames.unpack_for_worker(header) == message


def test_a_pass_is_read_where_it_arrived():
    """The ids are views: a pass of 8,192 tokens costs no second buffer."""
    header, body = cut(frames.pack_run(1, [features_of(1, 2), features_of(3)]))
    for one in frames.unpack_run(frames.unpack_for_worker(header), body):
        assert np.shares_memory(one.token_ids, np.frombuffer(body, np.uint8))


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_arbitrary_headers_are_refused_not_believed(noise: bytes):
    for unpack in (frames.unpack_for_worker, frames.unpack_for_gateway):
        with pytest.raises(frames.FrameError, match="no message for a"):
            unpack(memoryview(noise))


@given(st.binary(min_size=frames.PREFIX_BYTES, max_size=frames.PREFIX_BYTES))
def test_arbitrary_prefixes_are_refused(noise: bytes):
    with pytest.raises(frames.FrameError, match="a frame starts with"):
        frames.unpack_prefix(noise)


def test_a_message_for_the_other_side_is_refused():
    with pytest.raises(frames.FrameError, match="no message for a worker"):
        frames.unpack_for_worker(cut([frames.pack_head(frames.Stage(text="hello"))])[0])


def test_announced_sizes_beyond_the_limits_are_refused_before_anything_is_allocated():
    good = frames.pack_head(frames.Stop())[:4]
    too_long = (frames.MAX_HEADER_BYTES + 1).to_bytes(4, "little") + bytes(8)
    too_large = bytes(4) + (frames.MAX_BODY_BYTES + 1).to_bytes(8, "little")
    with pytest.raises(frames.FrameError, match=f"{frames.MAX_HEADER_BYTES} are allowed"):
        frames.unpack_prefix(good + too_long)
    with pytest.raises(frames.FrameError, match=f"{frames.MAX_BODY_BYTES} are allowed"):
        frames.unpack_prefix(good + too_large)


def test_a_frame_beyond_the_limits_is_not_packed():
    with pytest.raises(frames.FrameError, match=f"a body of {frames.MAX_BODY_BYTES + 1} bytes"):
        frames.pack_head(frames.Stop(), body_bytes=frames.MAX_BODY_BYTES + 1)


def with_images(**changes: object) -> frames.Run:
    """The header of a pass of two inputs, of which the first has an image of 2 by 2 pixels: 8 + 12 bytes."""
    sound = {
        "pass_id": 1,
        "lengths": (1, 1),
        "prompt_lengths": (0, 0),
        "dropped_lengths": (0, 0),
        "image_sizes": (((2, 2),), ()),
        "image_lengths": (1, 0),
    }
    return frames.Run(**sound | changes)


@pytest.mark.parametrize("sizes", [(((0, 2),), ()), (((-2, 2),), ()), (((2,),), ()), (((2, 2, 2),), ())])
def test_image_sizes_that_are_none_are_refused(sizes: object):
    header, _ = cut([frames.pack_head(with_images(image_sizes=sizes))])
    with pytest.raises(frames.FrameError, match="no message for a worker"):
        frames.unpack_for_worker(header)


def test_sound_sizes_are_read():
    """The messages above are about what is changed, not about the rest."""
    body = memoryview(np.array([7, 8], dtype=np.int32).tobytes() + bytes(range(12)))
    first, second = frames.unpack_run(with_images(), body)
    assert (first.token_ids.tolist(), second.token_ids.tolist()) == ([7], [8])
    assert first.images[0].tolist() == np.arange(12).reshape(2, 2, 3).tolist()
    assert second.images == ()


@pytest.mark.parametrize(
    ("run", "body_bytes", "message"),
    [
        (
            frames.Run(pass_id=1, lengths=(2, 3), prompt_lengths=(0,), dropped_lengths=(0, 0)),
            20,
            "prompt lengths",
        ),
        (
            frames.Run(pass_id=1, lengths=(2, 3), prompt_lengths=(0, 0), dropped_lengths=(0, 0)),
            16,
            "body of 16 bytes",
        ),
        (with_images(image_sizes=(((2, 2),),)), 20, "1 lists of image sizes"),
        (with_images(image_lengths=(4,)), 20, "1 image lengths"),
        (with_images(), 8, "2 tokens and 12 bytes of pixels has a body of 8 bytes"),
        (with_images(image_sizes=(((2**31, 2**31),), ())), 20, "a body of 20 bytes"),
        (with_images(image_sizes=(((2, 3),), ())), 20, "18 bytes of pixels has a body of 20 bytes"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(run: frames.Run, body_bytes: int, message: str):
    with pytest.raises(frames.FrameError, match=message):
        frames.unpack_run(run, memoryview(bytes(body_bytes)))


@pytest.mark.parametrize(
    ("nonfinite_rows", "body_bytes", "message"),
    [
        ((), 28, "2 rows of 4 numbers came as 28 bytes"),
        ((2,), 32, r"rows \(2,\) of 2 are said to be not finite"),
    ],
)
def test_rows_that_do_not_fit_are_refused(nonfinite_rows: tuple[int, ...], body_bytes: int, message: str):
    rows = frames.Rows(pass_id=1, num_rows=2, dimension=4, device_s=0.0, nonfinite_rows=nonfinite_rows)
    with pytest.raises(frames.FrameError, match=message):
        frames.unpack_rows(rows, memoryview(bytes(body_bytes)))
