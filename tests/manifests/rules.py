"""What the checks of the manifests know: how an overlay is rendered, and how Kubernetes and Vault decide."""

import ipaddress
import json
import pathlib
import re
import tomllib

import jsonpatch
import yaml

INSTALL = pathlib.Path(__file__).resolve().parents[2] / "install"


def documents(path):
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def render(folder):
    """What `kubectl kustomize FOLDER` prints, for the features that our kustomizations use; any other is an error."""
    [kustomization] = documents(folder / "kustomization.yaml")
    known = {"apiVersion", "kind", "namespace", "resources", "images", "patches"}
    assert set(kustomization) <= known, f"{folder}: {set(kustomization) - known}"
    resources = []
    for name in kustomization["resources"]:
        path = (folder / name).resolve()
        resources += render(path) if path.is_dir() else documents(path)
    for resource in resources:
        if "namespace" in kustomization and resource["kind"] not in ("Namespace", "PriorityClass"):
            resource["metadata"]["namespace"] = kustomization["namespace"]
    for image in kustomization.get("images", []):
        for container in containers(resources):
            name, _, tag = container["image"].rpartition(":")
            if name == image["name"]:
                container["image"] = f'{image.get("newName", name)}:{image.get("newTag", tag)}'
    for patch in kustomization.get("patches", []):
        target = patch["target"]
        hit = [r for r in resources if r["kind"] == target["kind"] and r["metadata"]["name"] == target["name"]]
        assert len(hit) == 1, f"{target} names {len(hit)} resources"
        changed = jsonpatch.apply_patch(hit[0], yaml.safe_load(patch["patch"]))
        hit[0].clear()
        hit[0].update(changed)
    return resources


def of_kind(resources, kind, name=None):
    return [r for r in resources if r["kind"] == kind and name in (None, r["metadata"]["name"])]


def pods(resources):
    return [r["spec"]["template"]["spec"] for r in of_kind(resources, "Deployment")]


def containers(resources):
    return [c for pod in pods(resources) for c in pod.get("initContainers", []) + pod["containers"]]


def restricted(pod):
    """What breaks the Pod Security Standard `restricted` (kubernetes.io/docs/concepts/security/pod-security-standards), by its rules."""
    broken = []
    allowed = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(key):
            broken.append(key)
    for volume in pod.get("volumes", []):
        if set(volume) - {"name"} - allowed:
            broken.append(f'volume {volume["name"]}')
    whole = pod.get("securityContext", {})
    for container in pod.get("initContainers", []) + pod["containers"]:
        own = container.get("securityContext", {})
        say = lambda what: broken.append(f'{container["name"]}: {what}')
        if own.get("privileged"):
            say("privileged")
        if own.get("allowPrivilegeEscalation") is not False:
            say("allowPrivilegeEscalation")
        if "ALL" not in own.get("capabilities", {}).get("drop", []):
            say("capabilities.drop")
        if set(own.get("capabilities", {}).get("add", [])) - {"NET_BIND_SERVICE"}:
            say("capabilities.add")
        if own.get("runAsNonRoot", whole.get("runAsNonRoot")) is not True:
            say("runAsNonRoot")
        if own.get("runAsUser", whole.get("runAsUser", 1)) == 0:
            say("runAsUser")
        if own.get("seccompProfile", whole.get("seccompProfile", {})).get("type") not in ("RuntimeDefault", "Localhost"):
            say("seccompProfile")
        if own.get("procMount", "Default") != "Default":
            say("procMount")
        for port in container.get("ports", []):
            if port.get("hostPort"):
                say("hostPort")
    return broken


def peer_matches(peer, target):
    """`target`: an address, or (namespace, labels) of a pod."""
    if "ipBlock" in peer:
        if not isinstance(target, str):
            return False
        address = ipaddress.ip_address(target)
        inside = lambda cidr: address in ipaddress.ip_network(cidr)
        return inside(peer["ipBlock"]["cidr"]) and not any(inside(cidr) for cidr in peer["ipBlock"].get("except", []))
    if isinstance(target, str):
        return False
    namespace, labels = target
    space = peer.get("namespaceSelector", {}).get("matchLabels", {})
    pod = peer.get("podSelector", {}).get("matchLabels", {})
    return space.get("kubernetes.io/metadata.name") == namespace and all(labels.get(k) == v for k, v in pod.items())


