"""Every spelling of an image becomes the same bytes, or a refusal that names it and tells nothing else."""

import asyncio
import base64
import gc
import os
import threading
import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app import images
from app.answers import explain
from app.errors import InvalidRequestError
from app.fetch import Fetcher
from app.images import INLINE_CHARS, ImageLoader, ImageReference, max_base64_chars, read_image_reference
from app.settings import MediaSettings, MediaUrls
from tests.app.image_server import (
    INSIDE,
    OUTSIDE,
    Network,
    answer,
    endless,
    redirect,
    silence,
    slow_drip,
    small_network,
)

SETTINGS = MediaSettings(fetch_timeout_s=5)
FILE = bytes(range(256))
BASE64 = base64.b64encode(FILE).decode()


@pytest.fixture
async def network():
    async with small_network() as network:
        network.outside.answers["/"] = network.inside.answers["/"] = answer(b"an image")
        yield network


def read(
    text: str, settings: MediaSettings = SETTINGS, *, param: str = "input[3].image_url"
) -> ImageReference:
    return read_image_reference(text, param=param, settings=settings)


def refusal_of(text: str, settings: MediaSettings = SETTINGS) -> InvalidRequestError:
    """What is wrong with a reference, as the client is told; asserts that it is told where."""
    with pytest.raises(InvalidRequestError) as refused:
        read(text, settings)
    assert refused.value.param == "input[3].image_url"
    return refused.value


async def the_file(_reference: ImageReference, file: bytes) -> bytes:
    return file


async def load(
    *references: ImageReference, fetcher: Fetcher | None = None, settings: MediaSettings = SETTINGS
) -> list[bytes]:
    fetcher = fetcher or Fetcher(settings)
    try:
        return await ImageLoader(fetcher, settings).load(references, the_file, is_query=False)
    finally:
        await fetcher.close()


async def failure_of(
    *references: ImageReference, fetcher: Fetcher | None = None, settings: MediaSettings = SETTINGS
) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as failed:
        await load(*references, fetcher=fetcher, settings=settings)
    return failed.value


def at(url: str, param: str = "input[0].image_url") -> ImageReference:
    return read(url, param=param)


# Reading ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        BASE64,
        f"data:image/png;base64,{BASE64}",
        f"DATA:IMAGE/PNG;BASE64,{BASE64}",
        f"data:image/png;name=a.png;charset=utf-8;base64,{BASE64}",
        f"data:text/html;base64,{BASE64}",
        f"data:;base64,{BASE64}",
        f"  \n data:image/webp;base64,\n{BASE64}\r\n",
        "\r\n".join(BASE64[start : start + 76] for start in range(0, len(BASE64), 76)),
        base64.urlsafe_b64encode(FILE).decode(),
        BASE64.rstrip("="),
        f"data:image/png;base64,{base64.urlsafe_b64encode(FILE).decode().rstrip('=')}",
    ],
)
async def test_every_spelling_of_base64_is_the_same_file(text: str):
    """The declared type is no evidence of what an image is, so a wrong one does no harm."""
    reference = read(text)
    assert reference.url is None
    assert await load(reference) == [FILE]


@given(st.binary(min_size=1, max_size=200), st.booleans(), st.booleans(), st.integers(1, 80))
@example(b"\xfb\xff", True, True, 1)
def test_base64_of_any_length_and_alphabet_reads_back(file: bytes, url_safe: bool, padded: bool, width: int):
    text = (base64.urlsafe_b64encode if url_safe else base64.b64encode)(file).decode()
    text = text if padded else text.rstrip("=")
    text = "\n".join(text[start : start + width] for start in range(0, len(text), width))
    assert asyncio.run(load(ImageReference(param="input", data=text))) == [file]


