"""Certificate authorities: one file each, and a bundle that agrees."""

import pytest
from ansible.module_utils.provision_host import HostError


def pem(body):
    return f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n"


@pytest.fixture
def authorities(role_module, monkeypatch, tmp_path):
    module = role_module("site", "ca_certificates")
    monkeypatch.setattr(module, "FOLDER", str(tmp_path / "local"))
    monkeypatch.setattr(module, "BUNDLE", str(tmp_path / "certs/bundle.crt"))
    monkeypatch.setattr(module, "WORK", str(tmp_path / "work"))
    monkeypatch.setattr(module, "ENABLED", str(tmp_path / "ca-certificates.conf"))
    monkeypatch.setattr(module, "STOCK", str(tmp_path / "stock"))
    monkeypatch.setattr(module.shutil, "which", lambda name: name)
    (tmp_path / "certs").mkdir()
    (tmp_path / "local").mkdir()

    def rebuild(argv, **_):
        files = sorted((tmp_path / "local").glob("*.crt"))
        (tmp_path / "certs/bundle.crt").write_text("".join(file.read_text() for file in files))
        linked = {link.name for link in (tmp_path / "certs").glob("*.pem")}
        if linked == {f"{file.stem}.pem" for file in files} and "--fresh" not in argv:
            return
        for link in (link for link in (tmp_path / "certs").iterdir() if link.is_symlink()):
            link.unlink()
        for number, file in enumerate(files):
            (tmp_path / f"certs/{file.stem}.pem").symlink_to(file)
            (tmp_path / f"certs/5ed36f9{number}.0").symlink_to(f"{file.stem}.pem")

    monkeypatch.setattr(module, "run", rebuild)
    return module


def apply(module, texts):
    done = []
    for change in module.plan(texts):
        change.act()
        done.append(change.action)
    return done


def test_each_certificate_gets_a_file_and_the_bundle_follows(authorities, tmp_path):
    texts = [pem("QUFB") + "a comment\n" + pem("QkJC")]
    done = apply(authorities, texts)
    assert len(done) == 3
    assert done[-1] == "Rebuilt the bundle of trusted certificates."
    assert apply(authorities, texts) == []
    (tmp_path / "certs/bundle.crt").write_text("")
    assert apply(authorities, texts) == ["Rebuilt the bundle of trusted certificates."]


def test_one_that_is_no_longer_wanted_goes(authorities, tmp_path):
    apply(authorities, [pem("QUFB"), pem("QkJC")])
    gone = next(path for path in (tmp_path / "local").iterdir() if "QkJC" in path.read_text())
    rebuilt = "Rebuilt the bundle of trusted certificates."
    assert apply(authorities, [pem("QUFB")]) == [f"Removed {gone}.", rebuilt]
    left = next((tmp_path / "local").iterdir())
    assert apply(authorities, []) == [f"Removed {left}.", rebuilt]


@pytest.mark.parametrize("pattern", ["provision-*.pem", "*.0"])
def test_each_link_to_a_certificate_is_missed(authorities, tmp_path, pattern):
    apply(authorities, [pem("QUFB")])
    next((tmp_path / "certs").glob(pattern)).unlink()
    assert apply(authorities, [pem("QUFB")]) == ["Rebuilt the bundle of trusted certificates."]
    assert apply(authorities, [pem("QUFB")]) == []


def test_without_the_package_the_files_wait(authorities, monkeypatch):
    monkeypatch.setattr(authorities.shutil, "which", lambda name: None)
    assert len(apply(authorities, [pem("QUFB")])) == 1


def test_a_file_without_a_certificate_is_refused(authorities):
    with pytest.raises(HostError, match="holds no certificate"):
        apply(authorities, ["hello"])


def test_one_that_another_file_holds_too_is_linked_once(authorities, tmp_path):
    (tmp_path / "local/another.crt").write_text(pem("QUFB"))
    apply(authorities, [pem("QUFB")])
    for link in (tmp_path / "certs").glob("*.0"):
        if link.readlink().name.startswith("provision-"):
            link.unlink()
    assert apply(authorities, [pem("QUFB")]) == []


def test_a_bundle_that_lost_a_certificate_of_the_distribution_is_rebuilt(authorities, tmp_path):
    apply(authorities, [pem("QQ==")])
    (tmp_path / "stock").mkdir()
    (tmp_path / "stock/a.crt").write_text(pem("Wg=="))
    (tmp_path / "ca-certificates.conf").write_text("# chosen by debconf\n!off.crt\na.crt\n")
    assert [change.action for change in authorities.plan([pem("QQ==")])] == [
        "Rebuilt the bundle of trusted certificates."
    ]
    (tmp_path / "certs/bundle.crt").write_text(pem("QQ==") + pem("Wg=="))
    assert list(authorities.plan([pem("QQ==")])) == []
