#!/usr/bin/env python3
"""Runs every test program of the workspace, two at a time, and says what each took.

Most programs of the end-to-end tests wait for something nearly all of their time: two of them take little longer than
one. Those that keep a processor busy (HEAVY) run one after another, in a lane of their own.

  run-tests.py                      the gate: every program
  run-tests.py NAME...              these programs: pods, gpu_node, ...
  run-tests.py --beside COMMAND     every program, and at the lowest priority a command that must succeed, too
  run-tests.py --list               what there is

Of programs that pass it prints a line, of others all that they said, and at the end a table. CPU is that of a program
and of all that it started and waited for: a guest that outlives its starter is not in it.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CARGO = [os.environ.get("CARGO", "cargo"), "test", "--workspace", "--all-features"]
# Guests without KVM, or many threads. The longest first, for nothing else shortens the end.
HEAVY = ["given_cards", "gpu_node", "pods", "guest", "gpudesk_placement", "handover", "demo", "desktops", "libvirt_host"]


def programs():
    """Builds them, and returns (name, words, folder) of each."""
    words = CARGO + ["--no-run", "--message-format=json-render-diagnostics"]
    built = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE)
    if built.returncode != 0:
        sys.exit(built.returncode)
    found = []
    for line in built.stdout.splitlines():
        message = json.loads(line)
        if message["reason"] == "compiler-artifact" and message["executable"] and message["profile"]["test"]:
            name, kind = message["target"]["name"], message["target"]["kind"][0]
            # The tests inside a library and inside a program of the same name are two.
            name = f"{name} (program)" if kind == "bin" else name
            found.append((name, [message["executable"]], os.path.dirname(message["manifest_path"])))
    return found + [("documentation", CARGO + ["--doc", "--quiet"], None)]


def run(name, words, folder):
    begun = time.monotonic()
    # What cargo tells a test. It builds nearly everything anew where it finds this itself.
    environment = dict(os.environ, CARGO_MANIFEST_DIR=folder, CARGO=CARGO[0]) if folder else None
    # No pipe: what a program leaves behind by mistake would hold its end.
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(
            words, cwd=folder or ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        return name, child.returncode, time.monotonic() - begun, used.ru_utime + used.ru_stime, output.read()


class Lanes:
    def __init__(self, jobs):
        weight = {name: index for index, name in enumerate(HEAVY)}
        self.heavy = sorted((job for job in jobs if job[0] in weight), key=lambda job: weight[job[0]])
        self.light = [job for job in jobs if job[0] not in weight]
        self.done = []
        self.lock = threading.Lock()

    def next(self, heavy_too):
        with self.lock:
            if heavy_too and self.heavy:
                return self.heavy.pop(0)
            return self.light.pop(0) if self.light else None

    def lane(self, heavy_too):
        while job := self.next(heavy_too):
            self.one(job)

    def one(self, job):
        name, code, wall, cpu, output = result = run(*job)
        with self.lock:
            self.done.append(result)
            print(f"{'ok    ' if code == 0 else 'FAILED'} {name}: {wall:.0f} s, CPU {cpu:.0f} s", flush=True)
            if code != 0:
                sys.stdout.buffer.write(output + b"\n")
                sys.stdout.flush()


def main(names):
    beside = None
    if names[:1] == ["--beside"]:
        beside, names = names[1], names[2:]
    jobs = programs()
    if names == ["--list"]:
        print("\n".join(sorted(name for name, _, _ in jobs)))
        return
    if missing := set(names) - {name for name, _, _ in jobs}:
        sys.exit(f"no test program {', '.join(sorted(missing))} (see --list)")
    lanes = Lanes([job for job in jobs if not names or job[0] in names])
    begun = time.monotonic()
    threads = [threading.Thread(target=lanes.lane, args=(heavy,)) for heavy in (True, False)]
    if beside:
        job = (beside, ["nice", "-n", "19", "sh", "-c", beside], None)
        threads.append(threading.Thread(target=lanes.one, args=(job,)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"\n{'program':32}{'wall s':>8}{'CPU s':>8}")
    for name, _, wall, cpu, _ in sorted(lanes.done, key=lambda result: -result[2]):
        print(f"{name:32}{wall:8.0f}{cpu:8.0f}")
    failed = [name for name, code, *_ in lanes.done if code != 0]
    print(f"{len(lanes.done)} in {time.monotonic() - begun:.0f} s, failed: {', '.join(failed) or 'none'}")
    sys.exit(1 if failed else 0)


main(sys.argv[1:])
