"""A stranger's URL leads to the public internet or nowhere, and costs no more than the settings say."""

import asyncio
import gc
import gzip
import ipaddress
import re
import shutil
import ssl
import subprocess
import threading
import tracemalloc
from collections.abc import Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from app.addresses import Address, is_public_address
from app.cli import run
from app.fetch import (
    MAX_REDIRECTS,
    MAX_URL_CHARS,
    Fetcher,
    FetchError,
    FetchFailure,
    SystemResolver,
    is_allowed_site,
    read_url,
)
from app.settings import MediaSettings, MediaUrls
from tests.app.image_server import (
    INSIDE,
    OUTSIDE,
    Network,
    answer,
    endless,
    record_dials,
    redirect,
    silence,
    slow_drip,
    slow_head,
    small_network,
)

SETTINGS = MediaSettings(fetch_timeout_s=5)


@pytest.fixture
async def network():
    async with small_network() as network:
        network.outside.answers["/"] = network.inside.answers["/"] = answer(b"an image")
        yield network


async def fetch(fetcher: Fetcher, url: str, *, is_query: bool = False) -> bytes:
    """What the URL leads to, used at once."""
    async with fetcher.fetched(url, is_query=is_query) as fetched:
        return fetched.file


async def failure_of(fetcher: Fetcher, url: str) -> FetchFailure:
    """Why a fetch fails; the fetcher is closed."""
    with pytest.raises(FetchError) as failed:
        await fetch(fetcher, url)
    await fetcher.close()
    return failed.value.reason


# What is fetched -------------------------------------------------------------------------------------------


async def test_an_image_is_fetched_byte_for_byte(network: Network):
    network.outside.answers["/a.png"] = answer(
        bytes(range(256)) * 1000, headers={"Content-Type": "text/html"}
    )
    fetcher = network.fetcher()
    assert await fetch(fetcher, network.url("/a.png")) == bytes(range(256)) * 1000
    await fetcher.close()
    assert network.dialled == [str(OUTSIDE)]


async def test_a_request_says_nothing_of_us_and_asks_for_plain_bytes(network: Network, monkeypatch):
    """No cookie is kept, no proxy or password is taken from the environment, the name stays in Host."""
    monkeypatch.setenv("HTTP_PROXY", network.url(host=str(INSIDE)))
    monkeypatch.setenv("http_proxy", network.url(host=str(INSIDE)))
    network.outside.answers["/"] = answer(b"x", headers={"Set-Cookie": "id=1; Path=/"})
    fetcher = network.fetcher()
    for _ in range(2):
        await fetch(fetcher, network.url())
    await fetcher.close()
    assert network.inside.num_connections == 0
    for headers in network.outside.headers:
        assert headers == {
            "host": f"images.test:{network.port}",
            "accept": "image/*",
            "accept-encoding": "identity",
            "user-agent": "laneway",
            "connection": "close",
        }


async def test_a_path_and_query_reach_the_server_as_they_were_written(network: Network):
    """Signed URLs break when an escape in them is rewritten; only what is not ASCII has to be."""
    network.outside.answers["/a%2Fb%20c"] = network.outside.answers["/b%C3%BCcher.png"] = answer(b"x")
    fetcher = network.fetcher()
    await fetch(fetcher, network.url("/a%2Fb%20c?X-Sig=%2F%2b+%zz&y=a;b#frag"))
    await fetch(fetcher, network.url("/bücher.png"))
    await fetcher.close()
    assert network.outside.paths == ["/a%2Fb%20c?X-Sig=%2F%2b+%zz&y=a;b", "/b%C3%BCcher.png"]


@pytest.mark.parametrize(
    "host", ["IMAGES.test", "images.test.", "xn--bcher-kva.test", "_s3.my--bucket.test", str(OUTSIDE)]
)
async def test_hosts_may_be_upper_case_rooted_encoded_or_a_public_address(network: Network, host: str):
    network.names |= {
        name: [OUTSIDE] for name in ("images.test.", "xn--bcher-kva.test", "_s3.my--bucket.test")
    }
    fetcher = network.fetcher()
    assert await fetch(fetcher, network.url(host=host)) == b"an image"
    await fetcher.close()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_followed_to_other_public_hosts(network: Network, status: int):
    network.names["cdn.test"] = [OUTSIDE]
    network.outside.answers["/old"] = redirect(network.url("/dir/moved", host="cdn.test"), status=status)
    network.outside.answers["/dir/moved"] = redirect("new?x=%2F")
    network.outside.answers["/dir/new"] = answer(b"found")
    fetcher = network.fetcher()
    assert await fetch(fetcher, network.url("/old")) == b"found"
    await fetcher.close()
    assert [headers["host"].partition(":")[0] for headers in network.outside.headers] == [
        "images.test", "cdn.test", "cdn.test",
    ]  # fmt: skip
    assert network.outside.paths[-1] == "/dir/new?x=%2F"


