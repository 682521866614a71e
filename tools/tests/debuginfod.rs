//! `report --debuginfod`, with servers that answer well, badly or never, and with elfutils' server.

mod support;

use heapline_shared_format::snapshot::{NamedModule, Names, read};
use heapline_shared_format::text;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use support::scene::{Scene, scene, stderr, stdout};
use support::{build_id, run};

/// A line of the program that only debug information tells.
const LINE: &str = "inlines.c:5";

/// An answer of a test's server.
#[derive(Clone)]
enum Answer {
    File(Vec<u8>),
    Status(&'static str),
    Redirect(String),
    /// A head that claims more bytes than come.
    Claim(u64, Vec<u8>),
    /// A file without a length.
    Endless(Vec<u8>),
    /// Nothing, until the client closes the connection.
    Silence,
    /// A byte at a time, until the client closes the connection.
    Trickle,
}

/// A server with answers by path. Other paths have the status 404.
struct Server {
    url: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn new(answers: &[(&str, Answer)]) -> Server {
        let answers: BTreeMap<String, Answer> =
            answers.iter().map(|(path, answer)| ((*path).to_string(), answer.clone())).collect();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (answers, log) = (answers.clone(), log.clone());
                std::thread::spawn(move || serve(stream.unwrap(), &answers, &log));
            }
        });
        Server { url, asked }
    }

    /// Returns the paths that were asked for since the last call.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

/// Answers a request. A client that closes the connection ends the answer.
fn serve(mut stream: TcpStream, answers: &BTreeMap<String, Answer>, log: &Mutex<Vec<String>>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let Some(Ok(first)) = lines.next() else { return };
    let path = first.split(' ').nth(1).unwrap().to_string();
    while lines.next().unwrap().unwrap() != "" {}
    log.lock().unwrap().push(path.clone());
    let head =
        |status: &str, fields: &str| format!("HTTP/1.1 {status}\r\nConnection: close\r\n{fields}\r\n").into_bytes();
    let sized = |bytes: u64| head("200 OK", &format!("Content-Length: {bytes}\r\n"));
    let whole = match answers.get(&path).cloned().unwrap_or(Answer::Status("404 Not Found")) {
        Answer::File(content) => [sized(content.len() as u64), content].concat(),
        Answer::Status(status) => head(status, "Content-Length: 0\r\n"),
        Answer::Redirect(url) => head("302 Found", &format!("Location: {url}\r\nContent-Length: 0\r\n")),
        Answer::Claim(bytes, content) => [sized(bytes), content].concat(),
        Answer::Endless(content) => [head("200 OK", ""), content].concat(),
        Answer::Silence => {
            let _ = stream.read(&mut [0]);
            return;
        }
        Answer::Trickle => {
            let _ = stream.write_all(&sized(1 << 20));
            while stream.write_all(&[0]).is_ok() {
                std::thread::sleep(Duration::from_millis(50));
            }
            return;
        }
    };
    let _ = stream.write_all(&whole);
    let _ = stream.shutdown(Shutdown::Both);
}

/// A snapshot of a program whose debug information was split off.
struct Split {
    scene: Scene,
    /// The program with all information.
    whole: Vec<u8>,
    /// The debug information.
    debug: Vec<u8>,
    id: String,
}

impl Split {
    fn new() -> Split {
        let scene = scene();
        let debug = scene.dir.path().join("elsewhere");
        let whole = fs::read(&scene.program).unwrap();
        run(Command::new("objcopy").arg("--only-keep-debug").arg(&scene.program).arg(&debug));
        run(Command::new("strip").arg(&scene.program));
        let id: String = build_id(&scene.program).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(id.len(), 40, "the compiler gives build-ids");
        let debug = fs::read(debug).unwrap();
        Split { scene, whole, debug, id }
    }

    fn path(&self, artifact: &str) -> String {
        format!("/buildid/{}/{artifact}", self.id)
    }

    fn cache(&self) -> PathBuf {
        self.scene.dir.path().join("cache/debuginfod_client")
    }

    /// Path of a file in the cache of downloads.
    fn cached(&self, artifact: &str) -> PathBuf {
        self.cache().join(&self.id).join(artifact)
    }

