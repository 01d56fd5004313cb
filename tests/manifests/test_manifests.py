"""The Kubernetes manifests and Vault policies of install/, held to what they promise.

Needs no cluster: the overlay is rendered here (resources, images, JSON 6902 patches: all that it uses), validated against the published
schemas, judged by the rules of Pod Security's `restricted`, and its NetworkPolicy and Vault rules are asked who may reach and read what.
"""

import copy
import ipaddress
import json
import pathlib
import re
import unittest

import jsonpatch
import kubernetes_validate
import yaml

INSTALL = pathlib.Path(__file__).resolve().parents[2] / "install"
VERSION = "1.34"


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


def vault_rules(name):
    text = re.sub(r"#.*", "", (INSTALL / "vault" / name).read_text())
    rules = {path: [c.strip(' "') for c in caps.split(",")] for path, caps in re.findall(r'path "([^"]+)" \{\s*capabilities = \[([^\]]*)\]', text)}
    assert len(rules) == text.count("path "), name
    return rules


def vault_may(policies, path, capability):
    """Vault's rule: over all policies of a token an explicit deny on the matching path wins; of one policy the longest match counts."""
    granted = False
    for rules in policies:
        matching = [p for p in rules if p == path or p.endswith("*") and path.startswith(p[:-1])]
        if not matching:
            continue
        capabilities = rules[max(matching, key=lambda p: (p == path, len(p)))]
        if "deny" in capabilities:
            return False
        granted |= capability in capabilities
    return granted


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


