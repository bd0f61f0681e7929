from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from edgeseg.benchmarks import compare
from edgeseg.benchmarks.compare import compare_records, require_budgets
from edgeseg.benchmarks.measure.accuracy import ImageScore, summarise
from edgeseg.benchmarks.measure.latency import LatencyRun
from edgeseg.benchmarks.measure.yardstick import Block, Pass, Yardstick
from edgeseg.benchmarks.record import Note
from edgeseg.benchmarks.report.comparison import comparison_to_json, render_comparison
from edgeseg.benchmarks.report.metrics import budget_kinds, parse_budget
from edgeseg.benchmarks.yardstick_passes import BETWEEN_RUNS, record_ratio, students_t
from edgeseg.runtime.errors import InputError, Refused
from edgeseg.runtime.metrics import PixelCounts
from edgeseg.tests.support import fabricated_record
from edgeseg.tests.support.fabricated_record import NOTHING_TOLD, make_record, make_row

ENVIRONMENT = dataclasses.replace(
    fabricated_record.ENVIRONMENT, packages={"numpy": "2.4.6", "openvino": "2026.1"}
)


def score(name, dice, lesion_px=100):
    """An image of 1000 px whose mask is as large as its lesion."""
    tp = round(dice * lesion_px)
    wrong = lesion_px - tp
    return ImageScore(
        name=name,
        label="benign" if lesion_px else "normal",
        group=name,
        lesion_px=lesion_px,
        predicted_px=lesion_px,
        counts=PixelCounts(tp, wrong, wrong, 1000 - tp - 2 * wrong),
        dice=dice if lesion_px else float("nan"),
        iou=dice,
        recall=dice,
        precision=dice,
        accuracy=dice,
        hd95_px=1.0,
    )


