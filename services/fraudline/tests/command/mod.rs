//! The binary as a person runs it.
#![allow(dead_code)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

pub fn fraudline() -> Command {
    Command::new(env!("CARGO_BIN_EXE_fraudline"))
}

/// Writes a file of simulated transactions; returns how many.
pub fn simulate(file: &Path, customers: u32, days: u32) -> u64 {
    let mut command = fraudline();
    command.args(["simulate", "--customers", &customers.to_string(), "--terminals", &(2 * customers).to_string()]);
    let output = command.args(["--days", &days.to_string(), "--output"]).arg(file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

/// All records of a topic.
pub fn tail(data_dir: &Path, topic: &str) -> Vec<Value> {
    let output = fraudline().args(["tail", topic, "--from", "beginning", "--data-dir"]).arg(data_dir).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
        .stdout
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect()
}

/// `fraudline up` on a free port, with a report.
pub struct Up {
    command: Command,
    report: PathBuf,
}

impl Up {
    pub fn new(data_dir: &Path) -> Up {
        Up::listening(data_dir, "127.0.0.1:0")
    }

    pub fn listening(data_dir: &Path, http: &str) -> Up {
        let report = data_dir.with_extension("report.json");
        let mut command = fraudline();
        command.args(["up", "--device", "cpu", "--http", http, "--data-dir"]).arg(data_dir);
        command.arg("--report").arg(&report);
        Up { command, report }
    }

    pub fn args<'a>(&mut self, args: impl IntoIterator<Item = &'a str>) -> &mut Command {
        self.command.args(args)
    }

    /// Runs to the end, which is a failure; returns what it says.
    pub fn refused(mut self) -> String {
        let output = self.command.output().unwrap();
        assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stderr).unwrap()
    }

    pub fn start(mut self) -> Running {
        let _ = std::fs::remove_file(&self.report);
        let child = self.command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Running { child, report: self.report }
    }
}

pub struct Running {
    child: Child,
    report: PathBuf,
}

impl Running {
    /// Where it listens, from its first line.
    pub fn url(&mut self) -> String {
        let mut line = String::new();
        BufReader::new(self.child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let start = line.find("http://").unwrap_or_else(|| panic!("no address in {line:?}"));
        line[start..].split(';').next().unwrap().to_owned()
    }

    /// Sends SIGINT, as Ctrl-C does.
    pub fn interrupt(&self) {
        let status = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Kills it (SIGKILL) after a while; whether it was still running then.
    pub fn kill_after(mut self, moment: Duration) -> bool {
        let started = Instant::now();
        while started.elapsed() < moment {
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.child.kill().unwrap();
        // Ended by the signal, not by itself just before.
        self.child.wait().unwrap().code().is_none()
    }

    /// Waits for a good end; returns the report.
    pub fn finish(self) -> Value {
        let report = self.report.clone();
        let output: Output = self.child.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{:?}: {errors}", output.status);
        serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap()
    }
}
