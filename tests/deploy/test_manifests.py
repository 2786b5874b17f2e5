"""The KubeRay manifests are what the schemas say, and their recipe and command are what isentrope takes."""

from __future__ import annotations

import copy
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import typer.main
import yaml

from orchestration.cli import app
from orchestration.cluster import placement
from orchestration.config.run_config import validate

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "deploy" / "kuberay"
SCHEMAS = ROOT.parent / "shared" / "schemas"  # KubeRay's own, where they lie beside the checkout
VERSION = "1.31"  # of Kubernetes
GROUPS = {"learner", "generators", "verifiers"}


def documents(name: str) -> list[dict[str, Any]]:
    return [d for d in yaml.safe_load_all((KUBERAY / name).read_text("utf-8")) if d]


def one(name: str, kind: str) -> dict[str, Any]:
    (found,) = (d for d in documents(name) if d["kind"] == kind)
    return found


def cluster(name: str) -> dict[str, Any]:
    """Returns the RayCluster's specification in a manifest."""
    return (
        one(name, "RayCluster")["spec"] if name == "raycluster.yaml" else one(name, "RayJob")["spec"]["rayClusterSpec"]
    )


def groups(name: str) -> dict[str, dict[str, Any]]:
    return {group["groupName"]: group for group in cluster(name)["workerGroupSpecs"]}


def templates(name: str) -> Iterator[dict[str, Any]]:
    yield cluster(name)["headGroupSpec"]["template"]
    yield from (group["template"] for group in cluster(name)["workerGroupSpecs"])


BOTH = pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])