    /// Returns the files in the cache of downloads.
    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.cache().join(&self.id)).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    /// The command `report SNAP` with caches in the scene's folder.
    fn command(&self, servers: &[&Server]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_report"));
        for name in ["DEBUGINFOD_CACHE_PATH", "DEBUGINFOD_TIMEOUT", "DEBUGINFOD_MAXSIZE", "HOME"] {
            command.env_remove(name);
        }
        for name in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
            command.env_remove(name);
        }
        let urls: Vec<&str> = servers.iter().map(|server| server.url.as_str()).collect();
        command.env("DEBUGINFOD_URLS", urls.join(" "));
        command.env("XDG_CACHE_HOME", self.scene.dir.path().join("cache"));
        command.arg(self.scene.path());
        command
    }

    /// Runs `report SNAP --debuginfod`, which must succeed. Returns standard output and error.
    fn asks(&self, servers: &[&Server]) -> (String, String) {
        both(self.command(servers).arg("--debuginfod"))
    }
}

/// Runs a command that must succeed. Returns standard output and error.
fn both(command: &mut Command) -> (String, String) {
    let output: Output = run(command);
    (stdout(&output), stderr(&output))
}

/// Makes a file look as old as this.
fn age(path: &Path, seconds: u64) {
    File::open(path).unwrap().set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
}

#[test]
fn lines_come_with_the_option_and_not_without() {
    let split = Split::new();
    let server = Server::new(&[(&split.path("debuginfo"), Answer::File(split.debug.clone()))]);
    // The table with names only, which stays in the cache of tables, is not the last word.
    let (out, err) = both(&mut split.command(&[&server]));
    assert!(!out.contains(LINE), "{out}");
    assert_eq!((err.as_str(), server.asked()), ("", Vec::new()));

    let (with_lines, err) = split.asks(&[&server]);
    assert!(with_lines.contains(LINE), "{with_lines}");
    let program = split.scene.program.display();
    let size = text::size(split.debug.len() as u64);
    let line = format!("report: downloads the debug information of {program} ({size}) from {}\n", server.url);
    assert_eq!(err, line);
    assert_eq!(server.asked(), [split.path("debuginfo")]);

    // elfutils' clients find the file, and need not write it.
    let cached = split.cached("debuginfo");
    assert_eq!(fs::read(&cached).unwrap(), split.debug);
    assert_eq!(split.files(), std::slice::from_ref(&cached));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&cached), mode(cached.parent().unwrap())), (0o400, 0o700));

    // Nothing is asked again: neither with the file, nor with its table alone.
    assert_eq!(split.asks(&[&server]), (with_lines.clone(), String::new()));
    fs::remove_file(&cached).unwrap();
    assert_eq!(split.asks(&[&server]), (with_lines, String::new()));
    assert_eq!(server.asked(), Vec::<String>::new());
    // Without the option what a server said does not count.
    let (out, err) = both(&mut split.command(&[&server]));
    assert!(!out.contains(LINE), "{out}");
    assert_eq!(err, "");
}

#[test]
fn a_program_that_is_gone_is_asked_for_if_its_debug_information_is_nowhere() {
    let split = Split::new();
    let (debuginfo, executable) = (split.path("debuginfo"), split.path("executable"));
    let server = Server::new(&[(&executable, Answer::File(split.whole.clone()))]);
    fs::write(&split.scene.program, "another").unwrap();
    let (out, err) = split.asks(&[&server]);
    assert!(out.contains(LINE), "{out}");
    assert!(err.starts_with("report: downloads a copy of "), "{err}");
    assert_eq!(server.asked(), [debuginfo.clone(), executable.clone()]);
    assert_eq!(fs::read(split.cached("executable")).unwrap(), split.whole);

    let split = Split::new();
    let server = Server::new(&[
        (&executable, Answer::File(split.whole.clone())),
        (&debuginfo, Answer::File(split.debug.clone())),
    ]);
    fs::remove_file(&split.scene.program).unwrap();
    let (out, _) = split.asks(&[&server]);
    assert!(out.contains(LINE), "{out}");
    assert_eq!(server.asked(), [debuginfo], "the debug information tells all");
}

