"""The board *Memory decisions*: why was each video decoded the way it was, and was the prediction right?"""

from panels import Board, Draw, Kind, Panel, Style
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
    STRATEGIES,
    WINDOW,
    bars,
    gained,
    gained_in_all,
    heat,
    quantile,
    rate,
    series,
    share,
    stat,
)

DECODES = "framefit_decode_duration_seconds_count"
BATCHED = f'{JOB},strategy="batched"'


def each_decode(histogram: str) -> str:
    """Return PromQL for the mean over the seconds around the end of a decode, on each host.

    With one worker this is the value of that decode: sum and count grow over the same samples. `rate` would
    extrapolate each of them its own way where a counter begins at zero.
    """
    spans = (
        f"sum by (host) (delta({histogram}_{part}{{{JOB}}}[$__rate_interval]))" for part in ("sum", "count")
    )
    return "{} / ({} > 0)".format(*spans)


HOW_TO_READ = """
**The three colours together are one GPU's memory.** Green is free, blue is held by Framefit's worker, grey by
other programs.

**Each pair of marks is one decode, drawn from zero as green is.** Orange is its *predicted* peak, red its
*measured* peak. A mark inside green fits.

- *Grey grows:* another program took memory, so green shrinks. The next decode uses smaller chunks: its marks
  are below green again, and the strategy share turns yellow or orange.
- *Red above orange:* the prediction was too low. Framefit learns from the measurement.
- *Marks far below green, but the share is not green:* the plan was too careful; the regret panel shows its
  cost.
"""