# What is never dialled -------------------------------------------------------------------------------------

INNER_HOSTS = [
    "127.0.0.1", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.0.1", "169.254.169.254", "169.254.170.2",
    "100.100.100.200", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.0.192",
    "168.63.129.16", "[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::FFFF:7F00:1]",
    "[::ffff:a9fe:a9fe]", "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]",
    "[2001:0:7f00:1::]", "[3fff::1]", "[fec0::1]", "[fe80::1]", "[ff02::1]", "[fd00:ec2::254]",
]  # fmt: skip


@pytest.mark.parametrize("host", INNER_HOSTS)
async def test_inner_addresses_are_not_dialled(network: Network, host: str):
    fetcher = network.fetcher()
    assert await failure_of(fetcher, network.url(host=host)) is FetchFailure.BLOCKED
    assert await failure_of(network.fetcher(), f"http://{host}/") is FetchFailure.BLOCKED
    assert network.dialled == []
    assert network.inside.num_connections == 0


@pytest.mark.parametrize("host", INNER_HOSTS)
async def test_redirects_to_inner_addresses_are_not_followed(network: Network, host: str):
    network.outside.answers["/"] = redirect(network.url(host=host))
    assert await failure_of(network.fetcher(), network.url()) is FetchFailure.BLOCKED
    assert network.dialled == [str(OUTSIDE)]
    assert network.inside.num_connections == 0


@pytest.mark.parametrize("host", [host for host in INNER_HOSTS if host != "[::]"])
async def test_names_of_inner_addresses_are_not_dialled(network: Network, host: str):
    network.names["metadata.google.internal"] = [ip_address(host.strip("[]"))]
    url = network.url(host="metadata.google.internal")
    assert await failure_of(network.fetcher(), url) is FetchFailure.BLOCKED
    assert network.dialled == []


async def test_the_inner_server_would_answer_if_it_were_asked(network: Network):
    """Or the tests above would pass on a network where nothing can be reached anyway."""
    for host in (str(INSIDE), "inside.test", "0.0.0.0"):
        fetcher = network.fetcher(is_allowed_address=lambda _: True)
        assert await fetch(fetcher, network.url(host=host)) == b"an image"
        await fetcher.close()
    assert network.inside.num_connections == 3


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "localhost."])
async def test_the_systems_own_names_are_resolved_before_they_are_judged(network: Network, host: str):
    fetcher = network.fetcher(resolve=SystemResolver(1))
    assert await failure_of(fetcher, network.url(host=host)) in (
        FetchFailure.BLOCKED,
        FetchFailure.UNREACHABLE,
    )
    assert network.dialled == []
    assert network.inside.num_connections == 0


NO_URLS = [
    "http://127.1/", "http://2130706433/", "http://0x7f000001/", "http://0x7f.1/", "http://0177.0.0.1/",
    "http://0/", "http://127.0.0.1./", "http://127.0.0.01/", "http://1.2.3.256/", "http://1.2.3.4.5/", "http://0x/",
    "http://x.1/", "http://①②⑦.⓪.⓪.①/", "http://127。0。0。1/", "http://bücher.test/", "http://ⓔxample.com/",
    "http://127.0.0.1:PORT\\@images.test/", "http://images.test\\@127.0.0.1:PORT/", "http:\\\\127.0.0.1:PORT/",
    "http://user@127.0.0.1:PORT/", "http://user:password@images.test:PORT/", "http://@images.test:PORT/",
    "http://images.test:PORT@127.0.0.1/", "http://images.test#@127.0.0.1:PORT\\", "http://images.test%40127.0.0.1/",
    "http://ima\tges.test/", "http://ima\nges.test/", "http://images.test/\r\nX: y", "http://images.test/a b",
    " http://127.0.0.1:PORT/", "http://127.0.0.1:PORT/ ", "\x00http://127.0.0.1:PORT/", "http://images.test/\x7f",
    "http://images.test/\ud800", "http://images.test/\u202e", "http://images.test/\u00a0", "http://%31/",
    "http://127.0.0.1%00.images.test/", "http://[::ffff:127.0.0.1%25eth0]:PORT/", "http://[fe80::1%eth0]/",
    "http://[::1/", "http://::1/", "http://[::1]x/", "http://[127.0.0.1]:PORT/", "http://[v1.a]/", "http://[]/",
    "http://images.test:99999/", "http://images.test:-1/", "http://images.test:+80/", "http://images.test:\uff18\uff10/",
    "http://images.test:80:80/", "http://images.test:x/", "http:///x", "http://", "http:x", "http:/x", "//images.test/",
    "images.test/x", "", "http://.test/", "http://a..test/", "http://" + "a" * 64 + ".test/",
    "http://" + ".".join(["a" * 50] * 6) + "/", "http://images.test/" + "x" * MAX_URL_CHARS,
    "file:///etc/passwd", "FILE:///etc/passwd", "ftp://images.test/", "gopher://127.0.0.1:PORT/", "unix:///run/x",
    "jar:http://images.test!/", "data:image/png;base64,AAAA", "ws://images.test/", "javascript:1", "http+unix://x/",
]  # fmt: skip