def times(median_ms=10.0, *, calls=400, spread=0.05, seed=0):
    """Skewed times whose blocks differ, as on a machine that others use too."""
    generator = np.random.default_rng(seed)
    blocks = np.repeat(generator.normal(0, spread / 5, calls // 10), 10)
    return tuple((median_ms * np.exp(blocks + spread * generator.normal(size=calls))).tolist())


YARDSTICK = Yardstick("openvino", "1.0", "int8", "2", "ab" * 32)


def passes(ratio=3.0, *, count=10, spread=0.02, seed=0, machine=1.0, waited_ms=0.0):
    """Passes of a row that takes so many times its yardstick's 2 ms; `spread` is from pass to pass.

    A ratio near 1 is against the ratio of 3 of the default.
    """
    generator = np.random.default_rng(seed)
    ratio = ratio if ratio >= 2 else 3 * ratio

    def block(ms):
        return Block((machine * ms,) * 2, (waited_ms,) * 2)

    logs = generator.normal(0, spread, count)
    return tuple(Pass((block(2 * ratio * math.exp(log)),) * 5, (block(2.0),) * 5) for log in logs)


def row(name="a", *, e2e_ms=None, dice=(0.8, 0.7, 0.9), **more):
    e2e_ms = times() if e2e_ms is None else e2e_ms
    scores = tuple(score(f"image {i}", value) for i, value in enumerate(dice))
    fields = {
        "kind": "openvino",
        "engine_facts": {"threads": "2"},
        "precision": "int8",
        "latency": run_of(e2e_ms),
        "scores": scores,
        "yardstick": YARDSTICK,
        "passes": passes(),
        **more,
    }
    return make_row(name, **{"accuracy": summarise(fields["scores"]), **fields})


def record(*rows, notes=(), power_mode=None, **environment):
    return make_record(
        *rows,
        notes=notes,
        environment=dataclasses.replace(ENVIRONMENT, **environment),
        before=dataclasses.replace(NOTHING_TOLD, power_mode=power_mode),
        part="all",
        split_sha256=None,
    )


def run_of(e2e_ms):
    return LatencyRun(*(tuple(e2e_ms),) * 4, 1.0, 100, True, (1,) * len(e2e_ms))


def judge(budget, new, old=None):
    """Return the one verdict of a budget on one row."""
    (verdict,) = compare_records(record(old or row()), record(new), [parse_budget(budget)]).verdicts
    return verdict


# --- latency -------------------------------------------------------------------------------------


def test_runs_of_the_same_thing_are_not_shown_to_differ():
    found = [
        record_ratio(row(passes=passes(seed=2 * i)), row(passes=passes(seed=2 * i + 1)))
        for i in range(40)
    ]
    assert [ratio.verdict for ratio in found].count("no difference") >= 38


def test_run_slowed_by_a_tenth_is_found():
    found = [
        record_ratio(row(passes=passes(1.1, seed=2 * i)), row(passes=passes(seed=2 * i + 1)))
        for i in range(40)
    ]
    assert [ratio.verdict for ratio in found].count("slower") >= 38
    assert np.median([ratio.ratio for ratio in found]) == pytest.approx(1.1, abs=0.01)


def test_slower_machine_is_taken_out_and_told():
    found = record_ratio(row(passes=passes(machine=1.5)), row(passes=passes(seed=1)))
    assert found.verdict == "no difference"
    assert found.machine == pytest.approx(1.5, rel=0.05)
    assert found.ratio == pytest.approx(1, abs=0.03)


def test_passes_that_scatter_cannot_tell_and_say_what_they_could_have_found():
    found = record_ratio(row(passes=passes(spread=0.2)), row(passes=passes(spread=0.2, seed=1)))
    assert found.verdict == "cannot tell"
    assert found.smallest > 1.1
    text = render_comparison(
        compare_records(
            record(row(passes=passes(spread=0.2))), record(row(passes=passes(spread=0.2, seed=1)))
        )
    )
    assert "cannot tell (" in text
    assert "no difference (" not in text


def test_difference_as_large_as_the_smallest_is_found_19_times_in_20():
    found = [
        record_ratio(row(passes=passes(1.073, seed=3 * i)), row(passes=passes(seed=3 * i + 1)))
        for i in range(200)
    ]
    assert np.median([each.smallest for each in found]) == pytest.approx(1.073, abs=0.01)
    assert np.mean([each.low > 1 for each in found]) > 0.9


def test_two_runs_without_any_scatter_may_still_differ_by_what_runs_do():
    found = record_ratio(row(passes=passes(1.01, spread=0)), row(passes=passes(spread=0)))
    assert found.verdict == "no difference"
    assert found.low < 1 < found.ratio == pytest.approx(1.01)
    low, _, high = (math.log(each) for each in (found.low, found.ratio, found.high))
    assert (high - low) / 2 == pytest.approx(2.576 * math.sqrt(2) * BETWEEN_RUNS, rel=0.01)


def test_ratio_turned_round_is_its_inverse():
    a, b = row(passes=passes(1.2, seed=1)), row(passes=passes(seed=2))
    forward, back = record_ratio(a, b), record_ratio(b, a)
    assert forward.ratio == pytest.approx(1 / back.ratio)
    assert forward.low == pytest.approx(1 / back.high)
    assert (forward.verdict, back.verdict) == ("slower", "faster")


def test_record_without_a_yardstick_cannot_tell_and_says_how_to_get_one():
    for new, old in (
        (row(), row(yardstick=None, passes=())),
        (row(yardstick=None, passes=()), row()),
    ):
        found = record_ratio(new, old)
        assert found.verdict == "cannot tell"
        assert "--passes" in found.reason
        assert math.isnan(found.ratio)


def test_yardstick_in_another_version_of_its_engine_is_not_the_same():
    other = dataclasses.replace(YARDSTICK, version="2026.4")
    found = record_ratio(row(yardstick=other), row())
    assert found.verdict == "cannot tell"
    assert "version of the yardstick was 1.0 and is 2026.4" in found.reason


def test_passes_whose_calls_waited_for_a_core_do_not_count():
    waited = passes(waited_ms=1.0)
    found = record_ratio(row(passes=waited[:6] + passes()[:4]), row())
    assert (found.verdict, found.passes) == ("cannot tell", (10, 4))
    assert "10 and 4 passes" in found.reason


@pytest.mark.parametrize(
    ("confidence", "freedom", "quantile"),
    [(0.995, 4, 4.604), (0.995, 9, 3.250), (0.995, 18, 2.878), (0.975, 8, 2.306)],
)
def test_quantiles_of_students_t_are_those_of_the_tables(confidence, freedom, quantile):
    assert students_t(confidence, freedom) == pytest.approx(quantile, rel=0.005)


# --- rows ----------------------------------------------------------------------------------------


def test_rows_are_matched_by_name_whatever_their_order():
    found = compare_records(record(row("a"), row("b")), record(row("c"), row("b")))
    assert [(each.old_name, each.name) for each in found.rows] == [("b", "b")]
    assert (found.only_old, found.only_new) == (("a",), ("c",))


def test_only_rows_of_an_engine_and_precision_are_matched_without_a_common_name():
    old = record(row("a"), row("x", kind="torch", precision="fp32"))
    found = compare_records(old, record(row("b")))
    assert [(each.old_name, each.name) for each in found.rows] == [("a", "b")]
    assert "b (was a)" in render_comparison(found)


@pytest.mark.parametrize("new", [(row("c"), row("d")), (row("c", precision="fp32"),)])
def test_rows_without_a_clear_counterpart_are_refused(new):
    with pytest.raises(InputError) as caught:
        compare_records(record(row("a"), row("b")), record(*new))
    assert caught.value.code == "E-COMPARE-ROWS"


@pytest.mark.parametrize(
    "other", [{"cpu": "Intel"}, {"cores": 4}, {"isa": ("avx2",)}, {"governor": "powersave"}]
)
def test_record_of_another_machine_is_refused_and_both_are_named(other):
    with pytest.raises(Refused) as caught:
        compare_records(record(row()), record(row(), **other))
    assert caught.value.code == "E-COMPARE-MACHINE"
    ((name, value),) = other.items()
    assert repr(value) in str(caught.value)
    assert repr(getattr(ENVIRONMENT, name)) in str(caught.value)


GPU = {"kind": "onnxruntime-cuda", "engine_facts": {"device": "GPU"}}


@pytest.mark.parametrize("other", [{"gpus": ("T400",)}, {"gpu_driver": "575.57"}])
def test_another_gpu_or_driver_is_another_machine_to_what_runs_there(other):
    with pytest.raises(Refused) as caught:
        compare_records(record(row(**GPU)), record(row(**GPU), **other))
    assert caught.value.code == "E-COMPARE-MACHINE"
    (name,) = other
    assert f"{name} is" in str(caught.value)
    found = compare_records(record(row()), record(row(), **other))
    assert [change.partition(":")[0] for change in found.changes] == [name]


def test_what_may_explain_a_change_is_listed():
    new = row(engine_facts={"threads": "1"}, artifact_sha256="cd" * 32)
    found = compare_records(
        record(row()), record(new, packages={"numpy": "2.4.6", "openvino": "2026.4"})
    )
    assert found.changes == ("openvino: 2026.1 → 2026.4", "a, threads: 2 → 1")
    assert not found.rows[0].same_artifact


def test_notes_of_both_records_are_warnings():
    old, new = (record(row(), notes=(Note("load", f"{which}."),)) for which in ("busy", "hot"))
    found = compare_records(old, new)
    assert found.warnings == ("old record: busy.", "new record: hot.")
    assert "note: old record: busy." in render_comparison(found)


# --- Dice ----------------------------------------------------------------------------------------


def test_dice_is_compared_image_by_image():
    new = row(dice=(0.7, 0.6, 0.8))
    (found,) = compare_records(record(row()), record(new)).rows
    assert [found.dice.mean, found.dice.low, found.dice.high] == pytest.approx([-0.1] * 3)
    assert found.dice.n == 3


@pytest.mark.parametrize(
    ("scores", "told"),
    [
        ([score("image 0", 0.8), score("image 1", 0.7)], "1 images are in one record only"),
        ([score(f"image {i}", 0.8, 50) for i in range(3)], "truth of image 'image 0'"),
    ],
)
def test_dice_of_other_images_is_absent_with_its_reason(scores, told):
    (found,) = compare_records(record(row()), record(row(scores=tuple(scores)))).rows
    assert found.dice is None
    assert told in found.no_dice


def test_rows_without_lesion_have_no_dice_to_compare():
    scores = tuple(score(f"n{i}", 0.0, 0) for i in range(3))
    (found,) = compare_records(record(row(scores=scores)), record(row(scores=scores))).rows
    assert (found.dice, found.no_dice) == (None, "no image has a lesion")


# --- budgets -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("p99=33ms", 33),
        ("p50=500us", 0.5),
        ("first_mask=1.5s", 1500),
        ("memory=300 MiB", 300),
        ("size=2MB", 2e6),
        ("dice_drop=0.005", 0.005),
        ("dice=.8", 0.8),
        ("slowdown=1.05", 1.05),
        ("slowdown=5%", 1.05),
    ],
)
def test_budget_is_read_with_its_unit(text, limit):
    budget = parse_budget(text)
    assert budget.limit == pytest.approx(limit)
    assert (budget.name, budget.text) == (text.partition("=")[0], text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "p99", "p99=", "p99=33", "p99=33MiB", "p99=-3ms", "p99=nanms", "p99=infs"),
        *("p95=33ms", "P99=33ms", "memory=300", "dice=80%", "dice=1.5", "dice_drop=2"),
        *("slowdown=0.05", "slowdown=5ms", "p99=33ms,p50=20ms", "p99=33ms\nx", "p99=3e2ms"),
        "p99=" + "9" * 400 + "ms",
    ],
)
def test_budget_that_does_not_parse_is_refused_with_an_example(text):
    with pytest.raises(InputError) as caught:
        parse_budget(text)
    assert caught.value.code == "E-BUDGET"
    assert "give one like" in str(caught.value)


