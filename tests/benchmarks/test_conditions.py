from __future__ import annotations

import dataclasses
import os
import time

import pytest

from edgeseg.benchmarks.jsonform import json_from_value, value_from_json
from edgeseg.benchmarks.measure import nvml
from edgeseg.benchmarks.measure.conditions import (
    CHANGES,
    CpuTicks,
    Gpu,
    compare_conditions,
    read_conditions,
)
from edgeseg.tests.support.fabricated_record import NOTHING_TOLD
from edgeseg.tests.support.nvml_standin import NOT_TOLD, make_standin

OWN = "1 (my (odd) name) " + " ".join(["S", *"0" * 10, "30", "10", "5", "2", *"0" * 5])
X86 = {
    "proc/stat": "cpu  100 0 50 800 40 5 5 20 7 0\ncpu0 100 0 50 800 40 5 5 20 7 0\n",
    "proc/self/stat": OWN,
    "proc/self/cgroup": "0::/app/worker\n",
    "proc/loadavg": "0.52 0.40 0.30 1/200 999\n",
    "proc/meminfo": "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n",
    "sys/fs/cgroup/cpu.stat": "usage_usec 5\n",
    "sys/fs/cgroup/app/cpu.max": "150000 100000\n",
    "sys/fs/cgroup/app/cpu.stat": "nr_periods 9\nnr_throttled 4\n",
    "sys/fs/cgroup/app/worker/cpu.max": "max 100000\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "3000000",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq": "800000",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "4500000",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "3",
    "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count": "1",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "3500000",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "performance",
    "sys/devices/system/cpu/intel_pstate/no_turbo": "1",
    "sys/class/thermal/thermal_zone0/type": "x86_pkg_temp",
    "sys/class/thermal/thermal_zone0/temp": "61000",
    "sys/class/thermal/thermal_zone1/type": "x86_pkg_temp",
    "sys/class/thermal/thermal_zone1/temp": "62000",
    "sys/class/hwmon/hwmon0/name": "coretemp",
    "sys/class/hwmon/hwmon0/temp1_input": "60500",
    "sys/class/hwmon/hwmon0/temp1_label": "Core 0",
}
JETSON = {
    "var/lib/nvpmodel/status": "pmode:0002",
    "etc/nvpmodel.conf": "# < POWER_MODEL ID=2 NAME=NOT_THIS >\n"
    "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n",
    "sys/class/devfreq/17000000.gpu/cur_freq": "1020000000",
    "sys/class/devfreq/gpu-gpc-0/cur_freq": "1575000000",
    "sys/class/devfreq/15340000.vic/cur_freq": "115200000",
    "sys/class/devfreq/17000000.x/device/of_node/name": "ga10b\0",
    "sys/class/devfreq/17000000.x/cur_freq": "918000000",
    "sys/class/hwmon/hwmon2/name": "pwmfan",
    "sys/class/hwmon/hwmon2/pwm1": "128",
}


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    monkeypatch.setattr(nvml, "LIBRARY", "libno-such-library.so.1")


@pytest.fixture
def system(tmp_path):
    """Return a function that writes files below a fake root and returns that root."""

    def write(files):
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)
        return tmp_path

    return write


def test_snapshot_of_an_x86_machine(system):
    found = read_conditions(system(X86))
    assert (found.core_mhz, found.min_mhz, found.max_mhz) == ((3000, 3500), 800, 4500)
    assert found.governors == ("performance", "powersave")
    assert (found.boost, found.throttle_events, found.load_average) == (False, 4, 0.52)
    assert found.temperatures_c == {
        "x86_pkg_temp": 61,
        "x86_pkg_temp (thermal_zone1)": 62,
        "coretemp Core 0": 60.5,
    }
    assert found.memory_available_mib == 4096
    # A guest's ticks are in user's already; waiting for a disk is not work.
    assert found.cpu_ticks == CpuTicks(total=1020, busy=160, stolen=20, own=47)


