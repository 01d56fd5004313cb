//! Serves the ssh-agent protocol: two requests of it, in frames of bounded size, to a bounded number of callers, each with deadlines.
//!
//! The library's own server reads frames up to 4 GiB and any number of callers, so its messages are used and its loop is not.

use std::collections::VecDeque;
use std::time::Duration;

use proto::escape_cut;
use ssh_agent_lib::proto::message::{Identity, Request, Response, SignRequest};
use ssh_agent_lib::ssh_encoding::{Decode, Encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;
use tracing::{info, warn};

use super::keys::Ring;
use super::meant;

/// A login to be signed has less than 1 KiB.
const MAX_FRAME: usize = 16 * 1024;
/// Callers at once. The newest is served: when they are more, the one that has been there longest goes.
const MAX_CALLERS: usize = 32;
/// How long a caller may be silent between two requests.
const IDLE: Duration = Duration::from_secs(60);
/// How long a request may take to come, and its answer to be taken.
const FRAME: Duration = Duration::from_secs(5);

/// Who is at the other end, as the kernel says it.
#[derive(Clone, Copy, Debug)]
struct Peer {
    pid: i32,
    uid: u32,
    gid: u32,
}

/// Serves until it is dropped.
pub(super) async fn serve(listener: &UnixListener, ring: &Ring) {
    let mut callers: VecDeque<tokio::sync::oneshot::Sender<()>> = VecDeque::new();
    let mut running = futures_util::stream::FuturesUnordered::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    callers.retain(|caller| !caller.is_closed());
                    if callers.len() >= MAX_CALLERS {
                        callers.pop_front();
                    }
                    let (keep, gone) = tokio::sync::oneshot::channel::<()>();
                    callers.push_back(keep);
                    running.push(async move { tokio::select! { () = caller(stream, ring) => {} _ = gone => {} } });
                }
                // No descriptor is free, or the like: it passes, and a loop that ran hot would not help.
                Err(error) => {
                    warn!(event = "keyholder", "a caller was not accepted: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(()) = futures_util::StreamExt::next(&mut running) => {}
        }
    }
}

/// One caller, until it goes, is refused, or is too slow.
async fn caller(mut stream: UnixStream, ring: &Ring) {
    let Ok(credentials) = stream.peer_cred() else { return };
    let peer = Peer { pid: credentials.pid().unwrap_or(0), uid: credentials.uid(), gid: credentials.gid() };
    while let Some(frame) = read(&mut stream, peer).await {
        let (response, go_on) = answer(&frame, peer, ring);
        let mut bytes = vec![0; 4];
        if response.encode(&mut bytes).is_err() {
            return;
        }
        let length = u32::try_from(bytes.len() - 4).unwrap_or_default();
        bytes[..4].copy_from_slice(&length.to_be_bytes());
        if !matches!(timeout(FRAME, stream.write_all(&bytes)).await, Ok(Ok(()))) || !go_on {
            return;
        }
    }
}

/// The next frame, without its length; none at the end, and where it is too long or too slow.
async fn read(stream: &mut UnixStream, peer: Peer) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    timeout(IDLE, stream.read_exact(&mut length[..1])).await.ok()?.ok()?;
    let frame = timeout(FRAME, async {
        stream.read_exact(&mut length[1..]).await.ok()?;
        let length = usize::try_from(u32::from_be_bytes(length)).ok()?;
        if length == 0 || length > MAX_FRAME {
            refused(peer, &format!("a frame of {length} bytes"));
            return None;
        }
        let mut frame = vec![0; length];
        stream.read_exact(&mut frame).await.ok()?;
        Some(frame)
    });
    frame.await.ok()?
}

/// The answer to a frame, and whether the caller may go on.
fn answer(frame: &[u8], peer: Peer, ring: &Ring) -> (Response, bool) {
    match frame.split_first() {
        Some((11, [])) => {
            let identity = |key: &super::keys::Key| Identity { credential: key.public().clone().into(), comment: key.name().to_owned() };
            (Response::IdentitiesAnswer(ring.all().iter().map(|key| identity(key)).collect()), true)
        }
        Some((13, _)) => match sign(frame, peer, ring) {
            Ok(response) => (response, true),
            Err(why) => {
                refused(peer, &why);
                (Response::Failure, false)
            }
        },
        // Stock ssh binds the agent to its session first and goes on without: the keys are not forwarded anywhere.
        Some((27, _)) => (Response::Failure, true),
        // By its number alone: what is refused is not decoded.
        Some((kind, _)) => {
            refused(peer, request(*kind));
            (Response::Failure, false)
        }
        None => (Response::Failure, false),
    }
}

/// The signature of a login.
fn sign(frame: &[u8], peer: Peer, ring: &Ring) -> Result<Response, String> {
    let Ok(Request::SignRequest(SignRequest { credential, data, .. })) = Request::decode(&mut &frame[..]) else {
        return Err("a damaged request".to_owned());
    };
    let key = ring.of(credential.key_data()).ok_or("a signature with a key that is not here")?;
    let login = meant::login(&data, key.public())?;
    let signature = key.sign(&data).ok_or("a signature that could not be made")?;
    info!(
        event = "signed",
        key = key.fingerprint(),
        name = escape_cut(key.name().as_bytes(), 120),
        user = login.user,
        session = login.session,
        host_key = login.host,
        pid = peer.pid,
        uid = peer.uid,
        gid = peer.gid,
        "a login"
    );
    Ok(Response::SignResponse(signature))
}

fn refused(peer: Peer, what: &str) {
    warn!(event = "refused", pid = peer.pid, uid = peer.uid, gid = peer.gid, "{what}");
}

/// What a request would have been.
const fn request(kind: u8) -> &'static str {
    match kind {
        11 => "a damaged request",
        17 | 25 => "to add a key",
        18 | 19 => "to remove keys",
        20 | 21 | 26 => "to use a token",
        22 | 23 => "to lock or unlock",
        _ => "an unknown request",
    }
}

/// For `agent/fuzz`: the answer to a frame, and the data of its signature where it is one.
#[cfg(fuzzing)]
pub(super) fn answered(frame: &[u8], ring: &Ring) -> (bool, Option<Vec<u8>>) {
    let (response, _) = answer(frame, Peer { pid: 1, uid: 0, gid: 0 }, ring);
    let signed = matches!(response, Response::SignResponse(_));
    let data = match Request::decode(&mut &frame[..]) {
        Ok(Request::SignRequest(SignRequest { data, .. })) if signed => Some(data.into()),
        _ => None,
    };
    (signed, data)
}
