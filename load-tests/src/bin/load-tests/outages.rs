//! Brokers and stores that go away and come back, through `infra/local/services`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use crate::environment::Environment;

pub struct Outages {
    script: PathBuf,
    under_way: HashMap<&'static str, JoinHandle<anyhow::Result<()>>>,
}

impl Outages {
    /// Fails where the services are not the script's.
    pub fn new(environment: &Environment, services: &[&str]) -> anyhow::Result<Outages> {
        let script = environment.services_script();
        let output = Command::new(&script).arg("status").output();
        let output =
            output.with_context(|| format!("running {} (name another with --services-script)", script.display()))?;
        let status = String::from_utf8_lossy(&output.stdout).into_owned();
        for service in services {
            let line = status.lines().find(|line| line.split_whitespace().next() == Some(service));
            ensure!(
                line.is_some_and(|line| line.contains("running")),
                "{service} was not started by {} with this CARGO_TARGET_DIR (or FRAUDLINE_LOCAL_DIR), so it can't be \
                 stopped: `{} start {service}`, or leave outages out with --no-outages",
                script.display(),
                script.display()
            );
        }
        Ok(Outages { script, under_way: HashMap::new() })
    }

    /// Stops or kills a service, and starts it again after the pause. False if it is away already.
    pub fn begin(&mut self, service: &'static str, kill: bool, pause: Duration) -> anyhow::Result<bool> {
        self.tick()?;
        if self.under_way.contains_key(service) {
            return Ok(false);
        }
        let script = self.script.clone();
        let outage = std::thread::Builder::new().name("outage".to_owned()).spawn(move || {
            call(&script, if kill { "kill" } else { "stop" }, service)?;
            std::thread::sleep(pause);
            let mut started = call(&script, "start", service);
            for _ in 0..3 {
                if started.is_ok() {
                    break;
                }
                std::thread::sleep(Duration::from_secs(2));
                started = call(&script, "start", service);
            }
            started
        })?;
        self.under_way.insert(service, outage);
        Ok(true)
    }

    /// Fails if a service did not come back.
    pub fn tick(&mut self) -> anyhow::Result<()> {
        let over: Vec<&'static str> =
            self.under_way.iter().filter(|(_, outage)| outage.is_finished()).map(|(service, _)| *service).collect();
        for service in over {
            if let Some(Err(error)) = self.under_way.remove(service).map(join) {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Waits until all are back.
    pub fn finish(&mut self) -> anyhow::Result<()> {
        self.under_way.drain().map(|(_, outage)| join(outage)).fold(Ok(()), Result::and)
    }
}

impl Drop for Outages {
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            eprintln!("{error:#}");
        }
    }
}

fn join(outage: JoinHandle<anyhow::Result<()>>) -> anyhow::Result<()> {
    outage.join().unwrap_or_else(|_| bail!("an outage panicked"))
}

fn call(script: &PathBuf, verb: &str, service: &str) -> anyhow::Result<()> {
    // Not `output`: what it starts may hold on to its pipes.
    let mut command = Command::new(script);
    command.args([verb, service]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let status = command.status().with_context(|| format!("running {}", script.display()))?;
    ensure!(status.success(), "{} {verb} {service}: {status}", script.display());
    Ok(())
}