#[test]
fn a_file_that_no_server_has_is_not_asked_for_again_for_ten_minutes() {
    let split = Split::new();
    let servers = [Server::new(&[]), Server::new(&[])];
    let servers = [&servers[0], &servers[1]];
    for seconds in [0, 300, 601] {
        let path = split.cached("debuginfo");
        if seconds > 0 {
            age(&path, seconds);
        }
        let (out, err) = both(split.command(&servers).args(["--debuginfod", "--diff", split.scene.path()]));
        assert!(!out.contains(LINE), "{out}");
        assert_eq!(err, "", "a file that is nowhere is nothing special");
        let expected = if seconds == 300 { vec![] } else { vec![split.path("debuginfo")] };
        assert_eq!(servers.map(Server::asked), [expected.clone(), expected], "after {seconds} s");
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    }
}

#[test]
fn a_server_that_fails_is_said_once_and_the_next_is_asked() {
    let split = Split::new();
    let closed = Server { url: "http://127.0.0.1:1".to_string(), asked: Arc::default() };
    let mut other = split.whole.clone();
    let id: Vec<u8> = build_id_bytes(&split.id);
    let at = other.windows(id.len()).position(|bytes| bytes == id).unwrap();
    other[at] ^= 1;
    let half = split.debug[..split.debug.len() / 2].to_vec();
    let bad = |answer: &Answer| {
        Server::new(&[(&split.path("debuginfo"), answer.clone()), (&split.path("executable"), answer.clone())])
    };
    let full = split.debug.len() as u64;
    let loops = Answer::Redirect(split.path("debuginfo"));
    for (server, reason) in [
        (closed, "refused"),
        (bad(&Answer::Status("503 Service Unavailable")), "503"),
        (bad(&Answer::Silence), "too slow"),
        (bad(&Answer::Trickle), "too slow"),
        (bad(&Answer::File(other)), "another build-id"),
        (bad(&Answer::File(Vec::new())), "another build-id"),
        (bad(&Answer::Claim(full, half)), ""),
        (bad(&loops), "redirects"),
    ] {
        // The program is gone, so a server might be asked for two files.
        let _ = fs::remove_file(&split.scene.program);
        let timeout = if reason == "too slow" { "1" } else { "600" };
        let (out, err) = both(split.command(&[&server]).arg("--debuginfod").env("DEBUGINFOD_TIMEOUT", timeout));
        assert!(!out.contains(LINE), "{reason}: {out}");
        let failed: Vec<&str> = err.lines().filter(|line| line.contains("is not asked any more")).collect();
        assert_eq!(failed.len(), 1, "{reason}: {err}");
        assert!(failed[0].starts_with(&format!("report: debuginfod server {} ", server.url)), "{err}");
        assert!(failed[0].contains(reason), "{err}");
        assert!(server.asked().iter().all(|path| *path == split.path("debuginfo")), "{reason}");
        assert_eq!(split.files(), Vec::<PathBuf>::new(), "{reason}: nothing is kept");
    }

    let servers = [bad(&Answer::Status("500 Broken")), bad(&Answer::File(split.debug.clone()))];
    let (out, err) = split.asks(&[&servers[0], &servers[1]]);
    assert!(out.contains(LINE), "{out}");
    assert_eq!(err.lines().count(), 2, "{err}");
}

fn build_id_bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn a_file_beyond_the_limit_is_not_taken() {
    let split = Split::new();
    for (answer, limit) in [
        (Answer::Claim(u64::MAX / 2, Vec::new()), None),
        (Answer::File(split.debug.clone()), Some(split.debug.len() - 1)),
        (Answer::Endless(split.debug.clone()), Some(split.debug.len() - 1)),
    ] {
        let server = Server::new(&[(&split.path("debuginfo"), answer)]);
        let mut command = split.command(&[&server]);
        limit.map(|limit| command.env("DEBUGINFOD_MAXSIZE", limit.to_string()));
        let (out, err) = both(command.arg("--debuginfod"));
        assert!(!out.contains(LINE), "{out}");
        assert!(err.lines().last().unwrap().contains("is not taken: larger than"), "{err}");
        assert_eq!(split.files(), Vec::<PathBuf>::new());
    }
    let server = Server::new(&[(&split.path("debuginfo"), Answer::Endless(split.debug.clone()))]);
    let (out, err) =
        both(split.command(&[&server]).arg("--debuginfod").env("DEBUGINFOD_MAXSIZE", split.debug.len().to_string()));
    assert!(out.contains(LINE), "{out}");
    assert!(err.contains("(of unknown size)"), "{err}");
}

