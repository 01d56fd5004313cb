//! The evidence that is kept here: what each verb brought, file by file, both screens side by side, and how far it is proved.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Extension;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};
use proto::{Manifest, Message, RequestId, Sha256Hex, Subject, Verb};
use sha2::{Digest, Sha256};

use super::app::App;
use super::auth::Who;
use super::home::capital;
use super::run::{File, Run};
use super::send::{self, Piece};
use super::shell::{self, Fresh, ago, page, size, time};
use super::{story, tar};
use crate::shown::{lines, plain};

/// In the list.
const MOST: usize = 60;
/// Of a file so much is looked at to show it.
const SHOWN: u64 = 200_000;
/// What of it stands in the page, of its beginning and of its end: as long as it is there, and no phone waits for more.
const FIRST: usize = 8_000;
const LAST: usize = 20_000;
/// No manifest is longer.
const MANIFEST: u64 = 4 << 20;

/// `GET /evidence`.
pub(super) async fn list(State(app): State<Arc<App>>, Extension(who): Extension<Who>) -> Response {
    let all = app.store.list();
    let ids = all
        .iter()
        .flat_map(|one| one.facts.runs.iter().rev().map(move |(id, verb, _)| (one, id, verb)))
        .filter(|(.., verb)| **verb != Verb::Status);
    let runs: Vec<Run> = ids.take(MOST).filter_map(|(one, id, _)| Run::of(&app, one, id)).filter(|run| !run.files.is_empty()).collect();
    let body = html! {
        h1 { "Evidence" }
        section.card {
            @if runs.is_empty() { p.quiet { "None is kept here yet. Every verb but status brings some; the host keeps its own copy." } }
            ul.rows {
                @for run in &runs {
                    li {
                        a.row-link href={ "/evidence/" (run.id) } {
                            @let signed = run.end.as_ref().is_some_and(|end| end.receipt.is_some());
                            span.pill .good[signed] .unknown[!signed] { @if signed { "receipt valid" } @else { "not proved" } }
                            b { (capital(run.verb)) @if let Some(judged) = &run.judged { ": " (judged.code) } }
                            small { (ago(run.asked)) ", " (time(run.asked)) " · " (run.files.len()) " files, " (size(run.files.iter().map(|file| file.bytes).sum())) }
                        }
                    }
                }
            }
        }
    };
    shell::html(StatusCode::OK, page("Evidence", "/evidence", Some(&who), &Fresh::default(), &body))
}

/// How far the files are proved.
enum Proof {
    /// The receipt names the manifest; so many of so many files that the manifest names are here, and their hashes fit.
    Fits(usize, usize),
    /// The receipt is valid; the manifest that it names is on the host.
    Receipt,
    /// There is no valid receipt.
    Nothing,
    /// Something does not fit.
    Differs(String),
}

fn path_of(app: &App, run: &Run, file: &File) -> Option<PathBuf> {
    app.store.file(&run.incident, &file.file)
}

fn hash(bytes: &[u8]) -> Sha256Hex {
    Sha256Hex::from_bytes(Sha256::digest(bytes).into())
}

/// The same of a file, piece by piece.
fn hash_of(path: &std::path::Path) -> Option<Sha256Hex> {
    let (mut file, mut hashed) = (std::fs::File::open(path).ok()?, Sha256::new());
    std::io::copy(&mut file, &mut hashed).ok()?;
    Some(Sha256Hex::from_bytes(hashed.finalize().into()))
}

fn proof(app: &App, run: &Run) -> Proof {
    let Some(body) = run.end.as_ref().and_then(|end| end.receipt.as_ref()) else { return Proof::Nothing };
    let manifest = run.files.iter().find(|file| file.path == "manifest.json").and_then(|file| read(&path_of(app, run, file)?, MANIFEST));
    let Some(manifest) = manifest else { return Proof::Receipt };
    if body.manifest_sha256.as_ref() != Some(&hash(&manifest)) {
        return Proof::Differs("manifest.json is not the one that the receipt names".to_owned());
    }
    let Ok(stated) = serde_json::from_slice::<Manifest>(&manifest) else { return Proof::Differs("manifest.json can't be read".to_owned()) };
    compared(&stated.subject, run.files.iter().map(|file| (file.path.as_str(), path_of(app, run, file).and_then(|path| hash_of(&path)))))
}