@pytest.mark.parametrize("url", NO_URLS)
async def test_what_two_parsers_could_read_differently_is_no_url(network: Network, url: str):
    url = url.replace("PORT", str(network.port))
    assert await failure_of(network.fetcher(), url) is FetchFailure.INVALID_URL
    assert (network.num_lookups, network.dialled) == (0, [])


REDIRECTS_NOWHERE = [
    *(url for url in NO_URLS if re.match("[a-z+]+:", url, re.IGNORECASE) and url.isprintable() and url[-1] != " "),
    "//127.0.0.1\\@x", "\\\\x", "//user@images.test:PORT/", "//127.1/", "/\\127.0.0.1:PORT/", "/a b",
]  # fmt: skip


@pytest.mark.parametrize("location", REDIRECTS_NOWHERE)
async def test_a_redirect_to_what_is_no_url_is_not_followed(network: Network, location: str):
    """It is read by the rules of a client's own URL."""
    network.outside.answers["/"] = redirect(location.replace("PORT", str(network.port)))
    # 8,190 bytes are all that aiohttp reads of a header.
    expected = FetchFailure.UNREACHABLE if len(location) > MAX_URL_CHARS else FetchFailure.REDIRECT
    assert await failure_of(network.fetcher(), network.url()) is expected
    assert network.dialled == [str(OUTSIDE)]


@pytest.mark.parametrize(
    "location", ["//127.0.0.1:PORT/", " http://127.0.0.1:PORT/ ", "HTTP://127.0.0.1:PORT"]
)
async def test_a_redirect_without_a_scheme_or_in_other_letters_is_checked_as_well(
    network: Network, location: str
):
    network.outside.answers["/"] = redirect(location.replace("PORT", str(network.port)))
    assert await failure_of(network.fetcher(), network.url()) is FetchFailure.BLOCKED
    assert network.dialled == [str(OUTSIDE)]
    assert network.inside.num_connections == 0


@pytest.mark.parametrize("location", ["", "/loop"])
async def test_redirects_end(network: Network, location: str):
    network.outside.answers["/loop"] = redirect(location)
    assert await failure_of(network.fetcher(), network.url("/loop")) is FetchFailure.REDIRECT
    assert network.outside.num_connections == (1 + MAX_REDIRECTS if location else 1)


@pytest.mark.parametrize("port", [0, 1, 22, 81, 6379, 8080, 65535])
async def test_only_the_ports_of_the_web_are_dialled(network: Network, port: int):
    assert await failure_of(network.fetcher(), f"http://images.test:{port}/") is FetchFailure.BLOCKED
    network.outside.answers["/"] = redirect(f"http://images.test:{port}/")
    assert await failure_of(network.fetcher(), network.url()) is FetchFailure.BLOCKED
    assert network.dialled == [str(OUTSIDE)]


@pytest.mark.parametrize(
    "addresses", [[OUTSIDE, INSIDE], [INSIDE, OUTSIDE], [ip_address("8.8.8.8"), ip_address("::1")]]
)
async def test_one_inner_address_among_public_ones_condemns_the_name(
    network: Network, addresses: list[Address]
):
    network.names["mixed.test"] = addresses
    assert await failure_of(network.fetcher(), network.url(host="mixed.test")) is FetchFailure.BLOCKED
    assert network.dialled == []


