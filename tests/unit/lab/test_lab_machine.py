from __future__ import annotations

from pathlib import Path

import pytest

from provision.errors import LabError
from provision.lab import machine


def files(root: Path, **texts: str) -> Path:
    for name, text in texts.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_only_debian_sources_of_the_release_are_taken(tmp_path: Path) -> None:
    apt = tmp_path / "apt"
    (apt / "sources.list.d").mkdir(parents=True)
    (apt / "sources.list.d/debian.sources").write_text(
        "Types: deb deb-src\nURIs: http://mirror.site/debian\nSuites: bookworm bookworm-updates bookworm-backports\n"
        "Components: main contrib\nSigned-By: /x\n\n"
        "Types: deb\nURIs: https://repo.tool.example/apt\nSuites: bookworm\nComponents: main\n\n"
        "Enabled: no\nTypes: deb\nURIs: http://old.site/debian\nSuites: bookworm\nComponents: main\n"
    )
    (apt / "sources.list.d/more.list").write_text(
        "# deb http://no.site/debian bookworm main\n"
        "deb [signed-by=/k arch=amd64] http://sec.site/debian-security bookworm-security main non-free\n"
        "deb http://new.site/debian trixie main\n"
    )
    stanzas = machine.debian_sources(apt).strip().split("\n\n")
    assert [stanza.splitlines()[1:4] for stanza in stanzas] == [
        ["URIs: http://mirror.site/debian", "Suites: bookworm bookworm-updates", "Components: main"],
        ["URIs: http://sec.site/debian-security", "Suites: bookworm-security", "Components: main"],
    ]


def test_a_machine_without_debian_sources_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="Add your mirror"):
        machine.debian_sources(tmp_path)


def test_name_servers_on_the_loopback_are_no_use_to_a_host(tmp_path: Path) -> None:
    etc = files(tmp_path / "etc", **{"resolv.conf": "# stub\nnameserver 127.0.0.53\nsearch site\n"})
    run = files(tmp_path / "run", **{"systemd__resolve__resolv.conf": "nameserver 10.0.0.53\nsearch site\n"})
    assert machine.name_servers(etc, run) == "nameserver 10.0.0.53\nsearch site\n"
    with pytest.raises(LabError, match="loopback"):
        machine.name_servers(etc, tmp_path / "none")


def test_name_servers_keep_what_can_be_reached(tmp_path: Path) -> None:
    etc = files(tmp_path, **{"resolv.conf": "nameserver ::1\nnameserver fe80::1%eth0\noptions edns0\n"})
    assert machine.name_servers(etc, tmp_path) == "nameserver fe80::1%eth0\noptions edns0\n"


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("FIND_LINKS", "INDEX_URL", "EXTRA_INDEX_URL"):
        for tool in ("PIP", "UV"):
            monkeypatch.delenv(f"{tool}_{name}", raising=False)
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX"):
        monkeypatch.delenv(name, raising=False)
    config = tmp_path / "pip.conf"
    config.write_text("[global]\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.setenv("HOME", str(tmp_path))
    return config


def test_where_python_packages_come_from(no_settings: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    no_settings.write_text(
        "[global]\nextra-index-url = file:///gone/simple\n  https://more.example/simple\nindex-url = https://a.example\n"
    )
    monkeypatch.setenv("PIP_FIND_LINKS", f"{wheels} https://page.example/links")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://b.example/simple")
    assert machine.python_index() == machine.PythonIndex(
        (str(wheels),), "https://b.example/simple", ("https://more.example/simple",)
    )


def test_certificates_of_the_site(tmp_path: Path) -> None:
    files(tmp_path, **{"b.crt": "", "sub__a.crt": "", "readme.txt": ""})
    assert machine.certificates(tmp_path) == [str(tmp_path / "b.crt"), str(tmp_path / "sub/a.crt")]


def test_what_the_machine_misses_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "geteuid", lambda: 0)
    monkeypatch.setattr(machine.shutil, "which", lambda tool: None if tool in {"nft", "mmdebstrap"} else tool)
    with pytest.raises(LabError, match=r"apt-get install --yes mmdebstrap nftables$"):
        machine.require_tools()
    monkeypatch.setattr(machine.os, "geteuid", lambda: 1000)
    with pytest.raises(LabError, match="sudo"):
        machine.require_tools()
