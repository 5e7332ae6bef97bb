//! A model thread that follows the aliases of a registry: a watcher notices a move, opens the model and warms it up
//! beside the thread that scores, and hands it over between two batches.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use metrics::{Counter, Gauge, counter, gauge};

use crate::{
    Alias, Aliases, Artifact, ModelError, ModelThread, Promotion, Registry, ServeOptions,
    error::panic_message,
    metric_names,
    registry::refused,
    serve::{Handover, ModelInfo, Served},
    watchdog::Watchdog,
};

/// A version that was refused is tried again after this long, and then after twice as long each time: an object store may
/// show an alias before it shows the files.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Which models a [`ModelThread`] follows.
#[derive(Clone, Debug)]
pub struct Follow {
    pub registry: Registry,
    pub name: String,
    /// Whose version decides.
    pub alias: String,
    /// Whose version, if there is one, scores the same rows beside it.
    pub challenger: Option<String>,
    /// How often the aliases are looked at.
    pub poll_interval: Duration,
}

/// Somebody who waits until the registry was looked at.
pub(crate) type Asker = Sender<Result<(), ModelError>>;

/// How a model thread asks its watcher.
#[derive(Clone)]
pub(crate) struct Watched {
    asked: Sender<Asker>,
    follow: Arc<Follow>,
}

impl Watched {
    /// Has the registry looked at now; returns once that has been done, and what it gave has been handed over.
    pub(crate) fn refresh(&self, timeout: Duration) -> Result<(), ModelError> {
        let away =
            || ModelError::RegistryAway { path: self.follow.registry.root().to_owned(), waited_s: timeout.as_secs() };
        let (asker, answer) = bounded(1);
        self.asked.send(asker).map_err(|_| away())?;
        answer.recv_timeout(timeout).unwrap_or_else(|_| Err(away()))
    }
}

impl ModelThread {
    /// Starts the thread on the version that the alias stands at, as [`ModelThread::start`] does, and goes along with every
    /// move of it. A version that can't serve is refused: that is logged and counted, and the one before it goes on.
    pub fn follow(follow: Follow, options: &ServeOptions) -> Result<ModelThread, ModelError> {
        let aliases = follow.registry.aliases(&follow.name)?;
        let alias = follow.registry.alias(&aliases, &follow.name, &follow.alias)?;
        let artifact = follow.registry.load(&follow.name, &alias.version)?;
        let promotion = promotion(&follow, &follow.alias, &alias);
        let (thread, handover) = ModelThread::launch(artifact, Some(promotion), options)?;
        let (asked, asks) = unbounded();
        let follow = Arc::new(follow);
        let champion = Slot::new("champion", Some(alias.clone()));
        champion.metrics.generation.set(alias.generation as f64);
        let mut watcher = Watcher {
            follow: follow.clone(),
            watchdog: handover.shared().watchdog().clone(),
            handover,
            champion,
            challenger: Slot::new("challenger", None),
            reachable: true,
            up: gauge!(metric_names::REGISTRY_UP),
        };
        // A challenger that can't shadow keeps nobody from serving.
        let _ = watcher.look(true);
        thread::Builder::new().name("model watcher".into()).spawn(move || watcher.run(&asks)).map_err(|error| {
            refused(follow.registry.root(), format!("can't be watched ({error})"), "free some memory")
        })?;
        Ok(thread.watched(Watched { asked, follow }))
    }
}

fn promotion(follow: &Follow, alias: &str, at: &Alias) -> Promotion {
    Promotion { alias: format!("{}@{alias}", follow.name), generation: at.generation }
}

struct Watcher {
    follow: Arc<Follow>,
    watchdog: Watchdog,
    handover: Handover,
    champion: Slot,
    challenger: Slot,
    /// Whether the registry gave where the champion's alias stands when it was looked at last.
    reachable: bool,
    up: Gauge,
}

/// What an alias came to here.
struct Slot {
    role: &'static str,
    /// What was handed over last.
    serving: Option<Alias>,
    refusal: Option<Refusal>,
    metrics: SlotMetrics,
}

struct SlotMetrics {
    swaps: Counter,
    refusals: Counter,
    generation: Gauge,
}

/// Where the alias stands, but can't be followed to.
struct Refusal {
    alias: Alias,
    retry: Duration,
    due: Instant,
}

impl Slot {
    fn new(role: &'static str, serving: Option<Alias>) -> Slot {
        let metrics = SlotMetrics {
            swaps: counter!(metric_names::SWAPS, "role" => role),
            refusals: counter!(metric_names::REFUSALS, "role" => role),
            generation: gauge!(metric_names::GENERATION, "role" => role),
        };
        Slot { role, serving, refusal: None, metrics }
    }