class Manifests(unittest.TestCase):
    def setUp(self):
        self.base = render(INSTALL / "k8s/base")
        self.all = render(INSTALL / "k8s/example")

    def test_every_resource_is_valid_against_the_published_schema(self):
        custom = 0
        for resources in (self.base, self.all):
            for resource in resources:
                if resource["apiVersion"].startswith("traefik.io/"):
                    custom += 1
                    continue
                kubernetes_validate.validate(resource, VERSION, strict=True)
        self.assertGreater(len(self.base), 7)
        self.assertEqual(custom, 5, "Traefik's own kinds have no published schema here: they are read below, field by field")
        broken = copy.deepcopy(of_kind(self.all, "Deployment")[0])
        broken["spec"]["template"]["spec"]["tolerationz"] = []
        with self.assertRaises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(broken, VERSION, strict=True)

    def test_the_namespace_is_restricted_and_the_pod_is_accepted_by_it(self):
        [namespace] = of_kind(self.all, "Namespace")
        self.assertEqual(namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "restricted")
        for pod in pods(self.all):
            self.assertEqual(restricted(pod), [])

    def test_each_rule_of_restricted_is_missed_when_it_is_loosened(self):
        [pod] = pods(self.all)
        loosen = {
            "hostNetwork": lambda p: p.update(hostNetwork=True),
            "hostPID": lambda p: p.update(hostPID=True),
            "volume": lambda p: p["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
            "allowPrivilegeEscalation": lambda p: p["containers"][0]["securityContext"].pop("allowPrivilegeEscalation"),
            "capabilities.drop": lambda p: p["containers"][1]["securityContext"].pop("capabilities"),
            "capabilities.add": lambda p: p["containers"][1]["securityContext"]["capabilities"].update(add=["SYS_PTRACE"]),
            "runAsNonRoot": lambda p: p["securityContext"].pop("runAsNonRoot"),
            "runAsUser": lambda p: p["containers"][0]["securityContext"].update(runAsUser=0),
            "seccompProfile": lambda p: p["containers"][0]["securityContext"].pop("seccompProfile"),
            "privileged": lambda p: p["containers"][0]["securityContext"].update(privileged=True),
            "hostPort": lambda p: p["containers"][1]["ports"][0].update(hostPort=80),
        }
        for rule, change in loosen.items():
            loose = copy.deepcopy(pod)
            change(loose)
            self.assertTrue(any(rule in broken for broken in restricted(loose)), rule)

    def test_the_two_programs_are_apart(self):
        [pod] = pods(self.all)
        keyholder, server = pod["containers"]
        self.assertEqual((keyholder["name"], keyholder["args"][0]), ("keyholder", "keyholder"))
        self.assertEqual((server["name"], server["args"][0]), ("server", "serve"))
        self.assertFalse(pod["shareProcessNamespace"])
        self.assertNotEqual(keyholder["securityContext"]["runAsUser"], server["securityContext"]["runAsUser"])
        mounts = lambda container: {mount["name"]: mount for mount in container["volumeMounts"]}
        shared = set(mounts(keyholder)) & set(mounts(server))
        self.assertEqual(shared, {"config", "socket"})
        self.assertEqual({m["subPath"] for c in (keyholder, server) for m in [mounts(c)["config"]]}, {"keyholder.toml", "server.toml"})
        self.assertTrue(mounts(server)["socket"]["readOnly"])
        self.assertNotIn("vault-token", mounts(server), "the server can't ask Vault")
        self.assertNotIn("claude", mounts(keyholder), "the keyholder can't ask Claude")
        for container in (keyholder, server):
            self.assertTrue(container["securityContext"]["readOnlyRootFilesystem"])
            self.assertEqual(container["imagePullPolicy"], "IfNotPresent")
            self.assertIn("memory", container["resources"]["limits"])
        # The state is memory: what may be kept fits into its volume, and the volume into the container's limit.
        [kept] = re.findall(r"keep_bytes = (\d+)", of_kind(self.all, "ConfigMap", "breakglass")[0]["data"]["server.toml"])
        [state] = [volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"] if volume["name"] == "state"]
        answer = 64 * 2**20
        self.assertLessEqual(int(kept) + answer, int(state[:-2]) * 2**20)
        self.assertLess(int(state[:-2]), int(server["resources"]["limits"]["memory"][:-2]))
        self.assertFalse(pod["automountServiceAccountToken"])
        for volume in pod["volumes"]:
            if "emptyDir" in volume:
                self.assertEqual(volume["emptyDir"]["medium"], "Memory", volume["name"])
        config = of_kind(self.all, "ConfigMap", "breakglass")[0]["data"]
        self.assertNotIn("vault", config["server.toml"])
        self.assertNotIn("claude", config["keyholder.toml"])

    def test_the_bundle_and_the_manifests_are_one_profile(self):
        [pod] = pods(self.all)
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for container in pod["containers"]:
            bundle = bundled(container["name"])
            with self.subTest(container=container["name"]):
                self.assertEqual(profile_of_bundle(bundle, container["name"]), profile_of_pod(pod, container, volumes))

    def test_each_difference_between_bundle_and_manifests_is_seen(self):
        [pod] = pods(self.all)
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        loosen = {
            "uid": lambda c: c["securityContext"].update(runAsUser=8103),
            "gid": lambda c: c["securityContext"].update(runAsGroup=8101),
            "args": lambda c: c["args"].append("--more"),
            "capabilities": lambda c: c["securityContext"]["capabilities"].update(add=["NET_BIND_SERVICE"]),
            "root": lambda c: c["securityContext"].update(readOnlyRootFilesystem=False),
            "privileges": lambda c: c["securityContext"].update(allowPrivilegeEscalation=True),
            "seccomp": lambda c: c["securityContext"]["seccompProfile"].update(localhostProfile="breakglass/other.json"),
            "apparmor": lambda c: c["securityContext"].pop("appArmorProfile"),
            "mounts": lambda c: c["volumeMounts"][-1].update(readOnly=not c["volumeMounts"][-1].get("readOnly", False)),
        }
        for container in pod["containers"]:
            bundle = profile_of_bundle(bundled(container["name"]), container["name"])
            for what, change in loosen.items():
                loose = copy.deepcopy(container)
                change(loose)
                other = profile_of_pod(pod, loose, volumes)
                self.assertEqual({key for key in bundle if bundle[key] != other[key]}, {what}, container["name"])

    def test_it_survives_the_pressure_that_it_cures(self):
        [pod] = pods(self.all)
        self.assertEqual(pod["priorityClassName"], of_kind(self.all, "PriorityClass")[0]["metadata"]["name"])
        tolerated = {t["key"] for t in pod["tolerations"]}
        self.assertLessEqual({f"node.kubernetes.io/{p}-pressure" for p in ("memory", "disk", "pid")}, tolerated)
        terms = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        self.assertIn({"key": "nvidia.com/gpu.present", "operator": "DoesNotExist"}, terms[0]["matchExpressions"])
        server = pod["containers"][1]
        self.assertEqual(server["readinessProbe"]["httpGet"]["path"], "/readyz")
        self.assertEqual(server["livenessProbe"]["httpGet"]["path"], "/healthz")

    def test_who_may_reach_what(self):
        policies = of_kind(self.all, "NetworkPolicy")
        dns = ("kube-system", {"k8s-app": "kube-dns"})
        table = [
            # direction, peer, port, protocol, may
            ("Egress", "198.51.100.10", 22, "TCP", True),  # the host's sshd
            ("Egress", "198.51.100.20", 22, "TCP", True),  # the devvm's
            ("Egress", "198.51.100.30", 8200, "TCP", True),  # Vault
            ("Egress", "198.51.100.10", 8006, "TCP", False),  # PVE's own web API
            ("Egress", "198.51.100.11", 22, "TCP", False),  # another host
            ("Egress", "198.51.100.30", 22, "TCP", False),
            ("Egress", dns, 53, "UDP", True),
            ("Egress", dns, 53, "TCP", True),
            ("Egress", dns, 443, "TCP", False),
            ("Egress", ("kube-system", {"k8s-app": "metrics-server"}), 53, "UDP", False),
            ("Egress", ("default", {"app": "shared"}), 443, "TCP", False),
            ("Egress", "8.8.8.8", 443, "TCP", True),  # Claude's API, the webhook
            ("Egress", "8.8.8.8", 80, "TCP", False),
            ("Egress", "8.8.8.8", 53, "UDP", False),
            ("Egress", "8.8.8.8", 22, "TCP", False),
            ("Egress", "169.254.169.254", 443, "TCP", False),  # a cloud's metadata service
            ("Egress", "10.43.0.1", 443, "TCP", False),  # the cluster's API
            ("Egress", "172.20.0.5", 443, "TCP", False),
            ("Egress", "192.168.1.1", 443, "TCP", False),
            ("Egress", "100.64.0.1", 443, "TCP", False),
            ("Egress", "127.0.0.1", 443, "TCP", False),
            ("Ingress", ("traefik", {"app.kubernetes.io/name": "traefik"}), 8102, "TCP", True),
            ("Ingress", ("traefik", {"app.kubernetes.io/name": "whoami"}), 8102, "TCP", False),
            ("Ingress", ("default", {"app.kubernetes.io/name": "traefik"}), 8102, "TCP", False),
            ("Ingress", ("breakglass", {}), 8102, "TCP", False),
            ("Ingress", "8.8.8.8", 8102, "TCP", False),
        ]
        for direction, peer, port, protocol, wanted in table:
            with self.subTest(direction=direction, peer=peer, port=port, protocol=protocol):
                self.assertEqual(may(policies, direction, peer, port, protocol), wanted)
        everything = [p for p in policies if p["spec"]["podSelector"] == {} and set(p["spec"]["policyTypes"]) == {"Ingress", "Egress"}]
        self.assertEqual(len(everything), 1, "without a policy for all pods, a pod that no policy selects may do everything")

    def test_who_may_read_what_in_vault(self):
        ours, deny = vault_rules("breakglass.hcl"), vault_rules("shared-deny.hcl")
        shared = {"secret/data/*": ["read", "list"], "secret/metadata/*": ["read", "list"]}
        table = [
            ([ours], "secret/data/breakglass/ssh", "read", True),
            ([ours], "secret/data/breakglass/ssh", "update", False),
            ([ours], "secret/data/breakglass/ssh", "list", False),
            ([ours], "secret/data/breakglass/other", "read", False),
            ([ours], "secret/metadata/breakglass/ssh", "read", False),
            ([ours], "secret/data/others/ssh", "read", False),
            ([ours], "sys/policies/acl/breakglass", "read", False),
            ([shared], "secret/data/breakglass/ssh", "read", True),  # why the deny is needed
            ([shared, deny], "secret/data/breakglass/ssh", "read", False),
            ([deny, shared], "secret/metadata/breakglass/ssh", "list", False),
            ([shared, deny], "secret/data/others/ssh", "read", True),
            ([shared, deny, ours], "secret/data/breakglass/ssh", "read", False),  # a token with both has none
        ]
        for policies, path, capability, wanted in table:
            with self.subTest(path=path, capability=capability):
                self.assertEqual(vault_may(policies, path, capability), wanted)
        role = json.loads((INSTALL / "vault/role.json").read_text())
        self.assertEqual(role["token_policies"], ["breakglass"])
        self.assertEqual((role["bound_service_account_names"], role["bound_service_account_namespaces"]), (["breakglass"], ["breakglass"]))
        [pod] = pods(self.all)
        [token] = [v for v in pod["volumes"] if v["name"] == "vault-token"]
        self.assertEqual(token["projected"]["sources"][0]["serviceAccountToken"]["audience"], role["audience"])
        config = of_kind(self.all, "ConfigMap", "breakglass")[0]["data"]["keyholder.toml"]
        for path in ours:
            self.assertIn(f'path = "{path}"', config)

    def test_the_ingress_asks_who_it_is_before_it_tells_the_secret(self):
        [route] = of_kind(self.all, "IngressRoute", "breakglass")
        names = [m["name"] for m in route["spec"]["routes"][0]["middlewares"]]
        self.assertEqual(names, ["strip", "identity", "secret"])
        [fallback] = of_kind(self.all, "IngressRoute", "breakglass-fallback")
        self.assertEqual([m["name"] for m in fallback["spec"]["routes"][0]["middlewares"]], ["strip"])
        [strip] = of_kind(self.all, "Middleware", "strip")
        headers = strip["spec"]["headers"]["customRequestHeaders"]
        self.assertEqual(headers, {"X-Forwarded-User": "", "X-Breakglass-Proxy": ""})
        [identity] = of_kind(self.all, "Middleware", "identity")
        self.assertFalse(identity["spec"]["forwardAuth"]["trustForwardHeader"])

    def test_the_overlay_changes_every_value_that_is_an_example(self):
        text = yaml.safe_dump_all(self.all)
        for example in ("192.0.2.", "registry.example.org", "breakglass.example.org", "REPLACED-BY-THE-OVERLAY", "notify.example.org"):
            self.assertNotIn(example, text)


if __name__ == "__main__":
    unittest.main(verbosity=2)
