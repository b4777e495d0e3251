"""The first page: is it well, for whom is it slow, and what is it waiting for."""

from deploy.monitoring.panels import (
    A_SECOND,
    BYTES,
    BYTES_A_SECOND,
    COUNT,
    JSON,
    RATIO,
    REQUESTS_A_SECOND,
    SECONDS,
    Layout,
    Query,
    Steps,
    dashboard,
    facts,
    stat,
    timeseries,
)
from deploy.monitoring.promql import divide
from deploy.monitoring.scopes import ALERT, MODEL, PAGE, TARGET
from deploy.monitoring.shared import BY_GPU, GPU_LEGEND, power_and_temperature, served_models, starts

UID = "laneway-overview"

# Whatever embeds is posted; probes and scrapes are not, and would dilute every ratio.
POSTED = ('method="POST"', 'route!="unmatched"')
ANSWERED = 'status_class="2xx"'
QUERIES = 'lane="query"'
LATENCY = "laneway_request_duration_seconds"
STAGES = "laneway_stage_duration_seconds"
WORKER_TIME = MODEL.rate("laneway_device_busy_seconds_total")
"""Part of each worker's time that passes took."""
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
LINE_COLORS = {"p50": "light-blue", "p95": "blue", "p99": "dark-blue"}
QUANTILE_COLORS = {**LINE_COLORS, "mean": "purple"}
LANE_COLORS = {"query": "blue", "document": "green", "batch": "orange"}


def overview() -> JSON:
    """The whole page."""
    layout = Layout()
    for add in (
        _add_alerts,
        _add_glance,
        _add_requests,
        _add_lanes,
        _add_stages,
        _add_saturation,
        _add_passes,
        _add_images,
        _add_workers,
        _add_process,
        _add_gpus,
    ):
        add(layout)
    return dashboard(
        UID,
        "Laneway / Overview",
        "Rate, errors and duration for the callers, lane by lane; below them, what they wait for.",
        layout,
        PAGE,
        marks=[starts()],
    )


def _quantiles(histogram: str, *matchers: str) -> list[Query]:
    queries = [
        Query(expression=MODEL.quantile(quantile, histogram, *matchers), legend=name)
        for name, quantile in QUANTILES.items()
    ]
    return [*queries, Query(expression=MODEL.mean(histogram, *matchers), legend="mean")]


def _slo_line() -> Query:
    return Query(expression=MODEL.aggregate("min", "laneway_query_slo_seconds"), legend="objective")


def _add_alerts(layout: Layout) -> None:
    layout.add(
        facts(
            "Firing alerts",
            "Alerts that fire now, of the selection and of whole jobs; docs/alerts.md says what to do. It is "
            "empty, too, where this data source does not evaluate alerts.yml.",
            ALERT.select("ALERTS", 'alertstate="firing"'),
            {
                "severity": "Severity",
                "alertname": "Alert",
                "job": "Job",
                "instance": "Instance",
                "model": "Model",
                "lane": "Lane",
                "worker": "Worker",
                "gpu": "GPU",
            },
            no_value="Nothing fires",
        ),
        width=24,
        height=5,
    )


def _add_glance(layout: Layout) -> None:
    layout.row("At a glance")
    query_p99 = MODEL.quantile(0.99, LATENCY, QUERIES, ANSWERED)
    layout.add(
        stat(
            "Requests",
            "Requests a second that were posted: embeddings, similarities, whatever their outcome.",
            TARGET.sum_rate("laneway_http_requests_total", *POSTED),
            unit=REQUESTS_A_SECOND,
        ),
        stat(
            "Inputs",
            "Texts, images and pairs embedded a second, in all lanes.",
            MODEL.sum_rate("laneway_items_total"),
            unit=A_SECOND,
        ),
        stat(
            "Tokens",
            "Tokens computed a second, those of prompts and images included. The measure of throughput that "
            "does not depend on how long the inputs are.",
            MODEL.sum_rate("laneway_tokens_total"),
            unit=A_SECOND,
        ),
        stat(
            "Server errors",
            "Part of the posted requests that was answered 5xx. Clients that left (499) and full lanes (429) "
            "are not in it.",
            TARGET.share("laneway_http_requests_total", 'status=~"5.."', *POSTED),
            unit=RATIO,
            steps=Steps(warn=0.001, bad=0.01),
            decimals=2,
        ),
        stat(
            "Query p99 / objective",
            "99 of 100 queries take at most so many times query_slo_ms; from 1 on the objective is missed. "
            "Whole requests, from the head to the last byte of a good answer.",
            divide(query_p99, MODEL.aggregate("min", "laneway_query_slo_seconds")),
            unit=RATIO,
            steps=Steps(warn=0.8, bad=1.0),
            decimals=0,
        ),
        stat(
            "Oldest query",
            "How long the query that has waited longest has waited, over all instances. Passes are tens of "
            "milliseconds long; seconds mean that something stands still.",
            MODEL.aggregate("max", "laneway_queue_oldest_age_seconds", QUERIES),
            unit=SECONDS,
            steps=Steps(warn=0.5, bad=5.0),
            no_value="No data",
        ),
        stat(
            "Devices busy",
            "Part of the workers' time that passes took, on average over workers. Near 1 with documents "
            "waiting is as it should be: they fill what queries leave.",
            f"avg({WORKER_TIME})",
            unit=RATIO,
            decimals=0,
        ),
        stat(
            "Targets down",
            "Instances of the selected jobs that Prometheus cannot scrape. All their other series end, so "
            "they are missing from everything below.",
            f"sum({TARGET.select('up')} == bool 0)",
            unit=COUNT,
            steps=Steps(warn=0.5, bad=1.0),
            no_value="No data",
        ),
        width=3,
        height=4,
    )
    layout.add(served_models(), width=24, height=4)


