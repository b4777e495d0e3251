"""The second page: which worker, and which GPU."""

from deploy.monitoring.panels import (
    A_SECOND,
    BYTES,
    COUNT,
    JSON,
    RATIO,
    SECONDS,
    Column,
    Layout,
    Query,
    dashboard,
    facts,
    table,
    timeseries,
)
from deploy.monitoring.promql import divide
from deploy.monitoring.scopes import DRILL_DOWN, GPU, MODEL, TARGET, WORKER
from deploy.monitoring.shared import BY_GPU, GPU_LEGEND, power_and_temperature, served_models, starts

UID = "laneway-workers"

BY_WORKER = "instance, worker"
WORKER_LEGEND = "{{instance}} · {{worker}}"
BUSY = WORKER.sum_rate("laneway_device_busy_seconds_total", by=BY_WORKER)
GPU_MEMORY = divide(
    GPU.aggregate("max", "laneway_gpu_memory_used_bytes", by=BY_GPU),
    GPU.aggregate("max", "laneway_gpu_memory_total_bytes", by=BY_GPU),
)


def drilldown() -> JSON:
    """The whole page."""
    layout = Layout()
    for add in (_add_workers, _add_cost, _add_gpus, _add_programs):
        add(layout)
    return dashboard(
        UID,
        "Laneway / Workers and GPUs",
        "Each worker and each GPU by itself: which one is behind, and whether it is ours that is busy.",
        layout,
        DRILL_DOWN,
        marks=[starts()],
    )


def _add_workers(layout: Layout) -> None:
    layout.row("Workers")
    layout.add(
        table(
            "Workers",
            "Every worker of the selection now. Under load those of one model are about equally busy. How "
            "many passes they run differs: a query goes to whichever is free first, and documents fill the "
            "rest with longer ones.",
            {"instance": "Instance", "model": "Model", "worker": "Worker"},
            [
                Column(name="Ready", expression=_by_row("laneway_worker_ready"), unit="bool_yes_no"),
                Column(
                    name="Busy",
                    expression=WORKER.sum_rate("laneway_device_busy_seconds_total", by=ROW),
                    unit=RATIO,
                ),
                Column(
                    name="Passes",
                    expression=WORKER.sum_rate("laneway_worker_passes_total", by=ROW),
                    unit=A_SECOND,
                ),
                Column(
                    name="Restarts in range",
                    expression=WORKER.sum_increase(
                        "laneway_worker_restarts_total", by=ROW, within="$__range"
                    ),
                    unit=COUNT,
                ),
                Column(
                    name="Out of memory in range",
                    expression=WORKER.sum_increase(
                        "laneway_worker_out_of_memory_passes_total", by=ROW, within="$__range"
                    ),
                    unit=COUNT,
                ),
                Column(
                    name="Resident memory",
                    expression=_by_row("laneway_worker_resident_memory_bytes"),
                    unit=BYTES,
                ),
            ],
        ),
        width=24,
        height=7,
    )
    layout.add(
        timeseries(
            "Busy",
            "Part of its time that each worker spent on passes, those of warming up included. One that stays "
            "low while others are full gets no work: look whether it is ready.",
            Query(expression=BUSY, legend=WORKER_LEGEND),
            unit=RATIO,
            max_value=1,
        ),
        timeseries(
            "Passes",
            "Passes answered with rows, a second. Many short ones are queries, few long ones documents: "
            "workers differ in these without being faster or slower.",
            Query(
                expression=WORKER.sum_rate("laneway_worker_passes_total", by=BY_WORKER), legend=WORKER_LEGEND
            ),
            unit=A_SECOND,
        ),
        timeseries(
            "Real time over predicted time",
            "Device time of the passes over what was predicted for them, on average, whatever was in them. "
            "One worker that stays above its equals has a slower or a shared device.",
            Query(
                expression=WORKER.mean("laneway_pass_prediction_ratio", by=BY_WORKER), legend=WORKER_LEGEND
            ),
            unit=RATIO,
        ),
        timeseries(
            "Ready",
            "1 while the worker takes passes, 0 while it starts.",
            Query(
                expression=WORKER.aggregate("max", "laneway_worker_ready", by=BY_WORKER),
                legend=WORKER_LEGEND,
            ),
            unit=COUNT,
            max_value=1,
        ),
        timeseries(
            "Restarts, and passes out of memory",
            "Workers that died and were started again, and passes that did not fit and were tried again in "
            "halves.",
            Query(
                expression=WORKER.sum_increase("laneway_worker_restarts_total", by=BY_WORKER),
                legend=f"restarts, {WORKER_LEGEND}",
            ),
            Query(
                expression=WORKER.sum_increase("laneway_worker_out_of_memory_passes_total", by=BY_WORKER),
                legend=f"out of memory, {WORKER_LEGEND}",
            ),
            unit=COUNT,
        ),
        timeseries(
            "Resident memory",
            "Of the worker's process, pages that it shares with others included. What grows without end is "
            "a leak.",
            Query(
                expression=WORKER.aggregate("max", "laneway_worker_resident_memory_bytes", by=BY_WORKER),
                legend=WORKER_LEGEND,
            ),
            unit=BYTES,
        ),
        width=8,
    )


