//! What a running `fraudline up` shows: a live view on a terminal, a line every few seconds elsewhere.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Style, Stylize};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Block, Paragraph, Row, Table};
use ratatui::{DefaultTerminal, Frame, TerminalOptions, Viewport};
use scorer::worker::Stats;

use super::report::Latency;
use super::watch::Watch;

const LINE_INTERVAL: Duration = Duration::from_secs(5);
const VIEW_INTERVAL: Duration = Duration::from_millis(250);
/// Rows of the live view: two of figures, a header and eight alerts, two frames.
const VIEW_HEIGHT: u16 = 15;

pub(super) struct View {
    terminal: Option<DefaultTerminal>,
    shown: Instant,
    shown_events: u64,
    events_per_second: f64,
}

struct Figures<'a> {
    elapsed: Duration,
    events: u64,
    events_per_second: f64,
    alerts: u64,
    dead_letters: u64,
    latency: Latency,
    lag: u64,
    watch: &'a Watch,
}

impl View {
    pub(super) fn new(url: &str, data_dir: &Path, model: &str, device: &str, resumed_at: u64) -> View {
        println!("model {model} on {device}; {url}; data in {}", data_dir.display());
        if resumed_at > 0 {
            println!("going on behind {resumed_at} transactions");
        }
        let terminal = std::io::stdout().is_terminal().then(|| {
            ratatui::try_init_with_options(TerminalOptions { viewport: Viewport::Inline(VIEW_HEIGHT) })
                .inspect(|_| {
                    // Ctrl-C must stay a signal: drain, then end.
                    let _ = ratatui::crossterm::terminal::disable_raw_mode();
                })
                .inspect_err(|error| tracing::warn!(%error, "no live view"))
                .ok()
        });
        View { terminal: terminal.flatten(), shown: Instant::now(), shown_events: 0, events_per_second: 0.0 }
    }

    /// Shows how things stand, where it is time to.
    pub(super) fn show(&mut self, stats: &Stats, watch: &Watch, lag: u64, elapsed: Duration) {
        let since = self.shown.elapsed();
        let interval = if self.terminal.is_some() { VIEW_INTERVAL } else { LINE_INTERVAL };
        if since < interval {
            return;
        }
        let events = stats.scores.load(Relaxed) + stats.dead_letters.load(Relaxed);
        let rate = (events - self.shown_events) as f64 / since.as_secs_f64();
        // A live figure that can be read: the mean of about the last second.
        let weight = if self.terminal.is_some() && self.shown_events > 0 { 0.3 } else { 1.0 };
        self.events_per_second += weight * (rate - self.events_per_second);
        (self.shown, self.shown_events) = (Instant::now(), events);
        let figures = Figures {
            elapsed,
            events,
            events_per_second: self.events_per_second,
            alerts: stats.alerts.load(Relaxed),
            dead_letters: stats.dead_letters.load(Relaxed),
            latency: Latency::of(stats),
            lag,
            watch,
        };
        match &mut self.terminal {
            Some(terminal) => {
                if let Err(error) = terminal.draw(|frame| draw(frame, &figures)) {
                    tracing::warn!(%error, "the live view ends");
                    self.terminal = None;
                }
            }
            None => println!("{}", line(&figures)),
        }
    }

    /// Gives the terminal back.
    pub(super) fn close(&mut self) {
        if self.terminal.take().is_some() {
            ratatui::restore();
            println!();
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.close();
    }
}

fn line(figures: &Figures<'_>) -> String {
    let Latency { p50, p99, p99_9 } = figures.latency;
    format!(
        "{:>5.0} s  {:>9} events  {:>7.0}/s  p50 {p50:.1} ms  p99 {p99:.1} ms  p99.9 {p99_9:.1} ms  lag {}  {} alerts  {} dead letters",
        figures.elapsed.as_secs_f64(),
        figures.events,
        figures.events_per_second,
        figures.lag,
        figures.alerts,
        figures.dead_letters,
    )
}

fn draw(frame: &mut Frame<'_>, figures: &Figures<'_>) {
    let [top, alerts] = Layout::vertical([Constraint::Length(4), Constraint::Min(0)]).areas(frame.area());
    let Latency { p50, p99, p99_9 } = figures.latency;
    let speed = Line::from(vec![
        format!("{:>9.0} events/s", figures.events_per_second).bold(),
        format!("   {} events in {:.0} s", figures.events, figures.elapsed.as_secs_f64()).into(),
        format!("   lag {}   dead letters {}", figures.lag, figures.dead_letters).into(),
    ]);
    let mut second = vec![format!("event to score p50 {p50:.1} ms  p99 {p99:.1} ms  p99.9 {p99_9:.1} ms").into()];
    if let Some(quality) = figures.watch.quality() {
        let text = format!(
            "   AUC {:.3}  AP {:.3}  precision {:.2}  recall {:.2}",
            quality.auc, quality.average_precision, quality.precision, quality.recall
        );
        second.push(text.into());
    }
    let text = Text::from(vec![speed, Line::from(second)]);
    frame.render_widget(Paragraph::new(text).block(Block::bordered().title(" fraudline ")), top);
    let rows = figures.watch.recent_alerts().map(|alert| {
        Row::new([
            alert.event_time.to_string(),
            alert.card_id.to_string(),
            alert.terminal_id.to_string(),
            format!("{:>10.2}", alert.amount.as_f64()),
            format!("{:.4}", alert.score),
            alert.reasons.iter().map(|reason| reason.text.as_str()).collect::<Vec<_>>().join("; "),
        ])
    });
    let widths = [
        Constraint::Length(25),
        Constraint::Length(12),
        Constraint::Length(12),
        Constraint::Length(10),
        Constraint::Length(8),
        Constraint::Fill(1),
    ];
    let table = Table::new(rows, widths)
        .header(Row::new(["time", "card", "terminal", "amount", "score", "why"]).style(Style::new().bold()))
        .block(Block::bordered().title(format!(" {} alerts ", figures.alerts)));
    frame.render_widget(table, alerts);
}
