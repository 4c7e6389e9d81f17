"""`docs/settings.md` from the `Settings` class."""

import tomllib
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from markdown_text import one_line, table

from app.config import PREFIX, SECRET_SETTINGS, Settings

HEAD = f"""# Settings

Each setting is an environment variable. `framefit serve` reads them once, at its start. An unknown `{PREFIX}`
variable or a bad value stops the start, and the message names it.

```sh
FRAMEFIT_MODEL=ltx-video FRAMEFIT_PORT=9000 framefit serve
```
"""
MODELS_FILE = """## Secrets in files

{secrets} may be the text of a file instead, such as a
secret of a container: set the name with `_FILE` at its end to the file's path. The end of the last line does
not count. `FRAMEFIT_API_KEYS_FILE` has a key or a hash on each line. Setting both is an error.
`FRAMEFIT_HF_TOKEN_FILE` takes the place of the hub's own `HF_TOKEN`.

An empty variable counts as not set, in all of these.

## The models file

`FRAMEFIT_MODELS_FILE` names a TOML file that adds models to the built-in ones or changes them key by key. Its
form is that of [the built-in file]({path}):

```toml
[models.ltx-video]
source = "/models/LTX-Video"     # a local diffusers folder instead of the hub; other keys stay as built in
vae_dtype = "float32"            # the VAE in another dtype than the rest, for encoding and decoding
quantize = "int8"                # the transformer may be rounded if it does not fit and a request allows it
```

[Your own weights](gpu-and-models.md#your-own-weights) has the keys of an entry that takes components from
GGUF, fp8 or other files of your own.

## The keys file

`FRAMEFIT_KEYS_FILE` names a TOML file of API keys, each with its own limits. `framefit key new` draws a key
and prints its hash; only the hash goes into the file.

```toml
[keys.studio]
hash = "sha256:..."
max_queued = 20              # jobs that wait at once
max_pixels = 40_000_000      # width x height x frames of one request
admin = false                # whether it manages the jobs of all keys, devices and the log level
```

Keys in `FRAMEFIT_API_KEYS` are admin keys without limits of their own. [Operating](operating.md#api-keys)
has more on keys.
"""
TEXTS: dict[str, str] = tomllib.loads(
    Path(__file__).with_name("setting_texts.toml").read_text(encoding="utf-8")
)
ROOT = Path(__file__).parents[2]


def page() -> str:
    """The whole page as Markdown."""
    rows = [
        (
            f"`{PREFIX}{name.upper()}`",
            _default(field.default),
            _type(field.annotation),
            one_line(_meaning(name, field)),
        )
        for name, field in Settings.model_fields.items()
    ]
    models = next(iter(sorted((ROOT / "app").rglob("models.toml")))).relative_to(ROOT)
    secrets = ", ".join(f"`{PREFIX}{name.upper()}`" for name in SECRET_SETTINGS)
    tail = MODELS_FILE.replace("{path}", f"../{models}").replace("{secrets}", secrets)
    return "\n".join((HEAD, *table(("variable", "default", "value", "meaning"), rows), "", tail))


def _meaning(name: str, field: Any) -> str:
    return field.description or TEXTS[name]


def _default(value: object) -> str:
    if value is None or value == ():
        return "not set"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _type(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " ".join(f"`{each}`" for each in get_args(annotation))
    if get_origin(annotation) is tuple:
        return "list, by commas"
    args = [each for each in get_args(annotation) if each is not NoneType]
    if args:
        return _type(args[0])
    return {"bool": "`true` or `false`", "int": "integer", "float": "number", "str": "text", "Path": "path"}[
        annotation.__name__
    ]