    /// Where the alias stands, if it has to be followed there now. `asked`: somebody waits for it.
    fn due<'a>(&self, at: Option<&'a Alias>, asked: bool) -> Option<&'a Alias> {
        let at = at.filter(|at| self.serving.as_ref() != Some(at))?;
        let refused = self.refusal.as_ref().filter(|refusal| refusal.alias == *at);
        (asked || refused.is_none_or(|refusal| refusal.due <= Instant::now())).then_some(at)
    }

    fn swapped(&mut self, at: &Alias) {
        self.serving = Some(at.clone());
        self.refusal = None;
        self.metrics.swaps.increment(1);
        self.metrics.generation.set(at.generation as f64);
    }

    fn refuse(&mut self, at: &Alias, error: &ModelError) {
        let known = self.refusal.as_ref().filter(|refusal| refusal.alias == *at);
        let retry = known.map_or(RETRY, |known| (known.retry * 2).min(RETRY_MAX));
        if known.is_none() {
            self.metrics.refusals.increment(1);
            let serving = self.serving.as_ref().map_or("none", |serving| serving.version.as_str());
            tracing::error!(role = self.role, version = at.version, serving, %error, "a version is refused, the old one goes on");
        }
        self.refusal = Some(Refusal { alias: at.clone(), retry, due: Instant::now() + retry });
    }
}

impl Watcher {
    /// Looks at the aliases now and then, and when it is asked to, until the last handle of the thread is dropped.
    fn run(mut self, asks: &Receiver<Asker>) {
        let poll_interval = self.follow.poll_interval;
        loop {
            match asks.recv_timeout(poll_interval) {
                Ok(asker) => {
                    let _ = asker.send(self.look(true));
                }
                Err(RecvTimeoutError::Timeout) => drop(self.look(false)),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Follows the aliases to where they stand. Fails where the champion's can't be followed.
    fn look(&mut self, asked: bool) -> Result<(), ModelError> {
        let Follow { registry, name, alias, .. } = &*self.follow;
        let read = registry.aliases(name).and_then(|all| registry.alias(&all, name, alias).map(|at| (all, at)));
        self.up.set(if read.is_ok() { 1.0 } else { 0.0 });
        let reachable = std::mem::replace(&mut self.reachable, read.is_ok());
        let (aliases, at) = read.inspect_err(|error| {
            if reachable {
                tracing::warn!(%error, "the registry tells of no champion, the model stays");
            }
        })?;
        self.look_at_challenger(&aliases, asked);
        let Some(at) = self.champion.due(Some(&at), asked) else { return Ok(()) };
        // A registry that was restored from an old copy: scores would go back to an older model.
        if let Some(serving) = self.champion.serving.as_ref().filter(|serving| serving.generation >= at.generation) {
            let problem = format!("stands at generation {}, and {} serves already", at.generation, serving.generation);
            let error = refused(self.follow.registry.root(), problem, "promote the version that is to serve once more");
            self.champion.refuse(at, &error);
            return Err(error);
        }
        match self.open(&self.follow.alias, at) {
            Ok(served) => {
                self.handover.champion(served);
                self.champion.swapped(at);
                tracing::info!(version = at.version, generation = at.generation, "the champion was swapped");
                Ok(())
            }
            Err(error) => {
                self.champion.refuse(at, &error);
                Err(error)
            }
        }
    }

    fn look_at_challenger(&mut self, aliases: &Aliases, asked: bool) {
        let Some(challenger) = self.follow.challenger.clone() else { return };
        let at = aliases.get(&challenger);
        if at.is_none() && self.challenger.serving.take().is_some() {
            self.handover.challenger(None);
            self.challenger.metrics.generation.set(0.0);
            tracing::info!("the challenger's alias was taken away");
        }
        let Some(at) = self.challenger.due(at, asked) else { return };
        match self.open(&challenger, at) {
            Ok(served) => {
                self.handover.challenger(Some(served));
                self.challenger.swapped(at);
                tracing::info!(version = at.version, generation = at.generation, "the challenger was swapped");
            }
            Err(error) => self.challenger.refuse(at, &error),
        }
    }

    /// Loads a version, and opens it on the device, warm. Refuses another layout than the one that is served (I4).
    fn open(&self, alias: &str, at: &Alias) -> Result<Served, ModelError> {
        let artifact: Artifact = self.follow.registry.load(&self.follow.name, &at.version)?;
        artifact.layout().accept(self.handover.shared().layout()).map_err(|error| {
            let problem = format!("{} can't be served: {error}", artifact.label());
            refused(self.follow.registry.root(), problem, "promote a version of the served layout")
        })?;
        let model = ModelInfo::new(&artifact, Some(promotion(&self.follow, alias, at)));
        let opened = catch_unwind(AssertUnwindSafe(|| Served::open(&artifact, model, &self.watchdog)));
        let opened = opened.unwrap_or_else(|panic| {
            Err(ModelError::Device { device: self.watchdog.asked().to_string(), problem: panic_message(&*panic) })
        });
        opened.map(|(served, _)| served)
    }
}

#[cfg(test)]
mod tests;
