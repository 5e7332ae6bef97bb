use std::iter::FusedIterator;
use std::time::Duration;

use compact_str::ToCompactString;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Poisson, StandardNormal};
use schemas::{Amount, EventTime, Transaction};

use crate::Labelled;
use crate::terminals::{Place, SIDE, Terminals};

const SECONDS_PER_DAY: u64 = 86_400;
/// Time of day of a transaction: normal, in seconds.
const TIME_MEAN: f64 = 43_200.0;
const TIME_STD: f64 = 20_000.0;

const MEAN_AMOUNT_MIN: f64 = 5.0;
const MEAN_AMOUNT_MAX: f64 = 100.0;
const TRANSACTIONS_PER_DAY_MAX: f64 = 4.0;

/// Scenario 1: more than this many cents is fraud.
const LARGE_CENTS: i64 = 22_000;
/// Scenario 2: terminals compromised a day, and for how many days.
const TERMINALS_PER_DAY: u32 = 2;
const TERMINAL_DAYS: u64 = 28;
/// Scenario 3: customers compromised a day, for how many days, one transaction in how many, and
/// the factor of its amount.
const CUSTOMERS_PER_DAY: u32 = 3;
const CUSTOMER_DAYS: u64 = 14;
const CUSTOMER_ONE_IN: u32 = 3;
const CUSTOMER_FACTOR: i64 = 5;

/// What to simulate. The fraud scenarios strike a fixed number of terminals and customers a day,
/// whatever the population: the share of frauds is the Handbook's (0.8 %) at the default sizes
/// and grows as they shrink.
#[derive(Clone, Debug, PartialEq)]
pub struct SimulatorOptions {
    pub customers: u32,
    pub terminals: u32,
    /// How many days to simulate; `None` goes on until the year 2200.
    pub days: Option<u32>,
    pub seed: u64,
    /// Midnight of the first day.
    pub start: EventTime,
    /// A customer uses the terminals nearer than this, on a square of side 100.
    pub radius: f64,
}

impl Default for SimulatorOptions {
    /// The sizes, the start and the radius of the Handbook's data set; endless.
    fn default() -> SimulatorOptions {
        SimulatorOptions {
            customers: 5_000,
            terminals: 10_000,
            days: None,
            seed: 0,
            start: EventTime::from_millis(1_522_540_800_000), // 2018-04-01
            radius: 5.0,
        }
    }
}

/// Card transactions in event-time order, after the transaction data simulator of the Fraud
/// Detection Handbook (Le Borgne et al., chapter 3).
///
/// Customers and terminals lie on a square; a customer pays at the terminals in reach, a Poisson
/// number of times a day, around noon, normally distributed amounts. Three scenarios make frauds,
/// a later one overriding the number of an earlier one: amounts above 220; every transaction at a
/// compromised terminal for 28 days; a third of a compromised customer's transactions for 14
/// days, at five times the amount. The Handbook draws exactly a third of the latter, here each
/// falls with probability 1/3, which needs no look ahead; a transaction in the windows of two
/// compromises is multiplied once.
///
/// Transactions are numbered from 0 in order of time (ties: by customer, then as drawn);
/// customers and terminals are numbered from 0. A function of the options alone; with more `days`
/// the same transactions come first. Memory is that of one day.
#[derive(Debug)]
pub struct Simulator {
    options: SimulatorOptions,
    /// Those with a terminal in reach, by id.
    customers: Vec<Customer>,
    terminals: Terminals,
    /// The day that comes after `today`.
    next_day: u64,
    /// The transactions of a day in order; those before `taken` have been handed out.
    today: Vec<Draft>,
    taken: usize,
    transaction_id: u64,
}

#[derive(Debug)]
struct Customer {
    id: u32,
    place: Place,
    mean_amount: f64,
    transactions_per_day: f64,
}

#[derive(Debug)]
struct Draft {
    second_of_day: u32,
    customer: u32,
    terminal: u32,
    cents: i64,
    scenario: u8,
}

impl Simulator {
    /// Places the customers and the terminals. Without any, or with none in reach of another,
    /// there are no transactions.
    pub fn new(options: SimulatorOptions) -> Simulator {
        let mut rng = generator(options.seed, Purpose::Terminals, 0);
        let places: Vec<Place> = (0..options.terminals).map(|_| place(&mut rng)).collect();
        let terminals = Terminals::new(&places, options.radius);
        let mut rng = generator(options.seed, Purpose::Customers, 0);
        let customers = (0..options.customers)
            .map(|id| Customer {
                id,
                place: place(&mut rng),
                mean_amount: uniform(&mut rng, MEAN_AMOUNT_MIN, MEAN_AMOUNT_MAX),
                transactions_per_day: uniform(&mut rng, 0.0, TRANSACTIONS_PER_DAY_MAX),
            })
            .filter(|customer| customer.transactions_per_day > 0.0 && !terminals.around(customer.place).is_empty())
            .collect();
        Simulator { options, customers, terminals, next_day: 0, today: Vec::new(), taken: 0, transaction_id: 0 }
    }

    fn midnight(&self, day: u64) -> EventTime {
        self.options.start + Duration::from_secs(day.saturating_mul(SECONDS_PER_DAY))
    }

