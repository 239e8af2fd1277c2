"""What the image is built from: files that exist, downloads with pinned hashes, no registry named."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
LOCK_FILES = ("requirements/runtime.txt", "requirements/dev.txt")


def test_dockerfile_copies_what_is_there_and_not_ignored() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copies = re.findall(r"^COPY (?!--from)(.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    sources = [source.rstrip("/") for line in copies for source in shlex.split(line)[:-1]]
    assert sources
    for source in sources:
        assert (ROOT / source).exists()
        assert source in allowed


def test_image_runs_as_the_user_that_the_chart_names() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert "USER 65532:65532" in dockerfile
    assert 'ENTRYPOINT ["promptrollout"]' in dockerfile
    assert "runAsUser: 65532" in (ROOT / "charts/promptrollout/templates/deployment.yaml").read_text()


@pytest.mark.parametrize("name", LOCK_FILES)
def test_lock_file_pins_versions_and_hashes_and_names_no_registry(name: str) -> None:
    text = (ROOT / name).read_text()
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links", text)
    for requirement in re.split(r"\n(?=\S)", re.sub(r"(?m)^\s*#.*\n", "", text).strip()):
        assert "==" in requirement.splitlines()[0], requirement
        assert "--hash=sha256:" in requirement, requirement


def test_chart_and_package_have_one_version() -> None:
    chart = yaml.safe_load((ROOT / "charts/promptrollout/Chart.yaml").read_text())
    (version,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert chart["version"] == chart["appVersion"] == version
