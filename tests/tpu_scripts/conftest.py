"""The scripts in a small clone of their own, with fake programs on PATH."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "tpu_scripts"
SETTINGS = {
    "PROJECT": "proj",
    "ZONE": "zone-b",
    "TPU_NAME": "slice",
    "ACCELERATOR_TYPE": "v6e-8",
    "RUNTIME_VERSION": "runtime",
}
WHERE = [f"--project={SETTINGS['PROJECT']}", f"--zone={SETTINGS['ZONE']}"]
# The fakes must be the only gcloud, ssh, scp, srun and python: the scripts see these tools and no others.
TOOLS = (
    "bash basename cat chmod cp cut date dirname env flock git grep gzip head hostname kill ls mkdir mktemp mv nohup "
    "rm sed seq setsid sh sleep sort tail tar touch tr true wc xargs"
)


class World:
    """A clone with the scripts, fake programs, and workers."""

    def __init__(self, root: Path, template: Path):
        self.root = root
        self.template = template
        self.clone = root / "clone"
        self.fake = root / "fake"
        shutil.copytree(template / "clone", self.clone)
        shutil.copytree(template / "fake", self.fake)
        self.workers: list[Path] = []
        self.set_workers(2)
        self.environment = {
            "HOME": str(root),
            "PATH": f"{self.fake}/bin:{template}/system_bin",
            "FAKE": str(self.fake),
            "FAKE_SYSTEM_PATH": f"{template}/system_bin",
            **SETTINGS,
        }

    @staticmethod
    def make_template(root: Path) -> None:
        """What all worlds begin with."""
        for folder in ("clone", "fake/workers", "fake/bin", "fake/worker_bin", "system_bin"):
            (root / folder).mkdir(parents=True)
        for tool in TOOLS.split():
            (root / "system_bin" / tool).symlink_to(
                shutil.which(tool) or pytest.skip(f"{tool} is not on PATH")
            )
        clone = root / "clone"
        shutil.copytree(SCRIPTS, clone / "tpu_scripts", ignore=shutil.ignore_patterns("config.env"))
        (clone / "pyproject.toml").write_text("# a package\n")
        (clone / "old name.py").write_text("old = 1\n")
        (clone / ".gitignore").write_text("/out/\n.venv*/\n")
        subprocess.run(["git", "init", "--quiet"], cwd=clone, check=True)
        world = World.__new__(World)
        world.clone, world.fake = clone, root / "fake"
        world.commit()
        for program in ("gcloud", "ssh", "scp", "srun"):
            world.install(program)
        world.install("python3.13", "worker_bin")

    def git(self, *args: str) -> str:
        """Git in the clone."""
        identity = ["-c", "user.name=n", "-c", "user.email=e@e"]
        done = subprocess.run(["git", *identity, *args], cwd=self.clone, check=True, capture_output=True)
        return done.stdout.decode().strip()

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message=m")

    def install(self, program: str, folder: str = "bin") -> Path:
        """Put a fake program on the PATH of this machine, or of the workers."""
        path = self.fake / folder / program
        source = (Path(__file__).parent / "fake.py").read_text()
        path.write_text(f"#!{sys.executable} -IS\n{source}")
        path.chmod(0o755)
        return path

    def set_workers(self, count: int) -> None:
        shutil.rmtree(self.fake / "workers")
        self.workers = [self.fake / "workers" / str(i) for i in range(count)]
        for home in self.workers:
            home.mkdir(parents=True)

    def answer(self, words: str, *stdout: str, code: int = 0, stderr: str = "") -> None:
        """What a program says to calls with all these words, call by call; the last answer stays."""
        path = self.fake / "answers.json"
        rules = json.loads(path.read_text()) if path.exists() else []
        rules.append({"words": words.split(), "stdout": stdout or [""], "code": code, "stderr": stderr})
        path.write_text(json.dumps(rules))

    def states(self, *states: str) -> None:
        """What the queued resource's state is, look by look."""
        self.answer("queued-resources describe", *states)

    def start(self, script: str, *args: str, **options: Any) -> subprocess.Popen[str]:
        environment = self.environment | options.pop("environment", {})
        path = self.clone / "tpu_scripts" / script
        defaults: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            "cwd": self.clone,
        }
        return subprocess.Popen(["bash", str(path), *args], env=environment, **(defaults | options))

    def run(self, script: str, *args: str, **options: Any) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a script."""
        process = self.start(script, *args, **options)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def succeed(self, script: str, *args: str, **options: Any) -> str:
        code, out, err = self.run(script, *args, **options)
        assert code == 0, err
        return out

    def fail(self, script: str, *args: str, **options: Any) -> str:
        """The one line of error of a script that must fail."""
        code, _, err = self.run(script, *args, **options)
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert code == 1, err
        assert lines
        return lines[-1]

    def calls(self, program: str = "gcloud") -> list[list[str]]:
        """The arguments of the calls so far."""
        return [call["argv"] for call in self.records(program)]

    def verbs(self) -> list[str]:
        """What gcloud was asked to do so far: create, describe, ssh, ..."""
        return [call[3] for call in self.calls()]

    def records(self, program: str | None = None) -> list[dict[str, Any]]:
        path = self.fake / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [r for r in map(json.loads, lines) if program in (None, r["program"])]

    def forget(self) -> None:
        (self.fake / "calls.jsonl").unlink(missing_ok=True)

    def set_up(self) -> None:
        """Workers after setup.sh, without its calls; it runs for the first world only."""
        done = self.template / "worker_home"
        if not done.exists():
            self.succeed("setup.sh")
            shutil.copytree(self.workers[0], done)
        for home in self.workers:
            shutil.copytree(done, home, dirs_exist_ok=True)
        self.forget()

    def folders(self, run: str) -> list[Path]:
        """The run's folder on each worker."""
        return [home / "caspo_jax/out/runs" / run for home in self.workers]

    @staticmethod
    def until(conditions: list[Callable[[], bool]], seconds: float = 20) -> None:
        """Waits until all hold."""
        end = time.monotonic() + seconds
        while not all(condition() for condition in conditions):
            assert time.monotonic() < end, "waited too long"
            time.sleep(0.02)

    def finished(self, run: str) -> list[int]:
        """Waits for the run's end; the exit code of each worker."""
        self.until([lambda f=f: (f / "exit_code").exists() for f in self.folders(run)])
        return [int((f / "exit_code").read_text()) for f in self.folders(run)]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("template")
    World.make_template(root)
    return root


@pytest.fixture
def world(tmp_path: Path, template: Path) -> Iterator[World]:
    made = World(tmp_path, template)
    yield made
    for pid in tmp_path.rglob("out/runs/*/pid"):
        if not (pid.parent / "exit_code").exists():
            try:
                os.killpg(int(pid.read_text()), 9)
            except (ProcessLookupError, ValueError):
                continue