def _add_requests(layout: Layout) -> None:
    layout.row("Requests: rate, errors, duration")
    layout.add(
        timeseries(
            "Requests by route",
            "Answered requests a second, by path template; `unmatched` is whatever is not served here.",
            Query(expression=TARGET.sum_rate("laneway_http_requests_total", by="route"), legend="{{route}}"),
            unit=REQUESTS_A_SECOND,
        ),
        timeseries(
            "Posted requests by status",
            "408: the deadline passed or could not be met. 429: a lane is full, and the answer says when to "
            "come back. 499: the client left. 503: loading, restarting, stopping, or all workers gone.",
            Query(
                expression=TARGET.sum_rate("laneway_http_requests_total", *POSTED, by="status"),
                legend="{{status}}",
            ),
            unit=REQUESTS_A_SECOND,
            is_stacked=True,
            colors={"200": "green", "429": "orange", "499": "yellow", "500": "red", "503": "dark-red"},
        ),
        timeseries(
            "Failures by reason",
            "Why requests got an error, or nobody was left to get an answer. `overloaded` and `timeout` "
            "come from too much work, `validation` and `too_long` from clients, `internal` from us.",
            Query(
                expression=TARGET.sum_rate("laneway_request_failures_total", by="reason"),
                legend="{{reason}}",
            ),
            unit=REQUESTS_A_SECOND,
            colors={"internal": "red", "unavailable": "dark-red", "overloaded": "orange"},
        ),
        timeseries(
            "Duration of good answers, by lane",
            "Whole requests, from the head to the last byte, that were answered 2xx. Interpolated between "
            "buckets of 1, 2 and 5; the mean is exact.",
            *(
                Query(
                    expression=MODEL.quantile(quantile, LATENCY, ANSWERED, by="lane"),
                    legend=f"{{{{lane}}}} {name}",
                )
                for name, quantile in (("p50", 0.5), ("p99", 0.99))
            ),
            unit=SECONDS,
            is_logarithmic=True,
        ),
        timeseries(
            "Duration by route",
            "99 of 100 answered requests of a route take at most this long, errors left out. Routes that do "
            "not embed should stay at milliseconds: if they do not, the event loop is held up.",
            Query(
                expression=TARGET.quantile(
                    0.99, "laneway_http_request_duration_seconds", ANSWERED, by="route"
                ),
                legend="{{route}}",
            ),
            unit=SECONDS,
            is_logarithmic=True,
        ),
        timeseries(
            "In flight, and sent again",
            "Requests between their decoded body and their answer, and, on the right, requests that an "
            "OpenAI SDK sent for the second time or more often.",
            Query(expression=TARGET.aggregate("sum", "laneway_requests_in_flight"), legend="in flight"),
            Query(expression=TARGET.sum_rate("laneway_request_retries_total"), legend="retries"),
            unit=COUNT,
            right_axis={"retries": REQUESTS_A_SECOND},
        ),
        width=8,
    )


