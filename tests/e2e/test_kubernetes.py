"""The manifests in deploy/kubernetes: they parse, belong together, and the programs take what stands in them."""

import json
import re
import subprocess
import tomllib

import pytest
import yaml
from harness import BINARIES, REPOSITORY

FOLDER = REPOSITORY / "deploy" / "kubernetes"
ROLES = ("edge", "normalizer", "writer")


def documents():
    found = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            key = (document["kind"], document["metadata"]["name"])
            assert key not in found, f"{key} stands twice"
            assert document["metadata"]["namespace"] == "tidegate"
            found[key] = document
    return found


def workload(role):
    kind = "StatefulSet" if role == "writer" else "Deployment"
    return documents()[kind, role]


def container(role):
    (only,) = workload(role)["spec"]["template"]["spec"]["containers"]
    return only


def configuration():
    return documents()["ConfigMap", "tidegate"]["data"]["tidegate.toml"]


def test_each_role_has_its_workload_service_and_budget_and_they_select_its_pods():
    found = documents()
    assert len(found) == 1 + 3 * len(ROLES)
    for role in ROLES:
        spec = workload(role)["spec"]
        labels = spec["template"]["metadata"]["labels"]
        assert labels["app.kubernetes.io/component"] == role
        assert spec["selector"]["matchLabels"] == labels
        assert found["Service", role]["spec"]["selector"] == labels
        assert found["PodDisruptionBudget", role]["spec"]["selector"]["matchLabels"] == labels
        assert found["PodDisruptionBudget", role]["spec"]["maxUnavailable"] < spec["replicas"], "one always stays"
        assert spec["minReadySeconds"] >= 5, "callers find a replica before the next one ends"
    assert found["Service", "normalizer"]["spec"]["clusterIP"] == "None"
    assert found["Service", "writer"]["spec"]["clusterIP"] == "None"


def test_the_configuration_in_them_is_one_that_each_role_starts_with(tmp_path):
    file = tmp_path / "tidegate.toml"
    file.write_text(configuration())
    for role in ROLES:
        done = subprocess.run(
            [BINARIES / "ingestctl", "config", "check", file, "--json"], capture_output=True, text=True,
            env={"TIDEGATE_ROLE": role},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads(done.stdout)["config"]["role"] == role


@pytest.mark.parametrize("role", ROLES)
def test_flags_ports_probes_and_mounts_agree_with_the_configuration(role):
    config, own, pod = tomllib.loads(configuration()), container(role), workload(role)["spec"]["template"]["spec"]
    usage = subprocess.run([BINARIES / "ingestd", "--help"], capture_output=True, text=True).stdout
    flags = [one for one in own["args"] if one.startswith("--")]
    assert all(re.search(rf"{flag}\b", usage) for flag in flags), flags
    assert own["args"][own["args"].index("--role") + 1] == role
    ports = {port["name"]: port["containerPort"] for port in own["ports"]}
    listens = {"http": config["edge"]["listen"], "hop": config["hop"]["listen"], "admin": config["admin"]["listen"]}
    for name, port in ports.items():
        assert listens[name] == f"0.0.0.0:{port}", name
    assert set(ports) == ({"http", "admin"} if role == "edge" else {"hop", "admin"})
    for service in [documents()["Service", role]["spec"]["ports"]]:
        assert all(one["targetPort"] in ports for one in service)
    for probe, path in (("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        assert own[probe]["httpGet"] == {"path": path, "port": "admin"}
    mounts = {mount["mountPath"]: mount["name"] for mount in own["volumeMounts"]}
    volumes = {volume["name"] for volume in pod["volumes"]}
    volumes |= {one["metadata"]["name"] for one in workload(role)["spec"].get("volumeClaimTemplates", [])}
    assert set(mounts.values()) == volumes
    named = [config["tenants_dir"], config["log"]["dir"], *config["hop"]["tls"].values()]
    named.append(config["admin"]["token"].removeprefix("file:"))
    for path in named:
        assert any(path == mount or path.startswith(f"{mount}/") for mount in mounts), f"{path} is mounted nowhere"
    drain = int(config["edge"]["timeouts"]["drain"].removesuffix("s"))
    pause = own.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    assert drain + pause < pod["terminationGracePeriodSeconds"], "it is never killed while it drains"


def test_every_writer_is_named_once_in_the_configuration_and_normalizers_by_their_service():
    config, writer = tomllib.loads(configuration()), workload("writer")
    names = [f"writer-{n}.writer.tidegate.svc:8082" for n in range(writer["spec"]["replicas"])]
    assert config["hop"]["writers"] == names
    assert writer["spec"]["serviceName"] == "writer"
    assert config["hop"]["normalizers"] == ["normalizer.tidegate.svc:8082"]


def test_memory_is_enough_for_the_budget():
    budget = int(tomllib.loads(configuration())["budget"]["bytes"].removesuffix("MiB"))
    for role in ROLES:
        limit = int(container(role)["resources"]["limits"]["memory"].removesuffix("Mi"))
        assert budget * 1.2 + 40 < limit, role


def test_the_image_is_the_one_that_is_built_here():
    dockerfile = (REPOSITORY / "deploy" / "Dockerfile").read_text()
    version = subprocess.run([REPOSITORY / "scripts" / "version.sh"], capture_output=True, text=True).stdout.strip()
    user = re.search(r"--uid (\d+)", dockerfile)[1]
    for role in ROLES:
        assert container(role)["image"] == f"tidegate:{version}"
        assert workload(role)["spec"]["template"]["spec"]["securityContext"]["runAsUser"] == int(user)
