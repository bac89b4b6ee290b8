"""Open a page in headless Chromium and read the result of a script; BROWSER is None if Chromium is not installed."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


def driven(path: Path, script: str, width: int = 1280) -> Any:
    """Run `script` at the end of the page in `path`; return the JSON value that it writes into the element #seen."""
    markup = path.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    markup = markup.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    path.write_text(markup.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    assert BROWSER
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},900", "--dump-dom"]
    profile = f"--user-data-dir={path.parent / 'profile'}"
    done = subprocess.run(
        [BROWSER, *options, profile, path.as_uri()], capture_output=True, text=True, timeout=60, check=True
    )
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
