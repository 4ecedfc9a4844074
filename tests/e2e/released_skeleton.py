#!/usr/bin/env python3
"""A long run, by hand: `shoal serve` loads the files of gpt-oss-20b as they are released, with zeros for data (a sparse copy).

    released_skeleton.py SHOAL MODEL_DIR [--workers N] [--memory-gib 24]

MODEL_DIR: from `shoal synth MODEL_DIR --geometry 20b --plan-only`, or anybody's skeleton. Wants some 17 GB of memory. Checks that
the fleet gets ready, that each worker has read at most 1 % more than `shoal inspect` predicts (/proc/PID/io), and that all
processes together stay inside the memory given (PSS: what is shared counts once). Prints the figures.
"""
import argparse
import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time

OVER = 1.01


def children(pid):
    return [int(word) for word in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()] or [
        int(word) for task in pathlib.Path(f"/proc/{pid}/task").iterdir()
        for word in (task / "children").read_text().split()]


def field(path, name):
    for line in pathlib.Path(path).read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise ValueError(f"{path}: no {name}")


class MemoryWatch(threading.Thread):
    """The peak of all processes' proportional set sizes."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.peak, self.is_over = pid, 0, threading.Event()

    def run(self):
        while not self.is_over.wait(2):
            self.look()

    def look(self):
        total = 0
        for pid in [self.pid, *children(self.pid)]:
            try:
                total += field(f"/proc/{pid}/smaps_rollup", "Pss:") * 1024
            except (FileNotFoundError, ProcessLookupError, ValueError):
                continue  # It has just ended.
        self.peak = max(self.peak, total)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shoal")
    parser.add_argument("model")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--memory-gib", type=float, default=24)
    parser.add_argument("--kv-tokens", type=int, default=4096)
    parser.add_argument("--patience", type=float, default=900, help="seconds until ready")
    args = parser.parse_args()

    plan = json.loads(subprocess.run(
        [args.shoal, "inspect", args.model, "--workers", str(args.workers), "--shared-dense", "--json"],
        check=True, capture_output=True, text=True).stdout)
    with tempfile.TemporaryDirectory() as work:
        start = time.monotonic()
        serve = subprocess.Popen(
            [args.shoal, "serve", "--model", args.model, "--workers", str(args.workers), "--listen", f"unix:{work}/socket",
             "--kv-tokens", str(args.kv_tokens)], stderr=subprocess.PIPE, text=True)
        watch = MemoryWatch(serve.pid)
        watch.start()
        timer = threading.Timer(args.patience, serve.terminate)
        timer.start()
        is_ready = False
        for line in serve.stderr:
            print(f"{time.monotonic() - start:7.1f} s  {line}", end="", flush=True)
            is_ready = line.startswith("ready on")
            if is_ready:
                break
        seconds = time.monotonic() - start
        timer.cancel()
        workers = children(serve.pid)
        read = sorted(field(f"/proc/{pid}/io", "rchar:") for pid in workers) if is_ready else []
        parent_read = field(f"/proc/{serve.pid}/io", "rchar:") if is_ready else 0
        watch.is_over.set()
        watch.join()
        watch.look()
        drain = threading.Thread(target=serve.stderr.read, daemon=True)  # Or a full pipe would keep it from ending.
        drain.start()
        serve.send_signal(signal.SIGTERM)
        code = serve.wait(60)
    if not is_ready:
        sys.exit(f"not ready after {seconds:.0f} s")
    predicted = sorted(rank["bytes_read"] for rank in plan["ranks"])
    for got, want in zip(read, predicted):
        print(f"worker read {got:,} bytes, predicted {want:,} ({100 * (got / want - 1):+.4f} %)")
    want = plan["parent"]["bytes_read"]
    print(f"parent read {parent_read:,} bytes, predicted {want:,} ({100 * (parent_read / want - 1):+.4f} %)")
    print(f"ready after {seconds:.1f} s; memory at most {watch.peak / 2**30:.2f} GiB; exit code after SIGTERM {code}")
    assert len(read) == args.workers, f"{len(read)} workers"
    assert all(got <= OVER * want for got, want in zip(read, predicted)), "more than 1 % over the prediction"
    assert watch.peak <= args.memory_gib * 2**30, "too much memory"
    assert code == 0


if __name__ == "__main__":
    main()
