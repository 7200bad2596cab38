"""Release of the core and all plugins, up to the upload: ``python -m tools.release 0.2.0``.

Checks the tree, versions and changelog, runs ``.ci/run``, builds and checks the distributions, and prints the commands
that publish them.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

import yaml
from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).resolve().parents[1]


def distributions(root: Path) -> list[Path]:
    """Folders of the core and of every plugin."""
    return [root, *sorted(file.parent for file in root.glob("plugins/*/pyproject.toml"))]


def problems(root: Path, version: str) -> list[str]:
    """What prevents a release of this version; empty if nothing does."""
    return [*_number(version), *_tree(root, version), *_versions(root, version), *_changelog(root, version)]


def build(root: Path, output: Path) -> list[Path]:
    """Source distributions, and wheels built from them, in the folder ``output``."""
    python = sys.executable
    for folder in distributions(root):
        subprocess.run([python, "-m", "build", "--no-isolation", "--outdir", str(output), str(folder)], check=True)
    files = sorted(output.iterdir())
    subprocess.run([python, "-m", "twine", "check", "--strict", *map(str, files)], check=True)
    return files


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Exit status: 0 if the distributions are ready, 1 if something prevents the release."""
    parser = argparse.ArgumentParser(prog="python -m tools.release", description=__doc__)
    parser.add_argument("version", help="version to release, for example 0.2.0")
    version: str = parser.parse_args(arguments).version
    found = problems(root, version)
    if found:
        print(f"{version} cannot be released:", *(f"- {problem}" for problem in found), sep="\n", file=sys.stderr)
        return 1
    subprocess.run([str(root / ".ci" / "run")], cwd=root, check=True)
    output = root / "dist" / version
    files = build(root, output)
    print("\nBuilt and checked, not uploaded:", *(f"  {file.relative_to(root)}" for file in files), sep="\n")
    print("\nTo publish:")
    print(f"  git tag --annotate v{version} --message 'genmeasures {version}' && git push origin v{version}")
    print(f"  {sys.executable} -m twine upload --skip-existing {output.relative_to(root)}/*")
    return 0


def _number(version: str) -> list[str]:
    """Problems of the version number itself."""
    try:
        canonical = str(Version(version))
    except InvalidVersion:
        return [f"{version!r} is not a version: expected one such as 0.2.0"]
    return [] if canonical == version else [f"{version!r} is not in canonical form: expected {canonical}"]


def _tree(root: Path, version: str) -> list[str]:
    """Problems of the working tree and of what exists already."""
    status = _git(root, "status", "--porcelain")
    if status is None:
        return [f"{root} is not a git repository: release from a clone"]
    found = []
    if status:
        found.append(f"the working tree is not clean: commit or remove\n{status}")
    if _git(root, "tag", "--list", f"v{version}"):
        found.append(f"the tag v{version} exists: choose another version")
    if (root / "dist" / version).exists():
        found.append(f"dist/{version} exists: remove it")
    return found


def _versions(root: Path, version: str) -> list[str]:
    """Files that state another version."""
    source = (root / "genmeasures" / "__init__.py").read_text(encoding="utf-8")
    stated = re.search(r'^__version__ = "(.*)"$', source, re.MULTILINE)
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    versions = {
        "genmeasures/__init__.py": stated and stated.group(1),
        "CITATION.cff": str(citation.get("version")),
    }
    return [f"{file} has version {other}, expected {version}" for file, other in versions.items() if other != version]


def _changelog(root: Path, version: str) -> list[str]:
    """Problems of the changelog: a missing or empty section, or changes that are still unreleased."""
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    found = (
        []
        if any(_entries(section) for section in sections if _is_of(section, version))
        else [f"CHANGELOG.md has no section '## [{version}] - YYYY-MM-DD' with entries"]
    )
    if any(_entries(section) for section in sections if section.startswith("[Unreleased]")):
        found.append(f"CHANGELOG.md has entries under Unreleased: move them to {version}")
    return found


def _is_of(section: str, version: str) -> bool:
    """Whether the heading of a section is that of the version, with a date."""
    return re.match(rf"\[{re.escape(version)}\] - \d{{4}}-\d{{2}}-\d{{2}}\n", section) is not None


def _entries(section: str) -> list[str]:
    """Items of the lists of a section."""
    return re.findall(r"^- .+", section, re.MULTILINE)


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints, or None where it fails."""
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.rstrip() if done.returncode == 0 else None


if __name__ == "__main__":
    sys.exit(main())
