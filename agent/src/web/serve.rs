//! `breakglass serve`: listens, with bounds on everything that a stranger can make it hold.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::ConnectInfo;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use proto::Message;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::app::{App, Parts};
use super::auth::{Door, Settings};
use super::site::Real;
use crate::config::Config;
use crate::hands::Hands;
use crate::host::Ssh;
use crate::incident::Store;

/// Connections at once; who comes then waits until one ends, which an idle one does soon.
const CONNECTIONS: usize = 512;
/// Of these so many of one address that is no proxy's: the rest is for everybody else.
const OF_ONE: usize = 256;
/// A request's head, and the pause between two requests of a connection.
const HEAD: Duration = Duration::from_secs(15);
/// A connection ends after this, whatever goes on in it: event streams resume by themselves.
const LIFE: Duration = Duration::from_secs(30 * 60);
/// After the signal to end.
const LEAVE: Duration = Duration::from_secs(3);

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// It could not begin.
pub fn serve(config: &Config) -> Result<(), Message> {
    let fault = |error: io::Error| Message::new(format!("The page could not begin: {error}."), "Start it again.");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().map_err(fault)?;
    runtime.block_on(async {
        let web = &config.web;
        let settings = Settings {
            proxies: web.proxies.clone(),
            identity_header: web.identity_header.clone(),
            secret_file: web.secret_file.clone(),
            tokens_file: web.tokens_file.clone(),
            basic_file: web.basic_file.clone(),
        };
        let door = Door::open(&settings)?;
        let loopback = web.listen.ip().is_loopback();
        if door.is_only_for_loopback() && !loopback {
            return Err(Message::new(
                format!("web.listen is {}, and nothing in [web] says who may come in.", web.listen),
                "Set identity_header with secret_file, tokens_file or basic_file; or listen on 127.0.0.1.",
            ));
        }
        let store = Store::open(&config.state.dir, config.state.keep_bytes, true)?;
        let ssh = Arc::new(Ssh::open(config)?.told_with(&store));
        ssh.warm();
        let hands: Arc<dyn Hands> = Arc::clone(&ssh) as Arc<dyn Hands>;
        let app = App::new(Parts {
            door,
            loopback,
            hands,
            store,
            claude: config.claude.clone(),
            budget: config.budget,
            state: config.state.dir.clone(),
            signing_key: config.host.as_ref().map(|host| host.signing_key.clone()),
            keyholder: config.ssh.auth_sock.clone(),
            site: Some(Arc::new(Real { ssh, config: config.clone() })),
        })?;
        let listener = TcpListener::bind(web.listen).await.map_err(|error| {
            Message::new(format!("{} can't be listened on: {error}.", web.listen), "Choose another address in [web] listen.")
        })?;
        let at = listener.local_addr().map_err(fault)?;
        tracing::info!(event = "serve", address = %at, model = config.claude.credential().is_ok_and(|key| key.is_some()), "listening");
        if let Some(said) = app.unproven() {
            tracing::warn!(event = "unproven", "{said}");
        }
        if let Some(link) = app.link() {
            // Not on standard output, which the log shipper reads.
            let _nobody_reads = writeln!(io::stderr(), "Open this once: http://{at}/link/{link}");
        }
        if let Some(watch) = &config.watch {
            app.watch(watch)?;
        }
        app.start();
        listen(&app, &listener, crate::runbook::command::stopped()).await;
        Ok(())
    })
}

/// How many connections each address has.
type Seats = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// One of them; given back when it is dropped.
struct Seat(Seats, IpAddr);

impl Seat {
    /// Behind a proxy is everybody: it has no bound but the one of all.
    fn take(seats: &Seats, address: IpAddr, proxy: bool) -> Option<Self> {
        let mut all = seats.lock().unwrap_or_else(PoisonError::into_inner);
        let held = all.entry(address).or_insert(0);
        if *held >= OF_ONE && !proxy {
            return None;
        }
        *held += 1;
        Some(Self(Arc::clone(seats), address))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut held) = all.entry(self.1) {
            *held.get_mut() -= 1;
            if *held.get() == 0 {
                held.remove();
            }
        }
    }
}

/// Takes connections until told to stop.
pub async fn listen(app: &Arc<App>, listener: &TcpListener, stop: impl Future<Output = ()>) {
    let routes = super::routes(app);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let seats = Seats::default();
    let mut all = JoinSet::new();
    tokio::pin!(stop);
    loop {
        let place = tokio::select! {
            () = &mut stop => break,
            Some(_) = all.join_next(), if !all.is_empty() => continue,
            Ok(place) = Arc::clone(&places).acquire_owned() => place,
        };
        let (stream, peer) = tokio::select! {
            () = &mut stop => break,
            taken = listener.accept() => match taken {
                Ok(taken) => taken,
                Err(error) => {
                    // Too many open files: the next try would be the same at once.
                    tracing::warn!(event = "degraded", "no connection could be taken: {error}");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    continue;
                }
            },
        };
        let Some(seat) = Seat::take(&seats, peer.ip().to_canonical(), app.door.is_proxy(peer.ip())) else { continue };
        let routes = routes.clone();
        all.spawn(async move {
            let _in_its_time = tokio::time::timeout(LIFE, connection(stream, peer, routes)).await;
            drop((place, seat));
        });
    }
    // Streams have no end of their own.
    let _in_time = tokio::time::timeout(LEAVE, async { while all.join_next().await.is_some() {} }).await;
}

async fn connection(stream: TcpStream, peer: SocketAddr, routes: axum::Router) {
    let _only_slower = stream.set_nodelay(true);
    let service = TowerToHyperService::new(routes.layer(axum::Extension(ConnectInfo(peer))));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(32 * 1024)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(event = "connection", peer = %peer, "{error}");
    }
}