    fn has_day(&self, day: u64) -> bool {
        !self.customers.is_empty()
            && self.options.days.is_none_or(|days| day < u64::from(days))
            && self.midnight(day + 1) <= EventTime::LATEST
    }

    /// Puts the transactions of `day` into `today`. Looks at nothing of the days before.
    fn simulate(&mut self, day: u64) {
        let compromised_terminals =
            self.compromised(Purpose::CompromisedTerminals, day, TERMINAL_DAYS, self.options.terminals);
        let compromised_customers =
            self.compromised(Purpose::CompromisedCustomers, day, CUSTOMER_DAYS, self.options.customers);
        let mut rng = generator(self.options.seed, Purpose::Transactions, day);
        let rng = &mut rng;
        self.taken = 0;
        self.today.clear();
        for customer in &self.customers {
            let poisson = Poisson::new(customer.transactions_per_day).expect("the rate is above 0 and below 4");
            let count = poisson.sample(rng) as u32;
            if count == 0 {
                continue;
            }
            let reach = self.terminals.around(customer.place);
            let first = compromised_customers.partition_point(|id| *id < customer.id);
            let compromises = compromised_customers[first..].iter().take_while(|id| **id == customer.id).count();
            for _ in 0..count {
                let second_of_day = normal(rng, TIME_MEAN, TIME_STD) as i64;
                if second_of_day <= 0 || second_of_day >= SECONDS_PER_DAY as i64 {
                    continue;
                }
                let mut amount = normal(rng, customer.mean_amount, customer.mean_amount / 2.0);
                if amount < 0.0 {
                    amount = uniform(rng, 0.0, 2.0 * customer.mean_amount);
                }
                let mut cents = (amount * 100.0).round_ties_even() as i64;
                let terminal = reach.draw(rng);
                let mut scenario = u8::from(cents > LARGE_CENTS);
                if compromised_terminals.binary_search(&terminal).is_ok() {
                    scenario = 2;
                }
                if (0..compromises).any(|_| rng.random_ratio(1, CUSTOMER_ONE_IN)) {
                    scenario = 3;
                    cents *= CUSTOMER_FACTOR;
                }
                let customer = customer.id;
                self.today.push(Draft { second_of_day: second_of_day as u32, customer, terminal, cents, scenario });
            }
        }
        // Stable, so that ties stay in the order of customers and draws.
        self.today.sort_by_key(|draft| draft.second_of_day);
    }

    /// Who of `population` is compromised on `day`, sorted; one struck twice stands there twice.
    fn compromised(&self, purpose: Purpose, day: u64, days: u64, population: u32) -> Vec<u32> {
        let per_day = match purpose {
            Purpose::CompromisedTerminals => TERMINALS_PER_DAY,
            _ => CUSTOMERS_PER_DAY,
        };
        let mut struck: Vec<u32> = ((day + 1).saturating_sub(days)..=day)
            .flat_map(|drawn_on| {
                let mut rng = generator(self.options.seed, purpose, drawn_on);
                rand::seq::index::sample(&mut rng, population as usize, per_day.min(population) as usize)
            })
            .map(|index| index as u32)
            .collect();
        struck.sort_unstable();
        struck
    }
}

impl Iterator for Simulator {
    type Item = Labelled;

    fn next(&mut self) -> Option<Labelled> {
        while self.taken == self.today.len() {
            if !self.has_day(self.next_day) {
                return None;
            }
            self.simulate(self.next_day);
            self.next_day += 1;
        }
        let draft = &self.today[self.taken];
        let time = self.midnight(self.next_day - 1) + Duration::from_secs(u64::from(draft.second_of_day));
        let transaction = Transaction {
            transaction_id: self.transaction_id.to_compact_string(),
            event_time: time,
            card_id: draft.customer.to_compact_string(),
            terminal_id: draft.terminal.to_compact_string(),
            amount: Amount::from_cents(draft.cents),
        };
        let labelled = Labelled { transaction, fraud: draft.scenario != 0, scenario: draft.scenario };
        self.taken += 1;
        self.transaction_id += 1;
        Some(labelled)
    }
}

impl FusedIterator for Simulator {}

/// What random numbers are drawn for. The value is part of the generator's key: to change it
/// changes every simulation.
#[derive(Clone, Copy, Debug)]
enum Purpose {
    Customers = 1,
    Terminals = 2,
    Transactions = 3,
    CompromisedTerminals = 4,
    CompromisedCustomers = 5,
}

/// Independent random numbers for each (seed, purpose, day), without those of other days.
fn generator(seed: u64, purpose: Purpose, day: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8] = purpose as u8;
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream(day);
    rng
}

fn place(rng: &mut ChaCha8Rng) -> Place {
    [uniform(rng, 0.0, SIDE), uniform(rng, 0.0, SIDE)]
}

fn uniform(rng: &mut ChaCha8Rng, low: f64, high: f64) -> f64 {
    low + rng.random::<f64>() * (high - low)
}

fn normal(rng: &mut ChaCha8Rng, mean: f64, std: f64) -> f64 {
    let standard: f64 = StandardNormal.sample(rng);
    mean + std * standard
}

#[cfg(test)]
mod tests;
