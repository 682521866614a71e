//! Servers on loopback, each with a short load and the usual signal to end the server.

use super::{File, Kind, Life, Python, Server, Subject, Works, words};
use crate::clients;
use libc::{SIGINT, SIGQUIT, SIGTERM};
use std::fs;
use std::path::PathBuf;

macro_rules! files {
    ($($name:literal),*) => {
        vec![$(File { name: $name, text: include_str!(concat!("../../subjects/", $name)) }),*]
    };
}

/// Makes a server as most of Debian's: a single process, ended by SIGTERM.
fn debian(name: &str, packages: &'static [&'static str], argv: &[&str], load: Load) -> Subject {
    let argv = words(argv);
    Subject {
        kind: Kind::Server,
        name: name.to_owned(),
        packages,
        wheels: &[],
        program: argv.first().map(PathBuf::from).unwrap_or_default(),
        argv,
        files: Vec::new(),
        prepare: None,
        life: Life::Server(Server { load, signal: SIGTERM, works: Works::Itself, ready: None }),
    }
}

type Load = fn(u16) -> std::io::Result<String>;

impl Subject {
    fn with_files(mut self, files: Vec<File>) -> Subject {
        self.files = files;
        self
    }

    fn ended_by(mut self, ending: i32) -> Subject {
        if let Life::Server(server) = &mut self.life {
            server.signal = ending;
        }
        self
    }

    fn worked_by(mut self, process: Works) -> Subject {
        if let Life::Server(server) = &mut self.life {
            server.works = process;
        }
        self
    }

    fn ready_with(mut self, words: &'static str) -> Subject {
        if let Life::Server(server) = &mut self.life {
            server.ready = Some(words);
        }
        self
    }

    fn prepared_by(mut self, script: &str) -> Subject {
        self.prepare = Some(words(&["/bin/sh", "-c", script]));
        self
    }

    fn of_wheels(mut self, wheels: &'static [&'static str]) -> Subject {
        self.wheels = wheels;
        self
    }
}

/// All servers.
pub fn all(python: &Python) -> Vec<Subject> {
    let mut servers = plain();
    servers.extend(with_workers());
    servers.extend(databases());
    servers.extend(interpreted(python));
    servers
}

fn plain() -> Vec<Subject> {
    let redis =
        ["/usr/bin/redis-server", "--bind", "127.0.0.1", "--port", "{port}", "--save", "", "--dir", "{scratch}"];
    let memcached = ["/usr/bin/memcached", "-u", "root", "-l", "127.0.0.1", "-p", "{port}", "-U", "0"];
    let haproxy = ["/usr/sbin/haproxy", "-db", "-f", "haproxy.cfg"];
    let lighttpd = ["/usr/sbin/lighttpd", "-D", "-f", "lighttpd.conf"];
    let mosquitto = ["/usr/sbin/mosquitto", "-c", "mosquitto.conf"];
    let unbound = ["/usr/sbin/unbound", "-d", "-c", "{scratch}/unbound.conf"];
    vec![
        debian("redis", &["redis-server"], &redis, clients::redis),
        debian("memcached", &["memcached"], &memcached, clients::memcached),
        debian("haproxy", &["haproxy"], &haproxy, clients::http).with_files(files!["haproxy.cfg"]),
        // SIGTERM drops open connections, and sometimes lighttpd then ends with status 1.
        debian("lighttpd", &["lighttpd"], &lighttpd, clients::http)
            .with_files(files!["lighttpd.conf", "text.txt"])
            .ended_by(SIGINT),
        debian("mosquitto", &["mosquitto"], &mosquitto, clients::mqtt).with_files(files!["mosquitto.conf"]),
        debian("unbound", &["unbound"], &unbound, clients::dns).with_files(files!["unbound.conf"]),
    ]
}

