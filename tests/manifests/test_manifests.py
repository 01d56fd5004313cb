"""The Kubernetes manifests and Vault policies of install/, held to what they promise.

Needs no cluster: the overlay is rendered here (resources, images, JSON 6902 patches: all that it uses), validated against the published
schemas, judged by the rules of Pod Security's `restricted`, and its NetworkPolicy and Vault rules are asked who may reach and read what.
"""

import copy
import json
import re
import tomllib
import unittest

import kubernetes_validate
import yaml

from rules import INSTALL, bundled, documents, may, of_kind, pods, profile_of_bundle, profile_of_pod, render, restricted, routes, vault_may, vault_rules, wrong_with_the_ingress

VERSION = "1.34"


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
        self.assertEqual(custom, 7, "Traefik's own kinds have no published schema here: they are read below, field by field")
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
        # One bound for all of it (agent/src/bound.rs): incidents, evidence, receipts, and room for an answer, which is stored twice, in its
        # incident and in evidence/. An answer that comes at the same time, and the last 16 MiB, which are the logs', are beyond it.
        answer, reserve = 2 * 64 * 2**20, 16 * 2**20
        self.assertLessEqual(answer, int(kept) // 2, "no more than half of it is made free for an answer")
        self.assertLessEqual(int(kept) + answer + reserve, int(state[:-2]) * 2**20)
        [mounted] = [m for m in json.loads((INSTALL / "oci/server.json").read_text())["mounts"] if m["destination"] == "/var/lib/breakglass"]
        self.assertIn(f"size={state[:-2]}m", mounted["options"])
        self.assertLess(int(state[:-2]), int(server["resources"]["limits"]["memory"][:-2]))
        self.assertFalse(pod["automountServiceAccountToken"])
        for volume in pod["volumes"]:
            if "emptyDir" in volume:
                self.assertEqual(volume["emptyDir"]["medium"], "Memory", volume["name"])
        config = of_kind(self.all, "ConfigMap", "breakglass")[0]["data"]
        self.assertNotIn("vault", config["server.toml"])
        self.assertNotIn("claude", config["keyholder.toml"])
        # Neither is the other's user, so the socket has to be their group's: without that the server gets no key.
        for resources in (self.base, self.all):
            config = of_kind(resources, "ConfigMap", "breakglass")[0]["data"]
            [group] = {container["securityContext"]["runAsGroup"] for container in pods(resources)[0]["containers"]}
            keyholder, server = (tomllib.loads(config[f"{name}.toml"]) for name in ("keyholder", "server"))
            self.assertEqual(keyholder["keyholder"].get("group"), group)
            self.assertEqual(keyholder["keyholder"]["socket"], server["ssh"]["auth_sock"])

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
            ("Ingress", ("monitoring", {"app.kubernetes.io/name": "prometheus"}), 8102, "TCP", True),  # /metrics
            ("Ingress", ("monitoring", {"app.kubernetes.io/name": "prometheus"}), 8103, "TCP", False),
            ("Ingress", ("monitoring", {"app.kubernetes.io/name": "grafana"}), 8102, "TCP", False),
            ("Ingress", ("default", {"app.kubernetes.io/name": "prometheus"}), 8102, "TCP", False),
            ("Ingress", "8.8.8.8", 8102, "TCP", False),
        ]
        for direction, peer, port, protocol, wanted in table:
            with self.subTest(direction=direction, peer=peer, port=port, protocol=protocol):
                self.assertEqual(may(policies, direction, peer, port, protocol), wanted)
        # The base alone admits nobody but the proxy, and names no file of tokens.
        self.assertFalse(may(of_kind(self.base, "NetworkPolicy"), "Ingress", ("monitoring", {"app.kubernetes.io/name": "prometheus"}), 8102))
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
            ([deny, shared], "secret/metadata/breakglass/", "list", False),  # the names below it
            ([deny, {"secret/*": ["read", "list"]}], "secret/subkeys/breakglass/ssh", "read", False),
            ([shared, deny], "secret/data/breakglass/other", "read", False),
            ([shared, deny], "secret/data/others/ssh", "read", True),
            ([shared, deny], "secret/data/breakglassy/ssh", "read", True),
            ([shared, deny, ours], "secret/data/breakglass/ssh", "read", False),  # a token with both has none
            # A grant that is as exact as the keys' own path, or more exact than a deny with a wildcard.
            ([deny, {"secret/data/breakglass/ssh": ["read"]}], "secret/data/breakglass/ssh", "read", False),
            ([deny, {"secret/data/breakglass/+": ["read"]}], "secret/data/breakglass/ssh", "read", False),
            ([deny, {"secret/data/+/ssh": ["read"]}], "secret/data/breakglass/ssh", "read", False),
            ([deny, {"secret/metadata/breakglass/ssh": ["read", "delete"]}], "secret/metadata/breakglass/ssh", "delete", False),
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
        self.assertEqual(wrong_with_the_ingress(self.all), [])
        paths = [(name, middlewares) for name, _, middlewares, service in routes(self.all) if service == ("breakglass", "breakglass")]
        believed = {tomllib.loads(of_kind(r, "ConfigMap", "breakglass")[0]["data"]["server.toml"])["web"]["identity_header"] for r in (self.base, self.all)}
        self.assertEqual(believed, {"X-Auth-Request-User"}, "what oauth2-proxy answers with --set-xauthrequest; X-Forwarded-User is for upstreams only")
        self.assertEqual(paths, [("breakglass", ["strip", "identity", "secret"]), ("breakglass-fallback", ["strip"])])

    def test_each_way_around_the_ingress_is_seen(self):
        route = lambda r, name: of_kind(r, "IngressRoute", name)[0]["spec"]["routes"][0]
        middleware = lambda r, name: of_kind(r, "Middleware", name)[0]["spec"]
        headers = lambda r, name: middleware(r, name)["headers"]["customRequestHeaders"]
        server = lambda r: of_kind(r, "ConfigMap", "breakglass")[0]["data"]
        login = lambda r: of_kind(r, "IngressRoute", "breakglass-login")[0]
        loosen = {
            "no strip": lambda r: route(r, "breakglass")["middlewares"].pop(0),
            "no strip at the fallback": lambda r: route(r, "breakglass-fallback").pop("middlewares"),
            "no strip at the login": lambda r: route(r, "breakglass-login").pop("middlewares"),
            "strip last": lambda r: route(r, "breakglass")["middlewares"].reverse(),
            "the secret without a question": lambda r: route(r, "breakglass")["middlewares"].pop(1),
            "the secret at the fallback": lambda r: route(r, "breakglass-fallback")["middlewares"].append({"name": "secret"}),
            "identity after the secret": lambda r: route(r, "breakglass")["middlewares"].append(route(r, "breakglass")["middlewares"].pop(1)),
            "a strip that leaves the name": lambda r: headers(r, "strip").pop("X-Auth-Request-User"),
            "a strip that leaves the secret": lambda r: headers(r, "strip").pop("X-Breakglass-Proxy"),
            "a strip that sets the name": lambda r: headers(r, "strip").update({"X-Auth-Request-User": "admin"}),
            "a login's strip that leaves the name": lambda r: headers(r, "breakglass-strip").pop("X-Auth-Request-User"),
            "another header copied": lambda r: middleware(r, "identity")["forwardAuth"].update(authResponseHeaders=["X-Forwarded-User"]),
            "the browser's word on where it is": lambda r: middleware(r, "identity")["forwardAuth"].update(trustForwardHeader=True),
            "another header believed": lambda r: server(r).update({"server.toml": server(r)["server.toml"].replace("X-Auth-Request-User", "X-Forwarded-User")}),
            "no login": lambda r: r.remove(login(r)),
            "a login that leads to the page": lambda r: (route(r, "breakglass-login")["services"][0].update(name="breakglass"), login(r)["metadata"].update(namespace="breakglass")),
            "a login elsewhere": lambda r: route(r, "breakglass-login").update(match="Host(`other.example`) && PathPrefix(`/oauth2/`)"),
            "an endpoint that only says 401": lambda r: middleware(r, "identity")["forwardAuth"].update(address="http://oauth2-proxy.auth.svc.cluster.local/oauth2/auth"),
            "a question to another service": lambda r: middleware(r, "identity")["forwardAuth"].update(address="http://oauth2-proxy.sso.svc.cluster.local/"),
            "across namespaces": lambda r: route(r, "breakglass-login")["services"][0].update(namespace="breakglass"),
        }
        for what, change in loosen.items():
            with self.subTest(what):
                loose = copy.deepcopy(self.all)
                change(loose)
                self.assertNotEqual(wrong_with_the_ingress(loose), [])

    def test_what_the_configuration_names_may_be_reached(self):
        for resources in (self.base, self.all):
            policies = of_kind(resources, "NetworkPolicy")
            config = of_kind(resources, "ConfigMap", "breakglass")[0]["data"]
            server, keyholder = (tomllib.loads(config[f"{name}.toml"]) for name in ("server", "keyholder"))
            vault = keyholder["vault"]["address"].removeprefix("https://")
            for address in (server["host"]["address"], server["devvm"]["address"], vault):
                target, port = address.rsplit(":", 1)
                self.assertTrue(may(policies, "Egress", target, int(port)), address)
                self.assertFalse(may(policies, "Egress", target, int(port) + 1), address)
            self.assertTrue(server["watch"]["notify_url"].startswith("https://"), "443 is what the policy opens")

    def test_every_file_of_the_page_s_secrets_is_made_by_the_overlay_s_commands(self):
        text = (INSTALL / "k8s/example/kustomization.yaml").read_text()
        [command] = re.findall(r"create secret generic breakglass-web (.*)", text)
        for resources in (self.base, self.all):
            web = tomllib.loads(of_kind(resources, "ConfigMap", "breakglass")[0]["data"]["server.toml"])["web"]
            files = {value.removeprefix("/run/secrets/web/") for key, value in web.items() if key.endswith("_file")}
            self.assertLessEqual(files, set(re.findall(r"--from-file=([a-z-]+)=FILE", command)))
            self.assertEqual("tokens" in files, resources is self.all, "a file that is named and not there keeps the page down")

    def test_the_overlay_shows_every_value_that_differs_from_cluster_to_cluster(self):
        [overlay] = documents(INSTALL / "k8s/example/kustomization.yaml")
        shown = [(patch["target"]["kind"], change["path"]) for patch in overlay["patches"] for change in yaml.safe_load(patch["patch"])]
        wanted = [
            ("NetworkPolicy", "/spec/egress/0/to/0/ipBlock/cidr"),
            ("NetworkPolicy", "/spec/egress/0/ports/0/port"),
            ("NetworkPolicy", "/spec/egress/1/to/0/ipBlock/cidr"),
            ("NetworkPolicy", "/spec/egress/1/ports/0/port"),
            ("NetworkPolicy", "/spec/egress/2/to/0/ipBlock/cidr"),
            ("NetworkPolicy", "/spec/egress/2/ports/0/port"),
            ("NetworkPolicy", "/spec/egress/3/to/0/podSelector/matchLabels"),
            ("NetworkPolicy", "/spec/ingress/0/from/0/namespaceSelector/matchLabels"),
            ("NetworkPolicy", "/spec/ingress/0/from/0/podSelector/matchLabels"),
            ("ConfigMap", "/data/server.toml"),
            ("ConfigMap", "/data/keyholder.toml"),
            ("IngressRoute", "/spec/routes/0/match"),
            ("IngressRoute", "/spec/tls"),
            ("Middleware", "/spec/forwardAuth/address"),
            ("Middleware", "/spec/headers/customRequestHeaders/X-Breakglass-Proxy"),
        ]
        for value in wanted:
            self.assertIn(value, shown)
        of = lambda name: {change["path"] for patch in overlay["patches"] if patch["target"]["name"] == name for change in yaml.safe_load(patch["patch"])}
        selectors = {f"/spec/ingress/0/from/0/{which}Selector/matchLabels" for which in ("namespace", "pod")}
        self.assertLessEqual(selectors, of("breakglass"), "Traefik")
        self.assertLessEqual(selectors, of("breakglass-metrics"), "Prometheus")
        self.assertEqual(of("breakglass-login"), {"/metadata/namespace", "/spec/routes/0/match", "/spec/routes/0/services/0", "/spec/tls"})
        self.assertEqual(of("breakglass-strip"), {"/metadata/namespace"})
        self.assertTrue(any(path.endswith("matchExpressions/0") for kind, path in shown if kind == "Deployment"), "the nodes")
        self.assertTrue(any(path.endswith("appArmorProfile") for kind, path in shown if kind == "Deployment"), "AppArmor")
        self.assertEqual({set(image) <= {"name", "newName", "newTag"} for image in overlay["images"]}, {True})

    def test_the_overlay_changes_every_value_that_is_an_example(self):
        text = yaml.safe_dump_all(self.all)
        for example in ("192.0.2.", "registry.example.org", "breakglass.example.org", "REPLACED-BY-THE-OVERLAY", "notify.example.org"):
            self.assertNotIn(example, text)


if __name__ == "__main__":
    unittest.main(verbosity=2)
