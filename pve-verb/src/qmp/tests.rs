//! A QEMU that misbehaves: each test is one way.

use super::*;
use proto::Vmid;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use tempfile::TempDir;

const GREETING: &str = "{\"QMP\": {\"version\": {\"qemu\": {\"major\": 10}}, \"capabilities\": []}}\n";
const SOON: Duration = Duration::from_millis(300);
const AMPLE: Duration = Duration::from_secs(20);

struct Qemu {
    _folder: TempDir,
    door: Door,
}

/// A QEMU whose side of the first connection is `behave`.
fn qemu(behave: impl FnOnce(UnixStream) + Send + 'static) -> Qemu {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("102.qmp")).unwrap();
    let door = door(&folder);
    std::thread::spawn(move || behave(listener.accept().unwrap().0));
    Qemu { _folder: folder, door }
}

fn door(folder: &TempDir) -> Door {
    Door::take_at(folder.path(), folder.path(), Vmid::DEVVM, &Purpose::Read("test".into()), Duration::ZERO).unwrap()
}

/// Greets, then answers each command with what `answer` makes of (command, id).
fn answering(mut stream: UnixStream, answer: impl Fn(&str, u64) -> String) {
    stream.write_all(GREETING.as_bytes()).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    while let Some(Ok(line)) = lines.next() {
        let command: Value = serde_json::from_str(&line).unwrap();
        let text = answer(command["execute"].as_str().unwrap(), command["id"].as_u64().unwrap());
        if stream.write_all(text.as_bytes()).is_err() {
            return;
        }
    }
}

fn fine(id: u64, value: &str) -> String {
    format!("{{\"return\": {value}, \"id\": {id}}}\n")
}