async def test_a_name_that_changes_its_mind_is_asked_once_a_connection(network: Network):
    """DNS rebinding: what was checked is what is dialled, with no second lookup in between."""
    answers = [[OUTSIDE], [INSIDE]] * 2

    async def resolve(host: str) -> Sequence[Address]:
        network.num_lookups += 1
        return answers.pop(0)

    fetcher = network.fetcher(resolve=resolve)
    url = network.url(host="rebinding.test")
    assert await fetch(fetcher, url) == b"an image"
    assert network.num_lookups == 1
    assert await failure_of(fetcher, url) is FetchFailure.BLOCKED

    network.outside.answers["/"] = redirect("/again")
    assert await failure_of(network.fetcher(resolve=resolve), url) is FetchFailure.BLOCKED
    assert network.dialled == [str(OUTSIDE)] * 2
    assert network.inside.num_connections == 0


PUBLIC_V6 = st.integers(0x2400 << 112, (0x3000 << 112) - 1).map(ipaddress.IPv6Address)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.ip_addresses(v=4) | st.ip_addresses() | PUBLIC_V6, min_size=1, max_size=3, unique=True),
    st.booleans(),
)
def test_whatever_a_name_resolves_to_only_public_addresses_are_dialled(
    addresses: list[Address], is_literal: bool
):
    """On the fetcher as it is shipped, with nothing injected but the answers of the resolver."""
    dialled: list[str] = []

    async def resolve(host: str) -> Sequence[Address]:
        return addresses

    async def fetch() -> FetchFailure:
        record_dials(dialled, lead_nowhere=True)
        literal = f"[{addresses[0]}]" if addresses[0].version == 6 else str(addresses[0])
        host = literal if is_literal else "images.test"
        return await failure_of(Fetcher(SETTINGS, resolve=resolve), f"http://{host}/")

    reason = asyncio.run(fetch())
    asked_for = addresses[:1] if is_literal else addresses
    assert all(is_public_address(ip_address(address)) for address in dialled)
    if all(map(is_public_address, asked_for)):
        assert reason is FetchFailure.UNREACHABLE
        # Those of IPv6 only where the machine has it.
        assert {str(one) for one in asked_for if one.version == 4} <= set(dialled)
    else:
        assert reason is FetchFailure.BLOCKED
        assert dialled == []


async def test_the_last_door_is_shut_even_if_the_ones_before_it_were_open(network: Network):
    """A resolver that checks nothing stands for a version of aiohttp that asks none."""
    fetcher = network.fetcher()
    fetcher._others.resolver._is_allowed_address = lambda _: True  # type: ignore[attr-defined]
    assert await failure_of(fetcher, network.url(host="inside.test")) is FetchFailure.UNREACHABLE
    assert (network.dialled, network.inside.num_connections) == ([], 0)


def test_nothing_in_the_program_opens_the_guard():
    """The parameters that tests open it with are for tests."""
    sources = {path: path.read_text() for path in Path(__file__).parents[2].joinpath("app").rglob("*.py")}
    openers = re.compile(r"\b(is_allowed_address|web_ports)=|\bFetcher\([^)]*resolve=")
    assert [
        path.name for path, text in sources.items() if path.name != "fetch.py" and openers.search(text)
    ] == []


# Allowlist and off -----------------------------------------------------------------------------------------


def listing(*hosts: str) -> MediaSettings:
    return replace(SETTINGS, media_urls=MediaUrls.ALLOWLIST, media_hosts=hosts)


@pytest.mark.parametrize(
    ("url", "is_allowed"),
    [
        ("http://cdn.test/x", True),
        ("https://CDN.test./x", True),
        ("http://cdn.test:8080/", False),
        ("http://a.cdn.test/", False),
        ("http://ports.test:8443/", True),
        ("http://ports.test/", False),
        ("http://a.b.example.test/", True),
        ("http://example.test/", False),
        ("http://evilexample.test/", False),
        ("http://cdn.test.evil.test/", False),
        ("http://93.184.216.34/", True),
        ("http://93.184.216.35/", False),
        ("http://upper.test/", True),
    ],
)
def test_an_allowlist_names_hosts_ports_and_whole_domains(url: str, is_allowed: bool):
    hosts = ("cdn.test", "ports.test:8443", ".example.test", "93.184.216.34", "Upper.TEST")
    assert is_allowed_site(read_url(url), listing(*hosts)) is is_allowed


