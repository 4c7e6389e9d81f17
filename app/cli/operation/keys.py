"""`framefit key`: API keys, their hashes for the settings, and the secrets of their webhooks."""

from typing import Annotated

import typer

from app.cli.options import AsJson
from app.cli.outputs import print_json


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    group = typer.Typer(help="API keys.", no_args_is_help=True)
    group.command("new")(new)
    group.command("hash")(hash_of)
    group.command("webhook-secret")(webhook_secret)
    app.add_typer(group, name="key")


def new(
    name: Annotated[str, typer.Option(help="Name of the key in the keys file.")] = "caller",
    as_json: AsJson = False,
) -> None:
    """Make a random API key and print it once. The service needs only its hash."""
    from app.service.keys import format_hash, new_key

    key = new_key()
    if as_json:
        print_json({"name": name, "key": key, "hash": format_hash(key)})
        return
    typer.echo(f"key for the caller    {key}")
    typer.echo(f"FRAMEFIT_API_KEYS     {format_hash(key)}")
    typer.echo(f'FRAMEFIT_KEYS_FILE    [keys.{name}]\n{"":21} hash = "{format_hash(key)}"')


def hash_of(as_json: AsJson = False) -> None:
    """Print the hash of an existing key, which is prompted for to keep it out of the shell's history."""
    from app.service.keys import format_hash

    found = format_hash(typer.prompt("key", hide_input=True, err=as_json))
    if as_json:
        print_json({"hash": found})
    else:
        typer.echo(found)


def webhook_secret(
    name: Annotated[str, typer.Argument(help="Name of the key in the keys file, or key-1, key-2, ...")],
    as_json: AsJson = False,
) -> None:
    """Print the secret that signs a key's webhooks, for whoever receives them."""
    from app.config import ConfigError, load_settings
    from app.service.keys import load_keys
    from app.service.webhooks.signing import derived, shown

    settings = load_settings()
    key = load_keys(settings).named(name)
    if settings.webhook_secret is None:
        raise ConfigError("FRAMEFIT_WEBHOOK_SECRET is not set: webhooks are off")
    if key is None:
        raise ConfigError(f"there is no key {name!r} in FRAMEFIT_API_KEYS and FRAMEFIT_KEYS_FILE")
    secret = shown(derived(settings.webhook_secret, key.owner, key.webhook_generation))
    if as_json:
        print_json({"name": name, "secret": secret})
    else:
        typer.echo(secret)
