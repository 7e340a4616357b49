//! The binary with a limit on time and memory.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// No run of these tests takes a tenth of that by itself.
const SECONDS: u64 = 20;
/// Resident memory.
const BYTES: u64 = 1 << 30;

/// A run that has begun.
pub(crate) struct Running {
    child: Child,
    /// Not a pipe, which would have to be read all the while.
    stderr: File,
    begun: Instant,
    command: String,
}

/// A run that has ended.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) stderr: String,
    pub(crate) time: Duration,
    /// It took more time or memory than it may, and was killed.
    pub(crate) over: Option<String>,
    command: String,
}

impl Running {
    pub(crate) fn new(command: &mut Command) -> Self {
        let stderr = tempfile::tempfile().unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr.try_clone().unwrap());
        let child = command.spawn().unwrap();
        Self { child, stderr, begun: Instant::now(), command: format!("{command:?}") }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(self.id(), name);
    }

    pub(crate) fn end(mut self) -> Ended {
        let mut over = None;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if over.is_none() {
                over = self.is_over();
                if over.is_some() {
                    self.child.kill().unwrap();
                }
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let mut stderr = Vec::new();
        self.stderr.rewind().unwrap();
        self.stderr.read_to_end(&mut stderr).unwrap();
        Ended {
            code: status.code(),
            signal: status.signal(),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
            time: self.begun.elapsed(),
            over,
            command: self.command,
        }
    }

    fn is_over(&self) -> Option<String> {
        if self.begun.elapsed() > Duration::from_secs(SECONDS) {
            return Some(format!("hangs: killed after {SECONDS} s"));
        }
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).ok()?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        let bytes = 1024 * peak.trim().strip_suffix(" kB")?.parse::<u64>().ok()?;
        (bytes > BYTES).then(|| format!("takes {} MiB of memory and more", bytes >> 20))
    }
}

/// Sends a signal by its name without SIG.
pub(crate) fn signal(process: u32, name: &str) {
    // It may have ended.
    let _ = Command::new("kill")
        .arg(format!("-{name}"))
        .arg(process.to_string())
        .stderr(Stdio::null())
        .status();
}

impl Ended {
    pub(crate) fn of(command: &mut Command) -> Self {
        Running::new(command).end()
    }

    /// An error with what is needed to see what happened.
    pub(crate) fn problem(&self, problem: impl std::fmt::Display) -> String {
        let ended = match (self.code, self.signal) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => String::new(),
        };
        let said: String = self.stderr.chars().take(1500).collect();
        format!("{problem}\n{}\n{ended}; it said: {}", self.command, said.trim_end())
    }

    /// That it ended with an exit code that is documented, and in time.
    pub(crate) fn is_orderly(&self) -> Result<(), String> {
        if let Some(over) = &self.over {
            return Err(self.problem(over));
        }
        match self.code {
            _ if self.stderr.contains("panicked") => Err(self.problem("panicked")),
            Some(0 | 1 | 2 | 130) => Ok(()),
            Some(code) => Err(self.problem(format!("exit code {code} is none of 0, 1, 2 and 130"))),
            None => Err(self.problem("ended by a signal")),
        }
    }
}