async def test_the_allowlist_holds_for_redirects_and_inner_addresses_too(network: Network):
    network.names["other.test"] = [OUTSIDE]
    network.outside.answers["/away"] = redirect(network.url(host="other.test"))
    allowed = listing(f"images.test:{network.port}", f"inside.test:{network.port}")
    fetcher = network.fetcher(allowed)
    assert await fetch(fetcher, network.url()) == b"an image"
    assert await failure_of(fetcher, network.url("/away")) is FetchFailure.BLOCKED
    assert await failure_of(network.fetcher(allowed), network.url(host="inside.test")) is FetchFailure.BLOCKED
    assert network.outside.num_connections == 2
    assert network.inside.num_connections == 0


async def test_nothing_is_fetched_when_fetching_is_off(network: Network):
    fetcher = network.fetcher(replace(SETTINGS, media_urls=MediaUrls.OFF))
    assert await failure_of(fetcher, network.url()) is FetchFailure.BLOCKED
    assert (network.num_lookups, network.dialled) == (0, [])


# What is read ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [201, 204, 206, 304, 400, 401, 404, 500, 503])
async def test_only_200_is_an_image(network: Network, status: int):
    network.outside.answers["/"] = answer(b"an image" * (status not in (204, 304)), status=status)
    assert await failure_of(network.fetcher(), network.url()) is FetchFailure.STATUS


async def test_an_image_of_just_the_limit_is_read_and_a_larger_one_is_not(network: Network):
    network.outside.answers |= {"/fits": answer(bytes(5000)), "/large": answer(bytes(5001))}
    fetcher = network.fetcher(replace(SETTINGS, max_image_bytes=5000))
    assert len(await fetch(fetcher, network.url("/fits"))) == 5000
    assert await failure_of(fetcher, network.url("/large")) is FetchFailure.TOO_LARGE


@pytest.mark.parametrize(
    "claim", [answer(b"x", length=99_999_999_999), endless], ids=["content-length", "endless chunks"]
)
async def test_a_body_past_the_limit_is_given_up_without_holding_it(network: Network, claim):
    network.outside.answers["/"] = claim
    fetcher = network.fetcher(replace(SETTINGS, max_image_bytes=1_000_000))
    tracemalloc.start()
    try:
        assert await failure_of(fetcher, network.url()) is FetchFailure.TOO_LARGE
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()
    await network.outside.all_closed.wait()


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "deflate", "br", "zstd", "identity, gzip"])
async def test_compressed_bodies_are_refused_and_never_unpacked(network: Network, encoding: str):
    bomb = gzip.compress(bytes(50_000_000))
    network.outside.answers["/"] = answer(bomb, headers={"Content-Encoding": encoding})
    assert await failure_of(network.fetcher(), network.url()) is FetchFailure.ENCODING


async def test_a_compressed_body_that_hides_it_stays_compressed(network: Network):
    """What the bytes are, the decoder sees; nothing is unpacked on their own word."""
    bomb = gzip.compress(bytes(50_000_000))
    network.outside.answers["/"] = answer(bomb, headers={"Content-Type": "application/gzip"})
    fetcher = network.fetcher()
    assert await fetch(fetcher, network.url()) == bomb
    await fetcher.close()


@pytest.mark.parametrize("slow", [slow_drip, slow_head, silence])
async def test_slow_servers_get_the_whole_fetch_so_long_and_no_longer(network: Network, slow):
    """A byte now and then keeps nothing alive."""
    network.outside.answers["/"] = slow
    fetcher = network.fetcher(replace(SETTINGS, fetch_timeout_s=0.1))
    assert await asyncio.wait_for(failure_of(fetcher, network.url()), timeout=3) is FetchFailure.TIMEOUT
    await network.outside.all_closed.wait()


async def test_redirects_share_one_deadline(network: Network):
    """Else five of them would be worth six timeouts."""

    async def late(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.15)
        await redirect("/")(writer)

    network.outside.answers["/"] = late
    fetcher = network.fetcher(replace(SETTINGS, fetch_timeout_s=0.4))
    assert await failure_of(fetcher, network.url()) is FetchFailure.TIMEOUT
    assert network.outside.num_connections <= 3


async def test_a_name_server_that_never_answers_is_given_up_too(network: Network):
    async def resolve(host: str) -> Sequence[Address]:
        await asyncio.Event().wait()
        return []

    fetcher = network.fetcher(replace(SETTINGS, fetch_timeout_s=0.05), resolve=resolve)
    assert await failure_of(fetcher, network.url()) is FetchFailure.TIMEOUT


