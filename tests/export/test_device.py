"""Devices over ssh: a real sshd on loopback with keys of its own; TensorRT is played there."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgeseg.cli.main import cli
from edgeseg.export.device import adding, doctor, jobs, ssh, transfer
from edgeseg.export.device.onboard import agent
from edgeseg.export.device.registry import Address, HostKey, Registry
from edgeseg.export.device.transfer import Link
from edgeseg.runtime.bundle import open_bundle, pack_bundle
from edgeseg.runtime.errors import EdgesegError, EngineError, InputError, OutputError, Refused
from edgeseg.runtime.predict import predict_files
from edgeseg.runtime.session import open_session
from edgeseg.tests.support import device_standin as standin

pytestmark = pytest.mark.long

needs_sshd = pytest.mark.skipif(
    standin.SSHD is None or shutil.which("ssh") is None,
    reason="no sshd or ssh; .ci/packages installs openssh-server and openssh-client, as root",
)
ENGINE_FILES = {jobs.PLAN, jobs.SIDE_CAR, jobs.LOG}


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """One device for all tests that leave it clean."""
    device = standin.start_sshd(tmp_path_factory.mktemp("device"))
    yield device
    device.stop()


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    return standin.write_kit_bundle(tmp_path_factory.mktemp("kits") / "kit")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return standin.write_onnx_bundle(tmp_path_factory.mktemp("bundles") / "bundle")


@pytest.fixture
def device(played):
    """That device, without anything of an earlier test on it."""
    shutil.rmtree(played.cache, ignore_errors=True)
    played.set_build_s(0)
    played.forget_build()
    return played


@pytest.fixture
def line(device, monkeypatch):
    """A line to the device that can be cut."""
    monkeypatch.setattr(transfer, "_WAIT_S", 0.2)
    relay = standin.Line(device.port)
    yield relay
    relay.silent = False
    relay.close()


def link_to(device, tmp_path, *, port=None, retries=3, name="probe"):
    registry = device.registry(tmp_path / "registry", name, port=port)
    return Link(registry.find(name), registry, lambda text: None, retries)


def code_of(call, *arguments):
    with pytest.raises(EdgesegError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    assert "; " in str(caught.value)  # how to mend it
    return caught.value.code


def engine_bytes(folder):
    assert {path.name for path in folder.iterdir()} == ENGINE_FILES
    return (folder / jobs.PLAN).read_bytes(), standin.facts_of(folder / jobs.SIDE_CAR)


@contextlib.contextmanager
def edgeseg_process(*words):
    """Run a command of `edgeseg device` in a process of its own, ended when left."""
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeseg", "device", *words],
        env={**os.environ, "PYTHONPATH": str(Path(jobs.__file__).parents[3])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    with standin.killed_with(process):
        yield process


# --- addresses and the registry -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("ssh://nvidia@10.0.0.7", "10.0.0.7", 22),
        ("ssh://nvidia@orin.local:2222", "orin.local", 2222),
        ("ssh://nvidia@[fe80::1]:23", "fe80::1", 23),
    ],
)
def test_an_address_is_read_and_written_alike(url, host, port):
    address = Address.from_url(url)
    assert (address.user, address.host, address.port) == ("nvidia", host, port)
    assert Address.from_url(str(address)) == address


@pytest.mark.parametrize(
    "url",
    [
        *("http://a@b", "ssh://b", "a@b", "ssh://a@b:99999", "ssh://a@b/path", "ssh://a@-oProxy"),
        *("ssh://-l@b", "ssh://a:secret@b", "ssh://a@b;reboot", "ssh://a@b c", "ssh://a b@c"),
    ],
)
def test_an_address_that_ssh_could_take_for_something_else_is_refused(url):
    with pytest.raises(InputError, match="E-DEVICE-URL"):
        Address.from_url(url)


def test_a_password_in_an_address_is_not_repeated_in_the_error():
    with pytest.raises(InputError) as caught:
        Address.from_url("ssh://nvidia:hunter2@orin")
    assert "hunter2" not in str(caught.value)


KEY = HostKey("ssh-ed25519", "AAAAC3NzaC1lZDI1NTE5AAAAIPLAYEDPLAYEDPLAYEDPLAYEDPLAYEDPLAYEDPLAYEDA")


def test_the_registry_keeps_devices_and_their_keys_and_forgets_them(tmp_path):
    registry = Registry.read(tmp_path)
    for name in ("b", "a"):
        made = adding.Device(name, Address("user", "host", 22), KEY)
        registry = registry.put(made)
    again = Registry.read(tmp_path)
    assert list(again.devices) == ["a", "b"]
    assert again.find("a") == adding.Device("a", Address("user", "host", 22), KEY)
    assert again.known_hosts.read_text().splitlines() == [
        f"edgeseg-{name} {KEY.kind} {KEY.blob}" for name in ("a", "b")
    ]
    assert list(again.remove("a").devices) == list(Registry.read(tmp_path).devices) == ["b"]
    assert "edgeseg-a" not in again.known_hosts.read_text()
    with pytest.raises(InputError, match="E-DEVICE-NAME"):
        again.find("c")


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-20],
        lambda text: text.replace('"port": 22', '"port": "22"'),
        lambda text: text.replace('"host": "host"', '"host": "-oProxyCommand=x"'),
        lambda text: text.replace('"python": "python3"', '"python": "a\\nb"'),
        lambda text: text.replace('"name": "a"', '"name": "../a"'),
        lambda text: text.replace(KEY.blob, "no base64!"),
        lambda text: text.replace('"kind"', '"kinds"'),
    ],
)
def test_a_malformed_registry_is_refused(tmp_path, change):
    Registry.read(tmp_path).put(adding.Device("a", Address("user", "host", 22), KEY))
    file = tmp_path / "devices.json"
    changed = change(file.read_text())
    assert changed != file.read_text()
    file.write_text(changed)
    assert code_of(Registry.read, tmp_path) == "E-DEVICE-REGISTRY"


def test_a_registry_of_another_version_is_named(tmp_path):
    (tmp_path / "devices.json").write_text('{"schema": "edgeseg.devices/9", "devices": []}')
    with pytest.raises(Refused, match=r"E-DEVICE-NEWER.*devices/9.*devices/1"):
        Registry.read(tmp_path)


# --- adding: nothing is accepted silently ---------------------------------------------------------


def add(device, registry, *, fingerprint=None, accept=lambda key: False, identity=None):
    return adding.add_device(
        Registry.read(registry),
        "probe",
        device.url,
        accept=accept,
        fingerprint=fingerprint,
        identity=identity or device.identity,
        python=device.python,
    )


@needs_sshd
def test_a_host_key_is_recorded_only_when_its_fingerprint_is_given_or_accepted(device, tmp_path):
    shown = subprocess.run(
        ["ssh-keygen", "-lf", str(device.folder / "host_key.pub")],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()[1]
    folder = tmp_path / "registry"
    asked = []
    assert code_of(lambda: add(device, folder, accept=asked.append)) == "E-DEVICE-FINGERPRINT"
    assert [key.fingerprint for key in asked] == [shown]
    wrong = "SHA256:" + "A" * 43
    assert code_of(lambda: add(device, folder, fingerprint=wrong)) == "E-DEVICE-FINGERPRINT"
    assert not folder.exists()
    assert add(device, folder, fingerprint=shown).key == device.key
    assert Registry.read(folder).find("probe").key.fingerprint == shown


@needs_sshd
def test_a_device_that_lets_nobody_in_is_not_recorded(device, tmp_path):
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)], check=True)
    key = device.key.fingerprint
    refused = lambda: add(device, tmp_path / "registry", fingerprint=key, identity=other)  # noqa: E731
    assert code_of(refused) == "E-DEVICE-AUTH"
    assert not (tmp_path / "registry").exists()


@needs_sshd
def test_another_host_key_is_refused_before_anything_is_sent(device, tmp_path):
    link = link_to(device, tmp_path)
    other = HostKey("ssh-ed25519", device.key.blob[:-8] + "AAAAAAAA")
    registry = link.registry.put(adding.Device(**{**vars(link.device), "key": other}))
    changed = Link(registry.find("probe"), registry, print, 0)
    with pytest.raises(Refused, match="E-DEVICE-HOSTKEY"):
        doctor.examine(changed)
    assert not device.cache.exists()


@needs_sshd
def test_a_device_that_is_not_there_is_unreachable(device, tmp_path):
    gone = link_to(device, tmp_path, port=standin.free_port())
    assert code_of(doctor.examine, gone) == "E-DEVICE-UNREACHABLE"
    with pytest.raises(EngineError, match="E-DEVICE-UNREACHABLE"):
        ssh.scan_host_key(gone.device.address)


@needs_sshd
def test_an_interpreter_that_is_not_there_is_named(device, tmp_path):
    link = link_to(device, tmp_path)
    lacking = adding.Device(**{**vars(link.device), "python": "python9"})
    assert code_of(doctor.examine, Link(lacking, link.registry, print, 0)) == "E-DEVICE-PYTHON"
    other = adding.Device(**{**vars(link.device), "python": "true"})
    assert code_of(doctor.examine, Link(other, link.registry, print, 0)) == "E-DEVICE-AGENT"


@needs_sshd
@pytest.mark.parametrize(
    "answer",
    [
        *("", "no JSON", "[]", "1", '{"facts": 1}', '{"facts": {}}', '{"facts": {"l4t": 1}}'),
        *('{"error": 1}', '{"error": ["E-X"]}', "[" * 100_000),
    ],
)
def test_a_device_that_answers_nonsense_is_an_error_of_one_line(device, tmp_path, answer):
    liar = tmp_path / "liar"
    (tmp_path / "answer").write_text(f'{{"hello": 1}}\n{answer}\n')
    liar.write_text(f"#!/bin/sh\ncat {tmp_path}/answer\ncat >/dev/null\n")
    liar.chmod(0o755)
    link = link_to(device, tmp_path)
    lying = adding.Device(**{**vars(link.device), "python": str(liar)})
    assert code_of(doctor.examine, Link(lying, link.registry, print, 0)) == "E-DEVICE-AGENT"


# --- the verbs ------------------------------------------------------------------------------------


@needs_sshd
def test_an_engine_is_built_there_and_brought_back_whole(device, kit, tmp_path):
    link = link_to(device, tmp_path)
    built = jobs.build(link, kit, None, tmp_path / "engine")
    plan, facts = engine_bytes(built.folder)
    assert not built.reused
    assert plan == b"plan" * 50000
    assert facts["precision"] == "fp16"
    assert facts["vectors"]["flipped_share"] == 0
    assert "building fp16" in (built.folder / jobs.LOG).read_text()
    assert device.leftovers() == []
    again = jobs.build(link, kit, None, tmp_path / "again")
    assert again.reused
    assert device.builds() == 1
    assert engine_bytes(again.folder) == (plan, facts)
    # Where the runtime on the device looks for it, see `built_plan` there.
    (found,) = device.cache.glob("*/content-fp16.plan")
    assert found.with_name("content").is_dir()
    found.write_bytes(b"changed")
    third = jobs.build(link, kit, None, tmp_path / "third")
    assert not third.reused
    assert engine_bytes(third.folder)[0] == plan


@needs_sshd
def test_the_frame_graph_is_built_beside_the_network(device, kit, tmp_path):
    from edgeseg.tests.export import test_kit

    link, site = link_to(device, tmp_path), device.folder / "site"
    jobs.build(link, kit, None, tmp_path / "engine")
    played = (site / "tensorrt.py").read_text()
    standin.play_world(site, "10.3", test_kit.frame_world(test_kit.HALF))
    try:
        built = jobs.build(link, kit, None, tmp_path / "frame", frame=True)
    finally:
        (site / "tensorrt.py").write_text(played)
    facts = engine_bytes(built.folder)[1]
    assert (facts["precision"], facts["build"]["onnx"]) == ("fp16", "frame.onnx")
    names = {path.name for path in device.cache.glob("*/content-*.plan")}
    assert names == {"content-fp16.plan", "content-fp16-frame.plan"}


@needs_sshd
def test_what_build_engine_refuses_is_refused_here_with_its_code_and_leaves_nothing(
    device, tmp_path
):
    other = standin.write_kit_bundle(tmp_path / "other", version="10.13")
    link = link_to(device, tmp_path)
    with pytest.raises(Refused, match=r"E-DEVICE-BUILD: probe: .*E-KIT-TENSORRT.*10\.13.*10\.3"):
        jobs.build(link, other, None, tmp_path / "engine")
    assert not (tmp_path / "engine").exists()
    assert not list(tmp_path.glob(".engine*"))
    assert device.leftovers() == []
    assert not list(device.cache.glob("*/content-*"))


@needs_sshd
def test_a_kit_is_checked_before_anything_is_sent(device, kit, bundle, tmp_path):
    link = link_to(device, tmp_path)
    assert code_of(jobs.build, link, bundle, None, tmp_path / "out") == "E-DEVICE-KIT"
    assert code_of(jobs.build, link, kit, "int8", tmp_path / "out") == "E-DEVICE-KIT"
    plain = standin.write_kit_bundle(tmp_path / "plain", framed=False)
    with pytest.raises(InputError, match=r"E-DEVICE-KIT: .*no frame graph"):
        jobs.build(link, plain, None, tmp_path / "out", frame=True)
    broken = tmp_path / "broken"
    shutil.copytree(kit, broken)
    with (broken / "model.onnx").open("ab") as model:
        model.write(b"x")
    assert code_of(jobs.build, link, broken, None, tmp_path / "out") == "E-BUNDLE-HASH"
    assert not device.cache.exists()


@needs_sshd
def test_masks_of_a_device_are_those_of_this_machine_and_no_image_stays_there(
    device, bundle, tmp_path
):
    frames = standin.write_frames(tmp_path / "frames")
    shutil.copy(frames[0], tmp_path / "frames" / f"{frames[0].stem}_mask.png")
    said: list[str] = []
    link = replace(link_to(device, tmp_path), say=said.append)
    assert jobs.predict(link, bundle, None, [tmp_path / "frames"], tmp_path / "there") == 3
    assert "left out: 1 mask (NAME_mask.png beside NAME.png)" in said
    predict_files(open_session(bundle), frames, tmp_path / "here")
    names = {path.name for path in (tmp_path / "here").iterdir()}
    assert {path.name for path in (tmp_path / "there").iterdir()} == names
    for name in names:
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
    masks = [name for name in names if name.endswith("_mask.png")]
    assert all(b"\xff" in (tmp_path / "here" / name).read_bytes() for name in masks)
    assert not list(device.cache.rglob("*.png"))


@needs_sshd
def test_an_error_of_the_runtime_there_comes_back_with_its_exit_code(device, bundle, tmp_path):
    link = link_to(device, tmp_path)
    with pytest.raises(InputError, match=r"E-DEVICE-BENCHMARK.*E-ENGINE-NOT-IN-BUNDLE"):
        jobs.benchmark(link, bundle, "openvino", 5)


@needs_sshd
def test_a_bundle_that_answers_wrong_on_a_device_is_refused_there(device, tmp_path):
    wrong = standin.write_onnx_bundle(tmp_path / "wrong", wrong=True)
    link = link_to(device, tmp_path)
    frames = standin.write_frames(tmp_path / "frames", 1)
    with pytest.raises(Refused, match=r"E-DEVICE-PREDICT.*E-SELFTEST"):
        jobs.predict(link, wrong, None, frames, tmp_path / "masks")
    assert not (tmp_path / "masks").exists()
    assert not list(device.cache.rglob("*.png"))


@needs_sshd
def test_a_packed_bundle_is_measured_as_its_folder(device, bundle, tmp_path):
    packed = tmp_path / "blur.edgeseg"
    pack_bundle(bundle, packed)
    report = jobs.benchmark(link_to(device, tmp_path), packed, None, 3)
    assert report["bundle_sha256"] == open_bundle(bundle).sha256
    assert len(report["samples_ms"]) == 3
    assert report["golden"]["passed"]
    assert report["frames"] == [f"vectors/frame-{index}.pgm" for index in range(4)]


@needs_sshd
def test_two_devices_at_once_give_one_table_and_the_error_of_a_third(device, tmp_path):
    registry = tmp_path / "registry"
    device.registry(registry, "first", "second")
    device.registry(registry, "third", port=standin.free_port())
    arguments = ["--registry", str(registry), "first", "second", "third"]
    done = CliRunner().invoke(cli, ["device", "doctor", *arguments])
    assert done.exit_code == 4
    head = done.stdout.splitlines()[0].split()
    assert head == ["first", "second"]
    assert "third: E-DEVICE-UNREACHABLE" in done.stdout
    assert [line.split() for line in done.stdout.splitlines() if line.startswith("machine")] == [
        ["machine", os.uname().machine, os.uname().machine]
    ]


@needs_sshd
def test_a_benchmark_of_two_devices_is_one_table(device, bundle, tmp_path, tmp_path_factory):
    second = standin.start_sshd(tmp_path_factory.mktemp("second"))
    try:
        device.registry(tmp_path, "first")
        second.registry(tmp_path, "second")
        done = CliRunner().invoke(
            cli,
            [
                *("device", "benchmark", "--registry", str(tmp_path), "--rounds", "12"),
                *("first", "second", str(bundle)),
            ],
        )
    finally:
        second.stop()
    assert done.exit_code == 0, done.output
    head, *rows = done.stdout.splitlines()
    assert head.split()[:3] == ["device", "engine", "precision"]
    assert [row.split()[:3] for row in rows] == [
        [name, "onnxruntime", "fp32"] for name in ("first", "second")
    ]
    assert all(row.split()[5] == "-" for row in rows)  # twelve samples carry no p99


@needs_sshd
def test_commands_add_build_predict_list_clean_and_remove(device, kit, bundle, tmp_path):
    registry = str(tmp_path / "registry")

    def edgeseg(*words, code=0):
        done = CliRunner().invoke(cli, ["device", *words, "--registry", registry])
        assert done.exit_code == code, done.output
        return done.stdout

    key = device.key.fingerprint
    place = (device.url, "--identity", str(device.identity), "--python", device.python)
    edgeseg("add", "probe", *place, code=3)  # no terminal, no fingerprint: not accepted
    assert key in edgeseg("add", "probe", *place, "--fingerprint", key)
    assert key in edgeseg("list")
    assert json.loads(edgeseg("list", "--json"))[0]["device"] == "probe"
    out = str(tmp_path / "engine")
    assert "TensorRT 10.3" in edgeseg("build", "probe", str(kit), "--out", out)
    frames = standin.write_frames(tmp_path / "frames", 1)
    masks = str(tmp_path / "masks")
    assert "1 images" in edgeseg("predict", "probe", str(bundle), str(frames[0]), "--out", masks)
    assert "bytes removed" in edgeseg("clean", "probe")
    assert [path.name for path in device.cache.iterdir()] == ["lock"]
    edgeseg("remove", "probe")
    edgeseg("doctor", "probe", code=2)


# --- broken connections ---------------------------------------------------------------------------


@needs_sshd
def test_an_upload_that_is_cut_goes_on_where_it_was_cut(device, line, kit, tmp_path):
    line.cuts = [600_000, 500_000]
    said = []
    link = link_to(device, tmp_path, port=line.port)
    link = Link(link.device, link.registry, said.append, link.retries)
    built = jobs.build(link, kit, None, tmp_path / "engine")
    sizes = [int(text.split()[3]) for text in said if text.startswith("sending kit")]
    assert len(sizes) == 3
    assert sizes[0] - sizes[1] > 100_000
    assert sizes[1] - sizes[2] > 100_000
    assert engine_bytes(built.folder)[0] == b"plan" * 50000
    (sent,) = device.cache.glob("*/content")
    assert transfer.folder_payload(sent).rows == transfer.folder_payload(kit).rows
    assert device.leftovers() == []


@needs_sshd
def test_an_upload_that_stays_cut_leaves_only_what_can_be_resumed(device, line, kit, tmp_path):
    line.cuts = [400_000]
    broken = link_to(device, tmp_path, port=line.port, retries=0)
    assert code_of(jobs.build, broken, kit, None, tmp_path / "engine") == "E-DEVICE-LOST"
    assert not [path for path in tmp_path.iterdir() if "engine" in path.name]
    assert [path.partition("/")[2] for path in device.leftovers()] == ["part"]
    jobs.build(link_to(device, tmp_path), kit, None, tmp_path / "engine")
    assert device.leftovers() == []


@needs_sshd
def test_a_build_ends_with_its_connection_and_is_resumed_with_the_same_result(
    device, line, kit, tmp_path
):
    device.set_build_s(60)
    link = link_to(device, tmp_path, port=line.port)
    done = []
    work = threading.Thread(
        target=lambda: done.append(jobs.build(link, kit, None, tmp_path / "engine"))
    )
    work.start()
    processes = device.build_processes()
    device.set_build_s(0)
    line.cut()
    standin.wait_for(lambda: not any(map(standin.runs, processes)))
    work.join(20)
    assert len(done) == 1
    assert engine_bytes(tmp_path / "engine")[0] == b"plan" * 50000
    assert device.leftovers() == []
    assert {path.name for path in tmp_path.iterdir()} == {"engine", "registry"}


@needs_sshd
def test_a_job_ends_when_the_line_falls_silent(device, line, kit, tmp_path, monkeypatch):
    monkeypatch.setattr(ssh, "SILENCE_S", 1.5)
    monkeypatch.setattr(ssh, "HEARTBEAT_S", 0.3)
    monkeypatch.setitem(ssh._OPTIONS, "ServerAliveInterval", "1")
    device.set_build_s(60)
    link = link_to(device, tmp_path, port=line.port, retries=0)
    codes = []
    work = threading.Thread(
        target=lambda: codes.append(code_of(jobs.build, link, kit, None, tmp_path / "engine"))
    )
    work.start()
    processes = device.build_processes()
    line.silent = True
    standin.wait_for(lambda: not any(map(standin.runs, processes)))
    standin.wait_for(lambda: device.leftovers() == [])
    work.join(20)
    assert codes == ["E-DEVICE-LOST"]
    assert not [path for path in tmp_path.iterdir() if "engine" in path.name]


@needs_sshd
def test_a_killed_command_leaves_neither_side_half_done(device, kit, tmp_path):
    device.set_build_s(60)
    device.registry(tmp_path / "registry", "probe")
    with edgeseg_process(
        *("build", "probe", str(kit), "--registry", str(tmp_path / "registry")),
        *("--out", str(tmp_path / "engine")),
    ) as process:
        processes = device.build_processes(30)
        process.terminate()
        process.wait()
    standin.wait_for(lambda: not any(map(standin.runs, processes)))
    standin.wait_for(lambda: device.leftovers() == [])
    assert {path.name for path in tmp_path.iterdir()} == {"registry"}


@needs_sshd
def test_an_interrupted_benchmark_ends_at_once_and_leaves_the_device_clean(
    device, bundle, tmp_path
):
    device.registry(tmp_path / "registry", "probe")
    with edgeseg_process(
        *("benchmark", "probe", str(bundle), "--rounds", "10000000"),
        *("--registry", str(tmp_path / "registry")),
    ) as process:
        standin.wait_for(lambda: bool(list(device.cache.glob("*/run-*"))), 30)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130  # the benchmark itself would take hours
    standin.wait_for(lambda: device.leftovers() == [])


@needs_sshd
def test_two_builds_at_once_on_one_device_are_refused(device, kit, tmp_path):
    device.set_build_s(60)
    link = link_to(device, tmp_path, retries=0)
    with link.connect() as first:
        key = transfer.send(link, transfer.folder_payload(kit), "kit")
        job = ssh.Job(key, ("sleep", "60"), {}, "log", {})
        first.request("run", **job._asdict())
        lock = device.cache / "lock"
        standin.wait_for(lambda: lock.exists() and "process" in lock.read_text())
        assert code_of(jobs.build, link, kit, None, tmp_path / "engine") == "E-DEVICE-BUSY"
        assert code_of(jobs.clean_device, link) == "E-DEVICE-BUSY"
    standin.wait_for(lambda: device.leftovers() == [])
    assert jobs.clean_device(link) > 1 << 20


# --- patients' images -----------------------------------------------------------------------------


def images_on(device):
    """Files of images that were sent, whole or in part."""
    bases = [mark.parent for mark in device.cache.glob("*/private")]
    return [*device.cache.rglob("*.png"), *(base for base in bases if base.exists())]


@needs_sshd
def test_no_image_stays_where_another_job_is_in_the_way(device, bundle, tmp_path, monkeypatch):
    link = link_to(device, tmp_path, retries=0)
    frames = standin.write_frames(tmp_path / "frames", 1)
    code = []
    with link.connect() as other:
        run = jobs._run

        def meets_an_upload(*arguments):  # that began after the images had been sent
            other.request("put", key="0" * 64, files=[["x", "1" * 64, 1]], private=False)
            other.read_answer(need=list)
            return run(*arguments)

        monkeypatch.setattr(jobs, "_run", meets_an_upload)
        monkeypatch.setattr(jobs, "_forget", lambda link, payload: code.append(images_on(device)))
        refused = code_of(jobs.predict, link, bundle, None, frames, tmp_path / "masks")
    assert refused == "E-DEVICE-BUSY"
    assert code == [[]]  # the agent itself removed them, before this side asked


@needs_sshd
def test_no_image_stays_where_the_line_breaks_before_the_job(device, bundle, tmp_path, monkeypatch):
    link = link_to(device, tmp_path, retries=0)
    frames = standin.write_frames(tmp_path / "frames", 1)

    def broken(*arguments):
        assert images_on(device)
        raise ssh.DeviceLost("E-DEVICE-LOST", "cut; try again")

    monkeypatch.setattr(jobs, "_run", broken)
    assert code_of(jobs.predict, link, bundle, None, frames, tmp_path / "m") == "E-DEVICE-LOST"
    assert images_on(device) == []


@needs_sshd
def test_images_that_may_still_be_on_a_device_are_said(device, line, bundle, tmp_path, monkeypatch):
    said = []
    link = link_to(device, tmp_path, port=line.port, retries=0)
    link = Link(link.device, link.registry, said.append, 0)

    def broken(*arguments):
        line.close()
        raise ssh.DeviceLost("E-DEVICE-LOST", "cut; try again")

    monkeypatch.setattr(jobs, "_run", broken)
    frames = standin.write_frames(tmp_path / "frames", 1)
    assert code_of(jobs.predict, link, bundle, None, frames, tmp_path / "m") == "E-DEVICE-LOST"
    assert "images may still be on probe" in said[-1]
    assert "edgeseg device clean probe" in said[-1]


@needs_sshd
def test_images_of_a_killed_command_are_removed_by_the_next_upload_or_job(device, kit, tmp_path):
    link = link_to(device, tmp_path)
    payload = transfer.images_payload(tuple(standin.write_frames(tmp_path / "frames", 1)))
    base = device.cache / transfer.send(link, payload, "images")
    transfer.send(link, transfer.folder_payload(kit), "kit")
    assert images_on(device)  # whoever sent them may be about to use them
    os.utime(base / "private", (0, 0))
    key = transfer.send(link, transfer.folder_payload(kit), "kit")
    assert images_on(device) == []
    transfer.send(link, payload, "images")
    with link.connect() as connection:
        connection.run(ssh.Job(key, ("true",), {}, "log", {}), print)
    assert images_on(device) == []


@needs_sshd
def test_a_job_whose_files_were_removed_meanwhile_says_so(device, kit, tmp_path):
    link = link_to(device, tmp_path)
    key = transfer.send(link, transfer.folder_payload(kit), "kit")
    jobs.clean_device(link)
    with link.connect() as connection, pytest.raises(EngineError, match="E-DEVICE-GONE"):
        connection.run(ssh.Job(key, ("true",), {}, "log", {}), print)


def test_an_image_that_cannot_be_removed_is_an_error(tmp_path, monkeypatch):
    def refuse(path, *arguments):
        raise PermissionError(1, "not permitted", str(path))

    monkeypatch.setattr(agent.shutil, "rmtree", refuse)
    with pytest.raises(PermissionError):
        agent._remove(tmp_path)


# --- locks ----------------------------------------------------------------------------------------


@needs_sshd
def test_nothing_is_removed_under_a_running_upload(device, kit, tmp_path):
    link = link_to(device, tmp_path)
    with link.connect() as upload:
        upload.request("put", key="0" * 64, files=[["x", "1" * 64, 1]], private=False)
        upload.read_answer(need=list)
        assert code_of(jobs.clean_device, link) == "E-DEVICE-BUSY"
        transfer.send(link, transfer.folder_payload(kit), "kit")  # another upload is welcome
        assert (device.cache / ("0" * 64) / "part").is_dir()


@needs_sshd
def test_files_under_a_running_job_are_not_replaced(device, kit, tmp_path):
    link = link_to(device, tmp_path)
    payload = transfer.folder_payload(kit)
    key = transfer.send(link, payload, "kit")
    model = device.cache / key / "content" / "model.onnx"
    with link.connect() as first:
        first.request("run", **ssh.Job(key, ("sleep", "60"), {}, "log", {})._asdict())
        standin.wait_for(lambda: bool(list(device.cache.glob("*/run-*"))))
        model.write_bytes(b"changed")
        assert code_of(transfer.send, link, payload, "kit") == "E-DEVICE-BUSY"
        assert model.exists()


@needs_sshd
@pytest.mark.parametrize(
    "script",
    [
        "while True: print('x' * 1000)",  # its output
        "import sys; open(sys.argv[1], 'wb').write(bytes(1 << 26))",  # its files
    ],
)
def test_a_job_ends_when_nobody_takes_what_it_says(device, kit, tmp_path, monkeypatch, script):
    monkeypatch.setattr(ssh, "SILENCE_S", 1.5)
    link = link_to(device, tmp_path)
    key = transfer.send(link, transfer.folder_payload(kit), "kit")
    job = ssh.Job(key, ("@python", "-c", script, "@out/big"), {}, "log", {})
    with link.connect() as connection:
        connection.request("run", **job._asdict())
        with connection._heartbeats():  # the line lives, and takes nothing
            standin.wait_for(lambda: bool(list(device.cache.glob("*/run-*"))))
            standin.wait_for(lambda: device.leftovers() == [], 20)
        assert jobs.clean_device(link_to(device, tmp_path)) > 0


def persisting(monkeypatch, errors, retries=3):
    """Whether work that fails with these errors, a second apart, is done in the end."""
    clock = [0.0]
    monkeypatch.setattr(transfer.time, "monotonic", lambda: clock[0])
    link = Link(None, None, lambda text: None, retries)

    def wait(seconds):
        clock[0] += seconds
        return False

    monkeypatch.setattr(link._given_up, "wait", wait)
    left = list(errors)

    def work():
        if left:
            code = left.pop(0)
            raise (ssh.DeviceLost if code == "E-DEVICE-LOST" else EngineError)(code, "x; y")
        return clock[0]

    return link.persist(work)


def test_a_device_that_still_ends_what_it_lost_is_waited_for(monkeypatch):
    busy = ["E-DEVICE-BUSY"] * 40
    assert persisting(monkeypatch, ["E-DEVICE-LOST", *busy]) >= 40
    with pytest.raises(EngineError, match="E-DEVICE-BUSY"):
        persisting(monkeypatch, ["E-DEVICE-LOST", *busy, *busy])
    with pytest.raises(EngineError, match="E-DEVICE-BUSY"):
        persisting(monkeypatch, ["E-DEVICE-BUSY"])  # of somebody else
    with pytest.raises(EngineError, match="E-DEVICE-LOST"):
        persisting(monkeypatch, ["E-DEVICE-LOST"] * 2, retries=1)


@pytest.mark.parametrize(
    ("said", "greeted", "code"),
    [
        ("Host key verification failed.", False, "E-DEVICE-HOSTKEY"),
        ("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @", False, "E-DEVICE-HOSTKEY"),
        (
            "Unable to negotiate: no matching host key type found. Their offer: ssh-rsa",
            *(False, "E-DEVICE-UNREACHABLE"),
        ),
        ("disk: Host key verification failed", True, "E-DEVICE-LOST"),
    ],
)
def test_only_a_changed_host_key_is_called_so(said, greeted, code):
    device = adding.Device("a", Address("user", "host", 22), KEY)
    assert ssh._failure(device, 255, said, greeted).code == code


def test_devices_that_are_added_at_once_are_all_kept(tmp_path):
    stale = Registry.read(tmp_path)
    for name in ("a", "b"):
        stale.put(adding.Device(name, Address("user", "host", 22), KEY))
    assert list(Registry.read(tmp_path).devices) == ["a", "b"]
    stale = Registry.read(tmp_path)
    stale.remove("a")
    stale.remove("b")
    assert list(Registry.read(tmp_path).devices) == []


@needs_sshd
def test_files_that_somebody_changed_on_the_device_are_sent_again(device, kit, tmp_path):
    link = link_to(device, tmp_path)
    payload = transfer.folder_payload(kit)
    key = transfer.send(link, payload, "kit")
    model = device.cache / key / "content" / "model.onnx"
    original = model.read_bytes()
    model.write_bytes(original[:-1] + b"x")
    assert transfer.send(link, payload, "kit") == key
    assert model.read_bytes() == original


def is_refused_there(error, kind, code):
    assert isinstance(error, kind)
    assert error.code == code
    assert "\n" not in str(error)


@needs_sshd
@pytest.mark.parametrize(
    ("change", "kind", "code"),
    [
        (lambda content: content[:-1], InputError, "E-DEVICE-SOURCE"),
        (lambda content: content[:-1] + b"x", OutputError, "E-DEVICE-UPLOAD"),
    ],
)
def test_a_file_that_changes_while_it_is_sent_is_no_content_of_the_device(
    change, kind, code, device, tmp_path
):
    file = tmp_path / "payload" / "file"
    file.parent.mkdir()
    original = b"to be sent " * 1000
    file.write_bytes(original)
    link = link_to(device, tmp_path)
    payload = transfer.folder_payload(file.parent)
    # What is said comes between the hash and the bytes.
    late = Link(link.device, link.registry, lambda _: file.write_bytes(change(original)), 0)
    with pytest.raises(EdgesegError) as caught:
        transfer.send(late, payload, "payload")
    is_refused_there(caught.value, kind, code)
    assert list(device.cache.glob("*/content")) == []
    file.write_bytes(original)
    key = transfer.send(link, payload, "payload")
    assert (device.cache / key / "content" / "file").read_bytes() == original


@needs_sshd
def test_a_device_that_cannot_write_says_where(device, kit, tmp_path):
    device.cache.parent.mkdir(parents=True, exist_ok=True)
    device.cache.write_text("in the place of the folder")
    try:
        with pytest.raises(OutputError, match="edgeseg") as caught:
            transfer.send(link_to(device, tmp_path), transfer.folder_payload(kit), "kit")
    finally:
        device.cache.unlink()
    is_refused_there(caught.value, OutputError, "E-DEVICE-DISK")


@needs_sshd
@pytest.mark.parametrize(
    ("key", "name"), [("x", "a"), ("../" + "0" * 61, "a"), ("0" * 64, "../a"), ("0" * 64, "/a")]
)
def test_a_request_that_would_leave_the_folder_of_the_device_is_refused_there(
    key, name, device, tmp_path
):
    with link_to(device, tmp_path).connect() as connection:
        connection.request("put", key=key, files=[[name, "1" * 64, 0]], private=False)
        with pytest.raises(EdgesegError) as caught:
            connection.read_answer()
    is_refused_there(caught.value, EngineError, "E-DEVICE-PROTOCOL")


@needs_sshd
def test_a_job_that_ends_well_without_its_file_has_failed(device, kit, tmp_path):
    link = link_to(device, tmp_path)
    key = transfer.send(link, transfer.folder_payload(kit), "kit")
    with link.connect() as connection, pytest.raises(EdgesegError, match="wrote no mask") as caught:
        connection.run(ssh.Job(key, ("true",), {"mask": "mask"}, "log", {}), print)
    is_refused_there(caught.value, EngineError, "E-DEVICE-JOB")
    assert device.leftovers() == []


@needs_sshd
@pytest.mark.parametrize(
    ("file", "change"),
    [
        (jobs.PLAN, lambda content: content + b"x"),
        (jobs.SIDE_CAR, lambda content: b"{"),
        (jobs.SIDE_CAR, lambda content: b"[]"),
        (jobs.SIDE_CAR, lambda content: content.replace(b"kit_sha256", b"sha256_of_kit")),
        (jobs.SIDE_CAR, lambda content: content.replace(b'"fp16"', b'"fp32"', 1)),
    ],
)
def test_an_engine_of_something_else_is_not_taken(file, change, device, kit, tmp_path, monkeypatch):
    run = jobs._run

    def run_elsewhere(link, job, folder, *others):
        answer = run(link, job, folder, *others)
        before = (folder / file).read_bytes()
        (folder / file).write_bytes(change(before))
        assert (folder / file).read_bytes() != before
        return answer

    monkeypatch.setattr(jobs, "_run", run_elsewhere)
    with pytest.raises(Refused) as caught:
        jobs.build(link_to(device, tmp_path), kit, "fp16", tmp_path / "engine")
    is_refused_there(caught.value, Refused, "E-DEVICE-ENGINE")
    assert not (tmp_path / "engine").exists()


# --- the agent by itself --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a//b", "a/../b", "", "a/.", "a\0b"])
def test_a_path_that_leaves_its_folder_is_refused_by_the_agent(name, tmp_path):
    with pytest.raises(agent.Failure):
        agent.inside(tmp_path, name)
    assert agent.inside(tmp_path, "a/b") == tmp_path / "a" / "b"


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x"])
def test_a_file_that_a_device_names_outside_of_the_folder_is_refused(name, tmp_path):
    with pytest.raises(Refused, match="E-DEVICE-DOWNLOAD"):
        jobs._inside(tmp_path, name)


# --- doctor ---------------------------------------------------------------------------------------


def write_jetson(root, *, release="R36 (release), REVISION: 4.3, GCID: 1", memory_kib=7_800_000):
    """A root file system with what a Jetson shows, as JetPack 6 writes it."""
    for name, text in {
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        "proc/meminfo": f"MemTotal: {memory_kib} kB\nMemAvailable: 6000000 kB\n",
        "etc/nv_tegra_release": f"# {release}, BOARD: generic\n",
        "usr/local/cuda/version.json": '{"cuda": {"name": "CUDA SDK", "version": "12.6.68"}}',
        "var/lib/nvpmodel/status": "pmode:0000\n",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=7W >\n",
        "sys/class/devfreq/17000000.gpu/min_freq": "306000000",
        "sys/class/devfreq/17000000.gpu/max_freq": "624750000",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
        "sys/class/thermal/thermal_zone0/temp": "48500",
    }.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


@pytest.fixture
def jetson_facts(tmp_path, monkeypatch):
    """Facts of a played Jetson, with all that JetPack 6.2 brings."""
    brought = {"numpy": "1.21.5", "PIL": "9.0.1", "tensorrt": "10.3.0"}
    monkeypatch.setattr(
        agent,
        "_module",
        lambda name: (
            {"version": brought[name], "providers": [], "error": None} if name in brought else None
        ),
    )
    write_jetson(tmp_path)
    return agent.look(tmp_path)


def fixes(facts):
    return [found.fix for found in doctor.judge(facts, "probe").findings]


def test_doctor_knows_a_jetson_and_the_target_to_export_for(jetson_facts):
    examined = doctor.judge(jetson_facts, "probe")
    assert examined.target == "orin-nano-8@jp6.2"
    assert examined.facts["power_mode"] == "15W"
    assert examined.facts["clocks_locked"] is False
    assert examined.facts["temperatures_c"] == {"cpu-thermal": 48.5}
    assert examined.facts["cuda"] == "12.6.68"
    assert [found.what for found in examined.findings] == ["clocks are free: latencies vary"]
    assert "sudo jetson_clocks" in examined.findings[0].fix
    assert not examined.findings[0].blocks


@pytest.mark.parametrize(
    ("change", "fix"),
    [
        ({"python": "3.6.9"}, "JetPack 5"),
        ({"modules": {"tensorrt": None}}, "python3-libnvinfer"),
        ({"modules": {"numpy": None}}, "apt install python3-numpy"),
        ({"modules": {"PIL": None}}, "apt install python3-pil"),
        ({"modules": {"tensorrt": {"version": "10.7.0", "error": None}}}, "export for the JetPack"),
        ({"modules": {"tensorrt": {"version": "10.0.0b6", "error": None}}}, "export for the"),
        ({"modules": {"tensorrt": {"version": "?", "error": None}}}, "export for the JetPack"),
        ({"modules": {"tensorrt": {"version": "?", "error": "libnvinfer.so.10"}}}, "libnvinfer"),
        ({"modules": {"openvino": {"version": "?", "error": "libtbb.so"}}}, "--upgrade openvino"),
        ({"cuda": None}, "nvidia-jetpack"),
        ({"disk_free_mib": 100}, "edgeseg device clean probe"),
        ({"memory_mib": {"available": 100}}, "multi-user.target"),
        ({"l4t": "99.9"}, "edgeseg targets"),
    ],
)
def test_doctor_names_the_fix_of_what_is_missing(jetson_facts, change, fix):
    assert not any(fix in each for each in fixes(jetson_facts))
    for name, value in change.items():
        known = jetson_facts[name]
        jetson_facts[name] = {**known, **value} if isinstance(known, dict) else value
    assert any(fix in each for each in fixes(jetson_facts))


def test_a_module_that_is_there_and_does_not_load_says_why(tmp_path, monkeypatch, jetson_facts):
    monkeypatch.undo()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "openvino.py").write_text("print('hello', end='')\nimport numpy_of_another_age")
    told = agent._module("openvino")
    assert "numpy_of_another_age" in told["error"]
    assert agent._module("no_such_module") is None
    assert agent._module("numpy")["error"] is None
    jetson_facts["modules"]["openvino"] = told
    (finding,) = (
        each for each in doctor.judge(jetson_facts, "probe").findings if "openvino" in each.what
    )
    assert "numpy_of_another_age" in finding.what
    assert not finding.blocks


def test_a_table_of_doctor_has_a_column_for_each_device(jetson_facts):
    good = doctor.judge(jetson_facts, "orin")
    outcomes = [
        jobs.Outcome("orin", good, None),
        jobs.Outcome("gone", None, EngineError("E-DEVICE-UNREACHABLE", "gone; see")),
    ]
    text = doctor.render(outcomes)
    assert "orin-nano-8@jp6.2" in text
    assert "gone: E-DEVICE-UNREACHABLE" in text
    content = json.loads(doctor.to_json(outcomes))
    assert content["orin"]["target"] == "orin-nano-8@jp6.2"
    assert "E-DEVICE-UNREACHABLE" in content["gone"]["error"]


def test_looking_for_openvino_lets_it_report_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CI", raising=False)
    found = agent._module("openvino")
    assert found is not None
    assert found["error"] is None
    assert list(tmp_path.iterdir()) == []
