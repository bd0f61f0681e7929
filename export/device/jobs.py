"""What is done on devices: build an engine, measure a bundle, predict; whole or not at all."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from ...benchmarks.measure.latency import percentile, supported_percentile
from ...runtime.bundle import open_bundle
from ...runtime.errors import EdgesegError, InputError, Refused
from ...runtime.files import atomic_folder, require_new, sha256_of_file
from ...runtime.predict import find_images
from .ssh import Job, error_of_exit, not_understood
from .table import render_table
from .transfer import (
    Link,
    Payload,
    bundle_payload,
    folder_payload,
    images_payload,
    runtime_payload,
    send,
)

PLAN, SIDE_CAR, LOG = "engine.plan", "engine.plan.json", "build.log"
PREDICTIONS = "predictions"
REPORT = "benchmark.json"
_MODULE = "edgeseg.export.device.onboard.work"
_WARMUP = 50  # calls, or as many as are timed where those are fewer
T = TypeVar("T")


class FetchedEngine(NamedTuple):
    """An engine that came back from a device."""

    folder: Path  # with PLAN, SIDE_CAR and LOG
    reused: bool  # whether the device still had it from an earlier build, and checked it again
    facts: dict[str, Any]  # the side-car


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What one of several devices gave: a result or an error."""

    name: str
    result: T | None
    error: EdgesegError | None


def on_each(links: Sequence[Link], work: Callable[[Link], T]) -> tuple[Outcome[T], ...]:
    """Do the same on several devices at once; the error of one stops no other."""

    def one(link: Link) -> Outcome[T]:
        try:
            return Outcome(link.device.name, work(link), None)
        except EdgesegError as error:
            return Outcome(link.device.name, None, error)

    with ThreadPoolExecutor(max_workers=max(1, len(links))) as pool:
        waiting = [pool.submit(one, link) for link in links]
        try:
            return tuple(each.result() for each in waiting)
        except BaseException:  # Ctrl-C above all: the threads end as their connections do
            for link in links:
                link.give_up()
            raise


def build(
    link: Link, kit: Path, precision: str | None, out: Path, *, frame: bool = False
) -> FetchedEngine:
    """Build the engine of a kit on a device and bring it back.

    Args:
        link: to the device.
        kit: a bundle for TensorRT, with its ``build_engine.py``.
        precision: one of the kit's builds; None takes the kit's default.
        out: new folder for PLAN, SIDE_CAR and LOG.
        frame: build the kit's frame graph instead of the network.

    Raises:
        InputError: E-OUT-EXISTS, E-DEVICE-KIT, the errors of `open_bundle`; E-DEVICE-BUILD as all
            others, by what ``build_engine.py`` said (2 to 5).
        Refused: E-DEVICE-ENGINE (what came back is not what was built from this kit).
    """
    require_new(out)
    bundle = open_bundle(kit)
    if not (kit / "kit.json").is_file():
        raise InputError(
            "E-DEVICE-KIT", f"{kit} is no build kit; edgeseg export --target jetson makes one"
        )
    content = json.loads((kit / "kit.json").read_bytes())
    if frame and content.get("frame") is None:
        raise InputError(
            "E-DEVICE-KIT", f"{kit} holds no frame graph; export it with --frame WIDTHxHEIGHT"
        )
    builds = (content["frame"] if frame else content)["builds"]
    chosen = precision or str(content["default"])
    if chosen not in builds:
        raise InputError(
            "E-DEVICE-KIT", f"{kit} holds {', '.join(builds)}, not {chosen}; export it too"
        )
    key = send(link, folder_payload(kit), f"kit {kit.name}")
    script = "@base/content/build_engine.py"
    # Where build_engine.py puts it, and where the runtime looks for the network's.
    name = f"content-{chosen}-frame" if frame else f"content-{chosen}"
    plan, options = f"{name}.plan", ("--frame",) if frame else ()
    job = Job(
        key=key,
        argv=("@python", script, "--precision", chosen, *options, "--out", f"@out/{PLAN}"),
        out={PLAN: plan, SIDE_CAR: f"{plan}.json", LOG: f"{name}.log"},
        log=LOG,
        env={},
        publish=True,
        check=("@python", script, "--check", f"@base/{plan}"),
    )
    saved = {saved_as: name for name, saved_as in job.out.items()}
    with atomic_folder(out) as folder:
        answer = link.persist(lambda: _run(link, job, folder, "E-DEVICE-BUILD", saved))
        try:
            facts = json.loads((folder / SIDE_CAR).read_bytes())
            sums = facts["plan_sha256"], facts["kit_sha256"], facts["precision"]
            onnx = facts["build"]["onnx"]
            float(facts["vectors"]["flipped_share"])
            str(facts["tensorrt"])
        except (ValueError, KeyError, TypeError) as error:
            raise Refused("E-DEVICE-ENGINE", f"the side-car is malformed ({error})") from error
        wanted = sha256_of_file(folder / PLAN), bundle.sha256, chosen
        if sums != wanted or onnx != builds[chosen]["onnx"]:
            raise Refused(
                "E-DEVICE-ENGINE",
                f"the engine that {link.device.name} sent is of another kit or was changed; "
                f"edgeseg device clean {link.device.name}, then build again",
            )
    return FetchedEngine(out, bool(answer["reused"]), facts)


