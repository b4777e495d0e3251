"""The one way out: fetching the images that a stranger's URL leads to.

Laws. What is checked is what is dialled: a URL is parsed once, by yarl, because aiohttp dials what yarl's
object says; a name is resolved once for a connection, every answer is checked, and no socket is opened for an
address that was not. A redirect is one more URL from a stranger. What a URL leads to is read for as long and
as far as the settings allow, and no further; what kind of thing it is, the image decoder decides. Queries
have places and lookups of their own, so that none of them waits behind documents.

Nothing here is told to a client: ``FetchError`` is for the log and for the counters. Inner addresses are
refused without a packet to them, so that the time of an answer says nothing about them. It does say whether a
name took long to resolve, and what a public address does with a connection.
"""

import asyncio
import io
import logging
import re
import socket
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from ipaddress import IPv4Address, ip_address
from typing import cast

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from typing_extensions import override
from yarl import URL

from app.addresses import Address, is_public_address
from app.errors import quoted
from app.places import Places
from app.settings import MediaSettings, MediaUrls
from app.threads import in_daemon_thread

logger = logging.getLogger(__name__)

MAX_REDIRECTS = 5
MAX_URL_CHARS = 8_192
"""Signed URLs of object stores have up to about 2,000."""
WEB_PORTS = frozenset({80, 443})
"""Other ports belong to services that never expected a stranger's request, on public addresses as well."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEADERS = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "laneway"}


class FetchFailure(StrEnum):
    """Why nothing was fetched: a closed set, for counters."""

    INVALID_URL = "invalid_url"
    BLOCKED = "blocked"
    """The site or its address is not one that images are fetched from."""
    UNREACHABLE = "unreachable"
    """No such name, no connection, no valid certificate, or no HTTP to the end."""
    TIMEOUT = "timeout"
    STATUS = "status"
    """Another status than 200."""
    REDIRECT = "redirect"
    """Too many redirects, or one to what is no URL."""
    ENCODING = "encoding"
    """The body is compressed, although that was declined: unpacking it would be unbounded work."""
    TOO_LARGE = "too_large"


class FetchError(Exception):
    """Nothing was fetched. The text is for the log: a client that read it could explore the network."""

    def __init__(self, reason: FetchFailure, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


# URLs ------------------------------------------------------------------------------------------------------

_LABEL = r"[a-z0-9_-]{1,63}"
_AUTHORITY = re.compile(
    rf"({_LABEL}(\.{_LABEL})*\.?|\[[0-9a-f:.]+\])(:[0-9]{{1,5}})?", re.IGNORECASE | re.ASCII
)
# A host that ends in a number is an IPv4 address, by the URL standard's rule (url.spec.whatwg.org, "ends in a
# number"): so is 0x7f.1 for the system's resolver.
_ENDS_IN_NUMBER = re.compile(r"(.*\.)?([0-9]+|0x[0-9a-f]*)\.?", re.IGNORECASE | re.ASCII)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE | re.ASCII)
_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]+")


def read_url(text: str) -> URL:
    """Parse a URL, and refuse every spelling that two parsers could read differently.

    Only http and https; no user name; a host of ASCII letters (``xn--`` for all others), or an address in its
    canonical spelling. Characters beyond ASCII in the path are percent-encoded; nothing else is rewritten,
    since many URLs are signed.

    Raises:
        FetchError: The URL is none, or none of those.
    """
    try:
        # ValueError comes from either call: yarl (1.25) takes the authority apart when it is first asked for.
        return _checked(_parsed(text))
    except ValueError:
        raise _invalid_url() from None


def _redirect_target(url: URL, location: str) -> URL:
    """The URL that an answer of ``url`` leads on to, under the same rules.

    Raises:
        FetchError: It is no such URL.
    """
    try:
        if _SCHEME.match(location):
            return read_url(location)
        if location.startswith("//"):
            return read_url(f"{url.scheme}:{location}")
        if not location:
            raise _invalid_url()
        # Only a path is left: the host that it belongs to was checked.
        return read_url(str(url.join(_parsed(location))))
    except (ValueError, FetchError):
        raise _failure(url, FetchFailure.REDIRECT, "redirects to what is no URL of an image") from None


def _parsed(text: str) -> URL:
    """The URL with all its escapes as they are, and one for whatever is not ASCII."""
    # No control characters, no white space, no lone surrogates: nothing that some parser skips.
    if len(text) > MAX_URL_CHARS or not text.isprintable() or " " in text or "\\" in text:
        raise _invalid_url()
    return URL(_BEYOND_ASCII.sub(_percent_encoded, text), encoded=True)


def _percent_encoded(match: re.Match[str]) -> str:
    # 8,000 such characters take 0.03 ms; urllib's quote() takes 1.6 ms.
    return "%" + match[0].encode().hex("%").upper()


def _checked(url: URL) -> URL:
    host = (url.raw_host or "").lower()
    if (
        url.scheme not in ("http", "https")
        or not _AUTHORITY.fullmatch(url.raw_authority)
        or len(host.rstrip(".")) > 253
        or (_is_numeric(host) and _literal_address(host) is None)
    ):
        raise _invalid_url()
    return url.with_host(host)


def _is_numeric(host: str) -> bool:
    return ":" in host or _ENDS_IN_NUMBER.fullmatch(host) is not None


def _literal_address(host: str) -> Address | None:
    """The address that the host is, in its canonical spelling."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def _invalid_url() -> FetchError:
    # Without the URL: what is no URL may still hold a password.
    return FetchError(FetchFailure.INVALID_URL, "it is no URL of an image")