ROW = "instance, model, worker"
"""What makes a row of the table of workers."""


def _by_row(gauge: str) -> str:
    return WORKER.aggregate("max", gauge, by=ROW)


def _add_cost(layout: Layout) -> None:
    layout.row("What a pass costs")
    by_model = "instance, model"
    legend = "{{instance}} · {{model}}"
    parts = {
        "laneway_cost_fixed_seconds": ("Before anything is in it", "What a pass costs with nothing in it."),
        "laneway_cost_token_seconds": ("A token", "What each further token costs, in a short input."),
        "laneway_cost_image_token_seconds": (
            "A token of an image",
            "What a token of an image costs beyond any other: the part of the image tower.",
        ),
    }
    layout.add(
        *(
            timeseries(
                title,
                f"{description} Fitted to real passes: what moves is the device, or who shares it.",
                Query(expression=MODEL.aggregate("max", gauge, by=by_model), legend=legend),
                unit=SECONDS,
            )
            for gauge, (title, description) in parts.items()
        ),
        timeseries(
            "Error of the prediction",
            "How much longer than predicted recent passes took, as part of the prediction: 99 of 100 took "
            "less. 0.2 is a fifth.",
            Query(
                expression=MODEL.aggregate(
                    "max", "laneway_cost_residual_ratio", 'percentile="99"', by=by_model
                ),
                legend=legend,
            ),
            unit=RATIO,
        ),
        width=6,
    )


def _add_gpus(layout: Layout) -> None:
    layout.row("GPUs (NVML)")
    by_uuid = "instance, uuid"
    layout.add(
        facts(
            "GPUs",
            "What the driver sees in each instance. Empty where there is no NVIDIA driver.",
            GPU.select("laneway_gpu_info"),
            {"instance": "Instance", "gpu": "GPU", "name": "Name", "uuid": "UUID"},
        ),
        timeseries(
            "Our passes, and the GPU's utilisation",
            "Both as parts of the time. Utilisation far above ours: somebody else computes there. Ours far "
            "above utilisation: the CPU feeds the GPU too slowly.",
            Query(
                expression=f"sum by ({by_uuid}) ({_with_uuid('laneway_device_busy_seconds_total')})",
                legend="our passes, {{instance}} · {{uuid}}",
            ),
            Query(
                expression=GPU.aggregate("max", "laneway_gpu_utilization_ratio", by=by_uuid),
                legend="utilisation, {{instance}} · {{uuid}}",
            ),
            unit=RATIO,
            max_value=1,
        ),
        width=12,
        height=8,
    )
    layout.add(
        timeseries(
            "Memory of the GPUs",
            "Used memory as part of all, whoever uses it.",
            Query(expression=GPU_MEMORY, legend=GPU_LEGEND),
            unit=RATIO,
            max_value=1,
        ),
        timeseries(
            "Memory of PyTorch",
            "In tensors now, at most since the worker started, and held by the allocator for the next ones.",
            *(
                Query(
                    expression=WORKER.aggregate("max", f"laneway_torch_memory_{name}_bytes", by=BY_WORKER),
                    legend=f"{legend}, {WORKER_LEGEND}",
                )
                for name, legend in (
                    ("allocated", "in tensors"),
                    ("peak_allocated", "at most"),
                    ("reserved", "held"),
                )
            ),
            unit=BYTES,
        ),
        *power_and_temperature(GPU),
        width=6,
    )


def _with_uuid(counter: str) -> str:
    """A worker's rate, with the label ``uuid`` of the GPU that it computes on; workers on a CPU drop out."""
    on = "job, instance, model, worker"
    info = WORKER.select("laneway_worker_info", 'gpu_uuid!=""')
    uuid = f'max by ({on}, uuid) (label_replace({info}, "uuid", "$1", "gpu_uuid", "(.+)"))'
    return f"{WORKER.rate(counter)} * on ({on}) group_left (uuid) {uuid}"


def _add_programs(layout: Layout) -> None:
    layout.row("Programs")
    layout.add(
        served_models(),
        facts(
            "Versions",
            "Of Laneway and of what computes. Instances behind one address should have the same.",
            TARGET.select("laneway_build_info"),
            {
                "instance": "Instance",
                "version": "Laneway",
                "torch": "PyTorch",
                "transformers": "Transformers",
            },
        ),
        table(
            "Starts",
            "When each process was started, and how long its model took to be ready.",
            {"instance": "Instance"},
            [
                Column(
                    name="Running for",
                    expression="time() - "
                    + TARGET.aggregate("max", "process_start_time_seconds", by="instance"),
                    unit=SECONDS,
                ),
                Column(
                    name="Loading took",
                    expression=MODEL.aggregate("max", "laneway_model_load_seconds", by="instance"),
                    unit=SECONDS,
                ),
            ],
        ),
        width=8,
        height=6,
    )
