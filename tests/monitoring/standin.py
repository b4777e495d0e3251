"""An instance with a GPU, as Prometheus sees it: the application's own metrics, of a machine that is not here."""

import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import MetricsHandler

from app import metric_families as families
from app.gpus import GpuReading
from app.metric_collectors import SnapshotCollector, metric_of, read_gpu_metrics

MODEL = "standin"
UUID = "GPU-6b3a34f3"
READING = GpuReading(
    index=0,
    uuid=UUID,
    name="NVIDIA Standin",
    utilization_ratio=0.9,
    memory_used_bytes=60 * 10**9,
    memory_total_bytes=80 * 10**9,
    power_watts=600.0,
    temperature_celsius=65.0,
)
WORKER = (MODEL, "0", "cuda:0")


def read() -> Iterator[Metric | None]:
    """What only a machine with a GPU has, and what is joined with it."""
    yield from read_gpu_metrics((READING,))
    yield metric_of(families.MODEL_READY, [((MODEL,), 1)])
    yield metric_of(families.WORKER_INFO, [((*WORKER, UUID), 1)])
    yield metric_of(families.DEVICE_BUSY, [(WORKER, 17.0)])
    for family in (families.TORCH_ALLOCATED, families.TORCH_RESERVED, families.TORCH_PEAK):
        yield metric_of(family, [(WORKER, 10**9)])


@contextmanager
def running_standin() -> Generator[str]:
    """Serve it; yields its address."""
    registry = CollectorRegistry()
    registry.register(SnapshotCollector(read))
    server = ThreadingHTTPServer(("127.0.0.1", 0), MetricsHandler.factory(registry))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