@pytest.mark.parametrize("url", ["http://images.test/a.png?x=1", "HTTPS://images.test:443/bücher.png"])
def test_web_urls_are_kept_as_they_are(url: str):
    assert read(url) == ImageReference(param="input[3].image_url", url=url, host="images.test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "The image is empty."),
        (" \n", "The image is empty."),
        ("data:image/png;base64,", "The image is empty."),
        ("data:image/png;base64,\n", "The image is empty."),
        ("data:image/png;base64", "This data URI has no comma after its type."),
        ("data:" + "x" * 1000 + ";base64,AAAA", "This data URI has no comma after its type."),
        ("data:image/svg+xml,<svg/>", "The data URI of an image must be in base64 (data:image/png;base64,...)."),
        ("data:,AAAA", "The data URI of an image must be in base64 (data:image/png;base64,...)."),
        ("file:///etc/passwd", "An image is an http or https URL, a data URI or base64, not 'file:'."),
        ("FILE:///etc/passwd", "An image is an http or https URL, a data URI or base64, not 'file:'."),
        (" ftp://images.test/", "An image is an http or https URL, a data URI or base64, not 'ftp:'."),
        ("C:\\image.png", "An image is an http or https URL, a data URI or base64, not 'c:'."),
        (
            "http://user:password@images.test/",
            "This is no URL that an image is fetched from: http:// or https://, a host in ASCII letters, and "
            "no user name, white space or backslash.",
        ),
    ],
)  # fmt: skip
def test_what_is_no_image_is_refused_with_what_would_be_one(text: str, message: str):
    error = refusal_of(text)
    assert (error.message, error.code) == (message, "invalid_image")


def test_a_long_scheme_does_not_fill_the_message():
    assert len(refusal_of("x" * 200 + ":").message) < 200


@pytest.mark.parametrize(
    "text",
    [
        "é",
        "AAA?",
        "A",
        "AAAAA",
        "AA=A",
        "/home/me/image.png",
        "//images.test/x.png",
        "hello, world",
        "AA\x00A",
        "images.test/x.png",
    ],
)
@pytest.mark.parametrize("start", ["", "data:image/png;base64,"])
async def test_what_is_not_base64_is_refused_by_name_when_it_is_decoded(text: str, start: str):
    error = await failure_of(read(start + text))
    assert error.message == "The image is not valid base64."
    assert (error.code, error.param) == ("invalid_image", "input[3].image_url")


@pytest.mark.parametrize("blanks", [" ", "  \t"])
async def test_blanks_around_base64_are_no_part_of_it_and_between_they_are_wrong(blanks: str):
    """A form turns each ``+`` into one; and what follows one may be a text, which would be left out."""
    for text in (f"{blanks}{BASE64}{blanks}", f"data:image/png;base64,{blanks}{BASE64}\n{blanks}"):
        assert await load(read(text)) == [FILE]
    for text in (f"{BASE64[:8]} {BASE64[8:]}", f"{BASE64[:-4]} abcd", f"data:image/png;base64,{BASE64} abcd"):
        assert (await failure_of(read(text))).message == "The image is not valid base64."


async def test_padding_ends_an_image_wherever_its_pieces_meet():
    """Each piece is whole by itself, and together they are not."""
    data = "A" * (images._PIECE_CHARS - 2) + "=="
    assert len((await load(ImageReference(param="input", data=data)))[0]) == images._PIECE_CHARS // 4 * 3 - 2
    for more in ("AAAA", "\nAAAA"):
        error = await failure_of(ImageReference(param="input", data=data + more))
        assert error.message == "The image is not valid base64."


async def test_padding_alone_is_an_empty_image():
    assert (await failure_of(read("===="))).message == "The image is empty."


def test_base64_that_is_too_long_is_refused_before_it_is_decoded():
    settings = replace(SETTINGS, max_image_bytes=3000)
    assert read("A" * max_base64_chars(3000), settings).data is not None
    error = refusal_of("A" * (max_base64_chars(3000) + 1), settings)
    assert error.message == (
        "The image in 4251 characters of base64 is too large; one image may have 3000 bytes (max_image_bytes)."
    )
    assert error.code == "image_too_large"


