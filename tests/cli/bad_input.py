#!/usr/bin/env python3
"""Bad input, given to the real program: each case ends with its exit code and names the value and what would do.

    bad_input.py SHOAL

A case is a command and what its stderr must contain; the faults in files are made on copies of one synthetic checkpoint. What no
command line can express (bytes of a gRPC request, a worker of another version) is tested where it is parsed:
tests/coordinator/serve/request_test.cc, tests/coordinator/cluster/membership_test.cc. Docs: the exit codes in cli/options.h.
"""
import json
import os
import pathlib
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading

USAGE, UNAVAILABLE, PRECONDITION, TIMEOUT = 2, 3, 4, 5
PATIENCE = 60


class Program:
    """A `shoal` that stays, with its stderr."""

    def __init__(self, command, until):
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.lines = []
        killer = threading.Timer(PATIENCE, self.process.kill)
        killer.start()
        for line in self.process.stderr:
            self.lines.append(line)
            if until in line:
                break
        else:
            raise AssertionError(f"{command}: ended without \"{until}\":\n{''.join(self.lines)}")
        killer.cancel()
        self.reader = threading.Thread(target=lambda: self.lines.extend(self.process.stderr), daemon=True)
        self.reader.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE)
        self.reader.join()


class Table:
    def __init__(self, shoal):
        self.shoal, self.num_cases, self.failures = shoal, 0, []

    def check(self, name, code, words, *command):
        done = subprocess.run([self.shoal, *command], capture_output=True, timeout=PATIENCE)
        self.judge(name, code, words, done.returncode, done.stderr.decode(errors="replace"))

    def judge(self, name, code, words, got_code, stderr):
        self.num_cases += 1
        missing = [word for word in words if word not in stderr]
        if got_code == code and not missing:
            return
        self.failures.append(f"{name}: exit code {got_code}, expected {code}; not in stderr: {missing}\n{stderr[-1500:]}")


def edit_json(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_header(shard, change):
    """Rewrites a shard with `change` applied to (header length, header)."""
    data = shard.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    size, header = change(size, json.loads(data[8:8 + size]))
    text = json.dumps(header).encode()
    shard.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + data[8 + struct.unpack("<Q", data[:8])[0]:])


class Copies:
    """Checkpoints that differ from a sound one by one fault."""

    def __init__(self, model, work):
        self.model, self.work = pathlib.Path(model), pathlib.Path(work)

    def copy(self, name, change):
        folder = self.work / name
        shutil.copytree(self.model, folder)
        change(folder)
        return str(folder)

    def config(self, name, change):
        return self.copy(name, lambda folder: edit_json(folder / "config.json", change))

    def header(self, name, change):
        return self.copy(name, lambda folder: edit_header(folder / "model.safetensors", change))

    def tensor(self, name, tensor, change):
        def edit(_, header):
            change(header, header[tensor])
            return None, header
        return self.header(name, edit)


