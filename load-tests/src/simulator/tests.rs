use std::collections::{BTreeMap, BTreeSet};

use super::*;

fn small(seed: u64) -> SimulatorOptions {
    SimulatorOptions { customers: 200, terminals: 400, days: Some(20), seed, ..Default::default() }
}

/// Seconds since the start of the simulation.
fn seconds(row: &Labelled) -> u64 {
    let start = SimulatorOptions::default().start;
    ((row.transaction.event_time.as_millis() - start.as_millis()) / 1000) as u64
}

fn number(id: &str) -> u32 {
    id.parse().expect("ids are numbers")
}

fn assert_near(what: &str, value: f64, expected: f64, tolerance: f64) {
    assert!((value - expected).abs() <= tolerance, "{what}: {value}, expected {expected} ± {tolerance}");
}

#[test]
fn simulation_is_a_function_of_its_options() {
    let rows: Vec<Labelled> = Simulator::new(small(7)).collect();
    assert!(rows.len() > 5_000, "{}", rows.len());
    assert!(Simulator::new(small(7)).eq(rows.iter().cloned()));
    assert!(Simulator::new(small(8)).ne(rows.iter().cloned()));
    let endless = Simulator::new(SimulatorOptions { days: None, ..small(7) });
    assert!(endless.take(rows.len()).eq(rows.iter().cloned()), "more days begin with the same transactions");
}

#[test]
fn a_day_needs_no_day_before_it() {
    let days = |from: u64| {
        let mut simulator = Simulator::new(small(1));
        simulator.next_day = from;
        simulator.map(|row| (row.transaction.event_time, row.transaction.card_id, row.transaction.amount, row.scenario))
    };
    let all: Vec<_> = days(0).collect();
    let late: Vec<_> = days(17).collect();
    assert!(!late.is_empty());
    assert!(all.ends_with(&late));
}

#[test]
fn simulation_is_the_same_on_every_machine() {
    let rows: Vec<String> = Simulator::new(SimulatorOptions::default())
        .step_by(20_000)
        .take(4)
        .map(|Labelled { transaction: t, scenario, .. }| {
            format!("{} {} {} {} {} {scenario}", t.transaction_id, t.event_time, t.card_id, t.terminal_id, t.amount)
        })
        .collect();
    assert_eq!(
        rows,
        [
            "0 2018-04-01T00:00:14.000Z 2672 7151 12.28 0",
            "20000 2018-04-03T04:32:27.000Z 3555 5521 37.12 0",
            "40000 2018-04-05T06:42:28.000Z 4262 2596 113.36 0",
            "60000 2018-04-07T08:15:07.000Z 2891 8853 50.43 0",
        ]
    );
}

#[test]
fn rows_come_in_order_of_time_and_are_numbered() {
    let rows: Vec<Labelled> = Simulator::new(small(2)).collect();
    for (index, row) in rows.iter().enumerate() {
        assert_eq!(row.transaction.transaction_id, index.to_string());
        assert!(number(&row.transaction.card_id) < 200 && number(&row.transaction.terminal_id) < 400);
        assert!(!seconds(row).is_multiple_of(SECONDS_PER_DAY), "midnight itself is left out");
        assert!(!row.transaction.amount.is_negative());
        assert_eq!(row.transaction.amount.units() % 100, 0, "whole cents");
        assert_eq!(row.fraud, row.scenario != 0);
    }
    let key = |row: &Labelled| (row.transaction.event_time, number(&row.transaction.card_id));
    assert!(rows.is_sorted_by_key(key), "time, then customer");
    assert_eq!(seconds(rows.last().expect("20 days have rows")) / SECONDS_PER_DAY, 19);
}

#[test]
fn customers_stay_with_the_terminals_in_reach() {
    let simulator = Simulator::new(small(3));
    let mut rng = generator(3, Purpose::Terminals, 0);
    let terminals: Vec<Place> = (0..400).map(|_| place(&mut rng)).collect();
    let customers: BTreeMap<u32, Place> = simulator.customers.iter().map(|c| (c.id, c.place)).collect();
    assert!(customers.len() < 200, "somebody lives far from all 400 terminals");
    let mut used = BTreeSet::new();
    for row in simulator {
        let (card, terminal) = (number(&row.transaction.card_id), number(&row.transaction.terminal_id));
        let ([x, y], [tx, ty]) = (customers[&card], terminals[terminal as usize]);
        assert!((x - tx).hypot(y - ty) < 5.0);
        used.insert((card, terminal));
    }
    assert!(used.len() > 400, "{}", used.len());
}

#[test]
fn nothing_in_reach_is_no_transactions_and_no_endless_loop() {
    for (customers, terminals, radius) in [(0, 10, 5.0), (10, 0, 5.0), (10, 10, 0.0), (10, 10, f64::NAN)] {
        let options = SimulatorOptions { customers, terminals, radius, ..Default::default() };
        assert_eq!(Simulator::new(options).next(), None);
    }
    let one = SimulatorOptions { customers: 1, terminals: 1, radius: 300.0, days: Some(60), ..Default::default() };
    assert!(Simulator::new(one).count() > 0, "three compromised customers of one are one");
    let late = SimulatorOptions { start: EventTime::LATEST - Duration::from_secs(5 * 86_400), ..Default::default() };
    let last = Simulator::new(late).last().expect("five days are left");
    assert!(last.transaction.event_time < EventTime::LATEST);
}

