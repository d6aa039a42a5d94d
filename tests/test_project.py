"""What others join by: workflow, citation, changelog and contributing agree with the project."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "checks.yml").read_text())


def steps():
    return [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]


def test_the_workflow_tests_every_python_that_the_project_names():
    prefix = "Programming Language :: Python :: 3."
    named = [each.removeprefix(prefix) for each in PROJECT["classifiers"] if prefix in each]
    matrix = WORKFLOW["jobs"]["tests"]["strategy"]["matrix"]
    assert matrix["python"] == [f"3.{minor}" for minor in named]
    assert [each["releases"] for each in matrix["include"]] == ["lowest-direct"]


def test_the_workflow_calls_the_scripts_that_are_there():
    commands = [step["run"] for step in steps() if "run" in step]
    assert {"./check.sh", ".ci/run"} <= {*commands}
    for script in ("check.sh", ".ci/run"):
        assert (ROOT / script).stat().st_mode & 0o100
    assert all(("run" in step) != ("uses" in step) for step in steps())


def test_ruff_is_the_same_before_a_commit_and_in_the_checks():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (repository,) = (each for each in hooks["repos"] if each["repo"].endswith("/ruff-pre-commit"))
    assert (
        f"ruff=={repository['rev'].removeprefix('v')}" in PROJECT["optional-dependencies"]["test"]
    )


def test_the_citation_is_of_this_version_and_license():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["preferred-citation"]["url"] == "https://arxiv.org/abs/2109.00817"


def test_contributing_sets_up_as_the_readme_does():
    def set_up(name):
        return re.search(r"^python3 .*check\.sh$", (ROOT / name).read_text(), re.MULTILINE)[0]

    assert set_up("CONTRIBUTING.md") == set_up("README.md")


def slug(heading):
    """The name that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "CODE_OF_CONDUCT.md",
        "benchmarks/README.md",
        *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("**/[!_]*.md")),
    ],
)
def test_links_inside_the_repository_lead_somewhere(name):
    text = re.sub(r"```.*?```", "", (ROOT / name).read_text(), flags=re.DOTALL)
    for path, heading in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", text):
        if path.startswith("http"):
            continue
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), path
        if heading:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert heading in map(slug, headings), (path, heading)


@pytest.mark.parametrize("name", ["bug.yml", "feature.yml"])
def test_issue_forms_have_what_github_asks_for(name):
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / name).read_text())
    assert {"name", "description", "body"} <= form.keys()
    assert all({"type", "attributes"} <= part.keys() for part in form["body"])
