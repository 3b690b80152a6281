"""Writes kubernetes.json and compose.json: the parts of two published schemas that our manifests use.

Kubernetes' Python client is generated from the OpenAPI document of the API server and has, per type, the
names of its fields, their types and which of them must be there. Of these the types are taken that the
kinds below reach, without what the API server fills in and without volumes and fields that no manifest
here uses. Every object is closed: a field that does not exist is an error, as with `kubectl --validate`.
The values of fields that are an enumeration stand in that document's prose only; ENUMS has those we use.
"""

import json
import pathlib
import re
import sys

KINDS = {
    "Namespace": ("v1", "V1Namespace"),
    "ConfigMap": ("v1", "V1ConfigMap"),
    "ServiceAccount": ("v1", "V1ServiceAccount"),
    "Service": ("v1", "V1Service"),
    "Pod": ("v1", "V1Pod"),
    "DaemonSet": ("apps/v1", "V1DaemonSet"),
    "Deployment": ("apps/v1", "V1Deployment"),
    "Job": ("batch/v1", "V1Job"),
}

VOLUMES = {"name", "emptyDir", "hostPath", "configMap", "secret", "persistentVolumeClaim", "projected"}

LEFT_OUT = {
    "status", "managedFields", "ownerReferences", "finalizers", "selfLink", "uid", "resourceVersion",
    "generation", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "windowsOptions",
    "ephemeralContainers", "resourceClaims", "claims", "gitRepo", "podFailurePolicy", "successPolicy",
    "volumeClaimTemplate", "volumeDevices", "resizePolicy", "schedulingGates", "overhead", "clusterTrustBundle",
    "sessionAffinityConfig", "topologySpreadConstraints", "readinessGates",
}

ENUMS = {
    "imagePullPolicy": ["Always", "IfNotPresent", "Never"],
    "mountPropagation": ["None", "HostToContainer", "Bidirectional"],
    "protocol": ["TCP", "UDP", "SCTP"],
    "terminationMessagePolicy": ["File", "FallbackToLogsOnError"],
    "dnsPolicy": ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"],
    "V1PodSpec.restartPolicy": ["Always", "OnFailure", "Never"],
    "V1Container.restartPolicy": ["Always"],
    "V1SeccompProfile.type": ["Localhost", "RuntimeDefault", "Unconfined"],
    "V1HostPathVolumeSource.type": [
        "", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket", "CharDevice", "BlockDevice",
    ],
    "V1EmptyDirVolumeSource.medium": ["", "Memory", "HugePages"],
    "V1Toleration.operator": ["Exists", "Equal"],
    "V1Toleration.effect": ["NoSchedule", "PreferNoSchedule", "NoExecute"],
    "V1DaemonSetUpdateStrategy.type": ["RollingUpdate", "OnDelete"],
    "V1DeploymentStrategy.type": ["RollingUpdate", "Recreate"],
    "V1ServiceSpec.type": ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"],
}


def of_type(python, models, wanted):
    """The schema of a type as the client names it."""
    if match := re.fullmatch(r"list\[(.*)\]", python):
        return {"type": "array", "items": of_type(match[1], models, wanted)}
    if match := re.fullmatch(r"dict\(str, (.*)\)", python):
        return {"type": "object", "additionalProperties": of_type(match[1], models, wanted)}
    plain = {"str": "string", "int": "integer", "bool": "boolean", "float": "number"}
    if python in plain:
        return {"type": plain[python]}
    if python == "object":  # a port or a name; a number or a share
        return {"type": ["integer", "string"]}
    if python in ("datetime", "date"):
        return {"type": "string"}
    wanted.append(python)
    return {"$ref": f"#/$defs/{python}"}


