"""How much faster a student's step is than in a plain loop; run by hand, not by pytest.

    python tests/measure/training_speed.py --student attunet-16 --teacher resnet101-attunet

The plain loop is float32, runs both teachers on every image and keeps nothing. Ours is the step of
`edgeseg.kd.fit` with the teachers' logits in the cache, as in every epoch after the first
`--views`. Both get the same augmented batches; steps are timed in turns in one process. Weights are
random: they do not change the time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import edgeseg.kd.fit as fitting
from edgeseg.kd.cache import LogitCache
from edgeseg.kd.config import TrainConfig
from edgeseg.kd.distill import find_distillation
from edgeseg.kd.distributed import Group
from edgeseg.kd.frames import draw_batch, draw_phantoms
from edgeseg.kd.log import RunLog
from edgeseg.kd.losses import supervised_loss
from edgeseg.kd.models import build_model
from edgeseg.kd.teaching import Teachers, find_teaching
from edgeseg.kd.train import student_loss
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.progress import quiet

CPU = torch.device("cpu")


def plain_step(student, teachers, optimizer, batch, config):
    """Return nothing; the loss of Hinton's KL and the masks, one AdamW step."""
    images = batch.images.contiguous()
    logits = student(images)
    with torch.no_grad():
        answers = {name: teacher(images) for name, teacher in teachers.items()}
    loss = supervised_loss(logits, batch.truth, ("balanced", "dice")).mean()
    for name, answer in answers.items():
        own = torch.from_numpy(batch.labels == name)
        kl = torch.nn.functional.binary_cross_entropy_with_logits(
            logits[own] / config.temperature, (answer[own] / config.temperature).sigmoid()
        )
        loss = loss + config.distill_weight * config.temperature**2 * kl
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", default="attunet-16")
    parser.add_argument("--teacher", default="resnet101-attunet")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    config = TrainConfig(
        size=asked.size, student=asked.student, teacher=asked.teacher, batch=asked.batch, views=1
    )
    contract = InputContract(height=asked.size, width=asked.size)
    frames = draw_phantoms(2 * asked.batch, 0, asked.size, CPU, quiet)
    frames = frames.of_classes("benign", "malignant")
    rows = np.random.default_rng(0).permutation(len(frames.names))[: asked.batch]
    teaching = find_teaching("routed")
    teachers = {name: build_model(asked.teacher).eval() for name in teaching.teachers}
    student = build_model(asked.student).train()
    plain_optimizer = torch.optim.AdamW(student.parameters())
    with tempfile.TemporaryDirectory() as folder:
        caches = {
            name: LogitCache(
                Path(folder), name, {"size": asked.size}, frames.of_classes(name).names, views=1
            )
            for name in teachers
        }
        kept = Teachers(teaching, teachers, caches)
        loss = student_loss(kept, {"kl": find_distillation("kl")}, config)
        stage = fitting.Stage("student", asked.student, frames, frames, 1, 1e-3, loss)
        around = fitting.Surroundings(
            Path(folder), config, contract, CPU, Group(), RunLog(Path(folder)), quiet
        )
        network = fitting.placed(build_model(asked.student), CPU).train()
        pupil = fitting._Pupil(network, 0, 0)
        optimizer = torch.optim.AdamW(pupil.parameters(), fused=True)
        learner = fitting.Learner(pupil, optimizer, stage, around)
        steps = {
            "plain": lambda: plain_step(
                student,
                teachers,
                plain_optimizer,
                draw_batch(frames, rows, 0, 0, contract),
                config,
            ),
            "ours": lambda: fitting._step(learner, rows, np.zeros_like(rows)),
        }
        times = {name: [] for name in steps}
        for pair in range(asked.pairs + 1):
            for name, step in steps.items():
                started = time.perf_counter()
                step()
                if pair:  # the first warms up, and fills the cache
                    times[name].append(time.perf_counter() - started)
                    print(f"{name} {times[name][-1]:.2f} s", flush=True)
    ratios = [slow / fast for slow, fast in zip(times["plain"], times["ours"], strict=True)]
    drawn = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    print(
        f"{asked.student} taught by {asked.teacher}, {asked.size} px, batch {asked.batch}, "
        f"{asked.threads} threads: plain / ours = {np.median(ratios):.2f} (95 % {low:.2f} to "
        f"{high:.2f}, {asked.pairs} pairs; {np.median(times['ours']):.2f} s a step)"
    )


if __name__ == "__main__":
    main()