fn with_workers() -> Vec<Subject> {
    let nginx = ["/usr/sbin/nginx", "-p", "{scratch}", "-e", "stderr", "-c", "nginx.conf"];
    let apache = ["/usr/sbin/apache2", "-f", "{scratch}/apache.conf", "-DFOREGROUND"];
    let dnsmasq = [
        "/usr/sbin/dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--port={port}",
        "--user=root",
        "--pid-file=",
        "--no-resolv",
        "--no-hosts",
        "--listen-address=127.0.0.1",
        "--bind-interfaces",
        "--log-facility=-",
        "--address=/world.test/10.1.2.3",
    ];
    vec![
        debian("nginx", &["nginx-light"], &nginx, clients::http)
            .with_files(files!["nginx.conf", "text.txt"])
            .ended_by(SIGQUIT)
            .worked_by(Works::FirstChild),
        debian("apache", &["apache2"], &apache, clients::http)
            .with_files(files!["apache.conf", "text.txt"])
            .worked_by(Works::FirstChild),
        debian("dnsmasq", &["dnsmasq"], &dnsmasq, clients::dns).worked_by(Works::NewChildren),
    ]
}

fn databases() -> Vec<Subject> {
    let programs = postgres_programs();
    let postgres = format!("{programs}/postgres");
    let as_postgres = ["/usr/bin/setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"];
    let options = [&postgres, "-D", "{scratch}/data", "-k", "{scratch}", "-h", "127.0.0.1", "-p", "{port}"];
    let argv = [&as_postgres[..], &options].concat();
    let initdb = format!(
        "chown postgres . && {} {programs}/initdb -D {{scratch}}/data -A trust -U postgres -N",
        as_postgres.join(" ")
    );
    let mut postgresql = debian("postgresql", &["postgresql"], &argv, clients::postgres)
        .prepared_by(&initdb)
        .ended_by(SIGINT)
        .worked_by(Works::NewChildren)
        .ready_with("ready to accept connections");
    postgresql.program = postgres.into();
    let mariadb = [
        "/usr/sbin/mariadbd",
        "--no-defaults",
        "--user=root",
        "--datadir={scratch}/data",
        "--socket={scratch}/socket",
        "--bind-address=127.0.0.1",
        "--port={port}",
        "--skip-grant-tables",
        "--innodb-buffer-pool-size=32M",
    ];
    let install = "mariadb-install-db --no-defaults --user=root --datadir={scratch}/data --skip-test-db";
    vec![postgresql, debian("mariadb", &["mariadb-server"], &mariadb, clients::mariadb).prepared_by(install)]
}

/// Folder of PostgreSQL's programs. The path contains the version.
fn postgres_programs() -> String {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions.map(|version| version.path().join("bin")).max();
    newest.unwrap_or_else(|| PathBuf::from("/usr/lib/postgresql/bin")).display().to_string()
}

fn interpreted(python: &Python) -> Vec<Subject> {
    let interpreter = python.program();
    let http_server = [&interpreter, "-m", "http.server", "--bind", "127.0.0.1", "{port}"];
    let gunicorn = [&interpreter, "-m", "gunicorn", "-w", "1", "-b", "127.0.0.1:{port}", "site_app:wsgi"];
    let uvicorn = [&interpreter, "-m", "uvicorn", "--port", "{port}", "site_app:asgi"];
    let node = ["/usr/bin/node", "server.js", "{port}"];
    let php = ["/usr/bin/php", "-S", "127.0.0.1:{port}", "site.php"];
    vec![
        debian("python http.server", &["python3-venv"], &http_server, clients::http)
            .with_files(files!["text.txt"])
            .ended_by(SIGINT),
        debian("gunicorn", &["python3-venv"], &gunicorn, clients::http)
            .of_wheels(&["gunicorn"])
            .with_files(files!["site_app.py"])
            .worked_by(Works::FirstChild),
        debian("uvicorn", &["python3-venv"], &uvicorn, clients::http)
            .of_wheels(&["uvicorn"])
            .with_files(files!["site_app.py"])
            .ended_by(SIGINT),
        debian("node http", &["nodejs"], &node, clients::http).with_files(files!["server.js"]),
        debian("php -S", &["php-cli"], &php, clients::http).with_files(files!["site.php"]),
    ]
}
