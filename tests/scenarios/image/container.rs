//! The agent's two containers under runc, from the bundle that `install/image` makes: the places on the host that it names, and containers
//! that end when they are dropped.

use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lab::host::write;
use lab::lab::built;
use lab::namespace::tmpfs;
use lab::process::{Finished, Running, must, run, start, until};
use lab::{Lab, Result};
use rustix::mount::mount_bind;
use serde_json::{Value, json};

/// Where `install/image` put everything.
pub(crate) const IMAGE: &str = "/run/lab/image";
/// The user of the keyholder, of the server, and the group in which they meet.
pub(crate) const KEYHOLDER: u32 = 8101;
pub(crate) const SERVER: u32 = 8102;
pub(crate) const GROUP: u32 = 8100;
/// The socket, as the host sees it.
pub(crate) const SOCKET: &str = "/run/breakglass/keyholder/agent.sock";
/// What a machine shows to the page.
pub(crate) const TOKEN: &str = "a token of the laboratory's machine";
/// runc's own state.
const STATE: &str = "/run/lab/runc";

/// Packs the image around the shipped binary, into this folder; the archive's path.
pub(crate) fn pack(out: &str) -> Result<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../install/image");
    let mut command = Command::new(script);
    command.arg("--binary").arg(built("breakglass")?).args(["--out", out]).env("SOURCE_DATE_EPOCH", "1795000000");
    let end = run(&mut command, Duration::from_secs(60))?.success("install/image")?;
    Ok(end.text().lines().last().unwrap().to_owned())
}

/// Lays out what the bundles mount: configuration, secrets, the socket's tmpfs, and the network namespace, which is the lab's own.
pub(crate) fn lay_out(lab: &Lab) -> Result<()> {
    pack(IMAGE)?;
    for folder in ["/etc/breakglass/vault-ca", "/etc/breakglass/vault", "/etc/breakglass/claude", "/etc/breakglass/web", "/run/netns"] {
        fs::create_dir_all(folder).unwrap();
    }
    fs::create_dir_all("/run/breakglass/keyholder").unwrap();
    tmpfs("/run/breakglass/keyholder", &format!("size=1m,mode=750,uid={KEYHOLDER},gid={GROUP}"))?;
    fs::write("/run/netns/breakglass", "").unwrap();
    mount_bind("/proc/self/ns/net", "/run/netns/breakglass").unwrap();
    for (name, from) in [("verbs", lab.host.key("agent")?), ("devvm", lab.host.inside.image.key())] {
        let to = format!("/etc/breakglass/vault/{name}");
        fs::copy(from, &to).unwrap();
        chown(&to, Some(KEYHOLDER), Some(GROUP)).unwrap();
    }
    let keyholder = "[keyholder]\nsocket = \"/run/keyholder/agent.sock\"\ngroup = 8100\n\
        key_files = [\"/run/secrets/vault/verbs\", \"/run/secrets/vault/devvm\"]\n";
    write("/etc/breakglass/keyholder.toml", keyholder, 0o644)?;
    lab::agent::configure(
        &lab.host,
        "/run/keyholder/agent.sock",
        "[web]\nlisten = \"127.0.0.1:8102\"\ntokens_file = \"/run/secrets/web/tokens\"\n\
         [watch]\ninterval_s = 10\non = \"notify\"\nnotify_url = \"http://hook.example:8199/hook\"\n",
    )?;
    fs::rename(lab::agent::CONFIG, "/etc/breakglass/server.toml").unwrap();
    let hash = run(Command::new("sha256sum").current_dir("/").arg(token()?), Duration::from_secs(10))?.success("sha256sum")?.text();
    let line = format!("machine:{}\n", hash.split(' ').next().unwrap());
    write("/etc/breakglass/web/tokens", &line, 0o440)?;
    chown("/etc/breakglass/web/tokens", Some(0), Some(GROUP)).unwrap();
    Ok(())
}

/// A file with the token and nothing else.
fn token() -> Result<&'static str> {
    write("/run/lab/token", TOKEN, 0o600)?;
    Ok("/run/lab/token")
}

/// The shipped configuration of a container.
///
/// Where the kernel has no AppArmor the profile's name is taken out, and that is said: runc would not start it.
pub(crate) fn shipped(name: &str) -> Value {
    let mut config: Value = serde_json::from_slice(&fs::read(format!("{IMAGE}/bundle/{name}/config.json")).unwrap()).unwrap();
    if !Path::new("/sys/kernel/security/apparmor").exists() {
        assert!(config["process"]["apparmorProfile"].take().as_str().unwrap().starts_with("breakglass-"));
        config["process"].as_object_mut().unwrap().remove("apparmorProfile");
    }
    config
}

