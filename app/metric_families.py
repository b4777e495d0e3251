"""Every metric there is: its name, its type, its labels, and what it says.

Laws: base units and ``_total`` names (https://prometheus.io/docs/practices/naming/); labels come from closed
sets, which ``LABELS`` and a family's ``values`` name, and never from what a client wrote. What is not named
here is not exported, and ``docs/metrics.md`` is made of what is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

LATENCY_BUCKETS_S = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0,
)  # fmt: skip
SIZE_BUCKETS = tuple(float(2**power) for power in range(12))
"""1 to 2048: inputs of a request, entries of a pass."""
TOKEN_BUCKETS = tuple(float(2**power) for power in range(3, 16))
"""8 to 32768: tokens of an input or of a pass."""
RATIO_BUCKETS = (0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.5, 2.0, 4.0)
PADDING_BUCKETS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)


class Kind(StrEnum):
    """Prometheus' types, as far as they are used."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A metric: all series of one name."""

    kind: Kind
    name: str
    """As it is exported; the series of a histogram have ``_bucket``, ``_sum`` or ``_count`` behind it."""
    text: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    """Upper bounds, of a histogram."""
    values: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)
    """Of a family with the label ``outcome`` or ``reason``: all that it may hold, and what that means."""


@dataclass(slots=True)
class Section:
    """Families that belong together, in order."""

    title: str
    families: list[Family] = field(default_factory=list[Family])

    def counter(self, name: str, text: str, *labels: str, values: Mapping[str, str] | None = None) -> Family:
        """Add what only grows."""
        return self._add(Family(kind=Kind.COUNTER, name=name, text=text, labels=labels, values=values or {}))

    def gauge(self, name: str, text: str, *labels: str) -> Family:
        """Add what goes up and down."""
        return self._add(Family(kind=Kind.GAUGE, name=name, text=text, labels=labels))

    def histogram(self, name: str, text: str, *labels: str, buckets: tuple[float, ...]) -> Family:
        """Add what is distributed."""
        return self._add(Family(kind=Kind.HISTOGRAM, name=name, text=text, labels=labels, buckets=buckets))

    def _add(self, family: Family) -> Family:
        self.families.append(family)
        return family


# Requests --------------------------------------------------------------------------------------------------

_requests = Section("Requests")