@pytest.mark.parametrize("rows", ["b", "torch", "fp32", "torch fp32"])
def test_budget_of_a_row_judges_that_row_alone(rows):
    old = record(row("a"), row("b", kind="torch", precision="fp32"))
    budget = parse_budget(f"{rows}:p50=1s")
    assert (budget.name, budget.limit) == ("p50", 1000)
    found = compare_records(old, old, [budget])
    assert [(verdict.budget, verdict.row) for verdict in found.verdicts] == [
        (f"{rows}:p50=1s", "b")
    ]


def test_budget_of_an_engine_judges_all_its_rows_and_a_name_may_have_a_colon():
    both = record(row("a"), row("x: y"))
    assert len(compare_records(both, both, [parse_budget("openvino:p50=1s")]).verdicts) == 2
    (verdict,) = compare_records(both, both, [parse_budget("x: y:p50=1s")]).verdicts
    assert verdict.row == "x: y"


def test_budget_of_a_row_that_is_not_there_names_those_that_are():
    both = record(row("a"), row("b", kind="torch", precision="fp32"))
    with pytest.raises(InputError, match=r"'a' \(openvino int8\), 'b' \(torch fp32\)") as caught:
        compare_records(both, both, [parse_budget("tensorrt:p99=1ms")])
    assert caught.value.code == "E-BUDGET"


