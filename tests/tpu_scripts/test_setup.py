"""setup.sh: every worker gets the clone as it is, and an environment."""


def test_setup_ships_the_tracked_files_as_they_are_now(world):
    (world.clone / "pyproject.toml").write_text("# edited\n")
    (world.clone / "secret.txt").write_text("not tracked")
    world.succeed("setup.sh")
    for home in world.workers:
        copy = home / "caspo_jax"
        assert (copy / "pyproject.toml").read_text() == "# edited\n"
        assert not (copy / "secret.txt").exists()
        assert not (home / "caspo_jax.tar.gz").exists()
        assert (copy / ".venv/revision").read_text().strip() == world.git(
            "rev-parse", "--short", "HEAD"
        ) + "-edited"
    assert world.git("status", "--porcelain").splitlines() == ["M pyproject.toml", "?? secret.txt"]


def test_setup_installs_the_tpu_extra_on_every_worker(world):
    world.succeed("setup.sh")
    assert [c[3:5] for c in world.calls()] == [["scp", world.calls()[0][4]], ["ssh", "slice"]]
    assert all(c[-1 if c[3] == "scp" else -2] == "--worker=all" for c in world.calls())
    for home in world.workers:
        mine = [r["argv"] for r in world.records("python") if r["cwd"] == str(home / "caspo_jax")]
        assert ["-m", "pip", "install", "--quiet", "--upgrade", "-e", ".[tpu]"] in mine
        assert len([r for r in world.records("python3.13") if r["argv"][:2] == ["-m", "venv"]]) == 2


def test_a_second_setup_upgrades_in_place(world):
    world.set_up()
    keep = world.workers[0] / "caspo_jax/out/kept.txt"
    keep.parent.mkdir()
    keep.write_text("result")
    (world.clone / "old name.py").unlink()
    (world.clone / "new.py").write_text("new = 1\n")
    world.commit()
    world.succeed("setup.sh")
    assert not world.records("python3.13")
    assert world.records("python")
    assert keep.read_text() == "result"
    assert (world.workers[1] / "caspo_jax/new.py").exists()
    assert not (world.workers[1] / "caspo_jax/old name.py").exists()


def test_setup_brings_python_along_where_it_is_too_old(world):
    (world.fake / "worker_bin/python3.13").unlink()
    world.install("python3", "worker_bin")
    world.answer("python3 -c", code=1)
    world.succeed("setup.sh")
    made = [r["argv"] for r in world.records("python3") if r["argv"][0] == "-m"]
    assert made.count(["-m", "uv", "venv", "--quiet", "--seed", "--python=3.12", ".venv"]) == 2


def test_setup_fails_when_a_worker_fails(world):
    world.answer("python -m pip -e .[tpu]", "", code=1, stderr="no network\n")
    code, out, err = world.run("setup.sh")
    assert code == 1
    assert "pip could not install .[tpu]" in err
    assert "set-up failed on a worker of 'slice'" in err
    assert "is set up; next" not in out


def test_setup_leaves_living_runs_alone(world):
    world.set_up()
    world.succeed("run.sh", "--run=long", "--", "sleep", "60")
    (world.clone / "pyproject.toml").write_text("# edited\n")
    code, _, err = world.run("setup.sh")
    assert code == 1
    assert "run 'long' is alive" in err
    assert (world.workers[0] / "caspo_jax/pyproject.toml").read_text() == "# a package\n"


def test_setup_outside_a_clone_says_so(world):
    (world.clone / ".git").rename(world.root / "elsewhere")
    assert "is not a git clone" in world.fail(
        "setup.sh", environment={"GIT_CEILING_DIRECTORIES": str(world.root)}
    )
    assert world.records() == []