HTTP_REQUESTS = _requests.counter(
    "laneway_http_requests_total",
    "Requests answered. Route is the path template, 'unmatched' where none fits.",
    "route", "method", "status",
)  # fmt: skip
HTTP_REQUEST_DURATION = _requests.histogram(
    "laneway_http_request_duration_seconds",
    "Time from a request's head to the last byte of its answer.",
    "route", "status_class",
    buckets=LATENCY_BUCKETS_S,
)  # fmt: skip
REQUEST_DURATION = _requests.histogram(
    "laneway_request_duration_seconds",
    "Time from head to last byte of the answer, of requests whose inputs came to a lane; the setting "
    "query_slo_ms is one of its bounds.",
    "model", "lane", "status_class",
    buckets=LATENCY_BUCKETS_S,
)  # fmt: skip
STAGE_DURATION = _requests.histogram(
    "laneway_stage_duration_seconds",
    "Where a request's time went. Fetch: loading its images; decode: reading their pixels; prepare: making "
    "tokens; queue: the longest wait of its inputs for a pass; worker: how long that pass was with its "
    "worker beyond its device time, behind another or left for a query; inference: device time of the "
    "passes they ran in, added up where several workers compute at once; encode: from its vectors to the "
    "head of its answer.",
    "model", "lane", "stage",
    buckets=LATENCY_BUCKETS_S,
)  # fmt: skip
REQUESTS_IN_FLIGHT = _requests.gauge(
    "laneway_requests_in_flight", "Embedding requests between their decoded body and their answer."
)
REQUEST_FAILURES = _requests.counter(
    "laneway_request_failures_total",
    "Requests that got an error in place of their answer, or whose client left, by what went wrong.",
    "reason",
    values={
        "validation": "The request is wrong: 400, 415, or no HTTP.",
        "too_long": "An input, the request or its head is larger than it may be: 400, 413, 431.",
        "not_found": "No such path, or not with this method: 404, 405.",
        "model_not_found": "The model it names is not served: 404.",
        "timeout": "Its deadline passed or could not be met, or it did not arrive in time (408); or an image "
        "took too long to decode (400).",
        "cancelled": "Its client left: 499.",
        "overloaded": "Its lane was full, or too many waited for their images (429); or there was no memory "
        "for its body (503).",
        "unavailable": "The model loads, is gone or is stopping, or nothing decodes images: 503.",
        "nonfinite": "A vector was not finite: 500.",
        "internal": "The server failed; its log has the cause: 500.",
    },
)
DEADLINE_MISSES = _requests.counter(
    "laneway_deadline_misses_total",
    "Requests answered 408 because their deadline passed, or was earlier than they could be done.",
    "model", "lane",
)  # fmt: skip
REQUEST_RETRIES = _requests.counter(
    "laneway_request_retries_total", "Requests that an OpenAI SDK sent again, by its own count."
)
REQUEST_ITEMS = _requests.histogram(
    "laneway_request_items", "Inputs of a request.", "model", buckets=SIZE_BUCKETS
)
ITEMS = _requests.counter("laneway_items_total", "Inputs embedded.", "model", "modality", "lane")
TOKENS = _requests.counter(
    "laneway_tokens_total",
    "Tokens computed, special tokens and prompts included.",
    "model", "modality", "lane",
)  # fmt: skip
TRUNCATED_INPUTS = _requests.counter(
    "laneway_truncated_inputs_total", "Inputs that were cut to what the model reads.", "model"
)
TOKEN_ARRAYS = _requests.counter(
    "laneway_token_array_requests_total",
    "Requests with token arrays, by how they were read or why they were not.",
    "outcome",
    values={
        "cl100k_base": "Decoded to text, as ids of OpenAI's embedding models.",
        "model": "Read as ids of the model's own vocabulary.",
        "rejected": "This server takes none (`token_ids`).",
        "prompted": "A prompt was asked for, and ids are taken as they are.",
        "image": "The ids stand for an image's data URI.",
        "empty": "The ids stand for an empty text.",
        "invalid_id": "An id is in no vocabulary.",
        "vocabulary_missing": "The vocabulary of cl100k_base is not there.",
    },
)
IGNORED_PARAMS = _requests.counter(
    "laneway_ignored_params_total", "Top-level request parameters that are unknown here and were ignored."
)

# Lanes -----------------------------------------------------------------------------------------------------

_lanes = Section("Lanes")

QUEUE_ITEMS = _lanes.gauge("laneway_queue_items", "Inputs waiting.", "model", "lane")
QUEUE_LIMIT_ITEMS = _lanes.gauge("laneway_queue_limit_items", "Inputs that may wait.", "model", "lane")
QUEUE_TOKENS = _lanes.gauge("laneway_queue_tokens", "Tokens of the inputs waiting.", "model", "lane")
QUEUE_OLDEST_AGE = _lanes.gauge(
    "laneway_queue_oldest_age_seconds", "How long the oldest waiting input has waited.", "model", "lane"
)
QUEUE_DEVICE = _lanes.gauge(
    "laneway_queue_device_seconds", "How long all devices together need for what waits.", "model", "lane"
)
QUEUE_LIMIT_DEVICE = _lanes.gauge(
    "laneway_queue_limit_seconds",
    "How long they may need for what waits; more is refused.",
    "model", "lane",
)  # fmt: skip
QUEUE_PROMISED = _lanes.gauge(
    "laneway_queue_promised_items",
    "Inputs that were refused and told when to come: room is kept for them until 1.5 s after it.",
    "model", "lane",
)  # fmt: skip
QUEUE_OUTCOMES = _lanes.counter(
    "laneway_queue_outcomes_total",
    "What became of inputs that came to the queue.",
    "model", "lane", "outcome",
    values={
        "done": "It has its vector.",
        "failed": "The model failed on it, or every try did.",
        "cancelled": "Its client left first.",
        "expired": "It was let in, and its deadline passed first.",
        "refused": "It was not let in: the lane was full (429), could never hold its request (400), or would "
        "not have come to it before its deadline (408), even where nothing else waits.",
    },
)  # fmt: skip
RUNNING_ITEMS = _lanes.gauge("laneway_running_items", "Inputs in passes that run now.", "model", "lane")
LANE_DEVICE = _lanes.counter(
    "laneway_lane_device_seconds_total",
    "Device time spent on the lane, by its part of the work of each pass.",
    "model", "lane",
)  # fmt: skip
QUERY_SLO = _lanes.gauge(
    "laneway_query_slo_seconds", "When queries are to be answered: the setting query_slo_ms.", "model"
)
URGENT_PASSES = _lanes.counter(
    "laneway_urgent_passes_total", "Passes of queries that overtook one that was waiting.", "model"
)
INTERRUPTIONS = _lanes.counter(
    "laneway_interruptions_total", "Passes of queries that might run between two layers of another.", "model"
)
INTERRUPTION_SECONDS = _lanes.counter(
    "laneway_interruption_seconds_total",
    "Device time that passes of queries cost beyond their work while others wait, broken in or not.",
    "model",
)

