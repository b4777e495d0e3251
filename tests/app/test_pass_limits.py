"""How long passes are where the settings do not say."""

from app.pass_limits import batching_limits
from app.settings import BatchingSettings
from batching import Lane


def test_passes_are_as_long_as_the_device_needs_them():
    on_cpu = batching_limits(BatchingSettings(), is_cuda=False)
    on_cuda = batching_limits(BatchingSettings(), is_cuda=True)
    assert (on_cpu.max_pass_s, on_cpu.max_document_pass_s, on_cpu.fill_s) == (0.05, 0.8, 0.0)
    assert (on_cuda.max_pass_s, on_cuda.max_document_pass_s, on_cuda.fill_s) == (0.03, 0.06, 0.015)
    assert (on_cpu.max_pass_tokens, on_cuda.max_pass_tokens) == (4_096, 16_384)
    assert (on_cpu.quiet_after_s, on_cuda.quiet_after_s) == (0.0, 1.0)
    assert (on_cpu.interruption_share, on_cuda.interruption_share) == (0.06, 0.05)


def test_settings_win_over_what_was_derived():
    limits = batching_limits(
        BatchingSettings(
            max_pass_ms=20, max_document_pass_ms=40, fill_ms=5, query_slo_ms=70, interruption_share=0.2,
            max_pass_tokens=100, max_wait_ms=20.0, document_share=0.3, batch_share=0.1,
            max_query_queue=5, max_document_queue=6, max_batch_queue=7,
            max_query_queue_s=1.5, max_document_queue_s=2.5, max_batch_queue_s=3.5,
        ),
        is_cuda=False,
    )  # fmt: skip
    assert (limits.max_pass_s, limits.max_document_pass_s, limits.fill_s) == (0.02, 0.04, 0.005)
    assert (limits.query_slo_s, limits.interruption_share) == (0.07, 0.2)
    assert (limits.max_pass_tokens, limits.max_wait_s) == (100, 0.02)
    assert limits.shares == {Lane.DOCUMENT: 0.3, Lane.BATCH: 0.1}
    assert limits.max_waiting_entries == {Lane.QUERY: 5, Lane.DOCUMENT: 6, Lane.BATCH: 7}
    assert limits.max_waiting_s == {Lane.QUERY: 1.5, Lane.DOCUMENT: 2.5, Lane.BATCH: 3.5}


def test_one_bound_of_its_own_pulls_the_others_along():
    """Whoever sets one of them need not know the others."""
    longer = batching_limits(BatchingSettings(max_pass_ms=400), is_cuda=True)
    assert (longer.max_pass_s, longer.max_document_pass_s, longer.fill_s) == (0.4, 0.4, 0.2)
    shorter = batching_limits(BatchingSettings(max_document_pass_ms=10), is_cuda=True)
    assert (shorter.max_pass_s, shorter.max_document_pass_s, shorter.fill_s) == (0.01, 0.01, 0.01)


def test_batching_switched_off_is_one_input_a_pass():
    assert batching_limits(BatchingSettings(enable_batching=False), is_cuda=False).max_pass_entries == 1
