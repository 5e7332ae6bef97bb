//! `fraudline model compare`: what the challenger says beside what the champion said.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use models::{Comparison, Pair, Quality, Shift};
use schemas::{EventTime, Id, Label, topics};
use scorer::log::{Log, TopicPartition};
use serde::{Deserialize, Serialize};

use crate::features::history::{read_all, read_partition};
use crate::features::{LogArgs, OpenLog};
use crate::progress::Progress;
use crate::report;

#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    #[command(flatten)]
    log: LogArgs,
    /// Topic of the scores that decided
    #[arg(long, value_name = "TOPIC", default_value = topics::SCORES)]
    champion: String,
    /// Topic of the scores that are compared with them: the challenger's, or what `fraudline replay` wrote
    #[arg(long, value_name = "TOPIC", default_value = topics::CHALLENGER_SCORES)]
    challenger: String,
    /// Only transactions since then, as in 2018-07-01T00:00:00Z
    #[arg(long, value_name = "TIME")]
    from: Option<EventTime>,
    /// Only transactions before then
    #[arg(long, value_name = "TIME")]
    until: Option<EventTime>,
    /// A transaction that is so much older than the newest label and has none is no fraud
    #[arg(long, default_value = "7d", value_parser = humantime::parse_duration)]
    label_delay: Duration,
    /// Write the figures to this file
    #[arg(long, value_name = "FILE.json")]
    report: Option<PathBuf>,
}

/// The figures; one comparison for each two models that scored the same transactions.
#[derive(Debug, Serialize)]
struct Report {
    comparisons: Vec<Compared>,
    /// Scores of the challenger whose transactions have none of the champion.
    unmatched: u64,
}

#[derive(Debug, Serialize)]
struct Compared {
    champion: Id,
    challenger: Id,
    /// Share of the transactions on which both decide alike.
    agreement: f64,
    #[serde(flatten)]
    comparison: Comparison,
}

/// What of a score is compared.
#[derive(Deserialize)]
struct ScoreLine {
    transaction_id: Id,
    event_time: EventTime,
    score: f32,
    alert: bool,
    model: Id,
    source: schemas::SourcePosition,
}

pub(super) fn compare(args: &CompareArgs) -> anyhow::Result<()> {
    let OpenLog { log, .. } = args.log.open(None)?;
    let labels = Labels::read(&*log, args.label_delay)?;
    let (mut pairs, mut unmatched) = (BTreeMap::<(Id, Id), Vec<Pair>>::new(), 0);
    let (champion, challenger) = (log.topic(&args.champion)?.offsets, log.topic(&args.challenger)?.offsets);
    anyhow::ensure!(
        champion.len() == challenger.len(),
        "`{}` has {} partitions and `{}` has {}: they are not of one log",
        args.champion,
        champion.len(),
        args.challenger,
        challenger.len()
    );
    let total = champion.iter().chain(&challenger).map(|kept| kept.end - kept.start).sum();
    let progress = Progress::new(total, "records");
    let mut read = 0;
    // Both are keyed by the card, so what belongs together is in partitions of the same number.
    for partition in 0..champion.len() as u32 {
        let of = |topic: &str| TopicPartition { topic: topic.to_owned(), partition };
        let mut said: HashMap<(u32, u64), ScoreLine> = HashMap::new();
        let mut each = |topic: &str, line: &mut dyn FnMut(ScoreLine)| {
            read_partition(&*log, &of(topic), |record| {
                let score: ScoreLine = serde_json::from_slice(&record.value)
                    .with_context(|| format!("{}, offset {}, is no score", of(topic), record.offset))?;
                let wanted = args.from.is_none_or(|from| score.event_time >= from)
                    && args.until.is_none_or(|until| score.event_time < until);
                if wanted {
                    line(score);
                }
                read += 1;
                progress.set(read);
                Ok(())
            })
        };
        // A repeat of at-least-once delivery is dropped: the first one counts.
        each(&args.challenger, &mut |score| {
            said.entry((score.source.partition, score.source.offset)).or_insert(score);
        })?;
        each(&args.champion, &mut |score| {
            let Some(challenger) = said.remove(&(score.source.partition, score.source.offset)) else { return };
            let pair = Pair {
                champion: score.score,
                challenger: challenger.score,
                champion_alerts: score.alert,
                challenger_alerts: challenger.alert,
                fraud: labels.of(&score),
            };
            pairs.entry((score.model, challenger.model)).or_default().push(pair);
        })?;
        unmatched += said.len() as u64;
    }
    progress.finish();
    let compared = pairs.into_iter().filter_map(|((champion, challenger), pairs)| {
        let comparison = models::compare(&pairs)?;
        Some(Compared { champion, challenger, agreement: comparison.decisions.agreement(), comparison })
    });
    let report = Report { comparisons: compared.collect(), unmatched };
    anyhow::ensure!(
        !report.comparisons.is_empty(),
        "`{}` and `{}` hold no scores of the same transactions: let scorers follow a challenger (`model.challenger`), or write \
         some with `fraudline replay`",
        args.champion,
        args.challenger
    );
    report.print();
    report::write(&report, args.report.as_deref())
}