# Passes ----------------------------------------------------------------------------------------------------

_passes = Section("Passes")

PASS_ITEMS = _passes.histogram("laneway_pass_items", "Inputs in a pass.", "model", buckets=SIZE_BUCKETS)
PASS_TOKENS = _passes.histogram("laneway_pass_tokens", "Tokens in a pass.", "model", buckets=TOKEN_BUCKETS)
PASS_DEVICE = _passes.histogram(
    "laneway_pass_device_seconds", "Device time of a pass.", "model", buckets=LATENCY_BUCKETS_S
)
PASS_PREDICTION_RATIO = _passes.histogram(
    "laneway_pass_prediction_ratio",
    "Device time of a pass over what was predicted for it.",
    "model", "worker",
    buckets=RATIO_BUCKETS,
)  # fmt: skip
PASS_PADDING_RATIO = _passes.histogram(
    "laneway_pass_padding_ratio",
    "Part of the tokens that a pass computed that was padding; 0 where passes are packed.",
    "model",
    buckets=PADDING_BUCKETS,
)
PASS_FAILURES = _passes.counter("laneway_pass_failures_total", "Passes that came back without rows.", "model")
COST_FIXED = _passes.gauge(
    "laneway_cost_fixed_seconds", "Cost model: a pass before anything is in it.", "model"
)
COST_FLOOR = _passes.gauge(
    "laneway_cost_floor_seconds", "Cost model: a pass at the very least; 0 where there is no floor.", "model"
)
COST_TOKEN = _passes.gauge("laneway_cost_token_seconds", "Cost model: a token.", "model")
COST_SQUARED_TOKEN = _passes.gauge(
    "laneway_cost_squared_token_seconds", "Cost model: a unit of an input's squared length.", "model"
)
COST_IMAGE_TOKEN = _passes.gauge(
    "laneway_cost_image_token_seconds",
    "Cost model: a token that stands for an image, beyond any other.",
    "model",
)
COST_RESIDUAL = _passes.gauge(
    "laneway_cost_residual_ratio",
    "Cost model: how much longer than predicted recent passes took, as a part of the prediction.",
    "model", "percentile",
)  # fmt: skip

# Model and workers -----------------------------------------------------------------------------------------

_workers = Section("Model and workers")

