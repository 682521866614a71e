//! The client of debuginfod servers, for `report --debuginfod`.
//!
//! A server is sent build-ids, and answers with debug information or with whole files.
//!
//! - The servers are those of `DEBUGINFOD_URLS`. None is asked without the option.
//! - Files are kept in the cache of elfutils' clients, so gdb and `report` download a file once for
//!   both. A file that no server has is not asked for again for ten minutes (an empty file in the
//!   cache, as elfutils does).
//! - An answer is bounded in size and time, and kept only if the build-id fits. The content is
//!   believed no more than any other file's.
//! - A server that fails is said once and not asked again. A report never fails for a server.
//!
//! elfutils' signatures of files (`ima:` in `DEBUGINFOD_URLS`) are not checked.

use crate::symbols::{Artifact, Fetch, Object, is_private_cache_dir};
use heapline_shared_format::text::size;
use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use ureq::http::{StatusCode, Uri};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body};

/// Seconds without progress after which a server is given up (elfutils: `DEBUGINFOD_TIMEOUT`).
const DEFAULT_TIMEOUT: u64 = 90;
/// Most bytes of a file.
const DEFAULT_MAX_BYTES: u64 = 2 << 30;
/// Least progress within the timeout, in bytes, as elfutils demands it.
const LEAST_PROGRESS: u64 = 100 << 10;
const MAX_REDIRECTS: u32 = 5;
/// Longest build-id that is asked for, in bytes, as in elfutils.
const MAX_BUILD_ID: usize = 64;
/// Time for which the answer "no such file" is remembered (elfutils: `cache_miss_s`).
const MISS: Duration = Duration::from_secs(600);
/// Begin of the names of files that are being downloaded.
const PARTIAL: &str = ".heapline-";
/// Age of a partial file whose download has certainly ended: by a signal, say.
const LEFT_OVER: Duration = Duration::from_secs(3600);

/// Downloads files of objects, by build-id.
pub struct Client {
    agent: Agent,
    servers: Vec<Server>,
    cache: PathBuf,
    /// Time without progress after which a server is given up; none for ever.
    timeout: Option<Duration>,
    max_bytes: Option<u64>,
    /// Writes a line for the user.
    say: fn(&str),
    /// Answers of this run, by build-id.
    answers: Mutex<HashMap<(String, Artifact), Option<PathBuf>>>,
}

struct Server {
    url: String,
    /// The URL without passwords and paths.
    name: String,
    is_https: bool,
    is_given_up: AtomicBool,
}

/// Reason why there is no answer.
enum Failure {
    /// The server fails, and is not asked again.
    Server(String),
    /// This one file is not taken.
    File(String),
    /// The cache cannot be written.
    Cache(io::Error),
}