def definition(name, models, wanted):
    """The schema of one class of the client."""
    path = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
    text = (models / f"{path}.py").read_text()
    fields = {}
    for table in ("openapi_types", "attribute_map"):
        body = re.search(rf"{table} = \{{(.*?)\n    \}}", text, re.S)[1]
        fields[table] = dict(re.findall(r"'(\w+)': '([^']*)'", body))
    required = re.findall(r"Invalid value for `(\w+)`, must not be `None`", text)
    properties = {}
    for attribute, key in fields["attribute_map"].items():
        if key in LEFT_OUT or (name == "V1Volume" and key not in VOLUMES):
            continue
        schema = of_type(fields["openapi_types"][attribute], models, wanted)
        if schema.get("type") == "object" and schema["additionalProperties"] == {"type": "string"}:
            if key in ("limits", "requests"):
                schema["additionalProperties"] = {"type": ["integer", "string"], "format": "quantity"}
        if key == "sizeLimit":
            schema = {"type": ["integer", "string"], "format": "quantity"}
        values = ENUMS.get(f"{name}.{key}", ENUMS.get(key))
        if values and schema.get("type") == "string":
            schema["enum"] = values
        properties[key] = schema
    out = {"type": "object", "additionalProperties": False, "properties": properties}
    required = sorted({fields["attribute_map"][attribute] for attribute in required} & set(properties))
    return {**out, "required": required} if required else out


def kubernetes(models):
    """One schema per kind, and the types they reach."""
    definitions, wanted = {}, []
    kinds = {}
    for kind, (version, name) in KINDS.items():
        schema = definition(name, models, wanted)
        schema["properties"]["apiVersion"] = {"enum": [version]}
        schema["properties"]["kind"] = {"enum": [kind]}
        schema["required"] = sorted({*schema.get("required", []), "apiVersion", "kind", "metadata"})
        kinds[kind] = schema
    while wanted:
        name = wanted.pop()
        if name not in definitions:
            definitions[name] = {}
            definitions[name] = definition(name, models, wanted)
    return {"kinds": kinds, "$defs": dict(sorted(definitions.items()))}


PATTERNS = {"^x-", "^[a-zA-Z0-9._-]+$"}


def without_prose(schema):
    """The same without what only people and editors read, and without patterns that no manifest needs."""
    if isinstance(schema, list):
        return [without_prose(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    out = {}
    for key, value in schema.items():
        if key in ("description", "title", "default", "deprecated", "$id", "$schema") and not isinstance(value, dict):
            continue
        if key == "format" or (key == "pattern" and isinstance(value, str)):
            continue
        out[key] = without_prose(value)
    return out


def flattened(schema):
    """The same with definitions that are others' sum (`allOf` of references) as one closed object each."""
    definitions = schema["$defs"]
    sums = {name: of for name, of in definitions.items() if "unevaluatedProperties" in of}
    parts = set()
    for name, of in sums.items():
        whole = {"type": "object", "properties": {}, "patternProperties": {}, "additionalProperties": False}
        for reference in of["allOf"]:
            parts.add(reference["$ref"].rsplit("/")[-1])
        for part in [definitions[reference["$ref"].rsplit("/")[-1]] for reference in of["allOf"]] + [of]:
            whole["properties"] |= part.get("properties", {})
            whole["patternProperties"] |= part.get("patternProperties", {})
        if "required" in of:
            whole["required"] = of["required"]
        definitions[name] = whole
    # Jobs are newer than most of the implementations.
    del schema["properties"]["jobs"]
    for name in parts | {"job", "schedule"}:
        definitions.pop(name, None)
    return schema


def main(unpacked, here):
    """Writes both."""
    models = unpacked / "kubernetes/client/models"
    vendor = unpacked / "check_jsonschema/builtin_schemas/vendor/compose-spec.json"
    for name, schema in (("kubernetes", kubernetes(models)), ("compose", flattened(without_prose(json.loads(vendor.read_text()))))):
        text = json.dumps(schema, indent=1)
        # Short lists and objects on one line.
        text = re.sub(r"([\[{])\s*([^\[\]{}]{1,100}?)\s*([\]}])", lambda m: m[1] + re.sub(r"\s*\n\s*", " ", m[2]) + m[3], text)
        (here / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
