"""Driver for llama-server: starts it, sends all prompts at once (or, with "after", each one once the first request has got so
many tokens), stops it.

Job: {"server": path, "model", "prompts", "lengths", "slots", "context", "threads",
      "flash": "on" | "off" | "auto", "unified", "arguments": [...], "stream", "after": [...], "folder": where it is started}
"defaults": nothing is said to the server about slots, the cache and attention.
The library comes in through the environment alone: GGML_BACKEND_PATH.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import protocol


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def connect(port, method, path, body=None, timeout=300) -> http.client.HTTPConnection:
    """A request on a connection of its own, whose response is still to be read."""
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    c.request(method, path, json.dumps(body) if body is not None else None, {"Content-Type": "application/json"})
    return c


def request(port, method, path, body=None, timeout=300):
    return connect(port, method, path, body, timeout).getresponse()


def stream(port, body, timeout=300):
    """A streamed completion; who closes its connection cancels the request."""
    return connect(port, "POST", "/completion", body | {"stream": True}, timeout)


def start(job) -> tuple[subprocess.Popen, int]:
    port = free_port()
    threads = str(job.get("threads", 1))
    cmd = [job["server"], "-m", job["model"], "--host", "127.0.0.1", "--port", str(port), "-t", threads, "-tb", threads]
    if not job.get("defaults"):
        slots = job.get("slots", 1)
        cmd += [
            "-np",
            str(slots),
            "-c",
            str(job.get("context", 2048) * slots),
            "--no-warmup",
            "-fa",
            job.get("flash", "auto"),
            "-kvu" if job.get("unified", True) else "-no-kvu",
        ]
    cmd += job.get("arguments", [])
    server = subprocess.Popen(cmd, stdin=subprocess.DEVNULL, stdout=sys.stderr, cwd=job.get("folder"))
    deadline = time.time() + 120
    while time.time() < deadline:
        if server.poll() is not None:
            crash(server.returncode)
            raise RuntimeError(f"llama-server ended with {server.returncode}")
        try:
            if request(port, "GET", "/health", timeout=5).status == 200:
                return server, port
        except OSError:
            pass
        time.sleep(0.1)
    server.kill()
    raise RuntimeError("llama-server did not come up in 120 s")


def crash(code: int):
    """Ends the driver by the signal that ended the server, if one did."""
    if code < 0:
        os.kill(os.getpid(), -code)


def stop(server) -> int:
    server.send_signal(signal.SIGINT)
    try:
        return server.wait(timeout=60)
    except subprocess.TimeoutExpired:
        server.kill()
        raise RuntimeError("llama-server did not end within 60 s of SIGINT")


class Progress:
    """How many tokens the first request has got."""

    def __init__(self):
        self._tokens, self._more = 0, threading.Condition()

    def add(self, tokens: int):
        with self._more:
            self._tokens += tokens
            self._more.notify_all()

    def wait(self, tokens: int):
        with self._more:
            if not self._more.wait_for(lambda: self._tokens >= tokens, timeout=200):
                raise RuntimeError(f"the first request got {self._tokens} tokens in 200 s, not {tokens}")


def complete(port, slot, prompt, length, stream, progress):
    body = {
        "prompt": prompt,
        "n_predict": length,
        "temperature": 0.0,
        "top_k": 1,
        "id_slot": slot,
        "stream": True,
        "return_tokens": True,
        "cache_prompt": False,
        "ignore_eos": True,
    }
    response = request(port, "POST", "/completion", body)
    if response.status != 200:
        raise RuntimeError(response.read().decode())
    out = []
    for raw in response:
        if raw.startswith(b"data: "):
            line = json.loads(raw[6:])
            tokens = line.get("tokens", [])
            out += tokens
            if slot == 0:
                progress.add(len(tokens))
            if "timings" in line:
                protocol.emit(slot=slot, timings=line["timings"])
            if stream:
                for t in tokens:
                    protocol.emit(prompt=slot, token=t)
    return out


def main():
    job = protocol.job()
    server, port = start(job)
    errors = []
    progress, after = Progress(), job.get("after", [0] * len(job.get("prompts", [])))

    def work(i):
        try:
            progress.wait(after[i])
            tokens = complete(port, i, job["prompts"][i], job["lengths"][i], job.get("stream"), progress)
            protocol.emit(prompt=i, tokens=tokens)
        except Exception as error:  # noqa: BLE001 (raised below, on the main thread)
            errors.append(error)

    try:
        if "text" in job:
            body = {"content": job["text"], "add_special": True}
            protocol.emit(tokens=json.loads(request(port, "POST", "/tokenize", body).read())["tokens"])
        workers = [threading.Thread(target=work, args=(i,)) for i in range(len(job.get("prompts", [])))]
        for w in workers:
            w.start()
        for w in workers:
            w.join()
    finally:
        code = stop(server)
    crash(code)
    if errors:
        raise errors[0]
    protocol.emit(exit=code)


if __name__ == "__main__":
    main()
