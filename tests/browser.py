"""A headless Chromium driven through its debugging pipe, for tests that look at pages."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find() -> str | None:
    """The browser's path, from PRUNUS_BROWSER or the usual names; None where there is none."""
    return os.environ.get("PRUNUS_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)


class Tab:
    """One page: what it logged, what it asked for, what it shows."""

    def __init__(self, read, write, downloads: Path):
        self._read, self._write, self._rest, self._number = read, write, b"", 0
        self.downloads = downloads
        self.events: list[dict] = []
        self._session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params):
        """The result of one command; events that arrive meanwhile are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def _message(self) -> dict:
        while b"\0" not in self._rest:
            chunk = os.read(self._read, 1 << 16)
            if not chunk:
                raise RuntimeError("the browser has gone")
            self._rest += chunk
        first, _, self._rest = self._rest.partition(b"\0")
        return json.loads(first)

    def run(self, script: str):
        """The value of a JavaScript expression, promises awaited."""
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"].get("text", "") + f" in {script}")
        return answer["result"].get("value")

    def look(self, width: int, *, dark: bool = False, height: int = 900) -> None:
        """Set the window's width and the colour scheme."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=width < 600)  # fmt: skip
        self.call("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])  # fmt: skip

    def open(self, url: str, ready: str = "document.readyState == 'complete'") -> float:
        """Open a page, wait until the expression `ready` holds; seconds it took."""
        begun = time.monotonic()
        self.events.clear()
        self.call("Page.navigate", url=url)
        self.wait(ready)
        return time.monotonic() - begun

    def wait(self, ready: str, seconds: float = 240) -> None:
        """Wait until a JavaScript expression holds."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            with suppress(RuntimeError):
                if self.run(f"Boolean({ready})"):
                    return
            time.sleep(0.05)
        raise TimeoutError(f"{ready} did not come true in {seconds} s")

    def picture(self, path: Path) -> Path:
        """The whole page as PNG."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def complaints(self) -> list[str]:
        """Errors and warnings that the page logged."""
        found = []
        for event in self.events:
            params = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                found.append(details.get("exception", {}).get("description", details["text"]))
            if event.get("method") == "Runtime.consoleAPICalled" and params["type"] in (
                "error",
                "warning",
            ):
                found.append(" ".join(str(a.get("value", a)) for a in params["args"]))
            if event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
                found.append(params["entry"]["text"])
        return found

    def requests(self) -> list[str]:
        """Addresses the page asked for beyond itself."""
        urls = [
            e["params"]["request"]["url"]
            for e in self.events
            if e.get("method") == "Network.requestWillBeSent"
        ]
        return [url for url in urls[1:] if not url.startswith(("data:", "blob:"))]


@contextmanager
def browser():
    """A `Tab` in a fresh browser with a profile of its own; both are gone afterwards."""
    path = find()
    if path is None:
        raise FileNotFoundError("no Chromium is installed")
    to_browser, write = os.pipe()
    read, from_browser = os.pipe()
    os.set_inheritable(to_browser, True)
    os.set_inheritable(from_browser, True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        downloads = Path(profile) / "downloads"
        downloads.mkdir()
        command = (
            f"exec 3<&{to_browser} 4>&{from_browser}; exec {path} --headless=new --no-sandbox "
            f"--disable-gpu --hide-scrollbars --no-first-run --disable-dev-shm-usage "
            f"--disable-background-networking --user-data-dir={profile} --remote-debugging-pipe"
        )
        with subprocess.Popen(
            ["/bin/bash", "-c", command],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            os.close(to_browser)
            os.close(from_browser)
            try:
                tab = Tab(read, write, downloads)
                tab.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
                yield tab
                tab._session = None
                tab.call("Browser.close")
            finally:
                os.close(write)
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                os.close(read)