#[test]
fn a_cache_that_cannot_be_written_is_said_once() {
    let split = Split::new();
    let servers = [0, 1].map(|_| Server::new(&[(&split.path("debuginfo"), Answer::File(split.debug.clone()))]));
    let mut command = split.command(&[&servers[0], &servers[1]]);
    let (out, err) = both(command.arg("--debuginfod").env("DEBUGINFOD_CACHE_PATH", "/proc/no/such/place"));
    assert!(!out.contains(LINE), "{out}");
    assert!(
        err.contains("report: no debuginfod server is asked any more: cannot write to /proc/no/such/place"),
        "{err}"
    );
    assert_eq!(servers.each_ref().map(|server| server.asked().len()), [1, 0]);
}

#[test]
fn redirects_are_followed_and_left_overs_removed() {
    let split = Split::new();
    let far = Server::new(&[("/far", Answer::File(split.debug.clone()))]);
    let near = Server::new(&[(&split.path("debuginfo"), Answer::Redirect(format!("{}/far", far.url)))]);
    let dir = split.cache().join(&split.id);
    fs::create_dir_all(&dir).unwrap();
    for (name, seconds) in [(".heapline-old", 4000), (".heapline-new", 10), ("source##x", 4000)] {
        fs::write(dir.join(name), "part").unwrap();
        age(&dir.join(name), seconds);
    }
    let (out, _) = split.asks(&[&near]);
    assert!(out.contains(LINE), "{out}");
    let mut files = split.files();
    files.sort();
    assert_eq!(files, [".heapline-new", "debuginfo", "source##x"].map(|name| dir.join(name)));
}

#[test]
fn names_in_the_snapshot_are_completed_and_not_asked_for_again() {
    let split = Split::new();
    let mut snapshot = read(File::open(&split.scene.snapshot).unwrap()).unwrap();
    let server = Server::new(&[(&split.path("debuginfo"), Answer::File(split.debug.clone()))]);
    for (has_lines, expected) in [(true, 0), (false, 1)] {
        let modules = vec![NamedModule { module: 0, has_lines, is_incomplete: false }];
        snapshot.names = Names { modules, ..Names::default() };
        let content = heapline_shared_format::snapshot::write(&snapshot, Vec::new(), &mut |_| {}).unwrap();
        fs::write(&split.scene.snapshot, content).unwrap();
        let (out, _) = split.asks(&[&server]);
        assert_eq!(out.contains(LINE), !has_lines, "{out}");
        assert_eq!(server.asked().len(), expected);
    }
}

#[test]
fn a_wrong_environment_is_wrong_usage() {
    let split = Split::new();
    let server = Server::new(&[]);
    let open = split.scene.dir.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    for (name, value, reason) in [
        ("DEBUGINFOD_URLS", "", "set DEBUGINFOD_URLS"),
        ("DEBUGINFOD_URLS", "ima:enforcing", "set DEBUGINFOD_URLS"),
        ("DEBUGINFOD_URLS", "ftp://localhost", "no http or https address: ftp://localhost"),
        ("DEBUGINFOD_URLS", "localhost:80", "no http or https address"),
        ("DEBUGINFOD_TIMEOUT", "soon", "DEBUGINFOD_TIMEOUT is no number: soon"),
        ("DEBUGINFOD_MAXSIZE", "1G", "DEBUGINFOD_MAXSIZE is no number: 1G"),
        ("DEBUGINFOD_CACHE_PATH", open.to_str().unwrap(), "other users can write to"),
    ] {
        let output = split.command(&[&server]).arg("--debuginfod").env(name, value).output().unwrap();
        let err = stderr(&output);
        assert_eq!((output.status.code(), err.lines().count()), (Some(2), 1), "{err}");
        assert!(err.contains(reason), "{err}");
        assert_eq!(stdout(&output), "");
    }
    assert_eq!(server.asked(), Vec::<String>::new());
}

