"""Environments: named by what they hold, judged by their files."""

import csv
import io
import os
import subprocess
import zipfile

import pytest
from ansible.module_utils import provision_python_env

PARAMS = {"requirements": ["vllm==0.32.0", "ray==2.60.0"], "excludes": [], "local_packages": [], "python": ">=3.11"}
PARAMS |= {"path": None, "directory": "/opt/provision/env"}
PACKAGE = {
    "name": "my-plugin",
    "version": "1.0",
    "files": {"my/__init__.py": "X = 1\n"},
    "entry_points": "[a]\nb = my\n",
}


@pytest.fixture
def module(role_module):
    return role_module("serving_env", "python_env")


@pytest.fixture
def environment(tmp_path, module):
    """An environment as the build leaves it: the build's own lines make the record."""
    env = tmp_path / "env"
    (env / "lib/pkg/__pycache__").mkdir(parents=True)
    (env / ".provision").mkdir()
    (env / "bin").mkdir()
    (env / "bin/python").symlink_to("/bin/sh")
    (env / "bin/vllm").write_text("#!/bin/sh\n")
    (env / "bin/vllm").chmod(0o755)
    (env / "lib/pkg/a.py").write_text("a")
    (env / "lib/pkg/__pycache__/a.pyc").write_text("compiled")
    (env / ".provision/lock.txt").write_text("pkg==1\n")
    (env / ".provision/wanted.json").write_text("wanted")
    lines = provision_python_env.BUILD
    recording = lines[lines.index('cd "$NEW"') : lines.index("cd /\n")]
    variables = {**os.environ, "NEW": str(env), "STAMP": str(module.STAMP)}
    subprocess.run(["/bin/sh", "-euc", recording], env=variables, check=True)
    return env


def test_an_environment_is_named_by_what_it_holds(module):
    other = {**PARAMS, "requirements": ["vllm==0.33.0", "ray==2.60.0"]}
    assert module.place(PARAMS) == module.place({**PARAMS, "index_url": "https://mirror.example"})
    assert module.place(PARAMS) != module.place(other)
    assert module.place({**PARAMS, "path": "/opt/provision/tools"}) == "/opt/provision/tools"


def test_an_untouched_environment_is_left_alone(module, environment):
    (environment / "lib/pkg/__pycache__/b.pyc").write_text("compiled later")
    assert module.is_as_recorded(str(environment))
    assert module.differences(str(environment), "wanted") == []


def relink(path, target):
    path.unlink()
    path.symlink_to(target)


@pytest.mark.parametrize(
    ("drift", "told"),
    [
        (lambda env: (env / "lib/pkg/a.py").unlink(), ["lib/pkg/a.py: missing"]),
        (lambda env: (env / "lib/pkg/a.py").chmod(0o600), ["lib/pkg/a.py: changed"]),
        (lambda env: (env / "bin/vllm").chmod(0o644), ["bin/vllm: changed"]),
        (lambda env: (env / "lib/pkg").chmod(0o700), ["lib/pkg: changed"]),
        (lambda env: env.chmod(0o700), [".: changed"]),
        (lambda env: relink(env / "bin/python", "/bin/ls"), ["bin/python: changed"]),
        (lambda env: (env / "lib/pkg/new").mkdir(), ["lib/pkg/new: not installed by us"]),
        (lambda env: (env / ".provision/lock.txt").write_text("pkg==2\n"), [".provision: changed"]),
        (lambda env: (env / "lib/pkg/a.py").write_text("b"), ["lib/pkg/a.py: changed"]),
        (lambda env: os.utime(env / "lib/pkg/a.py", (0, 0)), ["lib/pkg/a.py: changed"]),
        (lambda env: os.utime(env / "lib/pkg/a.py", (946684800.5, 946684800.5)), ["lib/pkg/a.py: changed"]),
        (lambda env: os.utime(env / "lib/pkg/a.py", (946684799.5, 946684799.5)), ["lib/pkg/a.py: changed"]),
        (lambda env: (env / "lib/__pycache__").write_text(""), ["lib/__pycache__: not installed by us"]),
        (lambda env: (env / "lib/other.py").write_text(""), ["lib/other.py: not installed by us"]),
        (lambda env: (env / ".provision/files").unlink(), ["unfinished"]),
        (lambda env: (env / ".provision/wanted.json").write_text("x"), ["another list of packages"]),
    ],
)
def test_drift_is_found(module, environment, drift, told):
    drift(environment)
    assert module.differences(str(environment), "wanted") == told


def test_another_owner_is_found(module, environment, monkeypatch):
    monkeypatch.setattr(module.os, "geteuid", lambda: 4242)
    assert "lib/pkg/a.py: changed" in module.differences(str(environment), "wanted")


