from __future__ import annotations

import time

import pytest

from edgeseg.benchmarks.jsonform import json_from_value, value_from_json
from edgeseg.benchmarks.measure import energy
from edgeseg.benchmarks.measure.energy import explain_no_counter, find_counter, measure_energy
from edgeseg.runtime.errors import EngineError
from edgeseg.tests.support.nvml_standin import NOT_TOLD, make_standin

RAPL = "sys/class/powercap"
ORIN_NX = {
    "hwmon0/name": "cpu_thermal",
    "hwmon1/name": "ina3221",
    "hwmon1/in1_label": "VDD_IN",
    "hwmon1/in1_input": "5000",
    "hwmon1/curr1_input": "2000",
    "hwmon1/in2_label": "VDD_CPU_GPU_CV",
    "hwmon1/in2_input": "5000",
    "hwmon1/curr2_input": "400",
    "hwmon1/in3_label": "NC",
    "hwmon1/in3_input": "5000",
    "hwmon1/curr3_input": "8",
    "hwmon1/in7_label": "sum of shunt voltages",
    "hwmon1/in7_input": "9",
}


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr(energy, "SAMPLE_S", 0.005)


@pytest.fixture
def system(tmp_path):
    """Return a function that writes files below a folder of a fake root and returns that root."""

    def write(folder, files):
        for name, content in files.items():
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(str(content))
        return tmp_path

    return write


def zone(name, energy_uj=0, range_uj=1_000_000):
    return {"name": name, "energy_uj": energy_uj, "max_energy_range_uj": range_uj}


def rapl(**zones):
    """Files of zones named after their place: `p0` is intel-rapl:0, `p0_1` is intel-rapl:0:1."""
    return {
        f"intel-rapl:{place[1:].replace('_', ':')}/{file}": content
        for place, files in zones.items()
        for file, content in files.items()
    }


def sleep(seconds):
    """Return how long it took, which a busy machine makes longer."""
    began = time.perf_counter()
    time.sleep(seconds)
    return time.perf_counter() - began


def put(path, value):
    """Change a counter in one step, as the kernel does."""
    beside = path.with_suffix(".new")
    beside.write_text(str(value))
    beside.replace(path)


def burn(root, *steps_uj, zone="intel-rapl:0", pause_s=0.03):
    """Return work of 10 frames that sets the counter to each of some values."""

    def work():
        for value in steps_uj:
            time.sleep(pause_s)
            put(root / RAPL / zone / "energy_uj", value)
        time.sleep(pause_s)
        return 10

    return work


def test_machine_without_counter_has_none_and_says_so(tmp_path):
    assert find_counter(tmp_path) is None
    assert "neither RAPL nor an INA3221" in explain_no_counter(tmp_path)


def test_packages_and_memory_are_summed_but_not_their_parts(system):
    root = system(
        RAPL,
        rapl(
            p0=zone("package-0"),
            p0_0=zone("core"),
            p0_1=zone("dram"),
            p1=zone("package-1"),
            p1_0=zone("dram"),
            p2=zone("psys"),
        ),
    )
    counter = find_counter(root)
    assert counter.name == "RAPL"
    assert [rail.name for rail in counter.rails] == [
        *("package-0", "dram", "package-1", "dram (intel-rapl:1:0)")
    ]
    assert all(rail.in_total for rail in counter.rails)


def test_counter_that_only_root_may_read_is_no_counter_and_says_so(system):
    files = rapl(p0=zone("package-0"))
    del files["intel-rapl:0/energy_uj"]  # a root who runs this test may read anything
    root = system(RAPL, files)
    assert find_counter(root) is None
    assert "only root" in explain_no_counter(root)


def test_energy_of_the_load_is_shared_by_its_frames(system):
    root = system(RAPL, rapl(p0=zone("package-0", 100)))
    found = measure_energy(find_counter(root), burn(root, 50_100, 200_100), idle_s=0.02)
    assert (found.counter, found.total_rails, found.frames) == ("RAPL", ("package-0",), 10)
    assert found.idle_w == found.idle_drift_w == 0
    assert found.gross_mj_per_frame == pytest.approx(20)
    assert found.net_mj_per_frame == pytest.approx(20)
    assert found.load_w == pytest.approx(0.2 / found.load_s)
    assert found.load_s > 0.09
    assert found.sample_hz > 2 / found.load_s  # it was read meanwhile


