"""nccl-tests: built from a checked source by a real make (the compiler is a stand-in), and judged by what lies there."""

import hashlib
import os
import subprocess
import tarfile

import pytest
from ansible.module_utils.provision_host import HostError

MAKEFILE = """\
build: $(BUILDDIR)/all_reduce_perf $(BUILDDIR)/broadcast_perf
$(BUILDDIR)/%_perf: all_reduce.cu
\t$(CUDA_HOME)/bin/nvcc -o $@ -DMPI=$(MPI) $<
"""
NVCC = '#!/bin/sh\necho "$3 $4" > "$2"\n'


@pytest.fixture
def tests(role_module, monkeypatch):
    module = role_module("cuda", "nccl_tests")

    def run_unit(unit, script, environment):
        subprocess.run(["/bin/sh", "-euc", script], check=True, env={**os.environ, **environment}, capture_output=True)

    monkeypatch.setattr(module, "run_unit", run_unit)
    return module


@pytest.fixture
def params(tmp_path):
    source = tmp_path / "nccl-tests-2.17.6"
    source.mkdir()
    (source / "Makefile").write_text(MAKEFILE)
    (source / "all_reduce.cu").write_text("int main() { return 0; }\n")
    archive = tmp_path / "source.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(source, source.name)
    compiler = tmp_path / "cuda/bin/nvcc"
    compiler.parent.mkdir(parents=True)
    compiler.write_text(NVCC)
    compiler.chmod(0o755)
    return {
        "source": str(archive),
        "sha256": hashlib.sha256(archive.read_bytes()).hexdigest(),
        "cuda_home": str(tmp_path / "cuda"),
        "nccl": "2.28.9-1+cuda13.0",
        "mpi_home": "",
        "directory": str(tmp_path / "builds"),
    }


def built(tests, params):
    """Bring it about; the sentences."""
    said = []
    for change in tests.plan(params):
        change.act()
        said.append(change.action)
    return said


def test_it_is_built_once(tests, params, tmp_path):
    target = tests.place(params)
    assert built(tests, params) == [f"Built nccl-tests in {target}."]
    assert sorted(os.listdir(target)) == ["all_reduce_perf", "broadcast_perf", "built.json"]
    assert os.listdir(tmp_path / "builds") == [os.path.basename(target)]  # nothing half done is left
    assert built(tests, params) == []


@pytest.mark.parametrize(
    ("break_it", "why"),
    [
        (lambda folder: (folder / "all_reduce_perf").write_text("x"), "all_reduce_perf: changed"),
        (lambda folder: (folder / "broadcast_perf").unlink(), "broadcast_perf: changed"),
        (lambda folder: (folder / "built.json").unlink(), "unfinished"),
        (lambda folder: (folder / "built.json").write_text("{"), "its record is damaged"),
    ],
)
def test_what_was_touched_is_built_again(tests, params, tmp_path, break_it, why):
    built(tests, params)
    target = tests.place(params)
    break_it(tmp_path / target)
    assert built(tests, params) == [f"Built nccl-tests in {target} again: {why}."]
    assert built(tests, params) == []


@pytest.mark.parametrize("changed", [{"nccl": "2.27.7-1+cuda13.0"}, {"mpi_home": "/usr/lib/mpi"}])
def test_another_nccl_or_mpi_is_another_build(tests, params, changed):
    built(tests, params)
    other = {**params, **changed}
    assert tests.place(other) != tests.place(params)
    assert len(built(tests, other)) == 1


def test_mpi_reaches_make(tests, params, tmp_path):
    other = {**params, "mpi_home": "/usr/lib/mpi"}
    built(tests, other)
    assert "-DMPI=1" in (tmp_path / tests.place(other) / "all_reduce_perf").read_text()


def test_another_source_than_the_one_named_is_not_built(tests, params, tmp_path):
    with pytest.raises(HostError, match=r"has the SHA-256 .* Nothing was built"):
        built(tests, {**params, "sha256": "0" * 64})
    assert not (tmp_path / "builds").exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"source": "ftp://x/y"}, "cuda_nccl_tests_source is 'ftp://x/y'"),
        ({"source": "/none.tar.gz"}, "cannot be fetched from /none.tar.gz"),
        ({"cuda_home": "/none"}, "There is no nvcc in /none/bin"),
    ],
)
def test_what_is_missing_is_named(tests, params, changed, said):
    with pytest.raises(HostError, match=said):
        built(tests, {**params, **changed})