def check_files(table, copies):
    """Folders and files; `inspect` opens them as every subcommand does."""
    def inspect(name, words, model):
        table.check(name, PRECONDITION, words, "inspect", model)

    inspect("missing folder", ["/nowhere/at/all", "no such folder"], "/nowhere/at/all")
    table.check("missing folder, serve", PRECONDITION, ["/nowhere/at/all", "no such folder"], "serve", "--model", "/nowhere/at/all")
    inspect("folder without config", ["config.json", "is needed"], copies.copy("c0", lambda f: os.remove(f / "config.json")))
    inspect("folder without weights", ["no *.safetensors"], copies.copy("c1", lambda f: os.remove(f / "model.safetensors")))
    inspect("model_type", ["\"llama\"", "gpt_oss"], copies.config("c2", lambda c: c.update(model_type="llama")))
    inspect("rope_type", ["\"linear\"", "yarn"], copies.config("c3", lambda c: c["rope_scaling"].update(rope_type="linear")))
    inspect("quant_method", ["\"gptq\"", "mxfp4"],
            copies.config("c4", lambda c: c["quantization_config"].update(quant_method="gptq")))
    inspect("layer_types", ["\"chunked_attention\"", "sliding_attention"],
            copies.config("c5", lambda c: c["layer_types"].__setitem__(1, "chunked_attention")))
    router = "model.layers.2.mlp.router.weight"
    inspect("missing tensor", [router, "missing"], copies.tensor("c6", router, lambda h, t: h.__setitem__("other", h.pop(router))))
    inspect("misshapen tensor", [router, "[64, 8]", "[8, 64]"], copies.tensor("c7", router, lambda h, t: t.update(shape=[64, 8])))
    inspect("wrongly typed tensor", [router, "U8", "BF16"],
            copies.tensor("c8", router, lambda h, t: t.update(dtype="U8", shape=[16, 64])))
    inspect("truncated shard", ["model.safetensors", "it is truncated"],
            copies.copy("c9", lambda f: os.truncate(f / "model.safetensors", (f / "model.safetensors").stat().st_size - 1000)))
    inspect("header beyond the file", ["model.safetensors", "header"], copies.header("c10", lambda n, h: (10**9, h)))
    inspect("header of 200 MB", ["model.safetensors", "header"], copies.header("c11", lambda n, h: (200 << 20, h)))
    inspect("negative offset", ["-4", "begin"],
            copies.tensor("c12", router, lambda h, t: t.update(data_offsets=[-4, t["data_offsets"][1]])))
    inspect("overlapping offsets", ["overlap"],
            copies.tensor("c13", router, lambda h, t: t.update(data_offsets=[o - 64 for o in t["data_offsets"]])))

    def nan_scale(folder):
        shard = folder / "model.safetensors"
        data = bytearray(shard.read_bytes())
        size = struct.unpack("<Q", data[:8])[0]
        begin = json.loads(data[8:8 + size])["model.layers.0.mlp.experts.down_proj_scales"]["data_offsets"][0]
        data[8 + size + begin + 5] = 255
        shard.write_bytes(data)

    table.check("scale 255", PRECONDITION, ["down_proj_scales", "is 255", "0 to 254"],
                "generate", "--model", copies.copy("c14", nan_scale), "--tokens", "1", "--max-tokens", "1")


def check_command_line(table, model):
    table.check("unknown command", USAGE, ["\"sreve\""], "sreve")
    table.check("unknown option", USAGE, ["--wrokers"], "serve", "--model", model, "--wrokers", "4")
    table.check("workers 0", USAGE, ["--workers", "0"], "serve", "--model", model, "--workers", "0")
    table.check("exchange", USAGE, ["pigeon", "unix"], "serve", "--model", model, "--exchange", "pigeon")
    table.check("neither model nor server", USAGE, ["--server", "--model"], "generate", "--tokens", "1")
    table.check("bad token list", USAGE, ["\"x\"", "1,2,3"], "generate", "--model", model, "--tokens", "1,x")
    table.check("max-tokens 0", USAGE, ["--max-tokens 0", "at least 1"], "generate", "--model", model, "--tokens", "1",
                "--max-tokens", "0")
    table.check("max-tokens -3", USAGE, ["--max-tokens -3", "at least 1"], "generate", "--model", model, "--tokens", "1",
                "--max-tokens=-3")
    table.check("empty prompt", USAGE, ["--prompt", "not empty"], "generate", "--model", model, "--prompt", "")
    table.check("too little memory", UNAVAILABLE, ["too little memory", "more than the 0.00 GB"], "serve", "--model", model,
                "--memory", "100KB")
    table.check("synth over a checkpoint", PRECONDITION, [model, "already"], "synth", model)
    table.check("nobody serves", UNAVAILABLE, [], "generate", "--server", "127.0.0.1:1", "--tokens", "1", "--timeout", "5")