MODEL_READY = _workers.gauge("laneway_model_ready", "1 while the model answers requests.", "model")
MODEL_INFO = _workers.gauge(
    "laneway_model_info",
    "What is served.",
    "model", "source", "fingerprint", "dtype", "device", "dimension",
)  # fmt: skip
MODEL_LOAD = _workers.gauge(
    "laneway_model_load_seconds", "From the beginning of the start to the first answer.", "model"
)
WORKER_READY = _workers.gauge("laneway_worker_ready", "1 while the worker takes passes.", "model", "worker")
WORKER_INFO = _workers.gauge(
    "laneway_worker_info", "Where the worker computes.", "model", "worker", "device", "gpu_uuid"
)
WORKER_RESTARTS = _workers.counter(
    "laneway_worker_restarts_total", "Times the worker died and was started again.", "model", "worker"
)
WORKER_PASSES = _workers.counter(
    "laneway_worker_passes_total",
    "Passes that the worker gave rows for, those of warming up and of measuring the device included.",
    "model", "worker",
)  # fmt: skip
WORKER_OUT_OF_MEMORY = _workers.counter(
    "laneway_worker_out_of_memory_passes_total",
    "Passes that did not fit into memory; they are run again in halves.",
    "model", "worker",
)  # fmt: skip
DEVICE_BUSY = _workers.counter(
    "laneway_device_busy_seconds_total",
    "Time that the worker's device spent on passes that gave rows, those of warming up and of measuring the "
    "device included.",
    "model", "worker", "device",
)  # fmt: skip
WORKER_MEMORY = _workers.gauge(
    "laneway_worker_resident_memory_bytes",
    "Resident memory of the worker, pages it shares included; absent while it has no process.",
    "model", "worker",
)  # fmt: skip
TORCH_ALLOCATED = _workers.gauge(
    "laneway_torch_memory_allocated_bytes",
    "CUDA memory in tensors after the latest pass; absent without CUDA.",
    "model", "worker", "device",
)  # fmt: skip
TORCH_RESERVED = _workers.gauge(
    "laneway_torch_memory_reserved_bytes",
    "CUDA memory that torch has taken from the driver; absent without CUDA.",
    "model", "worker", "device",
)  # fmt: skip
TORCH_PEAK = _workers.gauge(
    "laneway_torch_memory_peak_allocated_bytes",
    "Most CUDA memory in tensors at once since the worker started; absent without CUDA.",
    "model", "worker", "device",
)  # fmt: skip

# GPUs ------------------------------------------------------------------------------------------------------

_gpus = Section("GPUs, where NVML tells of them")

GPU_INFO = _gpus.gauge("laneway_gpu_info", "A GPU that the driver shows.", "gpu", "uuid", "name")
GPU_UTILIZATION = _gpus.gauge(
    "laneway_gpu_utilization_ratio",
    "Part of the last moments in which the GPU ran anything, of whatever process.",
    "gpu", "uuid",
)  # fmt: skip
GPU_MEMORY_USED = _gpus.gauge(
    "laneway_gpu_memory_used_bytes", "Memory in use, of all processes.", "gpu", "uuid"
)
GPU_MEMORY_TOTAL = _gpus.gauge("laneway_gpu_memory_total_bytes", "Memory of the GPU.", "gpu", "uuid")
GPU_POWER = _gpus.gauge("laneway_gpu_power_watts", "Power drawn.", "gpu", "uuid")
GPU_TEMPERATURE = _gpus.gauge("laneway_gpu_temperature_celsius", "Temperature of the chip.", "gpu", "uuid")

# Bodies and images -----------------------------------------------------------------------------------------

_media = Section("Bodies and images")