@pytest.mark.parametrize(
    "broken",
    [
        answer(b"half", length=100),
        answer(b"x", headers={"Content-Length": "-1"}),
        answer(b"x", headers={"Transfer-Encoding": "chunked"}),
        answer(headers={"X": "y" * 100_000}),
    ],
    ids=["short body", "negative length", "length and chunks", "huge header"],
)
async def test_broken_http_is_no_image(network: Network, broken):
    network.outside.answers["/"] = broken
    assert await failure_of(network.fetcher(), network.url()) is FetchFailure.UNREACHABLE


async def test_unknown_names_and_closed_ports_are_unreachable(network: Network):
    network.names |= {"closed.test": [ip_address("127.0.0.3")], "empty.test": []}

    def fetcher() -> Fetcher:
        return network.fetcher(is_allowed_address=lambda address: address != INSIDE)

    for host in ("unknown.test", "closed.test", "empty.test"):
        assert await failure_of(fetcher(), network.url(host=host)) is FetchFailure.UNREACHABLE


@pytest.fixture
def self_signed(tmp_path: Path) -> ssl.SSLContext:
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=images.test", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    return tls


async def test_a_certificate_that_nobody_vouches_for_is_refused(self_signed: ssl.SSLContext):
    """The server is asked for the certificate of the name, whatever address was dialled."""
    names: list[str | None] = []
    self_signed.sni_callback = lambda _sock, name, _context: names.append(name)
    async with small_network(self_signed) as network:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # the server's failed handshake
        reason = await failure_of(network.fetcher(), network.url(scheme="https"))
        assert reason is FetchFailure.UNREACHABLE
        assert names == ["images.test"]
        assert network.outside.paths == []


# Together --------------------------------------------------------------------------------------------------


async def fetch_all(fetcher: Fetcher, urls: Sequence[str]) -> list[bytes]:
    try:
        return await asyncio.gather(*(fetch(fetcher, url) for url in urls))
    finally:
        await fetcher.close()


def once_there_are(network: Network, count: int):
    """Answers as soon as so many requests are there at once."""
    enough = asyncio.Event()

    async def write(writer: asyncio.StreamWriter) -> None:
        if network.outside.num_open >= count:
            enough.set()
        await enough.wait()
        await answer(b"x")(writer)

    return write


@pytest.mark.parametrize(("max_fetches", "max_fetches_per_host", "expected"), [(3, 100, 3), (100, 2, 2)])
async def test_no_more_fetches_run_at_once_than_allowed(
    network: Network, max_fetches: int, max_fetches_per_host: int, expected: int
):
    network.outside.answers["/"] = once_there_are(network, expected)
    limits = replace(SETTINGS, max_fetches=max_fetches, max_fetches_per_host=max_fetches_per_host)
    assert await fetch_all(network.fetcher(limits), [network.url()] * 12) == [b"x"] * 12
    assert network.outside.max_open == expected


async def test_a_slow_host_does_not_hold_the_places_of_others(network: Network):
    """Its own limit is reached first, and whoever waits for it waits without a place."""
    network.names["slow.test"] = [OUTSIDE]
    network.outside.answers["/slow"] = silence
    fetcher = network.fetcher(replace(SETTINGS, max_fetches=3, max_fetches_per_host=2))
    slow = asyncio.gather(*[fetch(fetcher, network.url("/slow", host="slow.test")) for _ in range(10)])
    await network.outside.until_asked(2)
    assert await asyncio.wait_for(fetch(fetcher, network.url()), timeout=3) == b"an image"
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow
    await fetcher.close()


async def test_a_query_never_waits_behind_documents_of_whatever_host(network: Network):
    """Two requests of 96 URLs held it up for 15 seconds."""
    network.outside.answers["/slow"] = silence
    fetcher = network.fetcher(replace(SETTINGS, max_fetches=2, max_fetches_per_host=1))
    slow = asyncio.gather(*[fetch(fetcher, network.url("/slow")) for _ in range(10)])
    await network.outside.until_asked(1)
    assert await asyncio.wait_for(fetch(fetcher, network.url(), is_query=True), timeout=3) == b"an image"
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow
    await fetcher.close()


