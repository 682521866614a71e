//! A server of lines: `put KEY VALUE`, `get KEY`, `log TEXT`. A thread answers each connection.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

#[derive(Default)]
struct Store {
    values: HashMap<String, Vec<u8>>,
    by_length: BTreeMap<usize, Vec<String>>,
    log: Vec<Box<str>>,
}

impl Store {
    fn put(&mut self, key: &str, value: &str) -> String {
        self.by_length.entry(value.len()).or_default().push(key.to_owned());
        let old = self.values.insert(key.to_owned(), value.repeat(20).into_bytes());
        format!("{} bytes before", old.map_or(0, |old| old.len()))
    }

    fn get(&self, key: &str) -> String {
        let value = self.values.get(key).map(|value| String::from_utf8_lossy(value).into_owned());
        value.unwrap_or_else(|| "none".to_owned())
    }

    fn log(&mut self, text: &str) -> String {
        self.log.push(text.split(' ').map(str::to_uppercase).collect::<Vec<_>>().join("-").into_boxed_str());
        format!("{} lines", self.log.len())
    }
}

fn answer(store: &Mutex<Store>, line: &str) -> String {
    let mut store = store.lock().expect("no thread panics");
    match line.trim().splitn(3, ' ').collect::<Vec<_>>()[..] {
        ["put", key, value] => store.put(key, value),
        ["get", key] => store.get(key),
        ["log", first, rest] => store.log(&format!("{first} {rest}")),
        _ => "unknown".to_owned(),
    }
}

fn serve(store: Arc<Mutex<Store>>, stream: TcpStream) -> std::io::Result<()> {
    let mut out = stream.try_clone()?;
    for line in BufReader::new(stream).lines() {
        writeln!(out, "{}", answer(&store, &line?))?;
    }
    Ok(())
}

fn main() -> std::io::Result<()> {
    let port = std::env::args().nth(1).expect("usage: server PORT").parse().expect("a port");
    let store = Arc::new(Mutex::new(Store::default()));
    for stream in TcpListener::bind(("127.0.0.1", port))?.incoming() {
        let (store, stream) = (Arc::clone(&store), stream?);
        std::thread::spawn(move || serve(store, stream));
    }
    Ok(())
}
