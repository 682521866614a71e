//! Reads the data of a page of `--format html`, as the page's own program does.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::read::ZlibDecoder;
use serde_json::Value;
use std::collections::HashMap;
use std::io::Read;

/// The head and the columns of a page.
pub struct Page {
    pub head: Value,
    columns: HashMap<String, (String, usize, Vec<u8>)>,
}

impl Page {
    pub fn of(html: &str) -> Page {
        let element = |id: &str| {
            let (_, rest) = html.split_once(&format!("<script id=\"{id}\"")).expect("the element");
            let (_, rest) = rest.split_once('>').expect("its begin");
            rest.split_once("</script>").expect("its end").0
        };
        let head = serde_json::from_str(element("head")).expect("JSON");
        let packed = STANDARD.decode(element("data")).expect("base64");
        let mut bytes = Vec::new();
        ZlibDecoder::new(&packed[..]).read_to_end(&mut bytes).expect("zlib");
        let (length, rest) = bytes.split_at(4);
        let (list, mut rest) = rest.split_at(u32::from_le_bytes(length.try_into().unwrap()) as usize);
        let list: Vec<(String, String, usize, usize)> = serde_json::from_slice(list).expect("a list");
        let mut columns = HashMap::new();
        for (name, coding, count, length) in list {
            let (column, behind) = rest.split_at(length);
            columns.insert(name, (coding, count, column.to_vec()));
            rest = behind;
        }
        assert!(rest.is_empty(), "nothing behind the columns");
        Page { head, columns }
    }

    pub fn numbers(&self, name: &str) -> Vec<i128> {
        let (coding, count, mut bytes) = self.columns.get(name).map(|(c, n, b)| (c, n, &b[..])).expect("the column");
        let mut last = 0_i128;
        let values: Vec<i128> = (0..*count)
            .map(|_| {
                let value = i128::from(varint(&mut bytes));
                let signed = if value % 2 == 0 { value / 2 } else { -(value + 1) / 2 };
                match coding.as_str() {
                    "plain" => value,
                    "signed" => signed,
                    "steps" => {
                        last += signed;
                        last
                    }
                    other => panic!("{name} has {other}"),
                }
            })
            .collect();
        assert!(bytes.is_empty(), "{name} has more bytes than values");
        values
    }

    pub fn texts(&self, name: &str) -> Vec<String> {
        let (_, count, bytes) = &self.columns[name];
        let mut bytes = &bytes[..];
        let text = |_| {
            let length = usize::try_from(varint(&mut bytes)).unwrap();
            let (text, rest) = bytes.split_at(length);
            bytes = rest;
            String::from_utf8(text.to_vec()).expect("UTF-8")
        };
        (0..*count).map(text).collect()
    }

    /// The tree of calls in the order of the page: depth, function, last part of the place, flags.
    pub fn nodes(&self) -> Vec<(usize, String, String, i128)> {
        let texts = self.texts("texts");
        let text = |index: i128| texts[usize::try_from(index).unwrap()].clone();
        let [functions, files, mut lines] =
            ["frame.function", "frame.file", "frame.line"].map(|name| self.numbers(name));
        (1..lines.len()).for_each(|index| lines[index] += lines[index - 1]);
        let (depths, frames, flags) =
            (self.numbers("node.depth"), self.numbers("node.frame"), self.numbers("node.flags"));
        let node = |((depth, frame), flags): ((i128, i128), i128)| {
            let frame = usize::try_from(frame).unwrap();
            let file = text(files[frame]);
            let place = format!("{}:{}", file.rsplit('/').next().unwrap(), lines[frame]);
            (usize::try_from(depth).unwrap(), text(functions[frame]), place, flags)
        };
        depths.into_iter().zip(frames).zip(flags).map(node).collect()
    }

    /// Bytes and blocks of a domain at a moment, of the new processes or of the old.
    pub fn sums(&self, domain: &str, at: &str, old: bool) -> (i128, i128) {
        let number = self.head["domains"].as_array().unwrap().iter().position(|one| one["name"] == domain).unwrap();
        let (processes, domains) = (self.numbers("row.process"), self.numbers("row.domain"));
        let is_wanted = |row: usize| {
            let process = &self.head["processes"][usize::try_from(processes[row]).unwrap()];
            domains[row] == i128::try_from(number).unwrap() && process["old"] == old
        };
        let [mut size, mut count] = [0, 0];
        if at == "live" {
            let (rows, each, counts) =
                (self.numbers("live.row"), self.numbers("live.each"), self.numbers("live.count"));
            for index in (0..rows.len()).filter(|&index| is_wanted(usize::try_from(rows[index]).unwrap())) {
                size += each[index] * counts[index];
                count += counts[index];
            }
            return (size, count);
        }
        // Means stand as differences from the means of the live blocks, and of all blocks.
        let mut sums = vec![(0_i128, 0_i128); domains.len()];
        let [rows, each, counts] = ["live.row", "live.each", "live.count"].map(|name| self.numbers(name));
        for (index, row) in rows.into_iter().enumerate() {
            let sum = &mut sums[usize::try_from(row).unwrap()];
            *sum = (sum.0 + each[index] * counts[index], sum.1 + counts[index]);
        }
        for name in if at == "total" { &["total"][..] } else { &["total", "peak"] } {
            let [counts, means, rests] =
                ["count", "each", "rest"].map(|part| self.numbers(&format!("row.{name}_{part}")));
            for (row, sum) in sums.iter_mut().enumerate() {
                let mean = sum.0 / sum.1.max(1) + means[row];
                *sum = (mean * counts[row] + rests[row], counts[row]);
            }
        }
        for row in (0..domains.len()).filter(|&row| is_wanted(row)) {
            size += sums[row].0;
            count += sums[row].1;
        }
        (size, count)
    }
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let (&byte, rest) = bytes.split_first().expect("a whole number");
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    value
}