MEMORY = Board(
    uid="framefit-memory",
    title="Framefit: memory decisions",
    description="Why was each video decoded the way it was, and was the prediction right?",
    variables=(INSTANCE, HOST, GPU, MODEL_NAME, WINDOW, PAGE),
    annotations=ANNOTATIONS,
    rows=(
        (
            "Now",
            (
                stat(
                    "Memory free",
                    "Share of free memory on the GPU with the least.",
                    f"min(framefit:gpu_memory_free:ratio{{{CARD}}})",
                    unit="percentunit",
                    thresholds=((0.05, "yellow"), (0.15, "green")),
                    base="red",
                ),
                stat(
                    "Decodes",
                    "Decodes that ended in the window.",
                    gained_in_all(DECODES, JOB),
                    base=NEUTRAL,
                    links=JOBS_LINKS,
                ),
                stat(
                    "Decoded in one call",
                    "Share of the window's decodes that ran batched, the fastest way.",
                    f"{gained_in_all(DECODES, BATCHED)} / ({gained_in_all(DECODES, JOB)} > 0)",
                    unit="percentunit",
                    base=NEUTRAL,
                ),
                stat(
                    "Measured / predicted",
                    "Median over the window. Below 1, decodes need less than predicted.",
                    quantile(0.5, "framefit_decode_prediction_ratio", matchers=JOB),
                    thresholds=((1, "yellow"), (1.1, "red")),
                    decimals=2,
                ),
                stat(
                    "Out of memory",
                    "Out-of-memory events in the window, all stages.",
                    gained_in_all("framefit_oom_total", JOB),
                    thresholds=((0.5, "yellow"), (3, "red")),
                ),
                stat(
                    "Regret",
                    "Decode time lost in the window to options slower than the memory allowed.",
                    gained_in_all("framefit_decode_regret_seconds_total", JOB),
                    unit="s",
                    thresholds=((60, "yellow"),),
                ),
            ),
        ),
        (
            "Memory and the decodes it allowed",
            (
                series(
                    "Memory of $gpu, and what decodes needed",
                    "Green: free. Blue: held by Framefit. Grey: held by others. Orange and red marks: the"
                    " predicted and the measured peak of each decode, drawn from zero as green is. One"
                    " picture for each GPU; the CPUs of several hosts share one, so choose a host.",
                    (f"sum by (host) (framefit_gpu_memory_free_bytes{{{CARD}}})", "free {{host}}"),
                    (f"sum by (host) (framefit_gpu_memory_own_bytes{{{CARD}}}) > 0", "own {{host}}"),
                    (f"sum by (host) (framefit_gpu_memory_other_bytes{{{CARD}}}) > 0", "other {{host}}"),
                    (each_decode("framefit_decode_predicted_peak_bytes"), "predicted peak {{host}}"),
                    (each_decode("framefit_decode_measured_peak_bytes"), "measured peak {{host}}"),
                    unit="bytes",
                    draw=Draw.STACK,
                    width=24,
                    height=11,
                    styles=(
                        Style("free", "green"),
                        Style("own", "blue"),
                        Style("other", "#8e8e8e"),
                        Style("predicted", "orange", over_stack=True),
                        Style("measured", "red", over_stack=True),
                    ),
                    repeat="gpu",
                ),
            ),
        ),
        (
            "Why",
            (
                series(
                    "Strategy share",
                    "Strategies of the window's decodes: with less memory chunked, with the least per frame.",
                    (share(DECODES, "strategy", JOB), "{{strategy}}"),
                    unit="percentunit",
                    draw=Draw.STACK,
                    maximum=1,
                    width=6,
                    styles=STRATEGIES,
                ),
                bars(
                    "Decodes by strategy and reason",
                    "Decodes in the shown time range, with the planner's reason from each job's report.",
                    gained("framefit_decode_strategy_total", "strategy, reason", JOB, "$__range"),
                    "{{strategy}}: {{reason}}",
                    height=8,
                    decimals=0,
                    styles=STRATEGIES,
                ),
                heat(
                    "Chunk sizes",
                    "Latent frames per chunk. A darker cell means more decodes.",
                    gained("framefit_decode_chunk_frames_bucket", "le", JOB),
                    width=6,
                ),
                Panel(
                    Kind.TEXT,
                    "How to read the memory picture",
                    "",
                    content=HOW_TO_READ.strip(),
                    width=6,
                ),
            ),
        ),
        (
            "Was the prediction right?",
            (
                series(
                    "Measured / predicted peak",
                    "Above 1, decodes need more than predicted. Learned margins bring it back below 1.",
                    (quantile(0.05, "framefit_decode_prediction_ratio", matchers=JOB), "5th percentile"),
                    (quantile(0.5, "framefit_decode_prediction_ratio", matchers=JOB), "median"),
                    (quantile(0.95, "framefit_decode_prediction_ratio", matchers=JOB), "95th percentile"),
                    thresholds=((1, "red"),),
                    exemplars=True,
                ),
                series(
                    "Fallbacks",
                    "Decodes in the window that left their planned option, and the option they fell back to.",
                    (gained("framefit_decode_fallback_total", "from, to", JOB), "{{from}} → {{to}}"),
                    draw=Draw.BARS,
                    links=JOBS_LINKS,
                ),
                series(
                    "Out of memory",
                    "Out-of-memory events in the window, by stage.",
                    (gained("framefit_oom_total", "stage", JOB), "{{stage}}"),
                    draw=Draw.BARS,
                    links=JOBS_LINKS,
                ),
            ),
        ),
        (
            "What it cost",
            (
                series(
                    "Decode time by strategy",
                    "Median over the window, without the time to encode the mp4.",
                    (quantile(0.5, "framefit_decode_duration_seconds", "strategy", JOB), "{{strategy}}"),
                    unit="s",
                    styles=STRATEGIES,
                    width=12,
                    exemplars=True,
                ),
                series(
                    "Regret",
                    "Decode seconds lost per hour to options that were too careful, or to retries.",
                    (f"({rate('framefit_decode_regret_seconds_total', 'host', JOB)}) * 3600", "{{host}}"),
                    unit="s",
                    width=12,
                ),
            ),
        ),
    ),
)
