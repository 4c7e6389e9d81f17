"""`framefit inspect`: says what files of weights are and which entry runs them, from their headers.

Of a video or a picture it says how it was made (`app.cli.models.media_files`).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.models.media_files import is_media_file, media_documents, show_media
from app.cli.models.media_files import shown_line as _line
from app.cli.options import byte_count, settings_with
from app.units import format_bytes

if TYPE_CHECKING:
    from app.models.inspection.inspected import Inspected


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(inspect)


def inspect(
    files: Annotated[
        list[str],
        typer.Argument(
            help="Safetensors or GGUF files on this machine, or https addresses; or mp4, WebM and PNG files."
        ),
    ],
    gpu: Annotated[
        str | None, typer.Option(help="Memory of the GPU, such as 12GB. Default: this machine's largest.")
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Append the entry to the file that FRAMEFIT_MODELS_FILE names.")
    ] = False,
    allow_private: Annotated[
        bool,
        typer.Option("--allow-private", help="Also read addresses inside private networks, and by http."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what files of weights are, what they need, and which entry of the models file runs them.

    Reads headers only, of an address by ranges. Several files make one entry. Of a video or a frame that
    Framefit has made it says prompt, seed, model and decode.
    """
    videos, damaged = media_documents([name for name in files if is_media_file(name)])
    weights = [name for name in files if not is_media_file(name)]
    if not weights:
        _tell({"videos": videos, "faults": damaged}, as_json=as_json, failed=bool(damaged))
        return
    from app.models.inspection.entry import NoEntry, entry_of
    from app.models.inspection.inspected import as_document
    from app.models.inspection.needs import needs_document, needs_of

    card, card_bytes = _card(gpu)
    found, faults = _inspected(weights, allow_private=allow_private)
    settings = settings_with()
    document: dict[str, Any] = {"files": [as_document(each) for each in found], "faults": [*damaged, *faults]}
    if videos:
        document["videos"] = videos
    needs = needs_of(found)
    if needs:
        document["needs"] = needs_document(needs, card, card_bytes)
    try:
        entry = None if faults or not needs else entry_of(found, taken=_taken(settings.models_file))
        document |= {"entry": entry and entry.toml, "notes": list(entry.notes) if entry else []}
    except NoEntry as error:
        entry = None
        document |= {"entry": None, "no_entry": str(error), "notes": []}
    _tell(document, as_json=as_json)
    failed = bool(document["faults"]) or (write and not _written(entry, settings.models_file))
    if failed:
        raise typer.Exit(1)


def _tell(document: dict[str, Any], *, as_json: bool, failed: bool = False) -> None:
    if as_json:
        typer.echo(json.dumps(document, indent=2))
    else:
        _show(document)
    if failed:
        raise typer.Exit(1)


def _inspected(
    names: Sequence[str], *, allow_private: bool
) -> tuple[list["Inspected"], list[dict[str, Any]]]:
    """The files that could be read and fit a component, and what is wrong with the others."""
    from app.models.files.remote import RemoteFile
    from app.models.files.stored import DamagedFile
    from app.models.inspection.inspected import Unusable, inspect_file, part_document

    found, faults = [], []
    for name in names:
        try:
            remote = name.startswith(("http://", "https://"))
            file = RemoteFile(name, allow_private=allow_private) if remote else Path(name).expanduser()
            found.append(inspect_file(name, file))
        except (DamagedFile, Unusable) as error:
            part = getattr(error, "part", None)
            faults.append(
                {"file": name, "reason": _line(f"{name} {error}"), "nearest": part and part_document(part)}
            )
        except OSError as error:
            reason = _line(f"{name}: {error.strerror or error}")
            faults.append({"file": name, "reason": reason, "nearest": None})
    return found, faults


def _card(gpu: str | None) -> tuple[str, int | None]:
    """Name and bytes of the card that is asked for, else of this machine's largest; None without one."""
    if gpu is not None:
        return f"a {gpu} GPU", byte_count(gpu)
    from adaptive.device.nvml import Nvml

    with Nvml() as nvml:
        cards = [each for each in nvml.devices() if each.total_bytes]
    largest = max(cards, key=lambda each: each.total_bytes, default=None)
    return (largest.name or "this GPU", largest.total_bytes) if largest else ("no GPU", None)


