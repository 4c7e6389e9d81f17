"""`app/api/static/operating.html`: the page "Operating" and a runbook for each alert, as it is served.

The service serves the page under /docs/operating, without other hosts and under its policy: no script, no
style but its own file. Alerts link to their anchors in it.
"""

import re
from pathlib import Path
from typing import Any

import markdown
import yaml

ROOT = Path(__file__).parents[2]
RULES = ROOT / "docker" / "prometheus" / "rules"
OPERATING = ROOT / "app" / "api" / "static" / "operating.html"
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#\s]+)(#[^)]*)?\)")
COMPOSE = "docker compose -f docker/compose.yaml"
FIRST_LOOK = f"""## Alerts

Each alert of the bundled rules has its runbook here. These commands are the first look at any of them, from
the checkout's folder; without Docker, leave out what is before `framefit`. `$KEY` is an
[admin key](#api-keys); without keys, leave out `-H` and what follows it.

```sh
{COMPOSE} ps
{COMPOSE} logs --tail 100 framefit
{COMPOSE} exec framefit framefit doctor
curl -H "Authorization: Bearer $KEY" http://127.0.0.1:8000/readyz
curl -H "Authorization: Bearer $KEY" http://127.0.0.1:8000/devices
curl -H "Authorization: Bearer $KEY" "http://127.0.0.1:8000/jobs?status=failed"
```
"""
HEAD = """<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <title>Framefit: operating</title>
  <link rel="icon" href="../static/favicon.svg" type="image/svg+xml">
  <link rel="stylesheet" href="../static/operating.css">
</head>
<body>
<!-- Written by `python docs/generate` from docs/operating.md and docker/prometheus/rules. -->
<nav><a href="../">Framefit</a> <a href="../docs">API reference</a> <a href="#alerts">Alerts</a></nav>
<main>
"""


def anchor(alert: str) -> str:
    """The anchor of an alert: its name in kebab case."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", alert).lower()


def alerts(folder: Path = RULES) -> list[dict[str, Any]]:
    """Every alert of the rules, in their order."""
    groups = [
        group
        for path in sorted(folder.glob("*.yml"))
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
    ]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def page(operating: str) -> str:
    """The HTML of the page; `operating` is the text of docs/operating.md."""
    text = f"{operating}\n{FIRST_LOOK}\n" + "\n".join(_runbook(rule) for rule in alerts())
    body = markdown.markdown(
        _without_other_pages(text), extensions=["tables", "fenced_code", "toc", "attr_list"]
    )
    return f"{HEAD}{body}\n</main>\n</body>\n</html>\n"


def _runbook(rule: dict[str, Any]) -> str:
    told = rule.get("annotations", {})
    lines = [f"### {rule['alert']} {{: #{anchor(rule['alert'])} }}", ""]
    severity = rule.get("labels", {}).get("severity", "")
    waits = f", after {rule['for']}" if "for" in rule else ""
    lines += [f"*{severity}*{waits}. {_plain(told.get('description', ''))}", ""]
    if told.get("runbook"):
        lines += [f"**Do this first:** {_plain(told['runbook'])}", ""]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """The text of an annotation, with commands that run from the checkout's folder."""
    text = re.sub(r"docker compose (?!-f)", f"{COMPOSE} ", " ".join(text.split()))
    return re.sub(r"\{\{\s*(.*?)\s*\}\}", lambda match: f"`{match[1].split('.')[-1].split()[0]}`", text)


def _without_other_pages(text: str) -> str:
    """The text, in which links to pages that are not served are their text and path."""

    def shown(match: re.Match[str]) -> str:
        words, target = match[1], match[2]
        return match[0] if re.match(r"https?:", target) else f"{words} (`docs/{target}`)"

    return LINK.sub(shown, text)
