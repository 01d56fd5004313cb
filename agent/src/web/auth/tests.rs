//! Each way in, and what looks like one.

use super::*;
use argon2::{Argon2, password_hash::PasswordHasher};

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const TOKEN: &str = "a-machine's-token";

struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }
    fn with(&self, name: &str, text: &str) -> Option<std::path::PathBuf> {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        Some(path)
    }
}

fn hash(password: &str) -> String {
    Argon2::default().hash_password(password.as_bytes()).unwrap().to_string()
}

fn settings(files: &Files) -> Settings {
    let hex: String = Sha256::digest(TOKEN).iter().map(|byte| format!("{byte:02x}")).collect();
    Settings {
        proxies: vec!["10.42.0.0/16".parse().unwrap(), "192.0.2.7/32".parse().unwrap()],
        identity_header: Some(HeaderName::from_static("x-forwarded-user")),
        secret_file: files.with("secret", &format!("{SECRET}\n")),
        tokens_file: files.with("tokens", &format!("# machines\nprobe:{hex}\n")),
        basic_file: files.with("basic", &format!("anna:{}\n", hash("right horse"))),
    }
}

fn headers(all: &[(&str, &str)]) -> HeaderMap {
    all.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())).collect()
}

fn from(address: &str) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), 40000)
}

async fn ask(door: &Door, address: &str, all: &[(&str, &str)]) -> Result<(String, How), Refused> {
    door.who(from(address), &headers(all)).await.map(|who| (who.name, who.how))
}

#[tokio::test]
async fn an_identity_header_counts_from_a_proxy_with_its_secret_only() {
    let files = Files::new();
    let door = Door::open(&settings(&files)).unwrap();
    let (user, secret) = (("x-forwarded-user", "anna@example.org"), ("x-breakglass-proxy", SECRET));
    let anna = Ok(("anna@example.org".to_owned(), How::Proxy));
    assert_eq!(ask(&door, "10.42.3.4", &[user, secret]).await, anna);
    assert_eq!(ask(&door, "::ffff:10.42.3.4", &[user, secret]).await, anna);
    for (address, all) in [
        ("10.43.0.1", vec![user, secret]),
        ("127.0.0.1", vec![user, secret]),
        ("10.42.3.4", vec![user]),
        ("10.42.3.4", vec![user, ("x-breakglass-proxy", "0123456789abcdef0123456789abcdee")]),
        ("10.42.3.4", vec![user, secret, ("x-breakglass-proxy", "another")]),
    ] {
        assert_eq!(ask(&door, address, &all).await, Err(Refused::Forged), "{address} {all:?}");
    }
    // The proxy is real, and names nobody, two, or something that is no name.
    for name in [vec![], vec![("x-forwarded-user", "a"), ("x-forwarded-user", "b")], vec![("x-forwarded-user", "<script>")]] {
        assert_eq!(ask(&door, "10.42.3.4", &[vec![secret], name].concat()).await, Err(Refused::Nobody));
    }
    // A claim that fails does not fall to the next: a right password beside a forged header is a forged header.
    let basic = format!("Basic {}", Base64::encode_string(b"anna:right horse"));
    assert_eq!(ask(&door, "10.43.0.1", &[user, ("authorization", &basic)]).await, Err(Refused::Forged));
}

