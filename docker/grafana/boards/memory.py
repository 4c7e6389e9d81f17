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
    """The mean over the few seconds around each end of a decode: with one worker, that decode's own value."""
    spans = (f"sum(rate({histogram}_{part}{{{SITE}}}[$__rate_interval]))" for part in ("sum", "count"))
    return "{} / ({} > 0)".format(*spans)


HOW_TO_READ = """
**The three colours are one card.** Green is free, blue is held by Framefit's worker, grey by everyone else.

**Every pair of marks is one decode, drawn from zero as green is.** Orange is what it was *predicted* to need
on the way that was chosen, red what it *really* took. Inside green, it fits.

- *Grey grows:* a neighbour took memory. Green sinks; the next decode is cut into smaller chunks: its marks
  sink below green again, and the strategy share beside it turns yellow or orange.
- *Red above orange:* the prediction was too low. It is corrected from what was measured.
- *Marks far below green, share not green:* careful for nothing; the regret panel counts what that cost.
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
                    "The tightest card's share of free memory.",
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
                    "Median over the window. Under 1 the prediction was on the safe side.",
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
                    "Decoding time lost in the window to choices slower than memory really allowed.",
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
                    "How the window's decodes ran: with less memory, chunked; with the least, per frame.",
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
                    "Decodes in the shown time range, with the planner's reason as in each job's report.",
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
                    "Latent frames decoded at a time; the darker, the more chunks.",
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
                    "Above 1 a decode needed more than predicted. The learned residual pulls the line back.",
                    (quantile(0.05, "framefit_decode_prediction_ratio"), "5th percentile"),
                    (quantile(0.5, "framefit_decode_prediction_ratio"), "median"),
                    (quantile(0.95, "framefit_decode_prediction_ratio"), "95th percentile"),
                    thresholds=((1, "red"),),
                ),
                series(
                    "Fallbacks",
                    "Decodes in the window that left the rung they were planned on, and where they went.",
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
                    "Median over the window. Encoding the file is not in it.",
                    (quantile(0.5, "framefit_decode_duration_seconds", "strategy"), "{{strategy}}"),
                    unit="s",
                    styles=STRATEGIES,
                    width=12,
                ),
                series(
                    "Regret",
                    "Seconds of decoding an hour lost to choices that were too careful, or to retries.",
                    (f"{rate('framefit_decode_regret_seconds_total', 'instance')} * 3600", "{{instance}}"),
                    unit="s",
                    width=12,
                ),
            ),
        ),
    ),
)