/// A server's program, ended at the end of the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a server's program, and waits until the server is ready. None if the program is not
/// installed.
fn start(command: &mut Command, is_ready: impl Fn() -> bool) -> Option<Running> {
    let running = match command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn() {
        Ok(child) => Running(child),
        Err(error) => {
            assert!(std::env::var_os("CI").is_none_or(|value| value != "true"), "{command:?}: {error}");
            println!("skipped: {} is not installed ({error})", command.get_program().display());
            return None;
        }
    };
    for _ in 0..600 {
        if is_ready() {
            return Some(running);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("{command:?} is not ready after a minute");
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Runs openssl, which makes a key and a certificate.
fn certify(dir: &Path, arguments: &str) {
    let common = "-x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30";
    let arguments = common.split(' ').chain(arguments.split(' '));
    run(Command::new("openssl").arg("req").args(arguments).current_dir(dir));
}

#[test]
fn an_https_server_needs_a_certificate_and_stays_https() {
    let split = Split::new();
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let mut command = Command::new("openssl");
    // Each file is a whole answer, with its head.
    command.args(["s_server", "-HTTP", "-cert", "server.pem", "-key", "server.key", "-accept"]);
    command.arg(port.to_string()).current_dir(dir.path());
    if Command::new("openssl").arg("version").output().is_ok() {
        certify(dir.path(), "-subj /CN=authority -keyout authority.key -out authority.pem");
        certify(
            dir.path(),
            "-subj /CN=localhost -keyout server.key -out server.pem -CA authority.pem -CAkey authority.key \
             -addext subjectAltName=DNS:localhost -addext basicConstraints=critical,CA:FALSE",
        );
    }
    let is_ready = || TcpStream::connect(("127.0.0.1", port)).is_ok();
    let Some(_openssl) = start(&mut command, is_ready) else { return };
    let server = Server { url: format!("https://localhost:{port}"), asked: Arc::default() };
    let plain = Server::new(&[("/plain", Answer::File(split.debug.clone()))]);
    let file = dir.path().join(&split.path("debuginfo")[1..]);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    let asks = |answer: &[u8], authority: &str| {
        fs::write(&file, answer).unwrap();
        both(split.command(&[&server]).arg("--debuginfod").env("SSL_CERT_FILE", dir.path().join(authority)))
    };

    let redirect = format!("HTTP/1.1 302 Found\r\nLocation: {}/plain\r\nContent-Length: 0\r\n\r\n", plain.url);
    let (out, err) = asks(redirect.as_bytes(), "authority.pem");
    assert!(!out.contains(LINE), "{out}");
    assert!(err.contains("is not asked any more: configured for https only"), "{err}");
    assert_eq!(plain.asked(), Vec::<String>::new());

    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", split.debug.len());
    let answer = [head.as_bytes(), &split.debug].concat();
    let (out, err) = asks(&answer, "nothing.pem");
    assert!(!out.contains(LINE), "{out}");
    assert!(err.contains("invalid peer certificate"), "{err}");

    let (out, err) = asks(&answer, "authority.pem");
    assert!(out.contains(LINE), "{out}{err}");
}

#[test]
fn the_server_of_elfutils_is_understood() {
    let split = Split::new();
    let programs = split.scene.dir.path().join("programs");
    fs::create_dir(&programs).unwrap();
    fs::write(programs.join("whole"), &split.whole).unwrap();
    fs::set_permissions(programs.join("whole"), fs::Permissions::from_mode(0o755)).unwrap();
    let port = free_port();
    let is_known = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        let path = split.path("debuginfo");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).ok()?;
        Some(answer.contains(" 200 "))
    };
    let mut command = Command::new("debuginfod");
    command.arg(format!("--port={port}")).arg("--database=:memory:").arg("-F").arg(&programs);
    let is_ready = || is_known() == Some(true);
    let Some(elfutils) = start(command.env_remove("DEBUGINFOD_URLS"), is_ready) else { return };
    let server = Server { url: format!("http://127.0.0.1:{port}/"), asked: Arc::default() };
    let (out, err) = split.asks(&[&server]);
    assert!(out.contains(LINE), "{out}");
    assert!(err.starts_with("report: downloads the debug information of "), "{err}");
    assert_eq!(fs::read(split.cached("debuginfo")).unwrap(), split.whole, "a file with all information");

    // A server that was there in the last run.
    fs::remove_dir_all(split.scene.dir.path().join("cache")).unwrap();
    drop(elfutils);
    let (out, err) = split.asks(&[&server]);
    assert!(!out.contains(LINE), "{out}");
    assert!(err.contains("is not asked any more"), "{err}");
}
