"""The manifests in deploy/kubernetes match the published schemas and agree with the image and the code."""

import copy
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
VERSIONS = ["1.30", "1.34", "1.37"]  # preStop.sleep: on by default in 1.30, stable in 1.34; 1.37 is the newest schema
DOCKERFILE = (ROOT / "Dockerfile.serve").read_text()
MANIFESTS = {
    path.relative_to(FOLDER).as_posix(): yaml.safe_load(path.read_text())
    for path in sorted(FOLDER.rglob("*.yaml"))
    if path.name != "kustomization.yaml"
}
DEPLOYMENT, SERVICE = MANIFESTS["deployment.yaml"], MANIFESTS["service.yaml"]
KSERVE = MANIFESTS["kserve/inferenceservice.yaml"]
PREDICTOR = KSERVE["spec"]["predictor"]
# Fields of an InferenceService's predictor (KServe 0.21) that a pod does not have; only the fields used here.
OF_KSERVE = {"minReplicas", "maxReplicas", "scaleMetric", "scaleTarget", "timeout", "deploymentStrategy"}
POD = DEPLOYMENT["spec"]["template"]["spec"]  # equal to KServe's pod: see test_kserve_runs_the_same_container


def container(pod):
    (only,) = pod["containers"]
    return only


def variables(pod):
    return {variable["name"]: variable.get("value") for variable in container(pod)["env"]}


def pod_of_kserve(manifest):
    return {name: value for name, value in manifest["spec"]["predictor"].items() if name not in OF_KSERVE}


def validate(manifest, version):
    """Validate `manifest` by the schemas of `version`. An InferenceService is validated as a Pod and a Deployment."""
    parts = [manifest]
    if manifest["kind"] == "InferenceService":
        strategy = manifest["spec"]["predictor"]["deploymentStrategy"]
        parts = [
            {"apiVersion": "v1", "kind": "Pod", "metadata": manifest["metadata"], "spec": pod_of_kserve(manifest)},
            DEPLOYMENT | {"spec": DEPLOYMENT["spec"] | {"strategy": strategy}},
        ]
    for part in parts:
        kubernetes_validate.validate(part, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_is_valid(name, version):
    validate(MANIFESTS[name], version)


def test_an_unknown_field_is_refused():
    for place in (lambda it: it["spec"]["predictor"], lambda it: container(it["spec"]["predictor"])):
        manifest = copy.deepcopy(KSERVE)
        place(manifest)["protocolVersion"] = "v2"
        with pytest.raises(jsonschema.ValidationError):
            validate(manifest, VERSIONS[-1])


@pytest.mark.parametrize("folder", [FOLDER, FOLDER / "kserve"], ids=["deployment", "kserve"])
def test_kustomize_applies_every_manifest_and_sets_the_image(folder):
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert set(kustomization) == {"apiVersion", "kind", "resources", "images"}
    files = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
    assert sorted(kustomization["resources"]) == sorted(files)
    (image,) = kustomization["images"]  # tests/test_wiring.py checks the image's tag
    assert image["name"] == container(POD)["image"] == "serve"


def test_every_manifest_selects_its_pods():
    name, labels = DEPLOYMENT["metadata"]["name"], DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert {manifest["metadata"]["name"] for file, manifest in MANIFESTS.items() if "/" not in file} == {name}
    assert SERVICE["spec"]["selector"] == DEPLOYMENT["spec"]["selector"]["matchLabels"] == labels
    assert MANIFESTS["poddisruptionbudget.yaml"]["spec"]["selector"]["matchLabels"] == labels
    target = MANIFESTS["horizontalpodautoscaler.yaml"]["spec"]["scaleTargetRef"]
    assert target == {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}
    of_kserve = {"serving.kserve.io/inferenceservice": KSERVE["metadata"]["name"]}
    for folder, pod, selected in (("", POD, labels), ("kserve/", PREDICTOR, of_kserve)):
        assert MANIFESTS[f"{folder}networkpolicy.yaml"]["spec"]["podSelector"]["matchLabels"] == selected
        assert all(spread["labelSelector"]["matchLabels"] == selected for spread in pod["topologySpreadConstraints"])


def test_kserve_runs_the_same_container():
    plain, kserve = copy.deepcopy(POD), copy.deepcopy(pod_of_kserve(KSERVE))
    container(kserve)["env"].remove({"name": "PROTOCOL", "value": "v2"})
    assert container(kserve)["name"] == "kserve-container"
    container(kserve)["name"] = container(plain)["name"]
    for pod in (plain, kserve):
        del pod["topologySpreadConstraints"]  # these constraints select the pods' labels, which differ
    assert kserve == plain
    assert PREDICTOR["deploymentStrategy"] == DEPLOYMENT["spec"]["strategy"]


def test_kserve_has_the_model_s_name_waits_as_long_and_scales_like_the_autoscaler():
    assert (KSERVE["apiVersion"], set(KSERVE["spec"])) == ("serving.kserve.io/v1beta1", {"predictor"})
    assert KSERVE["metadata"]["name"] == MODEL
    assert PREDICTOR["timeout"] == int(variables(PREDICTOR)["REQUEST_TIMEOUT"])
    scaler = MANIFESTS["horizontalpodautoscaler.yaml"]["spec"]
    (metric,) = scaler["metrics"]
    assert PREDICTOR["minReplicas"] == scaler["minReplicas"] >= 2
    assert PREDICTOR["maxReplicas"] == scaler["maxReplicas"]
    assert PREDICTOR["scaleMetric"] == metric["resource"]["name"]
    assert PREDICTOR["scaleTarget"] == metric["resource"]["target"]["averageUtilization"]


def test_the_port_is_the_image_s_and_the_service_and_the_policies_name_it():
    (exposed,) = re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE)
    (port,) = container(POD)["ports"]
    assert port["containerPort"] == int(exposed) == Config().port
    assert not {"HOST", "PORT"} & set(variables(POD))  # the image sets HOST and PORT
    assert [entry["targetPort"] for entry in SERVICE["spec"]["ports"]] == [port["name"]]
    for name in ("networkpolicy.yaml", "kserve/networkpolicy.yaml"):
        policy = MANIFESTS[name]["spec"]
        assert policy["ingress"] == [{"ports": [{"port": port["containerPort"], "protocol": "TCP"}]}]
        assert (set(policy["policyTypes"]), policy["egress"]) == ({"Ingress", "Egress"}, [])