def test_quota_is_the_tightest_of_the_group_and_those_above_it(system):
    found = read_conditions(system(X86))
    assert (found.quota_cores, found.quota_stops) == (1.5, 4)


def test_quota_is_read_from_the_first_version_of_control_groups(system):
    found = read_conditions(
        system(
            {
                "proc/self/cgroup": "4:memory:/a\n1:cpu,cpuacct:/a\n0::/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "50000",
                "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/cpu/a/cpu.stat": "nr_throttled 7\n",
            }
        )
    )
    assert (found.quota_cores, found.quota_stops) == (0.5, 7)


def test_snapshot_of_a_jetson(system):
    found = read_conditions(system(JETSON))
    assert found.power_mode == "MAXN_SUPER"
    assert found.jetson_gpu_mhz == {"gpu": 1020, "ga10b": 918, "gpu-gpc-0": 1575}
    assert found.fan_pwm == 128
    assert read_conditions(system({"etc/nvpmodel.conf": "none"})).power_mode == "2"


def test_what_a_system_does_not_tell_is_none_or_nothing(tmp_path):
    found = json_from_value(read_conditions(tmp_path))
    assert all(value in (None, [], {}) for value in found.values())


def test_clock_without_cpufreq_is_that_of_cpuinfo(system):
    text = "processor : 0\ncpu MHz\t\t: 2445.4\n\nprocessor : 1\ncpu MHz\t\t: 2400.0\n"
    assert read_conditions(system({"proc/cpuinfo": text})).core_mhz == (2445.4, 2400)


def test_snapshot_of_this_machine_is_quick_and_survives_json():
    start = time.thread_time()  # of this thread alone, however busy the machine
    found = read_conditions()
    assert time.thread_time() - start < 0.5
    assert found.core_mhz or found.load_average is not None
    again = value_from_json(type(found), json_from_value(found), "conditions")
    assert again == found


# --- NVIDIA's GPUs -------------------------------------------------------------------------------


def test_gpus_are_what_nvml_tells(tmp_path, monkeypatch):
    library = make_standin(tmp_path, monkeypatch)
    library.set(0, sm=1410, memory=1593, temperature=45, limit=350_000, reasons=0x24)
    library.set(0, pid=os.getpid())
    library.set(1, sm=210, memory=405, temperature=31, limit=NOT_TOLD, reasons=0x1)
    busy, idle = read_conditions(tmp_path).gpus
    assert busy == Gpu(
        index=0,
        name="NVIDIA RTX A2000",
        clock_mhz=1410,
        memory_clock_mhz=1593,
        temperature_c=45,
        power_limit_w=350,
        is_idle=False,
        throttled_by=("software power cap", "software thermal slowdown"),
        ours=True,
    )
    assert (idle.is_idle, idle.power_limit_w, idle.throttled_by) == (True, None, ())
    assert not idle.ours


# --- comparison ----------------------------------------------------------------------------------


@pytest.fixture
def quiet(system):
    """Conditions under which nothing happens."""
    return read_conditions(system(X86))


def gpu(clock_mhz=1410.0, *, index=0, is_idle=False, throttled_by=(), ours=False):
    return Gpu(index, "T400", clock_mhz, 1593.0, 45.0, 350.0, is_idle, throttled_by, ours)


def codes(before, *, on_gpu=True, **changes):
    """Return the codes of what is found after some changes."""
    found = compare_conditions(before, dataclasses.replace(before, **changes), on_gpu=on_gpu)
    return [change.code for change in found]


def test_machine_that_did_not_move_has_no_finding(quiet):
    assert compare_conditions(quiet, quiet, on_gpu=True) == ()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"core_mhz": (3000.0, 3400.0)}, "cpu-clock"),
        ({"throttle_events": 5}, "throttled"),
        ({"quota_stops": 5}, "quota"),
        ({"governors": ("powersave",)}, "governor"),
        ({"cpu_ticks": CpuTicks(1120, 160, 23, 47)}, "stolen"),
        ({"cpu_ticks": CpuTicks(1120, 226, 20, 107)}, "others"),
        ({"gpus": (gpu(throttled_by=("software power cap",)),)}, "gpu-throttled"),
    ],
)
def test_each_change_is_found_alone(quiet, changes, code):
    assert codes(quiet, **changes) == [code]


