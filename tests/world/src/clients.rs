//! Short loads for servers, one for each kind. A load returns the server's answers without parts
//! that differ from run to run (dates, process ids, random salts).

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

/// Longest wait for a byte of an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Number of connections, or questions, of a load.
const ROUNDS: usize = 20;

fn connect(port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Sends `request` and reads until the server closes the connection.
fn exchange(port: u16, request: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = connect(port)?;
    stream.write_all(request)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// HTTP: successive requests, and a missing page.
pub fn http(port: u16) -> io::Result<String> {
    let mut dialogue = String::new();
    for round in 0..ROUNDS {
        let path = if round == 7 { "/missing" } else { "/text.txt" };
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let answer = exchange(port, request.as_bytes())?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.lines().next().unwrap_or("no status");
        let body = if round == 7 { "" } else { body };
        let _ = writeln!(dialogue, "{path} {status} {} bytes: {}", body.len(), body.trim_end());
    }
    Ok(dialogue)
}

/// Redis: a pipeline of commands on several types of values.
pub fn redis(port: u16) -> io::Result<String> {
    let mut request = String::new();
    for n in 0..500 {
        let _ = write!(request, "SET key{n} {}\r\nLPUSH list value{n}\r\nHSET hash field{n} {n}\r\n", "x".repeat(n));
    }
    request += "LLEN list\r\nHLEN hash\r\nGET key9\r\nDEL list hash\r\nEVAL \"return #KEYS + 41\" 1 a\r\nQUIT\r\n";
    Ok(String::from_utf8_lossy(&exchange(port, request.as_bytes())?).into_owned())
}

/// Memcached: values of growing sizes.
pub fn memcached(port: u16) -> io::Result<String> {
    let mut request = String::new();
    for n in 0..500 {
        let _ = write!(request, "set key{n} 0 0 {n}\r\n{}\r\nget key{n}\r\n", "x".repeat(n));
    }
    request += "delete key9\r\nget key9\r\nquit\r\n";
    Ok(String::from_utf8_lossy(&exchange(port, request.as_bytes())?).into_owned())
}

/// MQTT: a client that subscribes to its own messages.
pub fn mqtt(port: u16) -> io::Result<String> {
    let connect_packet = b"\x10\x11\x00\x04MQTT\x04\x02\x00\x3c\x00\x05world";
    let subscribe = b"\x82\x08\x00\x01\x00\x03a/b\x00";
    let publish = b"\x30\x09\x00\x03a/btext";
    let mut stream = connect(port)?;
    stream.write_all(connect_packet)?;
    let mut answer = read_bytes(&mut stream, 4)?;
    stream.write_all(subscribe)?;
    answer.extend(read_bytes(&mut stream, 5)?);
    for _ in 0..ROUNDS {
        stream.write_all(publish)?;
        answer.extend(read_bytes(&mut stream, publish.len())?);
    }
    stream.write_all(b"\xe0\x00")?;
    // When the server closes the connection, the server has noted the end of this client.
    stream.read_to_end(&mut answer)?;
    Ok(hexadecimal(&answer))
}

/// DNS over TCP: a name known to the server, asked for on a new connection each time.
pub fn dns(port: u16) -> io::Result<String> {
    let query = b"\x00\x1e\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x05world\x04test\x00\x00\x01\x00\x01";
    let mut dialogue = String::new();
    for _ in 0..ROUNDS {
        let mut stream = connect(port)?;
        stream.write_all(query)?;
        let length = read_bytes(&mut stream, 2)?;
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        let answer = read_bytes(&mut stream, length)?;
        stream.shutdown(Shutdown::Both)?;
        let _ = writeln!(dialogue, "{}", hexadecimal(&answer));
    }
    Ok(dialogue)
}

/// PostgreSQL: a session with tables, sorting, and an error. Rows and command tags are kept;
/// process ids, parameters and errors are not.
pub fn postgres(port: u16) -> io::Result<String> {
    let queries = [
        "create temp table t as select n, md5(n::text) as m from generate_series(1, 5000) n",
        "create index on t (m)",
        "select count(*), min(m), max(m) from t",
        "select n from t order by m desc limit 3",
        "select no_such_column from t",
        "select json_agg(n) from (select n from t limit 5) s",
    ];
    let mut request = Vec::new();
    let startup = b"\x00\x03\x00\x00user\0postgres\0database\0postgres\0\0";
    request.extend(length_with_itself(startup));
    request.extend(startup);
    for query in queries {
        request.push(b'Q');
        let text = [query.as_bytes(), b"\0"].concat();
        request.extend(length_with_itself(&text));
        request.extend(text);
    }
    request.extend(b"X\x00\x00\x00\x04");
    let answer = exchange(port, &request)?;
    Ok(postgres_messages(&answer).filter(|message| matches!(message.0, b'D' | b'C')).fold(
        String::new(),
        |mut dialogue, (kind, body)| {
            let _ = writeln!(dialogue, "{} {}", char::from(kind), body.escape_ascii());
            dialogue
        },
    ))
}

fn length_with_itself(text: &[u8]) -> [u8; 4] {
    u32::try_from(text.len() + 4).unwrap_or(u32::MAX).to_be_bytes()
}

/// Returns the kind and the body of each message.
fn postgres_messages(mut bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let (&[kind, a, b, c, d], _) = bytes.split_first_chunk()?;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        let body = bytes.get(5..length + 1)?;
        bytes = &bytes[length + 1..];
        Some((kind, body))
    })
}

