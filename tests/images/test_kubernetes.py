"""deploy/kubernetes: valid against the published schemas, and consistent with itself, the image and the code."""

import copy
import functools
import operator
import re

import jsonschema
import kubernetes_validate
import pytest
import yaml

from serve.app import create_app
from serve.config import Config
from serve.routes.open_inference import MODEL
from train.paths import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
FOLDERS = [FOLDER, FOLDER / "kserve"]
VERSIONS = ["1.30", "1.34", "1.37"]  # preStop.sleep on by default; stable; the newest schema
DOCKERFILE = (ROOT / "Dockerfile.serve").read_text()

# Fields of an InferenceService's predictor besides those of a pod: the ones used here, from KServe 0.21.
PREDICTOR = {
    "minReplicas": {"type": "integer", "minimum": 0},
    "maxReplicas": {"type": "integer", "minimum": 0},
    "scaleMetric": {"enum": ["cpu", "memory", "concurrency", "rps"]},
    "scaleTarget": {"type": "integer", "minimum": 1, "maximum": 100},
    "timeout": {"type": "integer"},
    "deploymentStrategy": {"type": "object"},  # a Deployment's, and checked as such
}
INFERENCE_SERVICE = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "serving.kserve.io/v1beta1"},
        "kind": {"const": "InferenceService"},
        "metadata": {"type": "object"},  # a Pod's, and checked as such
        "spec": {
            "type": "object",
            "required": ["predictor"],
            "additionalProperties": False,
            "properties": {"predictor": {"type": "object", "required": ["containers"], "properties": PREDICTOR}},
        },
    },
}


def read(path):
    return yaml.safe_load(path.read_text())


MANIFESTS = {
    path.relative_to(FOLDER).as_posix(): read(path)
    for folder in FOLDERS
    for path in sorted(folder.glob("*.yaml"))
    if path.name != "kustomization.yaml"
}
DEPLOYMENT = MANIFESTS["deployment.yaml"]
SERVICE = MANIFESTS["service.yaml"]
KSERVE = MANIFESTS["kserve/inferenceservice.yaml"]
PODS = {"deployment": DEPLOYMENT["spec"]["template"]["spec"], "kserve": KSERVE["spec"]["predictor"]}
each_pod = pytest.mark.parametrize("pod", PODS.values(), ids=PODS)


def validate(manifest, version):
    """Validate `manifest` against its schema, and an InferenceService in parts. Raises jsonschema.ValidationError."""
    if manifest["kind"] != "InferenceService":
        kubernetes_validate.validate(manifest, version, strict=True)
        return
    jsonschema.validate(manifest, INFERENCE_SERVICE)
    predictor = manifest["spec"]["predictor"]
    pod = {name: value for name, value in predictor.items() if name not in PREDICTOR}
    kubernetes_validate.validate(
        {"apiVersion": "v1", "kind": "Pod", "metadata": manifest["metadata"], "spec": pod}, version, strict=True
    )
    deployment = copy.deepcopy(DEPLOYMENT)
    deployment["spec"]["strategy"] = predictor["deploymentStrategy"]
    kubernetes_validate.validate(deployment, version, strict=True)


def container(pod):
    (only,) = pod["containers"]
    return only


def variables(pod):
    """Return the environment variables with their literal values, or None."""
    return {variable["name"]: variable.get("value") for variable in container(pod)["env"]}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_is_valid(name, version):
    validate(MANIFESTS[name], version)


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("deployment.yaml", "spec.template.spec.containers.0.ports.0.containerPort", "8000"),
        ("deployment.yaml", "spec.template.spec.containers.0.readOnlyRootFilesystem", True),
        ("service.yaml", "spec.ports.0.port", None),
        ("kserve/inferenceservice.yaml", "spec.predictor.protocolVersion", "v2"),
        ("kserve/inferenceservice.yaml", "spec.predictor.deploymentStrategy.maxSurge", 1),
        ("kserve/inferenceservice.yaml", "spec.predictor.containers.0.imagePullPolicies", "Always"),
    ],
)
def test_an_invalid_manifest_is_refused(name, path, value):
    manifest = copy.deepcopy(MANIFESTS[name])
    *parents, last = (int(key) if key.isdecimal() else key for key in path.split("."))
    place = functools.reduce(operator.getitem, parents, manifest)
    if value is None:
        del place[last]
    else:
        place[last] = value
    with pytest.raises(jsonschema.ValidationError):
        validate(manifest, VERSIONS[-1])


def test_prestop_sleep_needs_a_recent_kubernetes():
    with pytest.raises(jsonschema.ValidationError):
        validate(DEPLOYMENT, "1.28")


@pytest.mark.parametrize(("folder", "pod"), list(zip(FOLDERS, PODS.values(), strict=True)), ids=PODS)
def test_kustomize_applies_every_manifest_and_sets_the_image(folder, pod):
    kustomization = read(folder / "kustomization.yaml")
    assert set(kustomization) == {"apiVersion", "kind", "resources", "images"}
    files = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
    assert sorted(kustomization["resources"]) == sorted(files)
    (image,) = kustomization["images"]  # tests/test_version.py checks its tag
    assert image["name"] == container(pod)["image"] == "serve"


