//! How fast the sources are, in events/s of one thread: `cargo run --release -p load-tests
//! --example throughput [customers terminals]`.

use std::time::Instant;

use load_tests::{ChargebackDelay, Feed, ParquetSource, Simulator, SimulatorOptions, write_parquet};

const EVENTS: usize = 5_000_000;

fn main() -> anyhow::Result<()> {
    let sizes = std::env::args().skip(1).map(|size| size.parse()).collect::<Result<Vec<u32>, _>>()?;
    let mut options = SimulatorOptions::default();
    if let [customers, terminals] = sizes[..] {
        (options.customers, options.terminals) = (customers, terminals);
    }
    println!("{} customers, {} terminals, {EVENTS} events", options.customers, options.terminals);

    let begin = Instant::now();
    let mut simulator = Simulator::new(options.clone());
    simulator.next();
    println!("first event after         {:>10.3} s", begin.elapsed().as_secs_f64());
    report("simulator", || Ok(simulator.by_ref().take(EVENTS).count()))?;

    let mut feed = Feed::simulated(options.clone(), ChargebackDelay::default());
    report("feed, chunks of 1,000", || {
        let mut events = 0;
        while events < EVENTS {
            events += feed.next_chunk(1_000)?.map_or(EVENTS, |chunk| chunk.transactions.len());
        }
        Ok(events)
    })?;

    let path = std::env::temp_dir().join(format!("throughput-{}.parquet", std::process::id()));
    let mut simulator = Simulator::new(options.clone()).take(EVENTS);
    report("simulator to Parquet", || Ok(write_parquet(&path, simulator.by_ref(), options.start, |_| {})? as usize))?;
    println!("bytes per row in the file {:>10.1}", std::fs::metadata(&path)?.len() as f64 / EVENTS as f64);
    report("from Parquet", || Ok(ParquetSource::open(&path)?.filter(Result::is_ok).count()))?;
    std::fs::remove_file(&path)?;
    Ok(())
}

fn report(what: &str, run: impl FnOnce() -> anyhow::Result<usize>) -> anyhow::Result<()> {
    let begin = Instant::now();
    let events = run()?;
    println!("{what:<25} {:>10.0} events/s", events as f64 / begin.elapsed().as_secs_f64());
    Ok(())
}