def check_requests(table, model, work):
    address = f"unix:{work}/clients"
    with Program([table.shoal, "serve", "--model", model, "--workers", "2", "--kv-tokens", "256", "--listen", address],
                 "ready on"):
        def generate(name, code, words, *options):
            table.check(name, code, words, "generate", "--server", address, "--timeout", "30", *options)

        generate("token id out of range", USAGE, ["99999", "512"], "--tokens", "1,99999")
        generate("temperature NaN", USAGE, ["temperature", "nan"], "--tokens", "1", "--temperature", "nan")
        generate("top-p 2", USAGE, ["top_p", "2"], "--tokens", "1", "--top-p", "2")
        generate("n 9", USAGE, ["9", "8"], "--tokens", "1", "-n", "9", "--json")
        generate("logprobs 21", USAGE, ["21", "20"], "--tokens", "1", "--logprobs", "21", "--json")
        generate("invalid UTF-8", USAGE, ["UTF-8"], "--prompt", b"ab\xff\xfecd")
        many = ",".join(["7"] * 1000)
        generate("prompt longer than the cache", USAGE, ["1000", "exceeds the cache"], "--tokens", many, "--max-tokens", "1")
        longer = ",".join(["7"] * 5000)
        generate("prompt longer than the context", USAGE, ["5000", "4096"], "--tokens", longer, "--max-tokens", "1")
        table.check("UNIX socket in use", UNAVAILABLE, [address, "in use"], "serve", "--model", model, "--listen", address)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = f"127.0.0.1:{taken.getsockname()[1]}"
        table.check("port in use", UNAVAILABLE, [port, "in use"], "serve", "--model", model, "--listen", port)
        table.check("exchange port in use", UNAVAILABLE, [port, "in use"], "worker", "--id", "0", "--model", model,
                    "--coordinator", f"unix:{work}/none", "--exchange", f"tcp:{port}")


def check_membership(table, model, other, work):
    clients, workers = f"unix:{work}/c", f"unix:{work}/w"
    with Program([table.shoal, "coordinator", "--model", model, "--workers", "2", "--listen", clients, "--worker-listen", workers],
                 "listening on"):
        def worker(identity, folder):
            return ["worker", "--id", identity, "--model", folder, "--coordinator", workers, "--exchange", "unix:", "--memory", "64MB"]

        table.check("no worker", TIMEOUT, [], "generate", "--server", clients, "--tokens", "1", "--timeout",
                    "0.3")
        with Program([table.shoal, *worker("0", model)], "worker.phase"):
            table.check("too few workers", TIMEOUT, [], "generate", "--server", clients, "--tokens", "1",
                        "--timeout", "0.5")
            table.check("two workers with one identity", UNAVAILABLE, ["worker id 0 is in use", "another id"], *worker("0", model))
            table.check("worker with another checkpoint", PRECONDITION, ["numerics", "checkpoint"], *worker("1", other))
            table.check("worker with too little memory", PRECONDITION, ["too little memory", "missing"], *worker("1", model)[:-1],
                        "300KB")


def main():
    shoal = sys.argv[1]
    table = Table(shoal)
    with tempfile.TemporaryDirectory() as work:
        model, other = f"{work}/model", f"{work}/other"
        for folder, layers in ((model, "4"), (other, "4")):
            subprocess.run([shoal, "synth", folder, "--vocab", "512", "--layers", layers, "--max-positions", "4096"], check=True,
                           stdout=subprocess.DEVNULL)
        edit_json(pathlib.Path(other) / "config.json", lambda c: c.update(rms_norm_eps=2e-5))
        check_files(table, Copies(model, work))
        check_command_line(table, model)
        check_requests(table, model, work)
        check_membership(table, model, other, work)
    for failure in table.failures:
        print(f"FAILED {failure}\n")
    print(f"{table.num_cases} cases, {len(table.failures)} failed")
    sys.exit(1 if table.failures else 0)


if __name__ == "__main__":
    main()
