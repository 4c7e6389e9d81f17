"""The board *Operations*: is the service keeping up, and does every job end well?

The rows of `work` say how jobs go, the rows here how the service itself does.
"""

from panels import Board, Draw, Kind, Panel, Query
from queries import (
    ANNOTATIONS,
    CARD,
    FAILED_LINKS,
    GPU,
    HOST,
    INSTANCE,
    JOB,
    JOBS_LINKS,
    MODEL,
    MODEL_NAME,
    NEUTRAL,
    PAGE,
    RESTARTS,
    SITE,
    WINDOW,
    gained,
    gained_in_all,
    quantile,
    rate,
    series,
    stat,
    states,
    workers_down,
    workers_up,
)
from work import WORK

WORKING_ROUTES = f'{SITE},route!~"/healthz|/readyz|/metrics"'
FAILED = f'{JOB},outcome="failed"'
FIRING = 'ALERTS{alertstate="firing",alertname=~"Framefit.*"}'

NOW = (
    stat(
        "Queued",
        "Jobs waiting for a worker.",
        f"sum(framefit_jobs_queued{{{SITE}}})",
        base=NEUTRAL,
        links=JOBS_LINKS,
        width=3,
    ),
    stat(
        "Running", "Jobs that a worker runs.", f"sum(framefit_jobs_running{{{SITE}}})", base=NEUTRAL, width=3
    ),
    stat(
        "Oldest queued job",
        "How long the longest waiting job has been queued.",
        f"max(framefit_jobs_oldest_queued_seconds{{{SITE}}})",
        unit="s",
        thresholds=((300, "yellow"), (900, "red")),
        links=JOBS_LINKS,
        width=3,
    ),
    workers_up(width=3),
    workers_down(width=3),
    stat(
        "Queue wait, 95th percentile",
        "Time from being queued to the claim by a worker, over the window.",
        quantile(0.95, "framefit_job_queue_seconds", matchers=MODEL),
        unit="s",
        thresholds=((300, "yellow"), (900, "red")),
        width=3,
    ),
    stat(
        "Jobs failed",
        "Share of the jobs finished in the window that failed. Canceled jobs count as finished.",
        f"{gained_in_all('framefit_jobs_total', FAILED)} / ({gained_in_all('framefit_jobs_total', JOB)} > 0)",
        unit="percentunit",
        thresholds=((0.05, "yellow"), (0.2, "red")),
        decimals=1,
        links=FAILED_LINKS,
        width=3,
    ),
    stat(
        "Alerts firing",
        "Framefit's alerts that fire now.",
        f"count({FIRING}) or vector(0)",
        thresholds=((1, "red"),),
        width=3,
    ),
)

REQUESTS = (
    series(
        "Requests by status",
        "Requests a second. 429 and 503 are refusals; 499: the client closed the connection.",
        (rate("framefit_http_requests_total", "status"), "{{status}}"),
        unit="reqps",
        draw=Draw.STACK,
    ),
    series(
        "Requests by route",
        "Requests a second, without health checks and metrics.",
        (rate("framefit_http_requests_total", "route", WORKING_ROUTES), "{{route}}"),
        unit="reqps",
        draw=Draw.STACK,
    ),
    series(
        "Time until the response begins, 95th percentile",
        "By route, the arrival of the request's body included.",
        (quantile(0.95, "framefit_http_request_duration_seconds", "route"), "{{route}}"),
        unit="s",
        thresholds=((1, "red"),),
    ),
)

DEVICES = (
    states(
        "Workers",
        "One line for each device. Down: no recent heartbeat.",
        f"min by (host, device) (framefit_worker_up{{{CARD}}})",
        "{{host}} {{device}}",
    ),
    series(
        "Device saturation",
        "Share of time in the window that the device's worker ran a job. At 1, more jobs only wait longer.",
        (
            f"avg by (host, device) (avg_over_time(framefit_worker_busy{{{CARD}}}[$window])) > 0",
            "{{host}} {{device}}",
        ),
        unit="percentunit",
        maximum=1,
        height=6,
    ),
    series(
        "GPU utilisation",
        "Share of time in which at least one kernel ran, as reported by the driver.",
        (f"max by (host, device) (framefit_gpu_utilization_ratio{{{CARD}}}) > 0", "{{host}} {{device}}"),
        unit="percentunit",
        maximum=1,
        height=6,
    ),
    series(
        "GPUs without a worker",
        "By reason; all but hidden and not_selected are faults. `framefit doctor` explains them.",
        (f"sum by (instance, reason) (framefit_gpu_unused{{{SITE}}}) > 0", "{{instance}}: {{reason}}"),
        height=6,
    ),
    series(
        "Worker restarts",
        "Restarts in the window, by device.",
        (RESTARTS, "{{host}} {{device}}"),
        draw=Draw.BARS,
        height=6,
    ),
    states(
        "Models",
        "One line for each model. Down: its files cannot be loaded.",
        f"min by (model) (framefit_model_available{{{MODEL}}})",
        "{{model}}",
    ),
)

SERVICE = (
    series(
        "Disk free",
        "Share of the data folder's file system that is free.",
        ("framefit:data_free:ratio{" + SITE + "}", "{{instance}}"),
        unit="percentunit",
        maximum=1,
        thresholds=((0, "red"), (0.1, "green")),
        height=6,
    ),
    series(
        "Webhooks",
        "Attempts to deliver webhooks in the window. Given up: the receiver does not learn of the job's end.",
        (gained("framefit_webhook_deliveries_total", "outcome"), "{{outcome}}"),
        draw=Draw.BARS,
        height=6,
    ),
    series(
        "Budget left of the service levels",
        "What is left of the failures that each service level allows in 30 days. Below 0 it is missed.",
        ("min by (slo) (framefit:slo_budget_left:ratio30d)", "{{slo}}"),
        unit="percentunit",
        maximum=1,
        height=6,
    ),
    Panel(
        Kind.TABLE,
        "Alerts",
        "Framefit's alerts that fire now.",
        (Query(FIRING, "{{alertname}} {{host}} {{device}} {{instance}}", instant=True),),
        width=12,
        height=6,
        hidden=("__name__", "alertstate", "job"),
    ),
    Panel(
        Kind.TABLE,
        "What runs",
        "The versions of each API process.",
        (Query(f"framefit_build_info{{{SITE}}}", "{{instance}} {{version}}", instant=True),),
        width=12,
        height=6,
        hidden=("__name__", "job"),
    ),
)

OPERATIONS = Board(
    uid="framefit-operations",
    title="Framefit: operations",
    description="Is the service keeping up, and does every job end well?",
    variables=(INSTANCE, HOST, GPU, MODEL_NAME, WINDOW, PAGE),
    annotations=ANNOTATIONS,
    rows=(
        ("Now", NOW),
        ("Service", SERVICE),
        *WORK,
        ("Requests", REQUESTS),
        ("Devices", DEVICES),
    ),
)
