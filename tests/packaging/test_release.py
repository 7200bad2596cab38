"""Source distributions that are complete, and a release that stops before the upload."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tools import release

ROOT = Path(__file__).resolve().parents[2]
VERSION = "9.9.9"


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tracked() -> list[str]:
    """Regular files under version control."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs a git repository")
    entries = run("git", "ls-files", "--stage", "-z", cwd=ROOT).split("\0")[:-1]
    names = [entry.split("\t")[1] for entry in entries if not entry.startswith("120000")]
    return [name for name in names if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The core's source distribution, built and unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return Path(str(archive).removesuffix(".tar.gz"))


def test_the_source_distribution_has_every_file_of_the_repository(unpacked: Path) -> None:
    names = tracked()
    assert "Makefile" in names
    assert [name for name in names if not (unpacked / name).is_file()] == []


def test_the_commands_of_the_readme_find_their_files(unpacked: Path) -> None:
    """make checks that every prerequisite exists, and prints the commands instead of running them."""
    planned = run("make", "--dry-run", "demo", "test", "lint", "types", "docs", "bench", cwd=unpacked)
    for plugin in ROOT.glob("plugins/*/pyproject.toml"):
        assert f"--editable plugins/{plugin.parent.name}/" in planned


@pytest.mark.slow
def test_tests_and_documentation_run_from_the_source_distribution(unpacked: Path) -> None:
    sources = os.pathsep.join(map(str, [unpacked, *unpacked.glob("plugins/*/src")]))
    modules = ["tests/test_readme.py", "tests/test_docs.py", "tests/registry", "tests/cli/test_experiments.py"]
    run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *modules, cwd=unpacked, PYTHONPATH=sources)
    code = "import genmeasures; print(genmeasures.__file__)"
    assert run(sys.executable, "-c", code, cwd=unpacked, PYTHONPATH=sources).startswith(str(unpacked))


# Releases


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository that is ready to release ``VERSION``, with the files that the checks read."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    folder = tmp_path / "repository"
    (folder / "genmeasures").mkdir(parents=True)
    prepare(folder)
    run("git", "init", "--quiet", cwd=folder)
    commit(folder)
    return folder


def prepare(folder: Path) -> None:
    """State the version, and list a change."""
    (folder / "genmeasures" / "__init__.py").write_text(f'__version__ = "{VERSION}"\n')
    (folder / "CITATION.cff").write_text(f"version: {VERSION}\n")
    (folder / "CHANGELOG.md").write_text(
        f"# Changelog\n\n## [Unreleased]\n\n## [{VERSION}] - 2026-12-01\n\n### Added\n\n- A measure.\n"
    )


def commit(folder: Path) -> None:
    run("git", "add", "--all", cwd=folder)
    run("git", "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "--quiet", "--message", "x", cwd=folder)


def write(name: str, text: str) -> Callable[[Path], None]:
    """A change that rewrites a file and commits it."""

    def change(folder: Path) -> None:
        (folder / name).write_text(text)
        commit(folder)

    return change


def test_a_version_that_is_ready(repository: Path) -> None:
    assert release.problems(repository, VERSION) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "left.txt").touch(), "not clean: commit or remove\n?? left.txt"),
        (lambda folder: run("git", "tag", f"v{VERSION}", cwd=folder), f"the tag v{VERSION} exists"),
        (lambda folder: shutil.rmtree(folder / ".git"), "is not a git repository"),
        (write("genmeasures/__init__.py", '__version__ = "9.9.8"\n'), "has version 9.9.8, expected 9.9.9"),
        (write("CITATION.cff", "version: 9.9.8\n"), "CITATION.cff has version 9.9.8"),
        (write("CHANGELOG.md", f"## [{VERSION}] - 2026-12-01\n\n## [1.0]\n\n- x\n"), "with entries"),
        (write("CHANGELOG.md", f"## [{VERSION}]\n\n- x\n"), "has no section '## [9.9.9] - YYYY-MM-DD'"),
        (
            write("CHANGELOG.md", f"## [Unreleased]\n\n- y\n\n## [{VERSION}] - 2026-12-01\n\n- x\n"),
            "move them to 9.9.9",
        ),
    ],
)
def test_what_prevents_a_release(repository: Path, change: Callable[[Path], None], message: str) -> None:
    change(repository)
    (problem,) = release.problems(repository, VERSION)
    assert message in problem


def test_built_distributions_are_not_overwritten(repository: Path) -> None:
    write(".gitignore", "dist/\n")(repository)
    (repository / "dist" / VERSION).mkdir(parents=True)
    assert release.problems(repository, VERSION) == [f"dist/{VERSION} exists: remove it"]


@pytest.mark.parametrize(("version", "message"), [("new", "is not a version"), ("1.0.0-rc1", "expected 1.0.0rc1")])
def test_versions_that_are_none(repository: Path, version: str, message: str) -> None:
    assert any(message in problem for problem in release.problems(repository, version))


def test_nothing_runs_before_the_checks_pass(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The repository has no ``.ci/run`` that could be run."""
    (repository / "left.txt").touch()
    assert release.main([VERSION], repository) == 1
    assert "- the working tree is not clean" in capsys.readouterr().err
    assert not (repository / "dist").exists()


@pytest.mark.slow
def test_a_release_builds_every_distribution_and_stops(tmp_path: Path) -> None:
    """In a clone whose ``.ci/run`` fails first and then passes, since the tests run elsewhere."""
    tracked()
    clone, tools = tmp_path / "clone", tmp_path / "tools"
    run("git", "clone", "--quiet", ROOT, clone, cwd=tmp_path)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt"]
    run(*pip, "--target", tools, "build", "twine", cwd=tmp_path)
    prepare(clone)
    (clone / ".ci" / "run").write_text("#!/bin/sh\nexit 3\n")
    commit(clone)
    command = [sys.executable, "-m", "tools.release", VERSION]
    environment = {"PYTHONPATH": f"{clone}{os.pathsep}{tools}"}
    failed = subprocess.run(command, cwd=clone, env={**os.environ, **environment}, capture_output=True, check=False)
    assert failed.returncode != 0
    assert not (clone / "dist").exists()

    (clone / ".ci" / "run").write_text("#!/bin/sh\n")
    commit(clone)
    printed = run(*command, cwd=clone, **environment)
    folders = release.distributions(clone)
    assert len(folders) == 1 + len(list(ROOT.glob("plugins/*/pyproject.toml")))
    names = {folder.name.replace("-", "_") if folder != clone else "genmeasures" for folder in folders}
    built = sorted((clone / "dist" / VERSION).iterdir())
    for kind in (".whl", ".tar.gz"):
        assert {file.name.split("-")[0] for file in built if file.name.endswith(kind)} == names
    assert len(built) == 2 * len(names)
    assert (clone / "dist" / VERSION / f"genmeasures-{VERSION}-py3-none-any.whl").is_file()
    assert f"twine upload --skip-existing dist/{VERSION}/*" in printed.splitlines()[-1]
    assert run("git", "tag", cwd=clone) == run("git", "tag", cwd=ROOT)  # what is printed is not run
    assert run("git", "status", "--porcelain", cwd=clone) == ""


# Continuous integration


def test_the_workflow_runs_what_contributors_run() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    steps = workflow["jobs"]["check"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.parametrize(
    "file", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda file: file.stem
)
def test_issue_templates_are_complete(file: Path) -> None:
    form = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= set(form)
    identifiers = [part["id"] for part in form["body"]]
    assert len(identifiers) == len(set(identifiers)) > 0
