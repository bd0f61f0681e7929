"""What an engine opens: files of a bundle, or the plan that a kit's device has built from it.

A kit stays as it was exported, sealed and perhaps signed. Its plan lies beside it as
``KIT-PRECISION.plan`` with the side-car ``KIT-PRECISION.plan.json``, where ``build_engine.py`` puts
them by itself. The side-car names the hashes of both, so that neither a changed plan nor one of
another kit is loaded. It is no signature: whoever can write both files can forge both.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Dict

from .bundle import Bundle
from .engines import files_of
from .errors import EngineError, Refused
from .store import reading

BUILT = "tensorrt"  # the engine whose files in a bundle are what its plan is built from
SCHEMA = "edgeseg.engine/1"  # of the side-car
# Compared with the file sizes before anything is read.
MAX_SIDE_CAR_BYTES = 1 << 20
MAX_PLAN_BYTES = 1 << 30  # as a packed bundle; the plans of our networks are of some megabytes


def engine_files(bundle: Bundle, engine: str) -> Dict[str, bytes]:
    """Return the verified files that an engine opens, by name.

    Raises:
        InputError: E-ENGINE-NOT-IN-BUNDLE, E-BUNDLE-MISSING (the plan cannot be read).
        EngineError: E-ENGINE-NOT-BUILT (the kit's plan is not there).
        Refused: E-BUNDLE-HASH, E-ENGINE-PLAN (the plan is not of this kit, or was changed),
            E-SIGNATURE-PLAN (a key was given, and no signature covers the plan).
    """
    if engine != BUILT:
        return bundle.model_files(files_of(engine))
    bundle.model_files(engine)  # says so where it is no kit
    plan = built_plan(bundle)
    if bundle.verified:  # loading a plan runs what is in it
        raise Refused(
            "E-SIGNATURE-PLAN",
            f"{plan} was built here and no signature covers it, but a key was given; verify the "
            "kit with `edgeseg bundle verify`, keep others from writing beside it, and open it "
            "without the key",
        )
    side_car = plan.with_name(plan.name + ".json")
    again = f"run python3 {_folder_of(bundle) / 'build_engine.py'} on this device"
    if not plan.is_file() or not side_car.is_file():
        raise EngineError(
            "E-ENGINE-NOT-BUILT", f"{plan} and {side_car.name} are not there; {again}"
        )
    for file, limit in ((side_car, MAX_SIDE_CAR_BYTES), (plan, MAX_PLAN_BYTES)):
        if file.stat().st_size > limit:
            raise Refused("E-ENGINE-PLAN", f"{file} is over {limit} bytes; {again}")
    with reading(plan):
        content, facts = plan.read_bytes(), side_car.read_bytes()
    try:
        told = json.loads(facts)
        named = tuple(told[key] for key in ("schema", "precision", "plan_sha256", "kit_sha256"))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Refused(
            "E-ENGINE-PLAN", f"{side_car} is malformed ({error!r:.80}); {again}"
        ) from error
    plan_sha256 = hashlib.sha256(content).hexdigest()
    if named != (SCHEMA, bundle.manifest.precision, plan_sha256, bundle.sha256):
        whose = "plan" if named[2] != plan_sha256 else "kit"
        raise Refused("E-ENGINE-PLAN", f"{side_car} is of another {whose}; {again}")
    return {plan.name: content, side_car.name: facts}


def built_plan(bundle: Bundle) -> Path:
    """Return where the plan of a kit lies: beside it, under its name and precision.

    Of a path that is a symbolic link, beside what it points to: a link that is switched to another
    kit must not find the plan of the one before.
    """
    folder = _folder_of(bundle)
    return folder.with_name(f"{folder.name}-{bundle.manifest.precision}.plan")


def _folder_of(bundle: Bundle) -> Path:
    """Return the kit's folder; of one in a single file, where `edgeseg bundle unpack` puts it."""
    path = bundle.path.resolve()
    return path.with_suffix("") if path.is_file() else path