def test_every_manifest_selects_the_deployment_s_pods():
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert DEPLOYMENT["spec"]["selector"]["matchLabels"] == labels
    assert SERVICE["spec"]["selector"] == labels
    assert MANIFESTS["poddisruptionbudget.yaml"]["spec"]["selector"]["matchLabels"] == labels
    assert MANIFESTS["networkpolicy.yaml"]["spec"]["podSelector"]["matchLabels"] == labels
    target = MANIFESTS["horizontalpodautoscaler.yaml"]["spec"]["scaleTargetRef"]
    assert target == {"apiVersion": "apps/v1", "kind": "Deployment", "name": DEPLOYMENT["metadata"]["name"]}
    spread = PODS["deployment"]["topologySpreadConstraints"]
    assert all(constraint["labelSelector"]["matchLabels"] == labels for constraint in spread)
    assert len({manifest["metadata"]["name"] for name, manifest in MANIFESTS.items() if "/" not in name}) == 1


def test_the_kserve_manifests_select_kserve_s_pods():
    labels = {"serving.kserve.io/inferenceservice": KSERVE["metadata"]["name"]}
    assert MANIFESTS["kserve/networkpolicy.yaml"]["spec"]["podSelector"]["matchLabels"] == labels
    spread = PODS["kserve"]["topologySpreadConstraints"]
    assert all(constraint["labelSelector"]["matchLabels"] == labels for constraint in spread)


def test_kserve_uses_the_protocol_and_the_model_s_name():
    assert KSERVE["metadata"]["name"] == MODEL
    assert container(PODS["kserve"])["name"] == "kserve-container"
    assert variables(PODS["kserve"])["PROTOCOL"] == "v2"


def test_kserve_runs_the_same_container():
    plain, kserve = copy.deepcopy(PODS["deployment"]), copy.deepcopy(PODS["kserve"])
    kserve = {name: value for name, value in kserve.items() if name not in PREDICTOR}
    container(kserve)["name"] = container(plain)["name"]
    container(kserve)["env"] = [variable for variable in container(kserve)["env"] if variable["name"] != "PROTOCOL"]
    for pod in (plain, kserve):
        del pod["topologySpreadConstraints"]  # they select different labels
    assert kserve == plain
    assert PODS["kserve"]["deploymentStrategy"] == DEPLOYMENT["spec"]["strategy"]


@each_pod
def test_the_port_is_the_image_s(pod):
    (exposed,) = re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE)
    (port,) = container(pod)["ports"]
    assert port["containerPort"] == int(exposed) == Config().port
    assert f"PORT={exposed}" in DOCKERFILE
    assert not {"HOST", "PORT"} & set(variables(pod))  # the image's


def test_the_service_and_the_policies_name_that_port():
    (port,) = container(PODS["deployment"])["ports"]
    assert [entry["targetPort"] for entry in SERVICE["spec"]["ports"]] == [port["name"]]
    for name in ("networkpolicy.yaml", "kserve/networkpolicy.yaml"):
        policy = MANIFESTS[name]["spec"]
        assert policy["ingress"] == [{"ports": [{"port": port["containerPort"], "protocol": "TCP"}]}]
        assert (set(policy["policyTypes"]), policy["egress"]) == ({"Ingress", "Egress"}, [])


@each_pod
def test_the_probes_use_routes_of_the_application(pod):
    routes = {rule.rule for rule in create_app(Config()).url_map.iter_rules() if "GET" in rule.methods}
    for probe, path in {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/healthz"}.items():
        assert container(pod)[probe]["httpGet"] == {"path": path, "port": container(pod)["ports"][0]["name"]}
        assert path in routes


@each_pod
def test_the_environment_configures_the_service(pod):
    environment = variables(pod)
    environment.pop("PROTOCOL", None)  # KServe's
    assert set(environment) <= set(Config.__struct_encode_fields__)
    Config.from_environment({name: value for name, value in environment.items() if value is not None})


@each_pod
def test_a_key_is_optional_and_secret(pod):
    (key,) = (variable for variable in container(pod)["env"] if variable["name"] == "API_KEY")
    assert set(key) == {"name", "valueFrom"}
    assert key["valueFrom"]["secretKeyRef"]["optional"] is True


@each_pod
def test_the_pod_is_confined_as_the_container_is_tested(pod):
    ((user, group),) = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": int(user),
        "runAsGroup": int(group),
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container(pod)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert container(pod)["resources"]["limits"] == {"cpu": "1", "memory": "512Mi"}
    (volume,) = pod["volumes"]
    assert volume["emptyDir"]["medium"] == "Memory"
    assert container(pod)["volumeMounts"] == [{"name": volume["name"], "mountPath": "/tmp"}]


@each_pod
def test_a_pod_has_enough_time_to_shut_down(pod):
    timeout = int(variables(pod)["REQUEST_TIMEOUT"])
    withdrawn = container(pod)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > withdrawn + timeout


def test_kserve_waits_as_long_as_the_service():
    assert PODS["kserve"]["timeout"] == int(variables(PODS["kserve"])["REQUEST_TIMEOUT"])


def test_kserve_scales_like_the_autoscaler():
    scaler = MANIFESTS["horizontalpodautoscaler.yaml"]["spec"]
    (metric,) = scaler["metrics"]
    predictor = PODS["kserve"]
    assert predictor["minReplicas"] == scaler["minReplicas"] >= 2
    assert predictor["maxReplicas"] == scaler["maxReplicas"]
    assert predictor["scaleMetric"] == metric["resource"]["name"]
    assert predictor["scaleTarget"] == metric["resource"]["target"]["averageUtilization"]


def test_only_the_autoscaler_sets_the_replicas():
    assert "replicas" not in DEPLOYMENT["spec"]


def test_an_update_stops_no_replica_before_another_is_ready():
    assert DEPLOYMENT["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