@given(st.integers(1, 10_000), st.sampled_from([64, 76]))
def test_an_image_of_just_the_limit_is_never_too_long_however_its_lines_are_broken(size: int, width: int):
    text = base64.b64encode(bytes(size)).decode()
    broken = "\r\n".join(text[start : start + width] for start in range(0, len(text), width))
    assert len(broken) <= max_base64_chars(size)


async def test_the_bytes_count_where_the_characters_left_a_doubt():
    """Room for line breaks is room for a sixteenth more image, if there are none."""
    settings = replace(SETTINGS, max_image_bytes=3000)
    fits, large = (
        ImageReference(param="input", data=base64.b64encode(bytes(size)).decode()) for size in (3000, 3001)
    )
    assert await load(fits, settings=settings) == [bytes(3000)]
    error = await failure_of(read(large.data or "", settings), settings=settings)
    assert (
        error.message
        == "The image of 3001 bytes is too large; one image may have 3000 bytes (max_image_bytes)."
    )
    assert error.code == "image_too_large"


def test_urls_are_refused_when_fetching_is_off():
    settings = replace(SETTINGS, media_urls=MediaUrls.OFF)
    error = refusal_of("https://images.test/", settings)
    assert error.message == (
        "This server fetches no images; send them as data URIs (data:image/png;base64,...)."
    )
    assert error.code == "invalid_image"
    assert read(BASE64, settings).data == BASE64


# Loading ---------------------------------------------------------------------------------------------------


async def test_images_come_in_the_order_they_were_asked_for(network: Network):
    """Whatever arrives first."""
    second_is_there = asyncio.Event()

    async def first(writer: asyncio.StreamWriter) -> None:
        await second_is_there.wait()
        await answer(b"first")(writer)

    async def second(writer: asyncio.StreamWriter) -> None:
        await answer(b"second")(writer)
        second_is_there.set()

    network.outside.answers |= {"/1": first, "/2": second}
    references = [at(network.url("/1")), read(BASE64), at(network.url("/2")), read("AAAA")]
    assert await load(*references, fetcher=network.fetcher()) == [b"first", FILE, b"second", bytes(3)]


async def test_a_url_that_comes_twice_is_fetched_once(network: Network):
    urls = [network.url(), network.url("/?other"), network.url()]
    assert await load(*map(at, urls), fetcher=network.fetcher()) == [b"an image"] * 3
    assert sorted(network.outside.paths) == ["/", "/?other"]


async def test_no_images_are_loaded_for_a_request_without_any():
    assert await load() == []