#[tokio::test]
async fn tokens_and_passwords_let_their_owners_in_and_nobody_else() {
    let files = Files::new();
    let door = Door::open(&settings(&files)).unwrap();
    let basic = |text: &str| format!("Basic {}", Base64::encode_string(text.as_bytes()));
    assert_eq!(ask(&door, "203.0.113.1", &[("authorization", &format!("Bearer {TOKEN}"))]).await, Ok(("probe".to_owned(), How::Token)));
    for _ in 0..2 {
        // The second time it is remembered.
        assert_eq!(
            ask(&door, "203.0.113.1", &[("authorization", &basic("anna:right horse"))]).await,
            Ok(("anna".to_owned(), How::Password))
        );
    }
    for wrong in [
        basic("anna:wrong horse"),
        basic("bert:right horse"),
        basic("anna"),
        "Basic %%%".to_owned(),
        "Bearer x".to_owned(),
        "Bearer ".to_owned(),
        "Digest x".to_owned(),
        "x".to_owned(),
    ] {
        assert_eq!(ask(&door, "203.0.113.1", &[("authorization", &wrong)]).await, Err(Refused::Wrong), "{wrong}");
    }
    assert_eq!(ask(&door, "203.0.113.1", &[]).await, Err(Refused::Nobody));
    assert!(door.takes_passwords() && !door.is_only_for_loopback() && door.new_link().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_names_that_are_not_there_keeps_nobody_out() {
    let files = Files::new();
    let door = Arc::new(Door::open(&settings(&files)).unwrap());
    let basic = |text: &str| format!("Basic {}", Base64::encode_string(text.as_bytes()));
    let mut flood = tokio::task::JoinSet::new();
    for n in 0..6 {
        let (door, claim) = (Arc::clone(&door), basic(&format!("nobody{n}:x")));
        flood.spawn(async move {
            loop {
                let _refused = ask(&door, "203.0.113.1", &[("authorization", &claim)]).await;
                tokio::task::yield_now().await;
            }
        });
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let anna = ask(&door, "203.0.113.1", &[("authorization", &basic("anna:right horse"))]).await;
    assert_eq!(anna, Ok(("anna".to_owned(), How::Password)));
}

#[test]
fn who_hangs_up_frees_no_place_for_another_hash_and_is_counted() {
    let files = Files::new();
    let door = Door::open(&settings(&files)).unwrap();
    let claim = headers(&[("authorization", &format!("Basic {}", Base64::encode_string(b"anna:wrong horse")))]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().max_blocking_threads(1).build().unwrap();
    let slowed = runtime.block_on(async {
        for _ in 0..100 {
            // The one thread that hashes is taken until this is dropped.
            let (hold, held) = std::sync::mpsc::channel::<()>();
            tokio::task::spawn_blocking(move || held.recv());
            // Asked, and hung up as soon as it has to wait.
            let answered = tokio::select! {
                biased;
                answered = door.who(from("203.0.113.1"), &claim) => Some(answered),
                () = std::future::ready(()) => None,
            };
            if let Some(answered) = answered {
                return answered;
            }
            assert_eq!(door.hashing.available_permits(), 0, "its hash has yet to run");
            drop(hold);
            drop(Arc::clone(&door.hashing).acquire_owned().await);
        }
        panic!("a hundred wrong passwords, and none was counted")
    });
    assert!(matches!(slowed, Err(Refused::Busy(_))), "{slowed:?}");
}

#[tokio::test]
async fn the_one_time_link_lets_one_browser_in_once() {
    let door = Door::open(&Settings::default()).unwrap();
    assert!(door.is_only_for_loopback());
    let older = door.new_link().unwrap();
    let link = door.new_link().unwrap();
    assert_eq!(door.follow_link(&older), None);
    assert_eq!(door.follow_link("x"), None);
    let session = door.follow_link(&link).unwrap();
    assert_eq!(door.follow_link(&link), None, "once");
    let cookie = format!("theme=dark; {COOKIE}={session}");
    assert_eq!(ask(&door, "127.0.0.1", &[("cookie", &cookie)]).await, Ok(("local".to_owned(), How::Link)));
    assert_eq!(ask(&door, "127.0.0.1", &[("cookie", &format!("{COOKIE}=x"))]).await, Err(Refused::Wrong));
    // Nothing is configured that could tell who this is: a header is only a header.
    assert_eq!(ask(&door, "127.0.0.1", &[("x-forwarded-user", "anna")]).await, Err(Refused::Nobody));
}

#[test]
fn a_file_that_is_not_right_is_refused_by_name_without_its_content() {
    let files = Files::new();
    let good = settings(&files);
    let cases = [
        Settings { secret_file: None, ..good.clone() },
        Settings { secret_file: files.with("short", "hunter2\n"), ..good.clone() },
        Settings { tokens_file: files.with("plain", "probe:hunter2\n"), ..good.clone() },
        Settings { tokens_file: files.with("scope", &format!("probe:{}:hunter2\n", "0".repeat(64))), ..good.clone() },
        Settings { basic_file: files.with("clear", "anna:hunter2\n"), ..good.clone() },
        Settings { basic_file: files.with("bare", "hunter2\n"), ..good.clone() },
        Settings { basic_file: Some("/nonexistent".into()), ..good },
    ];
    for case in cases {
        let message = Door::open(&case).unwrap_err().to_string();
        assert!(!message.contains("hunter2"), "{message}");
    }
}
