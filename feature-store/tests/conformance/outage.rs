//! A store that goes away and comes back, behind a proxy that can be cut.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use feature_store::{
    CqlOptions, CqlStore, OnlineStore, RedisOptions, RedisStore, RemoteOptions, RemoteStore, Retry, StoreError,
};
use futures_executor::block_on;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::services;
use crate::subjects::SENTINEL;
use crate::suite::{checkpoint, following, state, states, unique, watermark};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    Open,
    /// Connections are closed, and so are new ones.
    Cut,
    /// Connections stay, and nothing goes through them.
    Dead,
}

struct Proxy {
    address: SocketAddr,
    line: watch::Sender<Line>,
}

impl Proxy {
    async fn to(target: String, line: Line) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, receiver) = watch::channel(line);
        tokio::spawn(async move {
            while let Ok((mut inward, _)) = listener.accept().await {
                let (target, mut line) = (target.clone(), receiver.clone());
                tokio::spawn(async move {
                    let mut outward = None;
                    loop {
                        let now = *line.borrow_and_update();
                        match now {
                            Line::Cut => return,
                            Line::Dead => line.changed().await.unwrap_or_default(),
                            Line::Open => {
                                if outward.is_none() {
                                    outward = TcpStream::connect(&target).await.ok();
                                }
                                let Some(outward) = &mut outward else { return };
                                tokio::select! {
                                    _ = copy_bidirectional(&mut inward, outward) => return,
                                    _ = line.changed() => {}
                                }
                            }
                        }
                    }
                });
            }
        });
        Proxy { address, line: sender }
    }
}

fn through(options: RedisOptions, proxy: &Proxy, timeout: Duration) -> RedisOptions {
    RedisOptions { urls: vec![format!("redis://{}", proxy.address)], timeout, ..options }
}

fn remote(store: impl OnlineStore + 'static, timeout: Duration, retry: Retry) -> Arc<RemoteStore> {
    let options = RemoteOptions { name: "test", runtime: Handle::current(), timeout, retry };
    Arc::new(RemoteStore::new(Arc::new(store), options))
}

/// An owner on a plain thread: writes checkpoint after checkpoint, each following the last, and
/// reads each back.
fn own(store: Arc<RemoteStore>, view: String, checkpoints: u64) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        for offset in 1..=checkpoints {
            let id = (offset % 10).to_string();
            let written = checkpoint(&view, 0, &[(&id, state(offset - 1, offset.to_string()))], offset);
            let written = if offset == 1 { written } else { following(offset - 1, written) };
            block_on(store.write(&written)).unwrap();
            let read = block_on(store.read(&view, &[&id], &[0])).unwrap();
            assert_eq!(read.states, [Some(state(offset - 1, offset.to_string()))]);
            assert_eq!(read.watermarks, [Some(watermark(offset))]);
        }
    })
}