async def test_large_base64_is_decoded_beside_the_event_loop(monkeypatch):
    threads: list[threading.Thread] = []
    decoded = images._decoded

    def spy(*args, **kwargs) -> bytes:
        threads.append(threading.current_thread())
        return decoded(*args, **kwargs)

    monkeypatch.setattr(images, "_decoded", spy)
    small = ImageReference(param="input", data="A" * (INLINE_CHARS // 2))
    await load(small, small)
    assert threads == [threading.main_thread()] * 2
    await load(small, small, small)
    assert threading.main_thread() not in threads[2:]


@pytest.mark.parametrize("breaks", ["", "\n"])
async def test_several_megabytes_read_back_whole(breaks: str):
    """Cleaning goes in pieces; none may be lost where they meet."""
    file = os.urandom(5_000_000)
    data = base64.encodebytes(file).decode().replace("\n", breaks)
    assert await load(ImageReference(param="input", data=data)) == [file]


async def test_the_images_of_a_request_may_be_only_so_large_together(network: Network):
    """A URL is a few bytes of body and may lead to a million times as much."""
    settings = replace(SETTINGS, max_request_image_bytes=20)
    expected = "The images of the request have more than 20 bytes together (max_request_image_bytes)."
    data = read(base64.b64encode(bytes(11)).decode(), param="input[1]")
    error = await failure_of(data, data, at(network.url()), fetcher=network.fetcher(), settings=settings)
    assert (error.message, error.param, error.code) == (expected, "input[1]", "image_too_large")
    assert network.dialled == []

    both = (at(network.url("/?1")), at(network.url("/?2")))
    error = await failure_of(data, *both, fetcher=network.fetcher(), settings=settings)
    assert (error.message, error.code) == (expected, "image_too_large")
    assert await load(*both, fetcher=network.fetcher(), settings=settings) == [b"an image"] * 2


async def test_one_request_takes_a_quarter_of_the_places_and_no_more(network: Network):
    settings = replace(SETTINGS, max_fetches=8, max_fetches_per_host=8)
    references = [at(network.url(f"/?{index}")) for index in range(20)]
    assert await load(*references, fetcher=network.fetcher(settings), settings=settings) == [b"an image"] * 20
    assert network.outside.max_open == 2


async def test_slow_hosts_have_so_much_time_for_a_request_and_no_more(network: Network):
    """Each of 96 images may take nearly as long as one may: the request would hold its room for minutes."""

    async def late(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.1)
        await answer(b"x")(writer)

    network.outside.answers["/late"] = late
    settings = replace(SETTINGS, request_fetch_timeout_s=0.15, max_fetches_per_host=1)
    fetcher = network.fetcher(settings)
    references = [at(network.url(f"/late?{index}"), f"input[{index}]") for index in range(9)]
    error = await failure_of(*references, fetcher=fetcher, settings=settings)
    assert error.message == (
        "Fetching the images of the request takes more than 0.15 seconds together (request_fetch_timeout_s)."
    )
    assert (error.param, error.code) == ("input[1]", "invalid_image")
    assert len(network.outside.paths) <= 3


async def test_queries_fetch_beside_documents(network: Network):
    network.outside.answers["/slow"] = silence
    settings = replace(SETTINGS, max_fetches=1)
    fetcher = network.fetcher(settings)
    loader = ImageLoader(fetcher, settings)
    slow = asyncio.create_task(loader.load([at(network.url("/slow"))], the_file, is_query=False))
    await network.outside.until_asked(1)
    query = loader.load([at(network.url())], the_file, is_query=True)
    assert await asyncio.wait_for(query, timeout=3) == [b"an image"]
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow
    await fetcher.close()


async def test_a_file_is_held_for_as_long_as_it_is_used():
    held: list[int] = []
    one_at_a_time = asyncio.Lock()

    async def use(_reference: ImageReference, file: bytes) -> int:
        async with one_at_a_time:
            await asyncio.sleep(0)
            held.append(tracemalloc.get_traced_memory()[0])
            return len(file)

    data = base64.b64encode(bytes(2_000_000)).decode()
    references = [ImageReference(param=f"input[{index}]", data=data) for index in range(4)]
    fetcher = Fetcher(SETTINGS)
    tracemalloc.start()
    try:
        assert await ImageLoader(fetcher, SETTINGS).load(references, use, is_query=False) == [2_000_000] * 4
    finally:
        tracemalloc.stop()
    assert held[0] > 7_000_000
    assert held[-1] < 3_000_000


async def test_images_that_are_on_their_way_count_as_they_arrive(network: Network):
    """Each of them is small enough, and none is whole when they are too much together."""

    async def half(writer: asyncio.StreamWriter) -> None:
        await answer(bytes(15), length=30)(writer)
        await silence(writer)

    network.outside.answers["/"] = half
    settings = replace(SETTINGS, max_request_image_bytes=40)
    references = [at(network.url(f"/?{index}")) for index in range(3)]
    loading = failure_of(*references, fetcher=network.fetcher(settings), settings=settings)
    error = await asyncio.wait_for(loading, timeout=3)
    assert error.code == "image_too_large"
    await network.outside.all_closed.wait()


async def test_bad_base64_is_refused_before_anything_is_fetched(network: Network):
    error = await failure_of(at(network.url()), read("?", param="input[7]"), fetcher=network.fetcher())
    assert error.param == "input[7]"
    assert network.dialled == []


async def test_the_first_failure_stops_the_rest_and_names_the_image(network: Network):
    network.outside.answers |= {"/silence": silence, "/missing": answer(status=404)}
    references = [
        *(at(network.url(f"/silence?{index}"), f"input[{index}]") for index in range(3)),
        at(network.url("/missing"), "input[3]"),
        at(network.url("/missing"), "input[4]"),
    ]
    error = await asyncio.wait_for(failure_of(*references, fetcher=network.fetcher()), timeout=3)
    assert (error.param, error.code) == ("input[3]", "invalid_image")
    await network.outside.all_closed.wait()


ONE_TEXT = (
    "The image could not be fetched. Its URL must lead to a public address, on port 80 or 443, that answers "
    "with the image as it is, and in time."
)


@pytest.mark.parametrize(
    "prepare",
    [
        lambda network: network.url(host=str(INSIDE)),
        lambda network: network.url(host="inside.test"),
        lambda network: network.url(host="[::1]"),
        lambda network: network.url(host="unknown.test"),
        lambda network: "http://127.0.0.3/",
        lambda network: "http://images.test:6379/",
        lambda network: network.url("/missing"),
        lambda network: network.url("/failing"),
        lambda network: network.url("/redirected"),
        lambda network: network.url("/loop"),
        lambda network: network.url("/drip"),
        lambda network: network.url("/gzip"),
        lambda network: network.url("/broken"),
    ],
)
async def test_a_client_is_told_the_same_whatever_door_was_closed(
    network: Network, prepare: Callable[[Network], str]
):
    """Else the text would tell it which inner ports are open, and which names exist."""
    network.outside.answers |= {
        "/missing": answer(status=404),
        "/failing": answer(status=503),
        "/redirected": redirect(network.url(host=str(INSIDE))),
        "/loop": redirect("/loop"),
        "/drip": slow_drip,
        "/gzip": answer(b"x", headers={"Content-Encoding": "gzip"}),
        "/broken": answer(b"x", length=5),
    }
    fetcher = network.fetcher(
        replace(SETTINGS, fetch_timeout_s=0.2), is_allowed_address=lambda address: address == OUTSIDE
    )
    error = await failure_of(at(prepare(network)), fetcher=fetcher)
    explanation = explain(error)
    # Never 5xx, 408 or 429: an SDK would have the same server asked three times.
    assert explanation.status == 400
    assert (explanation.error.message, explanation.error.code) == (ONE_TEXT, "invalid_image")
    assert explanation.error.param == "input[0].image_url"
    assert network.inside.num_connections == 0


async def test_only_a_size_is_told_with_its_number(network: Network):
    network.outside.answers["/"] = endless
    settings = replace(SETTINGS, max_image_bytes=100_000)
    error = await failure_of(at(network.url()), fetcher=network.fetcher(settings), settings=settings)
    assert (
        error.message
        == "The image at its URL is too large; one image may have 100000 bytes (max_image_bytes)."
    )
    assert error.code == "image_too_large"


async def test_an_allowlist_is_mentioned_and_not_shown(network: Network):
    settings = replace(SETTINGS, media_urls=MediaUrls.ALLOWLIST, media_hosts=("secret.test",))
    error = await failure_of(at(network.url()), fetcher=network.fetcher(settings), settings=settings)
    assert error.message == (
        "The image could not be fetched. Its URL must lead to one of the hosts that this server is set up for, "
        "and to an answer with the image as it is, and in time."
    )
    assert network.dialled == []


async def test_a_client_that_goes_away_takes_its_fetches_with_it(network: Network):
    network.outside.answers["/"] = silence
    tasks_before = asyncio.all_tasks()
    fetcher = network.fetcher()
    references = [at(network.url(f"/?{index}")) for index in range(6)]
    loading = asyncio.ensure_future(ImageLoader(fetcher, SETTINGS).load(references, the_file, is_query=False))
    await network.outside.until_asked(4)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    await network.outside.all_closed.wait()
    assert fetcher.statistics().num_running == 0
    await fetcher.close()
    assert asyncio.all_tasks() - tasks_before == set()
    gc.collect()  # an unclosed connection would warn, and a warning is an error here