#[test]
fn every_field_and_its_order_survive_and_events_are_kept_apart() {
    let q = qemu(|s| {
        answering(s, |command, id| match command {
            "query-status" => format!(
                "{{\"event\": \"STOP\", \"timestamp\": {{}}}}\n{}",
                fine(id, "{\"zeta\": 1, \"status\": \"running\", \"alpha\": null}")
            ),
            _ => fine(id, "{}"),
        })
    });
    let mut session = Session::open(&q.door, AMPLE).unwrap();
    assert_eq!(session.ask(&Query::Status, AMPLE).unwrap().to_string(), r#"{"zeta":1,"status":"running","alpha":null}"#);
    assert_eq!(session.events().0.len(), 1);
    assert!(session.await_event("STOP", Duration::ZERO).is_some());
    assert!(session.await_event("RESET", Duration::from_millis(50)).is_none());
}

#[test]
fn qemus_own_error_is_an_answer_and_the_connection_goes_on() {
    let q = qemu(|s| {
        answering(s, |command, id| match command {
            "x-query-virtio" => format!("{{\"id\": {id}, \"error\": {{\"class\": \"CommandNotFound\", \"desc\": \"no\\u001b[2J\"}}}}\n"),
            _ => fine(id, "{}"),
        })
    });
    let mut session = Session::open(&q.door, AMPLE).unwrap();
    assert_eq!(session.ask(&Query::Virtio, AMPLE), Err(QmpError::Qemu { class: "CommandNotFound".into(), desc: "no\\x1b[2J".into() }));
    assert!(session.ask(&Query::Status, AMPLE).is_ok());
}

#[test]
fn silence_before_the_greeting_is_not_silence_after_it() {
    let q = qemu(|s| {
        std::thread::sleep(AMPLE);
        drop(s);
    });
    assert_eq!(Session::open(&q.door, SOON).unwrap_err(), QmpError::NoGreeting);

    let q = qemu(|s| answering(s, |command, id| if command == "qmp_capabilities" { fine(id, "{}") } else { String::new() }));
    let mut session = Session::open(&q.door, AMPLE).unwrap();
    assert_eq!(session.ask(&Query::Status, SOON), Err(QmpError::Timeout));
    let started = Instant::now();
    assert_eq!(session.ask(&Query::Block, AMPLE), Err(QmpError::Timeout), "a late answer must not be taken for the next one's");
    assert!(started.elapsed() < AMPLE / 2);
}

#[test]
fn no_socket_nobody_listening_and_a_full_backlog_are_three_things() {
    let folder = tempfile::tempdir().unwrap();
    let door = door(&folder);
    assert_eq!(Session::open(&door, SOON).unwrap_err(), QmpError::NoSocket);
    drop(UnixListener::bind(door.qmp()).unwrap());
    assert_eq!(Session::open(&door, SOON).unwrap_err(), QmpError::Refused);
    std::fs::remove_file(door.qmp()).unwrap();
    let fd = rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::bind(&fd, &rustix::net::SocketAddrUnix::new(door.qmp()).unwrap()).unwrap();
    rustix::net::listen(&fd, 0).unwrap();
    let _waiting = UnixStream::connect(door.qmp()).unwrap();
    assert_eq!(Session::open(&door, SOON).unwrap_err(), QmpError::Busy);
}

#[test]
fn garbage_a_closed_connection_and_a_line_without_end() {
    for (bytes, wanted) in [
        ("hello\x1b[2J\n", QmpError::Protocol("hello\\x1b[2J".into())),
        ("[]\n", QmpError::Protocol("[]".into())),
        ("{}\n", QmpError::Protocol("the first line is no greeting".into())),
        ("{\"QMP\"", QmpError::Closed),
    ] {
        let q = qemu(move |mut s| s.write_all(bytes.as_bytes()).unwrap());
        assert_eq!(Session::open(&q.door, AMPLE).unwrap_err(), wanted);
    }
    let q = qemu(|mut s| while s.write_all(&[b'x'; 65536]).is_ok() {});
    assert!(matches!(Session::open(&q.door, Duration::from_secs(20)).unwrap_err(), QmpError::Protocol(_)));
    let deep = format!("{{\"QMP\": {}}}\n", "[".repeat(100_000));
    let q = qemu(move |mut s| drop(s.write_all(deep.as_bytes())));
    assert!(matches!(Session::open(&q.door, AMPLE).unwrap_err(), QmpError::Protocol(_)));
}

#[test]
fn a_drip_of_bytes_does_not_outlive_the_deadline() {
    let q = qemu(|mut s| {
        while s.write_all(b" ").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let started = Instant::now();
    assert_eq!(Session::open(&q.door, SOON).unwrap_err(), QmpError::NoGreeting);
    assert!(started.elapsed() < AMPLE);
}

#[test]
fn a_flood_of_events_is_counted_not_kept_and_ends_at_the_deadline() {
    let q = qemu(|mut s| {
        answering_once(&mut s);
        while s.write_all(b"{\"event\": \"RTC_CHANGE\"}\n").is_ok() {}
    });
    let mut session = Session::open(&q.door, AMPLE).unwrap();
    let started = Instant::now();
    assert!(matches!(session.ask(&Query::Status, SOON), Err(QmpError::Timeout | QmpError::Protocol(_))));
    assert!(started.elapsed() < AMPLE);
    assert!(session.events().0.len() <= EVENTS);
}

fn answering_once(s: &mut UnixStream) {
    s.write_all(GREETING.as_bytes()).unwrap();
    let mut line = String::new();
    BufReader::new(s.try_clone().unwrap()).read_line(&mut line).unwrap();
    s.write_all(fine(1, "{}").as_bytes()).unwrap();
}

#[test]
fn no_query_is_a_command_that_changes_the_vm() {
    let file = ScreenFile::within(Path::new("/run/pve-verb/x"), "screen-1.ppm").unwrap();
    let path = VirtioPath::from_qemu("/machine/peripheral/virtioscsi0/virtio-backend").unwrap();
    use Query::*;
    for query in [
        Status,
        Block,
        Blockstats,
        NamedBlockNodes,
        BlockJobs,
        Iothreads,
        CpusFast,
        Balloon,
        Migrate,
        Chardev,
        Virtio,
        VirtioQueueStatus(path, 2),
        Screendump(file),
        Human(Hmp::Registers),
    ] {
        let (command, arguments) = query.command();
        let reads = command.starts_with("query-") || command.starts_with("x-query-") || command == "screendump";
        let shows =
            command == "human-monitor-command" && arguments.is_some_and(|a| a["command-line"].as_str().unwrap().starts_with("info "));
        assert!(reads || shows, "{command}");
    }
}

#[test]
fn paths_that_go_back_into_a_command_are_checked() {
    for bad in ["", "/machine", "/machine/a b", "/machine/\"", "machine/x", "/machine/ä", &format!("/machine/{}", "x".repeat(300))] {
        assert_eq!(VirtioPath::from_qemu(bad), None, "{bad:?}");
    }
    for bad in ["relative", "/run/../etc", "/run/ä", "/run/\n"] {
        assert_eq!(ScreenFile::within(Path::new(bad), "x.ppm"), None, "{bad:?}");
    }
}