async fn joined(owner: std::thread::JoinHandle<()>) {
    tokio::task::spawn_blocking(|| owner.join().unwrap()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_waits_for_redis_and_loses_nothing() {
    let Some(options) = services::redis("outage::an_owner_waits_for_redis") else { return };
    let target = options.urls[0].trim_start_matches("redis://").to_owned();
    let proxy = Proxy::to(target, Line::Cut).await;
    let timeout = Duration::from_millis(300);
    // Unreachable from the start.
    let store = RedisStore::new(through(options.clone(), &proxy, timeout)).unwrap();
    let store = remote(store, 2 * timeout, Retry::UntilStopped(Arc::default()));
    let view = unique("outage");
    let owner = own(store, view.clone(), 2000);
    for (line, millis) in [(Line::Cut, 400), (Line::Open, 150), (Line::Dead, 700), (Line::Open, 150), (Line::Cut, 300)]
    {
        proxy.line.send(line).unwrap();
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }
    assert!(!owner.is_finished(), "the owner was done before the last outage");
    proxy.line.send(Line::Open).unwrap();
    joined(owner).await;
    // Directly.
    let store = RedisStore::connect(options).await.unwrap();
    let read = store.read(&view, &["0", "1", "9"], &[0]).await.unwrap();
    let of = |offset: u64| Some(state(offset - 1, offset.to_string()));
    assert_eq!(read.states, [of(2000), of(1991), of(1999)]);
    assert_eq!(read.watermarks, [Some(watermark(2000))]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_waits_for_cassandra_and_loses_nothing() {
    let Some(options) = services::cassandra("outage::an_owner_waits_for_cassandra") else { return };
    // Over the address that the node itself announces the driver would go past the proxy, so here
    // the database is away from the start only.
    let proxy = Proxy::to(options.hosts[0].clone(), Line::Cut).await;
    crate::cql::migrated(&options).await;
    let away = CqlOptions { hosts: vec![proxy.address.to_string()], ..options.clone() };
    let store = CqlStore::new(away).unwrap();
    let store = remote(store, Duration::from_secs(10), Retry::UntilStopped(Arc::default()));
    let view = unique("outage");
    let owner = own(store, view.clone(), 30);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!owner.is_finished());
    proxy.line.send(Line::Open).unwrap();
    joined(owner).await;
    let store = CqlStore::connect(options).await.unwrap();
    assert_eq!(store.watermark(&view, 0).await.unwrap(), Some(watermark(30)));
    assert_eq!(states(&store, &view, &["0", "9"]).await, [Some(state(29, "30")), Some(state(28, "29"))]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_owner_and_a_lookup_give_up() {
    let Some(options) = services::redis("outage::a_stopped_owner_and_a_lookup_give_up") else { return };
    let proxy = Proxy::to(options.urls[0].trim_start_matches("redis://").to_owned(), Line::Cut).await;
    let timeout = Duration::from_millis(300);
    let store = || RedisStore::new(through(options.clone(), &proxy, timeout)).unwrap();
    for line in [Line::Cut, Line::Dead] {
        proxy.line.send(line).unwrap();
        let lookup = remote(store(), timeout, Retry::Bounded { attempts: 2 });
        let began = Instant::now();
        let error = lookup.read("v", &["a"], &[]).await.unwrap_err();
        assert!(matches!(&error, StoreError::Unavailable(_)), "{error}");
        assert!(began.elapsed() < Duration::from_secs(3));
        let stopped = Arc::new(AtomicBool::new(false));
        let owner = remote(store(), timeout, Retry::UntilStopped(stopped.clone()));
        let waiting = std::thread::spawn(move || block_on(owner.read("v", &["a"], &[])));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!waiting.is_finished());
        stopped.store(true, Ordering::Relaxed);
        let given_up = tokio::task::spawn_blocking(|| waiting.join().unwrap()).await.unwrap();
        assert!(matches!(given_up, Err(StoreError::Unavailable(_))));
    }
    // The address and the cause are named.
    proxy.line.send(Line::Cut).unwrap();
    let error = store().read("v", &["a"], &[]).await.unwrap_err();
    assert!(error.to_string().contains(&proxy.address.to_string()), "{error}");
    // A caller who is less patient than the store finds the line once it is back, too.
    let long = RedisStore::new(through(options.clone(), &proxy, Duration::from_secs(600))).unwrap();
    proxy.line.send(Line::Open).unwrap();
    long.read("v", &["a"], &[]).await.unwrap();
    proxy.line.send(Line::Dead).unwrap();
    let impatient = remote(long, timeout, Retry::Bounded { attempts: 1 });
    impatient.read("v", &["a"], &[]).await.unwrap_err();
    // What was on its way then is lost, and so is its connection.
    proxy.line.send(Line::Cut).unwrap();
    tokio::time::sleep(timeout).await;
    proxy.line.send(Line::Open).unwrap();
    impatient.read("v", &["a"], &[]).await.unwrap();
    // Nothing asked, nothing sent.
    store().read("v", &[], &[]).await.unwrap();
}

/// A failover may lose what the old master had acknowledged and not yet replicated: then it is
/// noticed. Otherwise the owner goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_goes_on_after_a_failover() {
    let Some(options) = services::redis_sentinel("outage::an_owner_goes_on_after_a_failover") else { return };
    let _alone = SENTINEL.write().await;
    let timeout = Duration::from_secs(1);
    let store = RedisStore::new(RedisOptions { timeout, ..options.clone() }).unwrap();
    let store = remote(store, timeout, Retry::UntilStopped(Arc::default()));
    let sentinel = redis::Client::open(options.urls[0].clone()).unwrap();
    let mut sentinel = sentinel.get_multiplexed_async_connection().await.unwrap();
    let mut command = async |name: &str| {
        let mut command = redis::cmd("SENTINEL");
        command.arg(name).arg("fraudline");
        command.query_async::<redis::Value>(&mut sentinel).await
    };
    let before = command("GET-MASTER-ADDR-BY-NAME").await.unwrap();
    let view = unique("failover");
    let (mut offset, deadline) = (0, Instant::now() + Duration::from_secs(60));
    let mut next = async || {
        offset += 1;
        let written = checkpoint(&view, 0, &[("a", state(offset - 1, offset.to_string()))], offset);
        let written = if offset == 1 { written } else { following(offset - 1, written) };
        match store.write(&written).await {
            Ok(()) => offset,
            // Started anew, as an owner would.
            Err(StoreError::WentBack { .. }) => {
                eprintln!("the failover lost writes, and it was noticed");
                store
                    .write(&checkpoint(&view, 0, &[("a", state(offset - 1, offset.to_string()))], offset))
                    .await
                    .unwrap();
                offset
            }
            Err(error) => panic!("{error}"),
        }
    };
    next().await;
    // Another failover may just have been: then there is no replica to go to yet.
    while let Err(error) = command("FAILOVER").await {
        assert!(Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    while command("GET-MASTER-ADDR-BY-NAME").await.unwrap() == before {
        assert!(Instant::now() < deadline);
        next().await;
    }
    let mut last = 0;
    for _ in 0..200 {
        last = next().await;
    }
    let read = store.read(&view, &["a"], &[0]).await.unwrap();
    assert_eq!(read.states, [Some(state(last - 1, last.to_string()))]);
    assert_eq!(read.watermarks, [Some(watermark(last))]);
}
