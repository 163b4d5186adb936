"""The files under examples/deploy are whole, agree with each other, and say what `furcula` understands."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from furcula.cli.main import main
from furcula.cluster.layout import Layout
from furcula.config import load
from furcula.options import Duration
from furcula.run import Flow

DEPLOY = Path(__file__).parent.parent / "examples" / "deploy"
KUBERNETES = sorted((DEPLOY / "kubernetes").glob("*.yml"))
UNITS = sorted(file for file in (DEPLOY / "systemd").iterdir() if file.suffix in (".service", ".timer"))


@pytest.fixture
def flow(monkeypatch: pytest.MonkeyPatch) -> Flow:
    monkeypatch.setenv("AMQP_URL", "amqp://127.0.0.1/")
    return load(DEPLOY / "quotes.yaml")


def objects(kind: str = "") -> list[dict[str, Any]]:
    """What Kubernetes would be told."""
    found = [
        one for file in KUBERNETES if file.name != "nats-values.yml" for one in yaml.safe_load_all(file.read_text())
    ]
    return [one for one in found if not kind or one["kind"] == kind]


def stage_deployments() -> dict[str, dict[str, Any]]:
    found = objects("Deployment")
    return {one["metadata"]["labels"]["stage"]: one for one in found if "stage" in one["metadata"]["labels"]}


def pod(deployment: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return found


def understood(words: list[str]) -> dict[str, Any]:
    """What `furcula` makes of a command line, without doing it.

    Raises:
        click.UsageError: It does not understand it.
    """
    command: click.Command = main
    assert words.pop(0) == "furcula"
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    with command.make_context(command.name, words) as context:
        return dict(context.params)


def unit(file: Path) -> dict[str, dict[str, list[str]]]:
    """Its sections, each with its settings; one may stand there several times."""
    found: dict[str, dict[str, list[str]]] = {}
    section: dict[str, list[str]] = {}
    for line in file.read_text().splitlines():
        if line.startswith("["):
            section = found.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            name, equals, value = line.partition("=")
            assert equals, line
            section.setdefault(name, []).append(value)
    return found


def seconds(said: str) -> float:
    return float(Duration(said))


# ------------------------------------------------------------------ the flow


def test_the_flow_is_well_formed_and_has_nothing_to_be_warned_about(flow: Flow) -> None:
    assert flow.problems() == []
    assert flow.warnings() == []
    Layout(flow)


def test_the_flow_in_the_config_map_is_the_flow_in_the_file() -> None:
    (held,) = [one["data"]["quotes.yaml"] for one in objects("ConfigMap") if "quotes.yaml" in one["data"]]
    assert held == re.sub(r"\A(#.*\n)*", "", (DEPLOY / "quotes.yaml").read_text())


# ------------------------------------------------------------------ Kubernetes


@pytest.mark.parametrize("file", KUBERNETES, ids=lambda file: file.stem)
def test_the_yaml_can_be_read_and_each_object_says_what_it_is(file: Path) -> None:
    found = list(yaml.safe_load_all(file.read_text()))
    assert found
    for one in found:
        assert file.name == "nats-values.yml" or {"apiVersion", "kind", "metadata"} <= {*one}


def test_no_object_stands_there_twice() -> None:
    names = [(one["kind"], one["metadata"]["name"]) for one in objects()]
    assert len(names) == len(set(names))


def test_every_stage_has_a_deployment_of_its_own(flow: Flow) -> None:
    assert {*stage_deployments()} == {*Layout(flow).stages}


def test_deployments_and_budgets_select_the_pods_of_their_stage() -> None:
    budgets = {one["metadata"]["name"]: one for one in objects("PodDisruptionBudget")}
    for deployment in objects("Deployment"):
        selected = deployment["spec"]["selector"]["matchLabels"].items()
        assert selected <= deployment["spec"]["template"]["metadata"]["labels"].items()
    for deployment in stage_deployments().values():
        budget = budgets.pop(deployment["metadata"]["name"])
        assert budget["spec"]["selector"] == deployment["spec"]["selector"]
    assert budgets == {}


def test_each_deployment_runs_its_stage_by_a_command_that_is_understood(flow: Flow) -> None:
    for stage, deployment in stage_deployments().items():
        (container,) = pod(deployment)["containers"]
        told = understood([*container["command"]])
        assert told["stage"] == stage
        assert told["pid_file"].startswith("/run/furcula/")
        assert told["label"] == container["image"].rpartition(":")[2]


def test_a_pod_is_given_more_time_to_end_than_its_flow_to_drain() -> None:
    for deployment in stage_deployments().values():
        (container,) = pod(deployment)["containers"]
        assert pod(deployment)["terminationGracePeriodSeconds"] > seconds(
            understood([*container["command"]])["deadline"]
        )


def shell_commands() -> Iterator[str]:
    for deployment in objects("Deployment"):
        for container in pod(deployment)["containers"]:
            for said in (container.get("command"), container.get("startupProbe", {}).get("exec", {}).get("command")):
                if said and said[:2] == ["sh", "-c"]:
                    yield said[2]


def test_the_commands_in_shells_are_understood_too() -> None:
    found = [one for said in shell_commands() for one in re.findall(r"furcula cluster [^|>\\\n]*", said)]
    assert len(found) == 4
    for said in found:
        assert understood(shlex.split(said))["form"] in ("json", "prometheus")


def test_all_that_is_mounted_and_referred_to_is_there() -> None:
    there = {(one["kind"], one["metadata"]["name"]): one for one in objects()}
    for deployment in objects("Deployment"):
        volumes = {one["name"]: one for one in pod(deployment)["volumes"]}
        for volume in volumes.values():
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in there
            if "secret" in volume:
                secret = there["Secret", volume["secret"]["secretName"]]
                assert {item["key"] for item in volume["secret"]["items"]} <= {*secret["stringData"]}
            if "persistentVolumeClaim" in volume:
                assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in there
        for container in pod(deployment)["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= {*volumes}
            for source in container.get("envFrom", ()):
                assert ("ConfigMap", source["configMapRef"]["name"]) in there
            for variable in container.get("env", ()):
                key = variable.get("valueFrom", {}).get("secretKeyRef")
                assert key is None or key["key"] in there["Secret", key["name"]]["stringData"]


def test_what_scales_a_stage_names_its_deployment_and_what_the_cluster_really_has(flow: Flow) -> None:
    layout = Layout(flow)
    deployments = stage_deployments()
    for scaled in objects("ScaledObject"):
        stage = scaled["metadata"]["labels"]["stage"]
        assert scaled["spec"]["scaleTargetRef"]["name"] == deployments[stage]["metadata"]["name"]
        (entry,) = [one for one in layout.entries.values() if one.stage == stage]
        (trigger,) = scaled["spec"]["triggers"]
        told = trigger["metadata"]
        if trigger["type"] == "nats-jetstream":
            assert entry.mode == "shared"
            assert told["stream"] == layout.stream(stage)
            assert told["consumer"] == layout.consumer(entry, 0, "shared")
        else:
            from furcula.cli.cluster import _prometheus
            from furcula.cluster.operating import StageStatus, Status

            stages = [StageStatus(stage, lag={entry.module: 3})]
            said = _prometheus(Status(flow.name, "nats://127.0.0.1", stages))
            metric, labels = re.search(r"(\w+)\{(.*?)\}", told["query"]).groups()  # type: ignore[union-attr]
            (line,) = [line for line in said.splitlines() if line.startswith(f"{metric}{{")]
            assert all(label in line for label in labels.split(", "))
            (container,) = pod(deployments[stage])["containers"]
            processes = int(understood([*container["command"]])["processes"])
            assert scaled["spec"]["maxReplicaCount"] * processes <= entry.partitions


# ------------------------------------------------------------------ systemd


@pytest.mark.parametrize("file", UNITS, ids=lambda file: file.name)
def test_a_unit_has_the_sections_of_its_kind(file: Path) -> None:
    found = unit(file)
    assert {"Unit", "Service" if file.suffix == ".service" else "Timer"} <= {*found}
    assert found["Unit"]["Description"]
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.read_string(file.read_text())


@pytest.mark.parametrize("file", UNITS, ids=lambda file: file.name)
def test_systemd_finds_nothing_wrong_with_it(file: Path, tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    for one in UNITS:  # a timer needs its service, and no program is where the unit says
        text = re.sub(r"^(ExecStart\w*=)(\S+)", r"\1/bin/true", one.read_text(), flags=re.MULTILINE)
        version = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30).stdout
        number = re.search(r"systemd (\d+)", version)
        if number and int(number[1]) < 253:
            text = text.replace("Type=notify-reload", "Type=notify")
        (tmp_path / one.name).write_text(text)
    name = file.name.replace("@.", "@pricing.")
    if name != file.name:
        (tmp_path / name).write_text((tmp_path / file.name).read_text())
    done = subprocess.run(
        [program, "verify", "--man=no", str(tmp_path / name)], capture_output=True, text=True, timeout=60
    )
    own = [line for line in done.stderr.splitlines() if str(tmp_path) in line or line.startswith("furcula")]
    assert own == []


def test_the_unit_runs_the_stage_that_it_is_named_after_by_a_command_that_is_understood() -> None:
    service = unit(DEPLOY / "systemd" / "furcula@.service")["Service"]
    environment = dict(
        line.split("=", 1)
        for line in (DEPLOY / "systemd" / "quotes.env").read_text().splitlines()
        if line and not line.startswith("#")
    )
    (said,) = service["ExecStart"]
    used = set(re.findall(r"\$\{(\w+)\}", said))
    assert used <= {*environment}
    for name in used:
        said = said.replace(f"${{{name}}}", environment[name])
    program, *words = shlex.split(said.replace("%i", "pricing"))
    assert Path(program).name == "furcula"
    told = understood(["furcula", *words])
    assert (told["flow"], told["stage"]) == ("quotes.yaml", "pricing")
    assert float(service["TimeoutStopSec"][0]) > seconds(told["deadline"])
    assert {"FURCULA_CLUSTER", "AMQP_URL"} <= {*environment}


def test_the_credentials_are_loaded_under_the_name_that_they_are_used_by() -> None:
    for name in ("furcula@.service", "furcula-lag.service"):
        service = unit(DEPLOY / "systemd" / name)["Service"]
        loaded = service["LoadCredential"][0].partition(":")[0]
        assert f"FURCULA_CREDENTIALS=%d/{loaded}" in service["Environment"]


def test_the_lag_is_said_by_a_command_that_is_understood_and_moved_where_it_is_written() -> None:
    service = unit(DEPLOY / "systemd" / "furcula-lag.service")["Service"]
    (said,) = service["ExecStart"]
    program, *words = shlex.split(said)
    assert understood([Path(program).name, *words])["form"] == "prometheus"
    assert service["StandardOutput"] == [f"truncate:{service['ExecStartPost'][0].split()[1]}"]


def test_the_page_shows_the_unit_and_a_deployment_as_they_are() -> None:
    page = (DEPLOY.parent.parent / "docs" / "cluster.md").read_text()
    unit_text = (DEPLOY / "systemd" / "furcula@.service").read_text()
    said = [line for line in unit_text.splitlines() if line.startswith(("ExecStart=", "Type=", "LoadCredential="))]
    assert [line for line in said if line not in page] == []