def may(policies, direction, target, port, protocol="TCP"):
    """Whether any policy that selects our pod lets it: policies only add up."""
    where = {"Egress": "to", "Ingress": "from"}[direction]
    for policy in policies:
        selector = policy["spec"]["podSelector"].get("matchLabels", {})
        if not all({"app.kubernetes.io/name": "breakglass"}.get(k) == v for k, v in selector.items()):
            continue
        for rule in policy["spec"].get(direction.lower(), []):
            ports = rule.get("ports")
            fits = ports is None or any(p["port"] == port and p.get("protocol", "TCP") == protocol for p in ports)
            if fits and (where not in rule or any(peer_matches(peer, target) for peer in rule[where])):
                return True
    return False


def routes(resources):
    """Of each route its name, its rule, its middlewares' names and its service; what crosses a namespace is an error there."""
    for ingress in of_kind(resources, "IngressRoute"):
        name, namespace = ingress["metadata"]["name"], ingress["metadata"]["namespace"]
        for route in ingress["spec"]["routes"]:
            references = route.get("middlewares", []) + route["services"]
            assert all(reference.get("namespace", namespace) == namespace for reference in references), name
            [service] = route["services"]
            yield name, route["match"], [m["name"] for m in route.get("middlewares", [])], (namespace, service["name"])


def wrong_with_the_ingress(resources):
    """What would let a browser say who it is, or leave it without a login: nothing, as the manifests are shipped."""
    wrong, page, secret = [], ("breakglass", "breakglass"), "X-Breakglass-Proxy"
    [config] = of_kind(resources, "ConfigMap", "breakglass")
    believed = tomllib.loads(config["data"]["server.toml"])["web"]["identity_header"]
    middlewares = {m["metadata"]["name"]: m["spec"] for m in of_kind(resources, "Middleware")}
    headers = lambda name: middlewares[name].get("headers", {}).get("customRequestHeaders", {})
    strips = {name for name in middlewares if headers(name) == {believed: "", secret: ""}}
    tells = {name for name in middlewares if headers(name).get(secret)}
    asks = {name for name, spec in middlewares.items() if spec.get("forwardAuth", {}).get("authResponseHeaders") == [believed]}
    try:
        found = list(routes(resources))
    except AssertionError as crosses:
        return [f"{crosses}: crosses namespaces"]
    hosts, logins = set(), {}
    for name, rule, order, service in found:
        [host] = re.findall(r"Host\(`([^`]+)`\)", rule)
        if not order or order[0] not in strips:
            wrong.append(f"{name}: strips nothing, or not first")
        if service == page and "PathPrefix" in rule:
            wrong.append(f"{name}: a path of its own that leads to the page")
        if service != page and set(order) - strips:
            wrong.append(f"{name}: tells another service what only the page may know")
        if service != page:
            logins[host] = (rule, service)
        asked = [at for at, middleware in enumerate(order) if middleware in asks]
        told = [at for at, middleware in enumerate(order) if middleware in tells]
        if told and not (asked and asked[0] < told[0]):
            wrong.append(f"{name}: tells the secret without having asked who it is")
        if any(middlewares[order[at]]["forwardAuth"].get("trustForwardHeader") is not False for at in asked):
            wrong.append(f"{name}: believes the browser's X-Forwarded headers")
        if asked:
            hosts.add((host, middlewares[order[asked[0]]]["forwardAuth"]["address"]))
    if not hosts:
        wrong.append("nobody is asked who they are")
    for host, address in hosts:
        rule, (namespace, service) = logins.get(host, ("", ("", "")))
        if rule != f"Host(`{host}`) && PathPrefix(`/oauth2/`)":
            wrong.append(f"{host}: no way to the login")
        # At / it answers with the way to the login; at /oauth2/auth with a bare 401.
        if address != f"http://{service}.{namespace}.svc.cluster.local/":
            wrong.append(f"{address} is not the login's service at /")
    return wrong


