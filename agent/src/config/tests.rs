//! What is in `install/` is read; what is wrong is named with its line and its key.

use super::*;

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBpLSis2YWRD4CciWwtMA6RhdG6G8+Sd0iUYOol/V2a5";

fn shipped(name: &str) -> String {
    std::fs::read_to_string(format!("{}/../install/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// A configuration out of the ConfigMap: what is indented below this line of that file.
fn mapped(file: &str, line: &str) -> Config {
    let text = shipped(file);
    let (_, own) = text.split_once(&format!("{line}\n")).unwrap();
    let depth = own.len() - own.trim_start().len();
    let own = own.lines().take_while(|line| line.is_empty() || line.len() - line.trim_start().len() >= depth);
    Config::parse(&own.map(|line| format!("{}\n", line.trim_start())).collect::<String>()).unwrap()
}

#[test]
fn an_unknown_key_is_refused_by_name_and_line_in_every_section() {
    let sample = sample(true);
    for section in ["host", "devvm", "ssh", "claude", "budget", "watch", "keyholder", "vault", "state", "web"] {
        let header = format!("[{section}]\n");
        let line = sample.lines().position(|line| line == header.trim_end()).unwrap() + 2;
        let why = Config::parse(&sample.replace(&header, &format!("{header}misspelt = 1\n"))).unwrap_err();
        assert!(why.contains(&format!("line {line}: ")) && why.contains("misspelt"), "{section}: {why}");
    }
    assert!(Config::parse("[hosts]\n").unwrap_err().contains("hosts"));
}

/// The sample; with all that is commented out in it, where that is wanted.
fn sample(all: bool) -> String {
    let text = shipped("breakglass.toml");
    if !all {
        return text;
    }
    let lines = text.lines().map(|line| {
        line.strip_prefix('#').filter(|rest| rest.starts_with(|first: char| first.is_ascii_lowercase() || first == '[')).unwrap_or(line)
    });
    lines.map(|line| format!("{line}\n")).collect()
}

#[test]
fn the_sample_is_read_as_it_is_and_says_each_default() {
    let (bare, all) = (Config::parse(&sample(false)).unwrap(), Config::parse(&sample(true)).unwrap());
    assert!([&bare, &all].iter().all(|config| config.host.as_ref().unwrap().vmid == Vmid::DEVVM));
    assert!(bare.host.is_some() && bare.devvm.is_none() && bare.watch.is_none() && bare.keyholder.is_none());
    let devvm = all.devvm.as_ref().unwrap();
    assert_eq!((devvm.user.as_str(), devvm.sudo), (breakglass().as_str(), yes()));
    let none = Config::parse("").unwrap();
    for config in [&bare, &all] {
        assert_eq!(config.budget, none.budget);
        assert_eq!((&config.claude.model, &config.claude.fallback_model), (&none.claude.model, &none.claude.fallback_model));
        assert_eq!((config.claude.autonomy, config.web.listen), (none.claude.autonomy, none.web.listen));
        assert_eq!((&config.state.dir, config.state.keep_bytes), (&none.state.dir, none.state.keep_bytes));
    }
    assert_eq!(all.watch.unwrap().interval_s, 60);
    let (said, unsaid) = (all.keyholder.unwrap(), Config::parse("[keyholder]\n").unwrap().keyholder.unwrap());
    assert!(said.vault.is_some() && said.socket == unsaid.socket, "{unsaid:?}");
}

#[test]
fn the_shipped_configurations_of_both_containers_are_read() {
    let keyholder = mapped("k8s/base/config.yaml", "  keyholder.toml: |").keyholder.unwrap();
    assert_eq!((keyholder.group, keyholder.vault.unwrap().role.as_str()), (Some(8100), "breakglass"));
    let server = mapped("k8s/base/config.yaml", "  server.toml: |");
    assert!(server.keyholder.is_none() && server.host.is_some() && server.watch.is_some());
    assert_eq!(server.web.proxies, ["10.42.0.0/16".parse().unwrap()]);
    assert_eq!(server.web.identity_header.unwrap(), "x-auth-request-user");
}

#[test]
fn the_overlay_that_people_copy_is_read() {
    let part = |name: &str| mapped("k8s/example/kustomization.yaml", &format!("        path: /data/{name}\n        value: |"));
    let server = part("server.toml");
    assert_eq!((server.web.listen.port(), server.state.keep_bytes), (8102, 335_544_320));
    assert!(server.host.is_some() && server.devvm.is_some() && server.watch.is_some() && server.keyholder.is_none());
    assert!(part("keyholder.toml").keyholder.unwrap().vault.is_some());
}

#[test]
fn a_host_is_an_address_and_two_keys() {
    let text = format!("[host]\naddress = \"192.0.2.1:22\"\nhost_key = \"{KEY}\"\nsigning_key = \"{KEY}\"\n");
    assert_eq!(Config::parse(&text).unwrap().host.unwrap().user, "root");
    for (from, to) in [("192.0.2.1:22", "pve.example:22"), ("192.0.2.1:22", "192.0.2.1"), ("AAAAC3Nz", "AAAA"), ("signing_key", "signing")]
    {
        assert!(Config::parse(&text.replace(from, to)).is_err(), "{to}");
    }
    assert!(Config::parse(&text.replace("192.0.2.1:22", "[2001:db8::1]:22")).is_ok());
}

#[test]
fn what_is_out_of_range_is_refused_by_its_name() {
    for (text, named) in [
        ("[watch]\ninterval_s = 9\n", "watch.interval_s"),
        ("[watch]\non = \"page\"\n", "page"),
        ("[claude]\nautonomy = \"none\"\n", "none"),
        ("[budget]\nusd = nan\n", "budget.usd"),
        ("[budget]\nturns = -1\n", "-1"),
        ("[web]\nproxies = [\"10.0.0.0/33\"]\n", "10.0.0.0/33"),
        ("[web]\nproxies = [\"proxy.example\"]\n", "proxy.example"),
        ("[web]\nidentity_header = \"X Name\"\n", "X Name"),
        ("[web]\nlisten = \"localhost:8102\"\n", "line 2: \"localhost:8102\" is no address: write IP:PORT"),
        ("[host]\naddress = \"192.0.2.1\"\n", "line 2: \"192.0.2.1\" is no address: write IP:PORT"),
        ("[host]\nvmid = 99\n", "line 2: 99 is not a VM id"),
        ("[devvm]\naddress = \"devvm:22\"\n", "line 2: \"devvm:22\" is no address: write IP:PORT"),
        ("[vault]\naddress = \"https://192.0.2.1:8200\"\nrole = \"r\"\npath = \"p\"\n", "[keyholder]"),
        ("[state]\ndir = 1\n", "line 2"),
        ("[claude]\napi_key = \"sk-ant-secret\"\n", "api_key"),
    ] {
        let why = Config::parse(text).unwrap_err();
        assert!(why.contains(named) && !why.contains("sk-ant"), "{text}: {why}");
    }
    assert_eq!(Config::parse("[web]\nproxies = [\"192.0.2.7\"]\n").unwrap().web.proxies, ["192.0.2.7/32".parse().unwrap()]);
}