async def test_a_query_never_waits_behind_documents_to_look_a_name_up(network: Network, monkeypatch):
    """Lookups that hang keep their threads for half a minute, whoever has given up on them."""
    may_end = threading.Event()

    def look_up(host: str) -> list[Address]:
        if host == "hanging.test":
            may_end.wait(10)
        return [OUTSIDE]

    monkeypatch.setattr("app.fetch._look_up", look_up)
    settings = replace(SETTINGS, max_fetches=1, fetch_timeout_s=0.5)
    fetcher = Fetcher(
        settings, is_allowed_address=lambda address: address == OUTSIDE, web_ports={network.port}
    )
    assert await failure_without_end(fetcher, network.url(host="hanging.test")) is FetchFailure.TIMEOUT
    assert await failure_without_end(fetcher, network.url()) is FetchFailure.TIMEOUT
    assert await fetch(fetcher, network.url(), is_query=True) == b"an image"
    may_end.set()
    await fetcher.close()


async def failure_without_end(fetcher: Fetcher, url: str) -> FetchFailure:
    with pytest.raises(FetchError) as failed:
        await fetch(fetcher, url)
    return failed.value.reason


async def test_a_fetch_keeps_its_place_until_the_file_has_been_used(network: Network):
    """So files in memory are as many as places, however slowly they are decoded."""
    fetcher = network.fetcher(replace(SETTINGS, max_fetches=1))
    async with fetcher.fetched(network.url("/?1"), is_query=False):
        second = asyncio.create_task(fetch(fetcher, network.url("/?2")))
        for _ in range(3):  # time enough for it, if it had a place
            await fetch(fetcher, network.url("/?3"), is_query=True)
        assert fetcher.statistics().num_running == 1
        assert network.outside.paths == ["/?1", *["/?3"] * 3]
    assert await second == b"an image"
    await fetcher.close()


async def test_a_file_is_never_held_twice(network: Network):
    num_pieces, piece = 128, bytes(65_536)

    async def in_pieces(writer: asyncio.StreamWriter) -> None:
        await answer(length=num_pieces * len(piece))(writer)
        for _ in range(num_pieces):
            writer.write(piece)
            await writer.drain()

    network.outside.answers["/"] = in_pieces
    fetcher = network.fetcher()
    tracemalloc.start()
    try:
        num_bytes = len(await fetch(fetcher, network.url()))
        assert num_bytes == num_pieces * len(piece)
        assert tracemalloc.get_traced_memory()[1] < 1.5 * num_bytes
    finally:
        tracemalloc.stop()
    await fetcher.close()


async def test_waiting_for_a_place_costs_no_time_of_the_fetch(network: Network):
    async def late(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.2)
        await answer(b"x")(writer)

    network.outside.answers["/"] = late
    fetcher = network.fetcher(replace(SETTINGS, fetch_timeout_s=0.7, max_fetches=1))
    assert await fetch_all(fetcher, [network.url()] * 4) == [b"x"] * 4


async def test_a_cancelled_fetch_leaves_no_connection_place_or_task(network: Network):
    """A client that goes away takes its fetches with it."""
    network.outside.answers["/"] = slow_drip
    tasks_before = asyncio.all_tasks()
    fetcher = network.fetcher(replace(SETTINGS, max_fetches=1))
    for _ in range(3):
        fetching = asyncio.ensure_future(fetch(fetcher, network.url()))
        await network.outside.until_asked(1)
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
        await network.outside.all_closed.wait()
        network.outside.paths.clear()
    assert fetcher.statistics().num_running == 0
    await fetcher.close()
    assert asyncio.all_tasks() - tasks_before == set()
    gc.collect()
    assert len(fetcher._others.places._of_hosts) == 0


async def test_statistics_tell_what_became_of_fetches(network: Network):
    fetcher = network.fetcher()
    await fetch(fetcher, network.url())
    for url in (network.url(host="inside.test"), network.url(host="unknown.test"), "no url", "no url"):
        with pytest.raises(FetchError):
            await fetch(fetcher, url)
    statistics = fetcher.statistics()
    assert (statistics.num_running, statistics.num_fetched, statistics.num_bytes) == (0, 1, 8)
    assert statistics.num_failed == {
        FetchFailure.BLOCKED: 1, FetchFailure.UNREACHABLE: 1, FetchFailure.INVALID_URL: 2,
    }  # fmt: skip
    assert repr(fetcher) == "<Fetcher public: 0 running>"
    await fetcher.close()