/// MariaDB: a session with a table in memory. The dialogue after the greeting is kept.
pub fn mariadb(port: u16) -> io::Result<String> {
    let mut stream = connect(port)?;
    read_packet(&mut stream)?;
    // Protocol 4.1, secure connection, plugin authentication; 16 MiB packets; UTF-8; no password.
    let capabilities = 0x0008_8200_u32.to_le_bytes();
    let login = [&capabilities[..], &[0, 0, 0, 1, 33], &[0; 23], b"root\0\0mysql_native_password\0"].concat();
    write_packet(&mut stream, 1, &login)?;
    let mut dialogue = hexadecimal(&read_packet(&mut stream)?[..1]);
    let queries = [
        "create database if not exists world",
        "create or replace table world.t engine=memory as select seq as n, md5(seq) as m from seq_1_to_1000",
        "select no_such_column",
        "drop table world.t",
    ];
    for query in queries {
        write_packet(&mut stream, 0, &[b"\x03", query.as_bytes()].concat())?;
        let _ = write!(dialogue, "\n{}", read_packet(&mut stream)?.escape_ascii());
    }
    write_packet(&mut stream, 0, b"\x01")?;
    Ok(dialogue)
}

fn read_packet(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let header = read_bytes(stream, 4)?;
    let length = u32::from_le_bytes([header[0], header[1], header[2], 0]) as usize;
    read_bytes(stream, length.max(1))
}

fn write_packet(stream: &mut TcpStream, number: u8, body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes();
    stream.write_all(&[&length[..3], &[number], body].concat())
}

fn read_bytes(stream: &mut TcpStream, count: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    #[test]
    fn http_keeps_status_and_body_and_leaves_dates_out() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let server = thread::spawn(move || {
            for n in 0..ROUNDS {
                let (mut stream, _) = listener.accept().expect("a client");
                let mut request = [0; 1024];
                assert!(stream.read(&mut request).expect("a request") > 0);
                let answer = format!("HTTP/1.1 200 OK\r\nDate: {n}\r\n\r\ntext\n");
                stream.write_all(answer.as_bytes()).expect("the client reads");
            }
        });
        let dialogue = http(port).expect("a server");
        server.join().expect("the server ends");
        assert_eq!(dialogue.lines().next(), Some("/text.txt HTTP/1.1 200 OK 5 bytes: text"));
        assert!(!dialogue.contains("Date"));
    }

    #[test]
    fn messages_of_postgres_are_taken_apart_and_a_cut_one_ends_them() {
        let bytes = b"D\x00\x00\x00\x06abZ\x00\x00\x00\x04C\x00\x00\x00\x09x";
        let messages: Vec<_> = postgres_messages(bytes).collect();
        assert_eq!(messages, [(b'D', &b"ab"[..]), (b'Z', &b""[..])]);
    }
}
