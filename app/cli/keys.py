"""`framefit key new` and `framefit key hash`: make an API key and its hash for the settings."""

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    group = typer.Typer(help="API keys.", no_args_is_help=True)
    group.command("new")(new)
    group.command("hash")(hash_of)
    app.add_typer(group, name="key")


def new(
    name: Annotated[str, typer.Option(help="Name of the key in the keys file.")] = "caller",
) -> None:
    """Make a random API key and print it once. The service needs only its hash."""
    from app.service.keys import format_hash, new_key

    key = new_key()
    typer.echo(f"key for the caller    {key}")
    typer.echo(f"FRAMEFIT_API_KEYS     {format_hash(key)}")
    typer.echo(f'FRAMEFIT_KEYS_FILE    [keys.{name}]\n{"":21} hash = "{format_hash(key)}"')


def hash_of() -> None:
    """Print the hash of an existing key, which is prompted for to keep it out of the shell's history."""
    from app.service.keys import format_hash

    typer.echo(format_hash(typer.prompt("key", hide_input=True)))
