//! Many at once: 500 who watch and 10,000 requests cost bounded memory, and the buttons still answer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

#[path = "support/browser.rs"]
mod browser;
#[path = "support/page.rs"]
mod page;

use std::time::{Duration, Instant};

use browser::Browser;
use page::{How, Page};
use tokio::task::JoinSet;

/// Resident memory of this process, which is the server's and its clients', in MiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_watchers_and_ten_thousand_requests_are_bounded_and_a_button_answers() {
    let folder = tempfile::tempdir().unwrap();
    let page = Page::serve(folder.path(), How::stalled(folder.path())).await;
    let base = page.url("");
    let anna = Browser::anna(&base);
    anna.until("/", "Block stalled").await;
    let before = resident();
    // Others than anna: each is known by the proxy.
    let person = |n: u32| Browser::stranger(&base).with("x-forwarded-user", &format!("p{n}")).with("x-breakglass-proxy", page::SECRET);
    let mut watching = Vec::new();
    let mut statuses = std::collections::BTreeMap::new();
    for n in 0..500 {
        let answer = person(n % 50).stream("/events").await;
        *statuses.entry(answer.status().as_u16()).or_insert(0) += 1;
        if answer.status() == 200 {
            watching.push(answer);
        }
    }
    eprintln!("500 streams: {statuses:?}, {} MiB resident", resident());
    assert_eq!(watching.len(), 128, "{statuses:?}");
    let began = Instant::now();
    let mut all = JoinSet::new();
    for worker in 0..40_u32 {
        let browser = person(worker);
        all.spawn(async move {
            let mut seen = std::collections::BTreeMap::new();
            for n in 0..250_u32 {
                let path = ["/", "/verbs/cycle/confirm", "/incidents", "/metrics", "/nowhere"][(n % 5) as usize];
                *seen.entry(browser.get(path).await.status).or_insert(0_u32) += 1;
            }
            seen
        });
    }
    let mut slowest = Duration::ZERO;
    let pressed = async {
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_millis(700)).await;
            let began = Instant::now();
            let run = anna.post("/verbs/forensics", &[]).await.to();
            assert_eq!(anna.get(&run).await.status, 200);
            slowest = slowest.max(began.elapsed());
        }
    };
    let answered = async {
        let mut seen = std::collections::BTreeMap::new();
        while let Some(worker) = all.join_next().await {
            for (status, count) in worker.unwrap() {
                *seen.entry(status).or_insert(0) += count;
            }
        }
        seen
    };
    let ((), seen) = tokio::join!(pressed, answered);
    let after = resident();
    eprintln!("10,000 requests: {seen:?} in {:?}; slowest press {slowest:?}; {before} MiB before, {after} MiB after", began.elapsed());
    assert_eq!(seen.values().sum::<u32>(), 10_000);
    assert!(seen.keys().all(|status| [200, 404, 429].contains(status)), "{seen:?}");
    assert!(slowest < Duration::from_secs(10), "{slowest:?}");
    assert!(after < before + 120, "{before} MiB before, {after} MiB after");
    drop(watching);
    // Their places are free again.
    let end = Instant::now() + Duration::from_secs(15);
    while anna.stream("/events").await.status() != 200 {
        assert!(Instant::now() < end);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
