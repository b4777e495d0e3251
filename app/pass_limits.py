"""How long and how large passes are: what the settings leave open follows from the kind of device."""

from dataclasses import dataclass, replace

from app.settings import BatchingSettings
from batching import Lane, Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class PassDefaults:
    """How long and how large passes are where the settings do not say."""

    max_pass_ms: float
    max_document_pass_ms: float
    fill_ms: float
    max_pass_tokens: int
    quiet_after_s: float
    """How long after a query passes of documents stay short."""
    interruption_share: float


# On a CPU a pass costs little beside its work, so to fill one of queries saves next to nothing, and only
# makes them wait. And passes can be left at many places, so long ones of documents cost queries little.
CPU_PASSES = PassDefaults(
    max_pass_ms=50,
    max_document_pass_ms=800,
    fill_ms=0,
    max_pass_tokens=4_096,
    quiet_after_s=0.0,
    interruption_share=0.06,
)
# Not measured on a card yet.
CUDA_PASSES = PassDefaults(
    max_pass_ms=30,
    max_document_pass_ms=60,
    fill_ms=15,
    max_pass_tokens=16_384,
    quiet_after_s=1.0,
    interruption_share=0.05,
)


def batching_limits(batching: BatchingSettings, *, is_cuda: bool) -> Limits:
    """The scheduler's limits, from the settings and the kind of device."""
    defaults = CUDA_PASSES if is_cuda else CPU_PASSES
    max_pass_ms = batching.max_pass_ms or defaults.max_pass_ms
    max_document_pass_ms = batching.max_document_pass_ms or max(defaults.max_document_pass_ms, max_pass_ms)
    fill_ms = batching.fill_ms
    if fill_ms is None:
        fill_ms = max_pass_ms * defaults.fill_ms / defaults.max_pass_ms
    share = batching.interruption_share
    return Limits(
        max_pass_s=min(max_pass_ms, max_document_pass_ms) / 1000,
        max_document_pass_s=max_document_pass_ms / 1000,
        fill_s=min(fill_ms, max_pass_ms, max_document_pass_ms) / 1000,
        max_pass_tokens=batching.max_pass_tokens or defaults.max_pass_tokens,
        max_pass_entries=batching.max_batch_size if batching.enable_batching else 1,
        max_wait_s=batching.max_wait_ms / 1000,
        quiet_after_s=defaults.quiet_after_s,
        query_slo_s=batching.query_slo_ms / 1000,
        shares={Lane.DOCUMENT: batching.document_share, Lane.BATCH: batching.batch_share},
        interruption_share=defaults.interruption_share if share is None else share,
        max_waiting_entries=_queue_entries(batching),
        max_waiting_s={
            Lane.QUERY: batching.max_query_queue_s,
            Lane.DOCUMENT: batching.max_document_queue_s,
            Lane.BATCH: batching.max_batch_queue_s,
        },
    )


def settings_in_force(batching: BatchingSettings, limits: Limits) -> BatchingSettings:
    """The settings, with what they leave open and what memory allows as it came to be.

    A ``max_pass_ms`` that the device cannot keep (``CostModel.least_bound_s``) is told as it was asked for.
    """
    return replace(
        batching,
        max_batch_size=limits.max_pass_entries,
        max_pass_ms=round(limits.max_pass_s * 1000, 3),
        max_document_pass_ms=round(limits.max_document_pass_s * 1000, 3),
        fill_ms=round(limits.fill_s * 1000, 3),
        max_pass_tokens=limits.max_pass_tokens,
        interruption_share=limits.interruption_share,
    )


def _queue_entries(batching: BatchingSettings) -> dict[Lane, int]:
    return {
        Lane.QUERY: batching.max_query_queue,
        Lane.DOCUMENT: batching.max_document_queue,
        Lane.BATCH: batching.max_batch_queue,
    }
