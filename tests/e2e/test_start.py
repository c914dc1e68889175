"""Starts that must not happen: a second server on a data folder, a configuration that does not hold."""

import subprocess

from harness import BINARIES, Server, free_ports, tally


def test_a_second_start_on_the_same_data_folder_is_refused(server):
    key = server.add_tenant()
    port, admin = free_ports(2)
    config = server.folder / "second.toml"
    text = server.config.read_text().replace(f":{server.port}", f":{port}").replace(f":{server.admin_port}", f":{admin}")
    config.write_text(text)
    second = subprocess.run([BINARIES / "ingestd", "--config", config], capture_output=True, text=True, timeout=30)
    said = second.stdout + second.stderr
    assert second.returncode != 0, "the second server had to refuse"
    assert "lock" in said.lower() or "in use" in said.lower() or "another" in said.lower(), f"it must say why: {said}"
    server.accept([{"event_type": "still_here"}], key)
    server.settle()
    assert server.count("still_here") == 1, "the first one goes on"
    tally("e2e::start", "double start", ["P1", "P2", "P5"], 1)


def check_refused(tmp_path, spoil, *words):
    server = Server(tmp_path / "broken")
    server.config.write_text(spoil(server.config.read_text()))
    done = subprocess.run([BINARIES / "ingestd", "--config", server.config], capture_output=True, text=True, timeout=30)
    said = done.stdout + done.stderr
    assert done.returncode != 0, "it had to refuse"
    for word in words:
        assert word in said, f"the refusal must name {word!r}:\n{said}"
    checked = subprocess.run(
        [BINARIES / "ingestctl", "config", "check", server.config], capture_output=True, text=True, timeout=30
    )
    assert checked.returncode == 1, f"`config check` must say no: {checked.stdout} {checked.stderr}"
    return server


def test_an_unknown_name_in_the_configuration_is_refused_with_its_line(tmp_path):
    check_refused(tmp_path, lambda text: text.replace("[schemas]", "[schemas]\nnonsense = 1"), "nonsense", "line")


def test_a_value_that_does_not_fit_is_refused_with_its_line(tmp_path):
    check_refused(tmp_path, lambda text: text.replace("[log]", '[log]\nsegment_bytes = "many"'), "segment_bytes", "line")


def test_a_file_that_is_not_toml_is_refused_with_its_line(tmp_path):
    check_refused(tmp_path, lambda text: text + "\n[[[", "line")


def test_a_broken_reload_changes_nothing(server):
    key = server.add_tenant()
    good = server.config.read_text()
    server.config.write_text(good.replace("[log]", "[log]\nnonsense = true"))
    server.ctl("reload", status=1)
    server.accept([{"event_type": "after"}], key)
    server.config.write_text(good)
    server.ctl("reload")
    tally("e2e::start", "broken reload", ["P5", "P7"], 1)
