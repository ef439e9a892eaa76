"""The process of one contestant: runs steps when asked, and answers in JSON, one line each.

python -P worker.py CONTESTANT.py WORKLOAD_FOLDER

Imports neither JAX nor this package, so that a contestant may be PyTorch in an environment of its own, or another
checkout of this library. The contestant's `start(settings, batches)` returns a dict of functions:

    step(number) -> (loss, masked codes) of batch `number`, when its results are there; for `memory`, at once
    read(number) -> (n,) codes that it reads of batch `number`, before masking, without padding
    measure() -> further figures by name

Requests are `{"steps": N}`, `{"read": true}` and `{"measure": true}`.
"""

import importlib.util
import json
import os
import re
import sys
import time
from pathlib import Path

SETTINGS_FILE, BATCHES_FILE = "workload.json", "batches.npz"


def read_batches(file: Path) -> list[dict]:
    """Reads the batches of a workload: columns by name, (B, L) each."""
    import numpy as np

    with np.load(file, allow_pickle=False) as arrays:
        columns = {name: arrays[name] for name in arrays.files}
    number = len(next(iter(columns.values())))
    return [{name: values[step] for name, values in columns.items()} for step in range(number)]


def limit_threads(threads: int) -> None:
    """Restricts this process to the first `threads` of its CPUs; only sets OMP_NUM_THREADS without CPU affinity."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def start(file: Path, folder: Path) -> tuple[dict, list[dict]]:
    """Starts the contestant of a file; returns its functions and the batches."""
    settings = {**json.loads((folder / SETTINGS_FILE).read_text()), "folder": str(folder)}
    limit_threads(settings["threads"])
    spec = importlib.util.spec_from_file_location("contestant", file)
    module = importlib.util.module_from_spec(spec)  # pyright: ignore
    spec.loader.exec_module(module)  # pyright: ignore
    batches = read_batches(folder / BATCHES_FILE)
    return module.start(settings, batches), batches


def peak_bytes() -> int:
    """Returns the peak resident memory of this process in bytes; 0 if the system does not report it."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux counts the memory of the process that started this one in ru_maxrss
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1]) * 1024  # pyright: ignore
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def run_steps(step, first: int, number: int, num_batches: int) -> dict:
    """Times steps; returns seconds, loss and masked codes of each."""
    seconds, losses, masked = [], [], []
    for index in range(first, first + number):
        begin = time.perf_counter()
        loss, count = step(index % num_batches)
        seconds.append(time.perf_counter() - begin)
        losses.append(loss)
        masked.append(count)
    return {"seconds": seconds, "losses": [float(loss) for loss in losses], "masked": [int(count) for count in masked]}


def read_all(read, num_batches: int) -> dict:
    """Describes what a contestant reads: tokens of each batch, and a checksum that ignores their order."""
    codes = [read(number) for number in range(num_batches)]
    return {
        "tokens": [len(part) for part in codes],
        "checksums": [int((part.astype(int) ** 2).sum()) for part in codes],
    }


def main() -> None:
    """Answers requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not come between answers

    def answer(content: dict) -> None:
        print(json.dumps(content), file=answers, flush=True)

    try:
        contestant, batches = start(Path(sys.argv[1]), Path(sys.argv[2]))
    except ModuleNotFoundError as error:
        return answer({"missing": error.name})
    at_start, done = peak_bytes(), 0
    answer({"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        if "steps" in request:
            answer(run_steps(contestant["step"], done, request["steps"], len(batches)))
            done += request["steps"]
        elif "read" in request:
            answer(read_all(contestant["read"], len(batches)))
        else:
            before = peak_bytes()
            measures = contestant["measure"]()
            answer({"start_bytes": at_start, "peak_bytes": before, "final_bytes": peak_bytes(), **measures})


if __name__ == "__main__":
    main()
