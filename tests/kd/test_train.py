"""Training: what it writes, what it refuses, and that a kill at any moment costs no weight."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

import edgeseg.kd.fit as fitting
import edgeseg.kd.train as training
from edgeseg.kd.checkpoint import load_checkpoint, read_tensors
from edgeseg.kd.config import TrainConfig
from edgeseg.kd.data.dataset import read_dataset
from edgeseg.kd.data.phantom import write_phantoms
from edgeseg.kd.data.split import make_split, read_split
from edgeseg.kd.train import train
from edgeseg.runtime.errors import InputError, Refused
from edgeseg.runtime.files import sha256_of_file

pytestmark = pytest.mark.long

STAGES = ("teacher-general", "teacher-benign", "teacher-malignant", "student")
SHORT = TrainConfig(
    size=32,
    student="attunet-8",
    teacher="attunet-8",
    general_epochs=1,
    teacher_epochs=1,
    student_epochs=2,
    batch=8,
)

# Trains in children of one process, which it kills at seeded moments until a run is done; each
# child has the same single thread, so it must end with the weights of a child left alone. A run
# that is done before the last kill (the machine had other work at first) is followed by another.
KILLED_AND_RESUMED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
import torch._inductor  # each child would import it, which takes longer than its training
torch.set_num_threads(1)
from edgeseg.kd.config import TrainConfig
from edgeseg.kd.data.dataset import read_dataset
from edgeseg.kd.train import train

data, work, config = Path(sys.argv[1]), Path(sys.argv[2]), TrainConfig.from_json(sys.argv[3])

def start(out):
    child = os.fork()
    if child == 0:
        resume = (out / "config.json").exists()
        train(read_dataset(data), out, config, resume=resume, device="cpu")
        os._exit(0)
    return child

began = time.monotonic()
assert os.waitpid(start(work / "whole"), 0)[1] == 0
whole_s = time.monotonic() - began
moments = random.Random(0)
kills = runs = 0
while runs < 20:
    child = start(work / f"killed-{runs}")
    if kills < 20:
        time.sleep(whole_s * moments.uniform(0.1, 0.4))
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        kills += 1
    else:
        assert status == 0, status
        runs += 1
        if kills == 20:
            break
        whole_s /= 2
print(kills, runs)
"""


def code_of(*arguments, **options):
    with pytest.raises((InputError, Refused)) as caught:
        train(*arguments, device="cpu", **options)
    return caught.value.code