def test_counter_that_starts_again_from_zero_loses_nothing(system):
    root = system(RAPL, rapl(p0=zone("package-0", 900_000)))
    # Twice around: only readings meanwhile can know.
    work = burn(root, 100_000, 700_000, 50_000)
    found = measure_energy(find_counter(root), work, idle_s=0.02)
    assert found.gross_mj_per_frame == pytest.approx((200 + 600 + 350) / 10)


def test_power_at_rest_is_subtracted(system, monkeypatch):
    root = system(RAPL, rapl(p0=zone("package-0", 0)))
    counted = root / RAPL / "intel-rapl:0/energy_uj"
    rested_uj = []

    def rest(seconds):
        slept_s = sleep(seconds)
        rested_uj.append(int(counted.read_text()) + round(2e6 * slept_s))  # 2 W
        put(counted, rested_uj[-1])

    monkeypatch.setattr(energy, "_rest", rest)
    found = measure_energy(find_counter(root), burn(root, 700_000), idle_s=0.2)
    assert found.idle_w == pytest.approx(2, rel=0.2)
    gross_j = (700_000 - rested_uj[-1]) / 1e6
    expected_mj = 1000 * (gross_j - found.idle_w * found.load_s) / 10
    assert found.net_mj_per_frame == pytest.approx(expected_mj)
    assert found.gross_mj_per_frame == pytest.approx(1000 * gross_j / 10)


def test_drift_at_rest_is_its_second_half_against_its_first(system, monkeypatch):
    root = system(RAPL, rapl(p0=zone("package-0", 0)))
    counted = root / RAPL / "intel-rapl:0/energy_uj"
    halves_w = iter((0.1, 0.5))

    def rest(seconds):
        slept_s = sleep(seconds)
        put(counted, int(counted.read_text()) + round(1e6 * next(halves_w) * slept_s))

    monkeypatch.setattr(energy, "_rest", rest)
    found = measure_energy(find_counter(root), burn(root, 60_000), idle_s=0.2)
    assert found.idle_drift_w == pytest.approx(0.4, rel=0.2)


def test_total_of_an_orin_nx_is_the_rail_that_feeds_the_others(system):
    counter = find_counter(system("sys/class/hwmon", ORIN_NX))
    assert counter.name == "INA3221"
    assert {rail.name: rail.in_total for rail in counter.rails} == {
        "VDD_IN": True,
        "VDD_CPU_GPU_CV": False,
    }


def test_total_of_an_agx_orin_is_the_sum_of_its_rails(system):
    files = {**ORIN_NX, "hwmon1/in1_label": "VDD_GPU_SOC"}
    counter = find_counter(system("sys/class/hwmon", files))
    assert {rail.name: rail.in_total for rail in counter.rails} == {
        "VDD_GPU_SOC": True,
        "VDD_CPU_GPU_CV": True,
    }


def test_rails_are_voltage_times_current_over_time(system):
    root = system("sys/class/hwmon", ORIN_NX)

    risen_s = []

    def work():
        time.sleep(0.05)
        put(root / "sys/class/hwmon/hwmon1/curr2_input", 1400)
        risen_s.append(sleep(0.1))
        return 5

    found = measure_energy(find_counter(root), work, idle_s=0.02)
    assert found.total_rails == ("VDD_IN",)
    assert found.idle_w == pytest.approx(10)
    assert found.load_w == pytest.approx(10)
    assert found.net_mj_per_frame == pytest.approx(0, abs=1e-6)
    assert found.gross_mj_per_frame == pytest.approx(1000 * 10 * found.load_s / 5)
    # The part rises by 5 W for the last 0.1 s, or longer on a busy machine.
    expected_mj = 1000 * 5 * risen_s[0] / 5
    assert found.rails_net_mj_per_frame["VDD_CPU_GPU_CV"] == pytest.approx(expected_mj, rel=0.25)


def test_counter_that_vanishes_meanwhile_is_an_error_and_not_a_number(system):
    root = system(RAPL, rapl(p0=zone("package-0")))

    def work():
        (root / RAPL / "intel-rapl:0/energy_uj").unlink()
        time.sleep(0.03)
        return 10

    with pytest.raises(EngineError) as caught:
        measure_energy(find_counter(root), work, idle_s=0.02)
    assert caught.value.code == "E-ENERGY-READ"