def _taken(models_file: Path | None) -> list[str]:
    """The names of entries that exist."""
    import tomllib

    from app.models.entries import BUILT_IN_MODELS

    names: list[str] = []
    for path in (BUILT_IN_MODELS, models_file):
        try:
            names += tomllib.loads(path.read_text(encoding="utf-8"))["models"] if path else ()
        except (OSError, ValueError, KeyError):
            continue
    return names


def _written(entry: Any, models_file: Path | None) -> bool:
    from app.models.inspection.entry import NoEntry, append_entry

    if entry is None:
        return False
    if models_file is None:
        _complain("set FRAMEFIT_MODELS_FILE to the file that shall have the entry")
        return False
    try:
        append_entry(models_file, entry)
    except (OSError, NoEntry) as error:
        _complain(str(error))
        return False
    typer.echo(f"\nappended [models.{entry.name}] to {models_file}", err=True)
    return True


def _complain(message: str) -> None:
    typer.secho(f"framefit: {message}", err=True, fg=typer.colors.RED)


def _show(document: dict[str, Any]) -> None:
    for video in document.get("videos", ()):
        show_media(video)
    for file in document.get("files", ()):
        _show_file(file)
    for fault in document["faults"]:
        _complain(fault["reason"])
    if "needs" in document:
        _show_needs(document["needs"])
    for note in document.get("notes", ()):
        typer.echo(f"\nnote: {_line(note)}")
    if document.get("entry"):
        typer.echo(f"\nentry of the models file:\n\n{document['entry']}", nl=False)
    elif "no_entry" in document:
        typer.echo(f"\nno entry: {_line(document['no_entry'])}")


def _show_file(file: dict[str, Any]) -> None:
    dtypes = ", ".join(f"{name} {format_bytes(size)}" for name, size in file["bytes_by_dtype"].items())
    typer.echo(f"{file['file']}\n  format     {file['format']}, {format_bytes(file['bytes'])}: {dtypes}")
    if file["declared"]:
        declared = ", ".join(f"{_line(form)} in {count} layers" for form, count in file["declared"].items())
        typer.echo(f"  declared   {declared}")
    for part in file["parts"]:
        where = f" under {part['prefix']}" if part["prefix"] else ""
        typer.echo(f"  component  {part['component']}, {part['architecture']} ({part['class']})")
        typer.echo(f"  layout     {part['layout']}{where}; weights {part['form']}")
        if part["models"]:
            same = ": the same keys, so that the file does not say which" if len(part["models"]) > 1 else ""
            typer.echo(f"  model      {' or '.join(part['models'])}{same}")
        if part["unverified"]:
            typer.echo(f"  unverified {part['unverified']}")
    if file["lora"]:
        lora = file["lora"]
        ranks = ", ".join(map(str, lora["ranks"]))
        typer.echo(
            f"  component  LoRA of rank {ranks} for {lora['layers']} layers of {' or '.join(lora['fits'])}"
        )
    if file["others"]:
        typer.echo(f"  others     {', '.join(file['others'])}: not used")


def _show_needs(needs: dict[str, Any]) -> None:
    known = needs["free_bytes"] is not None
    if known:
        typer.echo(f"\non {needs['card']}, {format_bytes(needs['free_bytes'])} beside CUDA's own")
    else:
        typer.echo("\nwithout a GPU on this machine; --gpu 12GiB compares with one")
    for row in needs["components"]:
        _show_need(row["component"], row, row["verdict"])
    if len(needs["components"]) > 1:
        both = "yes" if needs["all_fit_in_bf16"] else "as stored" if needs["all_fit_as_stored"] else "no"
        _show_need("all", needs, f"fit together: {both}" if known else None)


def _show_need(name: str, need: dict[str, Any], verdict: str | None) -> None:
    stored, computed = format_bytes(need["stored_bytes"]), format_bytes(need["bf16_bytes"])
    end = f": {verdict}" if verdict else ""
    typer.echo(f"  {name:14} {stored:>9} as stored, {computed:>9} in bf16{end}")