def rows_of(run):
    with (run / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def split(dataset):
    return make_split(dataset)


# --- what a run holds ----------------------------------------------------------------------------


def test_run_holds_three_checkpoints_settings_split_and_log_and_no_state(run):
    names = {path.name for path in run.iterdir()}
    checkpoints = {f"{stage}.safetensors" for stage in STAGES}
    assert names == checkpoints | {"config.json", "split.json", "log.csv", "tensorboard"}


def test_log_has_a_row_for_each_epoch_of_each_stage_and_the_loss_falls(run):
    rows = rows_of(run)
    stages = [(row["stage"], int(row["epoch"])) for row in rows]
    assert stages == [
        ("teacher-general", 1),
        ("teacher-benign", 1),
        ("teacher-malignant", 1),
        *(("student", epoch) for epoch in range(1, 9)),
    ]
    assert float(rows[-1]["loss"]) < float(rows[3]["loss"])
    assert float(rows[-1]["distill"]) > 0


def test_checkpoint_tells_the_settings_the_split_and_the_number_of_images(run):
    config = TrainConfig.from_json((run / "config.json").read_text())
    split = read_split(run / "split.json")
    for stage in STAGES:
        provenance = load_checkpoint(run / f"{stage}.safetensors").provenance
        assert TrainConfig(**provenance["config"]) == config
        assert provenance["split_sha256"] == sha256_of_file(run / "split.json")
        assert provenance["train_images"] == sum(e.part == "train" for e in split.entries)


def test_teachers_differ_because_each_sees_its_own_class_only(run):
    first, second = (load_checkpoint(run / f"{stage}.safetensors").network for stage in STAGES[1:3])
    assert not torch.equal(first.head.weight, second.head.weight)


# --- interruptions -------------------------------------------------------------------------------


def test_run_killed_at_random_moments_ends_with_the_weights_of_one_left_alone(tmp_path):
    few = tmp_path / "phantoms"  # each child reads them
    write_phantoms(few, count=12)
    # Two views, so that the cache of the teachers' logits is written and read.
    config = replace(SHORT, student_epochs=4, views=2, batch=4)
    command = [sys.executable, "-c", KILLED_AND_RESUMED, few, tmp_path, config.to_json()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kills, count = map(int, done.stdout.split())
    assert kills == 20
    runs = ("whole", *(f"killed-{index}" for index in range(count)))
    for stage in STAGES:
        whole, *others = (read_tensors(tmp_path / run / f"{stage}.safetensors")[0] for run in runs)
        for killed in others:
            assert list(whole) == list(killed)
            assert all(torch.equal(whole[name], killed[name]) for name in whole), stage
    for run in runs:
        names = [(row["stage"], row["epoch"], row["loss"]) for row in rows_of(tmp_path / run)]
        assert len(names) == 1 + 1 + 1 + 4
        assert names == [(r["stage"], r["epoch"], r["loss"]) for r in rows_of(tmp_path / "whole")]


def test_loss_that_is_not_finite_stops_names_the_batch_and_keeps_the_last_state(
    dataset, split, tmp_path, monkeypatch
):
    out = tmp_path / "run"
    real, calls = training.supervised_loss, 0
    frames = {part: [e for e in split.entries if e.part == part] for part in ("train", "val")}
    benign = [entry for entry in frames["train"] if entry.label == "benign"]
    malignant = [entry for entry in frames["train"] if entry.label == "malignant"]
    steps = len(frames["train"]) // SHORT.batch
    teacher_steps = steps + len(benign) // SHORT.batch + len(malignant) // SHORT.batch

    def breaks(logits, truth, terms):
        nonlocal calls
        calls += 1
        # in the student's second epoch
        broken = calls > teacher_steps + steps
        return real(logits, truth, terms) * (float("nan") if broken else 1)

    monkeypatch.setattr(training, "supervised_loss", breaks)
    with pytest.raises(Refused) as caught:
        train(dataset, out, SHORT, split=split, device="cpu")
    assert caught.value.code == "E-TRAIN-LOSS"
    message = str(caught.value)
    assert "student: loss nan, " in message
    assert " in epoch 2 on [" in message
    named = message[message.index("[") + 1 : message.index("]")].split(", ")
    assert len(named) == SHORT.batch
    assert set(named) <= {entry.name for entry in frames["train"]}
    tensors, metadata = read_tensors(out / "student.state")
    assert metadata == {"epochs_done": "1"}
    assert all(torch.isfinite(value).all() for value in tensors.values())
    assert not (out / "student.safetensors").exists()

    monkeypatch.undo()
    train(dataset, out, SHORT, resume=True, device="cpu")
    assert [row["epoch"] for row in rows_of(out) if row["stage"] == "student"] == ["1", "2"]


def test_loss_that_explodes_stops_as_one_that_is_not_finite(dataset, split, tmp_path, monkeypatch):
    real = training.supervised_loss
    monkeypatch.setattr(training, "supervised_loss", lambda *inputs: real(*inputs) * 1e5)
    with pytest.raises(Refused, match="lower the learning rate") as caught:
        train(dataset, tmp_path / "run", SHORT, split=split, device="cpu")
    assert caught.value.code == "E-TRAIN-LOSS"


@pytest.mark.parametrize(
    ("fits", "mend"), [(2, "2 images do: start again with --batch 2"), (0, "not even one")]
)
def test_batch_that_does_not_fit_is_refused_with_the_one_that_does(
    fits, mend, dataset, split, tmp_path, monkeypatch
):
    real = fitting.draw_batch

    def draw_batch(frames, rows, *arguments):
        if len(rows) > fits:
            raise torch.OutOfMemoryError("no room")
        return real(frames, rows, *arguments)

    monkeypatch.setattr(fitting, "draw_batch", draw_batch)
    with pytest.raises(Refused, match=mend) as caught:
        train(dataset, tmp_path / "run", SHORT, split=split, device="cpu")
    assert caught.value.code == "E-TRAIN-MEMORY"


def test_other_runtime_errors_are_not_taken_for_a_lack_of_memory(
    dataset, split, tmp_path, monkeypatch
):
    def draw_batch(*arguments):
        raise RuntimeError("a bug")

    monkeypatch.setattr(fitting, "draw_batch", draw_batch)
    with pytest.raises(RuntimeError, match="a bug"):
        train(dataset, tmp_path / "run", SHORT, split=split, device="cpu")


def test_state_of_an_optimiser_that_is_not_fused_is_restored_and_goes_on_alike(tmp_path):
    def made(fused):
        torch.manual_seed(0)
        network = torch.nn.Conv2d(1, 4, 3)
        return network, torch.optim.AdamW(network.parameters(), lr=0.1, fused=fused)

    def steps(network, optimizer, count):
        for _ in range(count):
            optimizer.zero_grad()
            network(torch.ones(1, 1, 8, 8)).square().mean().backward()
            optimizer.step()

    older, newer = made(fused=False), made(fused=True)
    steps(*older, 3)
    fitting._save(tmp_path / "state", older[0], deepcopy(older[0]), older[1], 1)
    fitting._restore(tmp_path / "state", newer[0], deepcopy(newer[0]), newer[1])
    for each in (older, newer):
        steps(*each, 2)
    for ours, theirs in zip(newer[0].parameters(), older[0].parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
    assert newer[1].param_groups[0]["fused"]


def test_resumed_run_that_is_finished_changes_nothing(dataset, run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    before = sha256_of_file(copy / "student.safetensors")
    config = TrainConfig.from_json((copy / "config.json").read_text())
    train(dataset, copy, config, resume=True, device="cpu")
    assert sha256_of_file(copy / "student.safetensors") == before


@pytest.mark.parametrize("stage", ["teacher-benign", "student"])
def test_a_stage_of_something_else_in_a_run_is_refused_and_left(stage, dataset, run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    file = copy / f"{stage}.safetensors"
    (other,) = {"teacher-benign", "student"} - {stage}
    shutil.copy(copy / f"{other}.safetensors", file)
    before = sha256_of_file(file)
    config = TrainConfig.from_json((copy / "config.json").read_text())
    assert code_of(dataset, copy, config, resume=True) == "E-RUN-STAGE"
    assert sha256_of_file(file) == before


# --- teachers of another run, phantoms, the cache ------------------------------------------------

ONE = replace(SHORT, size=64, general_epochs=1, student_epochs=1, batch=4)


def test_teachers_of_another_run_are_taken_as_they_are(dataset, run, tmp_path):
    split = read_split(run / "split.json")
    config = replace(ONE, distillation="at")
    train(dataset, tmp_path / "run", config, split=split, teachers=run, device="cpu")
    provenance = load_checkpoint(tmp_path / "run/student.safetensors").provenance
    for name in ("benign", "malignant"):
        expected = sha256_of_file(run / f"teacher-{name}.safetensors")
        assert provenance["teachers"][name] == expected
    assert {row["stage"] for row in rows_of(tmp_path / "run")} == {"student"}


def test_teacher_that_the_other_run_lacks_starts_from_its_general_network(dataset, run, tmp_path):
    split = read_split(run / "split.json")
    config = replace(ONE, teaching="single")
    train(dataset, tmp_path / "run", config, split=split, teachers=run, device="cpu")
    assert {row["stage"] for row in rows_of(tmp_path / "run")} == {"teacher-every", "student"}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"size": 32}, "E-TEACHER-CONTRACT"),
        ({"teacher": "edge-16"}, "E-TEACHER-CONTRACT"),
        ({"seed": 1}, "E-TEACHER-SPLIT"),
    ],
)
def test_teachers_that_do_not_fit_the_student_are_refused(changes, code, dataset, run, tmp_path):
    config = replace(ONE, **changes)
    assert code_of(dataset, tmp_path / "run", config, teachers=run) == code


def test_run_without_teachers_to_take_is_refused(dataset, split, tmp_path):
    arguments = (dataset, tmp_path / "run", replace(ONE, general_epochs=0))
    assert code_of(*arguments, split=split, teachers=tmp_path) == "E-TEACHER-MISSING"


def test_kill_while_teachers_are_taken_costs_nothing(dataset, run, tmp_path):
    split = read_split(run / "split.json")
    out = tmp_path / "run"
    out.mkdir()
    (out / "taken-teacher-benign.safetensors").write_bytes(b"of another run, cut")
    train(dataset, out, ONE, split=split, teachers=run, device="cpu")
    assert sha256_of_file(out / "taken-teacher-benign.safetensors") == sha256_of_file(
        run / "teacher-benign.safetensors"
    )


def test_left_overs_of_a_kill_are_removed_on_resume(dataset, run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / ".student.state.ab12cd").write_bytes(b"cut")
    (copy / "student.state").write_bytes(b"of a finished stage")
    config = TrainConfig.from_json((copy / "config.json").read_text())
    train(dataset, copy, config, resume=True, device="cpu")
    assert {path.name for path in copy.iterdir()} == {path.name for path in run.iterdir()}


def test_teachers_are_not_taken_into_a_run_that_is_resumed(dataset, run):
    config = TrainConfig.from_json((run / "config.json").read_text())
    assert code_of(dataset, run, config, resume=True, teachers=run) == "E-RUN-CONFIG"


@pytest.mark.parametrize("changes", [{}, {"phantom_epochs": 2}, {"batch": 6}])
def test_start_from_phantoms_is_taken_only_if_its_settings_are_the_same(
    changes, dataset, split, tmp_path, monkeypatch
):
    monkeypatch.setattr(training, "PHANTOMS", 8)
    config = replace(SHORT, phantom_epochs=1, teaching="none", student_epochs=1)
    train(dataset, tmp_path / "first", config, split=split, device="cpu")
    second = replace(config, **changes)
    arguments = (dataset, tmp_path / "second", second)
    train(*arguments, split=split, teachers=tmp_path / "first", device="cpu")
    stages = [row["stage"] for row in rows_of(tmp_path / "second")]
    assert ("phantom-student" in stages) == bool(changes)


def test_networks_start_from_phantoms_where_the_settings_ask_for_it(
    dataset, split, tmp_path, monkeypatch
):
    monkeypatch.setattr(training, "PHANTOMS", 8)
    config = replace(SHORT, phantom_epochs=1, student_epochs=1)
    train(dataset, tmp_path / "run", config, split=split, device="cpu")
    stages = [row["stage"] for row in rows_of(tmp_path / "run")]
    assert stages == [
        "phantom-teacher",
        "teacher-general",
        "teacher-benign",
        "teacher-malignant",
        "phantom-student",
        "student",
    ]


def test_cached_teachers_teach_what_live_ones_teach(dataset, run, tmp_path):
    split = read_split(run / "split.json")
    for name, views in (("live", 0), ("cached", 3)):  # 1 epoch: the same first view
        config = replace(ONE, views=views)
        train(dataset, tmp_path / name, config, split=split, teachers=run, device="cpu")
    live, cached = (rows_of(tmp_path / name)[-1] for name in ("live", "cached"))
    assert float(live["distill"]) == pytest.approx(float(cached["distill"]), rel=0.02)
    assert (tmp_path / "cached/cache/teacher-benign.f16").is_file()


def test_features_are_not_distilled_from_a_cache(dataset, tmp_path):
    config = replace(SHORT, views=2, distillation="kl+at")
    assert code_of(dataset, tmp_path / "run", config) == "E-CONFIG"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "code", "known"),
    [
        ({"distillation": "kl+cdw"}, "E-DISTILL-NAME", "cwd"),
        ({"loss": "balanced+dise"}, "E-LOSS-NAME", "dice"),
        ({"teaching": "both"}, "E-TEACHING-NAME", "confidence"),
        ({"student": "unet"}, "E-MODEL-NAME", "attunet-16"),
    ],
)
def test_unknown_name_is_refused_with_the_known_ones(changes, code, known, dataset, tmp_path):
    with pytest.raises(InputError, match=known) as caught:
        train(dataset, tmp_path / "run", replace(SHORT, **changes), device="cpu")
    assert caught.value.code == code
    assert not (tmp_path / "run").exists()


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["benign", "malignant"])
def test_data_set_without_a_taught_class_is_refused_and_no_run_is_left(label, dataset, tmp_path):
    others = tuple(sample for sample in dataset.samples if sample.label != label)
    reduced = replace(dataset, samples=others)
    assert code_of(reduced, tmp_path / "run", SHORT) == "E-DATA-CLASS"
    assert not (tmp_path / "run").exists()