def test_every_example_of_a_budget_parses():
    for name, kind in budget_kinds().items():
        assert parse_budget(kind.example).name == name == kind.name


@pytest.mark.parametrize(
    ("kept", "broken", "found"),
    [
        ("p50=10ms", "p50=9.9ms", "10.0 ms"),
        ("p90=10ms", "p90=9.9ms", "10.0 ms"),
        ("p99=10ms", "p99=9.9ms", "10.0 ms"),
        ("first_mask=1s", "first_mask=999ms", "1000 ms"),
        ("start=0.9s", "start=899ms", "900 ms"),
        ("memory=300MiB", "memory=300MB", "300 MiB"),
        ("size=1MiB", "size=1MB", "1.00 MiB"),
        ("dice=0.8", "dice=0.81", "0.800"),
    ],
)
def test_limit_itself_is_kept_and_less_is_not(kept, broken, found):
    new = row(e2e_ms=(10.0,) * 400, dice=(0.8, 0.8, 0.8))
    assert judge(kept, new).passed
    verdict = judge(broken, new)
    assert not verdict.passed
    assert verdict.found == found


def test_dice_drop_is_judged_by_the_upper_end_of_its_interval():
    old = row(dice=(0.8,) * 10)
    new = row(dice=(0.8,) * 9 + (0.7,))  # 0.01 in the mean
    assert not judge("dice_drop=0.015", new, old).passed
    assert judge("dice_drop=0.05", new, old).passed
    assert judge("dice_drop=0", old, old).passed