def test_an_interpreter_that_is_gone_is_found(module, environment):
    (environment / "bin/python").unlink()
    (environment / "bin/python").symlink_to("/gone/3")
    os.utime(environment / "bin/python", (module.STAMP, module.STAMP), follow_symlinks=False)
    assert module.differences(str(environment), "wanted") == ["bin/python: the interpreter that it points to is gone"]


def test_sentences(module, environment, monkeypatch):
    params = {**PARAMS, "path": str(environment)}
    monkeypatch.setattr(module, "wanted_text", lambda params: "wanted")
    assert list(module.plan(params)) == []
    (environment / "lib/pkg/a.py").unlink()
    (change,) = module.plan(params)
    assert change.action.endswith("What was there differed: lib/pkg/a.py: missing.")
    (change,) = module.plan({**params, "path": str(environment / "none")})
    assert change.action == f"Built {environment}/none: vllm==0.32.0, ray==2.60.0."
    assert module.facts({**params, "path": str(environment / "none")})["present"] is False


def test_a_wheel_made_here_is_one_and_always_the_same():
    name, data = provision_python_env.wheel(PACKAGE)
    assert name == "my_plugin-1.0-py3-none-any.whl"
    assert (name, data) == provision_python_env.wheel(PACKAGE)
    archive = zipfile.ZipFile(io.BytesIO(data))
    records = [row[0] for row in csv.reader(archive.read("my_plugin-1.0.dist-info/RECORD").decode().splitlines())]
    assert sorted(records) == sorted(archive.namelist())
    assert b"Name: my-plugin" in archive.read("my_plugin-1.0.dist-info/METADATA")


def test_what_the_build_reads_is_in_its_environment_and_no_more():
    params = {**PARAMS, "uv": None, "bootstrap": "uv==1", "imports": ["a", "b"], "compile": False, "warm": []}
    params |= {
        "cache": "/c",
        "index_url": "https://user:secret@mirror",
        "extra_index_urls": [],
        "find_links": ["/w", "/x"],
    }
    variables = provision_python_env.environment(params, "/opt/env", "/run/folder")
    assert variables["NEW"] == "/opt/env.new"
    assert variables["IMPORTS"] == "a, b"
    assert (variables["UV_FIND_LINKS"], variables["PIP_FIND_LINKS"]) == ("/w,/x", "/w /x")
    assert variables["UV_DEFAULT_INDEX"] == variables["PIP_INDEX_URL"]
    assert not {"UV_INDEX", "UV_INDEX_STRATEGY"} & variables.keys()


@pytest.fixture
def several(module, tmp_path, monkeypatch):
    """Environments a to d, in the order in which they were made, of which d is wanted, and a unit that uses a."""
    places = {name: tmp_path / "env" / (name * 12) for name in "abcd"}
    for number, path in enumerate(places.values(), start=1):
        (path / ".provision").mkdir(parents=True)
        os.utime(path / ".provision", (number, number))
    (tmp_path / "units").mkdir()
    (tmp_path / "units/vllm.service").write_text(f"ExecStart={places['a']}/bin/vllm serve\n")
    monkeypatch.setattr(module, "UNITS", str(tmp_path / "units"))
    monkeypatch.setattr(module, "place", lambda params: str(places["d"]))
    monkeypatch.setattr(module, "plan_build", lambda params: [])
    return places


def removed(module, several):
    params = {**PARAMS, "directory": str(several["d"].parent)}
    changes = list(module.plan(params))
    for change in changes:
        change.act()
    assert list(module.plan(params)) == []
    return [change.header for change in changes]


def test_what_a_unit_still_uses_is_the_way_back(module, several, tmp_path):
    (several["d"].parent / "lost+found").mkdir()
    assert removed(module, several) == [str(several["b"]), str(several["c"])]
    (tmp_path / "units/vllm.service").write_text(f"ExecStart={several['d']}/bin/vllm serve\n")
    assert removed(module, several) == []
    assert sorted(path.name for path in several["d"].parent.iterdir()) == ["a" * 12, "d" * 12, "lost+found"]


def test_where_nothing_uses_another_the_newest_is_the_way_back(module, several, tmp_path):
    (tmp_path / "units/vllm.service").unlink()
    assert removed(module, several) == [str(several["a"]), str(several["b"])]


def test_what_a_process_runs_in_is_used(module, several):
    command = ["/bin/sh", "-c", "echo runs; read x", f"{several['b']}/bin/python"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()  # for a moment after it was made, the kernel has no command line of it
        assert removed(module, several) == [str(several["c"])]
    assert several["b"].is_dir()


def test_what_a_killed_run_left_half_removed_goes(module, several):
    away = several["b"].with_name("b" * 12 + ".gone")
    several["b"].rename(away)
    assert str(away) in removed(module, several)


def test_an_environment_at_a_fixed_place_has_none_beside_it(module, several):
    assert module.unused({**PARAMS, "directory": None, "path": str(several["d"])}) == []
