//! The processes of a run: started, watched, started again, and never left behind.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Serialize;

use crate::environment::Environment;

/// The one process that materializes.
pub const MATERIALIZER: &str = "materializer";
/// Lines kept of what a process said before it ended.
const LAST_LINES: usize = 12;
/// A process that is told to end may take this long.
const ENDING_MAX: Duration = Duration::from_secs(40);

struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    fn signal(&self, signal: &str) -> anyhow::Result<()> {
        let status = Command::new("kill").arg(format!("-{signal}")).arg(self.child.id().to_string()).status();
        status.with_context(|| format!("sending SIG{signal}"))?;
        Ok(())
    }

    fn exited(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        self.child.try_wait().context("watching a process")
    }

    fn last_lines(&self) -> Vec<String> {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].iter().map(|line| (*line).to_owned()).collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

enum Member {
    Running(Process),
    Frozen(Process, Instant),
    Ending(Process, Instant),
    /// To be started (again) at that time.
    Down(Instant),
}

/// A process that ended by itself, or not as it was told to.
#[derive(Clone, Debug, Serialize)]
pub struct Exit {
    pub process: String,
    pub status: String,
    /// Seconds since the first process started.
    pub at: f64,
    pub last_lines: Vec<String>,
}

pub struct Fleet<'a> {
    environment: &'a Environment,
    members: BTreeMap<String, Member>,
    starts: u64,
    began: Instant,
    pub exits: Vec<Exit>,
}

impl<'a> Fleet<'a> {
    pub fn new(environment: &'a Environment) -> Fleet<'a> {
        Fleet { environment, members: BTreeMap::new(), starts: 0, began: Instant::now(), exits: Vec::new() }
    }

    /// Starts `materialize` under its name, and `score` under any other.
    pub fn start(&mut self, name: &str) -> anyhow::Result<()> {
        self.starts += 1;
        let log = self.environment.folder().join(format!("{name}-{}.log", self.starts));
        let output = File::create(&log).with_context(|| format!("writing {}", log.display()))?;
        let mut command = Command::new(&self.environment.fraudline);
        match name {
            MATERIALIZER => command.arg("materialize"),
            _ => command.args(["score", "--instance", name]),
        };
        command.arg("--config").arg(self.environment.config()).args(["--http", "127.0.0.1:0"]);
        // The last lines of a process that ends are to tell why.
        command.env("RUST_BACKTRACE", "0");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output);
        let child = command.spawn().with_context(|| format!("starting {}", self.environment.fraudline.display()))?;
        self.members.insert(name.to_owned(), Member::Running(Process { child, log }));
        Ok(())
    }

    /// Takes note of what ended, and starts and thaws what is due.
    pub fn tick(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        let names: Vec<String> = self.members.keys().cloned().collect();
        for name in names {
            let Some(member) = self.members.remove(&name) else { continue };
            let member = match member {
                Member::Running(mut process) => match process.exited()? {
                    Some(status) => {
                        self.note(&name, &status.to_string(), &process);
                        Some(Member::Down(now + Duration::from_millis(500)))
                    }
                    None => Some(Member::Running(process)),
                },
                Member::Frozen(process, until) if until <= now => {
                    process.signal("CONT")?;
                    Some(Member::Running(process))
                }
                Member::Ending(mut process, since) => match process.exited()? {
                    Some(status) => {
                        if !status.success() {
                            self.note(&name, &format!("{status} after SIGTERM"), &process);
                        }
                        None
                    }
                    None if since.elapsed() >= ENDING_MAX => {
                        self.note(&name, "SIGTERM was not followed", &process);
                        None
                    }
                    None => Some(Member::Ending(process, since)),
                },
                Member::Down(until) if until <= now => {
                    self.start(&name)?;
                    None
                }
                waiting => Some(waiting),
            };
            if let Some(member) = member {
                self.members.insert(name, member);
            }
        }
        Ok(())
    }

    fn note(&mut self, name: &str, status: &str, process: &Process) {
        let last_lines = process.last_lines();
        eprintln!("{name} ended: {status}\n  {}", last_lines.join("\n  "));
        let at = self.began.elapsed().as_secs_f64();
        self.exits.push(Exit { process: name.to_owned(), status: status.to_owned(), at, last_lines });
    }

    /// Scorers that run, or are frozen.
    pub fn scorers(&self) -> Vec<String> {
        let alive = |member: &Member| matches!(member, Member::Running(_) | Member::Frozen(..));
        let scorers = self.members.iter().filter(|(name, member)| *name != MATERIALIZER && alive(member));
        scorers.map(|(name, _)| name.clone()).collect()
    }

    pub fn is_known(&self, name: &str) -> bool {
        self.members.contains_key(name)
    }

    pub fn is_running(&self, name: &str) -> bool {
        matches!(self.members.get(name), Some(Member::Running(_)))
    }

    /// SIGKILL; it is started again after the pause. False if it did not run.
    pub fn kill(&mut self, name: &str, pause: Duration) -> bool {
        match self.members.remove(name) {
            Some(Member::Running(mut process) | Member::Frozen(mut process, _)) => {
                // One that had ended by itself just before is told apart.
                if let Ok(Some(status)) = process.exited() {
                    self.note(name, &status.to_string(), &process);
                }
                drop(process);
                self.members.insert(name.to_owned(), Member::Down(Instant::now() + pause));
                true
            }
            Some(other) => {
                self.members.insert(name.to_owned(), other);
                false
            }
            None => false,
        }
    }

    /// SIGSTOP, and SIGCONT after the span. False if it did not run.
    pub fn freeze(&mut self, name: &str, span: Duration) -> anyhow::Result<bool> {
        match self.members.remove(name) {
            Some(Member::Running(process)) => {
                process.signal("STOP")?;
                self.members.insert(name.to_owned(), Member::Frozen(process, Instant::now() + span));
                Ok(true)
            }
            Some(other) => {
                self.members.insert(name.to_owned(), other);
                Ok(false)
            }
            None => Ok(false),
        }
    }

    /// SIGTERM; what runs ends, what is down stays down.
    pub fn end(&mut self, name: &str) -> anyhow::Result<()> {
        if let Some(Member::Running(process) | Member::Frozen(process, _)) = self.members.remove(name) {
            process.signal("CONT")?;
            process.signal("TERM")?;
            self.members.insert(name.to_owned(), Member::Ending(process, Instant::now()));
        }
        Ok(())
    }

    /// SIGTERM to all, and waits for them.
    pub fn end_all(&mut self) -> anyhow::Result<()> {
        let names: Vec<String> = self.members.keys().cloned().collect();
        for name in names {
            if !matches!(self.members.get(&name), Some(Member::Ending(..))) {
                self.end(&name)?;
            }
        }
        while !self.members.is_empty() {
            self.tick()?;
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Whether a process says that it is ready: it has partitions, and its model is warm.
    pub fn is_ready(&self, name: &str) -> bool {
        let Some(Member::Running(process)) = self.members.get(name) else { return false };
        let text = std::fs::read(&process.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        // Port 0 was asked for; the log tells which one it became.
        let Some(at) = text.find("http://127.0.0.1:") else { return false };
        let address: String =
            text[at + 7..].chars().take_while(|c| c.is_ascii_digit() || matches!(c, '.' | ':')).collect();
        let answer = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(&address)?;
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            stream.write_all(b"GET /ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        answer().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }

    /// Resident memory of a process, in bytes.
    pub fn resident_bytes(&self, name: &str) -> Option<u64> {
        let Some(Member::Running(process)) = self.members.get(name) else { return None };
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.child.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
    }
}