def test_slowdown_fails_only_where_it_is_shown():
    old = row(passes=passes(seed=1))
    assert judge("slowdown=5%", row(passes=passes(seed=2)), old).passed
    assert judge("slowdown=20%", row(passes=passes(1.1, seed=2)), old).passed
    assert not judge("slowdown=5%", row(passes=passes(1.2, seed=2)), old).passed


@pytest.mark.parametrize(
    ("budget", "new", "told"),
    [
        ("p99=1s", row(e2e_ms=times(calls=360)), "n too small for a p99, which needs 368"),
        ("p90=1s", row(e2e_ms=times(calls=30)), "n too small"),
        ("slowdown=50%", row(passes=passes(count=4)), "10 and 4 passes"),
        ("slowdown=50%", row(passes=passes(spread=0.5)), "cannot tell: only"),
        ("dice_drop=1", row(dice=(0.8, 0.7)), "in one record only"),
        ("dice=0", row(scores=(score("n", 0.0, 0),)), "no image has a lesion"),
    ],
)
def test_budget_that_cannot_be_judged_fails_with_the_reason(budget, new, told):
    verdict = judge(budget, new)
    assert not verdict.passed
    assert told in verdict.found


def test_drop_of_a_single_image_cannot_be_judged():
    verdict = judge("dice_drop=1", row(dice=(0.8,)), row(dice=(0.8,)))
    assert (verdict.passed, verdict.found) == (False, "too few images for an interval")


@pytest.mark.parametrize("budget", ["slowdown=50%", "dice_drop=1"])
def test_row_that_the_old_record_lacks_fails_what_needs_it(budget):
    found = compare_records(record(row("a")), record(row("a"), row("b")), [parse_budget(budget)])
    assert [verdict.passed for verdict in found.verdicts] == [True, False]
    assert "old record has no such row" in found.verdicts[1].found


def test_refusal_names_every_budget_that_is_not_kept():
    budgets = [parse_budget(text) for text in ("p50=1ms", "memory=1GiB", "size=1B")]
    found = compare_records(record(row()), record(row()), budgets)
    assert not found.passed
    with pytest.raises(Refused) as caught:
        require_budgets(found)
    assert caught.value.code == "E-BUDGET-FAILED"
    assert "2 of 3" in str(caught.value)
    assert "p50=1ms" in str(caught.value)
    assert "size=1B" in str(caught.value)


def test_budgets_that_are_kept_are_not_refused():
    found = compare_records(record(row()), record(row()), [parse_budget("p50=1s")])
    assert found.passed
    require_budgets(found)


# --- what is shown -------------------------------------------------------------------------------


def test_text_says_what_moved_and_what_the_machine_did():
    new = row(passes=passes(1.2, machine=1.5, seed=2), dice=(0.7, 0.6, 0.8))
    found = compare_records(record(row()), record(new), [parse_budget("p99=1ms")])
    text = render_comparison(found)
    assert "FAILED: p99=1ms, a: " in text
    assert "slower: 1.2" in text
    assert "−0.100" in text
    assert "the machine took 1.50× the time for its yardstick" in text
    assert "would have been found 19 times in 20 (10 and 10 passes)" in text
    same = render_comparison(compare_records(record(row()), record(row())))
    assert same.count("no difference") == 2
    assert "software or settings differ" in text
    assert "software or settings differ" not in same