def closed(schema: Any) -> Any:
    """Returns a schema that takes no property it does not name: those of Kubernetes drop a misspelt one without a word."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {key: closed(part) for key, part in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        changed.setdefault("additionalProperties", False)
    return changed


@pytest.mark.parametrize(("name", "kind"), [("raycluster.yaml", "RayCluster"), ("rayjob.yaml", "RayJob")])
def test_kuberays_schemas_take_the_manifests(name: str, kind: str) -> None:
    path = SCHEMAS / f"ray.io_{kind.lower()}s_v1.json"
    if not path.exists():
        pytest.skip("KubeRay's schemas are not beside this checkout: the pods are checked below all the same")
    schema, manifest = closed(json.loads(path.read_text("utf-8"))), one(name, kind)
    schema["properties"] |= {"apiVersion": {"const": "ray.io/v1"}, "kind": {"const": kind}}
    jsonschema.validate(manifest, schema)

    misspelt = copy.deepcopy(manifest)
    spec = misspelt["spec"] if kind == "RayCluster" else misspelt["spec"]["rayClusterSpec"]
    spec["workerGroupSpecs"][0]["maxReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.validate(misspelt, schema)


@BOTH
def test_kubernetes_takes_every_pod(name: str) -> None:
    for template in templates(name):
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "x", **template["metadata"]},
            "spec": template["spec"],
        }
        kubernetes_validate.validate(pod, VERSION, strict=True)
        pod = copy.deepcopy(pod)
        pod["spec"]["containers"][0]["volumeMount"] = []
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(pod, VERSION, strict=True)


def test_kubernetes_takes_volume_and_recipe() -> None:
    for document in (*documents("storage.yaml"), one("rayjob.yaml", "ConfigMap")):
        kubernetes_validate.validate(document, VERSION, strict=True)
    assert documents("storage.yaml")[0]["spec"]["accessModes"] == ["ReadWriteMany"]


@BOTH
def test_every_pod_has_the_volume_shared_memory_readiness_and_no_root(name: str) -> None:
    (claim,) = documents("storage.yaml")
    for template in templates(name):
        spec = template["spec"]
        (container,) = spec["containers"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        assert volumes[mounts["/shared"]]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert set(mounts.values()) == set(volumes)
        assert "local_raylet_healthz" in container["readinessProbe"]["exec"]["command"][-1]
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] == 1000
        assert container["resources"]["limits"] == container["resources"]["requests"]
        gpus = container["resources"]["limits"].get("nvidia.com/gpu", 0)
        assert container["image"] == ("isentrope:cuda" if gpus else "isentrope:cpu")


@BOTH
def test_the_cluster_has_a_token_the_locks_ray_and_a_head_without_actors(name: str) -> None:
    spec = cluster(name)
    assert spec["authOptions"] == {"mode": "token"}
    for lock in ("cpu.lock", "cuda.lock"):
        assert f"ray=={spec['rayVersion']}" in (ROOT / "deploy" / lock).read_text("utf-8").splitlines()
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert set(groups(name)) == GROUPS


def test_both_manifests_have_the_same_groups() -> None:
    assert groups("raycluster.yaml") == groups("rayjob.yaml")


def test_the_recipe_fits_the_groups() -> None:
    """The least that the run starts with fits the pods that are always there, and all of it those that may be."""
    config = validate(yaml.safe_load(one("rayjob.yaml", "ConfigMap")["data"]["recipe.yaml"]))
    assert Path(config.run.dir).is_relative_to("/shared") and Path(config.model.path).is_relative_to("/shared")
    sizes: dict[str, dict[str, float]] = {}
    for name, group in groups("rayjob.yaml").items():
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        (resource,) = json.loads(json.loads(group["rayStartParams"]["resources"]))
        places = {str(kind): place for kind, place in config.cluster.node_resources.items()}
        assert places[name] == resource
        sizes[name] = {"CPU": float(limits["cpu"]), "GPU": float(limits.get("nvidia.com/gpu", 0)), resource: 1.0}
    nodes = [sizes[name] for name, group in groups("rayjob.yaml").items() for _ in range(group["minReplicas"])]
    total = {key: sum(node.get(key, 0.0) for node in nodes) for node in nodes for key in node}
    placement.check(placement.plan(config), total, nodes)
    learner = [slot for slot in placement.plan(config) if slot.role.startswith("learner")]
    assert placement.totals(learner)["GPU"] == sizes["learner"]["GPU"]
    assert groups("rayjob.yaml")["generators"]["maxReplicas"] == config.generators.count == config.generators.max


def test_the_same_job_can_be_started_again() -> None:
    spec = one("rayjob.yaml", "RayJob")["spec"]
    python, path, module, program, name, *arguments = shlex.split(spec["entrypoint"])
    assert (python, path, module, program, name) == ("python", "-P", "-m", "orchestration", "train")
    command: Any = typer.main.get_command(app)
    given = command.commands[name].make_context(name, list(arguments)).params
    assert given["auto_resume"] and not given["overwrite"]
    assert spec["backoffLimit"] > 0 and spec["shutdownAfterJobFinishes"]
    mounts = cluster("rayjob.yaml")["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert Path(given["recipe"]).parent.as_posix() in {mount["mountPath"] for mount in mounts}
    assert Path(given["recipe"]).name in one("rayjob.yaml", "ConfigMap")["data"]
    assert "RAY_JOB_STOP_WAIT_TIME_S" in yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]


def test_the_runtime_environment_is_one_of_rays() -> None:
    from ray.runtime_env import RuntimeEnv

    given = yaml.safe_load((ROOT / "deploy" / "runtime-env.yaml").read_text("utf-8"))
    assert set(RuntimeEnv(**{key: value for key, value in given.items() if key != "working_dir"})) <= set(given)
    assert given["working_dir"] == "."


def test_prometheus_scrapes_a_port_that_the_pods_have() -> None:
    (monitor,) = documents("podmonitor.yaml")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    labels = monitor["spec"]["selector"]["matchLabels"].items()
    for name in ("raycluster.yaml", "rayjob.yaml"):
        for template in templates(name):
            assert labels <= template["metadata"]["labels"].items()
            ports = {port["name"]: port["containerPort"] for port in template["spec"]["containers"][0]["ports"]}
            assert ports[endpoint["port"]] == 8080
        starts = [cluster(name)["headGroupSpec"], *cluster(name)["workerGroupSpecs"]]
        assert {start["rayStartParams"]["metrics-export-port"] for start in starts} == {"8080"}