def _add_lanes(layout: Layout) -> None:
    layout.row("Lanes, side by side")
    layout.add(
        timeseries(
            "Query latency against document throughput",
            "What this server is for: the left line should stay flat whatever the right one does. Queries "
            "that grow slower with documents point at passes that are too long (max_pass_ms, "
            "max_document_pass_ms).",
            Query(expression=MODEL.quantile(0.5, LATENCY, QUERIES, ANSWERED), legend="query p50"),
            Query(expression=MODEL.quantile(0.99, LATENCY, QUERIES, ANSWERED), legend="query p99"),
            _slo_line(),
            Query(
                expression=MODEL.sum_rate("laneway_tokens_total", 'lane=~"document|batch"'),
                legend="document and batch tokens",
            ),
            unit=SECONDS,
            colors={"query p50": "light-blue", "query p99": "dark-blue", "objective": "red"},
            right_axis={"document and batch tokens": A_SECOND},
        ),
        width=24,
        height=9,
    )
    layout.add(
        timeseries(
            "Query requests",
            "Whole requests of the query lane that were answered 2xx, with the objective (query_slo_ms).",
            *_quantiles(LATENCY, QUERIES, ANSWERED),
            _slo_line(),
            unit=SECONDS,
            is_logarithmic=True,
            colors={**QUANTILE_COLORS, "objective": "red"},
        ),
        timeseries(
            "Document requests",
            "Whole requests of the document lane that were answered 2xx. They are paid in throughput, not in "
            "latency: seconds are normal under load.",
            *_quantiles(LATENCY, 'lane="document"', ANSWERED),
            unit=SECONDS,
            is_logarithmic=True,
            colors=QUANTILE_COLORS,
        ),
        timeseries(
            "Inputs by lane",
            "Inputs embedded a second.",
            Query(expression=MODEL.sum_rate("laneway_items_total", by="lane"), legend="{{lane}}"),
            unit=A_SECOND,
            is_stacked=True,
            colors=LANE_COLORS,
        ),
        timeseries(
            "Tokens by lane and kind",
            "Tokens computed a second. An image has hundreds where a query has ten.",
            Query(
                expression=MODEL.sum_rate("laneway_tokens_total", by="lane, modality"),
                legend="{{lane}} {{modality}}",
            ),
            unit=A_SECOND,
            is_stacked=True,
        ),
        timeseries(
            "Device time by lane",
            "Seconds of device time a second, over all workers, split by each lane's part of every pass. "
            "Waiting documents are owed document_share of it whatever queries do.",
            Query(
                expression=MODEL.sum_rate("laneway_lane_device_seconds_total", by="lane"), legend="{{lane}}"
            ),
            unit=SECONDS,
            is_stacked=True,
            colors=LANE_COLORS,
        ),
        timeseries(
            "What became of inputs, unless they were done",
            "`refused`: the lane was full, or would not have come to them before their deadline, even where "
            "nothing else waits. `expired`: they were let in, and the deadline passed first. `cancelled`: "
            "the client left while they waited. `failed`: the model failed on them.",
            Query(
                expression=MODEL.sum_rate(
                    "laneway_queue_outcomes_total", 'outcome!="done"', by="lane, outcome"
                ),
                legend="{{lane}} {{outcome}}",
            ),
            unit=A_SECOND,
        ),
        width=8,
    )


def _add_stages(layout: Layout) -> None:
    layout.row("Where the time goes")
    stages = (
        "fetch and decode: only requests with images. prepare: text to tokens. queue: the longest wait of "
        "the request's inputs. worker: the wait at the worker for the pass before. inference: device time of "
        "its passes, added up over workers. encode: vectors to bytes."
    )
    layout.add(
        *(
            timeseries(
                f"A {lane} request, stage by stage",
                f"Mean time in each stage; the stack is about the mean of the whole. {stages}",
                Query(expression=MODEL.mean(STAGES, f'lane="{lane}"', by="stage"), legend="{{stage}}"),
                unit=SECONDS,
                is_stacked=True,
            )
            for lane in ("query", "document")
        ),
        timeseries(
            "The slowest hundredth of each stage",
            f"99 of 100 requests of the query lane take at most this long in a stage. {stages}",
            Query(expression=MODEL.quantile(0.99, STAGES, QUERIES, by="stage"), legend="{{stage}}"),
            unit=SECONDS,
            is_logarithmic=True,
        ),
        width=8,
    )


