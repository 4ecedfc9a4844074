"""A real `shoal serve` on loopback, for the tests that talk to its HTTP door."""
import contextlib
import http.client
import json
import pathlib
import subprocess
import tempfile
import time

KEY = "shl_test_key_of_the_conformance_run"
OTHER_KEY = "shl_another_tenants_key_0123456789"


class Answer:
    def __init__(self, response):
        self.status_code, self.headers, self.content = response.status, response.headers, response.read()
        self.text = self.content.decode()

    def json(self):
        return json.loads(self.text)


class Http:
    """Plain requests, one connection each, with nothing between the test and the wire."""

    def __init__(self, address, key=None):
        self.address = address
        self.fields = {"authorization": f"Bearer {key}"} if key else {}

    def request(self, method, path, content=None, headers=None):
        connection = http.client.HTTPConnection(self.address, timeout=120)
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # It answers before all is sent
                connection.request(method, path, body=content, headers={**self.fields, **(headers or {})})
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def get(self, path, headers=None):
        return self.request("GET", path, headers=headers)

    def post(self, path, content=None, headers=None, body=None):
        if body is not None:
            content, headers = json.dumps(body), {"content-type": "application/json", **(headers or {})}
        return self.request("POST", path, content, headers)


@contextlib.contextmanager
def served(shoal, model, *options, workers=1, with_keys=True):
    """Yields (address, process) of a server of `model`, a folder, or of a synthetic checkpoint if None."""
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        if model is None:
            model = work / "words"
            subprocess.run([shoal, "synth", model, "--geometry", "tiny", "--vocab", "1024"], check=True,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        keys = work / "keys"
        keys.write_text(f"# conformance\nacme {KEY}\nother {OTHER_KEY}\n")
        address_file = work / "address"
        log = open(work / "log", "w")
        process = subprocess.Popen(
            [shoal, "serve", "--model", model, "--workers", str(workers), "--listen", f"unix:{work}/grpc", "--http",
             "127.0.0.1:0", "--http-address-file", address_file, "--threads", "1", "--kv-tokens", "65536",
             *(["--api-keys", keys] if with_keys else []), *options], stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 60
            while not address_file.exists() or not address_file.read_text().endswith("\n"):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the server did not start:\n" + (work / "log").read_text())
                time.sleep(0.02)
            yield address_file.read_text().strip(), process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
            if process.returncode != 0:
                print((work / "log").read_text())
                raise RuntimeError(f"the server ended with {process.returncode}")
