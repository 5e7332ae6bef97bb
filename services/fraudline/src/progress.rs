//! How far a command has come: a bar on a terminal, a line every five seconds elsewhere; both on stderr.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};

/// Seconds between two lines.
const LINES_S: u64 = 5;

#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    length: u64,
    unit: &'static str,
    started: Instant,
    /// When the next line is due, in seconds.
    due_s: AtomicU64,
}

impl Progress {
    /// `length`, in `unit`s, may be an estimate; zero if there is none.
    pub(crate) fn new(length: u64, unit: &'static str) -> Progress {
        let template = format!("{{bar:40}} {{human_pos}}/{{human_len}} {unit} {{per_sec}} {{msg}}");
        let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(length).with_style(style);
        Progress { bar, length, unit, started: Instant::now(), due_s: AtomicU64::new(LINES_S) }
    }

    pub(crate) fn set(&self, position: u64) {
        self.bar.set_position(position);
        let seconds = self.started.elapsed().as_secs();
        if self.bar.is_hidden() && seconds >= self.due_s.load(Relaxed) {
            self.due_s.store(seconds + LINES_S, Relaxed);
            let of = if self.length > 0 { format!(" of {}", self.length) } else { String::new() };
            eprintln!("{seconds:>5} s  {position}{of} {}, {}/s", self.unit, position / seconds.max(1));
        }
    }

    /// One more is done; any thread may say so.
    pub(crate) fn advance(&self) {
        self.bar.inc(1);
        self.set(self.bar.position());
    }

    /// Says how it goes, beside the bar.
    pub(crate) fn say(&self, message: &str) {
        self.bar.set_message(message.to_owned());
    }

    /// Prints a line of results, above the bar if there is one.
    pub(crate) fn line(&self, line: &str) {
        if self.bar.is_hidden() { println!("{line}") } else { self.bar.println(line) }
    }

    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