def _add_saturation(layout: Layout) -> None:
    layout.row("Saturation")
    layout.add(
        timeseries(
            "Inputs waiting",
            "Inputs in each lane's queue, and those in passes that run now. Autoscale on these, or on the "
            "oldest age, never on GPU utilisation.",
            Query(
                expression=MODEL.aggregate("sum", "laneway_queue_items", by="lane"), legend="{{lane}} waiting"
            ),
            Query(
                expression=MODEL.aggregate("sum", "laneway_running_items", by="lane"),
                legend="{{lane}} running",
            ),
            unit=COUNT,
        ),
        timeseries(
            "Oldest input",
            "How long the input that has waited longest has waited, by lane: the worst instance.",
            Query(
                expression=MODEL.aggregate("max", "laneway_queue_oldest_age_seconds", by="lane"),
                legend="{{lane}}",
            ),
            unit=SECONDS,
            colors=LANE_COLORS,
        ),
        timeseries(
            "Backlog",
            "How long the devices of the fullest instance need for what waits, as the cost model predicts "
            "it.",
            Query(
                expression=MODEL.aggregate("max", "laneway_queue_device_seconds", by="lane"),
                legend="{{lane}}",
            ),
            unit=SECONDS,
            colors=LANE_COLORS,
        ),
        timeseries(
            "How full the queues are",
            "Of the two bounds of a lane, inputs and seconds, each as part of its limit, in the fullest "
            "instance. At 1 requests are answered 429.",
            Query(
                expression=f"max by (lane) ({divide(*_queue_fill('items'))})",
                legend="{{lane}}, inputs",
            ),
            Query(
                expression=f"max by (lane) ({divide(*_queue_fill('seconds'))})",
                legend="{{lane}}, seconds",
            ),
            unit=RATIO,
        ),
        timeseries(
            "Tokens waiting",
            "Tokens of the inputs in each lane's queue.",
            Query(expression=MODEL.aggregate("sum", "laneway_queue_tokens", by="lane"), legend="{{lane}}"),
            unit=COUNT,
            is_stacked=True,
            colors=LANE_COLORS,
        ),
        timeseries(
            "Uploads",
            "Memory that bodies of requests hold, its limit (max_held_body_bytes), and requests that wait "
            "for room.",
            Query(expression=TARGET.aggregate("sum", "laneway_held_body_bytes"), legend="held"),
            Query(expression=TARGET.aggregate("sum", "laneway_held_body_limit_bytes"), legend="limit"),
            Query(expression=TARGET.aggregate("sum", "laneway_body_waiting_requests"), legend="waiting"),
            unit=BYTES,
            colors={"limit": "red"},
            right_axis={"waiting": COUNT},
        ),
        width=8,
    )


def _queue_fill(unit: str) -> tuple[str, str]:
    waiting = {"items": "laneway_queue_items", "seconds": "laneway_queue_device_seconds"}[unit]
    return MODEL.select(waiting), MODEL.select(f"laneway_queue_limit_{unit}")


def _add_passes(layout: Layout) -> None:
    layout.row("Passes")
    layout.add(
        timeseries(
            "Inputs of a pass",
            "How many inputs share a pass. One each under load means that something keeps them apart: "
            "enable_batching, max_batch_size, or inputs that fill a pass alone.",
            *_quantiles("laneway_pass_items"),
            unit=COUNT,
            colors=QUANTILE_COLORS,
        ),
        timeseries(
            "Tokens of a pass",
            "What a pass computes. Bounded by its time, and by max_pass_tokens.",
            *_quantiles("laneway_pass_tokens"),
            unit=COUNT,
            colors=QUANTILE_COLORS,
        ),
        timeseries(
            "Device time of a pass",
            "A query waits for the pass that runs unless it may interrupt it, so the longest pass bounds the "
            "query's wait.",
            *_quantiles("laneway_pass_device_seconds"),
            unit=SECONDS,
            colors=QUANTILE_COLORS,
        ),
        timeseries(
            "Real time over predicted time",
            "Passes are cut to fit a time, so the prediction must hold: 1 is exact, 1.2 took a fifth "
            "longer. Far from 1 for long: the device is shared, throttled, or changed its speed.",
            *(
                Query(expression=MODEL.quantile(quantile, "laneway_pass_prediction_ratio"), legend=name)
                for name, quantile in QUANTILES.items()
            ),
            unit=RATIO,
            colors=LINE_COLORS,
        ),
        timeseries(
            "Padding",
            "Part of the computed tokens that was padding. 0 wherever passes are packed; only architectures "
            "that cannot be packed have any.",
            Query(expression=MODEL.mean("laneway_pass_padding_ratio"), legend="mean"),
            unit=RATIO,
            max_value=1,
        ),
        timeseries(
            "Overtaking",
            "Passes of queries that overtook one of documents, those that ran between two of its layers, "
            "and, on the right, the part of the devices' time that passes with queries cost beyond the "
            "queries' own work while others waited. It may lie above interruption_share, which spares "
            "documents interruptions only until a pass has run for long.",
            Query(expression=MODEL.sum_rate("laneway_urgent_passes_total"), legend="overtook"),
            Query(expression=MODEL.sum_rate("laneway_interruptions_total"), legend="interrupted"),
            Query(
                expression=divide(
                    MODEL.sum_rate("laneway_interruption_seconds_total"),
                    MODEL.sum_rate("laneway_device_busy_seconds_total"),
                ),
                legend="cost",
            ),
            unit=A_SECOND,
            right_axis={"cost": RATIO},
        ),
        width=8,
    )


