from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from edgeseg.benchmarks.measure.environment import _commit, _container, describe_environment


def git(folder, *arguments):
    user = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    done = subprocess.run(
        ["git", *user, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    git(folder, "commit", "-q", "--allow-empty", "-m", "first")
    return folder


def test_commit_is_that_of_head_on_a_branch_packed_or_detached(checkout):
    sha = git(checkout, "rev-parse", "HEAD")
    assert _commit(checkout) == sha
    git(checkout, "pack-refs", "--all")
    assert not (checkout / ".git/refs/heads/main").exists()
    assert _commit(checkout) == sha
    git(checkout, "checkout", "-q", "--detach")
    assert _commit(checkout) == sha


def test_commit_of_a_work_tree_is_its_own(checkout, tmp_path):
    git(checkout, "worktree", "add", "-q", "-b", "side", str(tmp_path / "side"))
    git(tmp_path / "side", "commit", "-q", "--allow-empty", "-m", "second")
    assert _commit(tmp_path / "side") == git(tmp_path / "side", "rev-parse", "HEAD")
    assert _commit(tmp_path / "side") != _commit(checkout)


def test_folder_that_is_no_checkout_has_no_commit(tmp_path):
    assert _commit(tmp_path) is None


def test_cores_are_those_the_process_may_run_on():
    environment = describe_environment([])
    assert environment.affinity == tuple(sorted(os.sched_getaffinity(0)))
    assert len(environment.affinity) == environment.cores


@pytest.mark.parametrize(
    ("mark", "kind"), [(".dockerenv", "docker"), ("run/.containerenv", "podman")]
)
def test_container_is_told_by_its_mark(tmp_path, mark, kind):
    assert _container(tmp_path) is None
    (tmp_path / mark).parent.mkdir(exist_ok=True)
    Path(tmp_path / mark).touch()
    assert _container(tmp_path) == kind


def test_other_containers_are_told_by_systemd(tmp_path):
    (tmp_path / "run/systemd").mkdir(parents=True)
    (tmp_path / "run/systemd/container").write_text("systemd-nspawn\n")
    assert _container(tmp_path) == "systemd-nspawn"