/// The files that are here, each with its hash where it can be read, against those that are stated. One that is not here is not proved.
fn compared<'a>(stated: &[Subject], files: impl Iterator<Item = (&'a str, Option<Sha256Hex>)>) -> Proof {
    let stated: BTreeMap<&str, Option<&Sha256Hex>> = stated.iter().map(|one| (one.name.as_str(), one.digest.get("sha256"))).collect();
    let mut here = 0;
    for (path, hash) in files {
        let Some(wanted) = stated.get(path) else { continue };
        if hash.is_none() || hash.as_ref() != *wanted {
            return Proof::Differs(format!("{path} is not as the manifest says"));
        }
        here += 1;
    }
    Proof::Fits(here, stated.len())
}

/// `GET /evidence/{request id}`.
pub(super) async fn bundle(State(app): State<Arc<App>>, Extension(who): Extension<Who>, Path(id): Path<String>) -> Response {
    let Some(run) = id.parse::<RequestId>().ok().and_then(|id| Run::find(&app, &id)) else { return nothing() };
    let (captured, others) = run.captured();
    let mut groups: BTreeMap<&str, Vec<&File>> = BTreeMap::new();
    for file in &run.files {
        groups.entry(file.path.split_once('/').map_or("bundle", |(group, _)| group)).or_default().push(file);
    }
    let body = html! {
        p.eyebrow { (capital(run.verb)) ", " (time(run.asked)) " (" (ago(run.asked)) ")" }
        h1 { "Evidence" @if let Some(judged) = &run.judged { ": " (judged.code) } }
        section.card {
            h2 { "Summary" }
            @if let Some(judged) = &run.judged {
                p { (plain(&judged.sentence)) }
                ul.findings { @for finding in &judged.findings { li { b { (finding.code) } " " (plain(&finding.text)) @for path in &finding.evidence { " " (reference(&run, path)) } } } }
                p.advice { @if let Some(verb) = judged.recommend.verb { b { "Advice then: " (verb) ". " } } (plain(&judged.recommend.why)) }
            } @else { p.quiet { "No judgement that the receipt confirms came with it." } }
            p { (captured) " pieces captured" @if !others.is_empty() { ", " (others.len()) " could not be" } "; " (run.files.len()) " files are kept here." }
            (proved(&app, &run))
            div.row {
                a.button.primary href={ "/evidence/" (run.id) "/tar" } download { "Download tar" }
                a.button href={ "/runs/" (run.id) } { "How it went" }
                a.button href={ "/incidents/" (run.incident) } { "The incident" }
            }
        }
        @if !run.screens().is_empty() { section.card { h2 { "Console" } (story::screens(&run)) } }
        @for (group, files) in &groups {
            section.card {
                h2 { (group) }
                ul.rows {
                    @for file in files {
                        li { a.row-link href={ "/evidence/" (run.id) "/" (file.path) } { code { (file.path.split_once('/').map_or(file.path.as_str(), |(_, rest)| rest)) } span.quiet { (size(file.bytes)) } } }
                    }
                }
            }
        }
        @if !others.is_empty() {
            section.card {
                h2 { "Not captured" }
                ul.probes { @for probe in others { li class=(shell::word(&probe.outcome).replace(' ', "-")) { code { (plain(&probe.name)) } " " (shell::word(&probe.outcome)) @if let Some(detail) = &probe.detail { small { (plain(detail)) } } } } }
            }
        }
    };
    shell::html(StatusCode::OK, page("Evidence", "/evidence", Some(&who), &Fresh::default(), &body))
}

/// A path that a finding names: a link where the file is here.
fn reference(run: &Run, path: &str) -> Markup {
    html! {
        @if run.files.iter().any(|file| file.path == path) { a href={ "/evidence/" (run.id) "/" (path) } { code { (path) } } } @else { code { (plain(path)) } }
    }
}