def test_json_has_the_verdict_and_no_undefined_number():
    few = row(passes=passes(count=3))
    found = compare_records(record(few), record(few), [parse_budget("slowdown=5%")])
    content = json.loads(comparison_to_json(found))
    assert content["schema"] == "edgeseg.comparison/2"
    assert content["passed"] is False
    latency = content["rows"][0]["latency"]
    assert latency["verdict"] == "cannot tell"
    assert (latency["ratio"], latency["low"], latency["passes"]) == (None, None, [3, 3])
    assert content["verdicts"][0]["budget"] == "slowdown=5%"


def test_records_of_two_power_modes_are_refused():
    with pytest.raises(Refused, match="MAXN in the old record and 15W in the new") as caught:
        compare_records(record(row(), power_mode="MAXN"), record(row(), power_mode="15W"))
    assert caught.value.code == "E-COMPARE-MACHINE"


def test_budgets_of_dice_pass_over_networks_that_are_not_trained():
    rows = row("a"), row("b", accuracy=None)
    budgets = [parse_budget("dice_drop=0.01"), parse_budget("p50=1s")]
    verdicts = compare_records(record(*rows), record(*rows), budgets).verdicts
    judged = [(verdict.budget, verdict.row) for verdict in verdicts]
    assert judged == [("dice_drop=0.01", "a"), ("p50=1s", "a"), ("p50=1s", "b")]


@pytest.mark.parametrize("limit", ["slowdown=1%", "slowdown=5%"])
def test_slowdown_that_a_scattered_row_cannot_show_is_not_kept(limit):
    new, old = row(passes=passes(1.25, spread=0.15)), row(passes=passes(spread=0.15, seed=1))
    found = record_ratio(new, old)
    ratio = dataclasses.replace(found, ratio=1.265, low=1.005, high=1.593, smallest=1.3)
    compared = compare_records(record(old), record(new)).rows[0]
    verdict = compare._judge(parse_budget(limit), new, dataclasses.replace(compared, latency=ratio))
    assert (ratio.verdict, verdict.passed) == ("slower", False)
    assert verdict.found.startswith("cannot tell: 1.0")


def test_slowdown_smaller_than_what_could_be_found_is_not_kept():
    compared = compare_records(record(row()), record(row())).rows[0]
    ratio = dataclasses.replace(compared.latency, ratio=1, low=0.96, high=1.05, smallest=1.09)
    compared = dataclasses.replace(compared, latency=ratio)
    assert ratio.verdict == "no difference"
    assert not compare._judge(parse_budget("slowdown=1%"), row(), compared).passed
    assert compare._judge(parse_budget("slowdown=10%"), row(), compared).passed


def test_between_runs_is_the_allowance_that_was_measured():
    assert BETWEEN_RUNS == 0.01  # docs/benchmarking.md, "Whole runs compared"


@pytest.mark.parametrize("budget", ["dice=0.8", "dice_drop=0.005"])
def test_dice_budget_that_judges_no_trained_network_fails(budget):
    verdict = judge(budget, row(accuracy=None))
    assert (verdict.passed, verdict.found) == (False, "the network is not trained")


def test_settings_that_differ_are_listed():
    old = record(row())
    new = dataclasses.replace(old, settings=dataclasses.replace(old.settings, batch=4))
    assert compare_records(old, new).changes == ("setting batch: 1 → 4",)


def test_records_the_wrong_way_round_are_told():
    later = record(row(), started_utc="2026-11-23T09:30:00+00:00")
    assert compare_records(record(row()), later).warnings == ()
    (warning,) = compare_records(later, record(row())).warnings
    assert warning == compare.ORDER
