"""The board *Fleet*: which hosts and cards make the videos, and which one is slow, full or gone?"""

from panels import Board, Draw
from queries import (
    ANNOTATIONS,
    CARD,
    GPU,
    HOST,
    INSTANCE,
    JOB,
    JOBS_LINKS,
    MODEL_NAME,
    NEUTRAL,
    PAGE,
    RESTARTS,
    WINDOW,
    bars,
    by_card,
    gained,
    gained_in_all,
    mean,
    quantile,
    rate,
    series,
    stat,
    states,
    workers_down,
    workers_up,
)

SUCCEEDED = f'{JOB},outcome="succeeded"'
STAGE_SECONDS = "framefit_stage_duration_seconds_sum"


def busy(by: str) -> str:
    """Return PromQL for the mean share of time that workers ran jobs in the window."""
    return f"avg by ({by}) (avg_over_time(framefit_worker_busy{{{CARD}}}[$window]))"


FLEET = Board(
    uid="framefit-fleet",
    title="Framefit: fleet",
    description="Which hosts and cards make the videos, and which one is slow, full or gone?",
    variables=(INSTANCE, HOST, GPU, MODEL_NAME, WINDOW, PAGE),
    annotations=ANNOTATIONS,
    rows=(
        (
            "Now",
            (
                stat(
                    "Hosts",
                    "Hosts with a worker that is up.",
                    f"count(max by (host) (framefit_worker_up{{{CARD}}}) > 0)",
                    base="red",
                    thresholds=((1, "green"),),
                ),
                workers_up(),
                workers_down(),
                stat(
                    "Busy",
                    "Mean share of time in the window that workers ran jobs.",
                    f"avg(avg_over_time(framefit_worker_busy{{{CARD}}}[$window]))",
                    unit="percentunit",
                    base=NEUTRAL,
                ),
                stat(
                    "Memory free",
                    "Share of free memory on the card with the least.",
                    f"min(framefit:gpu_memory_free:ratio{{{CARD}}})",
                    unit="percentunit",
                    base="red",
                    thresholds=((0.05, "yellow"), (0.15, "green")),
                ),
                stat(
                    "Videos",
                    "Jobs that succeeded in the window.",
                    gained_in_all("framefit_jobs_total", SUCCEEDED),
                    base=NEUTRAL,
                    links=JOBS_LINKS,
                ),
            ),
        ),
        (
            "Each card",
            (
                bars(
                    "Memory used",
                    "Share of the card's memory that is not free, now.",
                    f"1 - framefit:gpu_memory_free:ratio{{{CARD}}}",
                    "{{host}} {{device}}",
                    unit="percentunit",
                    maximum=1,
                ),
                bars(
                    "Busy",
                    "Share of time in the window that the card's worker ran a job.",
                    busy("host, device"),
                    "{{host}} {{device}}",
                    unit="percentunit",
                    maximum=1,
                ),
                bars(
                    "Videos",
                    "Jobs that succeeded in the window.",
                    by_card(gained("framefit_jobs_total", "host, gpu", SUCCEEDED)),
                    "{{host}} {{device}}",
                    decimals=0,
                ),
                bars(
                    "GPU-seconds a video",
                    "Time of all stages in the window, divided by the videos that succeeded.",
                    by_card(
                        f"({gained(STAGE_SECONDS, 'host, gpu', JOB)})"
                        f" / ({gained('framefit_jobs_total', 'host, gpu', SUCCEEDED)})"
                    ),
                    "{{host}} {{device}}",
                    unit="s",
                ),
            ),
        ),
        (
            "Hosts over time",
            (
                series(
                    "Memory free",
                    "Free memory of all cards of a host.",
                    (f"sum by (host) (framefit_gpu_memory_free_bytes{{{CARD}}})", "{{host}}"),
                    unit="bytes",
                    draw=Draw.STACK,
                ),
                series(
                    "Busy workers",
                    "Share of time in the window that a host's workers ran jobs.",
                    (busy("host"), "{{host}}"),
                    unit="percentunit",
                    maximum=1,
                ),
                series(
                    "GPU utilisation",
                    "Share of time in which a kernel ran, as the driver reports it; mean of a host's cards.",
                    (f"avg by (host) (framefit_gpu_utilization_ratio{{{CARD}}})", "{{host}}"),
                    unit="percentunit",
                    maximum=1,
                ),
                series(
                    "Videos an hour",
                    "Jobs that succeeded, at the window's rate.",
                    (f"({rate('framefit_jobs_total', 'host', SUCCEEDED)}) * 3600", "{{host}}"),
                    unit="none",
                    draw=Draw.STACK,
                ),
                series(
                    "Mean job duration",
                    "From acceptance to the end, the queue included.",
                    (mean("framefit_job_duration_seconds", "host", JOB), "{{host}}"),
                    unit="s",
                    exemplars=True,
                ),
                series(
                    "Measured / predicted peak, 95th percentile",
                    "A host whose driver or torch differs shows here first.",
                    (quantile(0.95, "framefit_decode_prediction_ratio", "host", JOB), "{{host}}"),
                    thresholds=((1, "red"),),
                ),
            ),
        ),
        (
            "What goes wrong, and where",
            (
                series(
                    "Out of memory",
                    "Out-of-memory events in the window, by card.",
                    (by_card(gained("framefit_oom_total", "host, gpu", JOB)), "{{host}} {{device}}"),
                    draw=Draw.BARS,
                    links=JOBS_LINKS,
                ),
                series(
                    "Jobs back in the queue",
                    "Running jobs that went back to the queue in the window, by host and reason.",
                    (gained("framefit_jobs_requeued_total", "host, reason", JOB), "{{host}}: {{reason}}"),
                    draw=Draw.BARS,
                    links=JOBS_LINKS,
                ),
                series(
                    "Worker restarts",
                    "Restarts in the window, by card.",
                    (RESTARTS, "{{host}} {{device}}"),
                    draw=Draw.BARS,
                ),
                states(
                    "Workers",
                    "One line for each card. Down: no recent heartbeat.",
                    f"min by (host, device) (framefit_worker_up{{{CARD}}})",
                    "{{host}} {{device}}",
                    width=24,
                    height=12,
                ),
            ),
        ),
    ),
)
