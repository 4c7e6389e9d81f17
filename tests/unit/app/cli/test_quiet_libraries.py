"""Commands, and `import adaptive`, print nothing of other libraries."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

Framefit = Callable[..., Any]


def test_the_hub_s_client_does_not_print_its_attempts(
    framefit: Framefit, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub.utils._http import http_backoff

    assert framefit("key", "new").exit_code == 0  # any command
    with pytest.raises(Exception, match="refused"):
        http_backoff("HEAD", "http://127.0.0.1:1/model", max_retries=1, base_wait_time=0)
    assert caplog.text == ""
    assert capfd.readouterr() == ("", "")


def test_importing_the_library_prints_nothing() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", "import adaptive"], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