def benchmark(link: Link, bundle: Path, engine: str | None, rounds: int) -> dict[str, Any]:
    """Time a bundle on a device in the runtime that is sent along; return its report.

    A kit is measured with the engine that `build` left on the device.

    Raises E-DEVICE-BENCHMARK by what the runtime said there (2 to 5), and the errors of `send`.
    """
    counts = (f"--rounds={rounds}", f"--warmup={min(_WARMUP, rounds)}")
    job = _work(link, "benchmark", bundle, engine, options=counts)
    report: dict[str, Any] = {}

    def once() -> None:
        with tempfile.TemporaryDirectory(prefix="edgeseg-") as folder:
            _run(link, job, Path(folder), "E-DEVICE-BENCHMARK", {})
            try:
                report.update(json.loads((Path(folder) / REPORT).read_bytes()))
                _cells(report)
            except (OSError, KeyError, TypeError, ValueError) as error:
                raise not_understood(link.device, error) from error

    link.persist(once)
    return report


def predict(link: Link, bundle: Path, engine: str | None, images: Sequence[Path], out: Path) -> int:
    """Segment images on a device into the new folder `out`, as `edgeseg predict`; return how many.

    Raises E-DEVICE-PREDICT by what the runtime said there (2 to 5); E-OUT-EXISTS and the errors of
    `find_images` and `send`.
    """
    require_new(out)
    found = find_images(images)
    if found.note:
        link.say(found.note)
    payload = images_payload(found.images)
    job = _work(link, "predict", bundle, engine)

    def once() -> None:  # the images are sent again: the device keeps none where the job ended
        key = send(link, payload, f"{len(found.images)} images")
        names = (f"@root/{key}/content/{image.name}" for image in found.images)
        run = job._replace(argv=(*job.argv, *names), forget=(key,))
        _run(link, run, folder, "E-DEVICE-PREDICT", {})

    with atomic_folder(out) as folder:
        try:
            link.persist(once)
        except BaseException:
            _forget(link, payload)
            raise
        inner = folder / PREDICTIONS
        for path in inner.iterdir():
            path.rename(folder / path.name)
        inner.rmdir()
    return len(found.images)


def _forget(link: Link, payload: Payload) -> None:
    """Remove what was sent of patients' images and was not removed by a job; say if it may stay."""
    try:
        with link.connect() as connection:
            connection.request("forget", keys=(payload.key,))
            connection.read_answer()
    except EdgesegError as error:
        link.say(
            f"{error.code}: images may still be on {link.device.name}, until the next upload to "
            f"it; remove them: edgeseg device clean {link.device.name}"
        )


