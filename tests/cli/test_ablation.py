"""The ablation table: what is trained, what is shared, and that it continues after a stop."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import edgeseg.cli.jobs.ablation as ablation
import edgeseg.kd.train as training
from edgeseg.cli.jobs.ablation import REFERENCE, ROWS, reproduce, to_markdown, to_text
from edgeseg.kd.checkpoint import load_checkpoint
from edgeseg.kd.config import TrainConfig
from edgeseg.kd.data.dataset import read_dataset
from edgeseg.kd.data.phantom import write_phantoms
from edgeseg.runtime.errors import InputError
from edgeseg.runtime.files import sha256_of_file

pytestmark = pytest.mark.long

SHORT = TrainConfig(
    size=32,
    student="attunet-8",
    teacher="edge-16",
    phantom_epochs=1,
    general_epochs=1,
    teacher_epochs=1,
    student_epochs=1,
    batch=8,
)
TRIED = ("no teacher", "single teacher", "routed, fitnet")


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """Fewer than others share: every row of every seed reads them."""
    folder = tmp_path_factory.mktemp("few") / "phantoms"
    write_phantoms(folder, count=24)
    return folder


@pytest.fixture(scope="module")
def table(phantoms, tmp_path_factory):
    """(folder, results) of a small ablation over two seeds."""
    folder = tmp_path_factory.mktemp("ablation") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "PHANTOMS", 16)
        results = reproduce(read_dataset(phantoms), folder, SHORT, seeds=2, rows=TRIED)
    return folder, results


def test_every_row_is_scored_on_the_test_images_of_every_seed(table):
    _, results = table
    assert [each.name for each in results] == [REFERENCE, *TRIED]
    assert {each.seeds for each in results} == {2}
    assert len({each.images for each in results}) == 1
    reference = results[0]
    assert (reference.gain, reference.gain_low, reference.gain_high) == (0, 0, 0)
    for each in results:
        assert each.gain == pytest.approx(each.dice - reference.dice)
        assert each.gain_low <= each.gain <= each.gain_high


def test_rows_of_a_seed_share_split_and_teachers_and_seeds_share_nothing(table):
    folder, _ = table
    for seed in (0, 1):
        runs = [folder / f"seed-{seed}" / name for name in ("routed", "routed-fitnet")]
        assert len({sha256_of_file(run / "split.json") for run in runs}) == 1
        taught_by = [
            load_checkpoint(run / "student.safetensors").provenance["teachers"] for run in runs
        ]
        assert taught_by[0] == taught_by[1]
        assert set(taught_by[0]) == {"benign", "malignant"}
    splits = {sha256_of_file(folder / f"seed-{seed}/routed/split.json") for seed in (0, 1)}
    assert len(splits) == 2


def test_general_network_and_phantoms_are_learnt_once_a_seed(table):
    folder, _ = table
    routed = {path.name for path in (folder / "seed-0/routed").glob("*.safetensors")}
    assert {"phantom-teacher.safetensors", "phantom-student.safetensors"} <= routed
    single = {path.name for path in (folder / "seed-0/single-teacher").glob("*.safetensors")}
    assert single == {
        "taken-teacher-general.safetensors",
        "taken-phantom-student.safetensors",
        "teacher-every.safetensors",
        "student.safetensors",
    }


def test_table_is_on_disk_and_continues_without_training_anew(table, phantoms, monkeypatch):
    folder, results = table
    content = json.loads((folder / "ablation.json").read_text())
    assert content["schema"] == ablation.SCHEMA
    assert [row["name"] for row in content["results"]] == [REFERENCE, *TRIED]
    assert (folder / "ablation.md").read_text() == to_markdown(results)

    def never(*arguments):
        raise AssertionError("trained anew")

    monkeypatch.setattr(training, "fit", never)
    assert reproduce(read_dataset(phantoms), folder, SHORT, seeds=2, rows=TRIED) == results


def test_rows_stand_in_the_printed_table(table):
    _, results = table
    text = to_text(results)
    assert all(f"{each.dice:.3f}" in text and each.name in text for each in results)


def test_unknown_row_is_refused_with_the_known_ones(phantoms, tmp_path):
    with pytest.raises(InputError, match="no teacher") as caught:
        reproduce(read_dataset(phantoms), tmp_path, SHORT, seeds=1, rows=["best"])
    assert caught.value.code == "E-ABLATION-ROW"


@pytest.mark.parametrize("name", ROWS)
def test_settings_of_every_row_are_known(name):
    training.require_settings(TrainConfig(**ROWS[name]))


def test_finished_rows_of_other_settings_are_refused_not_reported(table, phantoms):
    folder, _ = table
    longer = replace(SHORT, student_epochs=2)
    with pytest.raises(InputError) as caught:
        reproduce(read_dataset(phantoms), folder, longer, seeds=2, rows=TRIED)
    assert caught.value.code == "E-RUN-CONFIG"


def test_row_that_cannot_work_is_refused_before_anything_is_trained(phantoms, tmp_path):
    config = replace(SHORT, views=2)
    with pytest.raises(InputError) as caught:
        reproduce(read_dataset(phantoms), tmp_path / "out", config, seeds=1, rows=["routed, at"])
    assert caught.value.code == "E-CONFIG"
    assert not (tmp_path / "out").exists()


def test_single_teacher_without_a_general_network_is_trained_from_nothing(phantoms, tmp_path):
    config = replace(SHORT, phantom_epochs=0, general_epochs=0)
    results = reproduce(
        read_dataset(phantoms), tmp_path / "out", config, seeds=1, rows=["single teacher"]
    )
    assert [each.name for each in results] == [REFERENCE, "single teacher"]
    assert (tmp_path / "out/seed-0/single-teacher/teacher-every.safetensors").is_file()
