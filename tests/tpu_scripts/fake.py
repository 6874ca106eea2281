"""Stands in for gcloud, ssh, scp, srun and python: records its arguments, answers from $FAKE/answers.json.

Commands sent to workers run on this machine, each worker with a home folder of its own under $FAKE/workers.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

FAKE = Path(os.environ["FAKE"])
NAME = Path(sys.argv[0]).name
ARGV = sys.argv[1:]


def homes() -> list[Path]:
    """The workers that the call addresses."""
    everyone = sorted((FAKE / "workers").iterdir())
    wanted = next((a.split("=", 1)[1] for a in ARGV if a.startswith("--worker=")), "0")
    return everyone if wanted == "all" else [everyone[int(wanted)]]


def on_workers(command: str) -> int:
    """Run a command in each home, as a login shell of ssh would; the first exit code that is not 0."""
    import subprocess

    path = f"{FAKE}/worker_bin:{os.environ['FAKE_SYSTEM_PATH']}"
    running = [
        subprocess.Popen(
            ["/bin/sh", "-c", command], cwd=home, env={"HOME": str(home), "PATH": path, "FAKE": str(FAKE)}
        )
        for home in homes()
    ]
    return next((code for code in [p.wait() for p in running] if code), 0)


def answer() -> int | None:
    """The first canned answer whose words are all among the arguments; its stdouts are used up one by one."""
    path = FAKE / "answers.json"
    for number, rule in enumerate(json.loads(path.read_text()) if path.exists() else []):
        if all(word in [NAME, *ARGV] for word in rule["words"]):
            used = FAKE / f"used_{number}"
            turn = len(used.read_text()) if used.exists() else 0
            used.write_text("x" * (turn + 1))
            outs = rule["stdout"]
            out = outs[min(turn, len(outs) - 1)]
            if out == "ABSENT":
                print("ERROR: (gcloud) NOT_FOUND: Resource was not found.", file=sys.stderr)
                return 1
            print(out, end="\n" if out else "")
            print(rule["stderr"], end="", file=sys.stderr)
            return rule["code"]
    return None


def python() -> int:
    """What the interpreters on the workers do."""
    import shutil

    if ARGV[:2] == ["-m", "venv"] or ARGV[:3] == ["-m", "uv", "venv"]:
        folder = Path(ARGV[-1]) / "bin"
        folder.mkdir(parents=True)
        shutil.copy(__file__, folder / "python")
    elif ARGV[:1] == ["-m"] and ARGV[1] not in ("pip", "uv"):
        print(json.dumps(ARGV))
    return 0


def main() -> int:
    """Record, then answer."""
    shown = {key: os.environ[key] for key in ("JAX_LOCAL_DEVICE_IDS", "VIRTUAL_ENV") if key in os.environ}
    call = {"program": NAME, "argv": ARGV, "cwd": os.getcwd(), "environment": shown}
    with open(FAKE / "calls.jsonl", "a") as calls:
        calls.write(json.dumps(call) + "\n")
    canned = answer()
    if canned is not None:
        return canned
    if NAME.startswith("python"):
        return python()
    if "scp" in [NAME, *ARGV]:
        import shutil

        source = next(a for a in ARGV if a.endswith(".tar.gz") and ":" not in a)
        target = next(a for a in ARGV if ":" in a).split(":", 1)[1]
        for home in homes():
            shutil.copy(source, home / target)
    elif NAME == "ssh":
        return on_workers(ARGV[1])
    elif "ssh" in ARGV:
        return on_workers(next(a for a in ARGV if a.startswith("--command=")).split("=", 1)[1])
    elif "tpu-vm" in ARGV:
        print(len(list((FAKE / "workers").iterdir())))
    return 0


sys.exit(main())