def _add_images(layout: Layout) -> None:
    layout.row("Images")
    layout.add(
        timeseries(
            "Fetches by outcome",
            "Image URLs a second, by what became of them. Failures are the clients' URLs or the hosts "
            "behind them, unless all fail at once: then it is the way out of this network.",
            Query(
                expression=TARGET.sum_rate("laneway_image_fetches_total", by="outcome"), legend="{{outcome}}"
            ),
            unit=A_SECOND,
            is_stacked=True,
            colors={"fetched": "green"},
        ),
        timeseries(
            "Fetching",
            "Bytes of fetched images a second, and fetches under way or waiting to be decoded (max_fetches).",
            Query(expression=TARGET.sum_rate("laneway_image_fetched_bytes_total"), legend="bytes"),
            Query(expression=TARGET.aggregate("sum", "laneway_image_fetches_running"), legend="under way"),
            unit=BYTES_A_SECOND,
            right_axis={"under way": COUNT},
        ),
        timeseries(
            "Decodes by outcome",
            "Image files a second. `refused`: no image, or too large by its header. `timeout` and "
            "`crashed`: a file that took its decode process with it.",
            Query(
                expression=TARGET.sum_rate("laneway_image_decodes_total", by="outcome"), legend="{{outcome}}"
            ),
            unit=A_SECOND,
            is_stacked=True,
            colors={"decoded": "green", "crashed": "red", "timeout": "orange"},
        ),
        timeseries(
            "Time to fetch and to decode",
            "How long a request's images took, p50 and p99, over all lanes.",
            *(
                Query(
                    expression=MODEL.quantile(quantile, STAGES, f'stage="{stage}"'),
                    legend=f"{stage} {name}",
                )
                for stage in ("fetch", "decode")
                for name, quantile in (("p50", 0.5), ("p99", 0.99))
            ),
            unit=SECONDS,
            is_logarithmic=True,
        ),
        timeseries(
            "Memory of images",
            "Decoded base64 and pixels that requests in flight hold, or were promised, and the limits "
            "(max_held_image_bytes; queries have a quarter of it on top). All that are no queries are "
            "documents here.",
            Query(
                expression=TARGET.aggregate("sum", "laneway_held_image_bytes", by="lane"),
                legend="{{lane}} held",
            ),
            Query(
                expression=TARGET.aggregate("sum", "laneway_held_image_limit_bytes", by="lane"),
                legend="{{lane}} limit",
            ),
            unit=BYTES,
            colors={"query limit": "light-red", "document limit": "red"},
        ),
        timeseries(
            "Waiting",
            "Requests that wait for a turn to fetch or for room, image files that wait to be decoded, and "
            "decode processes that took the place of another.",
            Query(
                expression=TARGET.aggregate("sum", "laneway_image_waiting_requests", by="lane"),
                legend="{{lane}} requests",
            ),
            Query(
                expression=TARGET.aggregate("sum", "laneway_image_queue_items", by="lane"),
                legend="{{lane}} files",
            ),
            Query(
                expression=TARGET.sum_increase("laneway_image_decoder_restarts_total"),
                legend="decoders replaced",
            ),
            unit=COUNT,
        ),
        width=8,
    )