impl Client {
    /// Makes a client as elfutils' variables say. `say` writes a line for the user: one for each
    /// download and each failure.
    ///
    /// # Errors
    ///
    /// Fails with a sentence if the variables name no server, no usable cache, or no numbers.
    pub fn from_environment(say: fn(&str)) -> Result<Client, String> {
        let urls = variable("DEBUGINFOD_URLS").unwrap_or_default();
        let tokens = urls.split_whitespace().filter(|token| !token.starts_with("ima:"));
        let servers = tokens.map(Server::new).collect::<Result<Vec<_>, _>>()?;
        if servers.is_empty() {
            return Err("--debuginfod needs servers: set DEBUGINFOD_URLS, such as \
                        DEBUGINFOD_URLS=https://debuginfod.elfutils.org"
                .to_string());
        }
        let cache = cache_dir().ok_or("--debuginfod needs a folder for files: set DEBUGINFOD_CACHE_PATH")?;
        if !is_private_cache_dir(&cache) {
            return Err(format!(
                "other users can write to {}: set DEBUGINFOD_CACHE_PATH to a folder of your own",
                cache.display()
            ));
        }
        let timeout = number("DEBUGINFOD_TIMEOUT", DEFAULT_TIMEOUT)?.map(Duration::from_secs);
        let max_bytes = number("DEBUGINFOD_MAXSIZE", DEFAULT_MAX_BYTES)?;
        let mut agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(MAX_REDIRECTS)
            .user_agent(concat!("heapline/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(timeout)
            .timeout_connect(timeout)
            .timeout_send_request(timeout)
            .timeout_recv_response(timeout)
            .timeout_per_read(timeout);
        if servers.iter().any(|server| server.is_https) {
            agent = agent.tls_config(TlsConfig::builder().root_certs(root_certificates()).build());
        }
        let agent = agent.build().into();
        Ok(Client { agent, servers, cache, timeout, max_bytes, say, answers: Mutex::default() })
    }

    /// Returns the path of a file in the cache. Downloads the file if it is not there.
    fn path_of(&self, object: &Object, artifact: Artifact) -> Option<PathBuf> {
        let dir = self.cache.join(object.build_id_hex());
        let path = dir.join(name_of(artifact));
        match fs::metadata(&path) {
            Ok(found) if found.len() > 0 => return Some(path),
            Ok(found) if is_younger(&found, MISS) => return None,
            // An old miss.
            Ok(_) => fs::remove_file(&path).ok()?,
            Err(_) => {}
        }
        let mut is_missing_everywhere = true;
        for server in &self.servers {
            if server.is_given_up.load(Ordering::Relaxed) {
                is_missing_everywhere = false;
                continue;
            }
            match self.download(server, object, artifact, &path) {
                Ok(true) => return Some(path),
                Ok(false) => {}
                Err(failure) => {
                    is_missing_everywhere = false;
                    self.note(server, object, artifact, failure);
                }
            }
        }
        if is_missing_everywhere {
            // Without the mark the servers are asked again, which is only slower.
            let _ = make_dir(&dir).and_then(|()| File::create_new(&path));
        }
        None
    }

    /// Downloads a file to `path`. Returns whether the server has the file.
    fn download(&self, server: &Server, object: &Object, artifact: Artifact, path: &Path) -> Result<bool, Failure> {
        let url = format!("{}/buildid/{}/{}", server.url, object.build_id_hex(), name_of(artifact));
        let request = self.agent.get(url).config().https_only(server.is_https).build();
        let mut response = request.call().map_err(|error| self.failure(error))?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(false),
            status => return Err(Failure::Server(format!("the answer is \"{status}\""))),
        }
        let bytes = response.body().content_length();
        self.check_size(bytes.unwrap_or(0))?;
        let length = bytes.map_or("of unknown size".to_string(), size);
        (self.say)(&format!("downloads {} ({length}) from {}", described(object, artifact), server.name));

        let dir = path.parent().unwrap_or(Path::new("."));
        make_dir(dir).map_err(Failure::Cache)?;
        remove_left_overs(dir);
        let mut file = tempfile::Builder::new().prefix(PARTIAL).tempfile_in(dir).map_err(Failure::Cache)?;
        self.receive(response.body_mut(), file.as_file_mut())?;
        if !object.is_described_by(file.path()) {
            return Err(Failure::Server("the answer is a file with another build-id".to_string()));
        }
        // Read-only, as elfutils' clients leave their files.
        file.as_file().set_permissions(Permissions::from_mode(0o400)).map_err(Failure::Cache)?;
        file.persist(path).map_err(|error| Failure::Cache(error.error))?;
        Ok(true)
    }

    /// Copies an answer to a file, within the limits of size and time.
    fn receive(&self, body: &mut Body, file: &mut File) -> Result<(), Failure> {
        let mut reader = body.as_reader();
        let mut buffer = vec![0; 1 << 16];
        let mut received = 0;
        let (mut begun, mut progress) = (Instant::now(), 0);
        loop {
            let count = reader.read(&mut buffer).map_err(|error| self.failure(error.into()))?;
            if count == 0 {
                return Ok(());
            }
            received += count as u64;
            self.check_size(received)?;
            file.write_all(&buffer[..count]).map_err(Failure::Cache)?;
            progress += count as u64;
            if progress >= LEAST_PROGRESS {
                (begun, progress) = (Instant::now(), 0);
            } else if self.timeout.is_some_and(|timeout| begun.elapsed() > timeout) {
                return Err(self.too_slow());
            }
        }
    }

    fn check_size(&self, bytes: u64) -> Result<(), Failure> {
        match self.max_bytes {
            Some(most) if bytes > most => {
                Err(Failure::File(format!("larger than {}, the limit of DEBUGINFOD_MAXSIZE", size(most))))
            }
            _ => Ok(()),
        }
    }

    fn failure(&self, error: ureq::Error) -> Failure {
        match error {
            ureq::Error::Timeout(_) => self.too_slow(),
            ureq::Error::Io(error) => Failure::Server(error.to_string()),
            error => Failure::Server(error.to_string()),
        }
    }

    fn too_slow(&self) -> Failure {
        let seconds = self.timeout.map_or(0, |timeout| timeout.as_secs());
        Failure::Server(format!("too slow for DEBUGINFOD_TIMEOUT, {seconds} s"))
    }

    fn note(&self, server: &Server, object: &Object, artifact: Artifact, failure: Failure) {
        let name = &server.name;
        match failure {
            Failure::Server(reason) => {
                server.is_given_up.store(true, Ordering::Relaxed);
                (self.say)(&format!("debuginfod server {name} is not asked any more: {reason}"));
            }
            Failure::File(reason) => {
                (self.say)(&format!("{} from {name} is not taken: {reason}", described(object, artifact)));
            }
            Failure::Cache(error) => {
                self.servers.iter().for_each(|server| server.is_given_up.store(true, Ordering::Relaxed));
                let cache = self.cache.display();
                (self.say)(&format!("no debuginfod server is asked any more: cannot write to {cache} ({error})"));
            }
        }
    }
}

impl Fetch for Client {
    fn fetch(&self, object: &Object, artifact: Artifact) -> Option<PathBuf> {
        if object.build_id().len() > MAX_BUILD_ID {
            return None;
        }
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let question = (object.build_id_hex(), artifact);
        answers.entry(question).or_insert_with(|| self.path_of(object, artifact)).clone()
    }
}

impl Server {
    fn new(url: &str) -> Result<Server, String> {
        let uri: Option<Uri> = url.parse().ok();
        let parts = uri.as_ref().and_then(|uri| Some((uri.scheme_str()?, uri.host()?, uri.port())));
        let Some((scheme @ ("http" | "https"), host, port)) = parts else {
            return Err(format!("DEBUGINFOD_URLS has a server that is no http or https address: {url}"));
        };
        let port = port.map_or(String::new(), |port| format!(":{port}"));
        Ok(Server {
            url: url.trim_end_matches('/').to_string(),
            name: format!("{scheme}://{host}{port}"),
            is_https: scheme == "https",
            is_given_up: AtomicBool::new(false),
        })
    }
}

/// Name of a file in URLs and in the cache.
fn name_of(artifact: Artifact) -> &'static str {
    match artifact {
        Artifact::DebugInfo => "debuginfo",
        Artifact::Executable => "executable",
    }
}

