"""What holds of all scripts: they parse, explain themselves, refuse what they do not know, and can be rehearsed."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

SCRIPTS = Path(__file__).parents[2] / "tpu_scripts"
FILES = sorted(p.name for p in SCRIPTS.iterdir() if p.suffix in (".sh", ".sbatch"))
COMMANDS = [name for name in FILES if name != "common.sh"]
TPU = ["create.sh", "setup.sh", "run.sh", "logs.sh", "status.sh", "teardown.sh"]
NEEDED = {"run.sh": ["--run=r"], "logs.sh": ["--run=r"]}
REHEARSED = {
    "create.sh": ["--spot", "--internal_ip", "--", "--network=my net"],
    "setup.sh": ["--internal_ip"],
    "run.sh": ["--run=r", "--", "python", "-m", "experiments.caspo", "--stop=a 'b' \"c\" $d"],
    "logs.sh": ["--run=r", "--worker=1", "--nofollow"],
    "status.sh": ["--run=r"],
    "teardown.sh": ["--yes"],
}


@pytest.mark.parametrize("name", FILES)
def test_parses(name):
    subprocess.run(["bash", "-n", SCRIPTS / name], check=True)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not on PATH")
def test_shellcheck_is_clean():
    done = subprocess.run(
        ["shellcheck", "-x", "-P", "SCRIPTDIR", *FILES], cwd=SCRIPTS, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_stops_at_the_first_error(name):
    text = (SCRIPTS / name).read_text()
    assert "\nset -euo pipefail\n" in text
    assert name.endswith(".sbatch") or os.access(SCRIPTS / name, os.X_OK)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_tells_every_flag_and_calls_nothing(world, name):
    out = world.succeed(name, "--help")
    assert "usage" in out
    assert "shellcheck" not in out
    taken = re.findall(r"^    (--\w+)(?:=\*)?\)", (SCRIPTS / name).read_text(), flags=re.MULTILINE)
    assert [flag for flag in taken if flag not in out] == []
    assert world.records() == []


@pytest.mark.parametrize("name", [*TPU, "gpu_node.sh"])
def test_unknown_arguments_are_refused_before_any_call(world, name):
    assert "unknown flag --colour=red" in world.fail(name, "--colour=red")
    assert "'fast': flags are written --name=value" in world.fail(name, "fast")
    assert world.records() == []


@pytest.mark.parametrize("name", TPU)
def test_a_missing_setting_is_named_with_its_flag(world, name):
    variables = ["PROJECT", "ZONE", "TPU_NAME"]
    for variable in [*variables, "ACCELERATOR_TYPE", "RUNTIME_VERSION"] if name == "create.sh" else variables:
        error = world.fail(name, *NEEDED.get(name, []), environment={variable: ""})
        assert f"--{variable.lower()} is missing" in error
        assert f"set {variable} in" in error
    assert world.records() == []


@pytest.mark.parametrize("name", TPU)
def test_missing_gcloud_says_what_to_do(world, name):
    (world.fake / "bin/gcloud").unlink()
    assert "install the Google Cloud CLI" in world.fail(name, *NEEDED.get(name, []))


@pytest.mark.parametrize("name", TPU)
def test_dry_run_prints_the_commands_that_a_run_makes(world, name):
    if name != "setup.sh":
        world.set_up()
    if name in ("logs.sh", "status.sh"):
        world.succeed("run.sh", "--run=r", "--", "true")
        world.finished("r")
        world.forget()
    args = REHEARSED[name]
    gcloud = (world.fake / "bin/gcloud").read_text()
    (world.fake / "bin/gcloud").unlink()
    out = world.succeed(name, "--dry_run", *args)
    assert world.records() == []
    (world.fake / "bin/gcloud").write_text(gcloud)
    (world.fake / "bin/gcloud").chmod(0o755)
    world.states(*(["ABSENT", "ACTIVE"] if name == "create.sh" else ["ACTIVE"]))
    world.succeed(name, *args)

    def plain(call: list[str]) -> list[str]:
        return [re.sub(r"/\S*/(caspo_jax.tar.gz)", r"\1", word) for word in call]

    assert [plain(shlex.split(line)) for line in out.splitlines()] == [
        plain(["gcloud", *argv]) for argv in world.calls()
    ]


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1))
@settings(max_examples=60, deadline=None)
def test_quoted_arguments_come_out_of_a_shell_as_they_went_in(arguments):
    source = f'source {shlex.quote(str(SCRIPTS / "common.sh"))}; quote "$@"'
    quoted = subprocess.run(["bash", "-c", source, "-", *arguments], check=True, capture_output=True).stdout
    back = subprocess.run([b"sh", b"-c", b"printf '%s\\0' " + quoted], check=True, capture_output=True).stdout
    assert back.decode().split("\0")[:-1] == arguments


def test_a_flag_goes_before_the_environment_and_that_before_the_file(world):
    file = world.clone / "tpu_scripts/config.env"
    file.write_text("PROJECT=file\nZONE=file\nTPU_NAME=file\nREMOTE_DIR=file\n")
    out = world.succeed(
        "run.sh",
        "--dry_run",
        "--run=r",
        "--tpu_name=flag",
        "--",
        "true",
        environment={"PROJECT": "", "ZONE": "environment", "TPU_NAME": "environment"},
    )
    assert "ssh flag --project=file --zone=environment" in out
    assert "bash file/tpu_scripts/worker.sh" in out


def test_bad_settings_are_named(world):
    assert "SPOT=maybe: write true or false" in world.fail("create.sh", environment={"SPOT": "maybe"})
    assert "--config=nowhere: no such file" in world.fail("create.sh", "--config=nowhere")
    assert "--poll_s=soon: write a whole number" in world.fail("create.sh", "--poll_s=soon")
    assert "--run=a/b" in world.fail("run.sh", "--run=a/b", "--", "true")
    assert "--run is missing" in world.fail("logs.sh")
    assert world.records() == []


def test_the_example_config_is_enough(world):
    example = SCRIPTS / "config.env.example"
    nothing = dict.fromkeys(("PROJECT", "ZONE", "TPU_NAME", "ACCELERATOR_TYPE", "RUNTIME_VERSION"), "")
    out = world.succeed("create.sh", "--dry_run", f"--config={example}", environment=nothing)
    assert "--project=my-project --zone=us-east5-b" in out
    shared = (SCRIPTS / "common.sh").read_text()
    (variables,) = re.findall(r'^VARIABLES="(.*)"$', shared, flags=re.MULTILINE)
    assert set(variables.split()) == set(re.findall(r"^([A-Z_]+)=", example.read_text(), flags=re.MULTILINE))


def test_commands_in_the_readme_are_commands():
    readme = (SCRIPTS / "README.md").read_text()
    commands = re.findall(
        r"tpu_scripts/(\w+\.\w+)([^\n#]*)", "".join(re.findall(r"```bash\n(.*?)```", readme, re.S))
    )
    assert {name for name, _ in commands if name in COMMANDS} == set(COMMANDS) - {"worker.sh"}
    for name, rest in commands:
        assert (SCRIPTS / name).exists() or name == "config.env"
        if name.endswith(".sh"):
            text = subprocess.run(["bash", SCRIPTS / name, "--help"], capture_output=True, text=True).stdout
            for flag in re.findall(r"--\w+", rest.split(" -- ")[0].split("&&")[0]):
                assert flag in text, (name, flag)