def _failure(url: URL, reason: FetchFailure, what: str) -> FetchError:
    # The host alone: what follows it in a URL may be a signature, and a secret.
    return FetchError(reason, f"{quoted(host_of(url))} {what}")


def is_allowed_site(url: URL, settings: MediaSettings, *, web_ports: Collection[int] = WEB_PORTS) -> bool:
    """Whether images are fetched from the URL's host and port, as far as these alone can tell."""
    host, port = host_of(url), cast("int", url.port)
    match settings.media_urls:
        case MediaUrls.PUBLIC:
            return port in web_ports
        case MediaUrls.ALLOWLIST:
            return any(
                _covers(entry.lower(), host, port, web_ports=web_ports) for entry in settings.media_hosts
            )
        case MediaUrls.OFF:
            return False


def _covers(entry: str, host: str, port: int, *, web_ports: Collection[int]) -> bool:
    name, _, own_port = entry.partition(":")
    is_host = host.endswith(name) if name.startswith(".") else host == name
    return is_host and (port == int(own_port) if own_port else port in web_ports)


def host_of(url: URL) -> str:
    """The host under the one name that it is compared and counted by."""
    return cast("str", url.raw_host).rstrip(".")


# Names -----------------------------------------------------------------------------------------------------

Resolve = Callable[[str], Awaitable[Sequence[Address]]]
"""Finds all the addresses of a host name; raises OSError where there are none."""


class SystemResolver:
    """Looks names up as every program of the machine does, in threads that nobody has to wait for.

    A lookup cannot be interrupted and may hang for half a minute (resolv.conf(5)). So it holds its place
    until it ends, whatever became of who asked: the number of threads stays bounded. The event loop's own
    ``getaddrinfo`` would hang in threads that others need.
    """

    def __init__(self, max_lookups: int) -> None:
        self._places = asyncio.Semaphore(max_lookups)
        self._lookups: set[asyncio.Task[list[Address]]] = set()

    async def __call__(self, host: str) -> Sequence[Address]:
        """Find all addresses of a host.

        Raises:
            OSError: There are none, or nobody can tell.
        """
        await self._places.acquire()
        lookup = asyncio.create_task(in_daemon_thread(partial(_look_up, host), name="resolve"))
        self._lookups.add(lookup)
        lookup.add_done_callback(self._end)
        return await asyncio.shield(lookup)

    def _end(self, lookup: asyncio.Task[list[Address]]) -> None:
        self._lookups.discard(lookup)
        self._places.release()


def _look_up(host: str) -> list[Address]:
    # AI_ADDRCONFIG: no IPv6 addresses where the machine has no IPv6.
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return [ip_address(sockaddr[0]) for *_, sockaddr in found]


class _CheckedResolver(AbstractResolver):
    """Hands aiohttp the addresses of a name if every one of them is allowed."""

    def __init__(self, resolve: Resolve, is_allowed_address: Callable[[Address], bool]) -> None:
        self._resolve = resolve
        self._is_allowed_address = is_allowed_address

    @override
    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        addresses = await self._resolve(host)
        for address in addresses:
            # One of them is enough: a name that leads inside as well as outside was made to be dialled twice.
            if not self._is_allowed_address(address):
                raise FetchError(FetchFailure.BLOCKED, f"{quoted(host)} resolves to {address}")
        if not addresses:
            raise OSError("the name has no address")
        return [_resolved(host, port, address) for address in addresses]

    @override
    async def close(self) -> None:
        pass


