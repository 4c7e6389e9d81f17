"""`docs/cli.md` from the help of the `framefit` command."""

from collections.abc import Iterator
from typing import Any

from markdown_text import one_line, table
from typer.main import get_command

from app.cli import app

HEAD = """# Command line

`framefit COMMAND --help` prints the same as this page. [Settings](settings.md) apply to every command; an
option wins over the setting.

- With `--json` a command prints its result for programs on standard output; what it says meanwhile goes to
  standard error.
- A size such as `12GiB`, or `12G`, counts in powers of 2; `12GB` in powers of 10.
- The exit status is 2 for a value that must be changed, 1 for anything else that went wrong, and 130 where
  Ctrl-C ended `framefit generate`.
- `framefit --install-completion` installs completion for bash, zsh or fish.

```sh
framefit generate photo.jpg "a slow pan to the right" -o out.mp4
framefit plan --model ltx-video --gpu 12GiB --host-memory 32GiB
framefit doctor
```
"""


def page() -> str:
    """The whole page as Markdown."""
    return "\n".join([HEAD, *_command(get_command(app), ("framefit",))])


def _command(command: Any, names: tuple[str, ...]) -> Iterator[str]:
    commands = getattr(command, "commands", None)
    if commands is not None:
        for name, each in commands.items():
            if not each.hidden:
                yield from _command(each, (*names, name))
        if not command.invoke_without_command or len(names) == 1:
            return
    shown = [each for each in command.params if not getattr(each, "hidden", False) and each.name != "help"]
    arguments = [each for each in shown if each.param_type_name == "argument"]
    usage = " ".join((*names, *(_placeholder(each) for each in arguments)))
    yield f"## `{' '.join(names)}`\n"
    yield f"{one_line(command.help or '')}\n"
    yield f"```text\n{usage}{' [OPTIONS]' if len(shown) > len(arguments) else ''}\n```\n"
    rows = [(_spelling(each), _default(each), one_line(getattr(each, "help", None) or "")) for each in shown]
    if rows:
        yield "\n".join(table(("argument or option", "default", "meaning"), rows)) + "\n"


def _placeholder(argument: Any) -> str:
    name = str(argument.name).upper()
    return name if argument.required else f"[{name}]"


def _spelling(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{_placeholder(parameter)}`"
    names = [*parameter.opts, *parameter.secondary_opts]
    return ", ".join(f"`{name}`" for name in names)


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    default = parameter.default
    if default in (None, False, (), "") or callable(default):
        return ""
    return f"`{default}`"