HELD_BODY = _media.gauge(
    "laneway_held_body_bytes", "Large request bodies that are held, or were promised memory."
)
HELD_BODY_LIMIT = _media.gauge("laneway_held_body_limit_bytes", "The setting max_held_body_bytes.")
BODY_WAITING = _media.gauge("laneway_body_waiting_requests", "Requests whose bodies wait for memory.")
HELD_IMAGE = _media.gauge(
    "laneway_held_image_bytes",
    "Decoded base64 and pixels that requests in flight hold, or were promised. All that are no queries count "
    "as documents, here and in the other metrics of images.",
    "lane",
)
HELD_IMAGE_LIMIT = _media.gauge(
    "laneway_held_image_limit_bytes",
    "What they may hold: documents max_held_image_bytes, queries a quarter of it on top.",
    "lane",
)
IMAGE_WAITING = _media.gauge(
    "laneway_image_waiting_requests",
    "Requests that wait for a turn to fetch their images, or for room for them.",
    "lane",
)
IMAGE_FETCHES_RUNNING = _media.gauge(
    "laneway_image_fetches_running", "Images that are on their way, or wait in a fetch's place to be decoded."
)
IMAGE_FETCHES = _media.counter(
    "laneway_image_fetches_total",
    "Image URLs, by what became of them.",
    "outcome",
    values={
        "fetched": "The image is here.",
        "invalid_url": "It is no URL of `http` or `https`.",
        "blocked": "Its site or its address is not one that images are fetched from.",
        "unreachable": "No such name, no connection, no valid certificate, or no HTTP to the end.",
        "timeout": "It took longer than `fetch_timeout_s`.",
        "status": "The site answered with another status than 200.",
        "redirect": "Too many redirects, or one to what is no URL.",
        "encoding": "The body is compressed, although that was declined.",
        "too_large": "The file is larger than `max_image_bytes`.",
    },
)
IMAGE_FETCHED = _media.counter("laneway_image_fetched_bytes_total", "Bytes of the images that were fetched.")
IMAGE_DECODES = _media.counter(
    "laneway_image_decodes_total",
    "Image files, by what became of them.",
    "outcome",
    values={
        "decoded": "It has pixels.",
        "refused": "It is no image, or too large by its header.",
        "timeout": "It took too long, and its decode process was ended.",
        "crashed": "Its decode process ended under it.",
        "abandoned": "Nobody waited for it any more.",
    },
)
IMAGE_QUEUE = _media.gauge("laneway_image_queue_items", "Image files that wait to be decoded.", "lane")
IMAGE_DECODER_RESTARTS = _media.counter(
    "laneway_image_decoder_restarts_total", "Decode processes that took the place of another."
)

# The gateway -----------------------------------------------------------------------------------------------

_gateway = Section("The gateway's process")

EVENT_LOOP_LAG = _gateway.histogram(
    "laneway_event_loop_lag_seconds",
    "How late the event loop came to what was due, twenty times a second.",
    buckets=LATENCY_BUCKETS_S,
)
BUILD_INFO = _gateway.gauge(
    "laneway_build_info", "The versions that run.", "version", "torch", "transformers"
)

# All of them -----------------------------------------------------------------------------------------------

SECTIONS = (_requests, _lanes, _passes, _workers, _gpus, _media, _gateway)
FAMILIES = tuple(family for section in SECTIONS for family in section.families)

LABELS = {
    "route": "The path template of the route, or `unmatched`",
    "method": "An HTTP method, or `other`",
    "status": "The status of the answer; 499: its client had left",
    "status_class": "`2xx`, `4xx` or `5xx`",
    "model": "The name that the model is served under",
    "lane": "`query`, `document` or `batch`",
    "stage": "`fetch`, `decode`, `prepare`, `queue`, `worker`, `inference` or `encode`",
    "reason": "What went wrong: see below",
    "modality": "`text`, `image` or `text_image`; of tokens, `text` or `image`",
    "outcome": "What became of it: for each metric its own, see below",
    "percentile": "`50` or `99`: how many of a hundred passes came out better",
    "source": "What the checkpoint is called",
    "fingerprint": "Changes with everything that changes a vector",
    "dtype": "What the model computes in",
    "dimension": "Numbers in a vector",
    "worker": "The worker's number, from `0`; a worker that was restarted keeps it",
    "device": "`cpu`, `cuda`, `cuda:0`, ...",
    "gpu_uuid": "The `uuid` of the worker's GPU; empty where it has none",
    "gpu": "The GPU's number, as NVML and nvidia-smi count",
    "uuid": "The GPU's own name, such as `GPU-6b3a34f3-...`",
    "name": "What kind of GPU it is",
    "version": "Laneway's version",
    "torch": "torch's version",
    "transformers": "transformers' version",
}
"""What each label may hold, for people."""
