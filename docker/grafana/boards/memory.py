"""The board *Memory decisions*: why was each video decoded the way it was, and was the prediction right?"""

from panels import Board, Draw, Kind, Panel, Query, Style, Variable
from queries import (
    ANNOTATIONS,
    GPU,
    INSTANCE,
    SITE,
    STRATEGIES,
    WINDOW,
    gained,
    gained_exactly,
    quantile,
    rate,
    series,
    stat,
)


def each_decode(histogram: str) -> str:
    """Return PromQL for the mean over the seconds around the end of a decode.

    With one worker this is the value of that decode.
    """
    spans = (f"sum(rate({histogram}_{part}{{{SITE}}}[$__rate_interval]))" for part in ("sum", "count"))
    return "{} / ({} > 0)".format(*spans)


HOW_TO_READ = """
**The three colours together are one GPU's memory.** Green is free, blue is held by Framefit's worker, grey by
other programs.

**Each pair of marks is one decode, drawn from zero as green is.** Orange is its *predicted* peak, red its
*measured* peak. A mark inside green fits.

- *Grey grows:* another program took memory, so green shrinks. The next decode uses smaller chunks: its marks
  are below green again, and the strategy share beside it turns yellow or orange.
- *Red above orange:* the prediction was too low. Framefit learns from the measurement.
- *Marks far below green, but the share is not green:* the plan was too careful; the regret panel shows its
  cost.
"""

MEMORY = Board(
    uid="framefit-memory",
    title="Framefit: memory decisions",
    description="Why was each video decoded the way it was, and was the prediction right?",
    variables=(
        INSTANCE,
        Variable("gpu", "GPU", "label_values(framefit_gpu_memory_total_bytes, gpu)"),
        WINDOW,
    ),
    annotations=ANNOTATIONS,
    rows=(
        (
            "Now",
            (
                stat(
                    "Memory free",
                    "Share of free memory on the GPU with the least.",
                    f"min(framefit:gpu_memory_free:ratio{{{GPU}}})",
                    unit="percentunit",
                ),
                stat(
                    "Decodes",
                    "Decodes that ended in the window.",
                    f"sum(increase(framefit_decode_duration_seconds_count{{{SITE}}}[$window]))",
                ),
                stat(
                    "Decoded in one call",
                    "Share of the window's decodes that ran batched, the fastest way.",
                    f'sum(increase(framefit_decode_duration_seconds_count{{{SITE},strategy="batched"}}[$window]))'
                    f" / (sum(increase(framefit_decode_duration_seconds_count{{{SITE}}}[$window])) > 0)",
                    unit="percentunit",
                ),
                stat(
                    "Measured / predicted",
                    "Median over the window. Below 1, decodes need less than predicted.",
                    quantile(0.5, "framefit_decode_prediction_ratio"),
                    thresholds=((1, "yellow"), (1.1, "red")),
                    decimals=2,
                ),
                stat(
                    "Out of memory",
                    "Out-of-memory events in the window, all stages.",
                    f"sum(increase(framefit_oom_total{{{SITE}}}[$window]))",
                    thresholds=((0.5, "yellow"), (3, "red")),
                ),
                stat(
                    "Regret",
                    "Decode time lost in the window to options slower than the memory allowed.",
                    f"sum(increase(framefit_decode_regret_seconds_total{{{SITE}}}[$window]))",
                    unit="s",
                ),
            ),
        ),
        (
            "Memory and the decodes it allowed",
            (
                series(
                    "Video memory, and what decodes needed",
                    "Green: free. Blue: held by Framefit. Grey: held by others. Orange and red marks: the"
                    " predicted and the measured peak of each decode, drawn from zero as green is.",
                    (f"sum(framefit_gpu_memory_free_bytes{{{GPU}}})", "free"),
                    (f"sum(framefit_gpu_memory_own_bytes{{{GPU}}})", "own"),
                    (f"sum(framefit_gpu_memory_other_bytes{{{GPU}}})", "other"),
                    (each_decode("framefit_decode_predicted_peak_bytes"), "predicted peak"),
                    (each_decode("framefit_decode_measured_peak_bytes"), "measured peak"),
                    unit="bytes",
                    draw=Draw.STACK,
                    width=16,
                    height=11,
                    styles=(
                        Style("free", "green"),
                        Style("own", "blue"),
                        Style("other", "#8e8e8e"),
                        Style("predicted", "orange", over_stack=True),
                        Style("measured", "red", over_stack=True),
                    ),
                ),
                series(
                    "Strategy share",
                    "Strategies of the window's decodes: with less memory chunked, with the least per frame.",
                    (gained("framefit_decode_duration_seconds_count", "strategy"), "{{strategy}}"),
                    unit="percentunit",
                    draw=Draw.SHARE,
                    height=11,
                    styles=STRATEGIES,
                ),
            ),
        ),
        (
            "Why",
            (
                Panel(
                    Kind.BARGAUGE,
                    "Decodes by strategy and reason",
                    "Decodes in the shown time range, with the planner's reason from each job's report.",
                    (
                        Query(
                            gained_exactly("framefit_decode_strategy_total", "strategy, reason"),
                            "{{strategy}}: {{reason}}",
                            instant=True,
                        ),
                    ),
                    decimals=0,
                    styles=STRATEGIES,
                ),
                Panel(
                    Kind.HEATMAP,
                    "Chunk sizes",
                    "Latent frames per chunk. A darker cell means more decodes.",
                    (Query(gained("framefit_decode_chunk_frames_bucket", "le"), "{{le}}"),),
                ),
                Panel(
                    Kind.TEXT,
                    "How to read the memory picture",
                    "",
                    content=HOW_TO_READ.strip(),
                ),
            ),
        ),
        (
            "Was the prediction right?",
            (
                series(
                    "Measured / predicted peak",
                    "Above 1, decodes need more than predicted. Learned margins bring it back below 1.",
                    (quantile(0.05, "framefit_decode_prediction_ratio"), "5th percentile"),
                    (quantile(0.5, "framefit_decode_prediction_ratio"), "median"),
                    (quantile(0.95, "framefit_decode_prediction_ratio"), "95th percentile"),
                    thresholds=((1, "red"),),
                ),
                series(
                    "Fallbacks",
                    "Decodes in the window that left their planned option, and the option they fell back to.",
                    (gained("framefit_decode_fallback_total", "from, to"), "{{from}} → {{to}}"),
                    draw=Draw.BARS,
                ),
                series(
                    "Out of memory",
                    "Out-of-memory events in the window, by stage.",
                    (gained("framefit_oom_total", "stage"), "{{stage}}"),
                    draw=Draw.BARS,
                ),
            ),
        ),
        (
            "What it cost",
            (
                series(
                    "Decode time by strategy",
                    "Median over the window, without the time to encode the mp4.",
                    (quantile(0.5, "framefit_decode_duration_seconds", "strategy"), "{{strategy}}"),
                    unit="s",
                    styles=STRATEGIES,
                    width=12,
                ),
                series(
                    "Regret",
                    "Decode seconds lost per hour to options that were too careful, or to retries.",
                    (f"{rate('framefit_decode_regret_seconds_total', 'instance')} * 3600", "{{instance}}"),
                    unit="s",
                    width=12,
                ),
            ),
        ),
    ),
)