fn described(object: &Object, artifact: Artifact) -> String {
    let what = match artifact {
        Artifact::DebugInfo => "the debug information",
        Artifact::Executable => "a copy",
    };
    format!("{what} of {}", object.path().display())
}

/// Returns the certificates of this system, so that a company's own servers are believed; the usual
/// certificates if the system has none.
fn root_certificates() -> RootCerts {
    let found = rustls_native_certs::load_native_certs().certs;
    if found.is_empty() {
        return RootCerts::WebPki;
    }
    found.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect::<Vec<_>>().into()
}

/// Returns the cache of elfutils' clients; none without a home.
fn cache_dir() -> Option<PathBuf> {
    let folder = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    if let Some(path) = variable("DEBUGINFOD_CACHE_PATH") {
        return std::path::absolute(path).ok();
    }
    let base = folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")))?;
    Some(base.join("debuginfod_client"))
}

/// Returns the value of a variable that is set and not empty.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Returns the number in a variable. None if the variable lifts the limit, by zero or less.
fn number(name: &str, default: u64) -> Result<Option<u64>, String> {
    let Some(value) = variable(name) else { return Ok(Some(default)) };
    match value.trim().parse::<i64>() {
        Ok(number) => Ok(u64::try_from(number).ok().filter(|&number| number > 0)),
        Err(_) => Err(format!("{name} is no number: {value}")),
    }
}

fn is_younger(found: &fs::Metadata, age: Duration) -> bool {
    found.modified().is_ok_and(|time| time.elapsed().is_ok_and(|elapsed| elapsed < age))
}

fn make_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Removes the partial files of downloads that were cut off.
fn remove_left_overs(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let is_partial = entry.file_name().to_string_lossy().starts_with(PARTIAL);
        if is_partial && entry.metadata().is_ok_and(|found| !is_younger(&found, LEFT_OVER)) {
            // Another report may have removed the file.
            let _ = fs::remove_file(entry.path());
        }
    }
}