def test_run_is_not_overwritten(dataset, run):
    before = sha256_of_file(run / "student.safetensors")
    assert code_of(dataset, run, SHORT) == "E-RUN-EXISTS"
    assert sha256_of_file(run / "student.safetensors") == before


def test_resume_with_other_settings_is_refused(dataset, run):
    config = TrainConfig.from_json((run / "config.json").read_text())
    changed = replace(config, temperature=3.0)
    assert code_of(dataset, run, changed, resume=True) == "E-RUN-CONFIG"


def test_resume_without_a_run_is_refused(dataset, tmp_path):
    assert code_of(dataset, tmp_path / "run", SHORT, resume=True) == "E-RUN-MISSING"
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU; needs a machine without one")
def test_device_that_is_not_there_is_refused(dataset, tmp_path):
    with pytest.raises(InputError) as caught:
        train(dataset, tmp_path / "run", SHORT, device="cuda")
    assert caught.value.code == "E-DEVICE"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "values",
    [
        {"size": 40},
        {"size": 16},
        {"batch": 0},
        {"teacher_epochs": 0},
        {"student_epochs": -1},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"temperature": 0.0},
        {"weight_decay": -0.1},
        {"distill_weight": 0.0},
        {"distill_weight": float("nan")},
        {"temperature": float("inf")},
        {"distillation": 5},
        {"size": 64.0},
        {"general_epochs": -1},
        {"views": -1},
    ],
)
def test_setting_out_of_range_is_refused(values):
    with pytest.raises(InputError) as caught:
        TrainConfig(**values)
    assert caught.value.code == "E-CONFIG"


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"size": 64}'])
def test_malformed_settings_are_refused(text):
    with pytest.raises(InputError) as caught:
        TrainConfig.from_json(text)
    assert caught.value.code == "E-CONFIG"


