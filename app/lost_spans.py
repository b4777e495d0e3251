"""What is said when spans do not reach their collector: a line at the beginning, and one at the end.

The exporter says it with several lines a batch, and there is a batch every five seconds. Here its results are
counted, and what it writes meanwhile is kept from the log (opentelemetry-exporter-otlp-proto-http 1.45).

Law: a beginning is told once a minute at most, however often batches fail and succeed in turn, and all that
were lost are counted at the end. Of the collector's address no line holds user, password or query.
"""

import logging
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

import requests
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from typing_extensions import override

logger = logging.getLogger(__name__)

QUIET_S = 60.0
"""Between two lines that say the same."""
EXPORTER_LOGGER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
"""Writes of each attempt that failed, and of each batch."""
PROCESSOR_LOGGER = "opentelemetry.sdk._shared_internal"
"""Writes when its queue of spans is full, in the thread of whoever ends one: three times a minute."""

_complaints_var: ContextVar[list[str] | None] = ContextVar("complaints", default=None)
"""What the exporter has written of the batch that is sent in this thread; ``None``: none is."""


class WatchedSession(requests.Session):
    """Remembers how the latest request ended, which an exporter's result does not tell."""

    ending: str | None = None
    """Such as ``503 Service Unavailable`` or ``ConnectionRefusedError: [Errno 111] Connection refused``."""

    @override
    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """Send one request."""
        try:
            response = super().send(request, **options)
        except Exception as error:
            self.ending = _words_of(_first_cause(error))
            raise
        self.ending = f"{response.status_code} {response.reason}"
        return response


class LossReporter(SpanExporter):
    """Sends spans by another exporter, and counts those that it cannot send."""

    def __init__(
        self,
        exporter: SpanExporter,
        session: WatchedSession,
        *,
        url: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Stand before an exporter.

        Args:
            exporter: Sends them.
            session: What it sends them by.
            url: Where it sends them.
            clock: Monotonic seconds.
        """
        self._exporter = exporter
        self._session = session
        self._url = without_secrets(url)
        self._clock = clock
        self._num_batches = 0
        """Lost, and not told yet; so are their spans."""
        self._num_spans = 0
        self._is_told = False
        """The log says that spans are being lost."""
        self._next_line_s = clock()
        logging.getLogger(EXPORTER_LOGGER).addFilter(_keep_complaint)
        logging.getLogger(PROCESSOR_LOGGER).addFilter(_one_a_minute)

    def __repr__(self) -> str:
        return f"<LossReporter {self._url}: {self._num_batches} batches lost>"

    @override
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch; returns whether that went well, and never raises."""
        self._session.ending = None
        complaints: list[str] = []
        token = _complaints_var.set(complaints)
        try:
            result = self._exporter.export(spans)
        except Exception as error:
            complaints.append(f"{type(error).__name__}: {error}")
            result = SpanExportResult.FAILURE
        finally:
            _complaints_var.reset(token)
        if result is SpanExportResult.SUCCESS:
            self._on_sent()
        else:
            self._on_lost(len(spans), self._session.ending or " ".join(complaints[-1:]))
        return result

    def _on_lost(self, num_spans: int, reason: str) -> None:
        self._num_batches += 1
        self._num_spans += num_spans
        if not self._is_told and self._clock() >= self._next_line_s:
            self._is_told = True
            self._next_line_s = self._clock() + QUIET_S
            logger.warning(
                "traces do not reach %s (%s): their spans are lost until another line says so",
                self._url,
                reason,
            )

    def _on_sent(self) -> None:
        if self._num_batches and (self._is_told or self._clock() >= self._next_line_s):
            logger.warning(
                "traces reach %s again; %d batches with %d spans were lost",
                self._url,
                self._num_batches,
                self._num_spans,
            )
            self._is_told = False
            self._num_batches = self._num_spans = 0

    @override
    def shutdown(self) -> None:
        """Give up what is being sent, and send nothing more."""
        self._exporter.shutdown()

    @override
    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Whether everything was sent that was handed in; ``export`` keeps nothing."""
        return self._exporter.force_flush(timeout_millis)


def without_secrets(url: str) -> str:
    """The URL without what may be secret in it."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _first_cause(error: BaseException) -> BaseException:
    """What the system said, below what ``requests`` and ``urllib3`` made of it."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def _words_of(error: BaseException) -> str:
    name = type(error).__name__
    # The system's words name no address; those of ``requests`` may name all of it.
    is_systems = isinstance(error, OSError) and not isinstance(error, requests.RequestException)
    return f"{name}: {error}" if is_systems else name


def _keep_complaint(record: logging.LogRecord) -> bool:
    complaints = _complaints_var.get()
    if complaints is None:
        return True
    complaints.append(record.getMessage())
    return False


class OneAMinute(logging.Filter):
    """Lets a line through, and those that follow within a minute not."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._next_s = clock()

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written."""
        now_s = self._clock()
        if now_s < self._next_s:
            return False
        self._next_s = now_s + QUIET_S
        return True


# One for all reporters: a logger takes the same filter only once.
_one_a_minute = OneAMinute()