fn proved(app: &App, run: &Run) -> Markup {
    match proof(app, run) {
        Proof::Fits(here, all) if here == all => {
            html! { p.note.good { b { "Proved. " } "The signed receipt names the manifest, the manifest names " (all) " files, and every hash fits." } }
        }
        Proof::Fits(here, all) => html! {
            p.note.warn { b { "Proved in part. " } "Of " (all) " files that the signed manifest names " (here) " are here, and these fit. The others were not kept here: look for the bundle on the host." }
        },
        Proof::Receipt => html! {
            p.note {
                b { "The receipt is valid. " } "The manifest that it names, with every file's hash, is with the bundle on the host. For all of it, signed: "
                @if let Some(bundle) = run.end.as_ref().and_then(|end| end.receipt.as_ref()).and_then(|body| body.bundle.as_ref()) {
                    code { "ssh breakglass@HOST forensics --tar --bundle=" (bundle) }
                }
            }
        },
        Proof::Nothing => {
            html! { p.note.warn { b { "Not proved. " } "No valid receipt came with these files: they are what somebody sent." } }
        }
        Proof::Differs(why) => {
            html! { p.note.bad { b { "It does not fit. " } (plain(&why)) ". Keep the state folder, and fetch the bundle from the host." } }
        }
    }
}

fn nothing() -> Response {
    shell::refusal(
        StatusCode::NOT_FOUND,
        &Message::new("There is no such evidence here.", "Look at the list; the host keeps its own."),
        false,
    )
}

fn found(app: &App, id: &str, path: &str) -> Option<(Run, File, PathBuf)> {
    let run = id.parse::<RequestId>().ok().and_then(|id| Run::find(app, &id))?;
    // Only a path that a line of the log names: what is asked for is compared, never opened.
    let file = run.files.iter().find(|file| file.path == path)?.clone();
    let path = path_of(app, &run, &file)?;
    Some((run, file, path))
}

/// `GET /evidence/{request id}/{*path}`: a file, shown.
pub(super) async fn shown(
    State(app): State<Arc<App>>,
    Extension(who): Extension<Who>,
    Path((id, name)): Path<(String, String)>,
) -> Response {
    if name == "tar" {
        return packed(&app, &id);
    }
    let Some((run, file, path)) = found(&app, &id, &name) else { return nothing() };
    let raw = format!("/artifacts/{}/{}", run.id, file.path);
    let whole = read(&path, SHOWN).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let whole = lines(&if name.ends_with(".json") { pretty(&whole) } else { whole });
    let first = shell::fit(&whole, FIRST + LAST);
    // What is longer is told by its beginning and its end: of a log it is the end that one looks for.
    let both = (first.len() < whole.len() || file.bytes > SHOWN).then(|| {
        let end = if file.bytes > SHOWN { tail(&path, file.bytes).map(|text| lines(&text)) } else { None };
        (shell::fit(&whole, FIRST).to_owned(), shell::fit_end(end.as_deref().unwrap_or(&whole), LAST).to_owned())
    });
    let body = html! {
        p.eyebrow { a href={ "/evidence/" (run.id) } { "Evidence" } " of " (run.verb) ", " (time(run.asked)) }
        h1 { code { (file.path) } }
        section.card {
            @if name.ends_with(".png") { figure { img src=(raw) alt="What the VM's screen showed"; } }
            @else {
                @match &both {
                    None => pre tabindex="0" { (whole) },
                    Some((first, last)) => {
                        pre tabindex="0" { (first) }
                        p.note { "What is between is left out: the whole file, " (size(file.bytes)) ", is the download." }
                        pre tabindex="0" { (last) }
                    },
                }
            }
            p { a.button href=(raw) download { "Download (" (size(file.bytes)) ")" } }
        }
    };
    shell::html(StatusCode::OK, page(&file.path, "/evidence", Some(&who), &Fresh::default(), &body))
}