def clean_device(link: Link) -> int:
    """Remove all that edgeseg left on a device; return the bytes. Raises E-DEVICE-BUSY."""
    with link.connect() as connection:
        connection.request("clean")
        return int(connection.read_answer(bytes=int)["bytes"])


def _work(
    link: Link,
    verb: str,
    bundle: Path,
    engine: str | None,
    *,
    options: tuple[str, ...] = (),
) -> Job:
    """Send a bundle and the runtime; return the job of `onboard.work` on them."""
    payload, inner = bundle_payload(bundle)
    key = send(link, payload, f"bundle {bundle.name}")
    runtime = send(link, runtime_payload(), "the runtime")
    chosen = () if engine is None else (f"--engine={engine}",)
    place = "/".join(filter(None, ("@base/content", inner)))
    return Job(
        key=key,
        argv=("@python", "-m", _MODULE, *chosen, *options, "--", verb, place, "@out"),
        out={},
        log="job.log",
        env={"PYTHONPATH": f"@root/{runtime}/content"},
    )


def _run(link: Link, job: Job, folder: Path, code: str, saved: dict[str, str]) -> dict[str, Any]:
    """Run a job and put its files into a folder, by the names that `saved` gives them.

    Raises the error of `code` by the job's exit code, with the last line that it said.
    """
    last = ""

    def say(line: str) -> None:
        nonlocal last
        last = line.strip() or last
        link.say(line)

    with link.connect() as connection:
        answer = connection.run(job, say)
        try:
            exit_code = int(answer["exit"])
            files = [(str(name), str(sha256), int(size)) for name, sha256, size in answer["files"]]
            if any(size < 0 for _, _, size in files):
                raise ValueError("a file of less than no bytes")
        except (KeyError, TypeError, ValueError) as error:
            raise not_understood(link.device, error) from error
        if exit_code:
            raise error_of_exit(code, f"{link.device.name}: {last}", exit_code)
        for name, sha256, size in files:
            target = _inside(folder, saved.get(name, name))
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as stream:
                connection.read_into(stream, size)
            if sha256_of_file(target) != sha256:
                raise Refused("E-DEVICE-DOWNLOAD", f"{name} arrived changed; try again")
    return answer


def _inside(folder: Path, name: str) -> Path:
    """Return a path below a folder: the device chooses the name, not the place."""
    target = folder / name
    if ".." in target.parts or not target.resolve().is_relative_to(folder.resolve()):
        raise Refused("E-DEVICE-DOWNLOAD", f"the device sent a file named {name!r:.80}")
    return target


def render_benchmark(outcomes: Sequence[Outcome[dict[str, Any]]]) -> str:
    """Return one table of all devices; p99 and p90 only where the samples carry them."""
    heads = (
        "device",
        "engine",
        "precision",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "n",
        "open ms",
        "first ms",
        "peak MiB",
        "golden",
        "power mode",
        "clocks",
    )
    rows = [(each.name, *_cells(each.result)) for each in outcomes if each.result is not None]
    text = render_table(heads, rows) if rows else ""
    errors = [f"{each.name}: {each.error}" for each in outcomes if each.error is not None]
    return "\n".join(filter(None, [text, *errors]))


def _golden(result: dict[str, Any] | None) -> str:
    if result is None:
        return "none"
    return "bit-equal" if result["bit_equal"] else f"{result['worst_flipped']:.2%} differ"


def _cells(report: dict[str, Any]) -> tuple[str, ...]:
    samples = report["samples_ms"]

    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    locked = {True: "locked", False: "free", None: "unknown"}[report["clocks_locked"]]
    return (
        report["engine"],
        report["precision"],
        shown(percentile(samples, 0.5)),
        shown(supported_percentile(samples, 0.9)),
        shown(supported_percentile(samples, 0.99)),
        str(len(samples)),
        shown(report["open_ms"]),
        shown(report["first_ms"]),
        f"{report['peak_mib']:.0f}",
        _golden(report["golden"]),
        report["power_mode"] or "unknown",
        locked,
    )
