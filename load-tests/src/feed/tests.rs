use proptest::prelude::*;

use super::*;
use crate::write_parquet;

fn options() -> SimulatorOptions {
    SimulatorOptions { customers: 60, terminals: 100, radius: 20.0, days: Some(14), ..Default::default() }
}

fn feed(delay: &ChargebackDelay) -> Feed {
    Feed::simulated(options(), delay.clone())
}

/// Everything left in the feed, cut into chunks of these sizes in turn.
fn drain(feed: &mut Feed, sizes: &[usize]) -> FeedChunk {
    let mut all = FeedChunk::default();
    for size in sizes.iter().cycle() {
        let Some(chunk) = feed.next_chunk(*size).expect("a simulation has no errors") else { break };
        assert!((1..=*size).contains(&chunk.transactions.len()));
        let last = chunk.transactions.last().expect("a chunk has transactions").transaction.event_time;
        assert!(chunk.labels.iter().all(|label| label.label_time <= last));
        all.transactions.extend(chunk.transactions);
        all.labels.extend(chunk.labels);
    }
    all
}

fn delays() -> impl Strategy<Value = ChargebackDelay> {
    let hours = |hours| Duration::from_secs(3600 * hours);
    (0..80_u64, 0..120_u64, any::<u64>()).prop_map(move |(min, span, seed)| ChargebackDelay {
        min: hours(min),
        max: hours(min + span),
        seed,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// However the feed is cut, and wherever it is taken up again, the same labels come out in
    /// the same order.
    #[test]
    fn labels_depend_on_the_transactions_fed_alone(
        delay in delays(),
        sizes in prop::collection::vec(prop_oneof![1..10_usize, 1..2_000_usize], 1..6),
        skipped in 0.0..=1.0_f64,
    ) {
        let mut in_one_go = feed(&delay);
        let whole = in_one_go.next_chunk(usize::MAX).expect("no error").expect("two weeks have rows");
        prop_assert!(whole.transactions.len() > 1_000 && whole.labels.len() + in_one_go.pending_labels() > 50);

        let mut cut = feed(&delay);
        prop_assert_eq!(&drain(&mut cut, &sizes), &whole);

        let skipped = (skipped * whole.transactions.len() as f64) as usize;
        let mut resumed = feed(&delay);
        let released = resumed.skip(skipped as u64).expect("the source has as many") as usize;
        prop_assert_eq!(resumed.fed(), skipped as u64);
        let rest = drain(&mut resumed, &sizes);
        prop_assert_eq!(&rest.transactions[..], &whole.transactions[skipped..]);
        prop_assert_eq!(&rest.labels[..], &whole.labels[released..]);

        for other in [&cut, &resumed] {
            prop_assert_eq!(other.pending_labels(), in_one_go.pending_labels());
            prop_assert_eq!(other.fraud_ids(), in_one_go.fraud_ids());
            prop_assert_eq!(other.fed(), in_one_go.fed());
        }
    }
}

#[test]
fn every_fraud_gets_one_label_when_it_is_due() {
    let delay = ChargebackDelay::default();
    let mut feed = feed(&delay);
    let FeedChunk { transactions, labels } = drain(&mut feed, &[100]);
    let last = transactions.last().expect("rows").transaction.event_time;
    let mut due: Vec<Label> = Vec::new();
    let mut pending = 0;
    let mut frauds = HashSet::new();
    for Labelled { transaction, .. } in transactions.into_iter().filter(|row| row.fraud) {
        let label_time = transaction.event_time + delay.of(&transaction.transaction_id);
        frauds.insert(transaction.transaction_id.clone());
        if label_time > last {
            pending += 1;
            continue;
        }
        due.push(Label {
            transaction_id: transaction.transaction_id,
            card_id: transaction.card_id,
            terminal_id: transaction.terminal_id,
            transaction_time: transaction.event_time,
            label_time,
            fraud: true,
        });
    }
    due.sort_by(|a, b| (a.label_time, &a.transaction_id).cmp(&(b.label_time, &b.transaction_id)));
    assert!(due.len() > 50 && pending > 10, "{} {pending}", due.len());
    assert_eq!(labels, due);
    assert_eq!(feed.pending_labels(), pending);
    assert_eq!(feed.fraud_ids(), &frauds);
}

#[test]
fn delays_are_uniform_and_a_function_of_seed_and_id() {
    let day = Duration::from_secs(86_400);
    let delay = ChargebackDelay { min: day, max: 4 * day, seed: 1 };
    let mut days = [0_u32; 3];
    for id in 0..30_000 {
        let of = delay.of(&id.to_string());
        assert!((day..4 * day).contains(&of));
        days[(of.as_secs() / 86_400) as usize - 1] += 1;
    }
    // Five standard deviations around 10,000.
    assert!(days.iter().all(|count| count.abs_diff(10_000) < 410), "{days:?}");
    // Pinned: a feed has to release the same labels after an upgrade.
    assert_eq!(delay.of("7").as_millis(), 255_493_232);
    assert_ne!(delay.of("7"), ChargebackDelay { seed: 2, ..delay.clone() }.of("7"));
    assert_eq!(ChargebackDelay { min: day, max: day, seed: 1 }.of("7"), day);
    assert_eq!(ChargebackDelay { min: 2 * day, max: day, seed: 1 }.of("7"), 2 * day);
    assert!(ChargebackDelay { min: Duration::ZERO, max: Duration::MAX, seed: 1 }.of("7") < Duration::MAX);
}

#[test]
fn a_file_feeds_like_the_simulation_it_holds() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("rows.parquet");
    let written = write_parquet(&path, Simulator::new(options()), options().start, |_| {}).expect("written");
    let delay = ChargebackDelay::default();
    let mut from_file = Feed::parquet(&path, delay.clone()).expect("the file opens");
    assert_eq!(from_file.len(), Some(written));
    assert_eq!(feed(&delay).len(), None);
    assert_eq!(drain(&mut from_file, &[1000]), drain(&mut feed(&delay), &[1000]));
}

#[test]
fn more_than_there_is_cannot_be_skipped() {
    let delay = ChargebackDelay::default();
    let rows = drain(&mut feed(&delay), &[10_000]).transactions.len() as u64;
    let mut all = feed(&delay);
    all.skip(rows).expect("all of it");
    assert_eq!(all.next_chunk(1).expect("no error"), None);
    let message = feed(&delay).skip(rows + 1).expect_err("one too many").to_string();
    assert!(message.contains(&format!("only {rows}")), "{message}");
}

#[test]
fn a_chunk_has_at_least_one_transaction() {
    let mut feed = feed(&ChargebackDelay::default());
    assert_eq!(feed.next_chunk(0).expect("no error").expect("a chunk").transactions.len(), 1);
}
