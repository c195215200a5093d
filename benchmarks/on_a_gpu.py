"""Everything that needs a CUDA device, in one command: the tests, then the engine's benchmarks.

    python -m benchmarks.on_a_gpu
    python -m benchmarks.on_a_gpu --only tests,0.5b,7b --minutes 9

Needs what a GPU worker needs and pytest with pytest-timeout; neither Ray nor the service. Goes on after a
part that fails, and says so at the end. With `--minutes` it ends in that time: what a part has printed until
then stays, and the parts behind it are left out. What each part printed is in `benchmarks/out/gpu/`, one file
for each, and all of it together, fit for the log, in `tables.md` there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
LONG_ROWS = ("--tokens", "512", "--shortest", "512", "--supervised", "1", "--rank", "32")


def pack(shape: str, batch_size: int, trials: str, *more: str) -> list[str]:
    sizes = ("--batch-sizes", str(batch_size), "--trials", trials)
    return ["-m", "benchmarks.pack", "--device", "cuda", "--shape", shape, *LONG_ROWS, *sizes, *more]


PARTS: dict[str, list[str]] = {
    # Other versions of the libraries may warn of other things.
    "tests": ["-m", "pytest", "tests/gpu", "--confcutdir=tests/gpu", "-W", "default"],
    "0.5b": pack("qwen2.5-0.5b", 1, "1,2,4,8,16,32", "--form", "all"),
    "7b": pack("qwen2.5-7b", 1, "1,2,4,8,16"),
    "0.5b-saturated": pack("qwen2.5-0.5b", 32, "1,2,4,8"),
    "7b-saturated": pack("qwen2.5-7b", 32, "1,2,4", "--rounds", "2"),
    "1b": pack("llama-3.2-1b", 1, "1,4,16"),
    "0.5b-dropout": pack("qwen2.5-0.5b", 1, "1,8,32", "--dropout", "0.05"),
    "quickstart": ["-m", "benchmarks.pack", "--device", "cuda"],
    "one-trial": ["-m", "benchmarks.one_trial", "--device", "cuda"],
}
"""What to run after the interpreter's name. The first three are what the engine is held to."""


def run(name: str, command: list[str], folder: Path, seconds: float) -> tuple[int, str]:
    """Runs a part for so long at most, showing what it prints; its exit status and that."""
    if "--out" not in command and command[1] != "pytest":
        command = [*command, "--out", str(folder / f"{name}.json")]
    print(f"\n## {name}: python {' '.join(command)}", flush=True)
    with subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        lines = []
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
        timer.cancel()
    return process.returncode, "".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", help=f"comma-separated parts, of {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "out" / "gpu")
    parser.add_argument("--minutes", type=float, default=24 * 60, help="of all parts together")
    arguments = parser.parse_args()
    ends = time.monotonic() + 60 * arguments.minutes
    chosen = arguments.only.split(",") if arguments.only else list(PARTS)
    if unknown := [name for name in chosen if name not in PARTS]:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if not torch.cuda.is_available():
        raise SystemExit(f"torch {torch.__version__} sees no CUDA device")
    arguments.out.mkdir(parents=True, exist_ok=True)
    failed = []
    with (arguments.out / "tables.md").open("w") as tables:
        for name in chosen:
            started = time.monotonic()
            if started >= ends:
                failed.append(f"{name} (left out for want of time)")
                continue
            status, output = run(name, PARTS[name], arguments.out, ends - started)
            seconds = time.monotonic() - started
            (arguments.out / f"{name}.txt").write_text(output)
            tables.write(f"## {name}\n\n`python {' '.join(PARTS[name])}`, {seconds:.0f} s\n\n{output}\n")
            tables.flush()
            if status:
                failed.append(f"{name} (exit status {status})")
    print(f"\nall of it is in {arguments.out / 'tables.md'}")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
