"""Rows of the board *Operations* about jobs: the queue, throughput, where the time goes, what goes wrong."""

from panels import Draw, Panel
from queries import (
    FAILED_LINKS,
    JOB,
    JOBS_LINKS,
    MODEL,
    OUTCOMES,
    SITE,
    gained,
    heat,
    mean,
    quantile,
    rate,
    series,
)

SUCCEEDED = f'{JOB},outcome="succeeded"'
DECODING = f'{JOB},stage="decoding"'
NOT_SUCCEEDED = f'{JOB},outcome!="succeeded"'
STAGE_SECONDS = "framefit_stage_duration_seconds_sum"
PERCENTILES = ((0.5, "median"), (0.95, "95th"), (0.99, "99th"))

QUEUE = (
    series(
        "Queued and running",
        "If the queue grows while the running line is flat, there are too few devices.",
        (f"sum(framefit_jobs_queued{{{SITE}}})", "queued"),
        (f"sum(framefit_jobs_running{{{SITE}}})", "running"),
        links=JOBS_LINKS,
    ),
    series(
        "Queue wait",
        "Time from being queued to the claim by a worker.",
        *((quantile(part, "framefit_job_queue_seconds", "", MODEL), name) for part, name in PERCENTILES),
        unit="s",
        thresholds=((900, "red"),),
        exemplars=True,
    ),
    heat(
        "Queue wait of each job",
        "Claims by the seconds that the job had waited. A darker cell means more jobs.",
        gained("framefit_job_queue_seconds_bucket", "le", MODEL),
    ),
)

THROUGHPUT = (
    series(
        "Throughput by outcome",
        "Ended jobs per hour, at the window's rate.",
        (f"({rate('framefit_jobs_total', 'outcome', JOB)}) * 3600", "{{outcome}}"),
        unit="none",
        draw=Draw.STACK,
        styles=OUTCOMES,
    ),
    series(
        "Videos an hour, by model",
        "Jobs that succeeded, at the window's rate.",
        (f"({rate('framefit_jobs_total', 'model', SUCCEEDED)}) * 3600", "{{model}}"),
        unit="none",
        draw=Draw.STACK,
    ),
    series(
        "GPU-seconds a video",
        "Time of all stages in the window, divided by the videos that succeeded.",
        (
            f"({rate(STAGE_SECONDS, 'model', JOB)}) / ({rate('framefit_jobs_total', 'model', SUCCEEDED)})",
            "{{model}}",
        ),
        unit="s",
    ),
    series(
        "Frames a second",
        "Frames of finished videos, at the window's rate.",
        (rate("framefit_video_frames_total", "model", JOB), "{{model}}"),
        unit="none",
        draw=Draw.STACK,
        width=12,
    ),
    series(
        "Megapixels a second",
        "Pixels of all frames of finished videos, at the window's rate.",
        (f"({rate('framefit_video_pixels_total', 'model', JOB)}) / 1e6", "{{model}}"),
        unit="none",
        draw=Draw.STACK,
        width=12,
    ),
)

TIME = (
    series(
        "Job duration by model",
        "From acceptance to the end, the queue included.",
        *(
            (quantile(part, "framefit_job_duration_seconds", "model", JOB), f"{{{{model}}}} {name}")
            for part, name in PERCENTILES
        ),
        unit="s",
        exemplars=True,
    ),
    series(
        "Time by stage",
        "Percentiles of the time that a job spends in a stage.",
        *(
            (quantile(part, "framefit_stage_duration_seconds", "stage", JOB), f"{{{{stage}}}} {name}")
            for part, name in PERCENTILES
        ),
        unit="s",
        exemplars=True,
    ),
    series(
        "Time by model and stage, 95th percentile",
        "The slowest stages of each model.",
        (quantile(0.95, "framefit_stage_duration_seconds", "model, stage", JOB), "{{model}} {{stage}}"),
        unit="s",
    ),
    series(
        "Mean time by stage",
        "Stages of an average job, stacked. Waiting for memory is time lost to other programs.",
        (mean("framefit_stage_duration_seconds", "stage", JOB), "{{stage}}"),
        unit="s",
        draw=Draw.STACK,
        width=12,
    ),
    series(
        "Decode share of a job",
        "Share of the time of all stages that decoding takes, by model.",
        (
            f"({rate(STAGE_SECONDS, 'model', DECODING)}) / ({rate(STAGE_SECONDS, 'model', JOB)})",
            "{{model}}",
        ),
        unit="percentunit",
        maximum=1,
        width=12,
    ),
)

WRONG = (
    series(
        "Jobs not succeeded",
        "Failed and canceled jobs in the window, by model.",
        (gained("framefit_jobs_total", "model, outcome", NOT_SUCCEEDED), "{{outcome}}: {{model}}"),
        draw=Draw.BARS,
        styles=OUTCOMES,
        links=FAILED_LINKS,
    ),
    series(
        "Failures by code",
        "Failed jobs in the window, by the code of their error.",
        (gained("framefit_jobs_failed_total", "code", JOB), "{{code}}"),
        draw=Draw.BARS,
        links=FAILED_LINKS,
    ),
    series(
        "Jobs back in the queue",
        "Running jobs that went back to the queue in the window, by reason.",
        (gained("framefit_jobs_requeued_total", "reason", JOB), "{{reason}}"),
        draw=Draw.BARS,
        links=JOBS_LINKS,
    ),
    series(
        "Decodes left to other devices",
        "Denoised jobs in the window that another worker could decode: handed over, kept, or given back.",
        (gained("framefit_decode_handovers_total", "outcome", JOB), "{{outcome}}"),
        draw=Draw.BARS,
        links=JOBS_LINKS,
    ),
    series(
        "Out of memory",
        "Out-of-memory events in the window, by stage. In decoding they cost a retry, not a job.",
        (gained("framefit_oom_total", "stage", JOB), "{{stage}}"),
        draw=Draw.BARS,
        links=JOBS_LINKS,
    ),
    series(
        "Values that are not finite",
        "NaN or infinite values in the window, by stage. The job fails, or is decoded again.",
        (gained("framefit_nonfinite_total", "stage", JOB), "{{stage}}"),
        draw=Draw.BARS,
        links=FAILED_LINKS,
    ),
    series(
        "Decodes that spill into host memory",
        "Chunks in the window that did not fit the GPU, by the sign that showed it. They are very slow.",
        (gained("framefit_decode_spill_total", "sign", JOB), "{{sign}}"),
        draw=Draw.BARS,
    ),
)

WORK: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    ("Queue", QUEUE),
    ("Throughput", THROUGHPUT),
    ("Where the time goes", TIME),
    ("What goes wrong", WRONG),
)