/// What is known to be a fraud, and since when all else is known not to be.
struct Labels {
    frauds: HashMap<Id, bool>,
    settled: Option<EventTime>,
}

impl Labels {
    fn read(log: &dyn Log, delay: Duration) -> anyhow::Result<Labels> {
        let mut latest: HashMap<Id, (EventTime, bool)> = HashMap::new();
        let mut newest = None;
        read_all(log, topics::LABELS, |record| {
            let Ok(label) = Label::from_json(&record.value) else { return };
            newest = newest.max(Some(label.label_time));
            let known = latest.entry(label.transaction_id).or_insert((label.label_time, label.fraud));
            if label.label_time >= known.0 {
                *known = (label.label_time, label.fraud);
            }
        })?;
        let frauds = latest.into_iter().map(|(id, (_, fraud))| (id, fraud)).collect();
        Ok(Labels { frauds, settled: newest.map(|newest| newest - delay) })
    }

    fn of(&self, score: &ScoreLine) -> Option<bool> {
        let labelled = self.frauds.get(&score.transaction_id).copied();
        labelled.or_else(|| self.settled.is_some_and(|settled| score.event_time <= settled).then_some(false))
    }
}

impl Report {
    fn print(&self) {
        for Compared { champion, challenger, agreement, comparison } in &self.comparisons {
            let Comparison { transactions, decisions, rank_correlation, score_shift, shift, labelled } = comparison;
            println!("{champion} and its challenger {challenger}, {transactions} transactions");
            println!(
                "same decision      {:.3} %   (alerts of both {}, of the champion alone {}, of the challenger alone {})",
                100.0 * agreement,
                decisions.both,
                decisions.champion_only,
                decisions.challenger_only
            );
            match rank_correlation {
                Some(correlation) => println!("rank correlation   {correlation:.4}"),
                None => println!("rank correlation   none: a model scored all the same"),
            }
            let band = match shift {
                Shift::None => "no shift",
                Shift::Moderate => "a moderate shift: look whether the threshold still fits",
                Shift::Large => "a large shift: another threshold is due",
            };
            println!("score shift (PSI)  {score_shift:.4}   {band}");
            let Some(labelled) = labelled else {
                println!("labels             too few yet");
                continue;
            };
            println!("labels             {} transactions, {} frauds", labelled.transactions, labelled.frauds);
            for (role, quality) in [("champion", &labelled.champion), ("challenger", &labelled.challenger)] {
                let Quality { average_precision, auc, precision, recall } = quality;
                println!(
                    "  {role:<16} average precision {average_precision:.4}   AUC {auc:.4}   precision {precision:.3}   recall {recall:.3}"
                );
            }
        }
        if self.unmatched > 0 {
            println!("{} scores of the challenger have none of the champion beside them", self.unmatched);
        }
    }
}
