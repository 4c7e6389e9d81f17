"""`framefit calibrate`: measures time and memory of each decode strategy with a model's VAE on this
machine."""

from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.options import AsJson, DataDir, chosen_model, settings_with
from app.cli.outputs import check_output_folder, print_json


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(calibrate)


def calibrate(
    model: Annotated[
        str | None, typer.Option(help="A name from `framefit models`. Default: the default model.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu or cuda:N. Default: the first GPU, or cpu without one.")
    ] = "auto",
    seconds: Annotated[
        float, typer.Option(min=0.1, help="Time limit. A longer one measures larger videos.")
    ] = 10.0,
    out: Annotated[Path, typer.Option(help="Folder for the table and the plot.")] = Path(),
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Measure batched, chunked and per-frame decoding, store what the planner learns, and write a table and a
    plot of memory against time.

    The smallest video is always decoded all three ways; larger ones are decoded in the time left. A model
    that is not downloaded is measured with random weights, which take the same time and memory.
    """
    from app.models.entries import load_models

    check_output_folder(out)
    settings = settings_with(data_dir=data_dir)
    entry = chosen_model(load_models(settings), model)
    from app.worker.calibration import calibrate_model

    found = calibrate_model(
        settings, entry, device, limit_seconds=seconds, on_measured=_ignore if as_json else _show
    )
    if not found.measurements:
        sentence = f"framefit: no decode finished within {seconds:g} s: give more --seconds"
        typer.secho(sentence, err=True, fg=typer.colors.RED)
        raise typer.Exit(1)
    out.mkdir(parents=True, exist_ok=True)
    stem = f"calibration-{entry.name}-{found.device.replace(':', '-')}"
    found.write_table(out / f"{stem}.md")
    found.write_plot(out / f"{stem}.png")
    if as_json:
        print_json(_as_json(found, out / stem))
        return
    typer.echo(
        f"{len(found.measurements)} decodes; {out / stem}.md and .png; learned costs in {found.kept_in}"
    )
    if not found.times_kept:
        typer.echo(
            "One size does not predict the times of others, so its times are not kept: raise --seconds."
        )


def _as_json(found: Any, files: Path) -> dict[str, Any]:
    rows = [
        {
            "latent_frames": each.shape.frames,
            "latent_height": each.shape.height,
            "latent_width": each.shape.width,
            "strategy": each.strategy,
            "frames_per_chunk": each.frames_per_chunk,
            "seconds": each.seconds,
            "measured_bytes": each.measured_bytes,
        }
        for each in found.measurements
    ]
    names = {"table": f"{files}.md", "plot": f"{files}.png", "learned_costs": str(found.kept_in)}
    return {"device": found.device, "measurements": rows, "times_kept": found.times_kept, **names}


def _ignore(_each: Any) -> None:
    pass


def _show(each: Any) -> None:
    shape = each.shape
    needed = "" if each.measured_bytes is None else f", {each.measured_bytes / 1e6:.0f} MB"
    typer.echo(
        f"{shape.frames:3} x {shape.height:3} x {shape.width:3}  {each.strategy:9} {each.frames_per_chunk:3} "
        f"per chunk: {each.seconds:.3f} s{needed}"
    )