def test_images_of_the_test_part_are_never_read(phantoms, split, tmp_path):
    copy = shutil.copytree(phantoms, tmp_path / "data")
    held_out = [entry.name for entry in split.entries if entry.part == "test"]
    assert held_out
    for sample in read_dataset(copy).samples:
        if sample.name in held_out:
            for path in (sample.image, *sample.masks):
                path.unlink()
    config = replace(SHORT, student_epochs=1)
    student = train(read_dataset(copy), tmp_path / "run", config, split=split, device="cpu")
    assert student.is_file()


@pytest.mark.parametrize(
    ("capabilities", "cap", "dtype"),
    [
        ({"avx512_bf16": True}, "", torch.bfloat16),
        ({"avx512_bf16": True}, "AVX512_CORE_AMX", torch.bfloat16),
        ({"avx512_bf16": True}, "avx512_core_vnni", torch.float32),
        ({"avx2": True}, "", torch.float32),
    ],
)
def test_cpu_trains_in_bfloat16_only_where_it_computes_in_it(monkeypatch, capabilities, cap, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", cap)
    cpu = torch.device("cpu")
    assert fitting.compute_dtype(cpu) == dtype
    with fitting.mixed_precision(cpu):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


@pytest.mark.parametrize("batch", [1, 8])
def test_an_image_a_class_and_batches_of_one_train_at_the_least_size(batch, tmp_path):
    dataset = write_phantoms(tmp_path / "data", count=2)
    assert len({sample.label for sample in dataset.samples}) == len(dataset.samples)
    config = replace(SHORT, student="edge-16", teacher="edge-16", student_epochs=1, batch=batch)
    config = replace(config, distillation="kl+cwd+at+fitnet+ifvd+skds")
    train(dataset, tmp_path / "run", config, device="cpu")
    for stage in STAGES:
        network = load_checkpoint(tmp_path / "run" / f"{stage}.safetensors").network
        assert all(value.isfinite().all() for value in network.state_dict().values())