/// Expected values follow from the description; the Handbook's own data (183 days, seed unknown)
/// stand beside them.
#[test]
fn statistics_are_those_of_the_description() {
    let days = 60;
    let simulator = Simulator::new(SimulatorOptions { days: Some(days), ..Default::default() });
    let rate: f64 = simulator.customers.iter().map(|c| c.transactions_per_day).sum();
    let mean_weight: f64 = simulator.customers.iter().map(|c| c.mean_amount * c.transactions_per_day).sum();
    assert_near("customers with a terminal in reach", simulator.customers.len() as f64, 5_000.0, 50.0);
    assert_near("their mean rate", rate / simulator.customers.len() as f64, 2.0, 0.06);
    let rows: Vec<Labelled> = simulator.collect();
    let count = rows.len() as f64;

    // 0 < N(43200, 20000) < 86400 with probability 0.9692. The Handbook has 9,585 a day.
    assert_near("rows", count / (rate * 0.9692 * f64::from(days)), 1.0, 0.005);
    assert_near("rows of a customer-day", count / 5_000.0 / f64::from(days), 1.94, 0.07);

    let time: Vec<f64> = rows.iter().map(|row| (seconds(row) % SECONDS_PER_DAY) as f64).collect();
    let mean = time.iter().sum::<f64>() / count;
    assert_near("time of day", mean, 43_200.0, 150.0);
    // Normal, cut at ±2.16 standard deviations: variance 1 - 2 * 2.16 * φ(2.16) / 0.9692.
    let std = (time.iter().map(|t| (t - mean).powi(2)).sum::<f64>() / count).sqrt();
    assert_near("its deviation", std, 18_193.0, 100.0);

    // max(N(m, m/2), 0) has mean 1.0042 m, and 2.28 % are redrawn with mean m.
    let base = rows.iter().filter(|row| row.scenario != 3);
    let (sum, n) = base.fold((0.0, 0.0), |(sum, n), row| (sum + row.transaction.amount.as_f64(), n + 1.0));
    assert_near("amount", sum / n / (mean_weight / rate), 1.027, 0.01);

    // A day after the warm-up has 2 * 28 terminals with 0.97 rows each in scenario 2, less the few
    // drawn twice, and 3 * 14 customers with 1.94 / 3 rows each in scenario 3.
    let late = rows.iter().filter(|row| seconds(row) / SECONDS_PER_DAY >= 28);
    let mut by_scenario = [0.0; 4];
    late.for_each(|row| by_scenario[usize::from(row.scenario)] += 1.0 / f64::from(days - 28));
    let [none, large, terminal, customer] = by_scenario;
    assert_near("scenario 1 a day (the Handbook: 5.3)", large, 5.3, 2.0);
    assert_near("scenario 2 a day (the Handbook: 50)", terminal, 54.0, 10.0);
    assert_near("scenario 3 a day (the Handbook: 25)", customer, 27.0, 7.0);
    let frauds = large + terminal + customer;
    assert_near("share of frauds in percent", 100.0 * frauds / (none + frauds), 0.87, 0.2);
}

#[test]
fn scenarios_follow_their_rules() {
    let options = SimulatorOptions { days: Some(45), ..Default::default() };
    let simulator = Simulator::new(options.clone());
    let terminals_on: Vec<Vec<u32>> =
        (0..45).map(|day| simulator.compromised(Purpose::CompromisedTerminals, day, 28, options.terminals)).collect();
    let customers_on: Vec<Vec<u32>> =
        (0..45).map(|day| simulator.compromised(Purpose::CompromisedCustomers, day, 14, options.customers)).collect();
    assert_eq!((terminals_on[0].len(), terminals_on[27].len(), terminals_on[44].len()), (2, 56, 56));
    assert_eq!((customers_on[0].len(), customers_on[13].len(), customers_on[44].len()), (3, 42, 42));
    let (mut multiplied, mut exposed) = (0.0, 0.0);
    for row in simulator {
        let day = (seconds(&row) / SECONDS_PER_DAY) as usize;
        let at_terminal = terminals_on[day].contains(&number(&row.transaction.terminal_id));
        let of_customer = customers_on[day].iter().filter(|id| **id == number(&row.transaction.card_id)).count();
        exposed += 1.0 - (2.0_f64 / 3.0).powi(of_customer as i32);
        match row.scenario {
            3 => {
                assert!(of_customer > 0);
                assert_eq!(row.transaction.amount.units() % 500, 0, "five times whole cents");
                multiplied += 1.0;
            }
            2 => assert!(at_terminal),
            1 => assert!(!at_terminal && row.transaction.amount > Amount::from_cents(22_000)),
            _ => assert!(!at_terminal && row.transaction.amount <= Amount::from_cents(22_000)),
        }
    }
    assert_near("a third of the exposed", multiplied / exposed, 1.0, 0.12);
}
