"""Panels that both pages have."""

from deploy.monitoring.panels import JSON, Query, facts, moments, timeseries
from deploy.monitoring.promql import Scope
from deploy.monitoring.scopes import MODEL, TARGET

BY_GPU = "instance, gpu"
GPU_LEGEND = "{{instance}} · {{gpu}}"


def served_models() -> JSON:
    """What each instance serves, as a table."""
    return facts(
        "What is served",
        "The model of each instance. Vectors of different fingerprints must not be mixed in one index.",
        MODEL.select("laneway_model_info"),
        {
            "instance": "Instance",
            "model": "Model",
            "source": "Source",
            "device": "Device",
            "dtype": "Dtype",
            "dimension": "Dimension",
            "fingerprint": "Fingerprint",
        },
    )


def starts() -> JSON:
    """A mark at each start of a gateway; one in the middle of the page is a restart.

    The time of the start is what is told, and not a change of it, which nobody sees over a longer outage.
    """
    started = TARGET.select("process_start_time_seconds")
    return moments("Start", f"{started} * 1000", text="{{instance}} was started", color="orange")


def power_and_temperature(scope: Scope) -> tuple[JSON, JSON]:
    """Two panels, of the GPUs within a scope."""
    power = timeseries(
        "Power",
        "What the board draws. Power that falls at full load is throttling.",
        Query(expression=scope.aggregate("max", "laneway_gpu_power_watts", by=BY_GPU), legend=GPU_LEGEND),
        unit="watt",
    )
    temperature = timeseries(
        "Temperature",
        "Of the chip. Near its limit it is slowed down, and passes take longer than predicted.",
        Query(
            expression=scope.aggregate("max", "laneway_gpu_temperature_celsius", by=BY_GPU), legend=GPU_LEGEND
        ),
        unit="celsius",
    )
    return power, temperature