fn pretty(text: &str) -> String {
    let value = serde_json::from_str::<serde_json::Value>(text);
    value.ok().and_then(|value| serde_json::to_string_pretty(&value).ok()).unwrap_or_else(|| text.to_owned())
}

fn read(path: &std::path::Path, most: u64) -> Option<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path).ok()?.take(most).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// The end of a long file.
fn tail(path: &std::path::Path, bytes: u64) -> Option<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = std::fs::File::open(path).ok()?;
    file.seek(SeekFrom::Start(bytes.saturating_sub(LAST as u64))).ok()?;
    let mut text = Vec::new();
    file.take(LAST as u64).read_to_end(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// `GET /artifacts/{request id}/{*path}`: a file as it is.
pub(super) async fn raw(State(app): State<Arc<App>>, Path((id, name)): Path<(String, String)>) -> Response {
    sent(found(&app, &id, &name).map(|(.., path)| path), &name)
}

/// A file of somebody else's, so that no browser runs anything in it: a picture where it is one, else plain text, and never a page.
pub(super) fn sent(path: Option<PathBuf>, name: &str) -> Response {
    let Some((path, bytes)) = path.and_then(|path| Some((send::length(&path)?, path))).map(|(bytes, path)| (path, bytes)) else {
        return nothing();
    };
    let is_png = name.ends_with(".png") && read(&path, 8).is_some_and(|first| first == b"\x89PNG\r\n\x1a\n");
    let kind = if is_png { "image/png" } else { "text/plain; charset=utf-8" };
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; sandbox")),
        (header::CACHE_CONTROL, HeaderValue::from_static("private, max-age=3600")),
    ];
    (headers, send::all(vec![Piece::File(path, bytes)])).into_response()
}

/// All files of a run, with its receipt.
fn packed(app: &App, id: &str) -> Response {
    let Some(run) = id.parse::<RequestId>().ok().and_then(|id| Run::find(app, &id)) else { return nothing() };
    let name = run
        .end
        .as_ref()
        .and_then(|end| end.receipt.as_ref()?.bundle.as_ref().map(ToString::to_string))
        .unwrap_or_else(|| run.id.to_string());
    let mut pieces = Vec::new();
    let mut put = |path: &str, bytes: u64, piece: Piece| {
        if let Some(head) = tar::head(&format!("{name}/{path}"), bytes, run.asked.unix_ms() / 1000) {
            pieces.extend([Piece::Bytes(head), piece, Piece::Bytes(tar::padding(bytes))]);
        }
    };
    for file in &run.files {
        if let Some((path, bytes)) = path_of(app, &run, file).and_then(|path| Some((path.clone(), send::length(&path)?))) {
            put(&file.path, bytes, Piece::File(path, bytes));
        }
    }
    if let Some(line) = super::receipts::line_of(app, &run.id) {
        put("receipt.ndjson", line.len() as u64, Piece::Bytes(line));
    }
    pieces.push(Piece::Bytes(tar::end()));
    let disposition =
        HeaderValue::try_from(format!("attachment; filename=\"{name}.tar\"")).unwrap_or_else(|_| HeaderValue::from_static("attachment"));
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/x-tar")), (header::CONTENT_DISPOSITION, disposition)], send::all(pieces))
        .into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proved_is_what_is_here_and_as_it_was_stated() {
        let stated = |name: &str| Subject { name: name.to_owned(), digest: [("sha256".to_owned(), hash(name.as_bytes()))].into() };
        let stated = [stated("qmp/a.json"), stated("console/screen-1.png")];
        let here = |name: &'static str| (name, Some(hash(name.as_bytes())));
        let (both, one) = ([here("qmp/a.json"), here("console/screen-1.png"), here("manifest.json")], [here("qmp/a.json")]);
        assert!(matches!(compared(&stated, both.into_iter()), Proof::Fits(2, 2)));
        assert!(matches!(compared(&stated, one.into_iter()), Proof::Fits(1, 2)), "a file that was not kept");
        for bad in [Some(hash(b"another")), None] {
            assert!(matches!(compared(&stated, [("qmp/a.json", bad)].into_iter()), Proof::Differs(_)));
        }
    }
}