async def test_the_log_names_the_reason_and_nothing_of_the_address(
    network: Network, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", logger="app.fetch")
    fetcher = network.fetcher()
    for url in (
        network.url("/?sig=s3cret", host="inside.test"),
        network.url(host="sk-s3cret.invalid"),
        network.url(host="10.1.2.3"),
        "http://me:s3cret@images.test/",
    ):
        with pytest.raises(FetchError):
            await fetch(fetcher, url)
    await fetcher.close()
    assert caplog.messages == [
        "an image was not fetched: blocked",
        "an image was not fetched: unreachable",
        "an image was not fetched: blocked",
        "an image was not fetched: invalid_url",
    ]


# The system's resolver -------------------------------------------------------------------------------------


async def test_the_system_resolver_finds_every_address():
    addresses = await SystemResolver(1)("localhost")
    assert INSIDE in addresses
    assert not any(map(is_public_address, addresses))
    with pytest.raises(OSError, match=r".+"):
        await SystemResolver(1)("no-such-name.invalid")


async def test_a_lookup_that_nobody_waits_for_keeps_its_place_until_it_ends(monkeypatch):
    """Threads cannot be stopped: were its place given away, impatient clients could start any number."""
    going_on, running = threading.Event(), []

    def hang(host: str) -> list[Address]:
        running.append(host)
        going_on.wait(10)
        return [OUTSIDE]

    monkeypatch.setattr("app.fetch._look_up", hang)
    resolve = SystemResolver(2)
    for _ in range(5):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(resolve("slow.test"), timeout=0.02)
    going_on.set()
    assert await resolve("next.test") == [OUTSIDE]
    assert running == ["slow.test", "slow.test", "next.test"]


# Settings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (
            ["--media-hosts", "http://cdn.test"],
            'laneway: Invalid value "http://cdn.test" for --media-hosts. "http://cdn.test" is no host; '
            "write images.example.org, images.example.org:8443, or .example.org for all hosts below it.\n",
        ),
        (
            ["--media-urls", "allowlist"],
            "laneway: media_urls is allowlist, but media_hosts names no host.\n",
        ),
        (
            ["--media-hosts", "cdn.test"],
            "laneway: media_hosts counts only where media_urls is allowlist, not public.\n",
        ),
    ],
)
def test_media_settings_that_would_not_do_what_they_say_are_refused(
    argv: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
):
    """A list that is ignored, or one that allows nothing, would be noticed late."""
    assert run(["check", *argv]) == 2
    assert capsys.readouterr().err == complaint


def test_an_allowlist_is_read_from_the_environment(monkeypatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("LANEWAY_MEDIA_URLS", "allowlist")
    monkeypatch.setenv("LANEWAY_MEDIA_HOSTS", "cdn.test:8443 .example.org")
    assert run(["check"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert 'media_urls "allowlist" LANEWAY_MEDIA_URLS' in lines
    assert 'media_hosts ["cdn.test:8443", ".example.org"] LANEWAY_MEDIA_HOSTS' in lines


# uvloop ----------------------------------------------------------------------------------------------------


def test_all_of_it_holds_on_the_event_loop_of_production():
    @asynccontextmanager
    async def prepared():
        async with small_network() as network:
            network.outside.answers |= {
                "/": answer(b"an image"),
                "/in": redirect(network.url(host=str(INSIDE))),
                "/drip": slow_drip,
                "/endless": endless,
            }
            network.names["mixed.test"] = [OUTSIDE, INSIDE]
            network.names["two.test"] = [ip_address("127.0.0.3"), OUTSIDE]
            yield network

    async def main() -> None:
        async with prepared() as network:
            limits = replace(SETTINGS, fetch_timeout_s=1, max_image_bytes=100_000)

            def is_allowed(address: Address) -> bool:
                return address in (OUTSIDE, ip_address("127.0.0.3"))

            def fetcher() -> Fetcher:
                return network.fetcher(limits, is_allowed_address=is_allowed)

            assert (
                await fetch_all(fetcher(), [network.url(), network.url(host="two.test")]) == [b"an image"] * 2
            )
            for url, reason in [
                (network.url("/in"), FetchFailure.BLOCKED),
                (network.url(host="mixed.test"), FetchFailure.BLOCKED),
                (network.url(host="127.0.0.1"), FetchFailure.BLOCKED),
                (network.url(host="127.0.0.3"), FetchFailure.UNREACHABLE),
                (network.url("/drip"), FetchFailure.TIMEOUT),
                (network.url("/endless"), FetchFailure.TOO_LARGE),
            ]:
                assert await failure_of(fetcher(), url) is reason, url
            addresses = await SystemResolver(1)("localhost")
            assert INSIDE in addresses
            await network.outside.all_closed.wait()
            assert network.inside.num_connections == 0

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