def test_the_probes_use_routes_of_the_application():
    routes = {rule.rule for rule in create_app(Config()).url_map.iter_rules() if "GET" in rule.methods}
    for probe, path in {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/healthz"}.items():
        assert container(POD)[probe]["httpGet"] == {"path": path, "port": container(POD)["ports"][0]["name"]}
        assert path in routes


def test_the_environment_configures_the_service_and_a_key_is_optional_and_secret():
    assert set(variables(POD)) <= set(Config.__struct_encode_fields__)
    Config.from_environment({name: value for name, value in variables(POD).items() if value is not None})
    (key,) = (variable for variable in container(POD)["env"] if variable["name"] == "API_KEY")
    assert set(key) == {"name", "valueFrom"}
    assert key["valueFrom"]["secretKeyRef"]["optional"] is True


def test_the_pod_is_confined_as_the_container_is_tested():
    ((user, group),) = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)
    profile = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert POD["securityContext"] == profile | {"runAsUser": int(user), "runAsGroup": int(group)}
    rights = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    assert container(POD)["securityContext"] == rights
    assert POD["automountServiceAccountToken"] is False
    assert container(POD)["resources"]["limits"] == {"cpu": "1", "memory": "512Mi"}
    (volume,) = POD["volumes"]
    assert volume["emptyDir"]["medium"] == "Memory"
    assert container(POD)["volumeMounts"] == [{"name": volume["name"], "mountPath": "/tmp"}]


def test_a_pod_has_enough_time_to_shut_down_and_an_update_stops_none_before_another_is_ready():
    withdrawn = container(POD)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert POD["terminationGracePeriodSeconds"] > withdrawn + int(variables(POD)["REQUEST_TIMEOUT"])
    assert DEPLOYMENT["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert "replicas" not in DEPLOYMENT["spec"]  # the autoscaler sets the number of replicas