def vault_rules(name):
    text = re.sub(r"#.*", "", (INSTALL / "vault" / name).read_text())
    rules = {path: [c.strip(' "') for c in caps.split(",")] for path, caps in re.findall(r'path "([^"]+)" \{\s*capabilities = \[([^\]]*)\]', text)}
    assert len(rules) == text.count("path "), name
    return rules


def vault_fits(pattern, path):
    """`+` stands for one segment, `*` at the end for whatever follows."""
    parts = [re.escape(part) for part in re.split(r"(?<=/)\+(?=/|$)", pattern.removesuffix("*"))]
    return re.fullmatch("[^/]+".join(parts) + (".*" if pattern.endswith("*") else ""), path) is not None


def vault_weight(pattern):
    """Vault's order among the patterns that fit one path (developer.hashicorp.com/vault/docs/concepts/policies, "priority matching")."""
    first = min((at for at in (pattern.find("+"), pattern.find("*")) if at >= 0), default=len(pattern) + 1)
    return (first, not pattern.endswith("*"), -pattern.count("+"), len(pattern), pattern)


def vault_may(policies, path, capability):
    """Vault's rule: of all policies of a token the one most specific pattern counts, and only among those of that very pattern a deny wins."""
    fitting = {pattern for rules in policies for pattern in rules if vault_fits(pattern, path)}
    if not fitting:
        return False
    best = max(fitting, key=vault_weight)
    capabilities = {capability for rules in policies for capability in rules.get(best, [])}
    return "deny" not in capabilities and capability in capabilities


def bundled(name):
    """The runtime's configuration as install/image puts it together."""
    common, own = (json.loads((INSTALL / "oci" / f"{part}.json").read_text()) for part in ("common", name))
    merge = lambda one, two: {key: merge(one[key], two[key]) if isinstance(one.get(key), dict) and key in two else two.get(key, one.get(key)) for key in one | two}
    return merge(common, own) | {"mounts": common["mounts"] + own["mounts"]}


def profile_of_bundle(bundle, name):
    process, own = bundle["process"], {}
    sizes = {"k": 2**10, "m": 2**20}
    for mount in bundle["mounts"]:
        if mount["destination"] in ("/proc", "/dev", "/etc/hosts", "/etc/resolv.conf"):
            continue  # every container that Kubernetes starts has them
        size = [option[5:] for option in mount["options"] if option.startswith("size=")]
        own[mount["destination"]] = ("ro" in mount["options"], mount["type"] == "tmpfs" and int(size[0][:-1]) * sizes[size[0][-1]])
    return {
        "uid": process["user"]["uid"],
        "gid": process["user"]["gid"],
        "args": process["args"],
        "capabilities": sorted({capability for of in process["capabilities"].values() for capability in of}),
        "root": bundle["root"]["readonly"],
        "privileges": not process["noNewPrivileges"],
        # install/image puts the file of this name into the bundle.
        "seccomp": f"breakglass/{name}.json" if (INSTALL / "seccomp" / f"{name}.json").exists() else None,
        "apparmor": process["apparmorProfile"],
        "mounts": own,
    }


def profile_of_pod(pod, container, volumes):
    own, security = {}, container["securityContext"]
    bytes_of = lambda text: int(text[:-2]) * {"Ki": 2**10, "Mi": 2**20}[text[-2:]]
    for mount in container["volumeMounts"]:
        empty = volumes[mount["name"]].get("emptyDir")
        # The socket's memory is the pod's; in the bundles it is a tmpfs of the host's that both bind.
        tmpfs = bytes_of(empty["sizeLimit"]) if empty and mount["name"] != "socket" else False
        own[mount["mountPath"]] = (mount.get("readOnly", False), tmpfs)
    return {
        "uid": security["runAsUser"],
        "gid": security["runAsGroup"],
        "args": ["/breakglass"] + container["args"],
        "capabilities": sorted(security["capabilities"].get("add", [])) if security["capabilities"]["drop"] == ["ALL"] else ["all"],
        "root": security["readOnlyRootFilesystem"],
        "privileges": security["allowPrivilegeEscalation"],
        "seccomp": security["seccompProfile"].get("localhostProfile"),
        "apparmor": security.get("appArmorProfile", {}).get("localhostProfile"),
        "mounts": own,
    }