def _resolved(host: str, port: int, address: Address) -> ResolveResult:
    return ResolveResult(
        hostname=host,
        host=str(address),
        port=port,
        family=socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6,
        proto=socket.IPPROTO_TCP,
        flags=socket.AI_NUMERICHOST,
    )


# Fetching --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchStatistics:
    """What was fetched so far, read at any time."""

    num_running: int
    """Files that are on their way, or are being used."""
    num_fetched: int
    num_bytes: int
    """Of what was fetched."""
    num_failed: Mapping[FetchFailure, int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fetched:
    """What a URL led to."""

    file: bytes
    fetch_s: float
    """What fetching took, redirects included; without the waiting for places."""


OnBytes = Callable[[int], None]
"""Told how many bytes have just arrived; what it raises ends the fetch."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Gate:
    """What queries share among themselves, and all other requests among themselves."""

    places: Places
    resolver: AbstractResolver
    session: aiohttp.ClientSession | None = None


_AddressInfo = tuple[int, int, int, str, tuple[object, ...]]
"""What ``socket.getaddrinfo`` gives: family, type, protocol, canonical name, address."""


class Fetcher:
    """Fetches images for everybody, one connection each, and owns what bounds them all together.

    Connections are not kept for the next fetch: an idle one costs a file descriptor for as long as a stranger
    likes, and strangers choose how many hosts there are.
    """

    def __init__(
        self,
        settings: MediaSettings,
        *,
        resolve: Resolve | None = None,
        is_allowed_address: Callable[[Address], bool] = is_public_address,
        web_ports: Collection[int] = WEB_PORTS,
    ) -> None:
        """Prepare; nothing is opened before the first fetch.

        Args:
            settings: What may be fetched from where, and how much of it.
            resolve: How names are looked up. Default: as the system does.
            is_allowed_address: What may be dialled. For tests, whose servers have inner addresses.
            web_ports: Allowed ports of hosts that the settings list without one. For tests.
        """
        self._settings = settings
        self._is_allowed_address = is_allowed_address
        self._web_ports = web_ports
        self._queries, self._others = (
            _Gate(
                places=Places(
                    max_taken=settings.max_fetches, max_taken_per_host=settings.max_fetches_per_host
                ),
                resolver=_CheckedResolver(
                    resolve or SystemResolver(settings.max_fetches), is_allowed_address
                ),
            )
            for _ in range(2)
        )
        self._num_fetched = 0
        self._num_bytes = 0
        self._num_failed: Counter[FetchFailure] = Counter()

    def __repr__(self) -> str:
        """How busy it is."""
        return f"<Fetcher {self._settings.media_urls}: {self._num_running} running>"

    @property
    def _num_running(self) -> int:
        return self._queries.places.num_taken + self._others.places.num_taken

    @asynccontextmanager
    async def fetched(
        self, url: str, *, is_query: bool, on_bytes: OnBytes | None = None
    ) -> AsyncGenerator[Fetched]:
        """What the URL leads to. The fetch keeps its place until the block ends.

        So there are never more files than places, however slowly they are used. The timeout counts from the
        moment that there is a place, over all redirects.

        Args:
            url: As a client wrote it.
            is_query: It shares places and lookups with queries alone.
            on_bytes: Told of every piece that arrives.

        Raises:
            FetchError: There is no such thing, or it may not be fetched.
        """
        gate = self._queries if is_query else self._others
        async with AsyncExitStack() as place:
            try:
                fetched = await self._follow(read_url(url), gate, place, on_bytes)
            except FetchError as error:
                self._num_failed[error.reason] += 1
                # The reason alone: the host is the client's own words, and may hold a key.
                logger.info("an image was not fetched: %s", error.reason)
                raise
            self._num_fetched += 1
            self._num_bytes += len(fetched.file)
            yield fetched

    def statistics(self) -> FetchStatistics:
        """What was fetched so far."""
        return FetchStatistics(
            num_running=self._num_running,
            num_fetched=self._num_fetched,
            num_bytes=self._num_bytes,
            num_failed=dict(self._num_failed),
        )

    async def close(self) -> None:
        """Close every connection; fetches that still run fail."""
        for gate in (self._queries, self._others):
            if gate.session is not None:
                await gate.session.close()

    async def _follow(
        self, url: URL, gate: _Gate, place: AsyncExitStack, on_bytes: OnBytes | None
    ) -> Fetched:
        """What stands at the end of the redirects that begin at ``url``; ``place`` is left holding it."""
        fetch_s = 0.0
        now_s = asyncio.get_running_loop().time
        for _ in range(1 + MAX_REDIRECTS):
            async with AsyncExitStack() as hop:
                await hop.enter_async_context(gate.places.take(host_of(url)))
                began_s = now_s()
                left_s = self._settings.fetch_timeout_s - fetch_s
                answer = await self._ask(url, gate, on_bytes, timeout_s=left_s)
                fetch_s += now_s() - began_s
                if isinstance(answer, bytes):
                    place.push_async_exit(hop.pop_all())
                    return Fetched(file=answer, fetch_s=fetch_s)
            url = answer
        raise _failure(url, FetchFailure.REDIRECT, f"comes after {MAX_REDIRECTS} other redirects")

    async def _ask(self, url: URL, gate: _Gate, on_bytes: OnBytes | None, *, timeout_s: float) -> bytes | URL:
        """One request: the body, or the URL that it redirects to."""
        if not is_allowed_site(url, self._settings, web_ports=self._web_ports):
            raise _failure(url, FetchFailure.BLOCKED, f"and port {url.port} are no allowed site")
        # aiohttp asks its resolver about names only.
        literal = _literal_address(host_of(url))
        if literal is not None and not self._is_allowed_address(literal):
            raise _failure(url, FetchFailure.BLOCKED, "is no allowed address")
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._opened_session(gate).get(url, allow_redirects=False) as response,
            ):
                return await self._read(url, response, on_bytes)
        except TimeoutError:
            what = f"had not sent it after {self._settings.fetch_timeout_s:g} s"
            raise _failure(url, FetchFailure.TIMEOUT, what) from None
        # RuntimeError is what uvloop may raise in OSError's place (aiohappyeyeballs 2.7, start_connection).
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            what = f"could not be reached or read ({type(error).__name__})"
            raise _failure(url, FetchFailure.UNREACHABLE, what) from error

    async def _read(
        self, url: URL, response: aiohttp.ClientResponse, on_bytes: OnBytes | None
    ) -> bytes | URL:
        if response.status in _REDIRECTS:
            return _redirect_target(url, response.headers.get("Location", ""))
        if response.status != 200:
            raise _failure(url, FetchFailure.STATUS, f"answers {response.status}")
        encoding = response.headers.get("Content-Encoding", "")
        if encoding.lower() not in ("", "identity"):
            raise _failure(url, FetchFailure.ENCODING, f"sends it encoded as {quoted(encoding)}")
        self._limit(response.content_length or 0, url)
        # No list of chunks: a server that sends single bytes would fill the memory with their objects. And no
        # bytearray: a BytesIO hands out what it holds (CPython), where bytes() would copy it.
        body = io.BytesIO()
        async for chunk in response.content.iter_any():
            body.write(chunk)
            self._limit(body.tell(), url)
            if on_bytes is not None:
                on_bytes(len(chunk))
        return body.getvalue()

    def _limit(self, num_bytes: int, url: URL) -> None:
        if num_bytes > self._settings.max_image_bytes:
            raise _failure(url, FetchFailure.TOO_LARGE, f"sends {num_bytes} bytes or more")

    def _opened_session(self, gate: _Gate) -> aiohttp.ClientSession:
        # Here and not in __init__, where there is no event loop yet.
        if gate.session is None:
            gate.session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    resolver=gate.resolver,
                    use_dns_cache=False,
                    socket_factory=self._open_socket,
                    force_close=True,
                    limit=0,  # the places bound them
                ),
                headers=_HEADERS,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,  # no proxy: it would dial for us, whatever we checked
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # _ask has the one clock
            )
        return gate.session

    def _open_socket(self, info: _AddressInfo) -> socket.socket:
        """The last door: a socket for the address that is about to be dialled, whatever led to it."""
        family, kind, protocol, _, sockaddr = info
        host = str(sockaddr[0])
        if not self._is_allowed_address(ip_address(host)):
            raise PermissionError(f"{host} may not be dialled")
        return socket.socket(family, kind, protocol)