/// The same container with the stranger in it, in the place of the program.
pub(crate) fn taken(name: &str, words: &[&str]) -> Value {
    let mut config = shipped(name);
    config["process"]["args"] = [&["/probe"], words].concat().into();
    // The one that it stands in for may run beside it.
    config["linux"]["cgroupsPath"] = "/stranger".into();
    let options = ["bind", "ro", "nosuid", "nodev"];
    let probe = json!({ "destination": "/probe", "type": "bind", "source": built("probe").unwrap(), "options": options });
    config["mounts"].as_array_mut().unwrap().push(probe);
    config
}

/// A running container.
pub(crate) struct Container {
    id: String,
    running: Option<Running>,
}

fn runc(words: &[&str]) -> Command {
    let mut command = Command::new("runc");
    command.args(["--root", STATE]).args(words).current_dir("/");
    command
}

/// Writes the bundle of this configuration, with a root of its own: runc makes the places in it that a looser profile mounts more at.
fn bundle(id: &str, mut config: Value) -> String {
    let folder = format!("/run/lab/bundles/{id}");
    let _from_before = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    must("cp", ["-a", &format!("{IMAGE}/bundle/rootfs"), &folder]).unwrap();
    config["root"]["path"] = "rootfs".into();
    fs::write(format!("{folder}/config.json"), config.to_string()).unwrap();
    folder
}

/// Starts a container with this configuration.
pub(crate) fn begin(id: &str, config: Value) -> Result<Container> {
    let folder = bundle(id, config);
    let running = start(&mut runc(&["run", "--bundle", &folder, id]), &[])?;
    Ok(Container { id: id.to_owned(), running: Some(running) })
}

/// Runs a container to its end.
pub(crate) fn to_its_end(id: &str, config: Value) -> Result<Finished> {
    let folder = bundle(id, config);
    let end = run(&mut runc(&["run", "--bundle", &folder, id]), Duration::from_secs(60));
    let _gone = run(&mut runc(&["delete", "--force", id]), Duration::from_secs(20));
    end
}

impl Container {
    /// What it said so far.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&self.running.as_ref().unwrap().output_so_far()).into_owned()
    }

    /// Its first process, as the host sees it.
    pub(crate) fn pid(&self) -> u32 {
        let state = must("runc", ["--root", STATE, "state", &self.id]).unwrap();
        let state: Value = serde_json::from_slice(&state.stdout).unwrap();
        u32::try_from(state["pid"].as_u64().unwrap()).unwrap()
    }

    /// Runs the image's program in it once more.
    pub(crate) fn exec(&self, words: &[&str]) -> Result<Finished> {
        run(runc(&["exec", &self.id]).args(words), Duration::from_secs(300))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _gone = run(&mut runc(&["delete", "--force", &self.id]), Duration::from_secs(20));
        if let Some(running) = self.running.take() {
            let end = running.finish(Duration::from_secs(30));
            if let (Ok(end), true) = (&end, std::thread::panicking()) {
                println!("{} said: {}{}", self.id, end.text(), String::from_utf8_lossy(&end.stderr));
            }
        }
    }
}

/// The container once it is `ready`; where it never is, what it said.
fn ready(mut container: Container, what: &str, is: impl Fn(&Container) -> bool) -> Result<Container> {
    let Err(error) = until(what, Duration::from_secs(20), || is(&container).then_some(())) else { return Ok(container) };
    let end = container.running.take().unwrap().kill()?;
    panic!("{error} {}{}", end.text(), String::from_utf8_lossy(&end.stderr));
}

/// The keyholder as it is shipped.
pub(crate) fn keyholder() -> Result<Container> {
    // One that was killed leaves its socket, which would be taken for this one's.
    let _from_before = fs::remove_file(SOCKET);
    ready(begin("keyholder", shipped("keyholder"))?, "the keyholder's socket", |_| Path::new(SOCKET).exists())
}

/// Both containers as they are shipped.
pub(crate) fn both() -> Result<(Container, Container)> {
    let keys = keyholder()?;
    let server = ready(begin("server", shipped("server"))?, "the page", |server| server.log().contains("listening"))?;
    Ok((keys, server))
}
