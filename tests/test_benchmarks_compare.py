from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from edgeseg.benchmarks import compare
from edgeseg.benchmarks.accuracy import ImageScore, summarise
from edgeseg.benchmarks.compare import (
    BUDGETS,
    TWO_RUNS,
    block_ratio,
    compare_records,
    comparison_to_json,
    parse_budget,
    render_comparison,
    require_budgets,
)
from edgeseg.benchmarks.latency import LatencyRun
from edgeseg.benchmarks.record import Note
from edgeseg.runtime.errors import InputError, Refused
from edgeseg.runtime.metrics import PixelCounts
from edgeseg.tests import fabricated_record
from edgeseg.tests.fabricated_record import NOTHING_TOLD, make_record, make_row

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


def row(name="a", *, e2e_ms=None, dice=(0.8, 0.7, 0.9), **more):
    e2e_ms = times() if e2e_ms is None else e2e_ms
    scores = tuple(score(f"image {i}", value) for i, value in enumerate(dice))
    fields = {
        "kind": "openvino",
        "engine_facts": {"threads": "2"},
        "precision": "int8",
        "latency": run_of(e2e_ms),
        "scores": scores,
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


@pytest.fixture
def few_resamples(monkeypatch):
    monkeypatch.setattr(compare, "_RESAMPLES", 400)


def test_runs_of_the_same_thing_are_not_shown_to_differ(few_resamples):
    ratios = [
        block_ratio(run_of(times(seed=2 * i)), run_of(times(seed=2 * i + 1))) for i in range(40)
    ]
    assert sum(not ratio.differs for ratio in ratios) >= 38


def test_run_slowed_by_a_tenth_is_found(few_resamples):
    ratios = [
        block_ratio(run_of(times(11.0, seed=2 * i)), run_of(times(seed=2 * i + 1)))
        for i in range(40)
    ]
    assert sum(ratio.low > 1 for ratio in ratios) >= 38
    assert np.median([ratio.ratio for ratio in ratios]) == pytest.approx(1.1, abs=0.01)


def test_drift_within_a_run_widens_the_interval_though_its_times_are_the_same():
    mixed = times(spread=0.1)
    drifting = sorted(mixed)
    narrow, wide = (block_ratio(run_of(each), run_of(mixed)) for each in (mixed, drifting))
    assert narrow.ratio == wide.ratio == 1
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_ratio_turned_round_is_its_inverse():
    a, b = run_of(times(12.0, seed=1)), run_of(times(seed=2))
    forward, back = block_ratio(a, b), block_ratio(b, a)
    assert forward.ratio == pytest.approx(1 / back.ratio)
    assert forward.low == pytest.approx(1 / back.high, rel=0.02)


def test_few_calls_give_a_ratio_without_interval():
    found = block_ratio(run_of([2.0] * 39), run_of([1.0] * 400))
    assert found.ratio == 2
    assert np.isnan([found.low, found.high]).all()
    assert not found.differs


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
        ("memory=300 MiB", 300 << 20),
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


def test_every_example_of_a_budget_parses():
    for name, kind in BUDGETS.items():
        assert parse_budget(kind.example).name == name


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
    old = row(e2e_ms=times(seed=1))
    assert judge("slowdown=5%", row(e2e_ms=times(seed=2)), old).passed
    assert judge("slowdown=15%", row(e2e_ms=times(11.0, seed=2)), old).passed
    assert not judge("slowdown=5%", row(e2e_ms=times(11.0, seed=2)), old).passed


@pytest.mark.parametrize(
    ("budget", "new", "told"),
    [
        ("p99=1s", row(e2e_ms=times(calls=360)), "n too small for a p99, which needs 368"),
        ("p90=1s", row(e2e_ms=times(calls=30)), "n too small"),
        ("slowdown=50%", row(e2e_ms=times(calls=30)), "too few calls"),
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


def test_text_says_what_moved_and_that_the_runs_took_no_turns():
    new = row(e2e_ms=times(12.0, seed=2), dice=(0.7, 0.6, 0.8))
    found = compare_records(record(row()), record(new), [parse_budget("p99=1ms")])
    text = render_comparison(found)
    assert "FAILED: p99=1ms, a: " in text
    assert "slower: 1.2" in text
    assert "−0.100" in text
    assert TWO_RUNS in text
    same = render_comparison(compare_records(record(row()), record(row())))
    assert same.count("no difference") == 2
    assert "software or machine made the difference" in text
    assert "software or machine made the difference" not in same


def test_json_has_the_verdict_and_no_undefined_number():
    few = row(e2e_ms=times(calls=30))
    found = compare_records(record(few), record(few), [parse_budget("slowdown=5%")])
    content = json.loads(comparison_to_json(found))
    assert content["schema"] == "edgeseg.comparison/1"
    assert content["passed"] is False
    assert content["rows"][0]["latency"] == {"ratio": 1.0, "low": None, "high": None}
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
