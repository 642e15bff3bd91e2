"""Driver for llama-server: starts it, sends requests as they are written down, stops it; as often as it is told.

Job: {"server", "model", "slots", "threads" …: as of server.py, "runs": [steps …]}
A run is one server, a step some requests that are sent at once: {"path", "body"}, with "leave after": the reader of a streamed answer
goes away after so many pieces. Emitted for each: {"run", "step", "request", "status", "answer"}. "{folder}" in an argument is a folder
for the server's files, which outlasts its runs.
"""

import json
import tempfile
import threading

import protocol
import server


def send(port, where, asked):
    if "leave after" in asked:
        c = server.stream(port, asked["body"])
        response = c.getresponse()
        for _, raw in zip(range(2 * asked["leave after"]), response):  # a line, and an empty one
            assert response.status == 200, raw
        c.close()
        protocol.emit(**where, status="left", answer=None)
        return
    response = server.request(port, "POST", asked["path"], asked["body"])
    protocol.emit(**where, status=response.status, answer=json.loads(response.read()))


def main():
    job = protocol.job()
    errors = []

    def work(*what):
        try:
            send(*what)
        except Exception as error:  # noqa: BLE001 (raised below, on the main thread)
            errors.append(error)

    with tempfile.TemporaryDirectory(prefix="lessismore-slots-") as folder:
        arguments = [a.replace("{folder}", folder) for a in job.get("arguments", [])]
        for run, steps in enumerate(job["runs"]):
            process, port = server.start({**job, "arguments": arguments})
            try:
                for step, requests in enumerate(steps):
                    threads = [
                        threading.Thread(target=work, args=(port, {"run": run, "step": step, "request": i}, asked))
                        for i, asked in enumerate(requests)
                    ]
                    for t in threads:
                        t.start()
                    for t in threads:
                        t.join()
            finally:
                code = server.stop(process)
            server.crash(code)
            if errors:
                raise errors[0]
    protocol.emit(exit=code)


if __name__ == "__main__":
    main()