def test_failing_work_keeps_its_error(system):
    root = system(RAPL, rapl(p0=zone("package-0")))

    def work():
        raise EngineError("E-ENGINE-RUN", "broken")

    with pytest.raises(EngineError, match="E-ENGINE-RUN"):
        measure_energy(find_counter(root), work, idle_s=0.02)


def test_energy_survives_json(system):
    root = system(RAPL, rapl(p0=zone("package-0")))
    found = measure_energy(find_counter(root), burn(root, 5), idle_s=0.02)
    assert value_from_json(type(found), json_from_value(found), "energy") == found


# --- NVIDIA's GPUs -------------------------------------------------------------------------------


def test_energy_of_a_gpu_is_what_its_board_counts(tmp_path, monkeypatch):
    library = make_standin(tmp_path, monkeypatch)
    library.set(1, energy=5_000)
    counter = find_counter(tmp_path, gpus=[1])
    assert (counter.name, [rail.name for rail in counter.rails]) == ("NVML", ["GPU 1"])

    def work():
        time.sleep(0.03)
        library.set(1, energy=5_400)  # mJ
        return 10

    found = measure_energy(counter, work, idle_s=0.02)
    assert found.net_mj_per_frame == found.gross_mj_per_frame == pytest.approx(40)


def test_gpu_that_counts_no_energy_is_sampled_by_its_power(tmp_path, monkeypatch):
    library = make_standin(tmp_path, monkeypatch)
    library.set(0, energy=NOT_TOLD, power=20_000)
    counter = find_counter(tmp_path, gpus=[0])
    assert [rail.name for rail in counter.rails] == ["GPU 0 (power)"]

    def work():
        library.set(0, power=60_000)
        time.sleep(0.2)
        return 4

    found = measure_energy(counter, work, idle_s=0.02)
    assert found.idle_w == pytest.approx(20)
    # The first reading under load is still that at rest, so a little is missing.
    assert found.net_mj_per_frame == pytest.approx(1000 * 40 * found.load_s / 4, rel=0.1)


def test_board_and_package_are_added_for_a_gpu_and_not_for_a_cpu(system, tmp_path, monkeypatch):
    make_standin(tmp_path, monkeypatch)
    root = system(RAPL, rapl(p0=zone("package-0", 100)))
    both = find_counter(root, gpus=[0])
    assert (both.name, [rail.name for rail in both.rails]) == (
        "RAPL + NVML",
        ["package-0", "GPU 0"],
    )
    assert all(rail.in_total for rail in both.rails)
    assert [rail.name for rail in find_counter(root).rails] == ["package-0"]


def test_gpu_that_tells_nothing_leaves_no_counter_though_the_cpu_has_one(
    system, tmp_path, monkeypatch
):
    library = make_standin(tmp_path, monkeypatch)
    library.set(0, energy=NOT_TOLD, power=NOT_TOLD)
    root = system(RAPL, rapl(p0=zone("package-0", 100)))
    assert find_counter(root, gpus=[0]) is None
    assert "NVML" in explain_no_counter(root, gpus=[0])
    assert find_counter(root, gpus=[]) is None  # a GPU that NVML does not know


def test_gpu_that_vanishes_meanwhile_is_an_error_and_not_a_number(tmp_path, monkeypatch):
    library = make_standin(tmp_path, monkeypatch)

    def work():
        library.set(0, energy=NOT_TOLD)
        time.sleep(0.03)
        return 1

    with pytest.raises(EngineError) as caught:
        measure_energy(find_counter(tmp_path, gpus=[0]), work, idle_s=0.02)
    assert caught.value.code == "E-ENERGY-READ"


def test_counter_of_a_gpu_that_falls_is_refused_and_not_taken_for_a_wrap(tmp_path, monkeypatch):
    library = make_standin(tmp_path, monkeypatch)
    library.set(1, energy=5_000)
    counter = find_counter(tmp_path, gpus=[1])

    def work():
        library.set(1, energy=10)  # the driver was reloaded
        return 1

    with pytest.raises(EngineError) as caught:
        measure_energy(counter, work, idle_s=0.02)
    assert caught.value.code == "E-ENERGY-READ"
    assert "GPU 1 fell" in str(caught.value)
