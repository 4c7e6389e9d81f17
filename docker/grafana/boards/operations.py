"""The board *Operations*: is the service keeping up, and does every job end well?"""

from panels import Board, Draw, Kind, Panel, Query, Variable
from queries import (
    ANNOTATIONS,
    INSTANCE,
    MODEL,
    OUTCOMES,
    SITE,
    UP_DOWN,
    WINDOW,
    gained,
    mean,
    quantile,
    rate,
    series,
    stat,
)

SUCCEEDED = f'{MODEL},outcome="succeeded"'
NOT_SUCCEEDED = f'{MODEL},outcome!="succeeded"'
WORKING_ROUTES = f'{SITE},route!~"/healthz|/readyz|/metrics"'

OPERATIONS = Board(
    uid="framefit-operations",
    title="Framefit: operations",
    description="Is the service keeping up, and does every job end well?",
    variables=(
        INSTANCE,
        Variable("model", "Model", "label_values(framefit_jobs_total, model)"),
        WINDOW,
    ),
    annotations=ANNOTATIONS,
    rows=(
        (
            "Now",
            (
                stat("Queued", "Jobs waiting for a worker.", f"sum(framefit_jobs_queued{{{SITE}}})"),
                stat("Running", "Jobs that a worker runs.", f"sum(framefit_jobs_running{{{SITE}}})"),
                stat(
                    "Workers up",
                    "Workers with a recent heartbeat; one for each device.",
                    f"sum(framefit_worker_up{{{SITE}}})",
                ),
                stat(
                    "Queue wait, 95th percentile",
                    "Time from acceptance to the claim by a worker, over the window.",
                    quantile(0.95, "framefit_job_queue_seconds"),
                    unit="s",
                    thresholds=((300, "yellow"), (900, "red")),
                ),
                stat(
                    "Jobs failed",
                    "Share of the jobs finished in the window that failed. Canceled jobs count as finished.",
                    f"sum(increase(framefit_jobs_total{{{MODEL},outcome='failed'}}[$window]))"
                    f" / (sum(increase(framefit_jobs_total{{{MODEL}}}[$window])) > 0)",
                    unit="percentunit",
                    thresholds=((0.05, "yellow"), (0.2, "red")),
                    decimals=1,
                ),
                stat(
                    "Alerts firing",
                    "Framefit's alerts that fire now.",
                    'count(ALERTS{alertstate="firing",alertname=~"Framefit.*"}) or vector(0)',
                    thresholds=((1, "red"),),
                ),
            ),
        ),
        (
            "Queue",
            (
                series(
                    "Queued and running",
                    "If the queue grows while the running line is flat, there are too few devices.",
                    (f"sum(framefit_jobs_queued{{{SITE}}})", "queued"),
                    (f"sum(framefit_jobs_running{{{SITE}}})", "running"),
                ),
                series(
                    "Queue wait",
                    "Time from acceptance to the claim by a worker.",
                    (quantile(0.5, "framefit_job_queue_seconds"), "median"),
                    (quantile(0.95, "framefit_job_queue_seconds"), "95th percentile"),
                    unit="s",
                    thresholds=((900, "red"),),
                ),
                series(
                    "Throughput by outcome",
                    "Ended jobs per hour, at the window's rate.",
                    (f"{rate('framefit_jobs_total', 'outcome', MODEL)} * 3600", "{{outcome}}"),
                    unit="none",
                    draw=Draw.STACK,
                    styles=OUTCOMES,
                ),
            ),
        ),
        (
            "Requests",
            (
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
                    (
                        rate("framefit_http_requests_total", "route", WORKING_ROUTES),
                        "{{route}}",
                    ),
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
            ),
        ),
        (
            "Where the time goes",
            (
                series(
                    "Job duration",
                    "From the first claim to the end.",
                    (quantile(0.5, "framefit_job_duration_seconds"), "median"),
                    (quantile(0.95, "framefit_job_duration_seconds"), "95th percentile"),
                    unit="s",
                ),
                series(
                    "Mean time by stage",
                    "Stages of an average job, stacked. Waiting for memory is time lost to other programs.",
                    (mean("framefit_stage_duration_seconds", "stage"), "{{stage}}"),
                    unit="s",
                    draw=Draw.STACK,
                ),
                series(
                    "Videos an hour, by model",
                    "Jobs that succeeded, at the window's rate.",
                    (
                        f"{rate('framefit_jobs_total', 'model', SUCCEEDED)} * 3600",
                        "{{model}}",
                    ),
                    unit="none",
                    draw=Draw.STACK,
                ),
            ),
        ),
        (
            "What goes wrong",
            (
                series(
                    "Jobs not succeeded",
                    "Failed and canceled jobs in the window, by model.",
                    (
                        gained("framefit_jobs_total", "model, outcome", NOT_SUCCEEDED),
                        "{{outcome}}: {{model}}",
                    ),
                    draw=Draw.BARS,
                    styles=OUTCOMES,
                ),
                series(
                    "Out of memory",
                    "Out-of-memory events in the window, by stage. In decoding they cost a retry, not a job.",
                    (gained("framefit_oom_total", "stage"), "{{stage}}"),
                    draw=Draw.BARS,
                ),
                series(
                    "Values that are not finite",
                    "NaN or infinite values in the window, by stage. The job fails, or is decoded again.",
                    (gained("framefit_nonfinite_total", "stage"), "{{stage}}"),
                    draw=Draw.BARS,
                ),
                series(
                    "Disk free",
                    "Share of the data folder's file system that is free.",
                    ("framefit:data_free:ratio{" + SITE + "}", "{{instance}}"),
                    unit="percentunit",
                    maximum=1,
                    thresholds=((0, "red"), (0.1, "green")),
                ),
            ),
        ),
        (
            "Devices",
            (
                Panel(
                    Kind.STATE,
                    "Workers",
                    "One line for each device. Down: no recent heartbeat.",
                    (Query(f"min by (device) (framefit_worker_up{{{SITE}}})", "{{device}}"),),
                    mappings=UP_DOWN,
                    width=8,
                    height=6,
                    maximum=1,
                ),
                series(
                    "GPU utilisation",
                    "Share of time in which at least one kernel ran, as reported by the driver.",
                    (f"framefit_gpu_utilization_ratio{{{SITE}}}", "{{gpu}}"),
                    unit="percentunit",
                    maximum=1,
                    width=8,
                    height=6,
                ),
                series(
                    "GPUs without a worker",
                    "By reason; all but hidden and not_selected are faults. `framefit doctor` explains them.",
                    (f"sum by (reason) (framefit_gpu_unused{{{SITE}}})", "{{reason}}"),
                    width=8,
                    height=6,
                ),
                Panel(
                    Kind.STATE,
                    "Models",
                    "One line for each model. Down: its files cannot be loaded.",
                    (Query(f"min by (model) (framefit_model_available{{{SITE}}})", "{{model}}"),),
                    mappings=UP_DOWN,
                    width=24,
                    height=6,
                    maximum=1,
                ),
            ),
        ),
    ),
)
