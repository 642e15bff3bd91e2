"""Chromium without a screen, over its debugging pipe (file descriptors 3 and 4): no driver, no port."""

import base64
import json
import os
import pathlib
import select
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATIENCE = 60


def path():
    """A Chromium, installed if need be. Raises RuntimeError."""
    done = subprocess.run([ROOT / "scripts" / "browser.sh"], capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    return done.stdout.split()[-1]


class Browser:
    """One page. `problems` are what it has complained about: errors, warnings, exceptions, requests that were made."""

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="lessismore-", ignore_cleanup_errors=True)
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()

        def wire():  # the pipes may lie at 3 and 4 themselves
            a, b = os.dup(theirs_in), os.dup(theirs_out)
            os.dup2(a, 3)
            os.dup2(b, 4)

        self._child = subprocess.Popen(
            [path(), "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--hide-scrollbars",
             "--no-first-run", "--disable-background-networking",
             "--disable-dev-shm-usage",  # containers have little of it
             f"--user-data-dir={self._folder.name}"],
            preexec_fn=wire, pass_fds=(3, 4, theirs_in, theirs_out), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._left, self._id, self._session = b"", 0, None
        self.problems, self.loaded = [], False
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method, **params):
        self._id += 1
        message = {"id": self._id, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._id:
            self._note(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _next(self):
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._left:
            ready, _, _ = select.select([self._in], [], [], max(0, end - time.monotonic()))
            some = os.read(self._in, 1 << 20) if ready else b""
            if not some:
                raise RuntimeError("the browser has gone" if ready else f"the browser has said nothing for {PATIENCE} s")
            self._left += some
        line, _, self._left = self._left.partition(b"\0")
        return json.loads(line)

    def _note(self, event):
        method, params = event.get("method"), event.get("params", {})
        if method == "Runtime.consoleAPICalled":
            self.problems.append(f"console.{params['type']}: {params['args']}")
        elif method == "Runtime.exceptionThrown":
            self.problems.append(f"exception: {params['exceptionDetails']}")
        elif method == "Log.entryAdded":
            self.problems.append(f"log: {params['entry']}")
        elif method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith(("file:", "data:", "about:")):
                self.problems.append(f"request: {url}")
        elif method == "Page.loadEventFired":
            self.loaded = True

    def open(self, file, width, height, dark=False):
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.loaded = False
        self.ask("Page.navigate", url=pathlib.Path(file).resolve().as_uri())
        while not self.loaded:
            self._note(self._next())

    def value(self, expression):
        """What a JavaScript expression gives."""
        found = self.ask("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def key(self, name):
        for kind in ("rawKeyDown", "keyUp"):
            self.ask(
                "Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode={"ArrowLeft": 37, "ArrowDown": 40}[name]
            )

    def screenshot(self, file, full=True):
        """A picture of the page, all of it or what a window shows."""
        data = self.ask("Page.captureScreenshot", captureBeyondViewport=full, **({"clip": self._whole()} if full else {}))["data"]
        pathlib.Path(file).write_bytes(base64.b64decode(data))

    def _whole(self):
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        return {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}

    def close(self):
        self._child.kill()
        self._child.wait()
        os.close(self._in)
        os.close(self._out)
        self._folder.cleanup()


if __name__ == "__main__":  # browser.py page.html picture.png [width height [dark]]
    import sys

    page, picture, *more = sys.argv[1:]
    width, height = map(int, more[:2]) if more else (1200, 900)
    browser = Browser()
    browser.open(page, width, height, dark="dark" in more)
    browser.screenshot(picture, full=not more)
    browser.close()
    print("\n".join(browser.problems) or "no complaints")