@pytest.mark.parametrize(
    "changes",
    [
        {"core_mhz": (2000.0, 3440.0)},  # the other core rests
        {"core_mhz": ()},
        {"throttle_events": None},
        {"load_average": 9.0},
        {"temperatures_c": {"x86_pkg_temp": 90.0}},
        {"cpu_ticks": CpuTicks(1120, 164, 22, 47)},
        {"cpu_ticks": CpuTicks(1120, 260, 20, 147)},  # our own work
    ],
)
def test_what_is_small_unknown_or_our_own_is_no_finding(quiet, changes):
    assert codes(quiet, **changes) == []


def test_gpu_clock_counts_only_while_the_gpu_works(quiet):
    working = dataclasses.replace(quiet, gpus=(gpu(),))
    assert codes(working, gpus=(gpu(1200.0),)) == ["gpu-clock"]
    assert codes(working, gpus=(gpu(210.0, is_idle=True),)) == []


def test_gpu_that_nothing_runs_on_invalidates_nothing(quiet):
    hot = gpu(throttled_by=("hardware slowdown",))
    assert codes(quiet, gpus=(hot,), on_gpu=False) == []
    working = dataclasses.replace(quiet, gpus=(gpu(),), jetson_gpu_mhz={"gpu": 1000.0})
    moved = {"gpus": (gpu(1200.0),), "jetson_gpu_mhz": {"gpu": 500.0}}
    assert codes(working, **moved, on_gpu=False) == []
    assert codes(working, **moved) == ["gpu-clock", "gpu-clock"]


def test_gpu_of_others_counts_only_where_ours_cannot_be_told(quiet):
    hot = gpu(index=1, throttled_by=("hardware slowdown",))
    assert codes(quiet, gpus=(gpu(ours=True), hot)) == []
    assert codes(quiet, gpus=(gpu(), hot)) == ["gpu-throttled"]


def test_power_mode_and_gpu_clock_of_a_jetson_are_compared(system):
    before = read_conditions(system(JETSON))
    after = {"power_mode": "15W", "jetson_gpu_mhz": {"gpu": 612.0}}
    assert codes(before, **after) == ["gpu-clock", "power-mode"]


@pytest.mark.parametrize(("own", "invalidates"), [(60, False), (20, True)])
def test_others_spoil_the_times_where_they_take_over_a_quarter(own, invalidates):
    before, after = (
        dataclasses.replace(NOTHING_TOLD, cpu_ticks=CpuTicks(*ticks))
        for ticks in ((0, 0, 0, 0), (100, 70, 0, own))
    )
    (found,) = compare_conditions(before, after, on_gpu=False)
    assert (found.code, found.invalidates) == ("others", invalidates)
    assert f"used {70 - own}.0 % of" in found.text


def test_findings_come_in_the_order_of_their_list_and_say_what_to_do(quiet):
    after = dataclasses.replace(
        quiet,
        core_mhz=(1500.0,),
        throttle_events=9,
        quota_stops=9,
        governors=(),
        cpu_ticks=CpuTicks(1120, 226, 40, 100),
    )
    found = compare_conditions(quiet, after, on_gpu=False)
    assert [change.code for change in found] == [
        code for code in CHANGES if code in {change.code for change in found}
    ]
    assert [change.code for change in found if not change.invalidates] == ["others"]
    texts = {change.code: change.text for change in found}
    assert "3500 MHz before and at 1500 MHz after" in texts["cpu-clock"]
    assert "20.0 %" in texts["stolen"]
    assert "performance, powersave before and unknown after" in texts["governor"]
