//! A service that keeps most of its memory at one line, which the argument chooses.
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

#[derive(Clone)]
struct Item([u8; 1000]);

#[derive(Default)]
struct Store {
    items: Vec<Item>,
    texts: Vec<String>,
    bytes: Vec<u8>,
    map: HashMap<u64, Item>,
    names: HashSet<String>,
    lists: HashMap<u64, Vec<u8>>,
    tree: BTreeMap<u64, Item>,
    queue: VecDeque<Item>,
    boxes: Vec<Box<Item>>,
    arcs: Vec<Arc<Item>>,
    calls: Vec<Box<dyn Fn() -> u8 + Send>>,
}

fn request(store: &mut Store, kind: &str, number: u64) {
    let item = Item([7; 1000]);
    match kind {
        "push" => store.items.push(item),                                             // LINE push
        "repeat" => store.texts.push("x".repeat(3000)),                               // LINE repeat
        "format" => store.texts.push(format!("{number:3000}")),                       // LINE format
        "add" => store.texts.push(number.to_string() + &"z"[..].repeat(3000)),        // LINE add
        "extend" => store.bytes.extend_from_slice(&item.0),                           // LINE extend
        "map" => drop(store.map.insert(number, item)),                                // LINE map
        "set" => drop(store.names.insert(format!("{number:900}"))),                   // LINE set
        "entry" => store.lists.entry(number).or_default().resize(900, 1),             // LINE entry
        "tree" => drop(store.tree.insert(number, item)),                              // LINE tree
        "queue" => store.queue.push_back(item),                                       // LINE queue
        "box" => store.boxes.push(Box::new(item)),                                    // LINE box
        "arc" => store.arcs.push(Arc::new(item)),                                     // LINE arc
        "clone" => store.bytes = [store.bytes.clone(), item.0.to_vec()].concat(),     // LINE clone
        "collect" => drop(store.lists.insert(number, (0..900).map(|n| n as u8 % 7).collect())), // LINE collect
        "closure" => store.calls.push(Box::new(move || item.0[0])),                   // LINE closure
        _ => {}
    }
}

fn main() {
    let kind = std::env::args().next_back().expect("a kind");
    let store = Arc::new(Mutex::new(Store::default()));
    for number in 0..300 {
        request(&mut store.lock().unwrap(), &kind, number);
    }
    if kind == "thread" {
        let shared = store.clone();
        let work = move || shared.lock().unwrap().texts.push("x".repeat(300_000));    // LINE thread
        std::thread::spawn(work).join().unwrap();
    }
    let (sender, receiver) = channel::<Item>();
    for _ in 0..300 {
        if kind == "channel" { sender.send(Item([1; 1000])).unwrap(); }               // LINE channel
    }
    let total: usize = if kind == "peak" {
        (0..3_u8).map(|n| vec![n; 400_000].iter().map(|&n| usize::from(n)).sum::<usize>()).sum() // LINE peak
    } else {
        0
    };
    std::mem::forget((store, receiver));
    std::process::exit(i32::from(total == 1));
}
