//! A service: redis-server under a tool, redis-benchmark against it.

use crate::measure;
use crate::tool::Tool;
use anyhow::{Context, Result, ensure};
use heapline_benches::process::succeed;
use serde::Serialize;
use std::collections::HashMap;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);

/// For each command: requests per second, and the 99th percentile of latency in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    pub set_per_s: f64,
    pub set_p99_ms: f64,
    pub lpush_per_s: f64,
    pub lpush_p99_ms: f64,
    pub hset_per_s: f64,
    pub hset_p99_ms: f64,
    /// CPU time of the tool's own processes, in seconds.
    pub tool_cpu_s: f64,
}

/// Command of the server, without the port.
pub const COMMAND: [&str; 5] = ["redis-server", "--save", "", "--appendonly", "no"];

/// Starts the server, puts load on it, and stops it.
pub fn run(tool: Tool, programs: &Path, scratch: &Path) -> Result<Figures> {
    let folder = tempfile::TempDir::new_in(scratch)?;
    let port = free_port()?.to_string();
    let server = [&COMMAND[..], &["--port", &port]].concat().into_iter().map(str::to_owned).collect::<Vec<_>>();
    let mut command = tool.command(&server, programs, folder.path())?;
    command.current_dir(folder.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let start = Instant::now();
    let child = command.spawn().context("cannot start redis-server")?;
    let target = tool.target("redis-server")?;
    let pid = child.id();
    let watcher = std::thread::spawn(move || measure::watch(child, &target, start));
    let disturbed = wait_until_ready(&port).and_then(|()| tool.disturb(pid, programs, folder.path()));
    let loaded = disturbed.and_then(|()| load(&port));
    // The server is stopped whether the load worked or not. It closes the connection without an
    // answer.
    Command::new("redis-cli").args(["-p", &port, "shutdown", "nosave"]).output().context("cannot run redis-cli")?;
    let watched = watcher.join().expect("the watcher does not panic")?;
    let by_test = loaded?;
    ensure!(watched.status.success(), "redis-server ended with {}", watched.status);
    let of = |test: &str| by_test.get(test).copied().with_context(|| format!("redis-benchmark did not do {test}"));
    let ((set_per_s, set_p99_ms), (lpush_per_s, lpush_p99_ms), (hset_per_s, hset_p99_ms)) =
        (of("SET")?, of("LPUSH")?, of("HSET")?);
    let tool_cpu_s = watched.tool_cpu();
    Ok(Figures { set_per_s, set_p99_ms, lpush_per_s, lpush_p99_ms, hset_per_s, hset_p99_ms, tool_cpu_s })
}

/// Returns a port that is free now.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0)).context("no free port")?.local_addr()?.port())
}

fn wait_until_ready(port: &str) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        let ping = Command::new("redis-cli").args(["-p", port, "ping"]).output().context("cannot run redis-cli")?;
        if ping.stdout == b"PONG\n" {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    anyhow::bail!("redis-server does not answer on port {port} after {PATIENCE:?}")
}

/// Returns (requests per second, p99 in milliseconds) by name of the test.
fn load(port: &str) -> Result<HashMap<String, (f64, f64)>> {
    let mut benchmark = Command::new("redis-benchmark");
    benchmark.args(["-p", port, "-t", "set,lpush,hset", "-n", "200000", "-r", "100000", "-d", "100"]);
    let csv = String::from_utf8(succeed(benchmark.args(["-P", "16", "-c", "20", "--csv"]))?)?;
    let mut lines = csv.lines();
    let fields = |line: &str| line.split(',').map(|f| f.trim_matches('"').to_owned()).collect::<Vec<_>>();
    let head = fields(lines.next().context("redis-benchmark says nothing")?);
    let column = |name: &str| head.iter().position(|h| h == name).with_context(|| format!("no column {name}"));
    let (rate, p99) = (column("rps")?, column("p99_latency_ms")?);
    lines
        .map(fields)
        .filter(|row| row.len() == head.len())
        .map(|row| Ok((row[0].clone(), (row[rate].parse()?, row[p99].parse()?))))
        .collect()
}