def _add_workers(layout: Layout) -> None:
    layout.row("Workers")
    layout.add(
        timeseries(
            "Workers ready",
            "Workers that take passes, of those there are. Each is one process and one device, or one core.",
            Query(expression=MODEL.aggregate("sum", "laneway_worker_ready"), legend="ready"),
            Query(expression=MODEL.aggregate("count", "laneway_worker_ready"), legend="all"),
            unit=COUNT,
        ),
        timeseries(
            "Busy",
            "Part of its time that each worker spent on passes.",
            Query(
                expression=f"sum by (instance, worker) ({WORKER_TIME})", legend="{{instance}} · {{worker}}"
            ),
            unit=RATIO,
            max_value=1,
        ),
        timeseries(
            "What went wrong",
            "Workers that died and were started again, passes that came back without rows, and passes that "
            "did not fit into memory (they are tried again in halves).",
            Query(expression=MODEL.sum_increase("laneway_worker_restarts_total"), legend="restarts"),
            Query(expression=MODEL.sum_increase("laneway_pass_failures_total"), legend="failed passes"),
            Query(
                expression=MODEL.sum_increase("laneway_worker_out_of_memory_passes_total"),
                legend="out of memory",
            ),
            unit=COUNT,
            colors={"restarts": "red", "failed passes": "orange", "out of memory": "purple"},
        ),
        width=8,
    )


def _add_process(layout: Layout) -> None:
    layout.row("Gateway process")
    layout.add(
        timeseries(
            "Event loop lag",
            "How late the event loop ran what was due. Everything that is not a pass happens there; tens of "
            "milliseconds at p99 are added to every request.",
            *(
                Query(expression=TARGET.quantile(quantile, "laneway_event_loop_lag_seconds"), legend=name)
                for name, quantile in QUANTILES.items()
            ),
            unit=SECONDS,
            colors=LINE_COLORS,
        ),
        timeseries(
            "CPU",
            "Cores that the gateway process uses; workers and decode processes are not in it.",
            Query(
                expression=TARGET.sum_rate("process_cpu_seconds_total", by="instance"), legend="{{instance}}"
            ),
            unit=COUNT,
        ),
        timeseries(
            "Memory of the processes",
            "Resident memory of the gateway, and of its workers together, pages that they share counted by "
            "each.",
            Query(
                expression=TARGET.aggregate("sum", "process_resident_memory_bytes", by="instance"),
                legend="{{instance}} gateway",
            ),
            Query(
                expression=MODEL.aggregate("sum", "laneway_worker_resident_memory_bytes", by="instance"),
                legend="{{instance}} workers",
            ),
            unit=BYTES,
        ),
        timeseries(
            "Open files",
            "File descriptors, as part of what the process may open. Connections are most of them.",
            Query(
                expression="max by (instance) "
                f"({divide(TARGET.select('process_open_fds'), TARGET.select('process_max_fds'))})",
                legend="{{instance}}",
            ),
            unit=RATIO,
        ),
        timeseries(
            "Garbage collections",
            "Runs of Python's garbage collector a second; those of generation 2 stop everything for longest.",
            Query(
                expression=TARGET.sum_rate("python_gc_collections_total", by="generation"),
                legend="generation {{generation}}",
            ),
            unit=A_SECOND,
        ),
        timeseries(
            "What clients send",
            "Inputs that were cut because they are too long, requests with token arrays by how these were "
            "read, and parameters that mean nothing here.",
            Query(expression=MODEL.sum_rate("laneway_truncated_inputs_total"), legend="truncated inputs"),
            Query(
                expression=TARGET.sum_rate("laneway_token_array_requests_total", by="outcome"),
                legend="token arrays: {{outcome}}",
            ),
            Query(expression=TARGET.sum_rate("laneway_ignored_params_total"), legend="ignored parameters"),
            unit=A_SECOND,
        ),
        width=8,
    )


def _add_gpus(layout: Layout) -> None:
    # Closed: on a machine without NVML there is nothing in it.
    layout.row("GPUs (NVML)", is_closed=True)
    memory = divide(
        TARGET.select("laneway_gpu_memory_used_bytes"), TARGET.select("laneway_gpu_memory_total_bytes")
    )
    layout.add(
        timeseries(
            "Utilisation",
            "Part of the time in which a kernel ran, whoever it belonged to. Absent under MIG, where the "
            "driver does not tell.",
            Query(
                expression=TARGET.aggregate("max", "laneway_gpu_utilization_ratio", by=BY_GPU),
                legend=GPU_LEGEND,
            ),
            unit=RATIO,
            max_value=1,
        ),
        timeseries(
            "Memory of the GPUs",
            "Used memory as part of all, whoever uses it.",
            Query(expression=f"max by ({BY_GPU}) ({memory})", legend=GPU_LEGEND),
            unit=RATIO,
            max_value=1,
        ),
        *power_and_temperature(TARGET),
        width=6,
    )
